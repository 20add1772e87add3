"""A clip at an http(s) address: bounded in time, bytes and redirects, and never anything but http(s)."""

import base64
import http.client
import re
import socket
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from functools import partial
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from mindone_audio.inputs.audio.errors import AudioError, describe, too_many_bytes

MAX_REDIRECTS, STRANGERS_REDIRECTS = 5, 3
REDIRECTS = (301, 302, 303, 307, 308)
READ_BYTES = 2**16  # at a time
_PATH_SAFE = "/%:@!$&'()*+,;=~"

Connect = Callable[..., socket.socket]  # (host, port, seconds, *, tls)


def read_url(url: str, timeout: float, limit: int, name: str, connect: Connect | None = None) -> bytes:
    """GET an address: at most `limit` bytes, within `timeout` seconds in all; `AudioError` for whatever goes wrong.

    connect: reaches the hosts of an address that a stranger gave, redirects too, or raises `AudioError`. There are then
    no proxies, no passwords and no compression, and messages repeat nothing of the address or of the answer.
    The transfer has a thread of its own: a name server or a server that drips its headers cannot hold the caller.
    """
    deadline, outcome = time.monotonic() + timeout, []

    def work() -> None:
        try:
            outcome.append(_get(url, deadline, limit, name, connect))
        except Exception as error:  # raised again below, in the caller's thread
            outcome.append(error)

    thread = threading.Thread(target=work, name="load_audio", daemon=True)
    thread.start()
    thread.join(timeout)
    result = outcome[0] if outcome else TimeoutError()
    if isinstance(result, bytes):
        return result
    if isinstance(result, AudioError):
        raise result
    if isinstance(result, TimeoutError) or isinstance(getattr(result, "reason", None), TimeoutError):
        raise AudioError(f"{name} was not read within {timeout:g} s: try again, or download it first") from result
    if isinstance(result, (OSError, http.client.HTTPException, ValueError, zlib.error)):
        reason = str(getattr(result, "reason", "") or result) or type(result).__name__
        if connect is not None:
            reason = "no connection, or an answer that is not HTTP"
        elif isinstance(result, (UnicodeError, http.client.InvalidURL)):
            reason = "this is no valid address"  # their messages repeat it, with a password in it
        raise AudioError(f"cannot read {name}: {reason:.200}: check the address and the network") from None
    raise result


def _get(url: str, deadline: float, limit: int, name: str, connect: Connect | None) -> bytes:
    """The body of what an address, or those that it redirects to, answers."""
    opener = urllib.request.OpenerDirector()  # of all of urllib's handlers only these: no file:, ftp: or data:
    if connect is None:
        handlers = [urllib.request.ProxyHandler(), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler()]
    else:
        handlers = [_StrangersHandler(connect)]
    for handler in (*handlers, urllib.request.UnknownHandler()):
        opener.add_handler(handler)
    redirects = MAX_REDIRECTS if connect is None else STRANGERS_REDIRECTS
    for _ in range(redirects + 1):
        address, credentials = _ascii_address(url, name)
        if credentials is not None and connect is not None:
            raise AudioError(f"{name} has an address with a user name in it: leave out what stands before the @")
        request = urllib.request.Request(address, headers={"User-Agent": "mindone-audio", "Accept": "*/*"})
        request.add_header("Accept-Encoding", "identity")
        if credentials is not None:
            request.add_header("Authorization", f"Basic {credentials}")
        with opener.open(request, timeout=max(0.001, deadline - time.monotonic())) as response:
            location = response.headers.get("Location")
            if response.status in REDIRECTS and location:
                url = urljoin(address, _as_sent(location))
                if urlsplit(url).scheme not in ("http", "https"):
                    where = describe(url) if connect is None else "another kind of address"
                    raise AudioError(f"{name} redirects to {where}: only http:// and https:// are followed")
                continue
            if not 200 <= response.status < 300:
                reason = f" {response.reason:.100}" if connect is None else ""
                raise AudioError(f"{name} answered HTTP {response.status}{reason}: check the address")
            return _body(response, deadline, limit, name, packed=connect is None)
    raise AudioError(f"{name} redirects more than {redirects} times: give the address of the file itself")


class _StrangersHandler(urllib.request.AbstractHTTPHandler):
    """http and https over what `connect` gives, without proxies."""

    def __init__(self, connect: Connect):
        super().__init__()
        self.connect = connect

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def http_open(self, request):
        return self.do_open(partial(_Connection, connect=self.connect, tls=False), request)

    def https_open(self, request):
        return self.do_open(partial(_Connection, connect=self.connect, tls=True), request)


class _Connection(http.client.HTTPConnection):
    def __init__(self, host: str, *, connect: Connect, tls: bool, timeout: float):
        self.default_port = 443 if tls else 80
        super().__init__(host, timeout=timeout)
        self.reach = partial(connect, tls=tls)

    def connect(self) -> None:
        self.sock = self.reach(self.host, self.port, self.timeout)


def _body(response: http.client.HTTPResponse, deadline: float, limit: int, name: str, *, packed: bool) -> bytes:
    """What follows the headers. packed: whether it may be compressed."""
    too_large = too_many_bytes(name, limit)
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "") and not packed:
        raise AudioError(f"{name} comes with a Content-Encoding, which was not asked for: give another address")
    if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
        raise AudioError(f"{name} comes with Content-Encoding {encoding[:40]!r}: download it with another program")
    unpack = None if encoding in ("identity", "") else zlib.decompressobj(wbits=47)  # 47: gzip or zlib, by the header
    expected = response.headers.get("Content-Length")
    if expected and expected.isdigit() and int(expected) > limit:
        raise too_large
    data, received = bytearray(), 0
    while block := response.read1(READ_BYTES):
        received += len(block)
        data += block if unpack is None else unpack.decompress(block, limit + 1 - len(data))
        if max(len(data), received) > limit:
            raise too_large
        if time.monotonic() > deadline:
            raise TimeoutError
    if expected and expected.isdigit() and received != int(expected):
        raise AudioError(f"{name} broke off after {received} of {expected} bytes: try again")
    if unpack is not None and received and not unpack.eof:
        raise AudioError(f"{name} broke off inside its {encoding} encoding, after {received} bytes: try again")
    return bytes(data)


def _ascii_address(url: str, name: str) -> tuple[str, str | None]:
    """A URL as it goes over the wire, without what stands before an @, and that as basic credentials.

    What is percent-encoded already stays so; other characters that need it are encoded as UTF-8, host names by IDNA.
    """
    if any(ord(character) < 32 or ord(character) == 127 for character in url):
        raise AudioError(f"{name} has a control character (a line break, perhaps) in it: check the address")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host = host if host.isascii() else host.encode("idna").decode()
    except ValueError:
        raise AudioError(f"{name} is no valid address: check its host and port") from None
    if not host:
        raise AudioError(f"{name} names no host: write http://host/path")
    place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
    path, query = _quoted(parts.path, _PATH_SAFE), _quoted(parts.query, _PATH_SAFE + "?[]")
    credentials = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        credentials = base64.b64encode(pair.encode()).decode()
    return urlunsplit((parts.scheme, place, path or "/", query, "")), credentials


def _quoted(text: str, safe: str) -> str:
    return quote(re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", text), safe=safe)


def _as_sent(header: str) -> str:
    """A header's value, which http.client reads as Latin-1, as the UTF-8 that it mostly is."""
    try:
        return header.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return header
