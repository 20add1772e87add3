"""/v1/chat/completions, asked by OpenAI's own client and by hand; no model."""

import asyncio
import json
import socket
from concurrent.futures import Future

import httpx
import openai
import pytest
from fake_service import ANSWER, Pipe, running, text64, until, wav

from mindone_audio.server import exchange
from mindone_audio.server.options import ServerOptions


@pytest.fixture(scope="module")
def server():
    with running() as (url, service):
        yield url, service


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0)


CLIP = {"type": "input_audio", "input_audio": {"data": text64(wav(1.0)), "format": "wav"}}


def ask(text, *parts):
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def post(server, body, path="/v1/chat/completions", **more):
    return httpx.post(server[0] + path, json=body, **more)


def test_an_answer_has_every_field(server):
    answer = post(server, {"model": "demo", "messages": ask("What is it?", CLIP)}).json()
    assert answer.pop("id").startswith("chatcmpl-") and isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "chat.completion",
        "model": "demo",
        "system_fingerprint": None,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": ANSWER, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 28,
            "completion_tokens": 5,
            "total_tokens": 33,
            "prompt_tokens_details": {"audio_tokens": 25, "cached_tokens": 0},
        },
    }


def test_turns_roles_and_clips_come_to_the_model(client, server):
    uri = {"type": "audio_url", "audio_url": {"url": "data:audio/x-wav;base64," + text64(wav(0.5))}}
    data = {"type": "input_audio", "input_audio": {"data": "data:;base64," + text64(wav(2.0)), "format": "flac"}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be short."}]},
        *ask("First?", CLIP, uri),
        {"role": "assistant", "content": None, "tool_calls": None, "refusal": None, "annotations": []},
        *ask("Second?", data),
    ]
    answer = client.chat.completions.create(model="demo", messages=messages, user="me", metadata={"a": "b"}, store=True)
    assert answer.choices[0].message.content == ANSWER
    request = server[1].scheduler.submitted[-1].prepared.request
    assert [message["role"] for message in request.messages] == ["system", "user", "assistant", "user"]
    assert [len(clip) for clip in request.clips] == [16000, 8000, 32000]
    assert request.messages[0]["content"] == "Be short." and request.messages[2]["content"] == ""


def test_an_answer_of_before_may_come_back(client):
    first = client.chat.completions.create(model="demo", messages=ask("One?", CLIP)).choices[0].message
    messages = [*ask("One?", CLIP), first.model_dump(), *ask("say two")]
    assert client.chat.completions.create(model="demo", messages=messages).choices[0].message.content == "two"


TRUTH = {"type": "boolean"}
SCHEMA = {"name": "truth", "schema": TRUTH, "strict": True}


def settings_of(server, **fields):
    answer = post(server, {"model": "demo", "messages": ask("Say it"), **fields})
    assert answer.status_code == 200, answer.text
    return server[1].scheduler.submitted[-1].prepared.request


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({}, {"do_sample": False, "max_new_tokens": 512}),
        ({"max_tokens": 7}, {"max_new_tokens": 7}),
        ({"max_completion_tokens": 8}, {"max_new_tokens": 8}),
        ({"max_completion_tokens": 8, "max_tokens": 8}, {"max_new_tokens": 8}),
        ({"temperature": 0, "top_p": 0.9}, {"do_sample": False}),
        ({"temperature": 0.0}, {"do_sample": False}),
        ({"temperature": None, "n": None, "stop": None, "tools": None}, {"do_sample": False}),
        ({"temperature": 0.7}, {"do_sample": True, "temperature": 0.7}),
        ({"top_p": 0.5}, {"do_sample": True, "top_p": 0.5}),
        ({"top_k": -1, "temperature": 1}, {"do_sample": True, "top_k": 0}),
        ({"min_p": 0.1}, {"do_sample": True, "min_p": 0.1}),
        ({"seed": 5, "temperature": 1}, {"seed": 5}),
        ({"seed": -1}, {"seed": 2**64 - 1}),
        ({"presence_penalty": -2, "frequency_penalty": 2}, {"presence_penalty": -2.0, "frequency_penalty": 2.0}),
        ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ({"logit_bias": {"42": -100}}, {"logit_bias": {42: -100.0}}),
        ({"response_format": {"type": "text"}, "tool_choice": "none", "modalities": ["text"], "tools": []}, {}),
        ({"response_format": {"type": "json_object"}}, {"constraint": {"json_schema": {"type": "object"}}}),
        ({"response_format": {"type": "json_schema", "json_schema": SCHEMA}}, {"constraint": {"json_schema": TRUTH}}),
        ({"response_format": {"type": "regex", "regex": "a+"}}, {"constraint": {"regex": "a+"}}),
        ({"structured_outputs": {"json": TRUTH}}, {"constraint": {"json_schema": TRUTH}}),
        ({"structured_outputs": {"choice": ["a", "b"], "json": None}}, {"constraint": {"choice": ["a", "b"]}}),
        ({"structured_outputs": {"json_object": True}}, {"constraint": {"json_schema": {"type": "object"}}}),
        ({"choice": ["a", "b"], "stop": "c"}, {"constraint": {"choice": ["a", "b"]}}),
        ({"grammar": 'start: "a"'}, {"constraint": {"grammar": 'start: "a"'}}),
        ({"service_tier": "auto", "parallel_tool_calls": True, "prompt_cache_key": "x"}, {}),
    ],
)
def test_fields_become_settings(server, fields, settings):
    chosen = settings_of(server, **fields).chosen
    assert {name: getattr(chosen, name) for name in settings} == settings


def test_stop_ends_before_the_string(client, server):
    answer = client.chat.completions.create(model="demo", messages=ask("say one two three"), stop=["five", " three"])
    assert answer.choices[0].message.content == "one two"
    assert settings_of(server, stop="x").stops == ("x",)


def test_length_is_a_finish_reason(client):
    answer = client.chat.completions.create(model="demo", messages=ask("say one two three"), max_tokens=2)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("one two", "length")


def test_several_answers(client, server):
    drawn = client.chat.completions.create(model="demo", messages=ask("say it"), n=3, temperature=1)
    assert [choice.message.content for choice in drawn.choices] == ["it 0", "it 1", "it 2"]
    assert [choice.index for choice in drawn.choices] == [0, 1, 2] and drawn.usage.completion_tokens == 9
    before = len(server[1].scheduler.submitted)
    greedy = client.chat.completions.create(model="demo", messages=ask("say it"), n=2)
    assert [choice.message.content for choice in greedy.choices] == ["it", "it"]
    assert greedy.usage.completion_tokens == 4 and len(server[1].scheduler.submitted) == before + 1
    chunks = client.chat.completions.create(model="demo", messages=ask("say it"), n=2, temperature=1, stream=True)
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == ["it 0", "it 1"]


def test_logprobs(client):
    asked = {"model": "demo", "messages": ask("say one two"), "logprobs": True}
    answer = client.chat.completions.create(**asked, top_logprobs=2)
    listed = answer.choices[0].logprobs.content
    assert [entry.token for entry in listed] == ["one", " two"] and listed[0].bytes == list(b"one")
    assert listed[0].logprob == -0.5 and [entry.logprob for entry in listed[0].top_logprobs] == [-0.5, -1.5]
    assert client.chat.completions.create(**asked).choices[0].logprobs.content[0].top_logprobs == []
    chunks = list(client.chat.completions.create(**asked, stream=True))
    shown = [
        entry.token
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content
    ]
    assert shown == ["one", " two"]


def test_the_model_is_an_adapter(client, server):
    assert client.chat.completions.create(model="tuned", messages=ask("say x")).model == "tuned"
    assert server[1].scheduler.submitted[-1].adapter == "tuned"
    client.chat.completions.create(model="demo", messages=ask("say x"))
    assert server[1].scheduler.submitted[-1].adapter is None


def frames(server, **fields):
    answer = post(server, {"model": "demo", "messages": ask("say one two"), "stream": True, **fields})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache" and answer.headers["x-accel-buffering"] == "no"
    assert answer.content.endswith(b"\n\n")
    return answer.content.decode().split("\n\n")[:-1]


def test_events_byte_for_byte(server):
    for include, usage in ((False, ""), (True, ',"usage":null')):
        made = frames(server, stream_options={"include_usage": include})
        facts = json.loads(made[0].removeprefix("data: "))
        lead = (
            f'data: {{"id":"{facts["id"]}","object":"chat.completion.chunk","created":{facts["created"]},'
            '"model":"demo","system_fingerprint":null,"choices":['
        )
        none, stop = '"logprobs":null,"finish_reason":null}]', '"logprobs":null,"finish_reason":"stop"}]'
        expected = [
            f'{lead}{{"index":0,"delta":{{"role":"assistant","content":"","refusal":null}},{none}{usage}}}',
            f'{lead}{{"index":0,"delta":{{"content":"one"}},{none}{usage}}}',
            f'{lead}{{"index":0,"delta":{{"content":" two"}},{none}{usage}}}',
            f'{lead}{{"index":0,"delta":{{}},{stop}{usage}}}',
        ]
        if include:
            counts = '"prompt_tokens":3,"completion_tokens":3,"total_tokens":6'
            details = '"prompt_tokens_details":{"audio_tokens":0,"cached_tokens":0}'
            expected.append(f'{lead}],"usage":{{{counts},{details}}}}}')
        assert made == [*expected, "data: [DONE]"]


def test_a_stream_by_the_client(client):
    asked = {"model": "demo", "messages": ask("What?", CLIP), "stream": True}
    chunks = list(client.chat.completions.create(**asked, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-1].choices == []
    assert chunks[-1].usage.prompt_tokens_details.audio_tokens == 25
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in client.chat.completions.create(**asked))


def test_a_stream_of_tokens_comes_as_they_do(client, server):
    """The second word is held back until the first one has been read."""
    server[1].scheduler.go.clear()
    chunks = client.chat.completions.create(model="demo", messages=ask("hang on"), stream=True)
    assert next(chunks).choices[0].delta.role == "assistant"
    assert next(chunks).choices[0].delta.content == "It"
    server[1].scheduler.go.set()
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == " is a siren."


def test_many_at_a_time_by_the_asynchronous_client(server):
    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as client:

            async def one(number):
                create, messages = client.chat.completions.create, ask(f"say {number}", CLIP)
                if number % 2:
                    return (await create(model="demo", messages=messages)).choices[0].message.content
                chunks = await create(model="demo", messages=messages, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            return await asyncio.gather(*map(one, range(24)))

    assert asyncio.run(all_of_them()) == list(map(str, range(24)))


def test_a_fault_before_the_first_token_is_plain(client, server):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="logit_bias has the token 5000") as error:
            client.chat.completions.create(model="demo", messages=ask("fail value"), stream=stream)
        assert error.value.param == "logit_bias" and error.value.type == "invalid_request_error"
        with pytest.raises(openai.InternalServerError) as error:
            client.chat.completions.create(model="demo", messages=ask("fail runtime"), stream=stream)
        assert error.value.status_code == 500 and "secret" not in error.value.response.text
        assert error.value.response.json()["error"]["type"] == "server_error"
        with pytest.raises(openai.InternalServerError, match="waited too long") as error:
            client.chat.completions.create(model="demo", messages=ask("fail late"), stream=stream)
        assert error.value.status_code == 503 and error.value.response.headers["retry-after"] == "3"
        assert error.value.type == "overloaded" and error.value.code == "deadline"


def test_a_fault_after_the_headers_is_a_frame(client, server):
    made = frames(server, messages=ask("break runtime"))
    error = {"message": "the server has failed on this request; its log says why", "type": "server_error"}
    assert json.loads(made[-2].removeprefix("data: ")) == {"error": {**error, "param": None, "code": None}}
    assert made[-1] == "data: [DONE]" and "secret" not in "".join(made)
    with pytest.raises(openai.APIError, match="the server has failed"):
        list(client.chat.completions.create(model="demo", messages=ask("break runtime"), stream=True))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("text", ["wait for it", "hang on"])
def test_a_client_that_leaves_cancels_its_request(server, stream, text):
    scheduler = server[1].scheduler
    scheduler.go.clear()
    before = len(scheduler.submitted)
    with pytest.raises(httpx.ReadTimeout):
        with httpx.stream(
            *("POST", f"{server[0]}/v1/chat/completions"),
            json={"model": "demo", "messages": ask(text), "stream": stream},
            timeout=httpx.Timeout(5, read=0.2),
        ) as answer:
            list(answer.iter_bytes())
    until(lambda: scheduler.submitted[before] in scheduler.cancelled and scheduler.running == 0)
    until(lambda: server[1].active == 0)


def test_a_clip_above_the_models_limit(client):
    long = {"type": "input_audio", "input_audio": {"data": text64(wav(31)), "format": "wav"}}
    with pytest.raises(openai.BadRequestError, match="31.00 s long .* hears 30 s .*/v1/audio/transcriptions"):
        client.chat.completions.create(model="demo", messages=ask("What?", long))


def test_all_clips_together_have_a_limit():
    with running(ServerOptions(served_model_name="demo", max_audio_seconds=2)) as server:
        assert post(server, {"model": "demo", "messages": ask("What?", CLIP, CLIP)}).status_code == 200
        answer = post(server, {"model": "demo", "messages": ask("What?", CLIP, CLIP, CLIP)})
        assert answer.status_code == 400 and "longer than 2 s together" in answer.text


def test_a_chat_template_that_refuses():
    import jinja2

    class Strict(Pipe):
        def prepare(self, request):
            raise jinja2.TemplateError("roles must alternate")

    with running(pipe=Strict()) as server:
        answer = post(server, {"model": "demo", "messages": ask("x")})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages"
        assert "roles must alternate" in answer.text


def test_a_client_that_reads_nothing_is_given_up(server, monkeypatch):
    """Its answer is larger than what the sockets of both sides hold."""
    monkeypatch.setattr(exchange, "STALLED", 0.3)
    scheduler, port = server[1].scheduler, int(server[0].rpartition(":")[2])
    before, words = len(scheduler.submitted), " ".join(["x" * 1000] * 400)
    asked = {"model": "demo", "messages": ask(f"say {words}"), "stream": True, "max_tokens": 100_000}
    body = json.dumps(asked | {"logprobs": True, "top_logprobs": 20})
    head = ("POST /v1/chat/completions HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", "", "")
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.sendall(("\r\n".join(head) + body).encode())
        until(lambda: len(scheduler.submitted) > before and server[1].active == 0)
    assert scheduler.submitted[before] in scheduler.cancelled


def test_a_processor_that_computes_does_it_in_the_schedulers_thread(monkeypatch):
    with running() as server:
        calls = []

        def run(function):
            calls.append(function)
            done = Future()
            done.set_result(function())
            return done

        server[1].scheduler.run = run
        for uses_device in (False, True):
            monkeypatch.setattr(server[1].pipe.processor, "uses_device", uses_device)
            assert post(server, {"model": "demo", "messages": ask("What?")}).status_code == 200
        assert len(calls) == 1


def test_a_cancellation_at_the_end_of_a_frame_is_not_lost():
    async def frames():
        yield b"data: 2\n\n"
        await asyncio.Event().wait()  # the next word

    async def leave():
        async def send(message):
            if message.get("body"):
                asyncio.get_running_loop().call_soon(answering.cancel)

        answer = exchange.Stream(b"data: 1\n\n", frames(), "text/event-stream")
        answering = asyncio.ensure_future(answer({}, None, send))
        await asyncio.wait((answering,), timeout=10)
        return answering.cancelled()

    assert asyncio.run(leave())
