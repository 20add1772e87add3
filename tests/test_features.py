"""Log-mels against exact ones, in float64, and against transformers' own on PyTorch, which rounds in float32.

A float32 Fourier transform is off where a frame is 55 dB and more below its loudest, by an amount that depends on the
processor. There alone ours may be off from PyTorch's, and from exact ones it is nowhere.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_processor import RATE, exact_log_mel, tone
from scipy.signal import resample_poly
from transformers import WhisperFeatureExtractor

import mindone_audio.inputs.log_mel as features
from mindone_audio import load_audio
from mindone_audio.inputs.log_mel import log_mel, log_mels

ROOT = Path(__file__).parents[1]
EXTRACTOR = WhisperFeatureExtractor(feature_size=128)
TIME = np.arange(2 * RATE) / RATE
MADE = {
    "chirp in noise": tone(3, seed=1),
    "pure tone": np.sin(2 * np.pi * 440 * TIME),
    "clipped": np.clip(3 * np.sin(2 * np.pi * 300 * TIME), -1, 1),
    "white noise": np.random.default_rng(0).normal(0, 0.1, 7 * RATE + 77),
    "very quiet": 1e-4 * tone(1),
    "silence": np.zeros(RATE),
    "a click at the end": np.append(np.zeros(RATE), np.ones(3)),
    "clicks": (np.arange(RATE) % 1600 == 800).astype(float),
    "a constant": np.full(RATE, 0.5),
    "a constant under noise": 0.5 + np.random.default_rng(0).normal(0, 1e-3, RATE),
    "high tone": np.sin(2 * np.pi * 7900 * TIME),
    "8 kHz upsampled": resample_poly(np.random.default_rng(0).normal(0, 0.1, RATE), 2, 1),
    "more than two windows": np.resize(tone(7, seed=2), 61 * RATE + 1),
}
FILES = sorted((ROOT / "examples" / "audio").iterdir())
RECORDED = ROOT.parent / "shared" / "real-speech"  # not everywhere
CLIPS = {name: clip.astype(np.float32) for name, clip in MADE.items()} | {
    path.name: load_audio(path, RATE) for path in FILES
}


def theirs(clip: np.ndarray, extractor=EXTRACTOR) -> np.ndarray:
    """transformers' log-mel of a clip as it is, by PyTorch, [mels, frames]."""
    return extractor._torch_extract_fbank_features(clip[None])[0]


def check(clip: np.ndarray, mels: int) -> tuple[np.ndarray, np.ndarray]:
    """Assert that a clip's log-mel is right; how far it is from PyTorch's, and decibels below each frame's loudest."""
    extractor = WhisperFeatureExtractor(feature_size=mels)
    ours, expected, (right, below) = log_mel(clip, extractor), theirs(clip, extractor), exact_log_mel(clip, extractor)
    assert ours.dtype == expected.dtype == np.float32 and ours.shape == expected.shape
    assert np.abs(ours - right).max() < 1e-6
    assert np.linalg.norm(ours - expected) < 1e-4 * np.linalg.norm(expected)
    return np.abs(ours - expected), below


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("name", CLIPS)
def test_equals_transformers_as_far_as_that_is_exact(name, mels):
    """Much of the hard ones is 70 dB below the loudest. How much of that PyTorch gets wrong, up to a tenth, is its
    processor's: `check` compares with what is right."""
    hard = ("a constant under noise", "8 kHz upsampled", "high tone")
    off, below = check(CLIPS[name], mels)
    assert off.max() < 1e-4 and off[below < 55].max(initial=0) < 1e-5
    assert name in hard or (off > 1e-5).mean() < 0.01


@pytest.mark.parametrize("size", [400, 512])
def test_the_window_is_pytorchs_but_for_the_last_bit_of_its_cosine(size):
    assert np.abs(features._window(size) - torch.hann_window(size).numpy()).max() < 7e-8


@pytest.mark.slow
@pytest.mark.skipif(not RECORDED.is_dir(), reason="no real recordings here")
@pytest.mark.parametrize("mels", [80, 128])
def test_equals_transformers_on_real_recordings(mels):
    for path in sorted(RECORDED.iterdir()):
        if path.suffix in (".wav", ".flac", ".mp3", ".ogg"):
            check(load_audio(path, RATE)[: 30 * RATE], mels)


def test_silence_is_the_floor_to_the_last_digit():
    assert np.unique(log_mel(CLIPS["silence"], EXTRACTOR)).tolist() == [-1.5]


@pytest.mark.parametrize(
    "settings",
    [
        {"feature_size": 80, "chunk_length": 2},
        {"feature_size": 16, "hop_length": 80, "chunk_length": 3},
        {"n_fft": 512, "hop_length": 300, "chunk_length": 2},  # the hop divides no window
        {"padding_value": 0.25, "chunk_length": 2},
        {"sampling_rate": 8000, "chunk_length": 4},
    ],
)
def test_windows_of_other_settings(settings):
    """A batch, padded to the window: its features are those of the whole window, though silence is not computed."""
    extractor = WhisperFeatureExtractor(**settings)
    clips = [tone(seconds, seed=seed) for seed, seconds in enumerate((0.004, 0.0126, 0.7, 1.9999, 2))]
    whole = extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="np")["input_features"]
    ours = log_mels(clips, extractor, extractor.n_samples)
    assert ours.shape == whole.shape and np.abs(ours - whole).max() < 5e-5


@pytest.mark.parametrize("samples", [160, 199, 200, 201, 399, 400, 401])
def test_clips_of_about_a_frame(samples):
    """PyTorch refuses to mirror clips of 200 samples and less: transformers' NumPy path does not."""
    clip = tone(1)[:samples]
    expected = EXTRACTOR._np_extract_fbank_features([clip], "cpu")[0]
    ours = log_mel(clip, EXTRACTOR)
    assert ours.shape == expected.shape == (128, samples // 160)
    assert np.abs(ours - expected).max() < 5e-5


@pytest.mark.parametrize("cores", [1, 2, 16])
def test_batches_equal_singles_bit_for_bit(cores, monkeypatch):
    singles = [log_mels([clip], EXTRACTOR, 61 * RATE + 1)[0] for clip in CLIPS.values()]
    monkeypatch.setattr(features, "_cores", lambda: cores)
    assert np.array_equal(log_mels(list(CLIPS.values()), EXTRACTOR, 61 * RATE + 1), singles)
    mel = log_mel(CLIPS["chirp in noise"], EXTRACTOR)
    padded = log_mels([CLIPS["chirp in noise"]], EXTRACTOR, 5 * RATE)[0]
    assert np.array_equal(padded[:, :298], mel[:, :298])  # the last two hear what follows the clip


def test_an_error_in_a_thread_is_raised(monkeypatch):
    monkeypatch.setattr(features, "_cores", lambda: 2)
    monkeypatch.setattr(features, "_window", lambda n_fft: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        log_mel(CLIPS["white noise"], EXTRACTOR)


def test_no_clips():
    assert log_mels([], EXTRACTOR, RATE).shape == (0, 128, 100)


@pytest.mark.parametrize(
    "samples, settings, message",
    [
        (np.zeros(100), {}, "100 samples are less than one frame: give at least 160"),
        (np.zeros((2, 800)), {}, r"clip 0 has shape \(2, 800\): give one channel of at most 160 samples"),
        (np.zeros(161), {}, r"clip 0 has shape \(161,\): give one channel of at most 160 samples"),
        (np.zeros(160), {"dither": 1e-4}, "dither=0.0001, which is not supported: set it to 0.0"),
        (np.zeros(160), {"do_normalize": True}, "do_normalize=True, which is not supported: set it to False"),
        (np.zeros(160), {"padding_side": "left"}, "padding_side='left', which is not supported: set it to 'right'"),
    ],
)
def test_what_is_refused(samples, settings, message):
    with pytest.raises(ValueError, match=message):
        log_mels([samples], WhisperFeatureExtractor(**settings), min(samples.size, 160))


@pytest.mark.parametrize(
    ("torch_is", "use_torch"), [("not installed", None), ("imported", None), ("installed", "0"), ("installed", "1")]
)
def test_the_same_bits_whatever_there_is_of_pytorch(tmp_path, torch_is, use_torch):
    """As in commands, which do not import PyTorch, and in programs, which may."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
{"import torch" if torch_is == "imported" else ""}
import numpy as np
from transformers import WhisperFeatureExtractor
from mindone_audio import load_audio
import mindone_audio.inputs.log_mel as features
clip = load_audio({str(FILES[0])!r}, {RATE})
np.save({str(tmp_path / "mel.npy")!r}, features.log_mel(clip, WhisperFeatureExtractor(feature_size=128)))
""")
    command = [sys.executable, *([str(ROOT / "tests" / "without_torch.py")] if torch_is == "not installed" else [])]
    environment = {name: value for name, value in os.environ.items() if name != "USE_TORCH"}
    environment |= {} if use_torch is None else {"USE_TORCH": use_torch}
    result = subprocess.run([*command, str(script)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert np.array_equal(np.load(tmp_path / "mel.npy"), log_mel(CLIPS[FILES[0].name], EXTRACTOR))
