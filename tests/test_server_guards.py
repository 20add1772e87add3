"""Attacks on the HTTP door: real sockets against uvicorn with a small app, which must stay alive and untouched."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from types import SimpleNamespace

import pytest

uvicorn = pytest.importorskip("uvicorn")

from mindone_audio.server.connections import TimedProtocol, uvicorn_settings  # noqa: E402
from mindone_audio.server.guards import MOST_VALUES, guarded, parse_json  # noqa: E402

LIMIT = 1_000_000


class App:
    """Says how long the body was; writes down what it was asked. /own has headers of its own."""

    def __init__(self):
        self.asked = []

    async def __call__(self, scope, receive, send):
        assert scope["type"] == "http"
        self.asked.append(scope["path"])
        parts = []
        while True:
            message = await receive()
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                break
        body = str(len(b"".join(parts))).encode()
        headers = [(b"Server", b"secret/1.0"), (b"Content-Length", str(len(body)).encode())]
        if scope["path"] == "/own":
            headers.append((b"Content-Security-Policy", b"default-src 'none'"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Impatient(TimedProtocol):
    header_timeout = 0.5


@contextlib.contextmanager
def running(protocol=TimedProtocol, app=None, **changes):
    """An app, and the port of a real server that guards it."""
    app = app or App()
    options = SimpleNamespace(max_body_bytes=LIMIT, allowed_hosts=(), host="127.0.0.1", body_timeout=20.0)
    vars(options).update(changes)
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    settings = uvicorn_settings(protocol)
    server = uvicorn.Server(
        uvicorn.Config(guarded(app, options), lifespan="off", log_config=None, access_log=False, **settings)
    )
    thread = threading.Thread(target=server.run, args=[[listener]], daemon=True)
    thread.start()
    try:
        yield app, listener.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
        listener.close()


@pytest.fixture(scope="module")
def shared():
    with running() as (app, port):
        yield app, port


@pytest.fixture
def server(shared):
    """The shared server, which must answer when the test has ended."""
    app, port = shared
    app.asked.clear()
    yield app, port
    assert exchange(port, request("GET", "/health"))[0] == 200


def connect(port: int) -> socket.socket:
    link = socket.create_connection(("127.0.0.1", port), 10)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def request(method="POST", path="/v1/x", body=b"", host="127.0.0.1", **headers) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    if body or method == "POST":
        headers.setdefault("Content_Length", len(body))
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([*lines, "", ""]).encode() + body


def answer(link: socket.socket) -> tuple[int, dict, bytes]:
    """Status, headers and body of what comes until the other side closes; status 0 for nothing."""
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while block := link.recv(65536):
            data += block
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    if not head:
        return 0, {}, b""
    status, *lines = head.decode("latin-1").split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


def exchange(port: int, data: bytes) -> tuple[int, dict, bytes]:
    with connect(port) as link:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            link.sendall(data)
        return answer(link)


def error(got: tuple[int, dict, bytes]) -> tuple[int, str]:
    """Status and code of an answer whose body must be OpenAI's."""
    status, headers, body = got
    assert headers["content-type"] == "application/json"
    (name, inner), *more = json.loads(body).items()
    assert name == "error" and not more and set(inner) == {"message", "type", "param", "code"}
    assert inner["type"] == "invalid_request_error" and inner["message"]
    return status, inner["code"]


# bodies


def test_a_body_arrives_whole(server):
    app, port = server
    for size in (0, 1, 70_000, LIMIT):
        status, _, body = exchange(port, request(body=b"x" * size))
        assert (status, body) == (200, str(size).encode())
    chunked = request(Content_Length=None, Transfer_Encoding="chunked") + b"4\r\nRIFF\r\n3\r\nabc\r\n0\r\n\r\n"
    assert exchange(port, chunked)[2] == b"7"


@pytest.mark.parametrize("size", [LIMIT + 1, 3 * LIMIT, 10**12])
def test_a_body_above_the_limit(server, size):
    app, port = server
    body = b"x" * min(size, 3 * LIMIT)
    form = "multipart/form-data; boundary=b"
    for kind in ("application/json", form):
        with connect(port) as link:
            link.sendall(request(Content_Length=size, Content_Type=kind))
            if size < 10**12:
                link.sendall(body)
            else:
                link.shutdown(socket.SHUT_WR)
            assert error(answer(link)) == (413, "body_too_large")
    assert app.asked == []


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=b"])
def test_a_chunked_body_above_the_limit(server, kind):
    app, port = server
    data = request(Content_Length=None, Transfer_Encoding="chunked", Content_Type=kind)
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    assert error(exchange(port, data + piece * 40 + b"0\r\n\r\n")) == (413, "body_too_large")
    assert app.asked == []


def test_a_body_without_end_is_not_read_for_ever(server):
    app, port = server
    sent = 0
    with connect(port) as link:
        link.sendall(request(Content_Length=None, Transfer_Encoding="chunked"))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while sent < 10**11:
                link.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
    assert app.asked == []


def test_a_client_that_waits_for_100_continue_sends_nothing_too_large(server):
    app, port = server
    with connect(port) as link:
        link.sendall(request(Content_Length=LIMIT + 1, Expect="100-continue"))
        link.shutdown(socket.SHUT_WR)
        assert error(answer(link))[0] == 413
    with connect(port) as link:
        link.sendall(request(Content_Length=3, Expect="100-continue"))
        assert link.recv(1000).startswith(b"HTTP/1.1 100")
        link.sendall(b"abc")
        assert answer(link)[2] == b"3"


def test_a_client_that_leaves_in_its_body(server):
    app, port = server
    with connect(port) as link:
        link.sendall(request(Content_Length=1000) + b"abc")
    with connect(port) as link:  # after another request the first has been seen to end
        link.sendall(request("GET", "/health"))
        assert answer(link)[0] == 200
    assert app.asked == ["/health"]


def test_the_app_hears_that_its_client_has_left():
    seen = []

    async def app(scope, receive, send):
        seen.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data: 1", "more_body": True})
        seen.append(await receive())
        left.set()

    left = threading.Event()
    with running(app=app) as (_, port):
        with connect(port) as link:
            link.sendall(request(body=b"abc"))
            assert link.recv(1000).startswith(b"HTTP/1.1 200")
        assert left.wait(20)
    assert seen == [{"type": "http.request", "body": b"abc", "more_body": False}, {"type": "http.disconnect"}]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_slow(chunked):
    with running(body_timeout=0.3) as (app, port), connect(port) as link:
        length = {"Content_Length": None, "Transfer_Encoding": "chunked"} if chunked else {"Content_Length": 10**6}
        link.sendall(request(**length))
        stop = threading.Event()

        def drip():
            with contextlib.suppress(OSError):
                while not stop.wait(0.02):
                    link.sendall(b"1\r\nx\r\n" if chunked else b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        assert error(answer(link)) == (408, "body_timeout")
        stop.set()
        thread.join()
        assert app.asked == []


# hosts and origins


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "localhost", "LocalHost:1", "localhost.", "[::1]:8000", "[::1]"]
)
def test_local_hosts(server, host):
    app, port = server
    assert exchange(port, request(host=host))[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.net", "evil.net:8000", "localhost.evil.net", "127.0.0.1.evil.net", "127.0.0.1@evil.net", "evil.net:"),
        *("localhost/evil", "localhost:x", "localhost, evil.net", "[::2]", "0.0.0.0", "169.254.169.254", "", "::1"),
        *("localhost\r\nHost: evil.net", "[::1", "2130706433"),
    ],
)
def test_other_hosts(server, host):
    app, port = server
    for method in ("GET", "POST", "OPTIONS"):
        status, headers, body = exchange(port, request(method, host=host))
        assert status == 400
        assert "host_not_allowed" in body.decode() or body == b"Invalid HTTP request received."
    assert app.asked == []


def test_requests_without_a_host(server):
    app, port = server
    assert exchange(port, b"GET / HTTP/1.0\r\n\r\n")[0] == 400
    assert exchange(port, b"GET / HTTP/1.1\r\n\r\n")[0] == 400
    assert app.asked == []


def test_hosts_that_the_operator_named():
    with running(allowed_hosts=("Audio.example.org", "fd00::1"), host="::") as (app, port):
        for host in ("audio.example.org", "AUDIO.example.org:443", "[fd00::1]:80", "localhost:8000"):
            assert exchange(port, request(host=host))[0] == 200
        for host in ("x.audio.example.org", "example.org", "[fd00::2]"):
            assert error(exchange(port, request(host=host))) == (400, "host_not_allowed")
    with running(allowed_hosts=("*",)) as (app, port):
        assert exchange(port, request(host="whatever.example"))[0] == 200
        assert exchange(port, b"GET / HTTP/1.0\r\n\r\n")[0] == 200


def test_pages_of_other_sites_cannot_post(server):
    app, port = server
    host = f"localhost:{port}"
    others = ["http://evil.net", f"http://evil.net:{port}", "null", "http://localhost", "http://localhost:1", "file://"]
    others += [f"http://127.0.0.1:{port}", "chrome-extension://abc", "", "x", f"http://{host}.evil.net"]
    for origin in others:
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert error(exchange(port, request(method, host=host, Origin=origin))) == (403, "origin_not_allowed")
    assert app.asked == []
    for origin in (f"http://{host}", f"https://LOCALHOST:{port}"):
        assert exchange(port, request(host=host, Origin=origin))[0] == 200
    for method in ("GET", "OPTIONS"):  # they change nothing, and without CORS the page cannot read the answer
        assert exchange(port, request(method, host=host, Origin="http://evil.net"))[0] == 200
    with running(allowed_hosts=("*",)) as (app, port):
        assert error(exchange(port, request(Origin="http://evil.net")))[0] == 403


@pytest.mark.parametrize("header", [(b"host", b"evil.net"), (b"origin", b"http://evil.net")])
def test_websockets_of_other_sites_are_closed(header):
    options = SimpleNamespace(max_body_bytes=1, allowed_hosts=(), host="127.0.0.1", body_timeout=1)
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["path"])

    async def ask(*headers):
        sent = []

        async def receive():
            return {"type": "websocket.connect"}

        async def send(message):
            sent.append(message)

        given = dict([(b"host", b"localhost"), *headers])
        scope = {"type": "websocket", "path": "/v1/realtime", "headers": list(given.items())}
        await guarded(app, options)(scope, receive, send)
        return sent

    assert asyncio.run(ask(header)) == [{"type": "websocket.close", "code": 1008}] and seen == []
    assert asyncio.run(ask((b"origin", b"http://localhost"))) == [] and seen == ["/v1/realtime"]


# headers


def test_security_headers(server):
    app, port = server
    for data in (request(), request("GET", "/health"), request(host="evil.net"), request(Content_Length=10**9)):
        _, headers, _ = exchange(port, data)
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"] == "default-src 'self'"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers and "access-control-allow-origin" not in headers
    assert exchange(port, request("GET", "/own"))[1]["content-security-policy"] == "default-src 'none'"


@pytest.mark.parametrize("headers", ["10000 headers", "many bytes", "one line", "name", "path", "not ended"])
def test_huge_headers(server, headers):
    app, port = server
    start = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
    data = {
        "10000 headers": start + b"".join(b"A%d: b\r\n" % number for number in range(10_000)) + b"\r\n",
        "many bytes": start + b"".join(b"A%d: %s\r\n" % (number, b"b" * 1000) for number in range(90)) + b"\r\n",
        "one line": start + b"A: " + b"b" * 10**6 + b"\r\n\r\n",
        "name": start + b"A" * 10**6 + b": b\r\n\r\n",
        "path": b"GET /" + b"x" * 10**6 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "not ended": start + b"A: b\r\n" * 200_000,
    }[headers]
    status, _, _ = exchange(port, data)
    assert status == 0 or 400 <= status < 500
    assert app.asked == []


def test_more_headers_than_the_limit(server):
    app, port = server
    headers = {f"A{number}": "b" for number in range(97)}
    assert exchange(port, request("GET", **headers))[0] == 200
    headers |= {f"B{number}": "b" for number in range(4)}
    assert error(exchange(port, request("GET", **headers))) == (431, "headers_too_large")


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"\0" * 5000,
            b"GET / HTTP/9.9\r\n\r\n",
            b"SSH-2.0-x\r\n\r\n",
        ),
        *(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b"GET  /\r\n\r\n", b"\r\n" * 5000),
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nTransfer-Encoding: x\r\n\r\nab",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nA: b\0c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n A: folded\r\n\tx\r\nbad\r\n\r\n",
    ],
)
def test_what_is_no_http(server, data):
    app, port = server
    with connect(port) as link:
        link.sendall(data)
        link.shutdown(socket.SHUT_WR)
        status, _, _ = answer(link)
    assert status == 0 or 400 <= status < 500
    assert app.asked == []


# slow clients


@pytest.mark.parametrize("first", [b"", b"G", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
def test_headers_that_do_not_end(first):
    with running(Impatient) as (app, port), connect(port) as link:
        link.sendall(first)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(1000):  # a letter at a time does not buy more time
                if first:
                    link.sendall(b"x")
                elif not link.recv(1):
                    raise ConnectionResetError
                time.sleep(0.01)
        assert app.asked == []


def test_slow_headers_of_a_second_request():
    with running(Impatient) as (app, port), connect(port) as link:
        whole = b"GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for _ in range(2):
            link.sendall(whole)
            got = b""
            while not got.endswith(b"\r\n\r\n0"):
                got += link.recv(10_000)
        link.sendall(whole[:9])
        with contextlib.suppress(ConnectionResetError):
            assert link.recv(1) == b""
        assert app.asked == ["/a", "/a"]


def test_a_slow_answer_and_a_slow_body_are_not_slow_headers():
    async def app(scope, receive, send):
        message = await receive()
        await asyncio.sleep(0.6)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": message["body"]})

    with running(Impatient, app) as (_, port), connect(port) as link:
        link.sendall(request(Content_Length=3))
        for letter in (b"a", b"b", b"c"):
            time.sleep(0.2)
            link.sendall(letter)
        assert b"abc" in answer(link)[2]


def test_health_while_two_hundred_connections_are_slow(server):
    app, port = server
    with contextlib.ExitStack() as stack:
        for number in range(200):
            link = stack.enter_context(connect(port))
            link.sendall(
                [b"", b"GET / HT", request(Content_Length=9) + b"x", request(Content_Length=10**6)][number % 4]
            )
        for _ in range(5):
            assert exchange(port, request("GET", "/health"))[0] == 200
    assert app.asked == ["/health"] * 5


def test_the_most_connections():
    class Few(TimedProtocol):
        most_connections = 5

    with running(Few) as (app, port), contextlib.ExitStack() as stack:
        links = [stack.enter_context(connect(port)) for _ in range(5)]
        for link in links:  # in their places before the next come
            link.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert link.recv(1000).startswith(b"HTTP/1.1 200")
        assert exchange(port, request("GET"))[0] == 0
        for link in links:
            link.close()
        for _ in range(100):
            if exchange(port, request("GET", "/again"))[0] == 200:
                break
            time.sleep(0.05)
        assert app.asked[5:] == ["/again"]


# JSON


def test_json_that_is_right():
    value = {"a": [1, -2.5, 1e10, True, None, '\\ " [{ ä \U0001f600'], "": {"b": {}}, "i": 2**63}
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value
    assert parse_json(b"\xef\xbb\xbf [1]\n") == [1]
    assert parse_json(b'"\\ud83d\\ude00"') == "\U0001f600"
    assert parse_json(b"[" * 64 + b"]" * 64)
    brackets = '["' + "[{" * 1000 + '\\"' + "[" * 1000 + '\\\\", "' + "]" * 10 + '"]'
    assert parse_json(brackets.encode()) == json.loads(brackets)


@pytest.mark.parametrize(
    "body, message",
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"{", r"not JSON: .*line 1, column 2"),
        (b"{'a': 1}", "not JSON"),
        (b"[1,]", "not JSON"),
        (b'{"a": 1} x', "not JSON"),
        (b'"\x01"', "not JSON"),
        (b"\xff\xfe[\0]\0", "not UTF-8"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        (b'"\xc0\xaf"', "not UTF-8"),
        (b"RIFF\x80\x81WAVE", "not UTF-8"),
        (b'"\\ud800"', "surrogate"),
        (b'{"\\uDFFF": 1}', "surrogate"),
        (b'[{"a": ["\\udc00\\ud800"]}]', "surrogate"),
        (b"NaN", "NaN"),
        (b'{"temperature": Infinity}', "Infinity"),
        (b"[-Infinity]", "-Infinity"),
        (b"[1e999]", "1e999"),
        (b"[-1e999]", "-1e999"),
        (b"1" * 100_000, "100000 digits"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' twice"),
        (b'[{"x": {"b": 1, "b": 1}}]', "'b' twice"),
        (b"[" * 65 + b"]" * 65, "64 levels"),
        (b'{"a":' * 65, "64 levels"),
        (b"[" * 10_000_000, "64 levels"),
        (b'{"a":' * 1_000_000 + b"1" + b"}" * 1_000_000, "64 levels"),
        (b"[" + b"[]," * MOST_VALUES + b"1]", f"{MOST_VALUES} JSON values"),
        (b'"\\"' + b"[" * 10 + b'"' + b"[" * 70, "64 levels"),
    ],
)
def test_json_that_is_wrong(body, message):
    with pytest.raises(ValueError, match=message) as raised:
        parse_json(body)
    assert len(str(raised.value)) < 200


def test_many_names_of_which_the_last_is_twice():
    names = [f'"{number}":0' for number in range(200_000)]
    with pytest.raises(ValueError, match="'199999' twice"):
        parse_json(("{" + ",".join([*names, names[-1]]) + "}").encode())


def test_a_large_clip_in_json():
    body = json.dumps({"data": "A" * 25_000_000, "text": '\\"' * 1_000_000}).encode()
    assert len(parse_json(body)["data"]) == 25_000_000
