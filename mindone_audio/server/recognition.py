"""A Whisper model's windows, one after the other, in the scheduler beside other requests."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from mindone_audio.generation.events import Token
from mindone_audio.server.completions import finite
from mindone_audio.server.segments import Segment, compression_ratio
from mindone_audio.server.service import Service


async def listened(
    service: Service, clip: Any, model: str, *, logprobs: int | None = None, patient: bool = False
) -> AsyncIterator[tuple[Any, list]]:
    """Go on with a `Transcription` until it is done: after each window the row of its answer, and its segments.

    The next window begins where the last one's timestamps say, so one of them is in the scheduler at a time. model,
    logprobs, patient: as for `Service.deltas`, patient for the first request; the errors are its too.
    """
    while not clip.done:
        seek, before = clip.seek, len(clip.segments)
        row = await service.row(clip.request(), model=model, logprobs=logprobs, patient=patient)
        await service.with_engine(partial(clip.hear, row), model)  # which computes where the times of words are asked
        patient = True
        if clip.seek > seek:
            yield row, clip.segments[before:]


async def recognised(
    service: Service, clip: Any, model: str, *, logprobs: bool = False
) -> AsyncIterator[tuple[bool, Any]]:
    """What is said in a `Transcription`, None for a silent clip, as `in_order` gives it: (False, text), which is said,
    and (True, `Segment`), which has ended."""
    if clip is None:
        return
    async with aclosing(listened(service, clip, model, logprobs=0 if logprobs else None)) as windows:
        async for row, segments in windows:
            for segment in _segments(service, clip, row, segments):
                yield False, segment.text
                yield True, segment


def _segments(service: Service, clip: Any, row: Any, heard: Sequence[Any]) -> list[Segment]:
    """Those of a window that have a text. Their tokens are the first ones of its row."""
    found: list[Segment] = []
    decode = partial(service.pipe.processor.decode, skip_special_tokens=True)
    repetition = compression_ratio(decode(row.tokens))
    place = 0
    for segment in heard:
        own = row.chosen[place : place + len(segment.tokens)]
        place += len(segment.tokens)
        chunk = service.pipe.chunk(segment, clip)
        if not chunk["text"]:
            continue
        found.append(
            Segment(
                chunk["start"],
                chunk["end"],
                chunk["text"],
                [token.id for token in own],
                _text_tokens(own, clip),
                [] if found else [row.request],
                len(own),
                [word | {"word": word["word"].strip()} for word in chunk.get("words", ())],
                partial(_facts, segment.window, repetition),
            )
        )
    return found


def _facts(window: Any, repetition: float) -> dict:
    """What verbose_json tells of a window, whose text is `repetition` times shorter when it is compressed."""
    return {
        "seek": window.seek,
        "temperature": window.temperature,
        "avg_logprob": 0.0 if window.log_probability is None else finite(window.log_probability),
        "compression_ratio": repetition,
        "no_speech_prob": window.no_speech or 0.0,
    }


def _text_tokens(tokens: Sequence[Token], clip: Any) -> list[Token]:
    return [token for token in tokens if token.id < clip.tokens.end]
