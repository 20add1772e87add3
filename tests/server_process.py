"""`mindone-audio serve` with the bundled model, as a process."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class ServerProcess(subprocess.Popen):
    """The process, ready. url: where it listens."""

    def __init__(self, *words: object, folder: Path = ROOT):
        command = [sys.executable, "-m", "mindone_audio", "serve", *map(str, words)]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        super().__init__(command, stdout=subprocess.PIPE, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": path})
        line = self.stdout.readline()
        found = re.fullmatch(r"Serving \S.* on (http://\S+)\n", line)
        assert found, (line, self.poll())
        self.url = found[1]

    def status(self, field: str) -> int:
        """A number of /proc/PID/status; memory in KiB."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(rf"^{field}:\s+(\d+)", text, re.MULTILINE)[1])

    def end(self, number: int = signal.SIGKILL) -> int:
        """Send a signal and wait for the end: the exit status."""
        self.send_signal(number)
        status = self.wait(60)
        self.stdout.close()
        return status


@contextmanager
def server_process(*words: object, folder: Path = ROOT) -> Iterator[ServerProcess]:
    """A server until the end of the `with`."""
    process = ServerProcess(*words, folder=folder)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.end()
