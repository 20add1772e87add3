"""Connections that nobody can hold open by sending headers slowly, which uvicorn alone would wait for without end."""

from uvicorn.protocols.http.h11_impl import H11Protocol

from mindone_audio.server.guards import HEADER_TIMEOUT, MOST_CONNECTIONS, MOST_HEADER_BYTES


class TimedProtocol(H11Protocol):
    """uvicorn's HTTP with a limit of seconds from the first byte of a request, or a new connection, to the last header.

    Above `most_connections` new ones are closed at once, so that file descriptors are left for clips.
    """

    header_timeout = HEADER_TIMEOUT
    most_connections = MOST_CONNECTIONS
    timer = None

    def connection_made(self, transport):
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            transport.abort()
        else:
            self._watch()

    def data_received(self, data):
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc):
        self._stop()
        super().connection_lost(exc)

    def _watch(self):
        upgraded = self.transport.get_protocol() is not self  # a WebSocket
        answering = self.cycle is not None and not self.cycle.response_complete
        if upgraded or answering:
            self._stop()
        elif self.timer is None:
            self.timer = self.loop.call_later(self.header_timeout, self.transport.abort)

    def _stop(self):
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def uvicorn_settings(protocol: type[TimedProtocol] = TimedProtocol) -> dict:
    """Arguments of `uvicorn.Config` that go with `guards.guarded`."""
    return {
        "http": protocol,
        "server_header": False,
        "h11_max_incomplete_event_size": MOST_HEADER_BYTES,
        "ws_max_size": 16 * 2**20,  # bytes of one event of /v1/realtime: OpenAI's limit of a piece of sound is 15 MiB
        "ws_max_queue": 8,
        "timeout_keep_alive": 5,  # seconds
    }
