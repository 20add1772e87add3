"""The two layouts of a Phi-4-multimodal checkpoint: Microsoft's (`phi4mm`) and that of transformers.

In Microsoft's the adapters for speech and images are in the model's files; in the other one they are in folders.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from transformers import Phi4MultimodalAudioConfig, Phi4MultimodalConfig

from mindone_audio.backbone.decoder import DecoderConfig
from mindone_audio.backbone.published_config import decoder_config
from mindone_audio.models.phi4_multimodal.encoder import LONGEST, REDUCTION, Phi4EncoderConfig

ADAPTER = "speech-lora"
_AUDIO = "model.embed_tokens_extend.audio_embed."
_BLOCK, _LAYER = f"{_AUDIO}encoder.encoders.*.", "model.layers.*."
_ADAPTED = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
_ATTENTION = (("q_proj", "linear_q"), ("k_proj", "linear_k"), ("v_proj", "linear_v"), ("o_proj", "linear_out"))

# How names begin: (on disk, here).
TRANSFORMERS = (
    *((f"{_BLOCK}self_attn.{there}.", f"audio_tower.layers.*.self_attn.{here}.") for there, here in _ATTENTION),
    (f"{_AUDIO}encoder.encoders.", "audio_tower.layers."),
    (f"{_AUDIO}encoder.", "audio_tower."),
    (f"{_AUDIO}up_proj_for_speech.", "multi_modal_projector.linear_1."),
    (f"{_AUDIO}down_proj_for_speech.", "multi_modal_projector.linear_2."),
    ("model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
_MICROSOFT = (
    *(
        (f"{_BLOCK}feed_forward_{end}.net.0.linear.", f"audio_tower.layers.*.feed_forward_{end}.gate_up_proj.")
        for end in ("in", "out")
    ),
    *(
        (f"{_BLOCK}feed_forward_{end}.net.2.", f"audio_tower.layers.*.feed_forward_{end}.down_proj.")
        for end in ("in", "out")
    ),
    (f"{_AUDIO}audio_projection.speech.0.", "multi_modal_projector.linear_1."),
    (f"{_AUDIO}audio_projection.speech.2.", "multi_modal_projector.linear_2."),
    *((f"{_LAYER}{name}.base_layer.", f"language_model.{_LAYER}{name}.") for name in _ADAPTED),
    *(
        (f"{_LAYER}{name}.lora_{part}.speech.", f"language_model.{_LAYER}{name}.lora_{part}.")
        for name in _ADAPTED
        for part in "AB"
    ),
)
_ADAPTER_FILE = tuple(
    (f"base_model.model.{_LAYER}{name}.lora_{part}.", f"language_model.{_LAYER}{name}.lora_{part}.")
    for name in _ADAPTED
    for part in "AB"
)
PREFIXES = (*_MICROSOFT, *_ADAPTER_FILE, *TRANSFORMERS)
# Parts of names of what sees: the image encoder, its adapter, and the projector for clips that come with images.
UNREAD = (".image_embed.", ".vision.", "_for_vision_speech.")

# Fields of the audio encoder that nothing here computes otherwise.
_FIXED = {
    "activation": ("swish", "silu"),
    "conv_activation": ("swish", "silu"),
    "conv_glu_type": ("swish", "silu"),
    "nemo_activation": ("relu",),
    "time_reduction": (REDUCTION,),
    "chunk_size": (-1,),
    "bias_symmetric": (False,),
    "downsample_rate": (1,),
    "depthwise_multiplier": (1,),
}


def encoder_sizes(config: Phi4MultimodalAudioConfig) -> Phi4EncoderConfig:
    """The encoder of an `audio_config`. Raises `ValueError` for what it does not compute."""
    widths = {name: (config.hidden_size,) for name in ("ext_pw_out_channel", "depthwise_separable_out_channel")}
    for name, values in {**_FIXED, **widths}.items():
        if (value := getattr(config, name)) not in values:
            raise ValueError(
                f"audio_config.{name} {value!r} is not supported: only {' or '.join(map(repr, values))}, since nothing "
                "here computes it. Correct it in config.json if it is a mistake there"
            )
    return Phi4EncoderConfig(
        num_mel_bins=config.input_size,
        num_mel_frames=LONGEST,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_blocks,
        num_heads=config.num_attention_heads,
        left_positions=config.bias_max_distance,
        right_positions=config.bias_max_distance - 1,
        conv_kernel=config.kernel_size,
        conv_channels=config.nemo_conv_channels,
    )


def decoder_sizes(config: Phi4MultimodalConfig) -> DecoderConfig:
    """The language model, with the speech adapter that `speech_lora` says."""
    adapter = getattr(config, "speech_lora", None)
    lora = (adapter["r"], adapter["lora_alpha"] / adapter["r"]) if adapter else None
    return dataclasses.replace(decoder_config(config), lora=lora)


def transformers_config(stored: dict, folder: Path) -> dict[str, Any]:
    """A config.json of either layout as transformers' `Phi4MultimodalConfig` takes it, with `speech_lora`.

    Raises `ValueError` for what is not there, or does not fit.
    """
    config = dict(stored)
    if stored.get("model_type") == "phi4mm":
        config = _of_microsoft(stored)
    elif (folder / ADAPTER / "adapter_config.json").exists():
        config["speech_lora"] = _adapter_sizes(folder / ADAPTER / "adapter_config.json")
    elif (folder / "vision-lora").exists():
        raise ValueError(
            f"{folder} has the adapter for images alone, and without {ADAPTER} it does not hear: download that folder "
            "of the repository too"
        )
    else:
        config.pop("speech_lora", None)  # what is said of an adapter that is not there
    _check_rope(config)
    return config


def _of_microsoft(stored: dict) -> dict[str, Any]:
    try:
        audio, embedding = stored["audio_processor"]["config"], stored["embd_layer"]["audio_embd_layer"]
        names = {
            "hidden_size": "attention_dim",
            "num_attention_heads": "attention_heads",
            "intermediate_size": "linear_units",
            "depthwise_separable_out_channel": "depthwise_seperable_out_channel",  # as they spell it
        }
        same = ("activation", "chunk_size", "left_chunk", "conv_activation", "conv_glu_type", "depthwise_multiplier")
        same += ("ext_pw_out_channel", "input_size", "kernel_size", "num_blocks", "time_reduction")
        sizes = {name: audio[name] for name in same} | {ours: audio[theirs] for ours, theirs in names.items()}
        bias = audio.get("relative_attention_bias_args", {})
        sizes["bias_max_distance"] = bias.get("t5_bias_max_distance", 1000)
        sizes["bias_symmetric"] = bias.get("t5_bias_symmetric", False)
        sizes["nemo_conv_channels"] = audio["nemo_conv_settings"]["conv_channels"]
        sizes["downsample_rate"] = embedding.get("downsample_rate", 1)
        sizes["audio_token_id"] = stored.get("audio_token_id", 200011)
    except (KeyError, TypeError) as error:
        raise ValueError(f"config.json is of model_type 'phi4mm' and lacks {error}: download it again") from error
    left = ("audio_processor", "embd_layer", "img_processor", "auto_map", "vision_lora")
    config = {name: value for name, value in stored.items() if name not in left}
    return config | {"model_type": "phi4_multimodal", "audio_config": sizes, "vision_config": {}}


def _adapter_sizes(file: Path) -> dict[str, int]:
    settings = json.loads(file.read_text(encoding="utf-8"))
    try:
        return {"r": settings["r"], "lora_alpha": settings["lora_alpha"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} lacks {error}: download it again") from error


def _check_rope(config: dict) -> None:
    """`ValueError` for factors that are not one for each pair of rotated dimensions."""
    rope = config.get("rope_scaling") or {}
    width = config["hidden_size"] // config["num_attention_heads"]
    pairs = int(width * config.get("partial_rotary_factor", 1.0)) // 2
    for name in ("short_factor", "long_factor") if rope else ():
        factors = rope.get(name)
        if not isinstance(factors, list) or len(factors) != pairs:
            count = len(factors) if isinstance(factors, list) else 0
            raise ValueError(
                f"rope_scaling.{name} has {count} numbers, and there are {pairs} pairs of dimensions to rotate "
                "(partial_rotary_factor of a head): correct config.json"
            )


def adapter_files(folder: Path) -> list[Path]:
    """The file of the speech adapter, where the model's own files lack it."""
    file = folder / ADAPTER / "adapter_model.safetensors"
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return [file] if stored.get("model_type") != "phi4mm" and file.exists() else []


def save_adapter(folder: Path, config: Phi4MultimodalConfig, tensors: dict[str, np.ndarray]) -> None:
    """Write the speech adapter, by its names here, as PEFT loads it onto transformers' model."""
    (folder / ADAPTER).mkdir(exist_ok=True)
    names = {name: f"base_model.model.{name.removeprefix('language_model.')}" for name in tensors}
    save_file({names[name]: value for name, value in tensors.items()}, folder / ADAPTER / "adapter_model.safetensors")
    modules = sorted({name.rsplit(".", 1)[1] for name in _ADAPTED})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": config.speech_lora["r"],
        "lora_alpha": config.speech_lora["lora_alpha"],
        "lora_dropout": 0.0,
        "bias": "none",
        # Anchored, since the audio encoder has layers of these names too.
        "target_modules": rf"model\.layers\.\d+\.\w+\.({'|'.join(modules)})",
    }
    (folder / ADAPTER / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
