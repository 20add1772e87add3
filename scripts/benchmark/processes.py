"""Processes of their own for the contenders of `benchmark.py`, which take turns; their threads and memory."""

import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmark.common import BenchmarkError

SECONDS_TO_END = 5  # that a process has to end by itself


def use_threads(count: int) -> None:
    """Let this process compute on `count` cores; to be called before MindSpore or PyTorch is imported.

    PyTorch takes its number from OMP_NUM_THREADS. MindSpore 2.10 does for oneDNN only: its own kernels' pool is as
    large as the set of cores that the process may use (measured), so that set is cut as well.
    """
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(count)
    if hasattr(os, "sched_setaffinity") and count < len(os.sched_getaffinity(0)):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def explain(error: Exception) -> str:
    """One line for what a user can correct, the traceback for what is a mistake in the code."""
    if isinstance(error, ImportError):
        return f"{error}: the comparison needs pip install -r tests/requirements.txt"
    if isinstance(error, (BenchmarkError, ValueError, OSError)):
        return " ".join(str(error).split())
    return traceback.format_exc()


def serve(connection, make: Callable[..., Callable], arguments: tuple) -> None:
    """In a process of its own: `make` loads and gives a function, whose answer each request gets."""
    try:
        answer = make(*arguments)
        connection.send({"result": None})
        while (request := connection.recv()) is not None:
            connection.send({"result": answer(request)})
    except EOFError:
        pass  # whoever asked is gone
    except Exception as error:
        connection.send({"error": explain(error)})


class Child:
    """A process that answers requests, started from a fresh interpreter, which imports nothing before `make` does."""

    def __init__(self, make: Callable[..., Callable], *arguments):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, make, arguments))
        self.process.start()
        theirs.close()

    def answer(self):
        """Wait for what the process has to say; the first answer, None, is that it has loaded."""
        try:
            answer = self.connection.recv()
        except EOFError:
            self.process.join()
            raise BenchmarkError(
                f"a measuring process ended with status {self.process.exitcode}: perhaps too little memory"
            ) from None
        if "error" in answer:
            raise BenchmarkError(answer["error"])
        return answer["result"]

    def send(self, request) -> None:
        """Ask without waiting."""
        try:
            self.connection.send(request)
        except OSError:
            self.answer()  # it has gone, and has said why

    def ask(self, request):
        """Ask, and wait for the answer."""
        self.send(request)
        return self.answer()

    def close(self) -> None:
        """End the process: by itself where it is not at work, so that it ends those that it has started."""
        try:
            self.connection.send(None)
        except OSError:
            pass  # it has gone
        self.process.join(SECONDS_TO_END)
        if self.process.is_alive():
            self.process.terminate()
        self.process.join()


class Team(dict):
    """Children by name, all loaded and none at work; leaving the `with` ends them."""

    def __init__(self, starts: Mapping[str, tuple]):
        super().__init__()
        try:
            for name, (make, *arguments) in starts.items():
                self[name] = Child(make, *arguments)
            for child in self.values():
                child.answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        for child in self.values():
            child.close()

    def take_turns(self, requests: Sequence, rounds: int) -> dict[str, dict[str, list[float]]]:
        """Each request to each child in each round, in changing order: by child and figure, a value for each round.

        A child answers with {figure: value}.
        """
        names = list(self)
        series: dict[str, dict[str, list[float]]] = {name: {} for name in names}
        for number in range(rounds):
            show_progress(f"round {number + 1} of {rounds}")
            for request in requests:
                for name in order(names, number):
                    for figure, value in self[name].ask(request).items():
                        series[name].setdefault(figure, []).append(value)
        show_progress("")
        return series


def order(names: list, number: int) -> list:
    """Whose turn it is in a round: each comes first as often, and the direction changes."""
    turn = names[number % len(names) :] + names[: number % len(names)]
    return turn[::-1] if number // len(names) % 2 else turn


def in_a_process(make: Callable[..., Callable], *arguments, request):
    """The one answer of a process that then ends."""
    with Team({"only": (make, *arguments)}) as team:
        return team["only"].ask(request)


def first_answers(starts: Mapping[str, tuple]) -> dict[str, float]:
    """Seconds from the start of a process to its first answer, imports and loading included, each by itself.

    Ours twice: without kept graphs, and with those that another process has kept. starts: as for `Team`.
    """
    seconds = {}
    with tempfile.TemporaryDirectory() as kept:
        for name, start in starts.items():
            runs = [(name, "0")]
            if name == "ours":
                in_a_process(_first, kept, *start, request="")
                runs.append((f"{name}, graphs kept by another process", kept))
            for shown, cache in runs:
                show_progress(f"first answer: {shown}")
                begun = time.perf_counter()
                in_a_process(_first, cache, *start, request="")
                seconds[shown] = time.perf_counter() - begun
    show_progress("")
    return seconds


def _first(cache: str, make: Callable[..., Callable], *arguments) -> Callable:
    os.environ["MINDONE_AUDIO_COMPILE_CACHE"] = cache
    make(*arguments)
    return lambda _: None


def show_progress(text: str) -> None:
    """A line on a terminal that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise BenchmarkError(f"/proc/self/status has no {field}: memory is measured on Linux only")


def resident() -> int:
    """Bytes of this process in memory now."""
    return _status("VmRSS")


def peak_memory() -> int:
    """The most bytes that this process has had resident since `forget_peak`, or its start."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Start `peak_memory` anew; where the kernel does not let us, it goes on and can only be larger."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
