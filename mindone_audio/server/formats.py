"""The form that a client asks an answer to have: OpenAI's response_format, and vLLM's structured_outputs."""

from typing import Any

from mindone_audio.generation.constraint import KINDS
from mindone_audio.server.errors import RequestError

_TEXTS = ("regex", "choice", "grammar")
FIELDS = ("response_format", "structured_outputs", *_TEXTS)
_OBJECT = {"type": "object"}


def answer_form(fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A setting of `generate` for these fields of a body, if they ask for a form, and the field that it comes from.

    A regex, a choice and a grammar may be fields of their own, stand in structured_outputs, or in response_format with
    their name as its type. Raises `RequestError` for a field of another shape, and for two forms at once.
    """
    found: dict[str, tuple[str, Any]] = {name: (name, fields[name]) for name in _TEXTS if name in fields}
    for name, read in (("response_format", _response_format), ("structured_outputs", _structured_outputs)):
        form = read(fields[name]) if name in fields else None
        found |= {} if form is None else {name: form}
    if len(found) > 1:
        raise RequestError(f"{' and '.join(found)} were given together: give one of them", next(reversed(found)))
    return dict(found.values()), {kind: name for name, (kind, _) in found.items()}


def _response_format(given: Any) -> tuple[str, Any] | None:
    """As setting and value; None for any text."""
    kind = given.get("type") if isinstance(given, dict) else None
    types = ("text", "json_object", "json_schema", *_TEXTS)
    if not isinstance(kind, str) or kind not in types:
        raise RequestError(f"response_format.type must be one of {', '.join(types)}", "response_format")
    if kind == "text":
        return None
    if kind == "json_object":
        return "json_schema", _OBJECT
    form = given.get(kind)
    if kind == "json_schema":
        form = form.get("schema") if isinstance(form, dict) else None
    if form is None:
        shape = '{"name": …, "schema": {…}}' if kind == "json_schema" else "there"
        raise RequestError(f"response_format.{kind} must be {shape}", "response_format")
    return kind, form


def _structured_outputs(given: Any) -> tuple[str, Any]:
    given = {name: form for name, form in given.items() if form is not None} if isinstance(given, dict) else {}
    if given == {"json_object": True}:
        return "json_schema", _OBJECT
    names = {"json": "json_schema", **{kind: kind for kind in KINDS}}
    if len(given) != 1 or set(given) - set(names):
        message = f"structured_outputs must have one of json, json_object, {', '.join(_TEXTS)}"
        raise RequestError(message, "structured_outputs")
    ((name, form),) = given.items()
    return names[name], form
