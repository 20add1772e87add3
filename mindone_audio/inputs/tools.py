"""Functions that a model may call: how a family is told of them, and how calls and results stand in a conversation."""

import json
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class ToolFormat:
    """What a family does with tools.

    trained: whether it has learned to call them, and when not to. native: whether its chat template, or mistral-common,
    writes tools, calls and results; otherwise `written` puts them into the text. key: under what name a call has its
    arguments. words: what stands before the tools, and what after them. result_role: of a message with a result.
    mark: the token that begins a call, None where a call is bare JSON. listed: whether calls are a JSON list.
    """

    trained: bool = True
    native: bool = False
    key: str = "arguments"
    words: tuple[str, str] = ("", "")
    result_role: str = "tool"
    mark: int | None = None
    listed: bool = False


# Of families that were not trained on tools: these words, and a constraint.
PLAIN = ToolFormat(
    trained=False,
    words=("You can call these functions:\n", 'Call one with JSON: {"name": its name, "arguments": {…}}\n\n'),
    result_role="user",
)
# What Llama 3.1 and 3.2 were trained with, as their chat templates write it, the missing space included.
LLAMA = ToolFormat(
    key="parameters",
    words=(
        "Given the following functions, please respond with a JSON for a function call with its proper arguments that "
        'best answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of '
        "argument name and its value}.Do not use variables.\n\n",
        "",
    ),
    result_role="ipython",
)


def template_format(tokenizer: Any, template: Any) -> ToolFormat:
    """The format of a language model that any may be, by its chat template, or by the templates of their names.

    A template that knows tools writes them itself. Qwen's begins a call with the token <tool_call>.
    """
    text = template or ""
    if isinstance(text, dict):  # transformers takes "tool_use" where there are tools
        text = text.get("tool_use") or text.get("default") or ""
    native = "tools" in text
    if native and "<tool_call>" in text:
        mark = tokenizer.convert_tokens_to_ids("<tool_call>")
        if mark is not None and mark != tokenizer.unk_token_id:
            return ToolFormat(native=True, mark=mark)
    if "<|start_header_id|>" in text or "ipython" in text:
        return replace(LLAMA, native=native)
    return PLAIN


def has_tools(messages: list[dict]) -> bool:
    """Whether a conversation has calls or results."""
    return any(message.get("tool_calls") or message["role"] == "tool" for message in messages)


def written(form: ToolFormat, messages: list[dict], tools: list[dict] | None) -> list[dict]:
    """A conversation of clean messages as text alone: the tools before the user's first words, calls as JSON, results
    as messages. Raises `ValueError` for tools without a message of the user."""
    named = {call.get("id"): call["function"]["name"] for m in messages for call in m.get("tool_calls") or ()}
    made = []
    for message in messages:
        content, others = message["content"], {k: v for k, v in message.items() if k not in _TOOL_FIELDS}
        if message["role"] == "tool":
            said = named.get(message.get("tool_call_id"), message.get("name", "It"))
            lead = f"{said} returned: " if form.result_role == "user" else ""
            made.append({"role": form.result_role, "content": lead + text_of(content)})
        elif calls := message.get("tool_calls"):
            texts = [json.dumps(_call(call, form.key), ensure_ascii=False) for call in calls]
            before = [text_of(content)] if content else []
            made.append({**others, "content": "\n".join([*before, "; ".join(texts)])})
        else:
            made.append({**others, "content": content})
    return _told(form, made, tools) if tools else made


def for_template(form: ToolFormat, messages: list[dict]) -> list[dict]:
    """Clean messages as a chat template with tools takes them: arguments as an object, results as one text.

    Calls that were made together follow each other, each with its result, where a family makes one at a time.
    """
    made = []
    for message in messages if form.key == "arguments" else _one_by_one(messages):
        message = {name: value for name, value in message.items() if name != "tool_calls" or value}
        if message["role"] == "tool":
            message["content"] = text_of(message["content"])
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": _call(call, "arguments")["arguments"]}}
                for call in calls
            ]
        made.append(message)
    return made


def _one_by_one(messages: list[dict]) -> list[dict]:
    made, rest = [], list(messages)
    while rest:
        message = rest.pop(0)
        calls = message.get("tool_calls") or []
        if len(calls) < 2:
            made.append(message)
            continue
        count = next((n for n, after in enumerate(rest) if after["role"] != "tool"), len(rest))
        results, rest = rest[:count], rest[count:]
        for call in calls:
            made.append({**message, "tool_calls": [call]})
            made += [result for result in results if result.get("tool_call_id") == call.get("id")]
    return made


_TOOL_FIELDS = ("tool_calls", "tool_call_id")


def _call(call: dict, key: str) -> dict:
    arguments = call["function"].get("arguments") or {}
    return {"name": call["function"]["name"], key: json.loads(arguments) if isinstance(arguments, str) else arguments}


def _told(form: ToolFormat, messages: list[dict], tools: list[dict]) -> list[dict]:
    """The messages with the tools before the first of the user."""
    place = next((place for place, message in enumerate(messages) if message["role"] == "user"), None)
    if place is None:
        raise ValueError("tools go before what the user says, but no message is the user's: give one")
    if form.trained:
        listed = "".join(json.dumps(tool, indent=4, ensure_ascii=False) + "\n\n" for tool in tools)
    else:
        listed = "".join(json.dumps(tool["function"], ensure_ascii=False) + "\n" for tool in tools)
    words, content = form.words[0] + listed + form.words[1], messages[place]["content"]
    content = words + content if isinstance(content, str) else [{"type": "text", "text": words}, *content]
    return [*messages[:place], {**messages[place], "content": content}, *messages[place + 1 :]]


def text_of(content: Any) -> str:
    """The words of a message."""
    return content if isinstance(content, str) else "".join(e["text"] for e in content if e["type"] == "text")
