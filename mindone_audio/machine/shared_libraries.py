"""Which shared libraries a library needs and where the loader looks for them, read from files without loading any.

Loading MindSpore's Ascend plugin to see what it says would start CANN in this process. Standard library only.
"""

import glob
import os
import re
import struct
from collections.abc import Iterable, Mapping

from mindone_audio.machine.tree import below, exists, read_text, split_paths

_SYSTEM = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")
_TRIPLETS = ("x86_64-linux-gnu", "aarch64-linux-gnu")
# Python and MindSpore itself run with these.
_ALWAYS_THERE = (
    "libstdc++.so",
    "libgcc_s.so",
    "libc.so",
    "libm.so",
    "libdl.so",
    "libpthread.so",
    "librt.so",
    "libutil.so",
    "ld-linux",
)
_LOAD, _DYNAMIC = 1, 2  # kinds of segments (elf(5))
_LARGEST = 1 << 22  # bytes of a table that are read; a damaged file may claim any size
_NEEDED, _STRING_TABLE, _STRING_SIZE, _RPATH, _RUNPATH = 1, 5, 10, 15, 29  # tags of the dynamic section


def loader_folders(root: str | os.PathLike, environ: Mapping[str, str]) -> list[str]:
    """Where the loader looks for a library: LD_LIBRARY_PATH, the folders of /etc/ld.so.conf, the system's."""
    folders = split_paths(environ.get("LD_LIBRARY_PATH"))
    waiting, seen = ["/etc/ld.so.conf"], set()
    while waiting:
        file = waiting.pop(0)
        for line in read_text(root, file).splitlines() if file not in seen else ():
            line = line.partition("#")[0].strip()
            if line.startswith("include "):
                pattern = os.path.join(os.path.dirname(file), line.split(None, 1)[1])
                own = below(root, "/")
                files = sorted(glob.glob(below(glob.escape(own), pattern)))
                waiting += [f"/{os.path.relpath(path, own)}" for path in files]
            elif line:
                folders.append(line)
        seen.add(file)
    folders += [f"{folder}/{triplet}" for folder in ("/lib", "/usr/lib") for triplet in _TRIPLETS]
    return list(dict.fromkeys((*folders, *_SYSTEM)))


def find_library(root: str | os.PathLike, name: str, folders: Iterable[str]) -> str | None:
    return next((f"{folder}/{name}" for folder in folders if exists(root, f"{folder}/{name}")), None)


def missing_libraries(root: str | os.PathLike, path: str, folders: Iterable[str]) -> dict[str, str]:
    """The libraries that the loader does not find for `path`, each with the library that needs it.

    Those that it finds are looked through as well. A library's own run path serves also what it loads (ld.so(8)).
    Empty for a file that is no library of 64 bits.
    """
    folders = list(folders)
    missing, seen = {}, {os.path.basename(path)}
    waiting: list[tuple[str, list[str]]] = [(path, [])]  # a library, and the run paths of those that load it
    while waiting:
        current, inherited = waiting.pop(0)
        names, run_path = needs(below(root, current))
        run_path = [re.sub(r"\$ORIGIN|\$\{ORIGIN\}", os.path.dirname(current), entry) for entry in run_path] + inherited
        for name in names:
            if name in seen or name.startswith(_ALWAYS_THERE):
                continue
            seen.add(name)
            place = find_library(root, name, [*run_path, *folders])
            if place is None:
                missing[name] = os.path.basename(current)
            else:
                waiting.append((place, run_path))
    return missing


def needs(path: str) -> tuple[list[str], list[str]]:
    """The libraries that an ELF file of 64 bits names, and the folders where it wants them looked for first."""
    try:
        with open(path, "rb") as file:
            return _dynamic(file)
    except (OSError, ValueError, OverflowError, struct.error, IndexError):
        return [], []


def _dynamic(file) -> tuple[list[str], list[str]]:
    header = file.read(64)
    if header[:5] != b"\x7fELF\x02":
        return [], []
    order = "<" if header[5] == 1 else ">"
    (offset,) = struct.unpack_from(order + "Q", header, 32)
    size, count = struct.unpack_from(order + "HH", header, 54)
    file.seek(offset)
    table = file.read(size * count)
    segments = [struct.unpack_from(order + "IIQQQQ", table, size * index) for index in range(count)]
    dynamic = next((segment for segment in segments if segment[0] == _DYNAMIC), None)
    if dynamic is None:
        return [], []
    file.seek(dynamic[2])
    entries = list(struct.iter_unpack(order + "QQ", file.read(min(dynamic[5], _LARGEST) // 16 * 16)))
    values = dict(entries)
    # The string table is given by its address in memory; a segment tells where that is in the file.
    start = values[_STRING_TABLE] if _STRING_TABLE in values else 0
    loaded = next((s for s in segments if s[0] == _LOAD and s[3] <= start < s[3] + s[5]), None)
    if loaded is None:
        return [], []
    file.seek(start - loaded[3] + loaded[2])
    strings = file.read(min(values.get(_STRING_SIZE, 0), _LARGEST))

    def texts(*tags: int) -> list[str]:
        places = [value for tag, value in entries if tag in tags]
        return [strings[place : strings.index(b"\0", place)].decode("utf-8", "replace") for place in places]

    paths = [folder for text in texts(_RPATH, _RUNPATH) for folder in split_paths(text)]
    return texts(_NEEDED), paths
