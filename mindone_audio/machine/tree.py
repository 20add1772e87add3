"""Files below a root: a machine, a mounted image, or the tree of a test. Standard library only.

Every absolute path is looked up below `root`. What is missing, unreadable or no path at all is empty, never an
exception.
"""

import os
import stat

_LARGEST_FILE = 65536  # bytes that are read; the real files have a few hundred
_LONGEST_VALUE = 1000  # characters of a value that are kept; a list of compatible versions has a few hundred


def below(root: str | os.PathLike, path: str) -> str:
    return os.path.join(root, path.lstrip("/"))


def resolved(root: str | os.PathLike, path: str) -> str:
    try:
        return os.path.realpath(below(root, path))
    except (OSError, ValueError):
        return path


def status(root: str | os.PathLike, path: str) -> os.stat_result | None:
    try:
        return os.stat(below(root, path))
    except (OSError, ValueError):
        return None


def is_folder(root: str | os.PathLike, path: str) -> bool:
    return os.path.isdir(below(root, path))


def exists(root: str | os.PathLike, path: str) -> bool:
    return os.path.exists(below(root, path))


def children(root: str | os.PathLike, path: str) -> list[str]:
    try:
        return sorted(os.listdir(below(root, path)))
    except (OSError, ValueError):
        return []


def read_text(root: str | os.PathLike, path: str) -> str:
    """The beginning of a text file; empty for what is missing, unreadable, binary or not a regular file."""
    found = status(root, path)
    if found is None or not stat.S_ISREG(found.st_mode):  # a pipe would wait for ever
        return ""
    try:
        with open(below(root, path), "rb") as file:
            content = file.read(_LARGEST_FILE)
    except (OSError, ValueError):
        return ""
    return "" if b"\0" in content else content.decode("utf-8", "replace")


def read_pairs(root: str | os.PathLike, path: str, sign: str = "=") -> dict[str, str]:
    """The lines `name=value` of a file, or those with another sign between."""
    pairs = [line.partition(sign) for line in read_text(root, path).splitlines()]
    return {name.strip(): value.strip()[:_LONGEST_VALUE] for name, _, value in pairs if value.strip()}


def split_paths(text: str | None) -> list[str]:
    """The entries of a variable such as LD_LIBRARY_PATH."""
    return [entry.rstrip("/") or "/" for entry in (text or "").split(":") if entry]
