"""Fields of settings, each with the one text that the command line, `--help` and the docstring show."""

from collections.abc import Callable
from dataclasses import MISSING, Field, field, fields
from typing import Any

DTYPES = ("float32", "float16", "bfloat16")  # of weights, as settings name them


def setting(text: str, default: Any = MISSING, *, factory: Callable | Any = MISSING) -> Any:
    """A dataclass field with a text for people; default and factory as in `dataclasses.field`."""
    return field(default=default, default_factory=factory, metadata={"help": text})


def text_of(one: Field) -> str:
    """The text of a `setting`."""
    return one.metadata["help"]


def documented(settings: type) -> type:
    """Add a line for each field to the docstring of a dataclass of settings."""
    lines = [f"    {one.name}: {text_of(one)}{_default(one)}" for one in fields(settings)]
    settings.__doc__ = "\n".join([settings.__doc__.rstrip(), "", *lines])
    return settings


def _default(one: Field) -> str:
    hidden = one.default is MISSING or one.default is None or one.default is False or one.default in ("", ())
    return "" if hidden else f" (default: {one.default!r})"
