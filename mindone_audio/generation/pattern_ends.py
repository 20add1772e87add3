"""How a text that follows a regular expression may come to its end, from wherever it is in it."""

import itertools
import json
import re
import string
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    try:
        from re import _parser  # of Python 3.11 and later
    except ImportError:
        import sre_parse as _parser

_MOST = 512  # ends of an expression
_LONGEST = 4096  # characters of an end
_CHARACTERS = "a0A_ -.@:/#" + string.printable + "é一あ"
_NAMING = ("LITERAL", "RANGE")
# What Rust's expressions, which llguidance reads, have and Python's have not; of a class, one of its characters.
_SPELLINGS = {
    r"\\p\{?(Lu|Lt)\}?": "A",
    r"\\p\{?L\w?\}?": "a",
    r"\\p\{?N\w?\}?": "0",
    r"\\p\{?P\w?\}?": r"\\.",
    r"\\p\{?Z\w?\}?": " ",
    r"\\p\{(?:\w+=)?Han\}": "一",
    r"\[:(lower|alpha|alnum|word|xdigit|ascii|print|graph):\]": "a",
    r"\[:upper:\]": "A",
    r"\[:digit:\]": "0",
    r"\[:(space|blank):\]": " ",
    r"\[:punct:\]": ".",
    r"\(\?<(?![=!])": "(?P<",
    r"\(\?i\)": "",
    r"\\z": r"\\Z",
}
_FORMATS = {"email": r"\w@\w\.\w\w"}  # formats of JSON Schema of which no end would be found otherwise
_CATEGORIES = {"digit": str.isdecimal, "space": str.isspace, "word": lambda char: char.isalnum() or char == "_"}


def ends_of(pattern: str) -> list[str]:
    """The shortest ends from each place in an expression, the shortest first; none for one that Python cannot read.

    As the places are the states of the expression's automaton, one of them ends any text that begins as it asks.
    """
    for rust, python in _SPELLINGS.items():
        pattern = re.sub(rust, python, pattern)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            tree = _parser.parse(pattern)
        ends = {_shortest(list(tree)): None}
        for end in _ends(list(tree)):
            if len(end) <= _LONGEST:
                ends[end] = None
            if len(ends) == _MOST:
                break
    except (ValueError, OverflowError, RecursionError, _parser.error):
        return []
    return sorted(ends, key=_order)


def _order(end: str) -> tuple[int, str]:
    return len(end), end


def _ends(items: list[Any]) -> Iterator[str]:
    """From each place of a sequence to its end, the places near the end first."""
    after = ""
    yield after
    for item in reversed(items):
        for end in _inside(item):
            yield end + after
        after = _shortest([item]) + after
        yield after


def _inside(item: Any) -> Iterator[str]:
    """From each place within a part to its end."""
    for times, part in _repeated(item):
        for more in range(max(times, 1)):
            again = _shortest(part) * more
            for end in _ends(part):
                yield end + again


def _shortest(items: Iterable[Any]) -> str:
    found = ""
    for item in items:
        name, value = str(item[0]), item[1]
        parts = [_shortest(part) * times for times, part in _repeated(item)]
        if parts:
            found += min(parts, key=len)
        elif name == "LITERAL":
            found += chr(value)
        elif name in ("ANY", "NOT_LITERAL", "IN"):
            found += _character(name, value)
        elif name != "AT":
            raise ValueError(f"{name} is not known here")
        if len(found) > _LONGEST:
            raise OverflowError("the shortest text is too long")
    return found


def _repeated(item: Any) -> list[tuple[int, list[Any]]]:
    """How often each of the sequences in a part must come; none for a part that is a character or a place."""
    name, value = str(item[0]), item[1]
    if name == "BRANCH":
        return [(1, list(part)) for part in value[1]]
    if name == "SUBPATTERN":
        return [(1, list(value[3]))]
    if name == "ATOMIC_GROUP":
        return [(1, list(value))]
    return [(min(value[0], _LONGEST), list(value[2]))] if name.endswith("REPEAT") else []


def _character(name: str, value: Any) -> str:
    """A character of a class: a common one, or one that the class names itself."""
    if name == "ANY":
        return _CHARACTERS[0]
    members = value if name == "IN" else []
    named = [chr(what[0] if str(kind) == "RANGE" else what) for kind, what in members if str(kind) in _NAMING]
    for char in (*_CHARACTERS, *named):
        if ord(char) != value if name == "NOT_LITERAL" else _is_in(members, char):
            return char
    raise ValueError("no character of the class is known")


def _is_in(members: list[Any], char: str) -> bool:
    found = False
    for kind, what in members:
        if str(kind) == "CATEGORY":
            word = str(what).lower().rpartition("_")[2]
            found |= _CATEGORIES[word](char) != ("_NOT_" in str(what))
        elif str(kind) in _NAMING:
            least, most = what if str(kind) == "RANGE" else (what, what)
            found |= least <= ord(char) <= most
    return found != (str(members[0][0]) == "NEGATE")


def ends_of_constraint(kind: str, form: Any) -> tuple[list[str], list[str], bool]:
    """How the expressions of a constraint may come to their ends, and how strings in its JSON may, with their quotation
    mark; the shortest first. A grammar's own strings count as expressions. Also whether this is all there is to know:
    not for a grammar, nor where an expression could not be read."""
    grammar, schemas = _without_schemas(form) if kind == "grammar" else ("", [form] * (kind == "json_schema"))
    regexes = [form] if kind == "regex" else _regexes(grammar)
    plain, inner = ([ends_of(pattern) for pattern in some] for some in (regexes, _patterns(schemas)))
    known = kind != "grammar" and all(plain) and all(inner)
    texts = sorted({"", *itertools.chain(*inner)}, key=_order) if schemas else []
    quoted = [json.dumps(text, ensure_ascii=False)[1:] for text in texts]
    return sorted({*itertools.chain(*plain)} - {""}, key=_order), quoted, known


def _without_schemas(grammar: str) -> tuple[str, list[Any]]:
    """A grammar without its `%json` parts, and those."""
    rest, schemas = "", []
    while (at := grammar.find("%json")) >= 0:
        rest, grammar = rest + grammar[:at], grammar[at + len("%json") :].lstrip()
        try:
            schema, length = json.JSONDecoder().raw_decode(grammar)
        except ValueError:
            continue
        schemas.append(schema)
        grammar = grammar[length:]
    return rest + grammar, schemas


def _regexes(grammar: str) -> Iterator[str]:
    """The strings and expressions of a grammar, as expressions."""
    for text, pattern in re.findall(r'"((?:[^"\\\n]|\\.)+)"|/((?:[^/\\\n]|\\.)+)/', grammar):
        yield pattern or re.escape(text)


def _patterns(part: Any) -> Iterator[str]:
    """The expressions in a schema."""
    for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _patterns(each)
    if isinstance(part, dict):
        pattern, names = part.get("pattern"), part.get("patternProperties")
        yield from [pattern] if isinstance(pattern, str) else []
        yield from _FORMATS.values() if part.get("format") in list(_FORMATS) else []
        yield from names if isinstance(names, dict) else []
