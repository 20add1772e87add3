"""Signals in a process of their own, on systems with and without sigtimedwait, which macOS lacks."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = """
import os, signal, sys, threading, time
if sys.argv[1] == "without":
    del signal.sigtimedwait
from mindone_audio.machine.signals import Signals

def send(number):
    os.kill(os.getpid(), number)

before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
for _ in range(50):  # entered and left at once
    with Signals(hold_terminate=True):
        pass
with Signals(hold_terminate=True) as signals:
    send(signal.SIGTERM)
    while not signals.terminated:
        time.sleep(0.01)
    threading.Timer(0.2, send, [signal.SIGINT]).start()
    try:
        time.sleep(60)  # which the interruption ends
    except KeyboardInterrupt:
        print("interrupted", signals.interrupted)
    signals.interrupted, told = False, []
    with signals.hold_interrupt(lambda: told.append(1)):
        send(signal.SIGINT)
        while not told:
            time.sleep(0.01)
        try:
            send(signal.SIGINT)
            time.sleep(60)
        except KeyboardInterrupt:
            print("second", signals.interrupted)
assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
assert threading.active_count() == 1 and not signals._thread.is_alive()
with Signals() as signals:  # SIGTERM is not held
    print("ready", flush=True)
    send(signal.SIGTERM)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["with", "without"])
def test_interruptions_and_termination(kind):
    reset = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    command = [sys.executable, "-c", SCRIPT, kind]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, **reset)
    assert done.stdout == "interrupted True\nsecond True\nready\n" and done.stderr == ""
    assert done.returncode == -signal.SIGTERM
