"""How each family is told of tools, and calls them: against mistral-common and Llama's template, with tiny models."""

import json
import re

import helpers_ichigo
import helpers_ultravox
import helpers_voxtral
import jsonschema
import numpy as np
import pytest
from helpers_processor import byte_tokenizer, tone
from mistral_common.protocol.instruct.request import ChatCompletionRequest

from mindone_audio import VoxtralForConditionalGeneration, pipeline, to_mindspore
from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.generation.constraint import check_constraint
from mindone_audio.generation.matcher import compile_constraint
from mindone_audio.generation.tool_calls import CallReader, call_constraint, parameters_of
from mindone_audio.inputs.tools import LLAMA, PLAIN
from mindone_audio.models import AutoProcessor
from mindone_audio.models.ultravox.model import UltravoxProcessor
from mindone_audio.models.voxtral.model import VoxtralProcessor
from mindone_audio.models.voxtral.tekken import load_tokenizer

ROOMS = {
    "type": "object",
    "$defs": {"room": {"enum": ["kitchen", "hall"]}, "#": {"const": {"$ref": "#/nowhere"}}},
    "properties": {
        "room": {"$ref": "#/$defs/room"},
        "then": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        "like": {"$ref": "#/properties/room"},
        "$ref": {"type": "boolean"},
    },
    "required": ["room"],
}
TOOLS = [
    {"type": "function", "function": {"name": "set_door", "description": "Öffne es.", "parameters": ROOMS}},
    {"type": "function", "function": {"name": "ring"}},
]
STEPS = {"properties": {"to": {"$ref": "#/$defs/n"}}, "required": ["to"], "$defs": {"n": {"type": "integer"}}}
SHORT = [{"type": "function", "function": {"name": "go", "parameters": STEPS}}]
CALLS = [
    {"id": "abc123DEF", "type": "function", "function": {"name": "set_door", "arguments": '{"room": "hall"}'}},
]
RESULT = {"role": "tool", "tool_call_id": "abc123DEF", "content": "done"}
CLIP = tone(0.5)


def conversation(audio=True):
    clip = [{"type": "audio", "audio": CLIP}] if audio else []
    return [
        {"role": "user", "content": [*clip, {"type": "text", "text": "Do it"}]},
        {"role": "assistant", "content": "", "tool_calls": CALLS},
        RESULT,
        {"role": "assistant", "content": "It is open."},
        {"role": "user", "content": "And now?"},
    ]


# As Llama 3.1 and 3.2 have it, shortened: no date, and tools always go into the first message of the user.
LLAMA_TEMPLATE = """\
{{- "<|begin|>" }}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if tools is not none %}
    {%- set first = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {{- "Given the following functions, please respond with a JSON for a function call " }}
    {{- "with its proper arguments that best answers the given prompt.\\n\\n" }}
    {{- 'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.' }}
    {{- "Do not use variables.\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim }}
        {{- '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + "}" + "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" + message.content + "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
# The same without tools.
PLAIN_LLAMA = """\
{{- "<|begin|>" }}{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""


def ultravox(template):
    tokenizer = helpers_ultravox.tokenizer()
    tokenizer.chat_template = template
    return UltravoxProcessor(helpers_ultravox.feature_extractor(), tokenizer)


def test_llamas_format_is_its_templates():
    native, own = ultravox(LLAMA_TEMPLATE), ultravox(PLAIN_LLAMA)
    assert native.tool_format.native and native.tool_format.trained and native.tool_format.key == "parameters"
    assert own.tool_format == LLAMA
    plain = [{**m, "content": "<|audio|>\nDo it"} if m["role"] == "user" else m for m in conversation()[:1]]
    calls = [{**CALLS[0], "function": {"name": "set_door", "arguments": {"room": "hall"}}}]
    plain += [{"role": "assistant", "content": "", "tool_calls": calls}, *conversation()[2:]]
    reference = native.tokenizer.apply_chat_template(plain, tools=TOOLS, tokenize=False, add_generation_prompt=True)
    for processor in (native, own):
        text = processor.apply_chat_template(conversation(), tools=TOOLS, add_generation_prompt=True)
        assert text == reference and text.count("<|audio|>") == 1
        assert "Öffne" in text and "ipython<|end_header_id|>\n\ndone<|eot_id|>" in text
        inputs = processor.apply_chat_template(
            conversation(), tools=TOOLS, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        assert len(inputs["audio_values"]) == 1
        start, count = int(inputs["audio_token_start_idx"][0]), int(inputs["audio_token_len"][0])
        before = processor.decode(inputs["input_ids"][0][:start])
        assert before.endswith("\n\n") and "Do not use variables." in before and count > 0
        without = processor.apply_chat_template(conversation(), add_generation_prompt=True)
        assert "Given the following" not in without and '{"name": "set_door", "parameters"' in without


def test_calls_that_were_made_together_follow_each_other():
    """Llama's template refuses two calls in one message."""
    ring = {"id": "b", "type": "function", "function": {"name": "ring", "arguments": "{}"}}
    messages = conversation()
    messages[1] = {**messages[1], "tool_calls": [*CALLS, ring]}
    messages.insert(2, {"role": "tool", "tool_call_id": "b", "content": "rung"})
    text = ultravox(LLAMA_TEMPLATE).apply_chat_template(messages, tools=TOOLS)
    places = [
        text.index(words) for words in ('"hall"}}<|eot_id|>', "done<|eot_id|>", '"ring", "param', "rung", "open.")
    ]
    assert places == sorted(places)


def test_a_template_decides():
    assert ultravox(helpers_ultravox.TEMPLATE).tool_format == PLAIN
    assert ultravox({"default": PLAIN_LLAMA, "tool_use": LLAMA_TEMPLATE}).tool_format.native
    tokenizer = byte_tokenizer(["<tool_call>", "<|im_end|>"], eos_token="<|im_end|>")
    tokenizer.chat_template = "{% if tools %}<tool_call>{% endif %}"
    form = UltravoxProcessor(helpers_ultravox.feature_extractor(), tokenizer).tool_format
    assert form.native and form.key == "arguments" and form.mark == tokenizer.convert_tokens_to_ids("<tool_call>")
    reader = CallReader(form, ["ring"], tokenizer.decode)
    text = 'Well.\n<tool_call>\n{"name": "ring", "arguments": {}}\n</tool_call>'
    told = []
    for token in tokenizer(text)["input_ids"]:
        told += reader.add(tokenizer.decode([token]), [token])
    told += reader.add("", [], True)
    assert "".join(more for kind, more in told if kind == "text") == "Well.\n"
    assert told[-2:] == [("call", "ring"), ("arguments", "{}")]


def test_ichigo_is_told_in_llamas_words():
    from mindone_audio.models.ichigo.model import IchigoProcessor

    processor = IchigoProcessor.__new__(IchigoProcessor)  # a template needs no WhisperVQ
    processor.tokenizer = helpers_ichigo.llama_tokenizer()
    assert processor.tool_format == LLAMA
    text = processor.apply_chat_template(conversation(), tools=TOOLS, add_generation_prompt=True)
    assert text.count("<|audio|>") == 1 and text.index("Do not use variables.") < text.index("<|audio|>")
    assert '{"name": "set_door", "parameters": {"room": "hall"}}<|eot_id|>' in text


@pytest.fixture(scope="module")
def voxtral(tmp_path_factory):
    return VoxtralProcessor.from_pretrained(
        helpers_voxtral.write_processor(tmp_path_factory.mktemp("voxtral")), local_files_only=True
    )


@pytest.mark.parametrize("end", [1, 3, 5])
def test_voxtral_is_told_as_mistral_common_does(voxtral, end):
    messages = conversation(audio=False)[:end]
    request = ChatCompletionRequest.from_openai(messages=messages, tools=TOOLS)
    encoded = voxtral.tokenizer.tokenizer.encode_chat_completion(request)
    ids = voxtral.apply_chat_template(messages, tools=TOOLS, return_dict=False)[0].tolist()
    assert ids == encoded.tokens
    words = encoded.text
    assert words.count("[AVAILABLE_TOOLS]") == 1 and "[/AVAILABLE_TOOLS][INST]" in words
    if end > 1:
        call = '[TOOL_CALLS][{"name": "set_door", "arguments": {"room": "hall"}, "id": "abc123DEF"}]</s>'
        assert call in words and "[TOOL_RESULTS]abc123DEF[TOOL_CONTENT]done[/TOOL_RESULTS]" in words
    assert words.split("[INST]")[-2].endswith("[/AVAILABLE_TOOLS]")  # before the last turn of the user


def test_voxtrals_clip_is_there_beside_tools(voxtral):
    inputs = voxtral.apply_chat_template(conversation(), tools=TOOLS)
    assert (inputs["input_ids"] == voxtral.audio_token_id).sum() == 375 and len(inputs["input_features"]) == 1


def test_ids_of_other_servers_fit_voxtral(voxtral):
    messages = json.loads(json.dumps(conversation(audio=False)).replace("abc123DEF", "call_0123456789"))
    text = voxtral.apply_chat_template(messages, tools=TOOLS, tokenize=False)
    (one,), (other,) = re.findall(r'"id": "(\w+)"', text), re.findall(r"\[TOOL_RESULTS\](\w+)\[", text)
    assert one == other and re.fullmatch("[A-Za-z0-9]{9}", one)


def test_another_version_of_the_tokenizer_has_no_calls(tmp_path, voxtral):
    other = VoxtralProcessor(voxtral.feature_extractor, load_tokenizer(helpers_voxtral.write_tekken(tmp_path, "v11")))
    assert other.tool_format == PLAIN and voxtral.tool_format.mark == 9
    assert "You can call these functions" in other.apply_chat_template(
        conversation(audio=False), tools=TOOLS, tokenize=False
    )


def test_plain_words():
    processor = AutoProcessor.from_pretrained(demo_checkpoint())
    text = processor.apply_chat_template(conversation(), tools=TOOLS, add_generation_prompt=True)
    assert text.count("<|AUDIO|>") == 1 and text.count("You can call these functions:") == 1
    assert '{"name": "set_door", "arguments": {"room": "hall"}}<|im_end|>' in text
    assert "<|im_start|>user\nset_door returned: done<|im_end|>" in text
    with pytest.raises(ValueError, match="no message is the user's"):
        processor.apply_chat_template([{"role": "system", "content": "a"}], tools=TOOLS)


def test_random_calls_are_valid():
    """Of a model that likes any token as much as any other."""
    tokenizer = AutoProcessor.from_pretrained(demo_checkpoint()).tokenizer
    constraint = check_constraint(call_constraint(PLAIN, TOOLS))
    seen = set()
    for seed in range(30):
        matcher, tokens = compile_constraint(constraint, tokenizer, 832, [787, 785], 120)(), []
        rng = np.random.default_rng(seed)
        while len(tokens) < 120 and not (matcher.ended or (tokens and tokens[-1] in (787, 785))):
            scores = matcher.masked(rng.normal(size=832).astype(np.float32))
            tokens.append(matcher.take(int(scores.argmax()), 120 - len(tokens) - 1))
        call = json.loads(tokenizer.decode(tokens, skip_special_tokens=True))
        tool = next(tool for tool in TOOLS if tool["function"]["name"] == call["name"])
        jsonschema.validate(call["arguments"], parameters_of(tool))
        seen.add(call["name"])
    assert seen == {"set_door", "ring"}
    moved = constraint["json_schema"]["$defs"]["set_door"]["$defs"]["#"]
    assert moved == ROOMS["$defs"]["#"]  # what is a value, and no reference


def read(processor, model, inputs, tools=TOOLS, several=True, most=60):
    """The calls of an answer that a model is made to give."""
    form = processor.tool_format
    settings = {"constraint": call_constraint(form, tools, several), "max_new_tokens": most}
    inputs = {name: to_mindspore(value) for name, value in inputs.items()}
    ids = model.generate(**inputs, tokenizer=processor.tokenizer, do_sample=False, **settings).asnumpy()
    new = ids[0, inputs["input_ids"].shape[1] :].tolist()
    text = processor.decode(new, skip_special_tokens=True)
    readers = [CallReader(form, [t["function"]["name"] for t in tools], processor.decode, certain=c) for c in (0, 1)]
    read = [reader.add(text, new, True) for reader in readers]
    assert read[0] == read[1] and all(reader.whole for reader in readers)
    assert {kind for kind, _ in read[0]} == {"call", "arguments"}, text
    calls = [(name, json.loads(more)) for (_, name), (_, more) in zip(read[0][::2], read[0][1::2])]
    for name, arguments in calls:
        jsonschema.validate(arguments, parameters_of(next(t for t in tools if t["function"]["name"] == name)))
    return calls, new


def test_a_random_voxtral_calls(tmp_path):
    folder = helpers_voxtral.write_checkpoint(tmp_path)
    model = VoxtralForConditionalGeneration.from_pretrained(folder)
    processor = VoxtralProcessor.from_pretrained(folder)
    inputs = processor.apply_chat_template(conversation()[:1], tools=TOOLS)
    calls, new = read(processor, model, inputs)
    assert new[0] == 9 and calls
    assert len(read(processor, model, inputs, several=False)[0]) == 1
    assert read(processor, model, inputs, TOOLS[1:], False, 40)[0] == [("ring", {})]


@pytest.mark.parametrize("template", [LLAMA_TEMPLATE, PLAIN_LLAMA])
def test_a_random_ultravox_calls(tmp_path, template):
    folder = helpers_ultravox.write_checkpoint(tmp_path)
    pipe = pipeline(model=str(folder))
    pipe.processor.tokenizer.chat_template = template
    assert pipe.processor.tool_format.key == "parameters"
    inputs = pipe.processor.conversation_inputs([conversation()[:1]], chat=True, tools=SHORT)
    ((name, arguments),), _ = read(pipe.processor, pipe.model, inputs, SHORT)
    assert name == "go" and isinstance(arguments["to"], int)
