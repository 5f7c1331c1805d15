"""Serves the page on this machine until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from sim.errors import InputError
from sim.ui.library import Library
from sim.ui.simulating.broker import Broker
from sim.ui.simulating.workers import Workers
from sim.ui.site import Site

_HOST = "127.0.0.1"
_GRACE_S = 2
"""Seconds in which open answers end when the server stops."""
_MOST_CONNECTIONS = 64
_IDLE_S = 5
"""Seconds in which a connection's first or next request begins to be answered, or the connection is closed."""


class _Protocol(H11Protocol):
    """Closes connections on which no whole head of a request arrives; uvicorn alone waits once a byte is there."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(_IDLE_S, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        request, timer = self.cycle, self.timeout_keep_alive_task
        self.timeout_keep_alive_task = None
        super().data_received(data)
        if self.cycle is request:
            self.timeout_keep_alive_task = timer
        elif timer is not None:
            timer.cancel()


class _Server(uvicorn.Server):
    """A server that ends its streams when it shuts down."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        self._on_stop()
        super().handle_exit(sig, frame)


def serve(library: Library, scenario: str, port: int, workers: Workers, on_ready: Callable[[str], None]) -> None:
    """Serve the page until SIGINT or SIGTERM, which are then raised again.

    :param scenario: the one that the page opens with.
    :param port: 0: any that is free.
    :param workers: that simulate.
    :param on_ready: called with the page's address when it answers.
    :raises InputError: if the scenario can't be opened, or the port is taken.
    """
    first = library.open(scenario)
    with contextlib.closing(_listening(port)) as listener:
        token = secrets.token_urlsafe(24)
        port = listener.getsockname()[1]
        with contextlib.closing(Broker(workers)) as broker:
            asyncio.run(_serve(Site(library, broker, first, token), listener, port, on_ready))


async def _serve(site: Site, listener: socket.socket, port: int, on_ready: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    config = uvicorn.Config(
        site.app(port),
        http=_Protocol,
        log_level="critical",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = _Server(config, lambda: loop.call_soon_threadsafe(site.stopping.set))  # type: ignore[arg-type]
    on_ready(f"http://{_HOST}:{port}/?token={site.token}")
    await server.serve(sockets=[listener])


def _listening(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_HOST, port))
    except OSError as error:
        listener.close()
        hint = "another program uses it; leave --port out for a free one"
        if error.errno == errno.EACCES:
            hint = "ports below 1024 need root; use a port from 1024 up, or leave --port out"
        raise InputError(f"can't listen there: {error.strerror}", key="--port", got=port, hint=hint) from None
    listener.listen()
    return listener
