"""Transcriptions of silence: clips without speech, and what a model answers to them."""

from collections.abc import Iterable, Iterator

import numpy as np

SILENCE = 1e-4  # of full scale: a window whose loudest sample is below has nothing to transcribe


def is_silent(clip: np.ndarray) -> bool:
    """Whether the samples of a clip `[samples]` stay within `SILENCE` of their mean."""
    return float(np.abs(clip - clip.mean(dtype=np.float64)).max(initial=0.0)) < SILENCE


def without_silence(transcription: str, silence_answers: Iterable[str]) -> str:
    """The transcription, empty if it is one of the family's answers to silence."""
    return "" if _comparable(transcription) in map(_comparable, silence_answers) else transcription


def may_be_silence(beginning: str, silence_answers: Iterable[str]) -> bool:
    """Whether more text may make a transcription that begins so one of the family's answers to silence."""
    return any(_comparable(answer).startswith(_comparable(beginning)) for answer in silence_answers)


def stream_without_silence(deltas: Iterable[str], silence_answers: Iterable[str]) -> Iterator[str]:
    """The text deltas of a transcription, held back while they may become one of the family's answers to silence."""
    answers, held, shown = list(silence_answers), "", False
    for delta in deltas:
        held += delta
        if shown or not may_be_silence(held, answers):
            yield held
            held, shown = "", True
    if held and (rest := without_silence(held, answers)):
        yield rest


def _comparable(text: str) -> str:
    """A text without differences in spaces, case and the last full stop."""
    return " ".join(text.split()).rstrip(".!。").casefold()
