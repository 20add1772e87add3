"""Answers of a given form: every one follows it and comes to its end in time, and nobody beside it notices."""

import json
import random
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from mindone_audio import cli, pipeline
from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.generation import constraint as forms
from mindone_audio.generation.constraint import check_constraint
from mindone_audio.generation.matcher import compile_constraint
from mindone_audio.generation.settings import settle
from mindone_audio.models import AutoProcessor
from mindone_audio.setting_fields import SettingError, option

ROOT = Path(__file__).parents[1]
ENDS, SIZE, MOST = [787, 785], 832, 256
CLIP = str(ROOT / "examples" / "audio" / "spoken_command.wav")
COMMAND = {
    "type": "object",
    "properties": {"action": {"enum": ["open", "close"]}, "thing": {"enum": ["door", "lights"]}},
    "required": ["action", "thing"],
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoProcessor.from_pretrained(demo_checkpoint()).tokenizer


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


def some_schema(rng: random.Random, depth: int = 0) -> dict:
    """A schema of objects, arrays and alternatives, three deep, with and without limits."""
    simple = ["string", "integer", "number", "boolean", "enum", "const", "pattern"]
    kind = rng.choice(simple + (["object"] * 4 + ["array"] * 3 + ["anyOf"] if depth < 3 else []))
    if depth == 0:
        kind = rng.choice(["object"] * 5 + ["array", "anyOf", "integer"])
    if kind == "object":
        names = rng.sample(["name", "动作", "a b", 'x"y', "count", "items", "é"], rng.randint(1, 4))
        schema = {"type": "object", "properties": {name: some_schema(rng, depth + 1) for name in names}}
        schema["required"] = rng.sample(names, rng.randint(0, len(names)))
        return schema | rng.choice([{}, {"additionalProperties": False}, {"additionalProperties": {"type": "integer"}}])
    if kind == "array":
        least = rng.randint(0, 2)
        schema = {"type": "array", "items": some_schema(rng, depth + 1), "minItems": least}
        return schema | rng.choice([{}, {"maxItems": least + rng.randint(0, 3)}])
    if kind == "anyOf":
        return {"anyOf": [some_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}
    if kind in ("integer", "number"):
        least = rng.randint(-50, 50)
        return {"type": kind} | rng.choice([{}, {"minimum": least}, {"minimum": least, "maximum": least + 100}])
    if kind == "string":
        return {"type": "string"} | rng.choice([{}, {"minLength": 3}, {"minLength": 2, "maxLength": 9}])
    if kind == "enum":
        return {"enum": rng.sample(["red", "打开", 'a "quoted"', 3, None, True, "x\\y"], rng.randint(1, 4))}
    if kind == "const":
        return {"const": rng.choice(["fixed", 7, None, {"a": [1, 2]}])}
    if kind == "pattern":
        patterns = [r"^[A-Z]{2}-\d{3}$", r"^(on|off)$", r"^[a-z]+@[a-z]+\.com$"]
        return {"type": "string", "pattern": rng.choice(patterns)}
    return {"type": kind}


def answer(tokenizer, constraint: dict, rng, most: int = MOST) -> str:
    """Of a model that likes any token as much as any other."""
    matcher = compile_constraint(check_constraint(constraint), tokenizer, SIZE, ENDS, most)()
    tokens = []
    while len(tokens) < most and not (matcher.ended or (tokens and tokens[-1] in ENDS)):
        scores = matcher.masked(rng.normal(size=SIZE).astype(np.float32))
        tokens.append(matcher.take(int(scores.argmax()), most - len(tokens) - 1))
    assert matcher.whole
    return tokenizer.decode([token for token in tokens if token not in ENDS])


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_random_schemas(tokenizer, first):
    for number in range(first, first + 50):
        schema = some_schema(random.Random(number))
        most = MOST if number % 2 else random.Random(number).randint(12, 90)
        try:
            text = answer(tokenizer, {"json_schema": schema}, np.random.default_rng(number), most)
        except SettingError as error:
            assert most < MOST and "no answer of at most" in error.worded(option)
            continue
        jsonschema.validate(json.loads(text), schema)
        assert not re.search(r"\s{2}", re.sub(r'"(\\.|[^"\\])*"', "", text)), text


FORMATS = {
    "type": "object",
    "properties": {
        "at": {"type": "string", "format": "date-time"},
        "size": {"type": "integer", "format": "int32"},
        "format": {"const": {"format": "int32"}},
        "secret": {"type": "string", "format": "password", "maxLength": 4},
    },
    "required": ["at", "size", "format", "secret"],
}
RECURSIVE = {
    "$defs": {
        "node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}
    },
    "$ref": "#/$defs/node",
}
JOINED = {
    "allOf": [
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {"type": "object", "properties": {"b": {"enum": ["关", "开"]}}, "required": ["b"]},
    ]
}
NEEDS_MORE = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a", "b"]}


@pytest.mark.parametrize("schema", [FORMATS, RECURSIVE, JOINED, NEEDS_MORE, {}, True, {"type": ["array", "null"]}])
@pytest.mark.parametrize("most", [90, 200])
def test_schemas_of_other_kinds(tokenizer, schema, most):
    for seed in range(5):
        text = answer(tokenizer, {"json_schema": schema}, np.random.default_rng(seed), most)
        jsonschema.validate(json.loads(text), schema)


def test_listed_properties_are_all(tokenizer):
    for seed in range(20):
        found = json.loads(answer(tokenizer, {"json_schema": COMMAND}, np.random.default_rng(seed)))
        assert set(found) == {"action", "thing"}


@pytest.mark.parametrize(
    "constraint, pattern",
    [
        ({"regex": r"\d{3}-[a-z]+"}, r"\d{3}-[a-z]+"),
        ({"choice": ["yes", 'no, "never"', "é\\"]}, r'yes|no, "never"|é\\'),
        ({"grammar": 'start: "turn " WHERE\nWHERE: "on" | "off"'}, r"turn (on|off)"),
    ],
)
def test_other_forms(tokenizer, constraint, pattern):
    for seed in range(10):
        assert re.fullmatch(pattern, answer(tokenizer, constraint, np.random.default_rng(seed), 40))


def nested(levels: int) -> dict:
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


WRONG_INTEGER = {"type": "integer", "minimum": 5, "maximum": 3}


@pytest.mark.parametrize(
    "settings, said",
    [
        (
            {"json_schema": {"type": "object", "properties": {"a": {"items": {"type": "strin"}}}}},
            "/properties/a/items: ",
        ),
        (
            {"json_schema": {"type": "object", "properties": {"n": WRONG_INTEGER}, "required": ["n"]}},
            "/properties/n: Unsatisfiable",
        ),
        ({"json_schema": {"anyOf": [{"type": "null"}, {"pattern": "(("}]}}, "--json-schema at /anyOf/1: "),
        ({"json_schema": {"type": "string", "format": "nonsense"}}, "--json-schema: Unknown format: nonsense"),
        ({"json_schema": {"type": "strin", "properties": [1], "anyOf": 5}}, "--json-schema: "),
        ({"json_schema": {"enum": []}}, "--json-schema: Unsatisfiable"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json_schema": {"$ref": "https://example.com/x"}}, "https://example.com/x"),
        ({"json_schema": False}, "--json-schema must be a schema"),
        ({"json_schema": "{"}, "--json-schema is not JSON"),
        ({"json_schema": {"const": float("nan")}}, "--json-schema is not JSON"),
        ({"json_schema": {"const": {1, 2}}}, "--json-schema is not JSON"),
        ({"json_schema": nested(1000)}, "--json-schema has more than 64 levels"),
        ({"json_schema": {"enum": ["x" * 100_000]}}, "at most 65536"),
        ({"regex": "(("}, "--regex: "),
        ({"regex": "(?=a)"}, "look-around"),
        ({"regex": ""}, "--regex must be a string"),
        ({"regex": 5}, "--regex must be a string, not 5"),
        ({"choice": []}, "--choice must be a list of texts"),
        ({"choice": ["a", ""]}, "--choice must be a list of texts"),
        ({"grammar": "start: other"}, '--grammar: at 1(8): unknown name: "other"'),
        ({"grammar": "nonsense"}, "--grammar: "),
        ({"regex": "a", "choice": ["b"]}, "--regex and --choice were given together"),
        ({"constraint": {"regex": "a"}, "choice": ["b"]}, "--choice and --constraint were given together"),
        ({"constraint": {"json": {}}}, "--constraint must be a dict with one of json_schema, "),
        ({"regex": "a", "num_beams": 2}, "--num-beams > 1 with --regex is not supported"),
    ],
)
def test_forms_that_cannot_be(settings, said):
    with pytest.raises(SettingError) as refused:
        settle(None, settings)
    message = refused.value.worded(option)
    assert said in message and "\n" not in message and len(message) < 500


@pytest.mark.parametrize(
    "constraint",
    [
        {"json_schema": {"type": "object", "properties": {"c": {"$ref": "#"}}, "required": ["c"]}},
        {"json_schema": {"$ref": "#"}},
        {"json_schema": {"type": "string", "minLength": 100_000}},
        {"regex": r"[^\x00-\U0010FFFF]"},
    ],
)
def test_no_answer_is_short_enough(tokenizer, constraint):
    with pytest.raises(SettingError, match="no answer of at most 20 tokens"):
        compile_constraint(check_constraint(constraint), tokenizer, SIZE, ENDS, 20)


PATTERNS = [
    *(
        r"^\S+@\S+\.\S+$",
        r"^\d+-\d+$",
        r"^(\w+ )+end$",
        r"^.*a.{5}$",
        r"^[^:]+:[^:]+$",
        r"^v\d+\.\d+\.\d+$",
        r"abc",
        r"\d",
    ),
    *(r"^(a|bb|c{3})+x[yz]{2}$", r"^(ab{2}c|x[yz]{3}w)$", r"^[{}]+$", r"^\d+,\d+(,\d+)*$", r"^\[\d+\]$", r'^"[a-z]+"$'),
    *(
        r"^\\[a-z]+\\$",
        r"^(foo|bar)?-(baz|qux)$",
        r"^[一-鿿]{2,4}$",
        r"^[^\x00-\x7f]{3}$",
        r"^.{20,}z$",
        r"^.*foo.*bar.*$",
    ),
    *(
        r"^[^a]*a[^a]*a[^a]*$",
        r"^(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)$",
        r"^(?i:yes|no)!$",
    ),
    *(r"^(?P<h>[01]\d|2[0-3]):[0-5]\d$", r"^[A-F0-9]{8}-[A-F0-9]{4}$", r"^https?://[^\s/]+\.[a-z]{2,}(/\S*)?$"),
]


@pytest.mark.parametrize("most", [64, 160])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_come_to_their_end(tokenizer, pattern, most):
    text = {"type": "string", "pattern": pattern}
    pair = {"type": "object", "properties": {"a": text, "n": {"type": "integer"}, "b": text}, "required": ["a", "b"]}
    for schema in (text, {"type": "array", "items": text, "minItems": 1}, pair):
        found = json.loads(answer(tokenizer, {"json_schema": schema}, np.random.default_rng(most), most))
        jsonschema.validate(found, schema)
    answer(tokenizer, {"regex": pattern.strip("^$")}, np.random.default_rng(most), most)  # its classes are Unicode's


@pytest.mark.parametrize(
    "pattern", [r"^\p{L}+ \p{Lu}\p{Ll}+$", r"^[[:alpha:]]+=\pN$", r"^(?<n>a|b)+-\p{Han}$", "(?i)^yes!$"]
)
def test_patterns_that_python_writes_otherwise(tokenizer, pattern):
    for seed in range(5):
        schema = {"type": "array", "items": {"type": "string", "pattern": pattern}, "minItems": 1}
        json.loads(answer(tokenizer, {"json_schema": schema}, np.random.default_rng(seed), 48))


@pytest.mark.parametrize(
    "name", ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"]
)
def test_formats_come_to_their_end(tokenizer, name):
    schema = {"type": "object", "properties": {"x": {"type": "string", "format": name}}, "required": ["x"]}
    for seed in range(5):
        json.loads(answer(tokenizer, {"json_schema": schema}, np.random.default_rng(seed), 90))


@pytest.mark.parametrize(
    "grammar",
    [
        'start: WORD "=" NUM ";"\nWORD: /[a-z]+/\nNUM: /[0-9]{3,5}/',
        'start: expr\nexpr: NUM | "(" expr ")" | expr "+" expr\nNUM: /\\d+/',
        'start: item ("," item){2,4} "."\nitem: /[a-z]{3}\\d/',
        'start: "call " /[a-z_]+/ "(" %json {"type": "string", "pattern": "^\\\\d+-\\\\d+$"} ")"',
        'start: "<" TAG ">" /[^<]+/ "</" TAG ">"\nTAG: /[a-z]+/',
        'start: stmt+\nstmt: /[a-z]+/ ":" /[^;]+/ ";"',
    ],
)
def test_grammars_come_to_their_end(tokenizer, grammar):
    for seed in range(6):
        answer(tokenizer, {"grammar": grammar}, np.random.default_rng(seed), 40 + 20 * seed)


def test_a_pattern_whose_end_is_not_found_is_followed_all_the_same(tokenizer, monkeypatch):
    monkeypatch.setattr("mindone_audio.generation.matcher.ends_of_constraint", lambda *form: ([], [], False))
    matcher = compile_constraint({"regex": r".*a.{5}"}, tokenizer, SIZE, ENDS, 16)()
    for taken in range(16):
        token = int(matcher.look()[-1])
        assert matcher.take(token, 15 - taken) == token


def test_without_llguidance(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    forms._error.cache_clear()
    with pytest.raises(SettingError, match=re.escape('pip install "mindone_audio[serve]"')):
        settle(None, {"choice": ["a", "b"]})
    forms._error.cache_clear()


def test_the_pipeline_follows_a_schema(pipe):
    for settings in ({}, {"do_sample": True, "seed": 3}):
        answer = pipe(CLIP, text="What is said?", json_schema=COMMAND, max_new_tokens=32, **settings)
        jsonschema.validate(json.loads(answer["generated_text"]), COMMAND)
    assert json.loads(pipe(CLIP, text="What is said?", json_schema=json.dumps(COMMAND))["generated_text"])


def test_a_stream_and_a_conversation_follow_it_too(pipe):
    messages = [{"role": "user", "content": [{"type": "audio", "audio": CLIP}, {"type": "text", "text": "Go"}]}]
    text = "".join(pipe(messages, stream=True, json_schema=COMMAND))
    assert text == pipe(messages, json_schema=COMMAND)["generated_text"]
    jsonschema.validate(json.loads(text), COMMAND)


def test_a_stop_string_ends_it_sooner(pipe):
    answer = pipe(CLIP, text="What is said?", choice=["open the door"], stop_sequence=" the")
    assert answer["generated_text"] == "open"


def test_neighbours_keep_their_text(pipe):
    """An input with a form among others without one, in one batch."""
    plain = {"audio": CLIP, "text": "What is said?"}
    formed = {"inputs": plain, "parameters": {"choice": ["the lights", "the radio"], "max_new_tokens": 20}}
    alone = [pipe(item)["generated_text"] for item in (plain, formed)]
    mixed = pipe([plain, formed, plain, formed])["generated_text"]
    assert mixed == alone * 2 and alone[1] in ("the lights", "the radio")


def test_generate_takes_a_constraint(pipe):
    processor, model = pipe.processor, pipe.model
    inputs = processor(text=processor.placeholder + "What?", audio=[np.zeros(16000, np.float32)])
    settings = {"constraint": {"regex": "[0-9]{4}"}, "max_new_tokens": 8}
    tokens = model.generate(**inputs, tokenizer=processor.tokenizer, **settings).asnumpy()
    new = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :])
    assert re.fullmatch("[0-9]{4}", new[0])
    with pytest.raises(ValueError, match="needs the tokenizer"):
        model.generate(**inputs, **settings)
    with pytest.raises(ValueError, match=r"needs a fast tokenizer or mistral-common's, not a \w*Path"):
        model.generate(**inputs, **settings, tokenizer=ROOT)


def test_a_wrong_form_costs_one_input(pipe):
    wrong = {"inputs": {"audio": CLIP, "text": "?"}, "parameters": {"regex": "(("}}
    right = {"audio": CLIP, "text": "?"}
    answers = pipe([wrong, right], on_error="return")
    assert answers[0]["error"].startswith("regex: ") and answers[1]["generated_text"]


def test_the_example_of_voice_commands(monkeypatch, capsys):
    """Every clip: calls are valid, and two commands right; where nobody speaks there is none."""
    example = ROOT / "examples" / "voice_commands.py"
    monkeypatch.setattr("sys.argv", [str(example), *map(str, sorted((ROOT / "examples" / "audio").iterdir()))])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(example), run_name="__main__")
    lines = {line["clip"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert end.value.code == 0 and len(lines) == 8
    calls = runpy.run_path(str(example))["CALLS"]
    for line in lines.values():
        if line["heard"]:
            jsonschema.validate(line["call"], calls)
        else:
            assert line["call"] is None
    assert lines["spoken_command.wav"]["call"] == {"action": "open", "device": "door"}
    assert lines["speech_in_noise.wav"]["call"] == {"action": "turn off", "device": "radio"}
    monkeypatch.setattr("sys.argv", [str(example), "nothing.wav"])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().err.startswith("error: nothing.wav: ")


def run(*arguments: str) -> int:
    try:
        return cli.main(list(arguments))
    except SystemExit as end:
        return end.code


def test_the_command_line(tmp_path, capsys):
    schema, wrong = tmp_path / "schema.json", tmp_path / "wrong.json"
    schema.write_text(json.dumps(COMMAND))
    wrong.write_text(json.dumps({"type": "object", "properties": {"n": WRONG_INTEGER}, "required": ["n"]}))
    assert run("ask", CLIP, "What is said?", "--json-schema", str(schema)) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out), COMMAND)
    assert run("ask", CLIP, "What is said?", "--choice", "the door", "the lights") == 0
    assert capsys.readouterr().out in ("the door\n", "the lights\n")
    grammar = tmp_path / "grammar.lark"
    grammar.write_text('start: "a" | "b"')
    assert run("batch", CLIP, "--prompt", "?", "--grammar", str(grammar), "--out", str(tmp_path / "out")) == 0
    (line,) = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["generated_text"] in ("a", "b")
    capsys.readouterr()
    for arguments, said in (
        (["--json-schema", str(wrong)], "error: --json-schema at /properties/n: "),
        (
            ["--json-schema", str(tmp_path / "none.json")],
            f"error: --json-schema {tmp_path / 'none.json'} cannot be read",
        ),
        (["--json-schema", CLIP], f"error: --json-schema {CLIP} cannot be read: it is not UTF-8"),
        (["--regex", "(("], "error: --regex: "),
        (["--regex", "a", "--choice", "b"], "error: argument --choice: not allowed with argument --regex"),
    ):
        assert run("ask", CLIP, "?", *arguments) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(said) and captured.err.count("\n") == 1 and not captured.out


def test_the_benchmark():
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "constrained", "--rounds", "1", "--tokens", "16"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.count("at most 1.1") == 2
