"""What /v1/audio/transcriptions and /v1/audio/translations are asked: a form to a clip, its windows, and a format."""

import json
from dataclasses import dataclass, field, replace
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

    form: of the answer. logprobs: whether it has the probabilities of tokens; words, segments: the times of these.
    recognised: a Whisper model hears it, as `clip`, a `Transcription`, or None where the clip is silent; without parts.
    """

    task: str
    model: str
    form: str
    language: str
    temperature: float
    stream: bool
    logprobs: bool
    words: bool
    segments: bool
    seconds: float
    parts: list[tuple[int, Request]] = field(default_factory=list)
    recognised: bool = False
    clip: Any = None

    @property
    def spoken(self) -> str:
        """The language of the text: the one that was asked for, or that a Whisper model has detected until now."""
        detected = None if self.clip is None or self.task == TRANSLATE else self.clip.language
        return detected or self.language


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
    service.check_hears()
    words = fields.get("response_format", "json")
    if words not in FORMATS:
        raise RequestError(f"response_format must be one of {', '.join(FORMATS)}", "response_format")
    if task == TRANSLATE:
        _check_translates(service, model)
    temperature = checked("temperature", real, _number(fields.get("temperature", "0")), 0, 1)
    stream = _stream(fields.get("stream", "false"), words)
    granularities = _granularities(fields.get("timestamp_granularities", []), words, service)
    logprobs = _include(fields.get("include", []), words)
    samples = load_samples(_clip(form), "file", service.policy)
    language = "english" if task == TRANSLATE else fields.get("language", "")
    told = {"words": "word" in granularities, "segments": granularities != {"word"}}
    told |= {"seconds": len(samples) / SAMPLING_RATE}
    asked = Transcript(task, model, words, language, temperature, stream, logprobs, **told)
    if service.pipe.tells_times:
        return _recognised(service, asked, samples, fields)
    settings: dict[str, Any] = {"do_sample": temperature > 0, "temperature": temperature}
    question = None
    if task == TRANSCRIBE or service.transcribes_only:
        given = fields if task == TRANSCRIBE else {**fields, "language": service.pipe.processor.english}
        settings |= {name: given[name] for name in ("language", "prompt") if given.get(name)}
    else:
        question = " ".join(filter(None, (QUESTION, fields.get("prompt"))))
    # Streamed segments are to be followed by eye, as subtitles are.
    window = SUBTITLE_SECONDS if words in ("srt", "vtt") or (stream and words == "verbose_json") else None
    return replace(asked, parts=parts_of(service, samples, question, settings, window, "file"))


def _recognised(service: Service, asked: Transcript, samples: Any, fields: dict) -> Transcript:
    """What a Whisper model is asked. A temperature of 0, which OpenAI's clients may send for none, lets it be raised
    where a text repeats itself or is unlikely; another one holds."""
    from mindone_audio.pipelines.speech_recognition import FALLBACK  # MindSpore: the server answers before it is there

    settings: dict[str, Any] = {name: fields[name] for name in ("language", "prompt") if fields.get(name)}
    settings |= {"task": asked.task} | ({"return_timestamps": "word"} if asked.words else {})
    if asked.temperature > 0:
        settings |= FALLBACK | {"temperature": asked.temperature, "seed": None}
    try:
        clip = service.pipe.prepare(samples, settings)
    except ValueError as error:
        raise refused(error, param="file") from error
    language = asked.language if service.pipe.model.special_tokens.multilingual else "english"
    return replace(asked, recognised=True, clip=clip, language=language)


def _check_translates(service: Service, model: str) -> None:
    if service.transcribes_only:
        pipe = service.pipe
        if not (pipe.model.special_tokens.multilingual if pipe.tells_times else pipe.processor.english):
            message = f"model {model} knows English alone and translates nothing: use /v1/audio/transcriptions"
            raise RequestError(message, "model")
    elif not _asked_by_words(service.pipe.processor):
        raise RequestError(f"model {model} has no words to ask for a translation: it only transcribes", "model")


def _asked_by_words(processor: Any) -> bool:
    """Whether the family's transcription is a question, so that its model answers other questions about speech."""
    from mindone_audio.inputs.processor import AudioTextProcessor  # transformers: the server answers before it is there

    return type(processor).transcription_inputs is AudioTextProcessor.transcription_inputs


def parts_of(
    service: Service, samples: Any, question: str | None, settings: dict, window: float | None, param: str
) -> list[tuple[int, Request]]:
    """(first sample, request) of each window of a clip, at most `window` seconds long, None for the family's own.

    question: instead of the family's own for a transcription. Raises `RequestError` about param.
    """
    pipe, task = service.pipe, TRANSCRIBE if question is None else None
    try:
        request = read_request(pipe.model, pipe.processor, samples, question, task, settings)
        longest = longest_window(pipe.processor, window, TRANSCRIBE)
        parts = list(windows_of(load_request(replace(request, window=longest, by_windows=True))))
        if request.language or request.prompt:  # refused also where all is silence, which is not prepared
            service.prepare(parts[0][1])
    except ValueError as error:
        raise refused(error, param=param) from error
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
    """What it asks for has no effect: clips are cut at quiet places where they are longer than a window, and a Whisper
    model goes through them by itself."""
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


def _granularities(wanted: list[str], words: str, service: Service) -> set[str]:
    """Which times are told, "segment" where nothing is wanted; a Whisper model may know those of words."""
    for each in wanted:
        problem = None
        if each not in ("segment", "word"):
            problem = f" {each[:80]!r}: unknown: use segment{' or word' if service.pipe.tells_times else ''}"
        elif words != "verbose_json":
            problem = f" goes with response_format verbose_json, not {words}"
        elif each == "word" and not service.pipe.tells_times:
            problem = " word: this model knows no times of words: use segment, or a Whisper model"
        elif each == "word" and not service.pipe.tells_words:
            problem = " word: generation_config.json of this model names no alignment_heads, so use segment"
        if problem is not None:
            raise RequestError(f"timestamp_granularities{problem}", "timestamp_granularities")
    return set(wanted) or {"segment"}


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
