"""/v1/realtime: a spoken conversation over a WebSocket, by OpenAI's events."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from mindone_audio.server.errors import RequestError, as_request_error
from mindone_audio.server.guards import parse_json
from mindone_audio.server.keys import PROTOCOL
from mindone_audio.server.realtime_talk import Talk
from mindone_audio.server.service import Service

MOST_UNSENT = 2_000  # events that a client has not read, after which it is given up
MOST_BEHIND = 8  # turns, and parts of turns, that wait to be written down
STALLED = 60.0  # seconds that sending one event may take
_PIECE = 16_000  # samples in which turns are looked for at a time, in a thread that others need too
_TICK = 0.1  # seconds
_TRY_AGAIN, _GOING_AWAY, _POLICY = 1013, 1001, 1008  # codes of WebSocket


async def realtime(socket: WebSocket, service: Service) -> None:
    """One session, from its handshake to its end."""
    offered = socket.scope.get("subprotocols", [])
    await socket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
    try:
        with service.admitted(socket.scope.get("state", {}).get("key", "")):
            model = service.check_model(socket.query_params.get("model") or next(iter(service.options.models)))
            service.check_hears()
            await _Session(socket, service, model).run()
    except WebSocketDisconnect:
        pass
    except Exception as error:
        service.metrics.refused(error)
        code = _TRY_AGAIN if as_request_error(error).status in (429, 503) else _POLICY
        await _close(socket, code, error)


async def _close(socket: WebSocket, code: int, error: BaseException | None = None) -> None:
    """Say why, and close; the client may have gone."""
    with suppress(RuntimeError, WebSocketDisconnect, asyncio.TimeoutError):
        if error is not None:
            told = {"type": "error", "event_id": "event_0", **as_request_error(error).body}
            await asyncio.wait_for(socket.send_text(json.dumps(told)), STALLED)
        await asyncio.wait_for(socket.close(code), STALLED)


class _Session:
    """The two directions of one socket."""

    def __init__(self, socket: WebSocket, service: Service, model: str):
        self.socket, self.service = socket, service
        self.loop = asyncio.get_running_loop()
        self.unsent: asyncio.Queue[dict] = asyncio.Queue(MOST_UNSENT)
        self.full, self.over = asyncio.Event(), False
        self.talk = Talk(service, model, self._send, self._from_threads(lambda event: self.talk.happened(event)))

    async def run(self) -> None:
        """Until the client leaves, says nothing for too long, or reads nothing."""
        self.talk.begin()
        tasks = [asyncio.ensure_future(work()) for work in (self._read, self._write, self._drained, self.full.wait)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            self.talk.close()
            self.over = True  # Python before 3.12 loses a cancellation that comes when what `wait_for` waits for does
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self.socket.application_state is WebSocketState.CONNECTED:
            await _close(self.socket, _GOING_AWAY)

    async def _read(self) -> None:
        options = self.service.options
        while not self.over:
            try:
                text = await asyncio.wait_for(self.socket.receive_text(), options.realtime_timeout)
            except asyncio.TimeoutError:
                seconds = f"{options.realtime_timeout:g} s"
                self.talk.error(RequestError(f"nothing was sent for {seconds}: connect again", code="session_expired"))
                await asyncio.sleep(_TICK)  # for the event to be sent
                return
            except KeyError:  # bytes instead of text
                self.talk.error(RequestError("send events as text, not as bytes"))
                continue
            await self._do(text)

    async def _do(self, text: str) -> None:
        event: Any = None
        try:
            event = await self.service.in_pool(_parsed, text)
            samples = self.talk.do(event)
            for start in range(0, 0 if samples is None else len(samples), _PIECE):
                await self.service.in_pool(self.talk.hear, samples[start : start + _PIECE])
                while self.talk.conversation.behind > MOST_BEHIND:  # who speaks faster than it is written down waits
                    await asyncio.sleep(_TICK)
        except Exception as error:
            self.talk.error(error, event.get("event_id") if isinstance(event, dict) else None)

    async def _drained(self) -> None:
        while not self.service.draining:
            await asyncio.sleep(_TICK)

    async def _write(self) -> None:
        while not self.over:
            event = await self.unsent.get()
            await asyncio.wait_for(self.socket.send_text(json.dumps(event, ensure_ascii=False)), STALLED)

    def _send(self, event: dict) -> None:
        try:
            self.unsent.put_nowait(event)
        except asyncio.QueueFull:
            self.full.set()

    def _from_threads(self, function: Callable[[Any], None]) -> Callable[[Any], None]:
        """The function, called in the loop."""

        def call(event: Any) -> None:
            with suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(partial(function, event))

        return call


def _parsed(text: str) -> dict:
    try:
        event = parse_json(text.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise RequestError(str(error).replace("the body", "the event")) from error
    if not isinstance(event, dict):
        raise RequestError("an event must be a JSON object")
    return event
