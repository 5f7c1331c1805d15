"""Keeps other pages and other people out: only this machine, only our own page, only with its token."""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 4_000_000
"""Bytes of a request's body: a scenario of 1 MB with its quotes escaped."""
BODY_S = 5.0
"""Seconds in which a request's body arrives."""
MOST_AT_A_TIME = 12
"""Requests that are answered at a time."""
HEADER = b"x-loraplan-token"
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """ASGI middleware that refuses what doesn't come from the page itself.

    - ``Host`` must name this machine and port, against DNS rebinding.
    - ``Origin``, where a browser sends one, must be this page's; requests that are no GET need one.
    - The token must be in the query or in a header. It isn't a cookie: those are sent to every port of a machine.
    - Bodies, the time that they take and the number of requests at a time are limited.

    :param port: where the page listens.
    """

    def __init__(self, app: ASGIApp, port: int, token: str) -> None:
        self._app = app
        self._hosts = {f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost")}
        self._origins = {b"http://" + host for host in self._hosts}
        self._token = token.encode()
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web sockets here
        refusal = self._refusal(scope)
        if refusal is not None:
            await _refuse(send, *refusal)
            return
        self._under_way += 1
        try:
            await self._app(scope, _limited(receive), _with_headers(send))
        except TooLarge:
            await _refuse(send, 413, f"The request is larger than {MOST_BYTES:,} bytes.")
        except TooSlow:
            await _refuse(send, 408, f"The request did not arrive within {BODY_S:g} seconds.")
        finally:
            self._under_way -= 1

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in headers and name in (b"host", b"origin", HEADER, b"content-length"):
                return 400, "A header is given twice."
            headers[name] = value
        if headers.get(b"host", b"").lower() not in self._hosts:
            return 403, "This page answers to 127.0.0.1 and localhost only."
        origin = headers.get(b"origin")
        if origin is not None and origin.lower() not in self._origins:
            return 403, "Other pages may not use this one."
        if origin is None and scope["method"] not in ("GET", "HEAD"):
            return 403, "Only this page itself may change anything."
        if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
            return 403, "Other pages may not use this one."
        if not self._has_token(scope, headers):
            return 403, "The token is missing or wrong: use the address that loraplan ui has printed."
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MOST_BYTES:
            return 413, f"The request is larger than {MOST_BYTES:,} bytes."
        if self._under_way >= MOST_AT_A_TIME:
            return 429, "Too many requests at a time: close other tabs of this page."
        return None

    def _has_token(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        given = headers.get(HEADER)
        if given is None:
            try:
                query = parse_qs(scope["query_string"].decode("ascii"), max_num_fields=10)
            except (ValueError, UnicodeDecodeError):
                return False
            given = query.get("token", [""])[0].encode()
        return hmac.compare_digest(given, self._token)


class TooLarge(Exception):
    """A body is longer than it may be."""


class TooSlow(Exception):
    """A body takes longer than it may."""


def _limited(receive: Receive) -> Receive:
    """Return ``receive`` that stops at a body's limits, whatever its length was said to be."""
    taken = 0
    deadline: float | None = asyncio.get_running_loop().time() + BODY_S

    async def limited() -> Message:
        nonlocal taken, deadline
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise TooSlow from None
        taken += len(message.get("body", b""))
        if taken > MOST_BYTES:
            raise TooLarge
        if not message.get("more_body", False):
            deadline = None  # what follows is that the reader leaves
        return message

    return limited


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
        await send(message)

    return sent


async def _refuse(send: Send, status: int, text: str) -> None:
    body = f"{text}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *_HEADERS,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
