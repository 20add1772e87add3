"""A Qwen2-Audio checkpoint folder without weights: a byte-level tokenizer, the feature extractor and a config."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen2TokenizerFast, WhisperFeatureExtractor

import mindone_audio.inputs.log_mel as features

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"]
RATE = 16_000  # Hz
CLIP = "<|audio_bos|><|AUDIO|><|audio_eos|>"


def exact_log_mel(clip: np.ndarray, extractor: WhisperFeatureExtractor) -> tuple[np.ndarray, np.ndarray]:
    """The log-mel of a clip, in float64 from the windowed frames on, and decibels below the loudest of each frame."""
    size, hop = extractor.n_fft, extractor.hop_length
    mirrored = np.pad(clip.astype(np.float32), size // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(mirrored, size)[::hop][: len(clip) // hop]
    power = np.abs(np.fft.rfft((frames * features._window(size)).astype(np.float64))) ** 2
    log = np.log10(np.maximum(extractor.mel_filters.T @ power.T, 1e-10))
    return np.maximum(log, log.max() - 8) / 4 + 1, 10 * (log.max(0) - log)


def make_reference_exact(patch: pytest.MonkeyPatch) -> None:
    """transformers' extractor without its rounding in float32, so that all else that it does is compared closely.

    tests/test_features.py measures the rounding.
    """

    def extract(self, waveform, device="cpu"):
        mels = [exact_log_mel(clip, self)[0].astype(np.float32) for clip in np.atleast_2d(waveform)]
        return np.stack(mels) if np.ndim(waveform) > 1 else mels[0]

    patch.setattr(WhisperFeatureExtractor, "_torch_extract_fbank_features", extract)


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
