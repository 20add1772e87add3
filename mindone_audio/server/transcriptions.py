"""What /v1/audio/transcriptions and /v1/audio/translations answer: windows side by side, their texts in order."""

import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi.responses import JSONResponse, PlainTextResponse, Response

from mindone_audio.generation.events import Delta, Token
from mindone_audio.inputs.audio import SAMPLING_RATE
from mindone_audio.pipelines.subtitles import subtitles
from mindone_audio.pipelines.transcripts import is_silent, may_be_silence, without_silence
from mindone_audio.server.completions import finite, token_logprobs
from mindone_audio.server.exchange import event_stream, frame
from mindone_audio.server.forms import TRANSCRIBE, TRANSLATE, Form, Transcript, read_transcript
from mindone_audio.server.service import Place, Service, collected, in_order

SEEK = 100  # Whisper's frames a second, in which it counts where a segment's window begins


@dataclass(frozen=True)
class Segment:
    """What one window says. start, end: seconds. prepared: its request; None where nothing was asked, as of silence."""

    start: float
    end: float
    text: str = ""
    tokens: tuple[Token, ...] = ()
    prepared: Any = None


async def transcription(service: Service, form: Form, place: Place) -> Response:
    """The answer to a form of /v1/audio/transcriptions."""
    return await _answer(service, form, place, TRANSCRIBE)


async def translation(service: Service, form: Form, place: Place) -> Response:
    """The answer to a form of /v1/audio/translations."""
    return await _answer(service, form, place, TRANSLATE)


async def _answer(service: Service, form: Form, place: Place, task: str) -> Response:
    asked = await service.in_pool(read_transcript, form, task, service)
    service.hold(place, round(asked.seconds * SAMPLING_RATE))
    jobs = [partial(_segment, service, asked, number) for number in range(len(asked.parts))]
    spoken = in_order(jobs)
    if asked.stream:
        return await event_stream(_events(service, asked, spoken))
    async with aclosing(spoken):
        segments = [value async for ended, value in spoken if ended]
    return _rendered(service, asked, [segment for segment in segments if segment.text])


async def _segment(service: Service, asked: Transcript, number: int, say: Callable[[str], None]) -> Segment:
    """The text of one window, which is also said bit by bit."""
    first, part = asked.parts[number]
    clip = part.clips[0]
    start, end = first / SAMPLING_RATE, (first + len(clip)) / SAMPLING_RATE
    if is_silent(clip):
        return Segment(start, end)
    prepared = await service.in_pool(service.prepare, part)
    shown = Shown(service, part, say)
    deltas = service.deltas(
        prepared,
        model=asked.model,
        logprobs=0 if asked.logprobs or asked.form == "verbose_json" else None,
        patient=number > 0,
    )
    await collected(deltas, shown.hear)
    return Segment(start, end, shown.end(), tuple(shown.tokens), prepared)


class Shown:
    """What of a window's text is said while it comes.

    Nothing, where the family puts words around a transcription; and nothing at first, while the text may still become
    one of the family's answers to silence.
    """

    def __init__(self, service: Service, part: Any, say: Callable[[str], None]):
        self.processor, self.part, self.say = service.pipe.processor, part, say
        self.answers = self.processor.silence_answers
        self.text, self.said, self.tokens = "", "", []

    def hear(self, delta: Delta) -> None:
        """One more delta."""
        self.text += delta.text
        self.tokens += delta.tokens
        text = self.text.strip()
        framed = self.part.transcribe and self.processor.frames_transcriptions
        if not framed and (self.said or not may_be_silence(text, self.answers)):
            self._say(text)

    def end(self) -> str:
        """The whole text of the window, whose rest is said."""
        text = self.text.strip()
        text = without_silence(self.processor.transcription(text) if self.part.transcribe else text, self.answers)
        self._say(text)
        return self.said

    def _say(self, text: str) -> None:
        if len(text) > len(self.said):
            self.say(text[len(self.said) :])
            self.said = text


def _rendered(service: Service, asked: Transcript, segments: list[Segment]) -> Response:
    text = " ".join(segment.text for segment in segments)
    if asked.form == "text":
        return PlainTextResponse(text + "\n" if text else "")
    if asked.form in ("srt", "vtt"):
        chunks = [{"start": segment.start, "end": segment.end, "text": segment.text} for segment in segments]
        return PlainTextResponse(
            subtitles(chunks, asked.form), media_type="text/vtt" if asked.form == "vtt" else "text/plain"
        )
    usage = {"type": "duration", "seconds": round(asked.seconds, 3)}
    if asked.form == "verbose_json":
        facts = {"task": asked.task, "language": asked.language, "duration": asked.seconds, "text": text}
        listed = [_listed(asked, number, segment) for number, segment in enumerate(segments)]
        return JSONResponse(facts | {"segments": listed, "usage": usage})
    return JSONResponse({"text": text} | _logprobs(service, asked, segments) | {"usage": usage})


def _listed(asked: Transcript, number: int, segment: Segment) -> dict:
    """A segment of verbose_json. No window without speech is listed, so that no_speech_prob is 0."""
    own = [token for token in segment.tokens if token.id not in segment.prepared.settings.eos_token_ids]
    packed = segment.text.encode()
    return {
        "id": number,
        "seek": round(segment.start * SEEK),
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "tokens": [token.id for token in own],
        "temperature": asked.temperature,
        "avg_logprob": sum(finite(token.logprob) for token in segment.tokens) / max(1, len(segment.tokens)),
        "compression_ratio": len(packed) / len(zlib.compress(packed)),
        "no_speech_prob": 0.0,
    }


def _logprobs(service: Service, asked: Transcript, segments: Sequence[Segment]) -> dict:
    if not asked.logprobs:
        return {}
    listed = [token_logprobs(service, segment.prepared, segment.tokens) for segment in segments]
    return {"logprobs": sum(listed, [])}


async def _events(service: Service, asked: Transcript, spoken: AsyncIterator[tuple[bool, Any]]) -> AsyncIterator[bytes]:
    """The transcription in server-sent events, as OpenAI's typed client reads them.

    verbose_json has one event more for each segment, at its end: its times.
    """
    texts, segments, separator = [], [], ""
    async with aclosing(spoken):
        async for ended, value in spoken:
            if not ended:
                yield frame({"type": "transcript.text.delta", "delta": separator + value})
                texts.append(separator + value)
                separator = ""
            elif value.text:
                if asked.form == "verbose_json":
                    times = {"start": value.start, "end": value.end, "text": value.text}
                    yield frame({"type": "transcript.text.segment", "id": str(len(segments))} | times)
                segments.append(value)
                separator = " "
    done = {"type": "transcript.text.done", "text": "".join(texts)} | _logprobs(service, asked, segments)
    prompts = [segment.prepared for segment in segments]
    heard = sum(prompt.audio_tokens for prompt in prompts)
    given, made = sum(prompt.prompt_tokens for prompt in prompts), sum(len(segment.tokens) for segment in segments)
    usage = {"type": "tokens", "input_tokens": given, "output_tokens": made, "total_tokens": given + made}
    usage["input_token_details"] = {"audio_tokens": heard, "text_tokens": given - heard}
    yield frame(done | {"usage": usage})
