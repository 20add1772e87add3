"""A segment of a transcription, as /v1/audio/transcriptions tells it."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mindone_audio.generation.events import Token


@dataclass(frozen=True)
class Segment:
    """What is said from one time to another, in seconds.

    ids: of its tokens, without the one that ends an answer; tokens: those of them that are text, with log probabilities
    where these are asked for. prepared: the requests whose answers begin with it, none where nothing was asked, as of
    silence. made: tokens that were generated for it. words: {"word", "start", "end"} of each, where they are asked for.
    facts: makes the rest of a segment of verbose_json.
    """

    start: float
    end: float
    text: str = ""
    ids: Sequence[int] = ()
    tokens: Sequence[Token] = ()
    prepared: Sequence[Any] = ()
    made: int = 0
    words: Sequence[dict] = ()
    facts: Callable[[], dict] = field(default=dict)

    def listed(self, number: int) -> dict:
        """A segment of verbose_json."""
        told = {"id": number, "start": self.start, "end": self.end, "text": self.text, "tokens": list(self.ids)}
        return told | self.facts()


def compression_ratio(text: str) -> float:
    """How many times shorter zlib makes a text; one that repeats itself has much."""
    packed = text.encode()
    return len(packed) / len(zlib.compress(packed))
