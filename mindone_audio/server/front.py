"""The process that has the server's socket: it answers /health itself and hands on the bytes of everything else.

MindSpore's compiler, and the parsers of large bodies, hold Python's lock for up to a second, in which nothing else of
their process runs. This one imports only what starts at once. `front_process.py` starts it and tells it how it is.
"""

import asyncio
import json
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from functools import partial

from mindone_audio.server.guards import (
    HEADER_TIMEOUT,
    MOST_CONNECTIONS,
    MOST_HEADER_BYTES,
    SECURITY_HEADERS,
    Refused,
    check,
)

ALIVE, DEAD = b"1", b"0"  # what the server writes into the pipe
SILENCE = 300.0  # seconds without a word of the server that make it dead: no compiler holds the lock as long
BACKLOG = 2048  # connections that may wait to be accepted
GRACE = 5  # seconds for the last bytes of answers when the server has ended
STALLED = 120.0  # seconds for bytes that a client does not read; the server gives up such an answer before that
_STARTS = (b"GET /health", b"HEAD /health")
_REQUEST = re.compile(rb"(GET|HEAD) /health(?:\?[!-~]*)? HTTP/1\.([01])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\0\r\n]*?)[ \t]*")
_HEAD_END = re.compile(rb"\n\r?\n")
_LEFT = {b"transfer-encoding", b"upgrade", b"expect"}  # fields of requests that are left to the server
_REASONS = {200: "OK", 400: "Bad Request", 431: "Request Header Fields Too Large", 503: "Service Unavailable"}


def tls(certfile: str, keyfile: str) -> ssl.SSLContext:
    """What https needs. Raises `OSError` for files that it cannot use."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certfile, keyfile, password="")  # so that nobody is asked for one
    return context


def health(head: bytes, hosts: Collection[str], alive: bool) -> tuple[bytes, bool] | None:
    """The answer to the head of a request for /health, and whether the connection goes on; None for anything else, and
    for what is better left to the server."""
    first, *lines = head.rstrip(b"\r\n").split(b"\r\n")
    request, fields = _REQUEST.fullmatch(first), [_HEADER.fullmatch(line) for line in lines]
    if request is None or None in fields:
        return None
    headers = [(field[1].lower(), field[2]) for field in fields]
    names = [name for name, _ in headers]
    has_body = any(name == b"content-length" and value != b"0" for name, value in headers)
    if has_body or not _LEFT.isdisjoint(names) or names.count(b"host") != 1:
        return None
    status, content = (200, b'{"status":"ok"}') if alive else (503, b'{"status":"dead"}')
    wishes = [value.strip().lower() for name, given in headers if name == b"connection" for value in given.split(b",")]
    goes_on = request[2] == b"1" and b"close" not in wishes
    try:
        check({"method": request[1].decode(), "headers": headers}, hosts, 0)
    except Refused as refused:
        status, content, goes_on = refused.status, refused.body, False
    answer = [(b"date", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()).encode())]
    answer += [(b"content-length", str(len(content)).encode()), (b"content-type", b"application/json")]
    answer += [*SECURITY_HEADERS, *([] if goes_on else [(b"connection", b"close")])]
    start = f"HTTP/1.1 {status} {_REASONS[status]}\r\n".encode()
    text = start + b"".join(name + b": " + value + b"\r\n" for name, value in answer) + b"\r\n"
    return text + (content if request[1] == b"GET" else b""), goes_on


class _Side(asyncio.Protocol):
    """One of two connections that are joined: what one receives, the other one sends, no faster than it can."""

    other: "_Side | None" = None

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.other.transport.write(data)

    def pause_writing(self):
        (self.other or self).transport.pause_reading()

    def resume_writing(self):
        (self.other or self).transport.resume_reading()


class _Server(_Side):
    """The side of the server. Its end is the end of both: it does not half-close."""

    def __init__(self, client: "_Client"):
        self.client = client

    def connection_made(self, transport):
        super().connection_made(transport)
        client = self.other = self.client
        if client.transport.is_closing():
            return transport.abort()
        client.other = self
        client.transport.resume_reading()  # before the writing, which may pause it
        transport.write(client.received)
        client.received = b""

    def connection_lost(self, error):
        self.other.transport.close()
        self.other.limit(STALLED)


class _Client(_Side):
    """The side of a client, which is joined to the server at its first request that is not for /health."""

    joining: asyncio.Task | None = None

    def __init__(self, front: "Front"):
        self.front, self.received = front, b""

    def connection_made(self, transport):
        super().connection_made(transport)
        self.front.clients.add(self)
        self.timer = asyncio.get_running_loop().call_later(self.front.header_timeout, transport.abort)
        if len(self.front.clients) > MOST_CONNECTIONS:
            transport.abort()

    def limit(self, seconds: float) -> None:
        """End the connection after so many seconds."""
        self.timer.cancel()
        self.timer = asyncio.get_running_loop().call_later(seconds, self.transport.abort)

    def pause_writing(self):
        super().pause_writing()
        if self.other is not None:
            self.limit(STALLED)

    def resume_writing(self):
        super().resume_writing()
        if self.other is not None and not self.transport.is_closing():
            self.timer.cancel()

    def data_received(self, data):
        if self.other is not None:
            return super().data_received(data)
        self.received += data
        if self.joining is not None:
            return
        may_be = any(self.received[: len(start)] == start[: len(self.received)] for start in _STARTS)
        end = _HEAD_END.search(self.received, 0, MOST_HEADER_BYTES)
        if may_be and end is None and len(self.received) < MOST_HEADER_BYTES:
            return  # more is to come
        head = self.received[: end.end()] if end else b""
        answer = health(head, self.front.hosts, self.front.alive)
        if answer is None:
            self._join()
        else:
            self.received = self.received[len(head) :]
            self._answer(*answer)

    def _answer(self, text: bytes, goes_on: bool) -> None:
        self.limit(self.front.header_timeout)
        self.transport.write(text)
        if not goes_on:
            self.transport.close()
        elif self.received:  # requests that did not wait for the answer: one at a time is answered here
            self._join()

    def _join(self) -> None:
        self.timer.cancel()
        self.transport.pause_reading()
        link = socket.socket(socket.AF_UNIX)
        link.setblocking(False)
        try:
            link.connect(self.front.path)  # is done, or refused, at once
        except OSError:  # it has ended, or as many wait already as may
            link.close()
            return self.transport.abort()
        loop = asyncio.get_running_loop()
        self.joining = loop.create_task(loop.create_connection(partial(_Server, self), sock=link))

    def eof_received(self):
        """The server learns at once that nothing more comes, which may mean that the client has left."""
        if self.other is None or self.transport.get_extra_info("sslcontext"):
            return False  # closed; TLS has no half-closed connections
        self.other.transport.write_eof()
        return True

    def connection_lost(self, error):
        self.timer.cancel()
        self.front.clients.discard(self)
        if self.other is not None:
            self.other.transport.abort()


class Front:
    """The front of a server. path: of the server's UNIX socket. hosts: what a Host header may be."""

    header_timeout, silence = HEADER_TIMEOUT, SILENCE

    def __init__(self, path: str, hosts: Collection[str]):
        self.path, self.hosts = path, hosts
        self.clients: set[_Client] = set()
        self._said, self._heard, self._ended = ALIVE, time.monotonic(), asyncio.Event()

    @property
    def alive(self) -> bool:
        """Whether the server says that it works, and has said anything lately."""
        return self._said == ALIVE and time.monotonic() - self._heard < self.silence

    async def run(self, listener: socket.socket, context: ssl.SSLContext | None, pipe: int) -> None:
        """Serve until the server has ended, which is the end of the pipe."""
        loop, parent = asyncio.get_running_loop(), os.getppid()
        timeout = None if context is None else HEADER_TIMEOUT
        serving = await loop.create_server(
            partial(_Client, self), sock=listener, ssl=context, ssl_handshake_timeout=timeout, backlog=BACKLOG
        )
        loop.add_reader(pipe, self._hear, pipe)
        while not self._ended.is_set() and os.getppid() == parent:  # a child of the server may have the pipe too
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), 1.0)
        loop.remove_reader(pipe)
        serving.close()  # first: another server may want the port
        for client in [client for client in self.clients if client.other is None]:
            client.transport.abort()
        end = time.monotonic() + GRACE
        while self.clients and time.monotonic() < end:
            await asyncio.sleep(0.01)

    def _hear(self, pipe: int) -> None:
        said = os.read(pipe, 4096)
        self._said, self._heard = said[-1:], time.monotonic()
        if not said:
            self._ended.set()


def main() -> None:
    """The process: its argument is JSON of the listening socket's number, the server's path, hosts, and TLS' files."""
    listener, path, hosts, *files = json.loads(sys.argv[1])
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # a terminal and a service manager send them to the server too
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 4 * MOST_CONNECTIONS
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))

    async def run() -> None:
        await Front(path, hosts).run(socket.socket(fileno=listener), tls(*files) if files else None, sys.stdin.fileno())

    try:
        asyncio.run(run())
    finally:
        shutil.rmtree(os.path.dirname(path), ignore_errors=True)


if __name__ == "__main__":
    main()
