"""The process in front of the server: /health whatever the server does, and everything else byte for byte."""

import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from types import SimpleNamespace

import httpx
import pytest
from fake_service import Pipe, Scheduler, running, until

from mindone_audio.server.app import create_app
from mindone_audio.server.front import HEADER_TIMEOUT, Front
from mindone_audio.server.front_process import FrontProcess
from mindone_audio.server.guards import MOST_CONNECTIONS, known_hosts
from mindone_audio.server.options import ServerOptions
from mindone_audio.server.service import Service

uvicorn = pytest.importorskip("uvicorn")

from mindone_audio.server.connections import uvicorn_settings  # noqa: E402

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
OTHER = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\n"
MEGABYTE = 2**20


@contextlib.contextmanager
def loop_thread():
    """An event loop in a thread of its own: what runs a coroutine there and waits for it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def do(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(10)

    async def end():
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=5) if tasks else None

    try:
        yield do
    finally:
        do(end())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def closing(handler):
    """The handler of a connection that ends with it."""

    async def handle(reader, writer):
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    return handle


@contextlib.contextmanager
def fronted(handler, host="127.0.0.1", **options):
    """A front, before a server that is a handler of `asyncio.start_server`: (its port, its process)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.create_server((host, 0), family=family)
    port = sock.getsockname()[1]
    front = FrontProcess(sock, ServerOptions(served_model_name="demo", host=host, **options))
    with contextlib.closing(front), loop_thread() as do:
        do(asyncio.start_server(closing(handler), sock=front.listener))
        yield port, front


@contextlib.contextmanager
def fronted_app():
    """A front before the real app with a scheduler that computes nothing: (URL, service)."""
    sock = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    options = ServerOptions(served_model_name="demo")
    with contextlib.closing(FrontProcess(sock, options)) as front:
        service = Service(options)
        service.pipe = Pipe()
        service.scheduler = Scheduler(service.pipe)
        settings = {"log_config": None, "access_log": False, "timeout_graceful_shutdown": 1, **uvicorn_settings()}
        server = uvicorn.Server(uvicorn.Config(create_app(service, options), lifespan="off", **settings))
        thread = threading.Thread(target=server.run, args=[[front.listener]], daemon=True)
        thread.start()
        try:
            yield url, service
        finally:
            server.should_exit = True
            service.scheduler.go.set()
            thread.join(10)


@contextlib.contextmanager
def fronted_here(handler, **changes):
    """A front in this process, some of whose constants are others: (its port, the front, its end of the pipe)."""
    sock = socket.create_server(("127.0.0.1", 0), backlog=600)
    port, folder = sock.getsockname()[1], tempfile.mkdtemp()
    path = os.path.join(folder, "server")
    reading, writing = os.pipe()
    with loop_thread() as do:
        do(asyncio.start_unix_server(closing(handler), path))

        async def make():
            front = Front(path, known_hosts(SimpleNamespace(host="127.0.0.1", allowed_hosts=())))
            vars(front).update(changes)
            front.task = asyncio.create_task(front.run(sock, None, reading))
            return front

        front = do(make())
        yield port, front, writing
    shutil.rmtree(folder)
    os.close(reading)
    os.close(writing)


async def echo(reader, writer):
    """Send back what comes."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def no_server(reader, writer):
    raise AssertionError("the server behind was reached")


def connect(port: int, data: bytes = b"", host: str = "127.0.0.1") -> socket.socket:
    link = socket.create_connection((host, port), 20)
    link.sendall(data)
    return link


def read(link, size: int) -> bytes:
    """So many bytes, or all that come before the other side closes."""
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while len(data) < size and (block := link.recv(min(size - len(data), 65536))):
            data += block
    return bytes(data)


def read_answer(link) -> tuple[int, dict, bytes]:
    """Status, headers and body of an answer that has a content-length."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = link.recv(1)
        assert byte, f"closed after {head!r}"
        head += byte
    status, *lines = head.decode().strip().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split()[1]), headers, read(link, int(headers["content-length"]))


def closed(link) -> bool:
    """Whether the other side closes without a byte."""
    with link:
        return read(link, 1) == b""


# /health


def test_health_answers_while_the_server_is_blocked():
    release = threading.Event()
    order = []

    async def handler(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        release.wait(60)  # holds the event loop
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    def ask(port):
        with connect(port, OTHER + b"\r\n") as link:
            order.append(read_answer(link)[2])

    with fronted(handler) as (port, _):
        thread = threading.Thread(target=ask, args=[port])
        thread.start()
        try:
            for _ in range(20):
                assert httpx.get(f"http://127.0.0.1:{port}/health").json() == {"status": "ok"}
            order.append("health")
        finally:
            release.set()
        thread.join(20)
    assert order == ["health", b"ok"]


@pytest.mark.parametrize("more", ["", "Connection: close\r\n", "X: y\r\n" * 200, "Origin: http://evil\r\n"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:99", "evil.example"])
def test_the_answers_are_those_of_the_server(host, more):
    request = f"GET /health?x=1 HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode()
    answers = []
    with running() as (url, service), fronted(no_server) as (port, front):
        for dead in (False, True):
            service.scheduler.alive = not dead
            front.tell(not dead)
            until(
                lambda status=503 if dead else 200: httpx.get(f"http://127.0.0.1:{port}/health").status_code == status
            )
            for place in (int(url.rpartition(":")[2]), port):
                with connect(place, request) as link:
                    status, headers, body = read_answer(link)
                    headers.pop("date")
                    answers.append((status, headers, json.loads(body)))
                    if "connection" in headers:
                        assert closed(link)
            assert answers[-2] == answers[-1]
    expected = [400, 400] if host == "evil.example" else [431, 431] if "X" in more else [200, 503]
    assert [answer[0] for answer in answers[::2]] == expected or "X" in more


def test_head_and_keep_alive_and_then_another_request():
    with fronted(echo) as (port, _), connect(port) as link:
        for _ in range(3):
            link.sendall(HEALTH)
            assert read_answer(link)[::2] == (200, b'{"status":"ok"}')
        link.sendall(HEALTH.replace(b"GET", b"HEAD"))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += link.recv(1)
        assert b"content-length: 15" in head
        link.sendall(HEALTH[:30])
        link.sendall(HEALTH[30:])
        assert read_answer(link)[0] == 200  # nothing of a body was between
        for _ in range(2):  # from here on all is the server's
            link.sendall(OTHER + b"\r\n" + HEALTH)
            assert read(link, len(OTHER + HEALTH) + 2) == OTHER + b"\r\n" + HEALTH


def test_requests_that_do_not_wait_for_the_answer():
    with fronted(echo) as (port, _), connect(port, HEALTH + OTHER + b"\r\n") as link:
        assert read_answer(link)[0] == 200
        assert read(link, len(OTHER) + 2) == OTHER + b"\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # https to a server of http
        b"nonsense",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\nHost: localhost\n\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nno field\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 0\r\n\r\nabc",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000,
    ],
)
def test_what_is_not_clearly_for_health_is_left_to_the_server(shared, request_):
    with connect(shared, request_) as link:
        assert read(link, len(request_)) == request_


@pytest.fixture(scope="module")
def shared():
    """The port of a front before `echo`."""
    with fronted(echo) as (port, _):
        yield port


# bytes


@pytest.mark.parametrize("seed", [0, 1])
def test_bytes_pass_unchanged_both_ways_at_once(shared, seed):
    body = random.Random(seed).randbytes(20 * MEGABYTE)
    with connect(shared) as link:
        sending = threading.Thread(target=link.sendall, args=[OTHER + b"\r\n" + body])
        sending.start()
        came = read(link, len(OTHER) + 2 + len(body))
        sending.join(20)
    assert hashlib.sha256(came[-len(body) :]).digest() == hashlib.sha256(body).digest()


def test_chunked_bodies_of_a_real_server_and_a_real_client():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})  # chunked
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": more})

    parts = [random.Random(size).randbytes(size) for size in (1, 70_000, 3, 5 * MEGABYTE, 17)]
    sock = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}/v1/x"
    with contextlib.closing(FrontProcess(sock, ServerOptions(served_model_name="demo"))) as front:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, **uvicorn_settings()))
        thread = threading.Thread(target=server.run, args=[[front.listener]], daemon=True)
        thread.start()
        with httpx.Client() as client:
            for content in (iter(parts), b"".join(parts), b""):  # on one connection
                expected = b"".join(parts) if content else b""
                answer = client.post(url, content=content, timeout=30)
                assert answer.headers["transfer-encoding"] == "chunked" and answer.content == expected
        server.should_exit = True
        thread.join(10)


def test_a_side_that_does_not_read_is_not_written_to_without_end():
    sent = []

    async def handler(reader, writer):
        if (await reader.readexactly(4)) == b"send":
            while True:
                writer.write(bytes(65536))
                await writer.drain()
                sent.append(65536)
        await asyncio.sleep(60)  # reads nothing

    with fronted(handler) as (port, _):
        with connect(port, b"send"):
            last = -1
            while last != len(sent):
                last = len(sent)
                time.sleep(0.5)
            assert 0 < sum(sent) < 40 * MEGABYTE  # of the kernel's buffers
        with connect(port, b"keep") as link:
            link.settimeout(1.0)
            with pytest.raises(TimeoutError):
                for _ in range(100):
                    link.sendall(bytes(MEGABYTE))
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200


def test_events_pass_one_by_one():
    turn = threading.Semaphore(0)

    async def handler(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        for index in range(20):
            await asyncio.to_thread(turn.acquire)
            writer.write(b"data: %d\n\n" % index)

    with fronted(handler) as (port, _), connect(port, OTHER + b"\r\n") as link:
        for index in range(20):
            turn.release()
            assert read(link, len(b"data: %d\n\n" % index)) == b"data: %d\n\n" % index


def test_a_websocket():
    upgrade = b"GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

    async def handler(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        await echo(reader, writer)

    with fronted(handler) as (port, _), connect(port, upgrade) as link:
        assert read(link, 36) == b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
        for frame in (b"\x81\x05hello", bytes(range(256)), b"GET /health HTTP/1.1\r\n\r\n"):
            link.sendall(frame)
            assert read(link, len(frame)) == frame


# ends


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reset", [True, False])
def test_a_client_that_leaves_ends_its_row(stream, reset):
    with fronted_app() as (url, service):
        body = json.dumps(
            {"model": "demo", "messages": [{"role": "user", "content": "hang"}], "stream": stream}
        ).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        link = connect(int(url.rpartition(":")[2]), head.encode() + body)
        if stream:
            read(link, 20)
        until(lambda: service.scheduler.running == 1)
        if reset:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        link.close()
        until(lambda: service.scheduler.running == 0)
        assert len(service.scheduler.cancelled) == 1 and not service.scheduler.go.is_set()


def test_half_closed_connections():
    async def handler(reader, writer):
        data = await reader.read(-1)  # until the client's end
        writer.write(b"%d bytes" % len(data))
        await writer.drain()

    with fronted(handler) as (port, _), connect(port, bytes(MEGABYTE)) as link:
        link.shutdown(socket.SHUT_WR)
        assert read(link, 100) == b"%d bytes" % MEGABYTE
        with connect(port, HEALTH) as other:
            other.shutdown(socket.SHUT_WR)
            assert read_answer(other)[0] == 200 and closed(other)


def test_the_servers_end_is_the_clients():
    async def handler(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"x" * MEGABYTE)

    with fronted(handler) as (port, front):
        with connect(port, OTHER + b"\r\n") as link:
            assert len(read(link, 2 * MEGABYTE)) == MEGABYTE
        front.listener.close()
        shutil.rmtree(front._folder)
        assert closed(connect(port, OTHER + b"\r\n"))
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200


# limits


@pytest.mark.parametrize("start", [b"", b"G", HEALTH[:-2], HEALTH + HEALTH[:20]])
def test_slow_heads_are_closed(start):
    with fronted_here(no_server, header_timeout=0.3) as (port, front, _), connect(port, start) as link:
        if start.startswith(HEALTH):
            assert read_answer(link)[0] == 200
        assert closed(link)
        until(lambda: not front.clients)
    assert HEADER_TIMEOUT == 10


def test_many_slow_connections():
    with fronted(no_server) as (port, _), contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(port, b"GET /hea")) for _ in range(200)]
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
        slow += [stack.enter_context(connect(port, b"GET /hea")) for _ in range(MOST_CONNECTIONS - 200)]
        assert closed(connect(port, HEALTH))
        for link in slow:
            link.close()
        until(lambda: not closed(connect(port, HEALTH)))


@pytest.mark.parametrize("size", [100 * MEGABYTE, 3 * MEGABYTE])
def test_a_client_that_does_not_read_keeps_no_connection(monkeypatch, size):
    """Also where the server has ended the connection, which is not seen while its bytes wait."""
    monkeypatch.setattr("mindone_audio.server.front.STALLED", 0.5)

    async def handler(reader, writer):
        await reader.readexactly(1)
        with contextlib.suppress(ConnectionError):
            for _ in range(size // MEGABYTE):
                writer.write(bytes(MEGABYTE))
                await writer.drain()

    with fronted_here(handler) as (port, front, _), socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.connect(("127.0.0.1", port))
        link.sendall(b"P")
        until(lambda: front.clients)
        until(lambda: not front.clients)


def test_a_slow_reader_gets_all(monkeypatch):
    monkeypatch.setattr("mindone_audio.server.front.STALLED", 0.5)

    async def handler(reader, writer):
        await reader.readexactly(1)
        for index in range(16):
            await asyncio.sleep(1.0 if index == 15 else 0.0)
            writer.write(bytes(MEGABYTE))
            await writer.drain()

    with fronted_here(handler) as (port, _, _), connect(port, b"P") as link:
        for _ in range(16):
            assert len(read(link, MEGABYTE)) == MEGABYTE
            time.sleep(0.1)
        assert closed(link)


# the server's word, and its end


def test_a_server_that_says_nothing_is_dead():
    with fronted_here(no_server, silence=0.5) as (port, front, pipe):

        def status():
            return httpx.get(f"http://127.0.0.1:{port}/health").status_code

        os.write(pipe, b"1")
        until(lambda: status() == 200)
        until(lambda: status() == 503)
        os.write(pipe, b"1")
        until(lambda: status() == 200)
        os.write(pipe, b"11110")
        until(lambda: status() == 503)


def test_the_front_ends_with_the_server_and_no_sooner():
    with fronted(echo) as (port, front):
        process, folder = front._process, front._folder
        assert oct(os.stat(folder).st_mode)[-3:] == "700"
        connect(port, HEALTH).recv(1)  # it has started
        for signum in (signal.SIGTERM, signal.SIGINT):
            process.send_signal(signum)
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200 and front.status is None
        with connect(port, HEALTH) as link, connect(port, b"GET /hea"):
            assert read_answer(link)[0] == 200
            process.stdin.close()
            assert closed(link) and process.wait(10) == 0
        with socket.create_server(("127.0.0.1", port)):
            assert not os.path.exists(folder)


def test_the_last_bytes_arrive_when_the_server_has_ended():
    async def handler(reader, writer):
        await reader.readexactly(1)
        writer.write(b"x" * MEGABYTE)

    with fronted(handler) as (port, front), connect(port, b"P") as link:
        until(lambda: link.recv(1, socket.MSG_PEEK))
        front._process.stdin.close()
        time.sleep(0.2)
        assert len(read(link, 2 * MEGABYTE)) == MEGABYTE


def test_the_front_imports_nothing_that_takes_long():
    script = "import sys, mindone_audio.server.front; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    packages = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert {name for name in packages if not name.startswith("_")} <= {"mindone_audio", "distutils"}


# TLS, IPv6


def test_https(certificate):
    files = {"ssl_certfile": certificate / "cert.pem", "ssl_keyfile": certificate / "key.pem"}
    trusted = ssl.create_default_context(cafile=certificate / "cert.pem")
    left = threading.Event()

    async def handler(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        await echo(reader, writer)
        left.set()

    with fronted(handler, **files) as (port, _):
        assert httpx.get(f"https://localhost:{port}/health", verify=trusted).json() == {"status": "ok"}
        body = random.Random(0).randbytes(20 * MEGABYTE)
        with trusted.wrap_socket(connect(port), server_hostname="localhost") as link:
            link.sendall(OTHER + b"\r\n")
            for start in range(0, len(body), 65536):
                link.sendall(body[start : start + 65536])
                assert read(link, min(65536, len(body) - start)) == body[start : start + 65536]
        assert left.wait(10)
        with connect(port, HEALTH) as plain:
            assert not read(plain, 4).startswith(b"HTTP")


def test_tls_files_that_cannot_be_used(certificate, capfd):
    for cert, key in (("cert.pem", "locked.pem"), ("cert.pem", "none.pem"), ("key.pem", "key.pem")):
        options = ServerOptions(ssl_certfile=certificate / cert, ssl_keyfile=certificate / key)
        with socket.create_server(("127.0.0.1", 0)) as sock, pytest.raises(ValueError, match=f"{key} for https: "):
            FrontProcess(sock, options)
    assert capfd.readouterr() == ("", "")


def test_a_folder_of_temporary_files_that_has_too_long_a_name(tmp_path, monkeypatch):
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with socket.create_server(("127.0.0.1", 0)) as sock, pytest.raises(ValueError, match="set TMPDIR to another"):
        FrontProcess(sock, ServerOptions())
    assert list(folder.iterdir()) == []


def test_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with fronted(echo, host="::1") as (port, _):
        assert httpx.get(f"http://[::1]:{port}/health").status_code == 200
