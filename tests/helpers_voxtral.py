"""Tiny Voxtral checkpoints: the PyTorch model, and the files that a real repository has beside the weights."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from helpers import AUDIO_TOKEN, FRAMES, MEL_BINS, VOCAB, batch
from random_weights import randomise
from transformers import VoxtralConfig, WhisperFeatureExtractor
from transformers import VoxtralForConditionalGeneration as TorchVoxtral

WIDTH = 24  # of the encoder
TOKENS = FRAMES // 8  # of one window
CONTROL_WORDS = {
    **{0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]", 6: "[/AVAILABLE_TOOLS]"},
    **{7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]", 10: "[IMG]", 11: "<pad>", 12: "[IMG_BREAK]"},
    **{13: "[IMG_END]", 14: "[PREFIX]", 15: "[MIDDLE]", 16: "[SUFFIX]", 17: "[SYSTEM_PROMPT]"},
    **{18: "[/SYSTEM_PROMPT]", 19: "[TOOL_CONTENT]", 24: "[AUDIO]", 25: "[BEGIN_AUDIO]"},
    **{32: "[ARGS]", 33: "[CALL_ID]", 34: "[TRANSCRIBE]", 35: "[THINK]", 36: "[/THINK]"},
}
MERGES = (" t", "he", " the", "in", "ou", "is", " is", "lang")
# What the text_config has of its own, and a seed with which the model does not repeat one token for ever.
VARIANTS = {
    "grouped": ({}, 0),
    "tied": ({"tie_word_embeddings": True, "num_key_value_heads": 6, "attention_bias": True}, 7),
}


def tiny_voxtral_config(text: dict | None = None, audio: dict | None = None, **top) -> VoxtralConfig:
    """4 frames are stacked, as in the real one, and the heads are wider than the decoder's width has room for."""
    return VoxtralConfig(
        audio_config={
            "num_mel_bins": MEL_BINS,
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "max_source_positions": FRAMES // 2,
            **(audio or {}),
        },
        text_config={
            "vocab_size": VOCAB,
            "hidden_size": 48,
            "intermediate_size": 72,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 10,
            "max_position_embeddings": 512,
            **(text or {}),
        },
        **{"audio_token_id": AUDIO_TOKEN, **top},
    )


def torch_voxtral(config: VoxtralConfig, seed: int = 0) -> TorchVoxtral:
    """A PyTorch model in fp32 whose weights are large enough that logits are far from flat; no token ends its text."""
    torch.manual_seed(seed)
    model = randomise(TorchVoxtral._from_config(config, attn_implementation="eager").eval())
    model.generation_config.eos_token_id = None
    return model


def voxtral_cases() -> dict[str, Callable[[], dict]]:
    """Inputs whose clips have one window, or two and one and one."""
    rng = np.random.default_rng(5)

    def prompt(*parts: int) -> list[int]:
        """Text tokens where a part is positive, a clip of so many windows where it is negative."""
        rows = [rng.integers(3, AUDIO_TOKEN, n) if n > 0 else np.full(-n * TOKENS, AUDIO_TOKEN) for n in parts]
        return np.concatenate(rows).tolist()

    one, text, three = prompt(1, -1, 9), prompt(4), prompt(2, -2, 1, -1, 1, -1, 2)
    windows = rng.normal(size=(5, MEL_BINS, FRAMES)).astype(np.float32)
    return {
        "one clip": lambda: {**batch([one]), "input_features": windows[:1]},
        "text only": lambda: batch([text]),
        "three clips": lambda: {**batch([three]), "input_features": windows[1:]},
        "batch": lambda: {**batch([one, text, three]), "input_features": windows},
    }


def write_tekken(folder: Path, version: str = "v7") -> Path:
    """A tokenizer of bytes and a few merges, with the control tokens of the real one at their ids."""
    words = [CONTROL_WORDS.get(i, f"<SPECIAL_{i}>") for i in range(40)]
    pieces = [bytes([i]) for i in range(256)] + [merge.encode() for merge in MERGES]
    content = {
        "config": {
            "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+",
            "num_vocab_tokens": len(pieces),
            "default_vocab_size": len(words) + len(pieces),
            "default_num_special_tokens": len(words),
            "version": version,
        },
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
            for i, piece in enumerate(pieces)
        ],
        "special_tokens": [{"rank": i, "token_str": word, "is_control": True} for i, word in enumerate(words)],
        "audio": {
            "sampling_rate": 16_000,
            "frame_rate": 12.5,
            "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
            "chunk_length_s": 30.0,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tekken.json").write_text(json.dumps(content))
    return folder / "tekken.json"


def write_processor(folder: Path, **extractor) -> Path:
    """What a real repository has for its processor: preprocessor_config.json and tekken.json, and config.json.

    `extractor`: WhisperFeatureExtractor's arguments; the default has Voxtral's 128 mels and 30 s.
    """
    write_tekken(folder)
    WhisperFeatureExtractor(**{"feature_size": 128, **extractor}).save_pretrained(folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "processor_class": "VoxtralProcessor"}))
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps({"model_type": "voxtral"}))
    return folder


def write_checkpoint(folder: Path) -> Path:
    """A whole checkpoint of random weights whose model hears what its processor makes: 30 s, in 375 tokens a window."""
    audio = {"num_mel_bins": 128, "max_source_positions": 1500, "num_hidden_layers": 1}
    config = tiny_voxtral_config({"vocab_size": 304, "max_position_embeddings": 4096}, audio, audio_token_id=24)
    model = torch_voxtral(config)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 11
    model.save_pretrained(folder)
    return write_processor(folder)
