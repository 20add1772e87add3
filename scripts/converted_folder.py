"""What the converters of published weights share: their command line, a new folder, and errors of one line."""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


class ConversionError(ValueError):
    """A file that cannot be converted; the message says why and what to do."""


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Make the folder `out`, and remove it if what fills it fails; `ConversionError` where there is one already."""
    try:
        out.mkdir(parents=True)
    except FileExistsError as error:
        raise ConversionError(f"{out} exists: give a folder that does not exist yet, or remove it") from error
    try:
        yield out
    except BaseException:
        shutil.rmtree(out)
        raise


def write_json(file: Path, value: dict) -> None:
    """Write `value` as the hub's files are: indented, in UTF-8."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(out: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write `out`/model.safetensors as transformers on PyTorch reads it."""
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors writes files that only their owner may read


def names_differ(found: set[str], expected: set[str]) -> str:
    """Says which names are missing and which are unknown, at most three of each; empty where none is."""
    parts = []
    for names, verb in ((expected - found, "lacks"), (found - expected, "has the unknown")):
        if names:
            parts.append(f"{verb} {', '.join(sorted(names)[:3])}" + (f" and {len(names) - 3} more" * (len(names) > 3)))
    return " and ".join(parts)


def run(convert: Callable[[Path, Path], None], description: str, source: str) -> int:
    """Parse SOURCE and OUT, call `convert` with SOURCE and the new folder OUT, and return the exit status.

    source: the help of SOURCE. `OSError` and `ValueError` become one line on standard error and status 2.
    """
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("source", metavar="SOURCE", type=Path, help=source)
    parser.add_argument("out", metavar="OUT", type=Path, help="the Hugging Face folder to write; must not exist")
    args = parser.parse_args()
    try:
        with new_folder(args.out) as out:
            convert(args.source, out)
    except (OSError, ValueError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    print(f"{args.out}: {sum(file.stat().st_size for file in args.out.iterdir()) / 1e6:.1f} MB")
    return 0
