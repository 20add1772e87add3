"""OpenAI's fields for tools, read and checked, and calls in an answer as its clients take them."""

import json
import re
import secrets
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mindone_audio.generation.constraint import check_constraint
from mindone_audio.generation.events import Delta
from mindone_audio.generation.settings import flag
from mindone_audio.generation.tool_calls import CALL, TEXT, CallReader, call_constraint, parameters_of
from mindone_audio.inputs.tools import ToolFormat
from mindone_audio.server.errors import RequestError
from mindone_audio.server.guards import parse_json
from mindone_audio.setting_fields import SettingError

FIELDS = ("tools", "tool_choice", "parallel_tool_calls")
MOST_TOOLS = 128  # OpenAI's limit
MOST_TEXT = 2**20  # characters of all tools
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_FUNCTION = ("name", "description", "parameters", "strict")
_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True)
class ToolUse:
    """What a request wants with tools. tools: all, as the model is told of them. called: those that it may call.
    certain: it must call one. several: it may call more than one."""

    form: ToolFormat
    tools: tuple[dict, ...]
    called: tuple[dict, ...]
    certain: bool
    several: bool

    @property
    def constraint(self) -> dict[str, Any]:
        """Settings of `generate` for it."""
        return call_constraint(self.form, self.called, self.several) if self.certain else {}

    def reader(self, decode: Callable[[list[int]], str]) -> CallReader:
        """What reads one answer."""
        names = [tool["function"]["name"] for tool in self.called]
        return CallReader(self.form, names, decode, certain=self.certain, several=self.several)


def read_tools(fields: Mapping[str, Any], form: ToolFormat, answer_form: Iterable[str]) -> ToolUse | None:
    """What these fields of a body ask for, None where no tool may be called.

    form: the model's. answer_form: fields that give the answer a form, which a call has already. Raises `RequestError`.
    """
    several, given = fields.get("parallel_tool_calls", True), fields.get("tools", [])
    _checked("parallel_tool_calls", flag, several)
    if not isinstance(given, list):
        raise RequestError('tools must be a list of {"type": "function", "function": {…}}', "tools")
    if len(given) > MOST_TOOLS:
        raise RequestError(f"tools has {len(given)} tools: give at most {MOST_TOOLS}", "tools")
    tools = [_tool(tool, f"tools[{place}]") for place, tool in enumerate(given)]
    names = [tool["function"]["name"] for tool in tools]
    for place, name in enumerate(names):
        if name in names[:place]:
            param = f"tools[{place}].function.name"
            raise RequestError(f"{param}: there is another tool of the name {name}: rename one of them", param)
    if len(json.dumps(tools, ensure_ascii=False)) > MOST_TEXT:
        raise RequestError(f"tools have more than {MOST_TEXT} characters: give shorter ones", "tools")
    choice = _choice(fields.get("tool_choice"), names)
    if choice == "none":
        return None
    if answer_form := list(answer_form):
        message = f"{answer_form[0]} and tools were given together: give one of them, or tool_choice none"
        raise RequestError(message, answer_form[0])
    if choice == "auto" and not form.trained:
        raise RequestError(
            "tool_choice auto is not for this model, which was not trained to choose: with tool_choice required, or a "
            "function's name, it calls one; with none it answers in words",
            "tool_choice",
            code="unsupported_value",
        )
    called = tools if choice in ("auto", "required") else [tools[names.index(choice["name"])]]
    one = isinstance(choice, dict) or not several
    return ToolUse(form, tuple(tools), tuple(called), choice != "auto", not one)


def _checked(name: str, check: Callable, *arguments: Any) -> Any:
    """`check(name, *arguments)`, whose error about any setting is the fault of that field."""
    try:
        return check(name, *arguments)
    except SettingError as error:
        raise RequestError(error.worded(lambda _, value=None: name), name) from error
    except ValueError as error:
        raise RequestError(str(error), name) from error


def _tool(tool: Any, name: str) -> dict:
    """A tool without what a model is not told."""
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or tool.get("type", "function") != "function" or not isinstance(function, dict):
        raise RequestError(f'{name} must be {{"type": "function", "function": {{"name": …}}}}', name)
    where = f"{name}.function"
    unknown = [key for key in tool if key not in ("type", "function")]
    if unknown := unknown + [key for key in function if key not in _FUNCTION]:
        raise RequestError(f"{name} has an unknown field {unknown[0][:100]}: leave it out", name)
    function = {key: value for key, value in function.items() if value is not None}
    if not isinstance(function.get("name"), str) or not _NAME.fullmatch(function["name"]):
        message = f"{where}.name must be 1 to 64 letters, digits, underscores and dashes"
        raise RequestError(message, f"{where}.name")
    if not isinstance(function.get("description", ""), str):
        raise RequestError(f"{where}.description must be a string", f"{where}.description")
    _checked(f"{where}.strict", flag, function.pop("strict", False))
    parameters = function.get("parameters", {})
    param = f"{where}.parameters"
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise RequestError(f'{param} must be a schema of an object, {{"type": "object", …}}', param)
    made = {"type": "function", "function": function}
    _checked(param, lambda _, schema: check_constraint({"json_schema": schema}), parameters_of(made))
    return made


def _choice(choice: Any, names: list[str]) -> Any:
    """ "none", "auto", "required", or the function {"name": …} that is to be called."""
    words = ("none", "auto", "required")
    if choice is None:
        return "auto" if names else "none"
    function = choice.get("function") if isinstance(choice, dict) else None
    if isinstance(choice, dict) and choice.get("type") == "function" and set(choice) <= {"type", "function"}:
        if isinstance(function, dict) and set(function) == {"name"} and names:
            if function["name"] in names:
                return function
            known = ", ".join(names[:20])
            raise RequestError(f"tool_choice names no function of tools: it may be one of {known}", "tool_choice")
    if not names and choice != "none":
        raise RequestError("tool_choice goes with tools: give some, or leave it out", "tool_choice")
    if not isinstance(choice, str) or choice not in words:
        shape = '{"type": "function", "function": {"name": …}}'
        raise RequestError(f"tool_choice must be {', '.join(words)} or {shape}", "tool_choice")
    return choice


def read_calls(calls: Any, name: str) -> list[dict]:
    """The calls that a message of the assistant's has made; `RequestError` for wrong ones."""
    if not isinstance(calls, list):
        raise RequestError(f"{name} must be a list of calls", name)
    return [_read_call(call, f"{name}[{place}]") for place, call in enumerate(calls)]


def _read_call(call: Any, name: str) -> dict:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or call.get("type", "function") != "function":
        raise RequestError(f'{name} must be {{"id", "type": "function", "function": {{"name", "arguments"}}}}', name)
    if not isinstance(call.get("id"), str) or not call["id"]:
        raise RequestError(f"{name}.id must be a string", f"{name}.id")
    called, arguments = function.get("name"), function.get("arguments")
    if not isinstance(called, str) or not _NAME.fullmatch(called):
        raise RequestError(f"{name}.function.name must be the name of a function", f"{name}.function.name")
    param = f"{name}.function.arguments"
    if not isinstance(arguments, str):
        raise RequestError(f"{param} must be a string of JSON", param)
    try:
        content = parse_json(arguments.encode() if arguments.strip() else b"{}")
    except ValueError as error:
        raise RequestError(f"{param} must be a JSON object: {str(error).replace('the body', 'it')}", param) from error
    if not isinstance(content, dict):
        raise RequestError(f"{param} must be a JSON object", param)
    function = {"name": called, "arguments": arguments if arguments.strip() else "{}"}
    return {"id": call["id"], "type": "function", "function": function}


def read_call_id(given: Any, earlier: Iterable[str], name: str) -> str:
    """The call whose result a message has, which one of `earlier` must be."""
    if not isinstance(given, str) or not given:
        raise RequestError(f"{name} must be the id of the call that this is the result of", name)
    if given not in set(earlier):
        raise RequestError(f"{name}: no earlier message has a call with the id {given[:100]!r}", name)
    return given


class Choice:
    """One choice of an answer: what deltas add to its message. reader: None where no tool may be called."""

    def __init__(self, reader: CallReader | None):
        self._reader = reader
        self._said: list[str] = []
        self._calls: list[dict] = []

    def add(self, delta: Delta) -> list[dict]:
        """What OpenAI's chunks have as `delta`, for a delta of the model's."""
        if self._reader is None:
            told = [(TEXT, delta.text)] if delta.text else []
        else:
            ids, ended = [token.id for token in delta.tokens], delta.finish_reason is not None
            told = self._reader.add(delta.text, ids, ended)
        return [self._delta(kind, text) for kind, text in told]

    def _delta(self, kind: str, text: str) -> dict:
        if kind == TEXT:
            self._said.append(text)
            return {"content": text}
        if kind == CALL:
            call = {"id": new_id(), "type": "function", "function": {"name": text, "arguments": ""}}
            self._calls.append(call)
            made: dict[str, Any] = {**call, "function": dict(call["function"])}
        else:
            self._calls[-1]["function"]["arguments"] += text
            made = {"function": {"arguments": text}}
        return {"tool_calls": [{"index": len(self._calls) - 1, **made}]}

    def finish_reason(self, reason: str | None) -> str | None:
        """OpenAI's, for the model's."""
        return "tool_calls" if reason == "stop" and self._calls and self._reader.whole else reason

    @property
    def message(self) -> dict:
        """What was added until now."""
        said = "".join(self._said)
        message = {"role": "assistant", "content": said or (None if self._calls else ""), "refusal": None}
        return message | ({"tool_calls": self._calls} if self._calls else {})


def new_id() -> str:
    """An id of a call. Voxtral knows only ids of this form, so that it may be given back as it is."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))
