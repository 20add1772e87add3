"""Where clips `[samples]` are cut: at the limit of a model, or at quiet places."""

import logging

import numpy as np

from mindone_audio.inputs.audio.errors import ClipTooLongError

logger = logging.getLogger(__name__)

QUIET_FRAME = 0.05  # seconds, over which the loudness of a place to cut at is measured


def fit_window(
    clip: np.ndarray, window_seconds: float, sampling_rate: int, *, truncation: bool = False, name: str = "the clip"
) -> np.ndarray:
    """Return `clip` `[samples]` if it fits a model's window, else cut it (`truncation`) or raise `ClipTooLongError`."""
    window = round(window_seconds * sampling_rate)
    if len(clip) <= window:
        return clip
    lengths = f"{name} is {len(clip) / sampling_rate:.2f} s long and the model hears {window_seconds:g} s"
    if not truncation:
        raise ClipTooLongError(lengths, "cut it into pieces, or pass truncation=True to use only its beginning")
    logger.warning("%s: the rest is cut off", lengths)
    return clip[:window]


def quiet_windows(samples: np.ndarray, sampling_rate: int, longest: float) -> list[tuple[int, int]]:
    """Cut a long clip `[samples]` into windows of at most `longest` seconds, each at the quietest place near its limit.

    Returns the first sample and the one after the last of each window; together they are the whole clip. The quietest
    place is the 50 ms with the least energy in the last third of a window, so speech is cut between words where it can.
    """
    limit, frame = round(longest * sampling_rate), max(1, round(QUIET_FRAME * sampling_rate))
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    windows, start = [], 0
    while len(samples) - start > limit:
        first = start + limit - limit // 3
        places = np.arange(first, max(first + 1, start + limit - frame), max(1, frame // 5))
        ends = np.minimum(places + frame, len(samples))
        loudness = energy[ends] - energy[places]
        quietest = places[np.flatnonzero(loudness == loudness.min())[-1]]
        cut = min(int(quietest) + frame // 2, start + limit)
        windows.append((start, cut))
        start = cut
    return [*windows, (start, len(samples))]
