"""What /proc tells of the process that asks: its user, its groups, what it may open and on which cores it runs."""

import os
import re
from dataclasses import dataclass

from mindone_audio.machine.tree import below, read_pairs, read_text, resolved, status

_OVERRIDES_RIGHTS = 1 << 1  # CAP_DAC_OVERRIDE of capabilities(7): reads and writes whatever the rights of a file


@dataclass(frozen=True)
class Process:
    user: int
    groups: frozenset[int]
    overrides_rights: bool  # as root does, unless the container dropped it
    cores: str  # such as 0-23,48


def read_process(root: str | os.PathLike) -> Process | None:
    """`None` where there is no /proc."""
    pairs = read_pairs(root, "/proc/self/status", ":")
    user = numbers(pairs.get("Uid"))[1:2]  # the effective one, after the real one
    if not user:
        return None
    groups = frozenset(numbers(pairs.get("Groups")) + numbers(pairs.get("Gid"))[1:2])
    rights = re.fullmatch("[0-9a-f]{1,16}", pairs.get("CapEff", ""))
    overrides = bool(rights and int(rights[0], 16) & _OVERRIDES_RIGHTS)
    return Process(user[0], groups, overrides, pairs.get("Cpus_allowed_list", ""))


def may_use(root: str | os.PathLike, path: str, process: Process | None, rights: int) -> bool:
    """Whether the process has `rights`, of os.R_OK, os.W_OK and os.X_OK, on a file or folder; true where it is absent.

    The system itself is asked about its own files. For a tree that stands elsewhere the rights are computed.
    """
    found = status(root, path)
    if found is None or (process and process.overrides_rights):
        return found is None or not _is_own(root) or os.access(below(root, path), rights)
    if process is None or _is_own(root):
        return os.access(below(root, path), rights)
    shift = 6 if found.st_uid == process.user else 3 if found.st_gid in process.groups else 0
    return (found.st_mode >> shift) & rights == rights


def has_account(root: str | os.PathLike, user: int) -> bool:
    """Whether a user has an entry, in /etc/passwd or in what else this system asks."""
    if any(line.split(":")[2:3] == [str(user)] for line in read_text(root, "/etc/passwd").splitlines()):
        return True
    if not _is_own(root):
        return not read_text(root, "/etc/passwd")
    try:
        import pwd

        pwd.getpwuid(user)
    except (ImportError, KeyError):
        return False
    return True


def group_name(root: str | os.PathLike, group: int) -> str | None:
    entries = [line.split(":") for line in read_text(root, "/etc/group").splitlines()]
    return next((entry[0] for entry in entries if entry[2:3] == [str(group)]), None)


def open_files(root: str | os.PathLike) -> int | None:
    """How many files a process may open (its soft limit), `None` where that is unknown or unlimited."""
    match = re.search(r"^Max open files\s+([0-9]{1,12})\s", read_text(root, "/proc/self/limits"), re.MULTILINE)
    return int(match[1]) if match else None


def numbers(text: str | None) -> list[int]:
    return [int(word) for word in (text or "").split() if re.fullmatch("[0-9]{1,10}", word)]


def in_list(text: str | None) -> set[int]:
    """The numbers of a list such as 0-23,48."""
    members: set[int] = set()
    for first, last in re.findall(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text or ""):
        members |= set(range(int(first), int(last or first) + 1))
    return members


def _is_own(root: str | os.PathLike) -> bool:
    return resolved(root, "/") == "/"
