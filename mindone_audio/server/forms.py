"""What /v1/audio/transcriptions and /v1/audio/translations are asked: a form to a clip, its windows, and a format."""

import json
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request as HttpRequest
from starlette.datastructures import UploadFile

from mindone_audio.generation.settings import real
from mindone_audio.inputs.audio import SAMPLING_RATE
from mindone_audio.pipelines.requests import Request, load_request, longest_window, read_request, windows_of
from mindone_audio.pipelines.subtitles import SUBTITLE_SECONDS
from mindone_audio.server.chat import load_samples
from mindone_audio.server.errors import RequestError, checked, refused
from mindone_audio.server.service import Service

TRANSCRIBE, TRANSLATE = "transcribe", "translate"
QUESTION = "Translate the speech to English."
FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
_BOTH = ("file", "model", "prompt", "response_format", "temperature")
_FIELDS = {
    TRANSCRIBE: (*_BOTH, "language", "stream", "timestamp_granularities", "include", "chunking_strategy"),
    TRANSLATE: _BOTH,
}
_LISTS = ("timestamp_granularities", "include")
_VAD = ("type", "prefix_padding_ms", "silence_duration_ms", "threshold")


@dataclass(frozen=True)
class Form:
    """The fields of a multipart form: texts by name, without the [] of a list's name, and the bytes of the clip."""

    texts: dict[str, list[str]]
    clip: bytes | None


@dataclass(frozen=True)
class Transcript:
    """What is to be written down. parts: (first sample, request) of each window. seconds: of the whole clip.

    logprobs: whether the answer has the probabilities of tokens. words: its format.
    """

    task: str
    model: str
    form: str
    language: str
    temperature: float
    stream: bool
    logprobs: bool
    parts: list[tuple[int, Request]]
    seconds: float


async def read_form(request: HttpRequest) -> Form:
    """The form in a request; `RequestError` for another body, or a file under another name than "file"."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise RequestError("send the clip in a form: multipart/form-data", status=415)
    texts: dict[str, list[str]] = {}
    clip = None
    async with request.form(max_files=1, max_fields=64) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != "file":
                    raise RequestError(f"{name[:100]} is no file of this request: send the clip as file", name[:100])
                clip = await value.read()
            else:
                texts.setdefault(name.removesuffix("[]"), []).append(value)
    return Form(texts, clip)


def read_transcript(form: Form, task: str, service: Service) -> Transcript:
    """The request that a form is; `RequestError` for anything that is wrong with it."""
    fields = _values(form, task)
    model = service.check_model(fields.get("model"))
    words = fields.get("response_format", "json")
    if words not in FORMATS:
        raise RequestError(f"response_format must be one of {', '.join(FORMATS)}", "response_format")
    if task == TRANSLATE and not _asked_by_words(service.pipe.processor):
        raise RequestError(f"model {model} has no words to ask for a translation: it only transcribes", "model")
    temperature = checked("temperature", real, _number(fields.get("temperature", "0")), 0, 1)
    stream = _stream(fields.get("stream", "false"), words)
    _check_granularities(fields.get("timestamp_granularities", []), words)
    logprobs = _include(fields.get("include", []), words)
    samples = load_samples(_clip(form), "file", service.policy)
    settings: dict[str, Any] = {"do_sample": temperature > 0, "temperature": temperature}
    question = None
    if task == TRANSCRIBE:
        settings |= {name: fields[name] for name in ("language", "prompt") if fields.get(name)}
    else:
        question = " ".join(filter(None, (QUESTION, fields.get("prompt"))))
    # Streamed segments are to be followed by eye, as subtitles are.
    window = SUBTITLE_SECONDS if words in ("srt", "vtt") or (stream and words == "verbose_json") else None
    parts = _parts(service, samples, question, settings, window)
    language = "english" if task == TRANSLATE else fields.get("language", "")
    seconds = len(samples) / SAMPLING_RATE
    return Transcript(task, model, words, language, temperature, stream, logprobs, parts, seconds)


def _asked_by_words(processor: Any) -> bool:
    """Whether the family's transcription is a question, so that its model answers other questions about speech."""
    from mindone_audio.inputs.processor import AudioTextProcessor  # transformers: the server answers before it is there

    return type(processor).transcription_inputs is AudioTextProcessor.transcription_inputs


def _parts(
    service: Service, samples: Any, question: str | None, settings: dict, window: float | None
) -> list[tuple[int, Request]]:
    """question: instead of the family's own for a transcription."""
    pipe, task = service.pipe, TRANSCRIBE if question is None else None
    try:
        request = read_request(pipe.model, pipe.processor, samples, question, task, settings)
        longest = longest_window(pipe.processor, window, TRANSCRIBE)
        parts = list(windows_of(load_request(replace(request, window=longest, by_windows=True))))
        if request.language or request.prompt:  # refused also where all is silence, which is not prepared
            service.prepare(parts[0][1])
    except ValueError as error:
        raise refused(error, param="file") from error
    return parts


def _values(form: Form, task: str) -> dict[str, Any]:
    """The known fields, each a text or, of `_LISTS`, a list of texts."""
    fields: dict[str, Any] = {}
    for name, values in form.texts.items():
        if name == "file":
            raise RequestError("file must be a file with a name, and was sent as text", "file")
        if name.startswith("chunking_strategy[") and task == TRANSCRIBE:
            if name.removeprefix("chunking_strategy[").removesuffix("]") not in _VAD:
                raise RequestError(f"{name[:100]} is no field of this request: leave it out", name[:100])
            continue
        if name not in _FIELDS[task]:
            raise RequestError(f"{name[:100]} is no field of this request: leave it out", name[:100])
        if name not in _LISTS and len(values) > 1:
            raise RequestError(f"{name} was given {len(values)} times: give it once", name)
        fields[name] = values if name in _LISTS else values[0]
    _check_chunking(fields.get("chunking_strategy", "auto"))
    return fields


def _check_chunking(strategy: str) -> None:
    """What it asks for has no effect: clips are cut at quiet places where they are longer than a window."""
    try:
        known = strategy == "auto" or json.loads(strategy).get("type") == "server_vad"
    except (ValueError, AttributeError, RecursionError):
        known = False
    if not known:
        raise RequestError('chunking_strategy must be "auto" or {"type": "server_vad"}', "chunking_strategy")


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _stream(text: str, words: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise RequestError(f"stream must be true or false, not {text[:80]!r}", "stream")
    if text.lower() == "true" and words in ("srt", "vtt"):
        message = f"stream goes with response_format json, text or verbose_json, not {words}"
        raise RequestError(message, "stream")
    return text.lower() == "true"


def _check_granularities(wanted: list[str], words: str) -> None:
    for each in wanted:
        if each != "segment":
            known = "word: this server knows no times of words" if each == "word" else f"{each[:80]!r}: unknown"
            raise RequestError(f"timestamp_granularities {known}: use segment", "timestamp_granularities")
        if words != "verbose_json":
            message = f"timestamp_granularities goes with response_format verbose_json, not {words}"
            raise RequestError(message, "timestamp_granularities")


def _include(wanted: list[str], words: str) -> bool:
    for each in wanted:
        if each != "logprobs":
            raise RequestError(f"include must be logprobs, not {each[:80]!r}", "include")
        if words != "json":
            raise RequestError(f"include logprobs goes with response_format json, not {words}", "include")
    return bool(wanted)


def _clip(form: Form) -> bytes:
    if not form.clip:
        raise RequestError("file is empty: send a clip" if form.clip == b"" else "file is missing: send a clip", "file")
    return form.clip
