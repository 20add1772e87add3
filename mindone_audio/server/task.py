"""POST / and /predict: the schema of Hugging Face's audio-text-to-text task; clips to transcribe have no text."""

from contextlib import aclosing
from functools import partial
from typing import Any

import numpy as np
from fastapi.responses import JSONResponse, Response

from mindone_audio.generation.settings import flag
from mindone_audio.inputs.audio import SAMPLING_RATE
from mindone_audio.pipelines.requests import Request
from mindone_audio.server.chat import check_seconds, load_samples, prepared, read_object, sampling
from mindone_audio.server.errors import RequestError, checked, refused
from mindone_audio.server.forms import TRANSCRIBE, Transcript, parts_of
from mindone_audio.server.recognition import listened
from mindone_audio.server.service import Place, Service, collected, in_order
from mindone_audio.server.transcriptions import heard


async def predict(service: Service, body: bytes, place: Place) -> Response:
    """The answer to {"inputs": {"audio", "text"}, "parameters"}: [{"generated_text"}], one for each input of a list."""
    inputs, parameters = await service.in_pool(read_inputs, body, service)
    service.hold(place, sum(len(samples) for samples, _ in inputs))
    answer = _transcribed if service.transcribes_only else _answer
    jobs = [partial(answer, service, item, parameters, n > 0) for n, item in enumerate(inputs)]
    async with aclosing(in_order(jobs)) as answers:
        return JSONResponse([answer async for ended, answer in answers if ended])


def read_inputs(body: bytes, service: Service) -> tuple[list[tuple[np.ndarray, str | None]], dict]:
    """(samples, text) of each input, and settings of `generate`; `RequestError` for anything that is wrong."""
    content = read_object(body)
    service.check_hears()
    if unknown := [name for name in content if name not in ("inputs", "parameters")]:
        raise RequestError(f"{unknown[0][:100]} is no field of this request: leave it out", unknown[0][:100])
    parameters = content.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RequestError("parameters must be an object of settings", "parameters")
    parameters = {name: value for name, value in parameters.items() if value is not None}
    if not service.pipe.tells_times:  # whose temperature may be several
        parameters = sampling(parameters)
    inputs = content.get("inputs")
    if not isinstance(inputs, list):
        return [_input(inputs, "inputs", service)], parameters
    if not inputs:
        raise RequestError("inputs is empty: give at least one", "inputs")
    items, seconds = [], 0.0
    for place, item in enumerate(inputs):
        items.append(_input(item, f"inputs[{place}]", service))
        seconds += len(items[-1][0]) / SAMPLING_RATE
        check_seconds(seconds, service.policy, "inputs")
    return items, parameters


def _input(item: Any, name: str, service: Service) -> tuple[np.ndarray, str | None]:
    item = {"audio": item} if isinstance(item, str) else item
    if not isinstance(item, dict):
        raise RequestError(f'{name} must be {{"audio": …, "text": …}}', name)
    if unknown := [key for key in item if key not in ("audio", "text")]:
        field = f"{name}.{unknown[0][:100]}"
        raise RequestError(f"{field} is no field of an input: it has audio and text", field)
    if not isinstance(item.get("audio"), str):
        raise RequestError(f"{name}.audio must be base64, a data: URI or a URL", f"{name}.audio")
    text = item.get("text")
    if text is not None and not isinstance(text, str):
        raise RequestError(f"{name}.text must be a string", f"{name}.text")
    if text is not None and service.transcribes_only:
        message = f"{name}.text: this model transcribes and answers no questions: leave it out"
        raise RequestError(message, f"{name}.text")
    return load_samples(item["audio"], f"{name}.audio", service.policy), text


async def _answer(service: Service, item: tuple, parameters: dict, patient: bool, say: Any) -> dict:
    asked, ready = await service.in_pool(_prepared, service, item, parameters)
    texts, tokens = [], []

    def hear(delta: Any) -> None:
        texts.append(delta.text)
        tokens.extend(delta.tokens)

    model = next(iter(service.options.models))
    await collected(service.deltas(ready, model=model, patient=patient), hear)
    text = "".join(texts).strip()
    answer = {"generated_text": asked.text + text if asked.full_text else text}
    return answer | ({"tokens": len(tokens)} if asked.count_tokens else {})


async def _transcribed(service: Service, item: tuple, parameters: dict, patient: bool, say: Any) -> dict:
    """What the pipeline of a model that transcribes answers, with the text as "generated_text" too."""
    parameters, model = dict(parameters), next(iter(service.options.models))
    if not service.pipe.tells_times:
        return await _by_windows(service, item[0], parameters, model)
    counts = checked("return_token_count", flag, parameters.pop("return_token_count", False))
    clip = await service.in_pool(_clip, service, item[0], parameters)
    if clip is None:
        return service.pipe.answer([], None, counts)
    async with aclosing(listened(service, clip, model, patient=patient)) as windows:
        async for _ in windows:
            pass
    return service.pipe.answer(clip.segments, clip, counts)


async def _by_windows(service: Service, samples: np.ndarray, parameters: dict, model: str) -> dict:
    parts = await service.in_pool(parts_of, service, samples, None, parameters, None, "inputs")
    told = {"words": False, "segments": True, "seconds": len(samples) / SAMPLING_RATE}
    asked = Transcript(TRANSCRIBE, model, "json", "", 0.0, False, False, **told, parts=parts)
    async with aclosing(heard(service, asked)) as found:
        segments = [value async for ended, value in found if ended]
    text = " ".join(segment.text for segment in segments if segment.text)
    chunks = [
        {"start": one.start, "end": one.end, "timestamp": (one.start, one.end), "text": one.text} for one in segments
    ]
    answer = {"text": text, "generated_text": text, "chunks": chunks}
    return answer | ({"tokens": sum(one.made for one in segments)} if parts[0][1].count_tokens else {})


def _clip(service: Service, samples: np.ndarray, parameters: dict) -> Any:
    try:
        return service.pipe.prepare({"inputs": samples, "parameters": parameters}, {})
    except (TypeError, ValueError) as error:
        raise refused(ValueError(error) if isinstance(error, TypeError) else error, {}, "inputs") from error


def _prepared(service: Service, item: tuple, parameters: dict) -> tuple[Request, Any]:
    """An input's request, and that as the scheduler takes it; settings have Python's names in what it raises."""
    return prepared(service, item, parameters, {}, "inputs")
