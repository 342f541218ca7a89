"""The sockets: uvicorn, with a watch on connections that take their time, and a clean end."""

import asyncio
import math
import signal
import socket
import sys
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from t5x_lite.errors import UserError
from t5x_lite.serve.app import App

_HEADER_BYTES = 16_384
_BACKLOG = 1024  # connections that nobody has taken yet
_MARGIN = 2.0  # seconds, for an answer that says that time is over


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any that is free. Raises UserError if there is none."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        raise UserError(f"can't listen at {host}:{port}: {error}; try another --port.") from None
    return listening


def run(app: App, listening: socket.socket) -> str | None:
    """Serves until SIGINT or SIGTERM, whose name it returns; then lets what runs end."""
    settings = app.settings
    config = uvicorn.Config(
        app.asgi,
        http=_watched(settings.read_seconds, settings.request_seconds + _MARGIN),
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        # More connections than this are answered 503, so that files (sockets) don't run out.
        limit_concurrency=4 * settings.max_waiting,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        backlog=_BACKLOG,
        timeout_keep_alive=max(1, round(settings.read_seconds)),
        timeout_graceful_shutdown=math.ceil(settings.grace_seconds + _MARGIN),
    )
    server = _Server(config, app)
    # uvicorn gives a signal back when it has ended; it has done its work then.
    previous = {n: signal.signal(n, lambda *_: None) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return signal.Signals(server.signals[0]).name if server.signals else None


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: App):
        super().__init__(config)
        self.app, self.signals = app, []

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        self.signals.append(sig)
        if len(self.signals) == 1:
            name = signal.Signals(sig).name
            sys.stderr.write(f"\n{name}: no new requests; waiting for those that there are\n")
            self.app.close()


def _watched(read_seconds: float, answer_seconds: float) -> type[H11Protocol]:
    """A protocol that ends connections whose request doesn't come, or whose answer isn't taken."""

    class Watched(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._seen: Any = None
            self._since = self.loop.time()
            self._watch()

        def _watch(self) -> None:
            if self not in self.connections:
                return
            now, cycle = self.loop.time(), self.cycle
            answering = cycle is not None and not cycle.response_complete
            state = cycle if answering else None
            if state is not self._seen:
                self._seen, self._since = state, now
            if now - self._since > (answer_seconds + read_seconds if answering else read_seconds):
                self.transport.abort()
                return
            self.loop.call_later(min(1.0, read_seconds / 4), self._watch)

    return Watched
