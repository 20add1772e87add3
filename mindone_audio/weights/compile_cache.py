"""Compiled graphs that are kept on disk, so that the next process need not compile them: seconds of each first answer.

MindSpore can save the graph that its compiler's front end makes, and load it instead. But it finds one by the order of
compilations in a process, and checks nothing of what the graph was made from. So here each graph has an entry of its
own, `<key>.graph`, named after all that it depends on (`graph_key`). MindSpore only ever sees a private folder with the
one entry that it is to load, or none, and is told to look there for this one compilation. Parameters are not in the
entry: MindSpore takes the cell's own, by name.

The folder is `$XDG_CACHE_HOME/mindone_audio/graphs`, by default in `~/.cache`. MINDONE_AUDIO_COMPILE_CACHE=0 turns the
cache off, any other path is the folder to use. Nothing about the cache is an error: what cannot be read or written is
compiled. An entry begins with its checksum; one that is damaged, or a folder that others can write, is not read.

Proved on a CPU with MindSpore 2.10; it is off with other versions, and on Ascend, where MindSpore keeps more files
beside the graph and CANN has a cache of its own for kernels. Compile in one thread at a time, as MindSpore asks: what
another thread compiles with `mindspore.jit` meanwhile could be given this one's graph.
"""

import contextlib
import functools
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mindspore as ms
from mindspore import nn
from mindspore._c_expression import MSContext, ms_ctx_param

from mindone_audio.machine import device
from mindone_audio.machine.files import is_unfinished, replacing
from mindone_audio.weights.graph_key import NoKey, graph_key

logger = logging.getLogger(__name__)

COMPILING = logging.getLogger("mindone_audio.compiling")  # of which a command shows the lines on a terminal
VARIABLE = "MINDONE_AUDIO_COMPILE_CACHE"
MOST_BYTES = 2 << 30  # of all entries together; those not used for longest go
_CHECKSUM = hashlib.sha256().digest_size
_ABANDONED = 3600  # seconds after which an unfinished file was left by a process that is gone
_PROVED = "2.10."  # how versions of MindSpore begin of which the above is known
_UNSET = -1  # what MindSpore's switch is where nobody has set it
# What MindSpore says of its cache in each compilation; it is true of MindSpore's own check only.
_SAID = (
    b"Be aware of correctness risks",
    b"MS_DEV_FORCE_USE_COMPILE_CACHE",
    b"Open the compilation cache file",
    b"Failed to load the compilation cache file",
)


def first_call(cell: nn.Cell, compiled: Callable, arguments: tuple, what: str = "a graph"):
    """`compiled(*arguments)`, where `compiled` is the cell as a graph that MindSpore has not compiled yet.

    The graph is loaded from the cache, or compiled and put there. what: it is, for people.
    """
    entry = _entry(cell, arguments)
    if entry is None:
        with announced(what):
            return compiled(*arguments)
    graph, phases = _read(entry), dict(cell.phase_cache)
    try:
        with announced(what) if graph is None else contextlib.nullcontext():
            output, made = _staging.call(compiled, arguments, graph)
    except Exception as error:
        if graph is None or cell.phase_cache != phases:  # it failed without the cache, or after it was loaded
            raise
        _note(f"the kept graph {entry} cannot be loaded, it is compiled again: {error}")
        with contextlib.suppress(OSError):
            entry.unlink()
        with announced(what):
            return compiled(*arguments)
    if made is not None:
        _write(entry, made)
    return output


@contextlib.contextmanager
def announced(what: str) -> Iterator[None]:
    """Say that something is compiled, which a person would otherwise take for a program that hangs, and how long."""
    COMPILING.info("compiling %s, once for this size ...", what)
    start = time.perf_counter()
    yield
    COMPILING.info("compiled %s in %.1f s", what, time.perf_counter() - start)


def _entry(cell: nn.Cell, arguments: tuple) -> Path | None:
    """The file of a graph; None for one that is not kept."""
    folder = _folder()
    if folder is None or not _staging.usable():
        return None
    try:
        return folder / f"{graph_key(cell, arguments)}.graph"
    except NoKey as reason:
        _note(f"a graph of {type(cell).__name__} is not kept: {reason}")
        return None


@functools.cache
def _note(message: str) -> None:
    """Say something about the cache, once."""
    logger.info(message)


def _folder() -> Path | None:
    """Where the entries are: a folder of the user alone; None where there is no cache."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen == "0" or not device.saves_graphs() or not ms.__version__.startswith(_PROVED):
        return None
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
        caches = caches if caches.is_absolute() else Path.home() / ".cache"
        folder = Path(chosen).expanduser() if chosen else caches / "mindone_audio" / "graphs"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(folder.stat()):
            _note(f"graphs are not kept: the folder {folder} is another user's, or others can write to it")
            return None
    except (OSError, RuntimeError) as error:  # RuntimeError: of a user without a home
        _note(f"graphs are not kept: {error}")
        return None
    return folder


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _read(entry: Path) -> bytes | None:
    """The graph of an entry, which counts as used now; None where there is none, or a damaged one, which goes."""
    try:
        with open(entry, "rb") as file:
            private, content = _is_private(os.fstat(file.fileno())), file.read()
        checksum, graph = content[:_CHECKSUM], content[_CHECKSUM:]
        if private and hashlib.sha256(graph).digest() == checksum:
            with contextlib.suppress(OSError):  # where it can only be read
                os.utime(entry)
            return graph
        _note(f"the kept graph {entry} is damaged, or others can write it: it is compiled again")
        entry.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        _note(f"the kept graph {entry} cannot be read: {error}")
    return None


def _write(entry: Path, graph: bytes) -> None:
    try:
        with replacing(entry) as file:
            file.write_bytes(hashlib.sha256(graph).digest() + graph)
        _drop_oldest(entry.parent)
    except OSError as error:
        _note(f"a graph is not kept: {error}")


def _drop_oldest(folder: Path) -> None:
    """Remove what was not used for longest, until the entries are small enough, and what killed processes left."""
    entries = []
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process drops it too
            status = file.stat()
            if file.suffix == ".graph":
                entries.append((status.st_mtime, status.st_size, file))
            elif is_unfinished(file.name) and status.st_mtime < time.time() - _ABANDONED:
                file.unlink()
    total = sum(size for _, size, _ in entries)
    for _, size, file in sorted(entries):
        if total <= MOST_BYTES:
            return
        file.unlink(missing_ok=True)
        total -= size


class _Staging:
    """The folder that MindSpore reads and writes, of which it takes the path once a process, and its files' numbers.

    MindSpore numbers the compilations for which its cache is on. A number that is not the one expected here costs a
    compilation: then it does not find the entry, which is the only one there.
    """

    def __init__(self):
        self._folder: tempfile.TemporaryDirectory | None = None
        self._process, self._next, self._lock = 0, 0, threading.Lock()

    def usable(self) -> bool:
        """Whether MindSpore looks here: not where its user has a cache of MindSpore's own, nor after a fork."""
        context = MSContext.get_instance()
        theirs = any(name in os.environ for name in ("MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH", "MS_ROLE"))
        with self._lock:  # not while a compilation has it switched on
            if theirs or context.get_param(ms_ctx_param.enable_compile_cache) != _UNSET:
                return False
            try:
                if self._folder is None:
                    if context.get_param(ms_ctx_param.compile_cache_path):
                        return False
                    self._folder = tempfile.TemporaryDirectory(prefix="mindone_audio-", ignore_cleanup_errors=True)
                    self._process = os.getpid()
                return self._process == os.getpid() and _is_private(os.lstat(self._folder.name))
            except OSError as error:
                _note(f"graphs are not kept: {error}")
                return False

    def call(self, compiled: Callable, arguments: tuple, graph: bytes | None) -> tuple[object, bytes | None]:
        """What the call returns, which loads `graph` instead of compiling one, and the graph that it compiled if so."""
        with self._lock:
            try:
                self._clear()
                placed = self._place(graph)
            except OSError as error:
                _note(f"graphs are not kept: {error}")
                return compiled(*arguments), None
            try:
                with self._switched_on(), _without_lines(_SAID):
                    output = compiled(*arguments)
                found = self._files()
            finally:
                with contextlib.suppress(OSError):
                    self._clear()
            self._next = max([self._next, *found]) + 1
            made = [content for number, content in found.items() if placed.get(number) != content]
            return output, made[0] if len(made) == 1 else None

    def _place(self, graph: bytes | None) -> dict[int, bytes]:
        """Put a graph, if there is one, where MindSpore looks next."""
        if graph is None:
            return {}
        file = Path(self._folder.name, "rank_0", "graph_cache", f"compile_cache_{self._next}.mindir")
        file.parent.mkdir(mode=0o700, parents=True)
        file.write_bytes(graph)
        return {self._next: graph}

    def _files(self) -> dict[int, bytes]:
        """The graphs in the folder by their numbers; none where one cannot be read."""
        try:
            files = Path(self._folder.name).rglob("*compile_cache_*.mindir")
            return {int(file.stem.rpartition("_")[2]): file.read_bytes() for file in files}
        except OSError:
            return {}

    def _clear(self) -> None:
        for file in Path(self._folder.name).iterdir():
            shutil.rmtree(file)

    @contextlib.contextmanager
    def _switched_on(self) -> Iterator[None]:
        # Not by MindSpore's environment variables: then its Python half reads the program's source files, and fails
        # where there is none, as in a notebook.
        context = MSContext.get_instance()
        context.set_param(ms_ctx_param.compile_cache_path, self._folder.name)
        context.set_param(ms_ctx_param.enable_compile_cache, 1)
        try:
            yield
        finally:
            context.set_param(ms_ctx_param.enable_compile_cache, _UNSET)
            context.set_param(ms_ctx_param.compile_cache_path, "")


_staging = _Staging()


@contextlib.contextmanager
def _without_lines(said: tuple[bytes, ...]) -> Iterator[None]:
    """Hold back what is written to standard error, then write it, except lines with one of `said` in them.

    MindSpore's C++ writes there itself, and reads its log levels once a process. A file and no pipe, since MindSpore
    does not let another Python thread run to empty it.
    """
    with contextlib.ExitStack() as stack:
        try:
            held, before = stack.enter_context(tempfile.TemporaryFile()), os.dup(2)
        except OSError:  # no standard error, or no space
            held = None
        if held is None:
            yield
            return
        stack.callback(os.close, before)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            held.seek(0)
            with contextlib.suppress(OSError):  # nobody reads it any more
                for line in held:
                    if not any(words in line for words in said):
                        os.write(2, line)
