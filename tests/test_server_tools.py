"""Tools of /v1/chat/completions, by OpenAI's own client; no model but the bundled one at the end."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import httpx
import jsonschema
import openai
import pytest
from fake_service import Pipe, Processor, running, text64, until
from pydantic import BaseModel

from mindone_audio import pipeline
from mindone_audio.generation.scheduler import Scheduler
from mindone_audio.generation.tool_calls import CallReader
from mindone_audio.inputs.tools import LLAMA, ToolFormat

DOOR = {
    "type": "object",
    "$defs": {"room": {"enum": ["kitchen", "hall"]}},
    "properties": {"room": {"$ref": "#/$defs/room"}, "open": {"type": "boolean"}},
    "required": ["room", "open"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "set_door", "description": "Open or close.", "parameters": DOOR}},
    {"type": "function", "function": {"name": "ring", "strict": True}},
]
LISTED = '[{"name": "set_door", "arguments": {"room": "hall", "open": true}, "id": "abcdefghi"}, ' + (
    '{"name": "ring", "arguments": {}}]'
)
ONE = '{"name": "set_door", "parameters": {"room": "hall", "open": true}}'
ARGUMENTS = {"room": "hall", "open": True}


class Llama(Processor):
    tool_format = LLAMA


def served(processor):
    with running(pipe=Pipe(processor)) as (url, service):
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), service, url


@pytest.fixture(scope="module")
def plain():
    yield from served(Processor())


@pytest.fixture(scope="module")
def llama():
    yield from served(Llama())


def say(text):
    return [{"role": "user", "content": f"say {text}"}]


def create(server, text, **fields):
    return server[0].chat.completions.create(model="demo", messages=say(text), **{"tools": TOOLS, **fields})


def streamed(chunks):
    """What the chunks of one choice join to: content, calls, finish reason."""
    content, calls, reason, pieces = "", [], None, 0
    for chunk in chunks:
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reason = choice.finish_reason or reason
            for part in choice.delta.tool_calls or ():
                if part.index == len(calls):
                    assert part.type == "function" and part.id
                    calls.append([part.id, part.function.name, ""])
                calls[part.index][2] += part.function.arguments
                pieces += bool(part.function.arguments)
    return content, calls, reason, pieces


def test_a_call_has_every_field(llama):
    choice = create(llama, ONE).choices[0]
    assert choice.message.content is None and choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.type == "function" and len(call.id) == 9 and call.id.isalnum()
    assert call.function.name == "set_door" and json.loads(call.function.arguments) == ARGUMENTS
    assert set(choice.message.model_dump(exclude_none=True)) == {"role", "tool_calls"}


def test_the_model_is_told_of_tools_unless_none_may_be_called(llama):
    create(llama, "x")
    told = llama[1].scheduler.submitted[-1].prepared.request.tools
    assert [tool["function"]["name"] for tool in told] == ["set_door", "ring"]
    assert told[1] == {"type": "function", "function": {"name": "ring"}}  # strict is nothing that a model knows
    for fields in ({"tool_choice": "none"}, {"tools": []}):
        assert create(llama, ONE, **fields).choices[0].message.content == ONE
        assert llama[1].scheduler.submitted[-1].prepared.request.tools == ()


@pytest.mark.parametrize(
    "text",
    [
        "It is a siren.",
        '{"name": "other", "parameters": {}}',
        '{"name": "ring", "parameters": 5}',
        '{"name": "ring", "parameters": {"a": NaN}}',
        '{"name": "ring", "parameters": {"a": }}',
        '{"name": "ring", "parameters": {"a": [}}',
        '{"name": "ring", "parameters": {',
        '{"name": ["ring"]}',
        '{"answer": 5} and more',
        "[laughter] what",
        "[]",
        "{}",
        "{",
        '"name"',
        "<|python_tag|>x",
        "<|pyt",
    ],
)
def test_what_is_no_call_is_content(llama, text):
    for answer in (create(llama, text).choices[0], None):
        if answer is not None:
            assert answer.message.content == text and answer.message.tool_calls is None
            assert answer.finish_reason == "stop"
    content, calls, reason, _ = streamed(create(llama, text, stream=True))
    assert (content, calls, reason) == (text, [], "stop")


@pytest.mark.parametrize(
    "text",
    [
        ONE,
        f"<|python_tag|>{ONE}",
        '{"type": "function", "name": "set_door", "parameters": {"open": true, "room": "hall"}}',
        '{"parameters": {"room": "hall", "open": true}, "name": "set_door"}',
        '{"name": "set_door", "arguments": {"room": "hall", "open": true}}',
        '{"type": "function", "function": {"name": "set_door", "parameters": {"room": "hall", "open": true}}}',
    ],
)
def test_ways_to_write_a_call(llama, text):
    (call,) = create(llama, text).choices[0].message.tool_calls
    assert call.function.name == "set_door" and json.loads(call.function.arguments) == ARGUMENTS
    content, calls, reason, _ = streamed(create(llama, text, stream=True))
    assert content == "" and reason == "tool_calls" and json.loads(calls[0][2]) == ARGUMENTS


def test_half_of_a_surrogate_pair_in_a_call_stays_json(llama):
    for key in ("name", "type"):
        text = f'{{"{key}": "function", "name": "ring", "parameters": {{"a": "\\ud800"}}}}'
        (call,) = create(llama, text).choices[0].message.tool_calls
        assert call.function.arguments == '{"a": "\\ud800"}'


def test_several_calls_and_text_after_them(llama):
    two = f'{ONE}; {{"name": "ring", "parameters": {{}}}}'
    message = create(llama, two).choices[0].message
    assert [call.function.name for call in message.tool_calls] == ["set_door", "ring"] and message.content is None
    assert len({call.id for call in message.tool_calls}) == 2
    _, calls, _, _ = streamed(create(llama, two, stream=True))
    assert [name for _, name, _ in calls] == ["set_door", "ring"]
    one = create(llama, two, parallel_tool_calls=False).choices[0].message
    assert [call.function.name for call in one.tool_calls] == ["set_door"] and one.content is None
    after = create(llama, ONE + " done").choices[0]
    assert after.message.content.strip() == "done" and after.finish_reason == "tool_calls"


def test_a_cut_call_has_the_reason_length(llama):
    for stream in (False, True):
        answer = create(llama, ONE, max_tokens=3, stream=stream)
        content, calls, reason, _ = streamed(answer) if stream else _of(answer)
        assert ONE.startswith(content) and content and calls == [] and reason == "length"


def _of(answer):
    choice = answer.choices[0]
    return choice.message.content, choice.message.tool_calls or [], choice.finish_reason, 0


def test_a_constrained_call_comes_in_pieces(plain):
    text = '{"name": "set_door", "arguments": {"room": "hall", "open": true}}'
    for choice in ("required", {"type": "function", "function": {"name": "set_door"}}):
        content, calls, reason, pieces = streamed(create(plain, text, tool_choice=choice, stream=True))
        assert content == "" and reason == "tool_calls" and pieces > 2
        assert calls[0][1] == "set_door" and json.loads(calls[0][2]) == ARGUMENTS
        schema = plain[1].scheduler.submitted[-1].prepared.request.chosen.constraint["json_schema"]
        jsonschema.validate(json.loads(text), schema)
        ring = {"name": "ring", "arguments": {}}
        assert jsonschema.Draft202012Validator(schema).is_valid(ring) == (choice == "required")
        wrong = {"name": "set_door", "arguments": {"room": "attic", "open": True}}
        assert not jsonschema.Draft202012Validator(schema).is_valid(wrong)
    message = create(plain, text, tool_choice="required").choices[0].message
    assert message.tool_calls[0].function.arguments == '{"room": "hall", "open": true}'
    cut = create(plain, text, tool_choice="required", max_tokens=5).choices[0]  # by a model that is not constrained
    assert cut.finish_reason == "length" and cut.message.tool_calls[0].function.arguments == '{"room": "hall",'
    ended = create(plain, text, tool_choice="required", stop=' "open"').choices[0]
    assert ended.finish_reason == "stop" and ended.message.tool_calls[0].function.arguments == '{"room": "hall",'


def test_untrained_families_refuse_to_choose(plain):
    for fields in ({}, {"tool_choice": "auto"}):
        with pytest.raises(openai.BadRequestError, match="not trained to choose: with tool_choice required") as error:
            create(plain, "x", **fields)
        assert error.value.param == "tool_choice"


MARKED = ToolFormat(native=True, listed=True, mark=9)  # calls begin with a token that no text shows, as Voxtral's


def read(text, ids, **how):
    """What a reader tells of a text that comes letter by letter, its token beside each, 9 for none."""
    reader = CallReader(MARKED, ["set_door", "ring"], lambda ids: "".join(map(chr, ids)), **how)
    told = []
    for place, token in enumerate(ids):
        told += reader.add("" if token == 9 else chr(token), [token], place == len(ids) - 1)
    assert text == "".join(chr(token) for token in ids if token != 9)
    joined = []
    for kind, more in told:
        if joined and joined[-1][0] == kind and kind != "call":
            joined[-1][1] += more
        else:
            joined.append([kind, more])
    return joined, len(told)


def test_calls_after_a_token():
    ids = [9, *map(ord, LISTED)]
    door = '{"room": "hall", "open": true}'
    calls = [["call", "set_door"], ["arguments", door], ["call", "ring"], ["arguments", "{}"]]
    assert read(LISTED, ids) == (calls, 4)
    told, pieces = read(LISTED, ids, certain=True)
    assert told == calls and pieces > len(door)
    assert read(LISTED, ids, several=False)[0] == calls[:2]
    assert read(LISTED, ids[1:])[0] == [["text", LISTED]]  # JSON without the token is text
    lead = [*map(ord, "Wait. "), *ids]
    assert read("Wait. " + LISTED, lead)[0] == [["text", "Wait. "], *calls]
    broken = '[{"name": "ring", "arguments": {}}, {"name": "ring"'
    told, _ = read(broken, [9, *map(ord, broken)])
    assert told[:2] == [["call", "ring"], ["arguments", "{}"]] and told[2][1].strip(", ") == '{"name": "ring"'


def test_stop_usage_logprobs_and_n(llama):
    answer = create(llama, ONE, n=2, logprobs=True, top_logprobs=1)
    ids = [choice.message.tool_calls[0].id for choice in answer.choices]
    assert len(set(ids)) == 2 and answer.usage.completion_tokens == 2 * (len(ONE.split()) + 1)
    assert "".join(entry.token for entry in answer.choices[0].logprobs.content) == ONE
    chunks = list(create(llama, ONE, n=2, logprobs=True, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == answer.usage
    shown = [c.logprobs.content for chunk in chunks for c in chunk.choices if c.index == 1 and c.logprobs]
    assert "".join(entry.token for some in shown for entry in some) == ONE
    stopped = create(llama, f"It {ONE}", stop=" {").choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("It", "stop")
    sampled = create(llama, "It", n=2, temperature=1)
    assert [choice.message.content for choice in sampled.choices] == ["It 0", "It 1"]


def test_results_come_to_the_model(llama):
    message = create(llama, ONE).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": [{"type": "text", "text": "done"}]}
    messages = [*say(ONE), message.model_dump(), result, *say("thanks")]
    answer = llama[0].chat.completions.create(model="demo", messages=messages, tools=TOOLS)
    assert answer.choices[0].message.content == "thanks"
    told = llama[1].scheduler.submitted[-1].prepared.request.messages
    assert [m["role"] for m in told] == ["user", "assistant", "tool", "user"]
    assert told[1]["tool_calls"][0]["function"]["name"] == "set_door" and told[2]["content"] == "done"
    assert told[2]["tool_call_id"] == message.tool_calls[0].id
    ids = httpx.post(f"{llama[2]}/v1/chat/completions", json={"model": "demo", "messages": messages}).status_code
    assert ids == 200  # a history may have calls although no tools are given now


class set_door(BaseModel):
    room: str
    open: bool


def test_helpers_of_the_client(llama):
    tools = [openai.pydantic_function_tool(set_door)]
    parsed = llama[0].chat.completions.parse(model="demo", messages=say(ONE), tools=tools)
    assert parsed.choices[0].message.tool_calls[0].function.parsed_arguments == set_door(room="hall", open=True)
    for fields in ({}, {"tool_choice": "required"}):
        with llama[0].chat.completions.stream(model="demo", messages=say(ONE), tools=tools, **fields) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
        assert "tool_calls.function.arguments.done" in kinds
        assert final.choices[0].message.tool_calls[0].function.parsed_arguments == set_door(room="hall", open=True)
        assert final.choices[0].message.content is None and final.choices[0].finish_reason == "tool_calls"


def test_the_asynchronous_client(llama):
    async def both():
        async with openai.AsyncOpenAI(base_url=f"{llama[2]}/v1", api_key="none") as client:
            ask = {"model": "demo", "messages": say(ONE), "tools": TOOLS}
            whole = await client.chat.completions.create(**ask)
            chunks = [chunk async for chunk in await client.chat.completions.create(**ask, stream=True)]
            return whole, chunks

    whole, chunks = asyncio.run(both())
    assert whole.choices[0].message.tool_calls[0].function.name == "set_door"
    assert streamed(chunks)[1][0][1] == "set_door"


@pytest.fixture(scope="module")
def bundled():
    """The bundled model behind a real scheduler."""
    pipe = pipeline()
    scheduler = Scheduler(lambda: pipe.model, max_batch=4)
    scheduler.start()
    with running(loaded=False) as (url, service):
        service.pipe, service.scheduler = pipe, scheduler
        scheduler.go = SimpleNamespace(set=scheduler.stop)  # what `running` calls at its end
        until(lambda: scheduler.ready, 60)
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), service, url


CLIP = Path(__file__).parents[1] / "examples" / "audio" / "spoken_command.wav"


def test_the_bundled_model_calls(bundled):
    audio = {"type": "input_audio", "input_audio": {"data": text64(CLIP.read_bytes()), "format": "wav"}}
    messages = [{"role": "user", "content": [audio, {"type": "text", "text": "What does the person say?"}]}]
    ask = {"model": "demo", "messages": messages, "tools": TOOLS, "max_tokens": 60}
    for choice in ("required", {"type": "function", "function": {"name": "set_door"}}):
        answer = bundled[0].chat.completions.create(**ask, tool_choice=choice)
        (call,) = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.content is None
        if call.function.name == "set_door":
            jsonschema.validate(json.loads(call.function.arguments), DOOR)
        assert answer.usage.prompt_tokens_details.audio_tokens == 28 or answer.usage.prompt_tokens > 28
        content, calls, reason, _ = streamed(bundled[0].chat.completions.create(**ask, tool_choice=choice, stream=True))
        assert (content, reason) == ("", "tool_calls")
        assert [calls[0][1:]] == [[call.function.name, call.function.arguments]]
    result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    after = [*messages, answer.choices[0].message.model_dump(), result]
    words = bundled[0].chat.completions.create(**{**ask, "messages": after}, tool_choice="none")
    assert words.choices[0].message.tool_calls is None and words.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="^.*tools: no answer of at most 3 tokens .* raise max_tokens"):
        bundled[0].chat.completions.create(**{**ask, "max_tokens": 3}, tool_choice="required")
