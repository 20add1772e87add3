"""The front as its server sees it: a process to start, to tell that the server works, and to wait for."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from mindone_audio.server.front import ALIVE, BACKLOG, DEAD, GRACE, tls
from mindone_audio.server.guards import known_hosts
from mindone_audio.server.options import ServerOptions

HEARTBEAT = 1.0  # seconds
_ROOT = Path(__file__).resolve().parents[2]  # the folder that has this package


class FrontProcess:
    """Takes `sock`, which listens for clients, and closes it here. `listener` is where the server listens instead.

    Raises `ValueError` for TLS files that cannot be used, and for a folder of temporary files that is of no use.
    """

    def __init__(self, sock: socket.socket, options: ServerOptions):
        files = [os.path.abspath(file) for file in (options.ssl_certfile, options.ssl_keyfile) if file is not None]
        if files:
            try:
                tls(*files)
            except OSError as error:
                names = " and ".join(files)
                raise ValueError(f"cannot use {names} for https: {error}: give PEM files without a password") from error
        self._folder = tempfile.mkdtemp()  # of this user alone
        path = os.path.join(self._folder, "server")
        self.listener = socket.socket(socket.AF_UNIX)
        try:
            self.listener.bind(path)
        except OSError as error:  # its name is too long
            os.rmdir(self._folder)
            raise ValueError(f"cannot make a socket at {path}: {error}: set TMPDIR to another folder") from error
        self.listener.listen(BACKLOG)
        settings = json.dumps([sock.fileno(), path, sorted(known_hosts(options)), *files])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mindone_audio.server.front", settings],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "bufsize": 0},
            pass_fds=[sock.fileno()],
            cwd=_ROOT,
        )
        sock.close()
        self._said, self._when = None, 0.0

    @property
    def status(self) -> int | None:
        """The exit status of the front; None while it works."""
        return self._process.poll()

    def tell(self, alive: bool) -> None:
        """Say how the server is, where that is news or a second old."""
        said, now = ALIVE if alive else DEAD, time.monotonic()
        if said != self._said or now >= self._when + HEARTBEAT:
            with suppress(BrokenPipeError):  # `status` tells that it has ended
                self._process.stdin.write(said)
            self._said, self._when = said, now

    def close(self) -> None:
        """Wait until the last bytes are on their way, or a moment; it ends by itself where nobody calls this."""
        self.listener.close()
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE + 1)
        shutil.rmtree(self._folder, ignore_errors=True)
