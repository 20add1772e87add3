"""SIGINT and SIGTERM, taken by a thread.

When MindSpore compiles its first graph it replaces the handler of SIGINT by one that sends SIGTERM to the process, so
that Ctrl-C could not be told from a scheduler's request to finish.
"""

import _thread
import signal
import threading


class Signals:
    """A context in which SIGINT is a KeyboardInterrupt in the main thread and SIGTERM only sets `terminated`.

    Enter it in the main thread before other threads exist, NumPy's included: they inherit that the signals are blocked.
    """

    def __init__(self):
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # as nohup and `&` in a script have it
        self._signals = {signal.SIGTERM} if ignored else {signal.SIGTERM, signal.SIGINT}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self.terminated = False

    def __enter__(self) -> "Signals":
        self._wake = signal.signal(signal.SIGURG, lambda *_: None)
        self._main = threading.get_ident()
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._closed.set()
        self._thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        signal.signal(signal.SIGURG, self._wake)

    def _watch(self) -> None:
        while not self._closed.is_set():
            found = signal.sigtimedwait(self._signals, 0.1)
            if found is not None and found.si_signo == signal.SIGTERM:
                self.terminated = True
            elif found is not None:
                _thread.interrupt_main()
                signal.pthread_kill(self._main, signal.SIGURG)  # ends a system call that it waits in
