"""Requests that cannot be answered: each is a 4xx in OpenAI's error body, which names the field; no model."""

import json
from pathlib import Path

import httpx
import pytest
from fake_service import running, text64, wav


@pytest.fixture(scope="module")
def server():
    with running() as (url, service):
        yield url, service


ROOT = Path(__file__).resolve().parent.parent
CHAT, WRITE, TRANSLATE = "/v1/chat/completions", "/v1/audio/transcriptions", "/v1/audio/translations"
HI = [{"role": "user", "content": "hi"}]
PART = "messages[0].content[0]"


def told(answer, status, param, code=None):
    """The error of an answer, checked: a 4xx is the request's fault, and `param` its field."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert error["param"] == param, error
    assert code is None or error["code"] == code
    assert param is None or param.split(".")[-1].split("[")[0] in error["message"], error
    assert "Traceback" not in answer.text and str(ROOT) not in answer.text and "site-packages" not in answer.text
    return error["message"]


def content(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}]}


def clip(**fields):
    return content({"type": "input_audio", "input_audio": fields})


def url(value):
    return content({"type": "audio_url", "audio_url": {"url": value}})


def called(**fields):
    call = {"id": "a", "type": "function", **{key: fields.pop(key) for key in ("id", "type") if key in fields}}
    return [
        {"role": "assistant", "tool_calls": [call | {"function": {"name": "f", "arguments": "{}", **fields}}]},
    ]


def tool(**fields):
    return {"tools": [{"type": "function", "function": {"name": "f", **fields}}], "tool_choice": "required"}


CALL = "messages[0].tool_calls[0]"
CHATS = [
    ({"model": None}, "model"),
    ({"model": 5}, "model"),
    ({"model": ""}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "tool", "content": "hi"}]}, "messages[0].tool_call_id"),
    ({"messages": [*HI, {"role": "tool", "content": "hi", "tool_call_id": 5}]}, "messages[1].tool_call_id"),
    ({"messages": [*HI, {"role": "tool", "content": "hi", "tool_call_id": "a"}]}, "messages[1].tool_call_id"),
    ({"messages": [*called(), {"role": "tool", "content": "hi", "tool_call_id": "b"}]}, "messages[1].tool_call_id"),
    ({"messages": [*called(), {"role": "tool", "tool_call_id": "a"}]}, "messages[1].content"),
    ({"messages": [{"role": "user", "content": "hi", "tool_calls": [{"id": "a"}]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "function", "content": "hi", "name": "f"}]}, "messages[0].role"),
    ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "hi", "mood": 1}]}, "messages[0].mood"),
    ({"messages": [{"role": "user", "content": "hi", "name": 1}]}, "messages[0].name"),
    ({"messages": [{"role": "assistant", "tool_calls": "f"}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]}, f"{CALL}"),
    ({"messages": called(id=None)}, f"{CALL}.id"),
    ({"messages": called(type="custom")}, f"{CALL}"),
    ({"messages": called(name="f g")}, f"{CALL}.function.name"),
    ({"messages": called(arguments={})}, f"{CALL}.function.arguments"),
    ({"messages": called(arguments="{")}, f"{CALL}.function.arguments"),
    ({"messages": called(arguments="[1]")}, f"{CALL}.function.arguments"),
    ({"messages": called(arguments='{"a": NaN}')}, f"{CALL}.function.arguments"),
    ({"messages": called(arguments='{"a": "\\ud800"}')}, f"{CALL}.function.arguments"),
    ({"messages": called(arguments="[" * 100_000)}, f"{CALL}.function.arguments"),
    ({"messages": [{"role": "user", "content": "word " * 600}]}, "messages"),
    ({"messages": [{"role": "user", "content": "a" * (2**20 + 1)}]}, "messages"),
    (content("hi"), f"{PART}.type"),
    (content({"type": "image_url", "image_url": {"url": "x"}}), f"{PART}.type"),
    (content({"type": ["text"]}), f"{PART}.type"),
    (content({"type": "text"}), f"{PART}.text"),
    (content({"type": "text", "text": 5}), f"{PART}.text"),
    (content({"type": "text", "text": "a", "bold": True}), f"{PART}.bold"),
    (content({"type": "input_audio"}), f"{PART}.input_audio"),
    (clip(), f"{PART}.input_audio"),
    (clip(data=5, format="wav"), f"{PART}.input_audio"),
    (clip(data="AAAA", format=5), f"{PART}.input_audio.format"),
    (clip(data="AAAA", rate=5), f"{PART}.input_audio"),
    (clip(data="not base64!", format="wav"), f"{PART}.input_audio.data"),
    (clip(data="", format="wav"), f"{PART}.input_audio.data"),
    (clip(data=text64(b"no clip at all"), format="wav"), f"{PART}.input_audio.data"),
    (clip(data="/etc/hostname", format="wav"), f"{PART}.input_audio.data"),
    (clip(data="examples/audio/siren.ogg", format="wav"), f"{PART}.input_audio.data"),
    (url("http://127.0.0.1/siren.wav"), f"{PART}.audio_url.url"),
    (url("https://example.org/siren.wav"), f"{PART}.audio_url.url"),
    (url("file:///etc/hostname"), f"{PART}.audio_url.url"),
    (url(5), f"{PART}.audio_url"),
    (content({"type": "audio_url", "audio_url": {"url": "data:,", "detail": 1}}), f"{PART}.audio_url"),
    ({"messages": [{"role": "system", "content": [{"type": "input_audio", "input_audio": {}}]}]}, PART),
    ({"temperature": -1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": False}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"5000": 1}}, "logit_bias"),
    ({"seed": "x"}, "seed"),
    ({"seed": 2**64}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"max_completion_tokens": 2, "max_tokens": 3}, "max_completion_tokens"),
    ({"stop": 5}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["a", 5]}, "stop"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 9, "temperature": 1}, "n"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream_options": {"continuous_usage_stats": True}, "stream": True}, "stream_options"),
    ({"stream_options": {"include_usage": 1}, "stream": True}, "stream_options.include_usage"),
    ({"response_format": "json_object"}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": ["text"]}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "strin"}}}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": []}}}}, "response_format"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": "x" * 70_000}}}},
        "response_format",
    ),
    ({"response_format": {"type": "regex"}}, "response_format"),
    ({"response_format": {"type": "json_object"}, "choice": ["a"]}, "response_format"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"xml": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "(("}}, "structured_outputs"),
    ({"regex": "(("}, "regex"),
    ({"choice": []}, "choice"),
    ({"choice": [1]}, "choice"),
    ({"grammar": "start: other"}, "grammar"),
    ({"constraint": {"regex": "a"}}, "constraint"),
    ({"tools": {"type": "function"}}, "tools"),
    ({"tools": ["f"]}, "tools[0]"),
    ({"tools": [{"type": "function"}]}, "tools[0]"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0]"),
    (tool(mood=1), "tools[0]"),
    (tool(name="f g"), "tools[0].function.name"),
    (tool(name="f" * 65), "tools[0].function.name"),
    (tool(name="f\n"), "tools[0].function.name"),
    (tool(name=5), "tools[0].function.name"),
    (tool(description=5), "tools[0].function.description"),
    (tool(strict="yes"), "tools[0].function.strict"),
    (tool(parameters=5), "tools[0].function.parameters"),
    (tool(parameters={"type": "string"}), "tools[0].function.parameters"),
    (tool(parameters={"properties": {"a": {"type": "strin"}}}), "tools[0].function.parameters"),
    (tool(parameters={"properties": {"a": {"enum": []}}, "required": ["a"]}), "tools[0].function.parameters"),
    (tool(parameters={"properties": {"a": {"$ref": "#/$defs/b"}}}), "tools[0].function.parameters"),
    (tool(parameters={"properties": {"a": {"const": "x" * 70_000}}}), "tools[0].function.parameters"),
    ({"tools": [*tool()["tools"], *tool()["tools"]]}, "tools[1].function.name"),
    ({"tools": [tool(name=f"f{i}")["tools"][0] for i in range(129)]}, "tools"),
    ({**tool(), "tool_choice": "auto"}, "tool_choice"),
    ({**tool(), "tool_choice": "any"}, "tool_choice"),
    ({**tool(), "tool_choice": ["auto"]}, "tool_choice"),
    ({**tool(), "tool_choice": {"type": "function"}}, "tool_choice"),
    ({**tool(), "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
    ({**tool(), "tool_choice": {"type": "function", "function": {"name": ["f"]}}}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"tool_choice": "required", "tools": []}, "tool_choice"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({**tool(), "parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({**tool(), "response_format": {"type": "json_object"}}, "response_format"),
    ({**tool(), "regex": "a"}, "regex"),
    ({**tool(), "structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "a"}}, "audio"),
    ({"prediction": {"type": "content"}}, "prediction"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"verbosity": "low"}, "verbosity"),
    ({"service_tier": "priority"}, "service_tier"),
    ({"ignore_eos": True}, "ignore_eos"),
    ({"min_tokens": 5}, "min_tokens"),
]


@pytest.mark.parametrize(("fields", "param"), CHATS)
def test_chats(server, fields, param):
    body = {"model": "demo", "messages": HI, **fields}
    told(httpx.post(server[0] + CHAT, json=body), 400, param)
    assert server[1].scheduler.submitted == []


def test_the_place_in_a_tool_is_named(server):
    body = {"model": "demo", "messages": HI, **tool(parameters={"properties": {"a": {"items": {"type": "strin"}}}})}
    message = told(httpx.post(server[0] + CHAT, json=body), 400, "tools[0].function.parameters")
    assert message.startswith("tools[0].function.parameters at /properties/a/items: ")


FORMS = [
    ({"model": None}, "model"),
    ({"file": None}, "file"),
    ({"file": b""}, "file"),
    ({"file": b"no clip at all"}, "file"),
    ({"language": "xx"}, "language"),
    ({"response_format": "pdf"}, "response_format"),
    ({"response_format": "diarized_json"}, "response_format"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": "nan"}, "temperature"),
    ({"temperature": "1.5"}, "temperature"),
    ({"stream": "yes"}, "stream"),
    ({"stream": "true", "response_format": "srt"}, "stream"),
    ({"timestamp_granularities[]": "word", "response_format": "verbose_json"}, "timestamp_granularities"),
    ({"timestamp_granularities[]": "hour", "response_format": "verbose_json"}, "timestamp_granularities"),
    ({"timestamp_granularities[]": "segment"}, "timestamp_granularities"),
    ({"include[]": "mood"}, "include"),
    ({"include[]": "logprobs", "response_format": "text"}, "include"),
    ({"chunking_strategy": "never"}, "chunking_strategy"),
    ({"chunking_strategy": "[]"}, "chunking_strategy"),
    ({"chunking_strategy[mood]": "1"}, "chunking_strategy[mood]"),
    ({"keywords[]": "Ada"}, "keywords"),
    ({"diarize": "true"}, "diarize"),
    ({"language": ["de", "en"]}, "language"),
]


def form_of(fields):
    given = {"model": "demo", "file": wav(1), **fields}
    clip = given.pop("file")
    data = {name: value for name, value in given.items() if value is not None}
    return {"data": data, "files": {"file": ("a.wav", clip)} if clip is not None else {"": ("", b"")}}


@pytest.mark.parametrize(("fields", "param"), FORMS)
def test_forms(server, fields, param):
    if fields == {"file": None}:
        request = {"files": {"model": (None, "demo")}}
    else:
        request = form_of(fields)
    told(httpx.post(server[0] + WRITE, **request), 400, param)
    assert server[1].scheduler.submitted == []


@pytest.mark.parametrize(
    ("request_of", "param"),
    [
        ({"files": {"file": (None, "text"), "model": (None, "demo")}}, "file"),
        ({"files": {"clip": ("a.wav", b"x"), "model": (None, "demo")}}, "clip"),
        ({"files": [("file", ("a.wav", b"x")), ("file", ("b.wav", b"x"))]}, None),
        ({"content": b"--x\r\nbroken", "headers": {"content-type": "multipart/form-data; boundary=x"}}, "model"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, None),
    ],
)
def test_other_forms(server, request_of, param):
    told(httpx.post(server[0] + WRITE, **request_of), 400, param)


@pytest.mark.parametrize("name", ["language", "stream", "timestamp_granularities[]"])
def test_translations_have_fewer_fields(server, name):
    told(httpx.post(server[0] + TRANSLATE, **form_of({name: "true"})), 400, name.removesuffix("[]"))


TASKS = [
    ({}, "inputs"),
    ({"inputs": 5}, "inputs"),
    ({"inputs": []}, "inputs"),
    ({"inputs": {"text": "hi"}}, "inputs.audio"),
    ({"inputs": {"audio": 5}}, "inputs.audio"),
    ({"inputs": {"audio": "/etc/hostname"}}, "inputs.audio"),
    ({"inputs": {"audio": "http://127.0.0.1/a.wav"}}, "inputs.audio"),
    ({"inputs": {"audio": text64(wav(1)), "text": 5}}, "inputs.text"),
    ({"inputs": {"audio": text64(wav(1)), "mood": 5}}, "inputs.mood"),
    ({"inputs": [{"audio": text64(wav(1))}, {"audio": "?"}]}, "inputs[1].audio"),
    ({"inputs": {"audio": text64(wav(1))}, "mood": 5}, "mood"),
    ({"inputs": {"audio": text64(wav(1))}, "parameters": 5}, "parameters"),
    ({"inputs": {"audio": text64(wav(1))}, "parameters": {"max_new_tokens": 0}}, "max_new_tokens"),
    ({"inputs": {"audio": text64(wav(1))}, "parameters": {"temperature": False}}, "temperature"),
]


@pytest.mark.parametrize(("body", "param"), TASKS)
def test_tasks(server, body, param):
    told(httpx.post(server[0] + "/predict", json=body), 400, param)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"5", b'"a"', b"\xff\xfe", b'{"model": NaN}', b'{"a":' * 100_000, b"[" * 100_000]
)
def test_bodies_that_are_no_object(server, body):
    for path in (CHAT, "/"):
        told(httpx.post(server[0] + path, content=body, headers={"content-type": "application/json"}), 400, None)


def test_unknown_models(server):
    for name in ("gpt-4o", "../demo", "demo "):
        answer = httpx.post(server[0] + CHAT, json={"model": name, "messages": HI})
        assert repr(name) in told(answer, 404, "model", "model_not_found")
        told(httpx.post(server[0] + WRITE, **form_of({"model": name})), 404, "model", "model_not_found")
    told(httpx.get(server[0] + "/v1/models/gpt-4o"), 404, "model", "model_not_found")


def test_other_types_of_body(server):
    body = json.dumps({"model": "demo", "messages": HI})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        told(httpx.post(server[0] + CHAT, content=body, headers={"content-type": kind}), 415, None)
    told(httpx.post(server[0] + WRITE, json={"model": "demo"}), 415, None)
    told(httpx.post(server[0] + WRITE, data={"model": "demo"}), 415, None)
    assert httpx.post(server[0] + CHAT, content=body).status_code == 200  # without a type
    kind = {"content-type": "application/json; charset=utf-8"}
    assert httpx.post(server[0] + CHAT, content=body, headers=kind).status_code == 200
    server[1].scheduler.submitted.clear()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("POST", path, 404) for path in ("/v1/audio/voices", "/v1/completions", "/v1/embeddings", "/v2")),
        *(("GET", path, 404) for path in ("/nothing", "/chat/completions", "/redoc", "/static/../cli.py")),
        *(("GET", path, 405) for path in (CHAT, WRITE, "/predict")),
        *(("POST", path, 405) for path in ("/health", "/v1/models", "/metrics")),
        *(("DELETE", path, 405) for path in (CHAT, "/v1/models/demo")),
    ],
)
def test_other_urls_and_methods(server, method, path, status):
    answer = httpx.request(method, server[0] + path)
    told(answer, status, None)
    assert (status == 405) == ("allow" in answer.headers)


def test_there_are_enough():
    assert len(CHATS) + len(FORMS) + len(TASKS) > 100
