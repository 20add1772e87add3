"""Clips without speech get empty transcripts: they are not transcribed, or what a model says of silence is dropped."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

QUIET = 1e-4  # of full scale: a window whose loudest sample is below it is not worth transcribing


def is_silent(clip: np.ndarray) -> bool:
    """Whether a clip `[samples]` has no sound, wherever its zero is."""
    return float(np.abs(clip - clip.mean(dtype=np.float64)).max(initial=0.0)) < QUIET


def without_silence(transcript: str, silence_answers: Sequence[str]) -> str:
    """A transcript, empty where it is one of the answers that the family's model gives to silence."""
    return "" if _bare(transcript) in map(_bare, silence_answers) else transcript


def stream_without_silence(deltas: Iterable[str], silence_answers: Sequence[str]) -> Iterator[str]:
    """The deltas of a transcript, held back while they may become an answer to silence."""
    answers, held = [_bare(answer) for answer in silence_answers], ""
    for delta in deltas:
        held += delta
        if not any(answer.startswith(_bare(held)) for answer in answers):
            yield held
            held, answers = "", []
    if held and (rest := without_silence(held, silence_answers)):
        yield rest


def _bare(text: str) -> str:
    """A text without what does not matter when it is compared."""
    return " ".join(text.split()).rstrip(".!。").casefold()
