"""Clips decoded ahead of the device, in processes that import no MindSpore and end with the one that needs them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

import numpy as np

from mindone_audio.batch.job import BatchError
from mindone_audio.batch.manifest import Item
from mindone_audio.inputs.audio import SAMPLING_RATE, load_clip
from mindone_audio.inputs.paths import resolve_clip
from mindone_audio.machine.processes import die_with_parent
from mindone_audio.setting_fields import in_words, option

MAX_SECONDS = 3600.0  # of audio that waits for the device, which bounds the memory
TIME_LIMIT = 300.0  # seconds for one item, after which its decoder is killed
POLL = 0.2  # seconds


@dataclass(frozen=True)
class Decoded:
    """An item with the float32 samples of its clips at 16 kHz, or with the reason why there are none."""

    item: Item
    clips: list[np.ndarray]
    error: str | None = None

    @property
    def seconds(self) -> float:
        """Audio in all."""
        return sum(len(clip) for clip in self.clips) / SAMPLING_RATE


def work(descriptor: int, parent: int, folder: str | None) -> None:
    """Decode sources from the connection and send samples or a message back, until the other side is gone."""
    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the line above
        return
    connection = Connection(descriptor)
    connection.send("ready")
    while True:
        try:
            sources = connection.recv()
        except EOFError:
            return
        try:
            answer = [load_clip(resolve_clip(source, folder)) for source in sources], None
        except Exception as error:  # any exception of a decoder is the error of that clip
            answer = [], in_words(error, option) or type(error).__name__
        try:
            connection.send(answer)
        except BrokenPipeError:
            return


class _Decoder:
    """One process, the pipe to it, and the item it works on; None until it has said that it is ready."""

    def __init__(self, folder: str | None):
        self.connection, theirs = Pipe()
        package = str(Path(__file__).resolve().parents[2])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        arguments = f"{theirs.fileno()}, {os.getpid()}, {folder!r}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from mindone_audio.batch.decode_ahead import work; work({arguments})"],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        theirs.close()
        self.item: Item | None = None
        self.deadline = time.monotonic() + TIME_LIMIT

    def start(self, item: Item, limit: float) -> bool:
        """Give it an item; False where the process is gone."""
        try:
            self.connection.send(item.clips)
        except (BrokenPipeError, ConnectionResetError):
            return False
        self.item, self.deadline = item, time.monotonic() + limit
        return True

    def end(self) -> int:
        """Kill it; returns its exit status, which is its own where it had ended before."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


class DecodeAhead:
    """Decodes items in other processes, in about their order, a bounded number ahead of who takes them.

    A decoder that dies or hangs is replaced, and its item has an error. Use it as a context manager.
    """

    def __init__(
        self, items: Iterable[Item], workers: int, ahead: int, folder: str | None = None, time_limit: float = TIME_LIMIT
    ):
        self._items: Iterator[Item] = iter(items)
        self._workers, self._ahead, self._folder, self._limit = workers, ahead, folder, time_limit
        self._ready: deque[Decoded] = deque()
        self._seconds, self._finished, self._closed = 0.0, False, False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="decode-ahead", daemon=True)

    def __enter__(self) -> "DecodeAhead":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def exhausted(self) -> bool:
        """Nothing is left and nothing will come."""
        with self._changed:
            return self._finished and not self._ready and self._failure is None

    def take(self, timeout: float = POLL) -> Decoded | None:
        """The next item that is decoded, None where there is none within `timeout` seconds.

        Raises `BatchError` where no decoder can be started.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._finished, timeout)
            if not self._ready:
                if self._failure is not None:
                    raise BatchError(f"decoding cannot go on: {self._failure}") from self._failure
                return None
            decoded = self._ready.popleft()
            self._seconds -= decoded.seconds
            self._changed.notify_all()
            return decoded

    def _run(self) -> None:
        # The decoders inherit this. The main process handles a signal to the whole group; the decoders end with it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        idle: list[_Decoder] = []
        busy: list[_Decoder] = []
        try:
            self._decode(idle, busy)
        except Exception as error:  # `take` raises it in the thread of its caller
            self._failure = error
        finally:
            for decoder in idle + busy:
                decoder.end()
            with self._changed:
                self._finished = True
                self._changed.notify_all()

    def _decode(self, idle: list[_Decoder], busy: list[_Decoder]) -> None:
        waiting = next(self._items, None)
        while not self._closed and (waiting is not None or any(decoder.item for decoder in busy)):
            working = sum(decoder.item is not None for decoder in busy)
            while waiting is not None and self._has_room(working):
                if not idle:
                    if len(busy) < self._workers:
                        busy.append(_Decoder(self._folder))
                    break
                decoder = idle.pop()
                if not decoder.start(waiting, self._limit):
                    decoder.end()
                    continue
                busy.append(decoder)
                waiting, working = next(self._items, None), working + 1
            if not busy:
                with self._changed:
                    self._changed.wait(POLL)
            for decoder in wait([decoder.connection for decoder in busy], timeout=POLL) if busy else ():
                self._receive(next(d for d in busy if d.connection is decoder), idle, busy)
            for decoder in [d for d in busy if time.monotonic() > d.deadline]:
                self._drop(decoder, busy, f"was not decoded within {self._limit:g} s")

    def _has_room(self, working: int) -> bool:
        with self._changed:
            return len(self._ready) + working < self._ahead and self._seconds < MAX_SECONDS

    def _receive(self, decoder: _Decoder, idle: list[_Decoder], busy: list[_Decoder]) -> None:
        try:
            answer = decoder.connection.recv()
        except (EOFError, ConnectionResetError):
            self._drop(decoder, busy, None)
            return
        busy.remove(decoder)
        idle.append(decoder)
        if decoder.item is not None:
            self._deliver(Decoded(decoder.item, *answer))
            decoder.item = None

    def _drop(self, decoder: _Decoder, busy: list[_Decoder], problem: str | None) -> None:
        """End a decoder; its item has failed."""
        busy.remove(decoder)
        status = decoder.end()
        if decoder.item is None:
            raise BatchError(f"a decoder process ended with status {status} before it began; its messages are above")
        name = f"signal {-status}" if status < 0 else f"status {status}"
        self._deliver(Decoded(decoder.item, [], f"the clip {problem or f'ended its decoder process ({name})'}"))

    def _deliver(self, decoded: Decoded) -> None:
        with self._changed:
            self._ready.append(decoded)
            self._seconds += decoded.seconds
            self._changed.notify_all()
