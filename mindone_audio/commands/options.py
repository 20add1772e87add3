"""Options that several commands have: the model and its device, how to generate, and which clips."""

import argparse
import dataclasses
import glob
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mindone_audio.generation.constraint import KINDS, MOST_CHARACTERS
from mindone_audio.generation.settings import GenerationSettings
from mindone_audio.machine import affinity
from mindone_audio.setting_fields import (
    ADAPTER_HELP,
    DEVICE_HELP,
    DEVICE_MEMORY_HELP,
    DTYPE_HELP,
    DTYPES,
    MODEL_HELP,
    help_text,
    in_words,
    option,
)

QUESTIONS = "audio-text-to-text"  # the task of models that answer them
# Settings of `generate` that people change, in the order of `--help`.
SETTINGS = (
    *("do_sample", "seed", "max_new_tokens", "temperature", "top_p", "top_k", "num_beams", "repetition_penalty"),
    *("no_repeat_ngram_size", "prompt_lookup_num_tokens"),
)


class WrongUse(ValueError):
    """A mistake on the command line, which costs nothing because nothing has run yet."""


# What to do about a clip that is longer than the limit of the model, by command.
_TOO_LONG = {
    "ask": "cut it, add --long-audio windows for one answer a window, or use mindone-audio transcribe",
    "batch": "cut it, add --long-audio windows for one answer a window, or --task transcribe",
    "chat": "cut it, or use mindone-audio transcribe",
}
_TOO_LONG["caption"] = _TOO_LONG["ask"]


def explain(command: str) -> Callable[[Exception], str]:
    """From an error to its message, with the options of a command where the library names Python's keywords."""

    def message(error: Exception) -> str:
        advice = _TOO_LONG.get(command)
        return f"{error.what}: {advice}" if advice and hasattr(error, "what") else in_words(error, option)

    return message


def add_device(parser: argparse.ArgumentParser, dtype_help: str = DTYPE_HELP) -> None:
    """`--device`, `--device-memory` and `--dtype`."""
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)
    parser.add_argument("--device-memory", metavar="GB", help=DEVICE_MEMORY_HELP)
    parser.add_argument("--dtype", choices=DTYPES, help=dtype_help)


def add_field(parser, settings: type, name: str, *, flag: str | None = None, **more: Any) -> None:
    """The option of a dataclass's field, with its help text, default and choices. flag: another name than `--name`."""
    field = next(entry for entry in dataclasses.fields(settings) if entry.name == name)
    text = help_text(field, option).replace("%", "%%")
    if flag is None or flag.startswith("-"):
        more["dest"] = name
    if field.default is False:
        more["action"] = "store_true"
    else:
        default = None if field.default is dataclasses.MISSING else field.default
        if default is not None:
            text += " (default: %(default)s)"
        more |= {"metavar": placeholder(field), "default": default}
    parser.add_argument(flag or option(name), help=text, **more)


def placeholder(field: dataclasses.Field) -> str | None:
    """What stands for the value of a field in `--help`; the class itself refuses what is not among its choices."""
    choices = field.metadata["choices"]
    return f"{{{','.join(choices)}}}" if choices else field.metadata["metavar"]


def add_model(parser: argparse.ArgumentParser) -> None:
    """Where the model is and how it computes."""
    parser.add_argument("--model", help=MODEL_HELP)
    parser.add_argument("--adapter", metavar="FOLDER", help=ADAPTER_HELP)
    add_device(parser)


def add_output(parser: argparse.ArgumentParser) -> None:
    """`--json` and `--stream`."""
    parser.add_argument("--json", action="store_true", help="one JSON object a clip, for scripts")
    parser.add_argument("--stream", action="store_true", help="clip by clip, text as it is produced")


def add_generation(parser: argparse.ArgumentParser, **help_of: str) -> None:
    """`SETTINGS`, as a group of their own; `settings` checks their values. help_of: other help texts, by name."""
    group = parser.add_argument_group("generation")
    fields = {field.name: field for field in dataclasses.fields(GenerationSettings)}
    for name in SETTINGS:
        text, metavar = help_text(fields[name], option), fields[name].metadata["metavar"]
        if metavar is None:
            group.add_argument(option(name), action="store_true", default=None, help=help_of.get(name, text))
        else:
            group.add_argument(option(name), type=number, metavar=metavar, help=help_of.get(name, text))


def add_form(parser: argparse.ArgumentParser) -> None:
    """The form that an answer must have, one of `KINDS`."""
    group = parser.add_argument_group("form of the answer").add_mutually_exclusive_group()
    group.add_argument("--json-schema", metavar="FILE", help="JSON that follows this JSON schema")
    group.add_argument("--choice", nargs="+", metavar="TEXT", help="one of these texts")
    group.add_argument("--regex", help="what this regular expression matches as a whole")
    group.add_argument("--grammar", metavar="FILE", help="what this grammar, in Lark's notation, allows")


def _form(options: argparse.Namespace) -> dict[str, Any]:
    """The form that was asked for, read from its file; `WrongUse` for one that cannot be read."""
    given = {name: getattr(options, name) for name in KINDS if getattr(options, name, None) is not None}
    for name in ("json_schema", "grammar"):
        if name in given:
            path = given[name]
            try:
                with open(path, encoding="utf-8-sig") as file:
                    given[name] = file.read(MOST_CHARACTERS + 1)
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
                raise WrongUse(f"{option(name)} {path} cannot be read: {reason}") from error
    return given


def number(text: str) -> int | float | str:
    """What was typed as a number, or as it is where it is none, so that its check says which option it is."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Those that were given, checked; `SettingError` for a value that cannot be."""
    from mindone_audio.generation.settings import SAMPLING_ONLY, settle

    given = {name: getattr(options, name) for name in SETTINGS if getattr(options, name, None) is not None}
    if given.get("temperature") == 0:  # as elsewhere on command lines: greedy
        given = {name: value for name, value in given.items() if name not in SAMPLING_ONLY} | {"do_sample": False}
    given |= _form(options)
    settle(None, given, warn=False)
    return given


def load_pipeline(options: argparse.Namespace, task: str | None = QUESTIONS, **more: Any):
    """The pipeline that the options ask for; `SettingError` for settings of `generate` that cannot be.

    task: what it must be for, None for whatever the model is for. more: other arguments of `pipeline`.
    """
    settings(options)  # before MindSpore is imported, which takes seconds
    affinity.bind_cores(options.device)
    import mindspore as ms

    from mindone_audio.pipelines import pipeline

    dtype = None if options.dtype is None else getattr(ms, options.dtype)
    return pipeline(
        task,
        model=options.model,
        device=options.device,
        device_memory=options.device_memory,
        mindspore_dtype=dtype,
        adapter=options.adapter,
        **more,
    )


@contextmanager
def shown_compiling() -> Iterator[None]:
    """Within, a line on standard error says what is compiled, and another how long it took."""
    compiling, handler = logging.getLogger("mindone_audio.compiling"), logging.StreamHandler()
    if compiling.handlers:  # within another one
        yield
        return
    level = compiling.level
    compiling.setLevel(logging.INFO)
    compiling.addHandler(handler)
    compiling.propagate = False
    try:
        yield
    finally:
        compiling.removeHandler(handler)
        compiling.setLevel(level)
        compiling.propagate = True


def expand(sources: list[str]) -> list[str]:
    """Clips as they were given, each glob replaced by the files that it matches, sorted; `WrongUse` where none does."""
    from mindone_audio.batch.manifest import matching

    clips = []
    for source in sources:
        if "://" in source or os.path.exists(source) or not glob.has_magic(source):
            clips.append(source)
            continue
        found = [path for path in matching(source) if os.path.isfile(path)]
        if not found:
            raise WrongUse(f"no file matches {source!r} (seen from {os.getcwd()})")
        clips += found
    if clips.count("-") > 1:
        raise WrongUse("standard input, -, was given twice: it holds one clip")
    return clips


def clip_source(clip: str) -> Any:
    """What `load_audio` takes: the bytes of standard input for "-"."""
    return sys.stdin.buffer.read() if clip == "-" else clip
