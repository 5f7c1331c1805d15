"""HTTP/1.1 for timing: every piece of an answer gets the time at which it left the socket.

One connection serves one request at a time and is kept for the next one. The standard library's client blocks a
thread for each request, and hundreds of threads would disturb each other's stamps; this is one event loop.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from sim.errors import InputError

Body = Callable[[float, bytes], None]
"""Takes each piece of a body: when it came (monotonic seconds), and its bytes."""


def without_credentials(text: str) -> str:
    """Return a text without user names and passwords of URLs."""
    return re.sub(r"(\w://)[^/\s]*@", r"\1", text)


class ConnectionBroken(Exception):
    """The connection ended before the answer did."""


@dataclass(slots=True)
class HttpResponse:
    """An answer, complete or up to where the connection broke.

    :ivar sent: when the request was handed to the socket, monotonic seconds.
    """

    sent: float = 0.0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)


class Connection(asyncio.Protocol):
    """One connection; reads one answer after the other."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._on_data: Callable[[float], None] = _ignore_time
        self.reusable = False
        self.answered = False
        self._answer = HttpResponse()
        self._body: Body = _ignore
        self._done: asyncio.Future[None] | None = None
        self._buffer = b""
        self._left: int | None = None
        self._state = "idle"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        if self._state == "rest":
            self._finish()
        elif self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionBroken(str(error) if error else "the server closed the connection"))
        self.transport = None

    async def exchange(self, request: bytes, body: Body, on_data: Callable[[float], None]) -> HttpResponse:
        """Send a request and return its answer once it is complete.

        :raises Broken: where the connection ends before.
        """
        assert self.transport is not None
        self._on_data = on_data
        self._answer, self._body, self._state, self._buffer = HttpResponse(), body, "head", b""
        self._done, self.reusable, self.answered = asyncio.get_running_loop().create_future(), False, False
        self._answer.sent = time.monotonic()
        self.transport.write(request)
        await self._done
        return self._answer

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self.answered = True
        self._on_data(now)
        self._buffer += data
        if self._state == "head" and not self._read_head():
            return
        if self._state == "chunks":
            self._read_chunks(now)
        elif self._state == "length":
            assert self._left is not None
            self._left -= len(self._buffer)
            self._body(now, self._buffer)
            self._buffer = b""
            if self._left <= 0:
                self._finish()
        elif self._state == "rest":
            self._body(now, self._buffer)
            self._buffer = b""

    def _read_head(self) -> bool:
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ", 2)
        if not words[0].startswith("HTTP/1.") or len(words) < 2 or not words[1].isdigit():
            self._fail("the answer is not HTTP")
            return False
        self._answer.status = int(words[1])
        pairs = (line.partition(":") for line in lines)
        headers = self._answer.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        self._buffer = rest
        self._state = "rest"
        if "chunked" in headers.get("transfer-encoding", "").lower():
            self._state = "chunks"
        elif headers.get("content-length", "").isdigit():
            self._left, self._state = int(headers["content-length"]), "length"
            if self._left == 0:
                self._finish()
        return True

    def _read_chunks(self, now: float) -> None:
        while True:
            size, found, rest = self._buffer.partition(b"\r\n")
            if not found:
                return
            try:
                length = int(size.split(b";")[0], 16)
            except ValueError:
                self._fail("the answer is not HTTP: a chunk has no size")
                return
            if len(rest) < length + 2:
                return
            if length == 0:
                self._buffer = b""
                self._finish()
                return
            self._body(now, rest[:length])
            self._buffer = rest[length + 2 :]

    def _finish(self) -> None:
        self._state = "idle"
        self.reusable = self.transport is not None and "close" not in self._answer.headers.get("connection", "").lower()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _fail(self, words: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionBroken(words))
        self.close()


class Host:
    """A server's address and the connections to it.

    :param url: such as ``http://127.0.0.1:8000`` or ``https://host/prefix``; a trailing ``/v1`` is taken off,
        and so are user and password.
    :ivar last_data_s: when data of an answer to a request with a body last arrived, monotonic seconds.
    :raises InputError: where it is not such a URL.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        url = without_credentials(url)
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise InputError(
                "this is not the URL of a server", key="--url", got=url, allowed="such as http://host:8000"
            )
        secure = parts.scheme == "https"
        self.url = url.rstrip("/").removesuffix("/v1")
        self._host, self._port = parts.hostname, port or (443 if secure else 80)
        self._ssl = ssl.create_default_context() if secure else None
        self._path = urlsplit(self.url).path
        credentials = f"Authorization: Bearer {key}\r\n" if key else ""
        self._headers = f"Host: {parts.netloc}\r\nUser-Agent: loraplan\r\n{credentials}"
        self._free: list[Connection] = []
        self._all: set[Connection] = set()
        self.last_data_s = 0.0

    async def request(self, path: str, payload: bytes | None, body: Body) -> HttpResponse:
        """Send a request on a free connection or a new one; a kept one that the server has closed is replaced.

        :raises Broken, OSError: where the server can't be reached, or goes away.
        """
        head = f"{'GET' if payload is None else 'POST'} {self._path}{path} HTTP/1.1\r\n{self._headers}"
        if payload is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
        message = f"{head}Accept: */*\r\n\r\n".encode() + (payload or b"")
        while True:
            kept = self._take()
            connection = kept or await self._connect()
            try:
                answer = await connection.exchange(message, body, _ignore_time if payload is None else self._note_data)
            except ConnectionBroken:
                self._forget(connection)
                if kept is not None and not connection.answered:
                    continue
                raise
            except asyncio.CancelledError:
                self._forget(connection)
                raise
            if connection.reusable:
                self._free.append(connection)
            else:
                self._forget(connection)
            return answer

    async def get(self, path: str) -> tuple[int, bytes]:
        """Return status and body."""
        pieces: list[bytes] = []
        answer = await self.request(path, None, lambda now, data: pieces.append(data))
        return answer.status, b"".join(pieces)

    def _note_data(self, now: float) -> None:
        self.last_data_s = now

    async def close(self) -> None:
        """Close every connection, those in the middle of an answer too."""
        for connection in self._all:
            connection.close()
        self._all.clear()
        self._free.clear()
        await asyncio.sleep(0)  # the loop closes sockets at its next turn

    def _take(self) -> Connection | None:
        while self._free:
            connection = self._free.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                return connection
            self._forget(connection)
        return None

    def _forget(self, connection: Connection) -> None:
        connection.close()
        self._all.discard(connection)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=self._ssl)
        self._all.add(connection)
        return connection  # asyncio sets TCP_NODELAY itself


def _ignore(now: float, data: bytes) -> None:
    """Ignore a piece of a body."""


def _ignore_time(now: float) -> None:
    """Ignore when data arrived."""
