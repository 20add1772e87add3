"""Tiny random checkpoints and the PyTorch models they come from."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import record_parity
import torch
from random_weights import randomise
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2AudioConfig
from transformers import Qwen2AudioForConditionalGeneration as TorchQwen2Audio

from mindone_audio.checkpoints import demo_checkpoint

AUDIO_TOKEN = 90
VOCAB = 97
MEL_BINS = 16
PAD = 96  # not 0, which transformers' beam search takes for "none given"
FRAMES = 40  # a window of 0.4 s, so 10 audio tokens


QWEN2_AUDIO = {
    "grouped": {},
    "tied": {"text": {"tie_word_embeddings": True, "num_key_value_heads": 6, "rope_theta": 1e6}},
    "odd": {
        "audio": {"d_model": 21, "encoder_attention_heads": 7, "encoder_ffn_dim": 13, "num_mel_bins": 16},
        "text": {"hidden_size": 30, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 37},
    },
}


def tiny_config(audio: dict | None = None, text: dict | None = None) -> Qwen2AudioConfig:
    """Sizes that share no divisor by accident: grouped heads, a width that is no power of two."""
    return Qwen2AudioConfig(
        audio_config={
            "num_mel_bins": MEL_BINS,
            "d_model": 24,
            "encoder_layers": 2,
            "encoder_attention_heads": 3,
            "encoder_ffn_dim": 40,
            "max_source_positions": FRAMES // 2,
            **(audio or {}),
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": VOCAB,
            "hidden_size": 48,
            "intermediate_size": 72,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "tie_word_embeddings": False,
            **(text or {}),
        },
        audio_token_index=AUDIO_TOKEN,
    )


def shallow_demo_checkpoint(folder: Path) -> Path:
    """The bundled checkpoint with the first layer of its encoder and of its decoder alone, whose graphs compile fast.

    What it says makes no sense. It is for tests of what happens around a model.
    """
    shutil.copytree(demo_checkpoint(), folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = json.loads((demo_checkpoint() / "config.json").read_text())
    config["audio_config"] |= {"encoder_layers": 1, "num_hidden_layers": 1}
    config["text_config"] |= {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(demo_checkpoint() / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not re.search(r"layers\.[1-9]", name)}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


def torch_model(config: Qwen2AudioConfig, seed: int = 0) -> TorchQwen2Audio:
    """A PyTorch model in fp32 whose weights are large enough that logits are far from flat."""
    torch.manual_seed(seed)
    return randomise(TorchQwen2Audio._from_config(config, attn_implementation="eager").eval())


def clips(lengths: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    """Random features of clips of so many frames, padded to the window, as the processor gives them."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((len(lengths), FRAMES), np.int32)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    features = rng.normal(size=(len(lengths), MEL_BINS, FRAMES)).astype(np.float32)
    return {"input_features": features, "feature_attention_mask": mask}


def audio_tokens(frames: int) -> int:
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def prompt(parts: list, seed: int = 0) -> list[int]:
    """Token ids of a prompt: an int n is n random text tokens, a string "a<frames>" the placeholders of a clip."""
    rng = np.random.default_rng(seed)
    ids = []
    for part in parts:
        if isinstance(part, int):
            ids += rng.integers(3, AUDIO_TOKEN, part).tolist()
        else:
            ids += [AUDIO_TOKEN] * (audio_tokens(int(part[1:])) if part != "a" else 1)
    return ids


def batch(prompts: list[list[int]], side: str = "left", pad: int = 0) -> dict[str, np.ndarray]:
    """input_ids and attention_mask, int64 as tokenizers give them."""
    width = max(map(len, prompts))
    ids, mask = np.full((len(prompts), width), pad), np.zeros((len(prompts), width), np.int64)
    for row, tokens in enumerate(prompts):
        where = slice(width - len(tokens), width) if side == "left" else slice(0, len(tokens))
        ids[row, where], mask[row, where] = tokens, 1
    return {"input_ids": ids, "attention_mask": mask}


def to_torch(inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in inputs.items()}


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def torch_beams(model: TorchQwen2Audio, inputs: dict[str, np.ndarray], **settings) -> np.ndarray:
    """New tokens of PyTorch's beam search.

    The language model generates from the merged embeddings, because transformers 4.57's own Qwen2-Audio `generate`
    repeats the clips one by one for the beams, which gives prompts with two clips the wrong ones.
    """
    merged = {}

    def keep(module, args, kwargs):
        merged.update(inputs_embeds=kwargs["inputs_embeds"], attention_mask=kwargs["attention_mask"])

    hook = model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        model(**to_torch(inputs))
        hook.remove()
        return model.language_model.generate(**merged, **settings).numpy()


def qwen2_audio_cases() -> dict[str, Callable[[], dict]]:
    """Inputs of a family with placeholders and a feature mask: clips of odd lengths, one of them the window's."""
    one, text = prompt([1, "a40", 9], 2), prompt([4], 3)
    three = prompt([2, "a9", 1, "a21", 1, "a33", 2], 4)
    features = clips([40, 9, 21, 33], 2)
    first, rest = ({name: value[part] for name, value in features.items()} for part in (slice(1), slice(1, None)))
    return {
        "one clip": lambda: {**batch([one]), **first},
        "text only": lambda: batch([text]),
        "three clips": lambda: {**batch([three]), **rest},
        "batch": lambda: {**batch([one, text, three]), **features},
    }


ICHIGO = {
    "llama3 positions": {
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            **{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        },
    },
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 3, "num_attention_heads": 3, "head_dim": 10},
}


def torch_llama(**changes) -> LlamaForCausalLM:
    """A Llama in fp32 on PyTorch, of which tokens 60 to 89 may be sound."""
    sizes = {
        **{"vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 3},
        **{"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 512},
        **{"rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": None},
    }
    torch.manual_seed(0)
    return randomise(LlamaForCausalLM(LlamaConfig(**{**sizes, **changes}, attn_implementation="eager")).eval())


def ichigo_cases() -> dict[str, Callable[[], dict]]:
    """Prompts of text and sounds, each clip some tokens from 62 on between its start, 60, and its end, 61."""
    rng = np.random.default_rng(5)

    def sound(tokens: int) -> list[int]:
        return [60, *rng.integers(62, 90, tokens).tolist(), 61]

    def text(tokens: int) -> list[int]:
        return rng.integers(3, 60, tokens).tolist()

    one = text(1) + sound(33) + text(9)
    three = text(2) + sound(2) + text(1) + sound(20) + text(1) + sound(9) + text(2)
    prompts = {"one clip": [one], "text only": [text(4)], "three clips": [three]}
    prompts["batch"] = [row for rows in prompts.values() for row in rows]
    return {case: (lambda rows=rows: batch(rows)) for case, rows in prompts.items()}


def record_case(model, inputs: dict[str, np.ndarray], new_tokens: int) -> dict[str, np.ndarray]:
    """Every stage of a PyTorch model at every position, and the loss for labels of which a third are ignored."""
    ids = inputs["input_ids"]
    labels = np.where(np.random.default_rng(0).random(ids.shape) < 0.3, -100, ids)
    labels[:, -1] = ids[:, -1]  # something to learn in every sample
    labels[inputs["attention_mask"] == 0] = -100
    settings = {"every": 1, "positions": ids.shape[1], "new_tokens": new_tokens, "pad_token_id": PAD}
    return record_parity.record(model, to_torch(inputs), labels=labels, **settings)
