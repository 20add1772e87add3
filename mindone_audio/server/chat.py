"""What /v1/chat/completions is asked: OpenAI's body to messages with samples, and settings of `generate`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mindone_audio.generation.constraint import KINDS
from mindone_audio.generation.settings import flag, real, whole
from mindone_audio.generation.text_stream import check_stops
from mindone_audio.inputs.audio import SAMPLING_RATE
from mindone_audio.pipelines.requests import Request, load_request, longest_window, read_request
from mindone_audio.server.errors import OPENAI_NAMES, RequestError, checked, refused
from mindone_audio.server.formats import FIELDS as FORMATS
from mindone_audio.server.formats import answer_form
from mindone_audio.server.guards import parse_json
from mindone_audio.server.media import MediaPolicy, media_samples
from mindone_audio.server.service import Service
from mindone_audio.server.tools import FIELDS as TOOLS
from mindone_audio.server.tools import ToolUse, read_call_id, read_calls, read_tools

MOST_ANSWERS = 128  # OpenAI's limit of n
LONGEST_TEXT = 2**20  # characters of all messages; no model takes as many, and a tokenizer needs long for more
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
# Settings of `generate` under their own names, and under OpenAI's.
_SAME = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_SETTINGS = {**{name: name for name in (*_SAME, "logit_bias", "seed")}, "stop": "stop_sequence"}
_LENGTHS = ("max_completion_tokens", "max_tokens")
_OWN = ("model", "messages", "n", "logprobs", "top_logprobs", "stream", "stream_options")
# What changes no answer.
_IGNORED = ("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "prompt_cache_options")
_IGNORED += ("prompt_cache_retention",)
# What this server cannot do, with the values that do not ask for it.
_NOT_HERE: dict[str, tuple] = {
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "service_tier": ("auto", "default"),
    **dict.fromkeys(("audio", "prediction", "web_search_options", "moderation"), ()),
}
FIELDS = (*_OWN, *_LENGTHS, *_SETTINGS, *FORMATS, *TOOLS, *_IGNORED, *_NOT_HERE)
# Of a message besides role and content: answers of this and other servers have them, at these values.
_MESSAGE_FIELDS: dict[str, tuple] = {
    **dict.fromkeys(("refusal", "audio", "function_call", "reasoning_content"), ()),
    "annotations": ([],),
}


@dataclass(frozen=True)
class ChatRequest:
    """A checked body. settings: of `generate`, and names: what the client calls them. n: choices. logprobs:
    alternatives a token lists, None without. tools: None where none may be called."""

    model: str
    messages: list[dict]
    settings: dict
    names: Mapping[str, str]
    n: int = 1
    logprobs: int | None = None
    stream: bool = False
    include_usage: bool = False
    tools: ToolUse | None = None


def read_chat(body: bytes, service: Service) -> ChatRequest:
    """The request that a body is, its clips as samples; `RequestError` for anything that is wrong with it."""
    fields = read_object(body)
    for name, value in fields.items():
        if name not in FIELDS:
            raise RequestError(f"{name[:100]} is no field of this request: leave it out", name[:100])
        if name in _NOT_HERE and value not in _NOT_HERE[name]:
            message = f"{name} is not supported here with this value: leave it out"
            raise RequestError(message, name, code="unsupported_value")
    model = service.check_model(fields.get("model"))
    service.check_questions()
    settings = {_SETTINGS[name]: fields[name] for name in _SETTINGS if name in fields}
    _check_settings(settings)
    lengths = {name: fields[name] for name in _LENGTHS if name in fields}
    if len(set(map(repr, lengths.values()))) > 1:
        raise RequestError("max_tokens and max_completion_tokens differ: give one of them", "max_completion_tokens")
    settings["max_new_tokens"] = next(iter(lengths.values()), service.options.max_tokens)
    form, names = answer_form(fields)
    tools = read_tools(fields, service.pipe.processor.tool_format, names.values())
    if tools is not None and tools.certain:
        form, names = tools.constraint, dict.fromkeys(KINDS, "tools")
    stream = checked("stream", flag, fields.get("stream", False))
    return ChatRequest(
        model,
        read_messages(fields.get("messages"), service.policy),
        sampling(settings) | form,
        {**OPENAI_NAMES, "max_new_tokens": next(iter(lengths), "max_tokens"), **names},
        checked("n", whole, fields.get("n", 1), 1, MOST_ANSWERS),
        _logprobs(fields),
        stream,
        _include_usage(fields.get("stream_options"), stream),
        tools,
    )


def read_object(body: bytes) -> dict:
    """The fields of a JSON object that are not null; `RequestError` for a body that is none."""
    try:
        content = parse_json(body)
    except ValueError as error:
        raise RequestError(str(error)) from error
    if not isinstance(content, dict):
        raise RequestError("the body must be a JSON object")
    return {name: value for name, value in content.items() if value is not None}


def sampling(settings: dict) -> dict:
    """Settings with do_sample where they ask for it: a temperature or top_p of 0 is greedy, others draw tokens."""
    if "do_sample" in settings:
        return settings
    cuts = [settings[name] for name in ("temperature", "top_p") if name in settings]
    if any(value == 0 and value is not False for value in cuts):
        return settings | {"do_sample": False}
    return settings | ({"do_sample": True} if cuts or {"top_k", "min_p"} & set(settings) else {})


def _check_settings(settings: dict) -> None:
    """Those whose range or name is OpenAI's; the others are checked with the model's own."""
    if "temperature" in settings:
        checked("temperature", real, settings["temperature"], 0, 2)
    if "top_p" in settings:
        checked("top_p", real, settings["top_p"], 0, 1)
    if "stop_sequence" in settings:
        checked("stop", check_stops, settings["stop_sequence"])
    if settings.get("top_k") == -1:  # as in vLLM: all tokens
        settings["top_k"] = 0
    if "seed" in settings:  # OpenAI's may be negative
        settings["seed"] = checked("seed", whole, settings["seed"], -(2**63), 2**64 - 1) % 2**64


def _logprobs(fields: dict) -> int | None:
    wanted = checked("logprobs", flag, fields.get("logprobs", False))
    if "top_logprobs" not in fields:
        return 0 if wanted else None
    most = checked("top_logprobs", whole, fields["top_logprobs"], 0, 20)
    if not wanted:
        raise RequestError("top_logprobs goes with logprobs: true", "top_logprobs")
    return most


def _include_usage(options: Any, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise RequestError("stream_options goes with stream: true", "stream_options")
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        raise RequestError('stream_options must be {"include_usage": true}', "stream_options")
    values = {name: False if value is None else value for name, value in options.items()}
    values = {name: checked(f"stream_options.{name}", flag, value) for name, value in values.items()}
    return values.get("include_usage", False)


def read_messages(messages: Any, policy: MediaPolicy) -> list[dict]:
    """Messages as the pipeline takes them, clips as float32 `[samples]`; `RequestError` for a wrong one."""
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list of at least one message", "messages")
    read, texts, calls = [], [], []
    for number, message in enumerate(messages):
        message = _message(message, f"messages[{number}]", [call["id"] for call in calls])
        own = message.get("tool_calls", [])
        texts += [message["content"] if isinstance(message["content"], str) else _text(message["content"])]
        texts += [call["function"]["arguments"] for call in own]
        calls += own
        read.append(message)
    if sum(map(len, texts)) > LONGEST_TEXT:
        raise RequestError(f"messages have more than {LONGEST_TEXT} characters: give less text", "messages")
    seconds = 0.0
    for message in read:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "audio":
                part["audio"] = load_samples(*part["audio"], policy)
                seconds += len(part["audio"]) / SAMPLING_RATE
                check_seconds(seconds, policy, "messages")
    return read


def load_samples(source: str | bytes, name: str, policy: MediaPolicy) -> np.ndarray:
    """The clip `[samples]` of a field; `RequestError` that names the field."""
    try:
        return media_samples(source, policy, name)
    except ValueError as error:
        raise refused(error, param=name) from error


def check_seconds(seconds: float, policy: MediaPolicy, param: str) -> None:
    """`RequestError` for more audio than one request may have."""
    if seconds > policy.max_seconds:
        raise RequestError(f"the clips are longer than {policy.max_seconds:g} s together: give fewer", param)


def _message(message: Any, name: str, calls: list[str]) -> dict:
    """A message whose clips are (source, field), not loaded yet. calls: ids of those in earlier ones."""
    if not isinstance(message, dict):
        raise RequestError(f'{name} must be {{"role": …, "content": …}}', name)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise RequestError(f"{name}.role must be one of {', '.join(_ROLES)}", f"{name}.role")
    for field, value in message.items():
        if field in ("role", "content", _OF_TOOLS.get(role)) or value is None:
            continue
        if field == "name" and isinstance(value, str) or (field == "tool_calls" and value == []):
            continue
        if value not in _MESSAGE_FIELDS.get(field, ()):
            field = f"{name}.{field[:100]}"
            raise RequestError(f"{field} is not supported here with this value: leave it out", field)
    content = message.get("content")
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, list) and content:
        content = [_part(part, role, f"{name}.content[{place}]") for place, part in enumerate(content)]
        if len(content) == 1 and content[0]["type"] == "text":
            content = content[0]["text"]
    elif not isinstance(content, str):
        raise RequestError(f"{name}.content must be a string or a list of parts", f"{name}.content")
    own: dict[str, Any] = {}
    if role == "tool":
        own = {"tool_call_id": read_call_id(message.get("tool_call_id"), calls, f"{name}.tool_call_id")}
    elif role == "assistant" and message.get("tool_calls"):
        own = {"tool_calls": read_calls(message["tool_calls"], f"{name}.tool_calls")}
    return {"role": _ROLES[role], "content": content, **own}


_OF_TOOLS = {"tool": "tool_call_id", "assistant": "tool_calls"}  # a field of such messages


def _part(part: Any, role: str, name: str) -> dict:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in _PARTS:
        raise RequestError(f"{name}.type must be one of {', '.join(_PARTS)}", f"{name}.type")
    if kind != "text" and role != "user":
        raise RequestError(f"{name}: only messages of the user have clips", name)
    if unknown := [field for field in part if field not in ("type", kind)]:
        field = f"{name}.{unknown[0][:100]}"
        raise RequestError(f"{field} is no field of this part: leave it out", field)
    return _PARTS[kind](part.get(kind), f"{name}.{kind}")


def _text_part(text: Any, name: str) -> dict:
    if not isinstance(text, str):
        raise RequestError(f"{name} must be a string", name)
    return {"type": "text", "text": text}


def _input_audio(clip: Any, name: str) -> dict:
    if not isinstance(clip, dict) or set(clip) - {"data", "format"} or not isinstance(clip.get("data"), str):
        raise RequestError(f'{name} must be {{"data": base64, "format": "wav" or "mp3"}}', name)
    if not isinstance(clip.get("format", ""), str):
        raise RequestError(f'{name}.format must be a word such as "wav"', f"{name}.format")
    return {"type": "audio", "audio": (clip["data"], f"{name}.data")}


def _audio_url(clip: Any, name: str) -> dict:
    url = clip.get("url") if isinstance(clip, dict) and set(clip) == {"url"} else clip
    if not isinstance(url, str):
        raise RequestError(f'{name} must be {{"url": URL}}', name)
    return {"type": "audio", "audio": (url, f"{name}.url")}


_PARTS: dict[str, Callable] = {"text": _text_part, "input_audio": _input_audio, "audio_url": _audio_url}


def _text(parts: list[dict]) -> str:
    return "".join(part["text"] for part in parts if part["type"] == "text")


def prepare_chat(body: bytes, service: Service) -> tuple[ChatRequest, Any]:
    """A body as it was read, and as the scheduler takes it."""
    asked = read_chat(body, service)
    tools = () if asked.tools is None else asked.tools.tools
    made = prepared(service, (asked.messages, None), asked.settings, asked.names, "messages", n=asked.n, tools=tools)
    return asked, made[1]


def prepared(
    service: Service,
    item: tuple[Any, str | None],
    settings: dict,
    names: Mapping[str, str],
    param: str,
    *,
    n: int = 1,
    tools: tuple[dict, ...] = (),
) -> tuple[Request, Any]:
    """An input of the pipeline with its text, clips as samples: its request, and that as the scheduler takes it.

    n: answers, of which greedy decoding computes one. tools: that the model is told of. Raises `RequestError` with the
    settings called as in `names`, and about `param` where it is about no setting.
    """
    pipe = service.pipe
    try:
        request = replace(read_request(pipe.model, pipe.processor, *item, None, settings), tools=tools)
        if n > 1 and request.chosen.do_sample:
            if n > service.options.max_batch:
                raise RequestError(f"n must be at most {service.options.max_batch}, this server's batch", "n")
            several = {"num_return_sequences": n}
            chosen, arguments = replace(request.chosen, **several), request.arguments | several
            request = replace(request, chosen=chosen, arguments=arguments)
        request = load_request(replace(request, window=longest_window(pipe.processor, None, None)))
        return request, service.prepare(request)
    except ValueError as error:
        raise refused(error, names, param) from error
