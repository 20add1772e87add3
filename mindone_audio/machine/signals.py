"""SIGINT and SIGTERM, taken by a thread.

When MindSpore compiles its first graph it replaces the handler of SIGINT by one that sends SIGTERM to the process, so
that Ctrl-C could not be told from a scheduler's request to finish.
"""

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WAKE_EVERY, WAKE_TRIES = 0.05, 20  # seconds; a library that works for longer takes the interruption afterwards


class Signals:
    """A context in which SIGINT is a KeyboardInterrupt in the main thread and, where asked, SIGTERM only sets
    `terminated`.

    Enter it in the main thread before other threads exist, NumPy's included: they inherit that the signals are blocked.
    In any other thread it does nothing. A KeyboardInterrupt that comes while a library calls back, as soundfile does
    while it reads, is lost there, so whoever works for long calls `check` now and then.
    """

    def __init__(self, hold_terminate: bool = False):
        self._signals = {signal.SIGTERM} if hold_terminate else set()
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as nohup and `&` in a script have it
            self._signals.add(signal.SIGINT)
        self._closed, self._woken = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self.terminated = 0  # how often SIGTERM came
        self.interrupted = False
        self._held: Callable[[], None] | None = None
        self._came = 0.0  # when the last SIGINT did, on the monotonic clock

    def check(self, older: float = 0.0) -> None:
        """Raise the `KeyboardInterrupt` that was lost, if it came so many seconds ago; one that was not lost is on its
        way for much less than one."""
        if self.interrupted and time.monotonic() - self._came >= older:
            raise KeyboardInterrupt

    @contextmanager
    def hold_interrupt(self, tell: Callable[[], None]) -> Iterator[None]:
        """Inside, the first SIGINT only sets `interrupted` and calls `tell`, in another thread; the next one is a
        KeyboardInterrupt."""
        self._held = tell
        try:
            yield
        finally:
            self._held = None

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            self._signals.clear()
        if not self._signals:
            return self
        self._wake = signal.signal(signal.SIGURG, lambda *_: self._woken.set())
        self._main = threading.get_ident()
        # The thread inherits that SIGURG is blocked and waits for it too: it is told by it that all is over.
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*self._signals, signal.SIGURG})
        self._thread.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGURG} - self._mask)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def __exit__(self, *_) -> None:
        if not self._signals:
            return
        self._closed.set()
        signal.pthread_kill(self._thread.ident, signal.SIGURG)
        self._thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        signal.signal(signal.SIGURG, self._wake)
        sys.unraisablehook = self._hook

    def _unraisable(self, lost) -> None:
        """Says nothing of a KeyboardInterrupt that was lost, which `check` raises again, and of what comes of it."""
        if not self.interrupted:
            self._hook(lost)

    def _watch(self) -> None:
        while not self._closed.is_set():
            # Not sigtimedwait, which macOS lacks.
            found = signal.sigwait({*self._signals, signal.SIGURG})
            if found == signal.SIGTERM:
                self.terminated += 1
            elif found == signal.SIGINT and self._held is not None and not self.interrupted:
                self.interrupted = True
                self._held()
            elif found == signal.SIGINT:
                self._came, self.interrupted = time.monotonic(), True
                _thread.interrupt_main()
                self._wake_main()

    def _wake_main(self) -> None:
        """End a system call that the main thread waits in; again where it was only about to begin one."""
        self._woken.clear()
        for _ in range(WAKE_TRIES):
            signal.pthread_kill(self._main, signal.SIGURG)
            if self._woken.wait(WAKE_EVERY) or self._closed.is_set():
                return
