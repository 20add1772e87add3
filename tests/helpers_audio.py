"""Clips of every format, wrapped in whatever people have around them, and a server that answers as it is told."""

import contextlib
import http.server
import io
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
from helpers_processor import tone

RATE = 16_000


def formats() -> list[tuple[str, str]]:
    """Every format and subtype that libsndfile can write without being told more, by name."""
    found = []
    for name in soundfile.available_formats():
        for subtype in soundfile.available_subtypes(name):
            if name in ("RAW", "SD2") or not soundfile.check_format(name, subtype):  # no header; a file beside it
                continue
            with contextlib.suppress(soundfile.SoundFileError, AssertionError):
                encoded(name, subtype, tone(0.05))
                found.append((name, subtype))
    return found


def encoded(name: str, subtype: str | None = None, samples: np.ndarray | None = None, rate: int = RATE) -> bytes:
    """Samples as the bytes of a file; half a second of a tone where none are given."""
    file = io.BytesIO()
    soundfile.write(file, tone(0.5, rate) if samples is None else samples, rate, format=name, subtype=subtype)
    return file.getvalue()


def id3v2(size: int, footer: bool = False) -> bytes:
    """An ID3v2.4 tag with `size` bytes in it."""
    length = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    flags = b"\x10" if footer else b"\0"
    return b"ID3\4\0" + flags + length + bytes(size) + (b"3DI\4\0" + flags + length if footer else b"")


def ape(size: int, front: bool = False) -> bytes:
    """An APEv2 tag with an item of `size` bytes, with a header in front of a file and only a footer at its end."""
    item = struct.pack("<II", size, 0) + b"Title\0" + b"x" * size
    flags = 0xA0000000 if front else 0
    part = struct.pack("<IIII", 2000, len(item) + 32, 1, flags) + bytes(8)
    return (b"APETAGEX" + part if front else b"") + item + b"APETAGEX" + part


ID3V1 = b"TAG" + b"title".ljust(125, b"\0")


def program(folder: Path, text: str, name: str = "ffmpeg") -> Path:
    """A shell script that is first on the PATH of who puts its folder there."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def path_without(folder: Path, *names: str) -> str:
    """A PATH with the shell's own programs and without some."""
    for directory in ("/usr/bin", "/bin"):
        for tool in ("sh", "cat", "sleep", "yes", "head", "env"):
            if os.path.exists(f"{directory}/{tool}") and not (folder / tool).exists() and tool not in names:
                (folder / tool).symlink_to(f"{directory}/{tool}")
    return str(folder)


@contextlib.contextmanager
def serving(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """The address of a server on this machine that hands every GET to `answer`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.close_connection = True
            with contextlib.suppress(OSError):  # a client that gave up, as it may
                answer(self)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def send(request: http.server.BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    """An answer with a body, and headers whose names are written with underscores."""
    request.send_response(status)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body)
