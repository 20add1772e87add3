"""The form that an answer must have: a JSON schema, a regular expression, a choice or a grammar, checked.

llguidance knows what they mean: https://github.com/guidance-ai/llguidance. `matcher` uses it while tokens are chosen.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from mindone_audio.setting_fields import SettingError, refusal

KINDS = ("json_schema", "regex", "choice", "grammar")
MOST_CHARACTERS = 2**16  # of a constraint
MOST_LEVELS = 64  # of a schema
INSTALL = 'pip install "mindone_audio[serve]"'
# One space at most: a model that is free to write white space may write nothing else.
_JSON = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_CHILDREN, _LISTS = ("properties", "patternProperties", "$defs", "definitions"), ("anyOf", "oneOf", "allOf")
_SINGLE = ("items", "additionalProperties", "prefixItems", "not")
# Formats of JSON Schema, OpenAPI and pydantic that only say what a value is for: annotations, as the standard has it.
_ANNOTATIONS = frozenset(
    "int32 int64 uint32 uint64 float double decimal password binary byte base64url json-string path file-path "
    "directory-path multi-host-uri idn-email idn-hostname uri-reference iri iri-reference uri-template json-pointer "
    "relative-json-pointer regex ipvanyaddress ipvanyinterface ipvanynetwork ipv4interface ipv4network ipv6interface "
    "ipv6network".split()
)
_MOST_PLACES = 500  # parts of a schema that are looked at to find the wrong one


def check_constraint(value: Any) -> dict[str, Any] | None:
    """A constraint, {kind: value} with one of `KINDS`, as `compile_constraint` takes it; None stays None.

    json_schema: a schema, or its JSON; regex: of the whole answer; choice: the possible answers; grammar: in Lark's
    notation, with a rule `start`. Raises `SettingError` for one that cannot be, which names the place.
    """
    if value is None:
        return None
    given = {kind: each for kind, each in value.items() if each is not None} if isinstance(value, Mapping) else {}
    if len(given) != 1 or set(given) - set(KINDS):
        raise refusal("constraint", f" must be a dict with one of {', '.join(KINDS)}, not {value!r:.80}")
    ((kind, form),) = given.items()
    form = _CHECKS[kind](form)
    text = form if isinstance(form, str) else json.dumps(form, ensure_ascii=False)
    if len(text) > MOST_CHARACTERS:
        raise refusal(kind, f" has {len(text)} characters: give at most {MOST_CHARACTERS}")
    if error := _error(kind, text):
        place, error = _place(form, error) if kind == "json_schema" else ("", error)
        raise refusal(kind, f"{' at ' + place if place else ''}: {one_line(error)}")
    return {kind: form}


def _schema(form: Any) -> Any:
    if isinstance(form, str):
        try:
            form = json.loads(form)
        except (json.JSONDecodeError, RecursionError) as error:
            raise refusal("json_schema", f" is not JSON: {error}") from error
    if form is True:
        form = {}
    if not isinstance(form, Mapping):
        raise refusal("json_schema", f' must be a schema such as {{"type": "object"}}, not {form!r:.80}')
    try:
        if _levels(form) > MOST_LEVELS:
            raise refusal("json_schema", f" has more than {MOST_LEVELS} levels: give a flatter one")
        return json.loads(json.dumps(form, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise error if isinstance(error, SettingError) else refusal("json_schema", f" is not JSON: {error}") from error


def _levels(value: Any) -> int:
    levels, rest = 0, [value]
    while rest and levels <= MOST_LEVELS:
        levels += 1
        inner = [list(each.values()) if isinstance(each, Mapping) else each for each in rest]
        rest = [each for some in inner if isinstance(some, (list, tuple)) for each in some]
    return levels


def _choices(form: Any) -> list[str]:
    texts = list(form) if isinstance(form, (list, tuple)) else [form]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise refusal("choice", f" must be a list of texts, not {form!r:.80}")
    return texts


def _text(kind: str, form: Any) -> str:
    if not isinstance(form, str) or not form.strip():
        raise refusal(kind, f" must be a string, not {form!r:.80}")
    return form


_CHECKS: dict[str, Callable] = {
    "json_schema": _schema,
    "regex": functools.partial(_text, "regex"),
    "choice": _choices,
    "grammar": functools.partial(_text, "grammar"),
}


def llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise refusal("constraint", f" (json_schema, regex, choice or grammar) needs llguidance: {INSTALL}") from error
    return llguidance


def grammar_of(kind: str, text: str) -> str:
    """The grammar of a constraint in llguidance's own form."""
    matcher = llguidance().LLMatcher
    if kind == "json_schema":
        return matcher.grammar_from_json_schema(json.dumps(closed(json.loads(text))), overrides=_JSON)
    if kind == "regex":
        return matcher.grammar_from_regex(text)
    if kind == "choice":
        text = "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in json.loads(text))
    return matcher.grammar_from_lark(text)


def lark_json(schema: dict) -> str:
    """The JSON of a schema, as a part of a grammar."""
    return f"%json {json.dumps(closed(schema) | {'x-guidance': _JSON}, ensure_ascii=False)}"


def closed(schema: dict) -> dict:
    """The schema without properties that it does not name, where it says nothing about them.

    They are allowed by JSON Schema, but nobody who lists properties expects more of them. A schema that joins others
    stays as it is: each of its parts must bear the properties of the others.
    """
    schema = _without_annotations(schema)
    if '"allOf"' in json.dumps(schema):
        return schema

    def close(part: Any, alone: bool = True) -> Any:
        if isinstance(part, list):
            return [close(each, alone) for each in part]
        if not isinstance(part, dict):
            return part
        names = part.get("properties")
        inner = alone and not (isinstance(names, dict) and any(name in part for name in _LISTS))
        made = {
            key: {name: close(each) for name, each in value.items()}
            if key in _CHILDREN and isinstance(value, dict)
            else close(value, inner)
            if key in (*_LISTS, *_SINGLE)
            else value
            for key, value in part.items()
        }
        if isinstance(names, dict) and inner and not _says_more(part):
            made["additionalProperties"] = False
        return made

    return close(schema)


def _without_annotations(part: Any) -> Any:
    """The schema without formats that llguidance does not know, but others write, as OpenAPI and pydantic."""
    if isinstance(part, list):
        return [_without_annotations(each) for each in part]
    if not isinstance(part, dict):
        return part
    return {
        key: value if key in ("const", "enum", "default", "examples") else _without_annotations(value)
        for key, value in part.items()
        if not (key == "format" and isinstance(value, str) and value in _ANNOTATIONS)
    }


def _says_more(part: dict) -> bool:
    """Whether an object may have, or needs, properties that `properties` does not name."""
    names, required = part["properties"], part.get("required")
    if any(name in part for name in ("additionalProperties", "patternProperties", "$ref", *_LISTS)):
        return True
    if not isinstance(required, list) or not set(map(str, required)) <= set(names):
        return required is not None
    return isinstance(part.get("minProperties"), int) and part["minProperties"] > len(names)


@functools.lru_cache(256)
def _error(kind: str, text: str) -> str:
    """What is wrong with a constraint, or nothing."""
    try:
        return llguidance().LLMatcher.validate_grammar(grammar_of(kind, text), None)
    except ValueError as error:
        if isinstance(error, SettingError):
            raise
        return str(error)


def one_line(error: str) -> str:
    """llguidance's message without the drawing under it."""
    lines = [line.strip() for line in error.splitlines() if line.strip(" ^|")]
    return ": ".join(line.removeprefix("error: ").rstrip(":") for line in lines[:3])[:300]


def _place(schema: dict, error: str) -> tuple[str, str]:
    """The JSON pointer of the innermost part of a schema that is wrong by itself, empty for the schema as a whole, and
    what is wrong with it."""
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    looked, place, here, found = 0, "", schema, True
    while found and looked < _MOST_PLACES:
        found = False
        for path, part in _parts(here):
            looked += 1
            wrong = _error("json_schema", json.dumps({**shared, **part})) if part else ""
            if wrong and (wrong == error or "required property" in error):
                place, here, error, found = f"{place}/{path}", part, wrong, True
                break
    return place, error


def _parts(schema: dict) -> list[tuple[str, dict]]:
    """The schemas within a schema, with their places."""
    named = [(name, schema[name]) for name in _CHILDREN if isinstance(schema.get(name), dict)]
    parts = [(f"{name}/{key}", part) for name, some in named for key, part in some.items()]
    for name in (*_LISTS, *_SINGLE):
        some = schema.get(name)
        parts += [(f"{name}/{i}", part) for i, part in enumerate(some)] if isinstance(some, list) else [(name, some)]
    return [(path, part) for path, part in parts if isinstance(part, dict)]
