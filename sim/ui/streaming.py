"""Answers that come in parts: one line of JSON for each event, until they end or the reader is gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_CHARACTERS = (b"content-type", b"application/x-ndjson; charset=utf-8")


class EventLines(Response):
    """Sends events as they come.

    Events are made in a task of their own, which is cancelled when the reader leaves or the server stops: so what
    is computed for a reader ends at once, and not with the next event.

    :param stopping: set when the server is to end.
    """

    def __init__(self, events: AsyncIterator[dict[str, Any]], stopping: asyncio.Event) -> None:
        super().__init__()
        self._events = events
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events."""
        await send({"type": "http.response.start", "status": 200, "headers": [_CHARACTERS]})
        lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        making = asyncio.ensure_future(_make(self._events, lines))
        ends = {asyncio.ensure_future(_gone(receive)), asyncio.ensure_future(self._stopping.wait())}
        line: asyncio.Future[bytes | None] | None = None
        try:
            while True:
                line = asyncio.ensure_future(lines.get())
                await asyncio.wait({line, *ends}, return_when=asyncio.FIRST_COMPLETED)
                if not line.done():
                    break
                found = line.result()
                if found is None:
                    break
                await send({"type": "http.response.body", "body": found, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            for task in {making, *ends, *({line} if line is not None else ())}:
                task.cancel()


async def _make(events: AsyncIterator[dict[str, Any]], lines: asyncio.Queue[bytes | None]) -> None:
    try:
        async for event in events:
            lines.put_nowait(json.dumps(event).encode() + b"\n")
    except asyncio.CancelledError:
        await _closed(events)
        raise
    except Exception as error:
        event = {"stage": "failed", "status": f"internal failure: {type(error).__name__}: {error}"}
        lines.put_nowait(json.dumps(event).encode() + b"\n")
    lines.put_nowait(None)


async def _closed(events: AsyncIterator[dict[str, Any]]) -> None:
    close = getattr(events, "aclose", None)
    if close is not None:
        await close()


async def _gone(receive: Receive) -> None:
    """Return when the reader has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
