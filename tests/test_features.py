"""Log-mels against transformers' own on PyTorch, by both Fourier transforms: PyTorch's, and SciPy's for those without.

SciPy's is in float64, so what it is off from PyTorch is how PyTorch's float32 rounds. transformers' own float64 path is
off by up to 4e-5 on these clips; 1 % of the values at most may be off by more than 1e-5.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers_processor import RATE, tone
from transformers import WhisperFeatureExtractor

from mindone_audio import features, load_audio
from mindone_audio.features import log_mel, log_mels

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
    "more than two windows": np.resize(tone(7, seed=2), 61 * RATE + 1),
}
FILES = sorted((ROOT / "examples" / "audio").iterdir())
CLIPS = {name: clip.astype(np.float32) for name, clip in MADE.items()} | {
    path.name: load_audio(path, RATE) for path in FILES
}


def theirs(clip: np.ndarray, extractor=EXTRACTOR) -> np.ndarray:
    """transformers' log-mel of a clip as it is, by PyTorch, [mels, frames]."""
    return extractor._torch_extract_fbank_features(clip[None])[0]


@pytest.fixture(params=["torch", "scipy"])
def transform(request, monkeypatch):
    """Computes with each transform; the tolerance that follows from it."""
    monkeypatch.setattr(features, "_spectra", getattr(features, f"_{request.param}_spectra"))
    return {"torch": 1e-6, "scipy": 5e-5}[request.param]


@pytest.mark.parametrize("name", CLIPS)
def test_equals_transformers(transform, name):
    ours, expected = log_mel(CLIPS[name], EXTRACTOR), theirs(CLIPS[name])
    assert ours.dtype == expected.dtype == np.float32 and ours.shape == expected.shape
    off = np.abs(ours - expected)
    assert off.max() < transform and (off < 1e-5).mean() > 0.99


def test_silence_is_the_floor_to_the_last_digit(transform):
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
def test_windows_of_other_settings(transform, settings):
    """A batch, padded to the window: its features are those of the whole window, though silence is not computed."""
    extractor = WhisperFeatureExtractor(**settings)
    clips = [tone(seconds, seed=seed) for seed, seconds in enumerate((0.004, 0.0126, 0.7, 1.9999, 2))]
    whole = extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="np")["input_features"]
    ours = log_mels(clips, extractor, extractor.n_samples)
    assert ours.shape == whole.shape and np.abs(ours - whole).max() < transform


@pytest.mark.parametrize("samples", [160, 199, 200, 201, 399, 400, 401])
def test_clips_of_about_a_frame(transform, samples):
    """PyTorch refuses to mirror clips of 200 samples and less: transformers' NumPy path does not."""
    clip = tone(1)[:samples]
    expected = EXTRACTOR._np_extract_fbank_features([clip], "cpu")[0]
    ours = log_mel(clip, EXTRACTOR)
    assert ours.shape == expected.shape == (128, samples // 160)
    assert np.abs(ours - expected).max() < 5e-5


@pytest.mark.parametrize("cores", [1, 2, 16])
def test_batches_equal_singles_bit_for_bit(transform, cores, monkeypatch):
    singles = [log_mels([clip], EXTRACTOR, 61 * RATE + 1)[0] for clip in CLIPS.values()]
    monkeypatch.setattr(features, "_cores", lambda: cores)
    monkeypatch.setattr(features, "BLOCK_FRAMES", 200)
    assert np.array_equal(log_mels(list(CLIPS.values()), EXTRACTOR, 61 * RATE + 1), singles)
    mel = log_mel(CLIPS["chirp in noise"], EXTRACTOR)
    padded = log_mels([CLIPS["chirp in noise"]], EXTRACTOR, 5 * RATE)[0]
    assert np.array_equal(padded[:, :298], mel[:, :298])  # the last two hear what follows the clip


def test_an_error_in_a_thread_is_raised(monkeypatch):
    monkeypatch.setattr(features, "_cores", lambda: 2)
    monkeypatch.setattr(features, "_spectra", lambda frames: 1 / 0)
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


def test_scipys_transform_where_torch_is_not_installed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from transformers import WhisperFeatureExtractor
from mindone_audio import features, load_audio
clip = load_audio({str(FILES[0])!r}, {RATE})
np.save({str(tmp_path / "mel.npy")!r}, features.log_mel(clip, WhisperFeatureExtractor(feature_size=128)))
assert features._spectra is features._scipy_spectra and "torch" not in sys.modules
""")
    command = [sys.executable, str(ROOT / "tests" / "without_torch.py"), str(script)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert np.abs(np.load(tmp_path / "mel.npy") - theirs(CLIPS[FILES[0].name])).max() < 5e-5
