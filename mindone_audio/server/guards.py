"""What every request passes before the app sees it: host, origin, headers, and a body that is whole and not too large.

`connections.py` has what stands before this: headers that do not end.
"""

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable, Collection
from typing import Any

MOST_HEADERS, MOST_HEADER_BYTES = 100, 32 * 2**10
HEADER_TIMEOUT = 10.0  # seconds
MOST_CONNECTIONS = 512
LINGER = 2.0  # seconds in which a refused client may finish sending, so that it reads the answer
DEEPEST_JSON = 64  # lists and objects within each other
MOST_VALUES = 1_000_000  # of one JSON body: each costs Python up to a hundred bytes
LONGEST_INTEGER = 40  # characters
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
READING = ("GET", "HEAD", "OPTIONS")  # methods that change nothing
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'self'"),
    (b"referrer-policy", b"no-referrer"),
)
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::\d*)?")
_JSON_TOKEN = re.compile(rb'"[^"]*"|[\[\]{},]')

App = Callable[[dict, Callable, Callable], Awaitable[None]]  # ASGI


class Refused(Exception):
    """A request that the app does not see."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code

    @property
    def body(self) -> bytes:
        """OpenAI's error body."""
        error = {"message": str(self), "type": "invalid_request_error", "param": None, "code": self.code}
        return json.dumps({"error": error}).encode()


def guarded(app: App, options: Any) -> App:
    """An ASGI app that hands on only decent requests, and answers the others with OpenAI's error body.

    Refused are a body above `options.max_body_bytes` (413), one that is not complete within `options.body_timeout`
    seconds (408), a Host that is neither local, `options.host` nor one of `options.allowed_hosts` ("*": any; 400), a
    change that a page of another site asks for (403), and too many or too long headers (431). The app gets the body in
    one piece, and is not called where the client leaves before its end. Answers get `SECURITY_HEADERS` that the app
    does not set itself, and no Server header: start uvicorn with the settings of `connections.py`.
    """
    hosts = known_hosts(options)

    async def guard(scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            return await app(scope, receive, send)
        is_http = scope["type"] == "http"
        if is_http:
            send = _with_security_headers(send)
        try:
            check(scope, hosts, options.max_body_bytes)
            if is_http:
                receive = await _whole_body(receive, options.max_body_bytes, options.body_timeout)
        except Refused as refused:
            return await (_answer(refused, receive, send) if is_http else _close(receive, send))
        if receive is not None:
            await app(scope, receive, send)

    return guard


def known_hosts(options: Any) -> set[str]:
    """What a Host header may be, without its port."""
    return {host.lower() for host in (*LOCAL_HOSTS, _bracketed(options.host), *map(_bracketed, options.allowed_hosts))}


def _bracketed(host: str) -> str:
    """An address of IPv6 as a Host header has it."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def check(scope: dict, hosts: Collection[str], max_body_bytes: int) -> None:
    """Raise `Refused` for what the headers show."""
    headers = scope["headers"]
    if len(headers) > MOST_HEADERS or sum(len(name) + len(value) for name, value in headers) > MOST_HEADER_BYTES:
        limits = f"{MOST_HEADERS} headers or {MOST_HEADER_BYTES} bytes of them"
        raise Refused(431, "headers_too_large", f"the request has more than {limits}, the limits: send fewer")
    given = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
    host = _HOST.fullmatch(given[0]) if len(given) == 1 else None
    if "*" not in hosts and (host is None or host[1].removesuffix(".") not in hosts):
        raise Refused(
            400,
            "host_not_allowed",
            "the Host header of this request is not a name of this server: start it with --allowed-host NAME",
        )
    origins = [value.decode("latin-1").lower() for name, value in headers if name == b"origin"]
    if scope.get("method") not in READING and any(origin.partition("://")[2] not in given for origin in origins):
        raise Refused(403, "origin_not_allowed", "the Origin header is of another site, whose pages may not use this")
    length = max((int(value) for name, value in headers if name == b"content-length" and value.isdigit()), default=0)
    if length > max_body_bytes:
        raise _too_large(max_body_bytes)


def _too_large(limit: int) -> Refused:
    size = f"{limit} bytes ({limit / 2**20:.3g} MiB)"
    return Refused(413, "body_too_large", f"the body has more than {size}, the limit: send shorter clips")


async def _whole_body(receive: Callable, limit: int, timeout: float) -> Callable | None:
    """A `receive` that begins with all of the body in one piece; None where the client has left."""
    body = bytearray()

    async def read() -> bool:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            body.extend(message.get("body", b""))
            if len(body) > limit:
                raise _too_large(limit)
            if not message.get("more_body"):
                return True

    try:
        complete = await asyncio.wait_for(read(), timeout)
    except asyncio.TimeoutError:
        raise Refused(408, "body_timeout", f"the body was not complete within {timeout:g} s: try again") from None
    if not complete:
        return None
    first = [{"type": "http.request", "body": bytes(body), "more_body": False}]
    body.clear()

    async def receive_again() -> dict:
        return first.pop() if first else await receive()

    return receive_again


async def _answer(refused: Refused, receive: Callable, send: Callable) -> None:
    """OpenAI's error body. The end is held back while the client sends: a closed connection would lose the answer."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(refused.body)).encode())]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": refused.body, "more_body": True})

    async def discard() -> None:
        while (await receive()).get("more_body"):
            pass

    if refused.status != 408:
        try:
            await asyncio.wait_for(discard(), LINGER)
        except asyncio.TimeoutError:
            pass  # it has had its time
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _close(receive: Callable, send: Callable) -> None:
    """The answer to a WebSocket's handshake: 403."""
    await receive()
    await send({"type": "websocket.close", "code": 1008})


def _with_security_headers(send: Callable) -> Callable:
    async def send_with_headers(message: dict) -> None:
        if message["type"] == "http.response.start":
            own = [(name, value) for name, value in message.get("headers", ()) if name.lower() != b"server"]
            names = {name.lower() for name, _ in own}
            message = {**message, "headers": own + [pair for pair in SECURITY_HEADERS if pair[0] not in names]}
        await send(message)

    return send_with_headers


def parse_json(body: bytes) -> Any:
    """The value of a JSON body. `ValueError`, with a message for whoever sent it, for anything that is doubtful.

    That is: no UTF-8, half of a surrogate pair, NaN and infinite numbers, a name twice in an object, and more than
    `DEEPEST_JSON` levels or `MOST_VALUES` values, which are counted before a value is made.
    """
    if not body.strip():
        raise ValueError("the body is empty: send JSON")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("the body is not UTF-8: send JSON in UTF-8") from None
    _check_size(body)
    try:
        value = json.loads(
            text, parse_constant=_number, parse_float=_number, parse_int=_integer, object_pairs_hook=_object
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"the body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    if re.search(r"\\u[dD][89a-fA-F]", text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("the body has half of a surrogate pair (as \\ud800): send whole characters") from None
    return value


def _check_size(body: bytes) -> None:
    """`ValueError` for too many levels or values; Python's parser would meet its recursion limit or fill the memory."""
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # so that every quote left begins or ends a string
    depth = values = 0
    for token in _JSON_TOKEN.finditer(body):
        kind = body[token.start()]
        values += 1
        if kind in b"[{":
            depth += 1
        elif kind in b"]}":
            depth -= 1
        if depth > DEEPEST_JSON:
            raise ValueError(f"the body has more than {DEEPEST_JSON} levels of lists and objects, the limit")
        if values > MOST_VALUES:
            raise ValueError(f"the body has more than {MOST_VALUES} JSON values, the limit")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the body has the number {text[:40]}: send finite numbers")
    return value


def _integer(text: str) -> int:
    if len(text) > LONGEST_INTEGER:
        raise ValueError(f"the body has a number of {len(text)} digits: send at most {LONGEST_INTEGER}")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, _ in pairs:
            if name not in found:
                raise ValueError(f"the body has {name[:80]!r} twice in one object: send it once")
            del found[name]
    return found
