"""Options that several commands have: the model and its device, how to generate, and which clips."""

import argparse
import glob
import os
import sys
from collections.abc import Callable
from typing import Any

DTYPES = ("float32", "float16", "bfloat16")
# Settings of `generate` by the names of their options.
_SETTINGS = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "seed", "num_beams", "repetition_penalty")


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
        advice = _TOO_LONG.get(command)
        return f"{error.what}: {advice}" if advice and hasattr(error, "what") else str(error)

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
    """The settings of `generate` that people change."""
    group = parser.add_argument_group("generation")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="default: 128")
    group.add_argument("--do-sample", action="store_true", default=None, help="draw tokens, not always the best ones")
    group.add_argument("--temperature", type=float, metavar="T")
    group.add_argument("--top-p", type=float, metavar="P")
    group.add_argument("--top-k", type=int, metavar="K")
    group.add_argument("--seed", type=int, metavar="N", help="makes sampling repeatable")
    group.add_argument("--num-beams", type=int, metavar="N")
    group.add_argument("--repetition-penalty", type=float, metavar="X")


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Those that were given."""
    return {name: getattr(options, name) for name in _SETTINGS if getattr(options, name) is not None}


def load_pipeline(options: argparse.Namespace):
    """The pipeline that the options ask for; `ValueError` also for settings of `generate` that cannot be."""
    from mindone_audio.generation.settings import settle

    settle(None, settings(options))  # before MindSpore is imported, which takes seconds
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
