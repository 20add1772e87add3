"""Who may ask: every request brings a key that the server knows, but those for `OPEN` paths and for the page."""

import hashlib
import hmac
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from mindone_audio.server.errors import RequestError, response
from mindone_audio.server.guards import READING
from mindone_audio.server.page_files import PATHS
from mindone_audio.setting_fields import refusal

ENVIRONMENT = "MINDONE_AUDIO_API_KEY"
OPEN = ("/health", "/docs")
# Of a WebSocket, for which browsers can send no header: OpenAI's, and that whose rest is a key.
PROTOCOL, KEY_PROTOCOL = "realtime", "openai-insecure-api-key."


def is_open(method: str, path: str) -> bool:
    """Whether a request needs no key. The page asks for one itself; POST / is the task, which needs it."""
    return path in OPEN or (path in PATHS and method in READING and method != "OPTIONS")


def read_keys(file: str | os.PathLike | None, environment: Mapping[str, str]) -> list[str]:
    """The keys of a file, one a line, and that of the environment; `ValueError` for a file without any."""
    own = environment.get(ENVIRONMENT, "").strip()
    if file is None:
        return [own] if own else []
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise refusal("api_key_file", f" {os.fspath(file)} has no key: write one a line")
    return keys + ([own] if own else [])


def readable_by_all(file: str | os.PathLike) -> bool:
    """Whether every user of the machine can read the keys."""
    return bool(os.stat(file).st_mode & stat.S_IROTH)


class KeyCheck:
    """ASGI middleware: the key of a request must be one of `keys`; without any, nobody needs one.

    Puts a name of the key, from which nobody learns the key, into `scope["state"]["key"]`. The time that the check
    takes does not depend on how much of a key is right.
    """

    def __init__(self, app: ASGIApp, keys: list[str]):
        self.app, self.digests = app, [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        socket = scope["type"] == "websocket"
        if self.digests and (socket or (scope["type"] == "http" and not is_open(scope["method"], scope["path"]))):
            given = dict(scope["headers"]).get(b"authorization", b"")
            for protocol in scope.get("subprotocols", ()):
                if protocol.startswith(KEY_PROTOCOL):
                    given = b"Bearer " + protocol.removeprefix(KEY_PROTOCOL).encode()
            name = self._name(given)
            if name is None and socket:
                await receive()
                await send({"type": "websocket.close", "code": 1008})  # before it is accepted: 403
                return
            if name is None:
                error = RequestError(
                    "this server needs a key: send it as Authorization: Bearer KEY",
                    status=401,
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await response(error)(scope, receive, send)
                return
            scope.setdefault("state", {})["key"] = name
        await self.app(scope, receive, send)

    def _name(self, header: bytes) -> str | None:
        scheme, _, key = header.partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        known = [hmac.compare_digest(digest, each) for each in self.digests]  # all of them, whichever it is
        return digest.hex()[:8] if any(known) and scheme.lower() == b"bearer" else None
