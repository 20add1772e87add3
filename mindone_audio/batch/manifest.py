"""What a batch job works through: the lines of a JSONL manifest, the clips of a folder or a glob, or clips by name."""

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindone_audio.chat import task_schema

# Also of formats that cannot be decoded here, so that such a clip is a line with an error and not left out in silence.
AUDIO_SUFFIXES = set(".wav .flac .mp3 .ogg .oga .opus .aiff .aif .au .caf .w64 .rf64 .m4a .aac .wma .mp4 .webm".split())
MANIFEST_SUFFIXES = {".jsonl", ".ndjson", ".json"}


@dataclass(frozen=True)
class Item:
    """One thing to answer. index: its place in the input, from 0. error: why it cannot be, None where it can."""

    index: int
    id: str | int
    clips: list[Any] = field(default_factory=list)
    text: str | None = None
    parameters: dict = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class Manifest:
    """The items of one shard. count: those of all shards. digest: of all the input. folder: relative paths are seen
    from there first, then from the working directory; None for the working directory only."""

    items: list[Item]
    count: int
    digest: str
    folder: str | None


def read_manifest(inputs: str | os.PathLike | Sequence[str | os.PathLike], rank: int = 0, ranks: int = 1) -> Manifest:
    """Every `ranks`-th item from `rank` on of a manifest, a folder, a glob, or several clips and folders.

    A line of a manifest is the task schema, `{"inputs": {"audio": …, "text": …}, "parameters": {…}}` or its inner part,
    with an optional "id"; without one the id is the number of the line. A line that is wrong is an item with an error.
    The id of a file is its path in the folder. Raises `ValueError` for an input without items and for an id that comes
    twice, `FileNotFoundError` for an input that is not there.
    """
    names = [os.fspath(i) for i in ([inputs] if isinstance(inputs, (str, os.PathLike)) else inputs)]
    if not names:
        raise ValueError("no input: give a JSONL manifest, a folder of clips, a glob, or clips")
    path = Path(names[0])
    if len(names) == 1 and path.is_file() and path.suffix.lower() not in AUDIO_SUFFIXES:
        source, folder, about = _manifest_items(path), str(path.absolute().parent), f"the manifest {names[0]}"
    else:
        source, folder = _file_items(names), None
        about = f"the folder {names[0]}" if path.is_dir() else f"the input {' '.join(names[:3])}"
    digest, seen, items, count = hashlib.sha256(), {}, [], 0
    for item, place, content in source:
        digest.update(content + b"\n")
        if (name := str(item.id)) in seen:
            raise ValueError(f"{about} has the id {item.id!r} twice, at {seen[name]} and at {place}: ids must differ")
        seen[name] = place
        if item.index % ranks == rank:
            items.append(item)
        count += 1
    if not count:
        hint = f"clips end in {', '.join(sorted(AUDIO_SUFFIXES))}" if folder is None else "write one JSON object a line"
        raise ValueError(f"{about} has no items: {hint}")
    return Manifest(items, count, digest.hexdigest(), folder)


def _manifest_items(path: Path) -> Iterator[tuple[Item, str, bytes]]:
    index = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").strip()
            if line:
                yield _manifest_item(index, number, line), f"line {number}", line
                index += 1


def _manifest_item(index: int, number: int, line: bytes) -> Item:
    own_id: str | int = number
    try:
        content = json.loads(line)
        if not isinstance(content, dict):
            raise ValueError(f'a line is an object {{"audio": …, "text": …}}, not {content!r:.80}')
        given = content.pop("id", None)
        if isinstance(given, (str, int)) and not isinstance(given, bool):
            own_id = given
        elif given is not None:
            raise ValueError(f'"id" must be a string or a whole number, not {given!r:.80}')
        clips, text, parameters = task_schema(content)
        return Item(index, own_id, clips, text, parameters)
    except UnicodeDecodeError as error:
        problem = f"not UTF-8: {error}"
    except json.JSONDecodeError as error:
        problem = f"not JSON: {error}"
    except (ValueError, RecursionError) as error:
        problem = str(error)
    return Item(index, own_id, error=f"line {number}: {problem}")


def _file_items(names: list[str]) -> Iterator[tuple[Item, str, bytes]]:
    index = 0
    for name in names:
        for path, own_id in _clips(name, alone=len(names) == 1):
            yield Item(index, own_id, [path]), path, own_id.encode(errors="surrogateescape")
            index += 1


def _clips(name: str, alone: bool) -> list[tuple[str, str]]:
    """Paths and ids of the clips that one argument names, in the order of their ids."""
    if os.path.isdir(name):
        found = [
            os.path.join(folder, file)
            for folder, _, files in os.walk(name, followlinks=True)
            for file in files
            if os.path.splitext(file)[1].lower() in AUDIO_SUFFIXES and not file.startswith(".")
        ]
        return sorted((p, os.path.relpath(p, name) if alone else p) for p in found)
    if os.path.exists(name):
        if not alone and os.path.splitext(name)[1].lower() in MANIFEST_SUFFIXES:
            raise ValueError(f"{name} looks like a manifest: give one manifest alone, or only clips and folders")
        return [(name, name)]
    matches = sorted(glob.glob(name, recursive=True))
    if not matches and not glob.has_magic(name):
        raise FileNotFoundError(f"no manifest, folder or clip {name!r} (seen from {os.getcwd()}): check the path")
    return [(path, path) for path in matches if not os.path.isdir(path)]
