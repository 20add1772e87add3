"""The clips on which WhisperVQ is compared with whisperspeech, for its recorder and for the tests."""

from pathlib import Path

import numpy as np

from mindone_audio.inputs.audio import load_audio

AUDIO = Path(__file__).parents[1] / "examples" / "audio"
GOLDEN = Path(__file__).parent / "goldens" / "whisper_vq"
VQ_FILE = GOLDEN / "whisper-vq-stoks-v3-7lang-fixed.model"
WHISPER = GOLDEN / "whisper"  # a tiny Whisper as transformers saves it
CONVERTED = GOLDEN / "converted"  # what scripts/convert_whisper_vq.py makes of both
WINDOW = 480_000  # samples of 30 s


def clips() -> dict[str, np.ndarray]:
    """Clips of a fraction of a second, of no whole number of tokens, of exactly 30 s, and longer than that.

    All come from files of 16 kHz that are stored without loss, so that the samples are the same everywhere.
    """
    speech, beeps, knocks = (load_audio(AUDIO / f"{name}.wav") for name in ("speech_in_noise", "three_beeps", "knocks"))
    many = np.concatenate([speech, 0.5 * knocks, 0.2 * beeps, 0.7 * speech[::-1], 0.4 * knocks[::-1]])
    long = np.resize(many, WINDOW + 80_123)
    long[WINDOW:] *= 1.5  # the loudest part, to which the log-mel refers, is beyond the window
    return {
        "short": speech[9000:9701],
        "odd": beeps[:12_345],
        "speech": speech,
        "window": np.resize(many, WINDOW),
        "long": long,
    }


def some_frames(log_mel: np.ndarray) -> np.ndarray:
    """At most about sixty frames, equally spaced, of a log-mel spectrogram (..., frames)."""
    return log_mel[..., :: max(1, log_mel.shape[-1] // 60)]
