"""One POST request: a place for it, its body, its answer or its error; given up as soon as the client leaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, aclosing, suppress
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from mindone_audio.server.errors import as_request_error, response
from mindone_audio.server.service import Place, Service

DONE = b"data: [DONE]\n\n"
STALLED = 60.0  # seconds after which a client that reads nothing of its answer is given up


class Exchange(Response):
    """read: from a request to what its body holds. answer: from the service, that, and the place to a response.

    After the body a client sends nothing but the news that it has gone. That cancels `answer`, and with it whatever
    it has given to the scheduler, also while it waits there.
    """

    def __init__(self, service: Service, read: Callable[[Request], Awaitable], answer: Callable[..., Awaitable]):
        super().__init__()
        self.service, self.read, self.answer = service, read, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = scope.get("state", {}).get("key", "")
        with ExitStack() as stack:
            try:
                place = stack.enter_context(self.service.admitted(key))
                body = await self.read(Request(scope, receive))
            except ClientDisconnect:
                return
            except Exception as error:
                self.service.metrics.refused(error)
                await response(error)(scope, receive, send)
                return
            await _unless_gone(self._reply(body, place, scope, send), receive)

    async def _reply(self, body: Any, place: Place, scope: Scope, send: Send) -> None:
        try:
            answer = await self.answer(self.service, body, place)
        except Exception as error:
            self.service.metrics.refused(error)
            answer = response(error)
        await answer(scope, _nothing, send)


async def _unless_gone(work: Awaitable, receive: Receive) -> None:
    """Wait for the work, or for the client to leave, which cancels the work."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(receive())
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _nothing() -> dict:
    await asyncio.Event().wait()


def frame(content: dict) -> bytes:
    """A server-sent event of JSON."""
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class Stream(Response):
    """A body that comes in pieces, of which the first is known; an error behind it breaks the connection.

    A client that does not read is not waited for, so that its answer is not computed for nobody.
    """

    def __init__(self, first: bytes, pieces: AsyncIterator[bytes], media_type: str):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}, media_type=media_type)
        del self.headers["content-length"]
        self.first, self.pieces = first, pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(body: bytes, more: bool = True) -> None:
            message = {"type": "http.response.body", "body": body, "more_body": more}
            sending = asyncio.ensure_future(send(message))
            try:
                await asyncio.wait((sending,), timeout=STALLED)  # before Python 3.12 wait_for may lose a cancellation
                if not sending.done():
                    raise asyncio.TimeoutError
                sending.result()
            finally:
                sending.cancel()

        async with aclosing(self.pieces):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            with suppress(asyncio.TimeoutError):
                await write(self.first)
                async for made in self.pieces:
                    await write(made)
                await write(b"", more=False)


async def _to_the_end(frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The frames, one more for an error that ends them, and [DONE]."""
    async with aclosing(frames):
        try:
            async for made in frames:
                yield made
        except Exception as error:
            yield frame(as_request_error(error).body)
        yield DONE


async def stream(pieces: AsyncIterator[bytes], media_type: str) -> Stream:
    """The pieces as a response, which there is only when the first one has been made: until then, errors are raised."""
    return Stream(await anext(pieces), pieces, media_type)


async def event_stream(frames: AsyncIterator[bytes]) -> Stream:
    """The same of server-sent events, of which an error after the first one becomes another."""
    return Stream(await anext(frames), _to_the_end(frames), "text/event-stream")
