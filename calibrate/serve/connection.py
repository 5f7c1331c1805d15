"""HTTP/1.1 for timing: every piece of an answer gets the time at which it left the socket.

One connection serves one request at a time and is kept for the next one. The standard library's client blocks a
thread for each request, and hundreds of threads would disturb each other's stamps; this is one event loop.
"""

from __future__ import annotations

import asyncio
import re
import signal
import ssl
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import urlsplit

from calibrate.serve.http_answer import Answer, AnswerReader, Broken
from sim.errors import InputError

Body = Callable[[Answer, float, bytes], None]
"""Takes each piece of a body: of which answer, when it came (monotonic seconds), and its bytes. It may raise Broken."""


T = TypeVar("T")


def run_or_stop(work: Coroutine[Any, Any, T]) -> T:
    """Run work in an event loop of its own; SIGTERM cancels it, as Ctrl-C does, where a handler for it is installed.

    A handler that raises would do so in the middle of any task or callback, and asyncio prints a traceback for a task
    that ends with an exception.

    :raises KeyboardInterrupt: if SIGTERM or Ctrl-C came.
    """
    before = signal.getsignal(signal.SIGTERM)
    stopped = False

    async def watched() -> T:
        nonlocal stopped
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def stop() -> None:
            nonlocal stopped
            stopped = True
            task.cancel()

        loop.add_signal_handler(signal.SIGTERM, stop)
        try:
            return await work
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            signal.signal(signal.SIGTERM, before)

    if not callable(before) or threading.current_thread() is not threading.main_thread():
        return asyncio.run(work)
    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        if not stopped:
            raise
        raise KeyboardInterrupt from None


def without_credentials(text: str) -> str:
    """Return a text without user names and passwords of URLs."""
    return re.sub(r"(\w://)[^/\s]*@", r"\1", text)


class Connection(asyncio.Protocol):
    """One connection; reads one answer after the other.

    :ivar heard: whether anything came since the last request.
    """

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.reusable = self.heard = False
        self._reader: AnswerReader | None = None
        self._answer = Answer()
        self._body: Body = lambda answer, now, data: None
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.reusable = False
        if self._reader is not None and error is None and self._reader.close():
            self._end(None)
        else:
            self._end(Broken(str(error) if error else "the server closed the connection"))

    async def exchange(self, request: bytes, body: Body, most: int) -> Answer:
        """Send a request and return its answer once it is complete.

        :param most: bytes of body.
        :raises Broken: where the connection ends before, or what comes is not HTTP, or larger.
        """
        self.reusable = self.heard = False
        if self.transport is None or self.transport.is_closing():
            raise Broken("the server closed the connection")
        self._answer, self._body = Answer(), body
        self._reader = AnswerReader(self._answer, most)
        self._done = asyncio.get_running_loop().create_future()
        self._answer.sent = time.monotonic()
        self.transport.write(request)
        await self._done
        return self._answer

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self.heard = True
        reader = self._reader
        if reader is None:  # an answer without a request: later answers could not be distinguished from it
            self.close()
            return
        try:
            for piece in reader.feed(data):
                self._body(self._answer, now, piece)
        except Broken as broken:
            self._end(broken)
            self.close()
            return
        if reader.complete:
            self.reusable = reader.reusable and self.transport is not None
            self._end(None)

    def _end(self, broken: Broken | None) -> None:
        self._reader = None
        if self._done is None or self._done.done():
            return
        if broken is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(broken)


class Host:
    """A server's address and the connections to it.

    :param url: such as ``http://127.0.0.1:8000`` or ``https://host/prefix``; a trailing ``/v1`` is taken off,
        and so are user and password.
    :raises InputError: where that is no such URL.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        url = without_credentials(url)
        try:
            parts = urlsplit(url)
            port = parts.port
            (parts.hostname or "").encode("idna")
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(parts.scheme)
        except ValueError:
            raise InputError(
                "this is not the URL of a server", key="--url", got=url, allowed="such as http://host:8000"
            ) from None
        secure = parts.scheme == "https"
        self.url = url.rstrip("/").removesuffix("/v1")
        self._host, self._port = parts.hostname, port or (443 if secure else 80)
        self._ssl = ssl.create_default_context() if secure else None
        self._path = urlsplit(self.url).path
        credentials = f"Authorization: Bearer {key}\r\n" if key else ""
        self._headers = f"Host: {parts.netloc}\r\nUser-Agent: loraplan\r\n{credentials}"
        self._free: list[Connection] = []
        self._all: set[Connection] = set()

    async def request(self, path: str, payload: bytes | None, body: Body, most: int) -> Answer:
        """Send a request on a free connection or a new one; a kept one that the server has closed is replaced.

        Redirects are not followed: the key is for this server.

        :param most: bytes of the answer's body.
        :raises Broken, OSError: where the server can't be reached, goes away, or sends what is not HTTP or too much.
        """
        head = f"{'GET' if payload is None else 'POST'} {self._path}{path} HTTP/1.1\r\n{self._headers}"
        if payload is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
        message = f"{head}Accept: */*\r\n\r\n".encode() + (payload or b"")
        while True:
            kept = self._take()
            connection = kept or await self._connect()
            try:
                answer = await connection.exchange(message, body, most)
            except Broken:
                self._forget(connection)
                if kept is not None and not connection.heard:
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

    async def get(self, path: str, limit_s: float, most: int) -> tuple[int, bytes]:
        """Return status and body.

        :param limit_s: seconds for all of it, the connection too; ``most``: bytes of body.
        :raises Broken, OSError: as ``request``, and where that takes longer.
        """
        pieces: list[bytes] = []
        try:
            async with asyncio.timeout(limit_s):
                answer = await self.request(path, None, lambda answer, now, data: pieces.append(data), most)
        except TimeoutError:
            raise Broken(f"no complete answer within {limit_s:g} s") from None
        return answer.status, b"".join(pieces)

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
