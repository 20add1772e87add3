"""What a batch job works through: the records of a manifest, the clips of a folder or a glob, or clips by name."""

import glob
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mindone_audio.inputs.conversation import AUDIO_KEYS, task_schema
from mindone_audio.inputs.records import TABLES, Record, read_records

logger = logging.getLogger(__name__)

# Also of formats that cannot be decoded everywhere, so that such a clip is a line with an error and not left out.
AUDIO_SUFFIXES = set(".wav .flac .mp3 .ogg .oga .opus .aiff .aif .au .caf .w64 .rf64 .m4a .aac .wma .mp4 .webm".split())
AUDIO_SUFFIXES |= set(".aifc .amr .awb .3gp .3g2 .mka .mkv .mov .m4v .mpga .mp1 .mp2 .mpeg .mpg .avi .spx .wv".split())
AUDIO_SUFFIXES |= set(".m4b .m4r .ape .tta .dts .ac3 .eac3 .gsm .voc .snd .sph .weba .ogv .ogx .adts .wave".split())
# What lies beside clips and is none, so that it is not counted as left out.
BESIDE_CLIPS = set(".txt .json .jsonl .ndjson .csv .tsv .md .rst .html .htm .xml .yaml .yml .toml .ini .log".split())
BESIDE_CLIPS |= set(".pdf .png .jpg .jpeg .gif .webp .svg .srt .vtt .lrc .lab .ctm .stm .rttm .textgrid .eaf".split())
BESIDE_CLIPS |= set(".py .sh .ipynb .npy .npz .pt .parquet .arrow .safetensors .zip .tar .gz .md5 .sha256".split())
BESIDE_CLIPS |= set(".cue .m3u .m3u8 .pls .nfo .db .lock .bak .tmp .part".split())
MANIFEST_SUFFIXES = {".jsonl", ".ndjson", ".json", *TABLES}
CLIP_KEYS = (*AUDIO_KEYS, "file_name")  # of a record, the last where none of the others is there
QUESTION_KEYS = ("text", "prompt")
_KNOWN_KEYS = ("inputs", "parameters", *CLIP_KEYS, *QUESTION_KEYS)
SHOWN = 8  # suffixes that are named


@dataclass(frozen=True)
class Item:
    """One thing to answer. index: its place in the input, from 0. error: why it cannot be, None where it can. extra:
    the further keys of its record, which the result keeps."""

    index: int
    id: str | int
    clips: list[Any] = field(default_factory=list)
    text: str | None = None
    parameters: dict = field(default_factory=dict)
    error: str | None = None
    extra: dict = field(default_factory=dict)


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

    A manifest has one JSON object a line, or is a JSON array of them, or CSV or TSV with a header. An object is the
    task schema, `{"inputs": {"audio": …, "text": …}, "parameters": {…}}` or its inner part, with an optional "id";
    without one the id is the number of the line, or of the object in an array. "prompt" is the same as "text", and
    "file_name" as "audio"; any other key is kept as extra. A line that is wrong is an item with an error.
    In a folder every subfolder is looked through once, also where links lead to it; a link to a folder that it is in is
    not followed. The id of a file is its path in the folder. Files with suffixes of no audio are counted in a warning,
    but for hidden ones and those that lie beside clips, such as .txt and .json.
    Raises `ValueError` for an input without items, for an id that comes twice, and for a manifest that cannot be read
    as a whole, such as one in UTF-16, and `FileNotFoundError` for an input that is not there.
    """
    names = [os.fspath(i) for i in ([inputs] if isinstance(inputs, (str, os.PathLike)) else inputs)]
    if not names:
        raise ValueError("no input: give a JSONL manifest, a folder of clips, a glob, or clips")
    path = Path(names[0])
    if len(names) == 1 and path.is_file() and path.suffix.lower() not in AUDIO_SUFFIXES:
        source, folder, about = _manifest_items(path), str(path.absolute().parent), f"the manifest {names[0]}"
    else:
        left_out: Counter[str] = Counter()
        source, folder = _file_items(names, left_out), None
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
    if folder is None and left_out and rank == 0:
        logger.warning("%s", _left_out(left_out))
    if not count:
        hint = f"clips end in {', '.join(sorted(AUDIO_SUFFIXES))}" if folder is None else "write one JSON object a line"
        raise ValueError(f"{about} has no items: {hint}")
    return Manifest(items, count, digest.hexdigest(), folder)


def _manifest_items(path: Path) -> Iterator[tuple[Item, str, bytes]]:
    for index, record in enumerate(read_records(path)):
        if path.suffix.lower() in TABLES:
            if not set(CLIP_KEYS) & set(record.value):
                raise ValueError(
                    f"the manifest {path} has no column for clips; it has {', '.join(map(repr, record.value))}: write "
                    f'"audio" (or {", ".join(CLIP_KEYS[1:])}) into its first line, for example audio,text'
                )
            record = replace(record, value=_without_empty_cells(record.value))
        yield _manifest_item(index, path.name, record), record.place, record.content


def _without_empty_cells(row: dict) -> dict:
    """A table has no other way to leave something out."""
    return {key: value for key, value in row.items() if value or key not in ("id", *CLIP_KEYS, *QUESTION_KEYS)}


def _manifest_item(index: int, name: str, record: Record) -> Item:
    own_id: str | int = record.number
    extra: dict = {}
    try:
        if record.problem is not None:
            raise ValueError(record.problem)
        if not isinstance(record.value, dict):
            raise ValueError(f'a line is an object {{"audio": …, "text": …}}, not {record.value!r:.80}')
        content = dict(record.value)
        given = content.pop("id", None)
        if isinstance(given, (str, int)) and not isinstance(given, bool):
            own_id = given
        elif given is not None:
            raise ValueError(f'"id" must be a string or a whole number, not {given!r:.80}')
        extra = {key: value for key, value in content.items() if key not in _KNOWN_KEYS}
        schema, extra = _schema(content)
        clips, text, parameters = task_schema(schema)
        return Item(index, own_id, clips, text, parameters, extra=extra)
    except ValueError as error:
        return Item(index, own_id, error=f"{name} {record.place}: {error}", extra=extra)


def _schema(content: dict) -> tuple[dict, dict]:
    """The task schema in a record, and what else is in it; `ValueError` for what is given twice, and differs."""
    inner = content.pop("inputs", None)
    if inner is not None:
        inner = inner if isinstance(inner, dict) else {"audio": inner}
        if twice := sorted(key for key in set(inner) & set(content) if inner[key] != content[key]):
            raise ValueError(f"{', '.join(map(repr, twice))} given in inputs and beside it: leave one of them out")
        content = {**content, **inner}
    parameters = content.pop("parameters", None)
    asked = {key: value for key in QUESTION_KEYS if (value := content.pop(key, None)) is not None}
    if len(set(map(repr, asked.values()))) > 1:
        raise ValueError(f'"text" and "prompt" are the same thing and differ: {asked!r:.200}: leave one of them out')
    item = {key: value for key in AUDIO_KEYS if (value := content.pop(key, None)) is not None}
    if not item and content.get("file_name") is not None:
        item = {"audio": content.pop("file_name")}
    if asked:
        item["text"] = next(iter(asked.values()))
    return {"inputs": item, "parameters": parameters}, content


def _left_out(suffixes: Counter) -> str:
    count = suffixes.total()
    named = ", ".join(suffix or "none" for suffix, _ in suffixes.most_common(SHOWN))
    more = ", …" if len(suffixes) > SHOWN else ""
    if count == 1:
        return f"1 file with another suffix ({named}) was left out"
    return f"{count} files with other suffixes ({named}{more}) were left out"


def _file_items(names: list[str], left_out: Counter) -> Iterator[tuple[Item, str, bytes]]:
    index = 0
    for name in names:
        for path, own_id in _clips(name, len(names) == 1, left_out):
            yield Item(index, own_id, [path]), path, own_id.encode(errors="surrogateescape")
            index += 1


def _clips(name: str, alone: bool, left_out: Counter) -> list[tuple[str, str]]:
    """Paths and ids of the clips that one argument names, in the order of their ids."""
    if os.path.isdir(name):
        found = []
        for folder, files in walk(name):
            for file in files:
                suffix = os.path.splitext(file)[1].lower()
                if file.startswith("."):
                    continue
                if suffix in AUDIO_SUFFIXES:
                    found.append(os.path.join(folder, file))
                elif suffix not in BESIDE_CLIPS:
                    left_out[suffix] += 1
        return sorted((p, os.path.relpath(p, name) if alone else p) for p in found)
    if os.path.exists(name):
        if not alone and os.path.splitext(name)[1].lower() in MANIFEST_SUFFIXES:
            raise ValueError(f"{name} looks like a manifest: give one manifest alone, or only clips and folders")
        return [(name, name)]
    matches = matching(name)
    if not matches and not glob.has_magic(name):
        raise FileNotFoundError(f"no manifest, folder or clip {name!r} (seen from {os.getcwd()}): check the path")
    return [(path, path) for path in matches if not os.path.isdir(path)]


def walk(top: str) -> Iterator[tuple[str, list[str]]]:
    """Each folder in `top`, itself included, and the names of its files; one that several links lead to comes once.

    A folder goes by its own name before any link to it, and of several links the first in the order of names counts. A
    link to a folder that it is in is not followed.
    """
    seen = {os.path.realpath(top)}
    waiting, links = [top], []
    while waiting or links:
        if not waiting:
            links.sort(reverse=True)
            link = links.pop()
            real = os.path.realpath(link)
            if real in seen or any(_is_in(real, os.path.realpath(place)) for place in (top, os.path.dirname(link))):
                continue
            seen.add(real)
            waiting.append(link)
        folder = waiting.pop()
        files = []
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            logger.warning("the folder %s cannot be read and is left out: %s", folder, error.strerror)
            continue
        for entry in entries:
            if not entry.is_dir():
                files.append(entry.name)
            elif entry.is_symlink():
                links.append(entry.path)
            elif (real := os.path.realpath(entry.path)) not in seen:
                seen.add(real)
                waiting.append(entry.path)
        yield folder, files


def _is_in(folder: str, inner: str) -> bool:
    """Whether `inner` is `folder` or in it."""
    return os.path.commonpath([folder, inner]) == folder


def matching(pattern: str) -> list[str]:
    """The paths that match a glob, sorted; `**` looks through every folder once, as `walk` does."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        return sorted(glob.glob(pattern))
    place = parts.index("**")
    before, after = os.sep.join(parts[:place]), os.sep.join(parts[place + 1 :])
    top = before + os.sep if before or place else ""
    found: dict[str, None] = {}
    for root in glob.glob(top) if top else [""]:
        for folder, _ in walk(root or os.curdir):
            inner = os.path.relpath(folder, root or os.curdir)
            if any(part.startswith(".") and part != "." for part in inner.split(os.sep)):
                continue  # hidden, as glob has it
            start = root if inner == os.curdir else os.path.join(root, inner)
            found |= dict.fromkeys(matching(os.path.join(glob.escape(start), after or "*")))
    return sorted(found)
