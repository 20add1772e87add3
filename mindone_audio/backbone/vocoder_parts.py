"""A long input through a vocoder in parts that overlap, since the memory for it grows with its length."""

from collections.abc import Callable

import numpy as np

from mindone_audio.backbone.buckets import bucket
from mindone_audio.backbone.vocoder import VocoderConfig

_SMALLEST = 32  # frames of the shortest graph
_WHOLE = 256  # frames that are vocoded at a time


def frames_of_graph(frames: int) -> int:
    """How many frames a graph takes that is enough for so many."""
    return bucket(frames, _SMALLEST)


def in_parts(
    config: VocoderConfig,
    sound: Callable[[int, int], np.ndarray],
    frames: int,
    first: int = 0,
    last: int | None = None,
) -> np.ndarray:
    """The samples fp32 of so many frames, or of those from `first` on before `last`; None: to the waveform's end.

    sound(begin, end): the samples of these frames, as if there were no others. What is made of parts is what would be
    made of the whole, as long as `config.reach` frames behind the last ones are given.
    """
    ends, pieces = last is None, []
    last = frames if ends else last
    while first < last:
        begin = max(0, first - config.reach)
        end = min(frames, last + config.reach)
        until = last
        if end - begin > _WHOLE:
            until = min(last, max(begin + _WHOLE - config.reach, first + _SMALLEST))
            end = min(frames, until + config.reach)
        samples = sound(begin, end)
        beyond = None if ends and until == last else (until - begin) * config.hop
        pieces.append(samples[(first - begin) * config.hop : beyond])
        first = until
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
