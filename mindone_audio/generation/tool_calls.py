"""Calls of tools in an answer: the form that they must have, and what is read of them while tokens come."""

import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from mindone_audio.generation.constraint import closed, lark_json
from mindone_audio.inputs.tools import ToolFormat

NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
_ID = {"type": "string", "pattern": "^[a-zA-Z0-9]{9}$"}  # mistral-common writes one into each call of a conversation
_NAMED = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_VALUES = ("const", "enum", "default", "examples")


def parameters_of(tool: dict) -> dict:
    """The schema of a tool's arguments, which are an object."""
    given = {k: v for k, v in (tool["function"].get("parameters") or {}).items() if k not in ("$schema", "$id")}
    return {"type": "object", **given} if given else NO_PARAMETERS


def call_constraint(form: ToolFormat, tools: Iterable[dict], several: bool = False) -> dict[str, Any]:
    """A constraint of `generate` whose answers call one of the tools, with arguments that its schema allows.

    several: it may call more of them, where calls are a list. References within a schema keep their meaning.
    """
    calls, schemas = [], {}
    for tool in tools:
        name = tool["function"]["name"]
        schemas[name] = _moved(closed(parameters_of(tool)), f"#/$defs/{name}")
        properties = {"name": {"const": name}, form.key: {"$ref": f"#/$defs/{name}"}}
        required = list(properties)
        if form.listed:
            properties["id"] = _ID
        calls.append({"type": "object", "properties": properties, "required": required, "additionalProperties": False})
    one = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if not form.listed:
        return {"json_schema": {**one, "$defs": schemas}}
    most = {} if several else {"maxItems": 1}
    schema = {"type": "array", "items": one, "minItems": 1, **most, "$defs": schemas}
    return {"grammar": f"start: <[{form.mark}]> calls\ncalls: {lark_json(schema)}"}


def _moved(part: Any, to: str) -> Any:
    """A schema whose root is at another place now."""
    if isinstance(part, list):
        return [_moved(each, to) for each in part]
    if not isinstance(part, dict):
        return part
    made = {}
    for key, value in part.items():
        if key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/")):
            value = to + value[1:]
        elif key in _NAMED and isinstance(value, dict):
            value = {name: _moved(each, to) for name, each in value.items()}
        elif key not in _VALUES:
            value = _moved(value, to)
        made[key] = value
    return made


# What stands between calls: a list's signs, Llama's semicolon, and words that are tokens of some models.
_WORDS = ("<tool_call>", "</tool_call>", "<|python_tag|>")
_BETWEEN = re.compile(rf"(?:[\s,;\[\]]|{'|'.join(map(re.escape, _WORDS))})*")
_HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_TAIL = re.compile(r'\s*(?:,\s*"id"\s*:\s*"[^"]*"\s*)?\}')
_OTHER = re.compile(r'\{\s*(?:"(?!(?:name|type|function|parameters|arguments|id)")[^"\\]*"|[^\s"])')  # no call
TEXT, CALL, ARGUMENTS = "text", "call", "arguments"


class CallReader:
    """The deltas of one answer to what they are: (TEXT, more of it), (CALL, the name) and (ARGUMENTS, more JSON).

    names: of the tools. decode: from token ids to text. certain: the answer follows `call_constraint`, so arguments
    are told as they come. Otherwise a call is told when it is whole, because until then it may turn out to be text.
    several: more than the first call is read. calls: how many were told; whole: whether the last of them has ended.
    """

    def __init__(
        self,
        form: ToolFormat,
        names: Iterable[str],
        decode: Callable[[list[int]], str],
        *,
        certain: bool = False,
        several: bool = True,
    ):
        self.form, self.names, self.certain, self.several = form, set(names), certain, several
        self.calls, self.whole = 0, True
        self._decode, self._ids, self._text = decode, [], ""
        self._begin: float | None = 0 if certain else None  # place of the first call; None: not known yet
        self._at = 0  # up to where the text was told, or read
        self._value: _Value | None = None  # what is read there

    def add(self, text: str, ids: Iterable[int] = (), ended: bool = False) -> list[tuple[str, str]]:
        """What a delta's text and tokens add. ended: it was the last one."""
        self._text += text
        if self._begin is None:
            self._look(list(ids))
        told: list[tuple[str, str]] = []
        if self._begin is not None:
            self._tell_text(told, min(self._begin, len(self._text)))
        elif self.form.mark is not None:
            self._tell_text(told, len(self._text))
        if self._begin is not None and self._begin <= self._at:
            (self._read_certain if self.certain else self._read)(told)
        if ended and not (self.calls and (self.certain or not self.several or self._next() == len(self._text))):
            self._tell_text(told, len(self._text))
        return told

    def _look(self, ids: list[int]) -> None:
        """Find where calls begin: at the mark, or at the beginning of a text that is JSON."""
        mark, start = self.form.mark, self._next()
        if mark is None and start is not None and start < len(self._text):
            self._begin = 0 if self._text[start] == "{" else math.inf
        elif mark is not None and mark in ids:
            before = self._decode([*self._ids, *ids[: ids.index(mark)]])
            self._begin = max(self._at, len(before.lstrip()))  # as a text stream strips it
        self._ids += ids

    def _next(self) -> int | None:
        """The place of what is no sign between calls; None where what is there may become one."""
        start = _BETWEEN.match(self._text, self._at).end()
        rest = self._text[start : start + len(max(_WORDS, key=len))]
        return None if rest and any(word.startswith(rest) for word in _WORDS) else start

    def _tell_text(self, told: list, end: float) -> None:
        if text := self._text[self._at : int(end)]:
            told.append((TEXT, text))
            self._at += len(text)

    def _read(self, told: list) -> None:
        """Tell the calls that are whole; what cannot be one is text, and so is all after it."""
        while (self.several or not self.calls) and (start := self._next()) not in (None, len(self._text)):
            self._value = self._value or _Value(start)
            end = self._value.end(self._text)
            if end is None and self._text[start] == "{" and not _OTHER.match(self._text, start):
                return  # it may become one
            call = self._call(self._text[start:end]) if end is not None and self._text[start] == "{" else None
            if call is None:
                self._begin = math.inf
                self._tell_text(told, len(self._text))
                return
            told += [(CALL, call[0]), (ARGUMENTS, call[1])]
            self.calls, self._at, self._value = self.calls + 1, end, None

    def _call(self, text: str) -> tuple[str, str] | None:
        """Name and arguments of a call that is written there; None for anything else."""
        try:
            call = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return None
        call = call["function"] if isinstance(call.get("function"), dict) else call
        arguments = next((call[key] for key in ("arguments", "parameters") if key in call), {})
        if not isinstance(call.get("name"), str) or call["name"] not in self.names or not isinstance(arguments, dict):
            return None
        if head := _HEAD.match(text):  # as it is written
            return call["name"], text[head.end() : _Value(head.end()).end(text)]
        return call["name"], json.dumps(arguments)

    def _read_certain(self, told: list) -> None:
        """Tell calls as they come."""
        while True:
            if self._value is None:
                start = _BETWEEN.match(self._text, self._at).end()
                head = _HEAD.match(self._text, start) if self.several or not self.calls else None
                if head is None:
                    return
                told.append((CALL, json.loads(head[1])))
                self.calls, self.whole, self._at, self._value = self.calls + 1, False, head.end(), _Value(head.end())
            if not self.whole:
                end = self._value.end(self._text)
                if more := self._text[self._at : end]:
                    told.append((ARGUMENTS, more))
                    self._at += len(more)
                self.whole = end is not None
            tail = _TAIL.match(self._text, self._at) if self.whole else None
            if tail is None:
                return
            self._at, self._value = tail.end(), None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


class _Value:
    """Finds the end of a JSON object or list that begins at a place of a text which grows."""

    def __init__(self, start: int):
        self._at, self._depth, self._in_string, self._escaped = start, 0, False, False
        self._end: int | None = None

    def end(self, text: str) -> int | None:
        """The place after its last bracket, None where that has not come."""
        while self._end is None and self._at < len(text):
            sign = text[self._at]
            self._at += 1
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif sign == "\\":
                    self._escaped = True
                elif sign == '"':
                    self._in_string = False
            elif sign == '"':
                self._in_string = True
            elif sign in "{[":
                self._depth += 1
            elif sign in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self._end = self._at
        return self._end
