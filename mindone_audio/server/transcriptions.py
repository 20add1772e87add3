"""What /v1/audio/transcriptions and /v1/audio/translations answer: the texts of windows in order.

A Whisper model has windows of its own; for other families the clip is cut, and windows are asked side by side.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
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
from mindone_audio.server.recognition import recognised
from mindone_audio.server.segments import Segment, compression_ratio
from mindone_audio.server.service import Place, Service, collected, in_order

SEEK = 100  # Whisper's frames a second, in which it counts where a segment's window begins


async def transcription(service: Service, form: Form, place: Place) -> Response:
    """The answer to a form of /v1/audio/transcriptions."""
    return await _answer(service, form, place, TRANSCRIBE)


async def translation(service: Service, form: Form, place: Place) -> Response:
    """The answer to a form of /v1/audio/translations."""
    return await _answer(service, form, place, TRANSLATE)


async def _answer(service: Service, form: Form, place: Place, task: str) -> Response:
    asked = await service.in_pool(read_transcript, form, task, service)
    service.hold(place, round(asked.seconds * SAMPLING_RATE))
    spoken = heard(service, asked)
    if asked.stream:
        return await event_stream(_events(service, asked, spoken))
    async with aclosing(spoken):
        segments = [value async for ended, value in spoken if ended]
    return _rendered(service, asked, [segment for segment in segments if segment.text])


def heard(service: Service, asked: Transcript) -> AsyncIterator[tuple[bool, Any]]:
    """What is said in a clip, as `in_order` gives it: (False, text), which is said, and (True, `Segment`), which has
    ended."""
    if asked.recognised:
        return recognised(service, asked.clip, asked.model, logprobs=asked.logprobs)
    return in_order([partial(_segment, service, asked, number) for number in range(len(asked.parts))])


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
    text, ends = shown.end(), prepared.settings.eos_token_ids
    own = [token for token in shown.tokens if token.id not in ends]
    facts = partial(_facts, asked, start, text, shown.tokens)
    return Segment(start, end, text, [token.id for token in own], own, [prepared], len(shown.tokens), facts=facts)


def _facts(asked: Transcript, start: float, text: str, tokens: Sequence[Token]) -> dict:
    """What verbose_json tells of a window besides its text. One without speech is not listed: no_speech_prob is 0."""
    return {
        "seek": round(start * SEEK),
        "temperature": asked.temperature,
        "avg_logprob": sum(finite(token.logprob) for token in tokens) / max(1, len(tokens)),
        "compression_ratio": compression_ratio(text),
        "no_speech_prob": 0.0,
    }


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
        facts = {"task": asked.task, "language": asked.spoken, "duration": asked.seconds, "text": text}
        if asked.words:
            facts["words"] = [word for segment in segments for word in segment.words]
        if asked.segments:
            facts["segments"] = [segment.listed(number) for number, segment in enumerate(segments)]
        return JSONResponse(facts | {"usage": usage})
    return JSONResponse({"text": text} | _logprobs(service, asked, segments) | {"usage": usage})


def _logprobs(service: Service, asked: Transcript, segments: Sequence[Segment]) -> dict:
    if not asked.logprobs:
        return {}
    listed = [token_logprobs(service, segment.tokens) for segment in segments]
    return {"logprobs": sum(listed, [])}


async def _events(service: Service, asked: Transcript, spoken: AsyncIterator[tuple[bool, Any]]) -> AsyncIterator[bytes]:
    """The transcription in server-sent events, as OpenAI's typed client reads them.

    verbose_json has one event more for each segment, at its end: its times, and its words where they are asked for.
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
                    times |= {"words": value.words} if asked.words else {}
                    yield frame({"type": "transcript.text.segment", "id": str(len(segments))} | times)
                segments.append(value)
                separator = " "
    done = {"type": "transcript.text.done", "text": "".join(texts)} | _logprobs(service, asked, segments)
    prompts = [prepared for segment in segments for prepared in segment.prepared]
    heard = sum(prompt.audio_tokens for prompt in prompts)
    given, made = sum(prompt.prompt_tokens for prompt in prompts), sum(segment.made for segment in segments)
    usage = {"type": "tokens", "input_tokens": given, "output_tokens": made, "total_tokens": given + made}
    usage["input_token_details"] = {"audio_tokens": heard, "text_tokens": given - heard}
    yield frame(done | {"usage": usage})
