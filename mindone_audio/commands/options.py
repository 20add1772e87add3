"""Options that several commands have: the model and its device, how to generate, and which clips."""

import argparse
import glob
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from mindone_audio.fields import DTYPES

# Settings of `generate` by the names of their options: --max-new-tokens and so on.
SETTINGS = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "seed", "num_beams", "repetition_penalty")
SETTINGS += ("no_repeat_ngram_size",)
SAMPLING = ("temperature", "top_p", "top_k", "seed")  # without effect on greedy decoding


class WrongUse(ValueError):
    """A mistake on the command line, which costs nothing because nothing has run yet."""


# What to do about a clip that is longer than the model hears, by command.
_TOO_LONG = {
    "ask": "cut it, add --long-audio windows for one answer a window, or use mindone-audio transcribe",
    "batch": "cut it, add --long-audio windows for one answer a window, or --task transcribe",
    "chat": "cut it, or use mindone-audio transcribe",
}
_TOO_LONG["caption"] = _TOO_LONG["ask"]


def explain(command: str) -> Callable[[Exception], str]:
    """From an error to its message, with the options of a command where the library names Python's keywords."""

    def message(error: Exception) -> str:
        from mindone_audio.inputs.audio import ClipLimitError, ClipTooLongError

        if isinstance(error, ClipTooLongError) and command in _TOO_LONG:
            return f"{error.what}: {_TOO_LONG[command]}"
        return error.what if isinstance(error, ClipLimitError) else str(error)

    return message


def add_device(parser: argparse.ArgumentParser, dtype_default: str = "the checkpoint's") -> None:
    """`--device` and `--dtype`."""
    parser.add_argument("--device", default="auto", help="auto, ascend, ascend:1 or cpu")
    parser.add_argument("--dtype", choices=DTYPES, help=f"default: {dtype_default}")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Where the model is and how it computes."""
    parser.add_argument("--model", help="checkpoint folder or Hugging Face id (default: the small bundled one)")
    add_adapter(parser)
    add_device(parser)


def add_adapter(parser: argparse.ArgumentParser) -> None:
    """`--adapter`."""
    parser.add_argument("--adapter", metavar="FOLDER", help="what finetune made of that model; also a Hugging Face id")


def add_output(parser: argparse.ArgumentParser) -> None:
    """`--json` and `--stream`."""
    parser.add_argument("--json", action="store_true", help="one JSON object a clip, for scripts")
    parser.add_argument("--stream", action="store_true", help="clip by clip, text as it is produced")


def add_generation(parser: argparse.ArgumentParser) -> None:
    """The settings of `generate` that people change, as a group of their own."""
    group = parser.add_argument_group("generation")
    group.add_argument("--do-sample", action="store_true", default=None, help="draw tokens, not always the best ones")
    group.add_argument("--seed", type=number, metavar="N", help="makes sampling repeatable")
    add_settings(group)


def add_settings(parser) -> None:
    """Those that mean the same for every command; what they may be is checked by `settings`."""
    parser.add_argument("--max-new-tokens", type=number, metavar="N", help="default: 128")
    parser.add_argument("--temperature", type=number, metavar="T", help="of sampling; 0 takes the best token each time")
    parser.add_argument("--top-p", type=number, metavar="P")
    parser.add_argument("--top-k", type=number, metavar="K")
    parser.add_argument("--num-beams", type=number, metavar="N")
    parser.add_argument("--repetition-penalty", type=number, metavar="X")
    parser.add_argument("--no-repeat-ngram-size", type=number, metavar="N", help="no N tokens in a row come twice")


def number(text: str) -> int | float | str:
    """What was typed as a number, or as it is where it is none, so that its check says which option it is."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Those that were given, checked; `WrongUse` that names the option for a value that cannot be."""
    from mindone_audio.generation.settings import settle

    given = {name: getattr(options, name) for name in SETTINGS if getattr(options, name, None) is not None}
    if given.get("temperature") == 0:  # as elsewhere on command lines: greedy
        given = {name: value for name, value in given.items() if name not in SAMPLING} | {"do_sample": False}
    try:
        settle(None, given, warn=False)
    except ValueError as error:
        raise WrongUse(in_options(str(error))) from error
    return given


def in_options(message: str) -> str:
    """A message about settings in the words of the command line: --do-sample for do_sample=True."""
    return re.sub(rf"\b({'|'.join(SETTINGS)})\b(=True)?", lambda found: f"--{found[1].replace('_', '-')}", message)


def load_pipeline(options: argparse.Namespace):
    """The pipeline that the options ask for; `WrongUse` also for settings of `generate` that cannot be."""
    settings(options)  # before MindSpore is imported, which takes seconds
    import mindspore as ms

    from mindone_audio.pipelines import pipeline

    dtype = None if options.dtype is None else getattr(ms, options.dtype)
    return pipeline(model=options.model, device=options.device, mindspore_dtype=dtype, adapter=options.adapter)


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
