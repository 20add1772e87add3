"""Files of records, one object each: JSON Lines, a JSON array, or CSV and TSV with a header."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLES = {".csv": ",", ".tsv": "\t"}  # suffixes, and what is between two columns
LONGEST_CELL = 131_072  # characters
_UTF8_MARK = b"\xef\xbb\xbf"
_OTHER_MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "a zip file, as xlsx is",
}
_BEGINNINGS = (b"[", b"{")  # lines that only a file of one JSON value over several lines begins with
_SAMPLE = 4096  # bytes that tell what a file is


class RecordsError(ValueError):
    """A file that cannot be read as records at all. The message names it, the line where there is one, and what to
    write instead."""


@dataclass(frozen=True)
class Record:
    """One record. place: where it is, as "line 3" or "item 3"; number: that 3. content: what a digest is made of.
    value: what it holds; problem: why it holds nothing, None where it does."""

    place: str
    number: int
    content: bytes
    value: Any = None
    problem: str | None = None


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, in their order; a line of JSON that is wrong is a record with a problem.

    Raises `RecordsError` for a file that is none of the three, for one in
    another encoding than UTF-8, and for a table that cannot be read.
    """
    with open(path, "rb") as file:
        beginning = file.read(_SAMPLE)
    _check_kind(path, beginning)
    if path.suffix.lower() in TABLES:
        return _table(path)
    whole = _whole(path, _first_line(path))
    return _lines(path) if whole is None else whole


def read_table(path: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    """The rows of a CSV or TSV file by the names in its first line, each with the number of its last line.

    A cell that a row lacks is None; semicolons are taken where the first line has no other separator. Raises
    `RecordsError`, with the line, for what is not UTF-8, and for a row that csv cannot read or that has too many cells.
    """
    separator = TABLES.get(path.suffix.lower(), ",")
    with open(path, "rb") as file:
        lines = _text_lines(path, file)
        header = next(lines, "")
        if separator not in header and ";" in header:
            separator = ";"
        # strict: a quotation mark that is never closed would otherwise take in the rest of the file.
        rows = csv.reader(_joined(header, lines), delimiter=separator, strict=True)
        try:
            names = [name.strip() for name in next(rows, [])]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise RecordsError(f"{path}: the first line has {', '.join(map(repr, twice))} twice: rename a column")
            for cells in rows:
                if len(cells) > len(names):
                    raise RecordsError(
                        f"{path} line {rows.line_num}: {len(cells)} cells, and the first line names {len(names)} "
                        f'columns: put text with "{separator}" in it in quotation marks'
                    )
                if any(len(cell) > LONGEST_CELL for cell in cells):  # csv's own limit, which other libraries take away
                    raise csv.Error(f"field larger than field limit ({LONGEST_CELL})")
                if cells:
                    yield rows.line_num, dict(zip(names, cells)) | dict.fromkeys(names[len(cells) :])
        except csv.Error as error:
            raise RecordsError(
                f"{path} line {rows.line_num}: {error}: close quotation marks, double those inside, keep long data, "
                "such as base64, in files; or write JSON Lines"
            ) from error


def _check_kind(path: Path, beginning: bytes) -> None:
    for mark, name in _OTHER_MARKS.items():
        if beginning.startswith(mark):
            raise RecordsError(f"{path} is {name}: save it as UTF-8 text, one JSON object a line or CSV")
    if b"\0" in beginning:
        kind = "UTF-16" if beginning[:2].count(b"\0") == 1 and not beginning.startswith(b"RIFF") else "not text"
        raise RecordsError(
            f"{path} is {kind}: give UTF-8 text, one JSON object a line or CSV; a clip with such a name goes into it"
        )


def _text_lines(path: Path, file) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if number == 1:
            line = line.removeprefix(_UTF8_MARK)
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise RecordsError(
                f"{path} line {number}: not UTF-8 ({error.reason} at byte {error.start} of the line): save the file as "
                "UTF-8, for example with `iconv -f GBK -t UTF-8`"
            ) from error


def _joined(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _table(path: Path) -> Iterator[Record]:
    for number, row in read_table(path):
        yield Record(f"line {number}", number, json.dumps(row, sort_keys=True).encode(), row)


def _first_line(path: Path) -> bytes:
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            if line := (line.removeprefix(_UTF8_MARK) if number == 0 else line).strip():
                return line
    return b""


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode()), dict)
    except (ValueError, RecursionError):
        return False


def _whole(path: Path, first: bytes) -> Iterator[Record] | None:
    """The records of a file that is one JSON value; None for one that is to be read line by line."""
    if not first or _is_object(first):
        return None
    try:
        content = json.loads(path.read_bytes().removeprefix(_UTF8_MARK).decode())
    except (ValueError, RecursionError) as error:
        if path.suffix.lower() != ".json" and first not in _BEGINNINGS and not first.startswith(b"[{"):
            return None
        line = f" line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise RecordsError(
            f"{path}{line}: not JSON: {error}: write one array of objects, or one object a line, as `jq -c` does"
        ) from error
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return None
    return (
        Record(f"item {number}", number, json.dumps(value, sort_keys=True).encode(), value)
        for number, value in enumerate(content, 1)
    )


def _lines(path: Path) -> Iterator[Record]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(_UTF8_MARK if number == 1 else b"").strip()
            if line:
                yield _line(number, line)


def _line(number: int, line: bytes) -> Record:
    try:
        return Record(f"line {number}", number, line, json.loads(line.decode()))
    except UnicodeDecodeError as error:
        problem = f"not UTF-8: {error}: save the file as UTF-8"
    except json.JSONDecodeError as error:
        problem = f"not JSON: {error}"
    except (ValueError, RecursionError) as error:
        problem = str(error)
    return Record(f"line {number}", number, line, problem=problem)
