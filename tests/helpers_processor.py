"""A Qwen2-Audio checkpoint folder without weights: a byte-level tokenizer, the feature extractor and a config."""

import json
from pathlib import Path

import numpy as np
import soundfile
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen2TokenizerFast, WhisperFeatureExtractor

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"]
RATE = 16_000  # Hz
CLIP = "<|audio_bos|><|AUDIO|><|audio_eos|>"


def byte_tokenizer(special_tokens=SPECIAL_TOKENS, eos_token: str = "<|endoftext|>") -> Qwen2TokenizerFast:
    """Ids 0 to 255 are the bytes in the alphabet's order, 256 and on the end token and the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos_token,
        pad_token="<|endoftext|>",
        unk_token=None,
        additional_special_tokens=special_tokens,
    )


def write_checkpoint(folder: Path, **extractor) -> Path:
    """`extractor`: WhisperFeatureExtractor's arguments; the default has Qwen2-Audio's 128 mels and 30 s."""
    from mindone_audio.models.qwen2_audio import Qwen2AudioProcessor

    feature_extractor = WhisperFeatureExtractor(**{"feature_size": 128, **extractor})
    Qwen2AudioProcessor(feature_extractor, byte_tokenizer()).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_audio"}))
    return folder


def tone(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """A chirp in noise, float32 `[samples]`."""
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(0, 0.02, t.size)
    return (0.4 * np.sin(2 * np.pi * (200 + 300 * t) * t) + noise).astype(np.float32)


def write_audio(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    soundfile.write(path, samples, rate)
    return path
