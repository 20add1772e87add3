"""The files of a job's folder: job.json says what it is, part-<rank>.jsonl hold results, results.jsonl joins them.

A part is only appended to, by one process that holds its lock, and begins with a line that names the job. A line that
was cut off by a full disk or a killed process does not count, and the next process that owns the file drops it.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindone_audio.batch.job import BatchError, Shard
from mindone_audio.machine.files import replacing
from mindone_audio.setting_fields import SettingError

logger = logging.getLogger(__name__)

JOB, RESULTS, FIELDS = "job.json", "results.jsonl", ("id", "generated_text", "tokens", "seconds", "error")
EXTRA = "extra"  # of a result: the further keys of its line in the manifest, where there are any
LOCK_WAIT = 30.0  # seconds for another process, which is asked to stop, to finish its batch


def settle_job(folder: Path, fingerprint: dict, restart: bool) -> str:
    """Store a job's fingerprint in its folder, or compare it with the one there; returns its name, 16 characters.

    Raises `ValueError` for a folder that holds another job, `OSError` for one that cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"the output {str(folder)!r} is not a folder: give another one") from error
    known = None if restart else _read_job(folder)
    if known is not None and known != fingerprint:
        both = [(k, known.get(k), fingerprint.get(k)) for k in dict.fromkeys((*fingerprint, *known))]
        changes = [f"{k} was {old!r:.120}, is {new!r:.120}" for k, old, new in both if old != new]
        raise SettingError(
            lambda say: (
                f"{folder} holds the results of another job ({'; '.join(changes) or 'of another version'}): "
                f"use another {say('out')}, or {say('restart', True)} to drop those results"
            )
        )
    if known is None:
        if not restart and any(_parts(folder)):
            raise SettingError(
                lambda say: (
                    f"{folder} has parts of results and no readable {JOB}: use another {say('out')}, or "
                    f"{say('restart', True)}"
                )
            )
        with replacing(folder / JOB) as file:
            file.write_text(json.dumps(fingerprint, indent=1) + "\n", encoding="utf-8")
    return _name(fingerprint)


def _name(fingerprint: dict) -> str:
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]


def _read_job(folder: Path) -> dict | None:
    try:
        content = json.loads((folder / JOB).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _parts(folder: Path) -> list[tuple[int, Path]]:
    """The ranks and files of all parts, by rank."""
    names = (re.fullmatch(r"part-(\d+)\.jsonl", path.name) for path in folder.iterdir())
    return sorted((int(match[1]), folder / match[0]) for match in names if match)


@dataclass(frozen=True)
class Place:
    """Where a result's line is, and whether it is a success."""

    path: Path
    offset: int
    length: int
    good: bool


def _lines(path: Path, job: str) -> Iterator[tuple[dict, Place]]:
    """Whole result lines of a part that belongs to the job."""
    with open(path, "rb") as file:
        if _record(file.readline()).get("job") != job:
            return
        offset = file.tell()
        for line in file:
            record = _record(line)
            if isinstance(record.get("index"), int) and "error" in record:
                yield record, Place(path, offset, len(line), record["error"] is None)
            offset += len(line)


def _dump(record: dict[str, Any]) -> bytes:
    """One line of JSON in UTF-8; names of files that are no UTF-8 are escaped."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode() + b"\n"


def _record(line: bytes) -> dict:
    """The object of a line; an empty one for a line that is cut off or damaged."""
    if not line.endswith(b"\n"):
        return {}
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def find_results(folder: Path, job: str) -> dict[int, Place]:
    """The best result of every item, by index: a success before an error, the last before earlier ones."""
    found: dict[int, Place] = {}
    for _, path in _parts(folder):
        for record, place in _lines(path, job):
            known = found.get(record["index"])
            if known is None or place.good or not known.good:
                found[record["index"]] = place
    return found


class Part:
    """The part that this process appends to; locked until it is closed or the process ends, however it ends.

    done: the indices of items that some process has answered. Items that failed are not among them: they are tried
    again, because what failed may be a network or a disk. failed: the indices of those.
    """

    def __init__(self, folder: Path, job: str, shard: Shard, restart: bool):
        self.path = folder / f"part-{shard.rank}.jsonl"
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            _lock(self._file, self.path)
            self._refuse_leftovers(folder, shard, restart)
            if restart:
                (folder / RESULTS).unlink(missing_ok=True)
                os.ftruncate(self._file, 0)
            found = {} if restart else find_results(folder, job)
            self.done = {index for index, place in found.items() if place.good}
            self.failed = set(found) - self.done
            self._begin(job)
        except BaseException:
            self.close()
            raise

    def _refuse_leftovers(self, folder: Path, shard: Shard, restart: bool) -> None:
        """Ranks of an earlier run with more of them must have ended; with `restart` their parts are removed."""
        for rank, path in _parts(folder):
            if rank >= shard.ranks and rank % shard.ranks == shard.rank:
                descriptor = os.open(path, os.O_RDWR)
                try:
                    _lock(descriptor, path)
                    if restart:
                        path.unlink()
                finally:
                    os.close(descriptor)

    def _begin(self, job: str) -> None:
        """Drop a line that was cut off, or everything where the part is another job's; write the first line."""
        size, keep = os.fstat(self._file).st_size, 0
        with open(self.path, "rb") as file:
            if _record(file.readline()).get("job") == job:
                keep = _end_of_last_line(file, size)
        if keep != size:
            os.ftruncate(self._file, keep)
        if not keep:
            self._write(_dump({"job": job}))

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Write results and see them on the disk; `OSError` where there is no room, which may cut the last line off."""
        if records:
            self._write(b"".join(map(_dump, records)))

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        os.fsync(self._file)

    def close(self) -> None:
        """Give the part up."""
        os.close(self._file)


def _end_of_last_line(file, size: int) -> int:
    """The offset after the last newline."""
    end = size
    while end > 0:
        begin = max(0, end - (1 << 16))
        file.seek(begin)
        place = file.read(end - begin).rfind(b"\n")
        if place >= 0:
            return begin + place + 1
        end = begin
    return 0


def _lock(descriptor: int, path: Path) -> None:
    """Lock a file for this process, waiting for one that is ending; `BatchError` where another one keeps it."""
    deadline, logged = time.monotonic() + LOCK_WAIT, False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                logger.warning("%s: this file system has no locks; never run one job twice at a time", path)
                return
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            if time.monotonic() >= deadline:
                raise BatchError(
                    f"another process is writing {path}: a rank of this job, or of an earlier run, is still at work. "
                    "Wait for it or end it, then run the same command again"
                ) from error
        if not logged:
            logger.info("waiting up to %.0f s for the process that is writing %s", LOCK_WAIT, path)
            logged = True
        time.sleep(0.1)


@dataclass(frozen=True)
class Merged:
    """What `merge` found. missing: indices without a result; the file is written only where there are none."""

    path: Path
    count: int
    failed: int
    missing: list[int]
    audio_seconds: float
    tokens: int


def merge(folder: str | os.PathLike) -> Merged:
    """Join all parts of a job in the order of its input into results.jsonl, where no result is missing.

    Raises `ValueError` for a folder without a job, `OSError` for files that cannot be read or written.
    """
    folder = Path(folder)
    fingerprint = _read_job(folder) if folder.is_dir() else None
    if fingerprint is None or not isinstance(fingerprint.get("items"), int):
        raise ValueError(f"{folder} holds no batch job (no {JOB}): give the folder that the job wrote to")
    count, found = fingerprint["items"], find_results(folder, _name(fingerprint))
    missing = [index for index in range(count) if index not in found]
    path = folder / RESULTS
    if missing:
        return Merged(path, count, 0, missing, 0.0, 0)
    failed, seconds, tokens = 0, 0.0, 0
    files = {part: open(part, "rb") for _, part in _parts(folder)}
    try:
        with replacing(path) as temporary, open(temporary, "wb") as merged:
            for index in range(count):
                place = found[index]
                files[place.path].seek(place.offset)
                record = json.loads(files[place.path].read(place.length))
                extra = {EXTRA: record[EXTRA]} if record.get(EXTRA) else {}
                merged.write(_dump({name: record.get(name) for name in FIELDS} | extra))
                failed += not place.good
                seconds += record.get("seconds") or 0.0
                tokens += record.get("tokens") or 0
            merged.flush()
    finally:
        for file in files.values():
            file.close()
    return Merged(path, count, failed, [], seconds, tokens)
