"""A server of raw sockets that answers what a test says, byte for byte: well, unless the test says otherwise."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

Send = Callable[[socket.socket], None]
"""Answers one request by itself; the connection is closed behind it."""

ADAPTERS = [f"adapter-{index}" for index in range(4)]


class HostileServer:
    """What it answers is set by its attributes.

    :ivar answers: by path, in place of what a server that is well answers there.
    :ivar good_for: completions that are served well before ``answers`` counts for them.
    :ivar asked: paths of the requests that came.
    :ivar accepts: what is done with a new connection before it is read, None: nothing.
    """

    def __init__(self) -> None:
        self.answers: dict[str, bytes | Send] = {}
        self.good_for = 0
        self.accepts: Send | None = None
        self.asked: list[str] = []
        self._open: list[socket.socket] = []
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def close(self) -> None:
        for one in (self._socket, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._thread.join(timeout=5)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection, connection.makefile("rb") as incoming:
            if self.accepts is not None:
                self.accepts(connection)
            while (line := incoming.readline()).startswith((b"GET ", b"POST ")):
                path = line.split()[1].decode()
                headers = {}
                while header := incoming.readline().strip():
                    name, _, value = header.partition(b": ")
                    headers[name.lower()] = value
                body = incoming.read(int(headers.get(b"content-length", b"0")))
                self.asked.append(path)
                answer = self._answer(path, body)
                if not isinstance(answer, bytes):
                    answer(connection)
                    return
                connection.sendall(answer)

    def _answer(self, path: str, body: bytes) -> bytes | Send:
        completions = self.asked.count("/v1/completions")
        if path in self.answers and (path != "/v1/completions" or completions > self.good_for):
            return self.answers[path]
        if path == "/v1/models":
            return models(ADAPTERS)
        if path == "/v1/completions":
            return completion(json.loads(body)["max_tokens"])
        return plain(b"{}", status="404 Not Found")


def plain(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """Return an answer with a length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def models(adapters: Iterable[Any]) -> bytes:
    """Return a list of models: a base model and these adapters."""
    rows = [{"id": "base", "parent": None}, *({"id": name, "parent": "base"} for name in adapters)]
    return plain(json.dumps({"object": "list", "data": rows}).encode())


def chunks(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """Return an answer in chunks."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + end


def event(tokens: object) -> bytes:
    """Return a piece of a completion; ``tokens`` may be JSON as text."""
    reported = tokens if isinstance(tokens, str) else json.dumps(tokens)
    return b'data: {"choices": [{"text": "w"}], "usage": {"completion_tokens": %b}}\n\n' % reported.encode()


def completion(tokens: int) -> bytes:
    """Return all of a completion."""
    return chunks(*(event(number) for number in range(1, tokens + 1)), b"data: [DONE]\n\n")


def endless(begin: bytes, piece: bytes, sent: list[int] | None = None) -> Send:
    """Send a beginning, then a piece again and again, as fast as it goes.

    :param sent: gets the bytes that the other side took or that wait for it.
    """

    def send(connection: socket.socket) -> None:
        connection.sendall(begin)
        while True:
            connection.sendall(piece)
            if sent is not None:
                sent.append(len(piece))

    return send


def drip(begin: bytes, piece: bytes, every_s: float) -> Send:
    """Send a beginning, then a piece now and then."""

    def send(connection: socket.socket) -> None:
        connection.sendall(begin)
        while True:
            time.sleep(every_s)
            connection.sendall(piece)

    return send


def silent(connection: socket.socket) -> None:
    """Send nothing, and keep the connection."""
    connection.recv(1)  # until the other side goes
    time.sleep(60)


@contextmanager
def running() -> Iterator[HostileServer]:
    """Run a server while the block runs."""
    server = HostileServer()
    try:
        yield server
    finally:
        server.close()
