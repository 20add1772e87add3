"""Files and folders that take the place of others whole: a process that is killed leaves the old or the new."""

import errno
import filecmp
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".part"  # how the names of what is being written end; a killed process leaves such files behind


def unfinished_name(path: Path) -> Path:
    """A hidden name beside `path` that no other process draws, in this container or another one."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{UNFINISHED}")


def is_unfinished(name: str) -> bool:
    """Whether `unfinished_name` made this name."""
    return name.startswith(".") and name.endswith(UNFINISHED)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new empty file to write to, which takes the place of `path` when the block ends, and goes if it raises."""
    temporary = unfinished_name(path)
    try:
        open(temporary, "xb").close()
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A new folder to write to, which becomes `target`, where there is nothing or an empty folder, when the block ends.

    It stands beside `target`, and what killed processes left there for the same target goes.
    """
    target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_folder(target)
    try:
        yield temporary
        sync_tree(temporary)
        os.replace(temporary, target)
        sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def filling(folder: Path, marker: str) -> Iterator[Path]:
    """A new folder to write to, whose files go into `folder` when the block ends, each in the place of the old one.

    marker: the file without which the others are of no use, such as a configuration. It comes last, and where more
    than one file changes the old marker goes first. So a process that is killed leaves the old files, the new ones,
    or for a moment no marker, and never a marker with the files of another. What killed processes left there goes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_folder(folder / marker)
    try:
        yield temporary
        sync_tree(temporary)
        names = sorted(os.listdir(temporary), key=lambda name: (name == marker, name))
        changed = [name for name in names if not _equal(temporary / name, folder / name)]
        if len(changed) > 1:
            (folder / marker).unlink(missing_ok=True)
            sync(folder)
        for name in names:
            if name in changed or name == marker:
                os.replace(temporary / name, folder / name)
        sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(path: Path) -> None:
    """See a file, or the names in a folder, on the disk, as far as the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of folders, on some network file systems
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """See a folder and all that is in it on the disk."""
    for parent, _, files in os.walk(folder, topdown=False):
        for file in files:
            sync(Path(parent, file))
        sync(Path(parent))


def _temporary_folder(path: Path) -> Path:
    """A new folder beside `path`, without those that killed processes left for it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{UNFINISHED}"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = unfinished_name(path)
    temporary.mkdir()
    return temporary


def _equal(new: Path, old: Path) -> bool:
    return old.is_file() and filecmp.cmp(new, old, shallow=False)
