"""Tiny Phi-4-multimodal checkpoints in both layouts: the PyTorch model, its adapters, and the files of a processor."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import helpers
import numpy as np
import torch
from helpers_processor import byte_tokenizer
from random_weights import randomise
from safetensors.numpy import load_file, save_file
from transformers import Phi4MultimodalConfig, Phi4MultimodalFeatureExtractor
from transformers import Phi4MultimodalForCausalLM as TorchPhi4

SPECIAL_TOKENS = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext10|>", "<|endoftext11|>"]
ORIGINAL = 64  # tokens up to which the short factors hold
RANK, ALPHA = 4, 8
ADAPTED = r"model\.layers\.\d+\.\w+\.(qkv_proj|o_proj|gate_up_proj|down_proj)"
# What the published template does, of messages whose content is a string.
TEMPLATE = """\
{%- for message in messages -%}
  {{ "<|" ~ message.role ~ "|>" ~ message.content ~ "<|end|>" }}
{%- endfor -%}
{{ "<|assistant|>" if add_generation_prompt }}"""


def tiny_phi4_config(audio: dict | None = None, **text) -> Phi4MultimodalConfig:
    """Six of a head's eight dimensions are rotated; a clip is longer than its table of distances."""
    return Phi4MultimodalConfig(
        **{
            "vocab_size": helpers.VOCAB,
            "hidden_size": 48,
            "intermediate_size": 72,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8 * ORIGINAL,
            "original_max_position_embeddings": ORIGINAL,
            "partial_rotary_factor": 0.75,
            "tie_word_embeddings": True,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 1.1, 1.3],
                "long_factor": [1.5, 3.0, 7.0],
            },
            "sliding_window": 4096,
            "bos_token_id": 1,
            "eos_token_id": [2],
            "pad_token_id": 0,
            **text,
        },
        audio_config={
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_blocks": 2,
            "num_attention_heads": 3,
            "ext_pw_out_channel": 24,
            "depthwise_separable_out_channel": 24,
            "input_size": helpers.MEL_BINS,
            "bias_max_distance": 5,
            "nemo_conv_channels": 10,
            "audio_token_id": helpers.AUDIO_TOKEN,
            **(audio or {}),
        },
        vision_config={
            **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
            **{"image_token_id": 91, "image_size": 28, "patch_size": 14, "crop_size": 28},
        },
    )


def torch_phi4(config: Phi4MultimodalConfig, seed: int = 0) -> TorchPhi4:
    """A PyTorch model in fp32 whose weights are large enough that logits are far from flat; no token ends its text."""
    torch.manual_seed(seed)
    model = randomise(TorchPhi4._from_config(config, attn_implementation="eager").eval())
    encoder = model.model.embed_tokens_extend.audio_embed.encoder
    encoder.encoder_embedding.global_mean.uniform_(0.5, 1.5)
    encoder.encoder_embedding.global_invstd.uniform_(0.5, 1.5)
    encoder.embed.out.weight.data *= 0.02  # of values so large that what is added to them would not be noticed
    for layer in encoder.encoders:
        layer.feed_forward_out.down_proj.bias.data *= 5  # likewise
    model.generation_config.eos_token_id = None
    return model


def adapter(model: TorchPhi4, seed: int = 1) -> dict[str, np.ndarray]:
    """A random adapter of the language model's linear layers, by the names of a PEFT file."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, module in model.named_modules():
        if re.fullmatch(ADAPTED, name):
            rows, columns = module.weight.shape
            for part, shape in (("A", (RANK, columns)), ("B", (rows, RANK))):
                values = rng.normal(0, 0.7 / shape[1] ** 0.5, shape).astype(np.float32)
                tensors[f"base_model.model.{name}.lora_{part}.weight"] = values
    return tensors


def with_adapter(model: TorchPhi4, tensors: dict[str, np.ndarray]) -> TorchPhi4:
    """The PyTorch model with an adapter in its weights; the model is changed."""
    for name, module in model.named_modules():
        if f"base_model.model.{name}.lora_A.weight" in tensors:
            a, b = (torch.from_numpy(tensors[f"base_model.model.{name}.lora_{part}.weight"]) for part in "AB")
            module.weight.data += ALPHA / RANK * b @ a
    return model


def write_adapter(folder: Path, tensors: dict[str, np.ndarray], kind: str = "speech") -> None:
    """A PEFT folder beside transformers' checkpoint."""
    (folder / f"{kind}-lora").mkdir()
    save_file(tensors, folder / f"{kind}-lora" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ADAPTED}
    (folder / f"{kind}-lora" / "adapter_config.json").write_text(json.dumps(settings))


def write_microsoft(folder: Path, source: Path, adapters: dict[str, dict[str, np.ndarray]]) -> Path:
    """transformers' checkpoint `source` in Microsoft's layout, with adapters by their kind in its file."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        r"(encoders\.\d+\.self_attn\.)([qkv])_proj": r"\1linear_\2",
        r"(encoders\.\d+\.self_attn\.)o_proj": r"\1linear_out",
        r"(feed_forward_\w+)\.gate_up_proj": r"\1.net.0.linear",
        r"(feed_forward_\w+)\.down_proj": r"\1.net.2",
        r"up_proj_for_speech": "audio_projection.speech.0",
        r"down_proj_for_speech": "audio_projection.speech.2",
        r"up_proj_for_vision_speech": "audio_projection.vision.0",
        r"down_proj_for_vision_speech": "audio_projection.vision.2",
        rf"^({ADAPTED})\.weight": r"\1.base_layer.weight",
    }
    tensors = {}
    for name, value in load_file(source / "model.safetensors").items():
        for pattern, replacement in names.items():
            name = re.sub(pattern, replacement, name)
        tensors[name] = value
    for kind, own in adapters.items():
        for name, value in own.items():
            name = name.removeprefix("base_model.model.").replace(".weight", f".{kind}.weight")
            tensors[name] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    stored = json.loads((source / "config.json").read_text())
    audio = stored.pop("audio_config")
    for name in ("vision_config", "speech_lora"):
        stored.pop(name, None)
    same = ("activation", "chunk_size", "left_chunk", "conv_activation", "conv_glu_type", "depthwise_multiplier")
    sizes = {name: audio[name] for name in (*same, "ext_pw_out_channel", "input_size", "kernel_size", "num_blocks")}
    sizes |= {
        "attention_dim": audio["hidden_size"],
        "attention_heads": audio["num_attention_heads"],
        "linear_units": audio["intermediate_size"],
        "depthwise_seperable_out_channel": audio["depthwise_separable_out_channel"],
        "time_reduction": audio["time_reduction"],
        "nemo_conv_settings": {"conv_channels": audio["nemo_conv_channels"]},
        "relative_attention_bias_args": {"t5_bias_max_distance": audio["bias_max_distance"], "type": "t5"},
    }
    stored |= {
        "model_type": "phi4mm",
        "architectures": ["Phi4MMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_phi4mm.Phi4MMConfig"},
        "audio_processor": {"name": "cascades", "config": sizes},
        "embd_layer": {"audio_embd_layer": {"downsample_rate": 1}, "embedding_cls": "image_audio"},
        "audio_token_id": audio["audio_token_id"],
        "speech_lora": {"r": RANK, "lora_alpha": ALPHA, "dp": 0.01, "layer": ADAPTED},
        "vision_lora": {"r": RANK, "lora_alpha": ALPHA, "dp": 0.01, "layer": ADAPTED},
    }
    (folder / "config.json").write_text(json.dumps(stored))
    if (source / "generation_config.json").exists():
        shutil.copy(source / "generation_config.json", folder)
    return folder


def prompt(*parts: int, seed: int = 0) -> list[int]:
    """Text tokens where a part is positive, a clip of so many frames where it is negative."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(3, 90, n) if n > 0 else np.full((7 - n) // 8, helpers.AUDIO_TOKEN) for n in parts]
    return np.concatenate(rows).tolist()


def clips(lengths: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    """Random features of clips of so many frames, as the processor gives them."""
    rng, frames = np.random.default_rng(seed), np.array(lengths)
    mask = np.arange(frames.max()) < frames[:, None]
    features = rng.normal(3, 2, size=(len(lengths), frames.max(), helpers.MEL_BINS)).astype(np.float32)
    return {
        "audio_input_features": np.where(mask[..., None], features, 0).astype(np.float32),
        "audio_embed_sizes": (frames + 7) // 8,
        "audio_attention_mask": mask,
    }


# What the config has of its own, whether there is an adapter, and a seed with which no answer has the token of audio.
VARIANTS = {
    "adapter": ({}, True, 0),
    "bare": ({"tie_word_embeddings": False, "num_key_value_heads": 6, "partial_rotary_factor": 1.0}, False, 3),
}


def config_of(variant: str) -> Phi4MultimodalConfig:
    """That of a variant; all dimensions of a head are four pairs."""
    text, *_ = VARIANTS[variant]
    if "partial_rotary_factor" in text:
        factors = {"short_factor": [1.0, 1.2, 1.4, 1.6], "long_factor": [2.0, 3.0, 5.0, 8.0]}
        text = {**text, "rope_scaling": {"type": "longrope", **factors}}
    return tiny_phi4_config(**text)


def greedy(model: TorchPhi4, inputs: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Greedy tokens, each by a forward pass of its own, and how far each is ahead of the next.

    transformers' `generate` computes with another mask from the token on at which the long factors begin: it drops the
    cache there, and then lets all tokens see those behind them.
    """
    inputs, tokens, margins = helpers.to_torch(inputs), [], []
    with torch.no_grad():
        for _ in range(count):
            best = model(**inputs).logits[:, -1].topk(2, -1)
            tokens.append(best.indices[:, :1])
            margins.append(best.values[:, :1] - best.values[:, 1:])
            inputs["input_ids"] = torch.cat([inputs["input_ids"], tokens[-1]], 1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return {"tokens": torch.cat(tokens, 1).numpy().astype(np.int32), "margins": torch.cat(margins, 1).numpy()}


def recordings(folder: Path, variant: str, new_tokens: int) -> dict[str, dict[str, np.ndarray]]:
    """What PyTorch computes of each case, by its name; the checkpoint is written to `folder`.

    The adapter is on for clips and off for text. transformers has no such batch, nor one of clips of unequal lengths
    (it attends to padding): "batch" is what the three give alone.
    """
    _, adapted, seed = VARIANTS[variant]
    model = torch_phi4(config_of(variant), seed)
    model.save_pretrained(folder)
    other = torch_phi4(config_of(variant), seed)
    if adapted:
        tensors = adapter(model)
        write_adapter(folder, tensors)
        with_adapter(other, tensors)
    cases = {}
    for name, make in phi4_cases().items():
        used, inputs = model if name == "text only" else other, make()
        cases[name] = {**helpers.record_case(used, inputs, 1), **greedy(used, inputs, new_tokens)}
    return {**cases, "batch": _together(list(cases.values()))}


def _together(singles: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of a padded batch, of those of its rows."""
    ids = [single["input.input_ids"][0].tolist() for single in singles]
    width = max(map(len, ids))

    def left(name: str, fill: float) -> np.ndarray:
        rows = [single[name] for single in singles]
        rest = [[(0, 0), (width - row.shape[1], 0), *[(0, 0)] * (row.ndim - 2)] for row in rows]
        return np.concatenate([np.pad(row, pad, constant_values=fill) for row, pad in zip(rows, rest)])

    heard = [single for single in singles if "input.audio_input_features" in single]
    sizes = [len(row) for single in heard for row in single["input.audio_input_features"]]
    features = {"input.audio_input_features": [], "input.audio_attention_mask": []}
    for single in heard:
        for row in single["input.audio_input_features"]:
            mask = np.arange(max(sizes)) < len(row)
            features["input.audio_input_features"].append(np.pad(row, ((0, max(sizes) - len(row)), (0, 0))))
            features["input.audio_attention_mask"].append(mask)
    labels = left("labels", -100)
    for row, tokens in zip(labels, ids):  # nothing is before the first token, which padding would be
        row[width - len(tokens)] = -100
    counts = [int((single["labels"][:, 1:] != -100).sum()) for single in singles]
    return {
        **{f"input.{name}": value for name, value in helpers.batch(ids).items()},
        **{name: np.stack(rows) for name, rows in features.items()},
        "input.audio_embed_sizes": np.concatenate([single["input.audio_embed_sizes"] for single in heard]),
        "labels": labels,
        "logits": left("logits", 0),
        "loss": np.float32(np.average([single["loss"] for single in singles], weights=counts)),
        **{name: np.concatenate([single[name] for single in singles]) for name in ("tokens", "margins")},
    }


def phi4_cases() -> dict[str, Callable[[], dict]]:
    """One clip, one text, and three clips of one length, which transformers computes rightly beside each other."""
    one, text, three = prompt(1, -117, 9, seed=2), prompt(4, seed=4), prompt(2, -64, 1, -64, 1, -64, 2, seed=4)

    def single() -> dict[str, np.ndarray]:
        features = clips([117], 5)
        del features["audio_attention_mask"]  # as transformers' processor gives it
        return {**helpers.batch([one]), **features}

    return {
        "one clip": single,
        "text only": lambda: helpers.batch([text]),
        "three clips": lambda: {**helpers.batch([three]), **clips([64, 64, 64], 6)},
    }


def write_processor(folder: Path) -> Path:
    """The files of a processor, of 80 mels."""
    words = byte_tokenizer(SPECIAL_TOKENS, eos_token="<|end|>")
    words.chat_template = TEMPLATE
    words.save_pretrained(folder)
    Phi4MultimodalFeatureExtractor().save_pretrained(folder)
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps({"model_type": "phi4_multimodal"}))
    return folder


def write_checkpoint(folder: Path) -> Path:
    """A whole checkpoint of random weights with a speech adapter, whose model hears what its processor makes."""
    words = byte_tokenizer(SPECIAL_TOKENS, eos_token="<|end|>")
    audio = {"input_size": 80, "num_blocks": 1, "audio_token_id": words.convert_tokens_to_ids("<|endoftext11|>")}
    sizes = {"vocab_size": len(words), "num_hidden_layers": 1, "max_position_embeddings": 4096}
    model = torch_phi4(tiny_phi4_config(audio, original_max_position_embeddings=1024, **sizes))
    model.generation_config.eos_token_id = words.convert_tokens_to_ids("<|end|>")
    model.generation_config.pad_token_id = words.pad_token_id
    model.save_pretrained(folder)
    write_adapter(folder, adapter(model))
    return write_processor(folder)
