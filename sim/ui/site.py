"""The addresses of the page: the page itself, what it asks for, and the reports it has written.

What keeps others out, and answers that come in parts, are here as well.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sim.errors import InputError, LoraplanError
from sim.reading import read_regular
from sim.spec.files.yaml_tree import yaml_text
from sim.studies.study_identity import free_folder
from sim.ui import fragments
from sim.ui.controls import Control
from sim.ui.following import Event, PageRequest, follow, opened_event
from sim.ui.library import ChosenDesign, Library, Opened, problems_of
from sim.ui.simulating.broker import Broker
from sim.ui.simulating.tasks import free, plan_from_here

# Keeps other pages and other people out: only this machine, only our own page, only with its token.

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
            await _refuse(scope, receive, send, *refusal)
            return
        self._under_way += 1
        try:
            await self._app(scope, _limited(receive), _with_headers(send))
        except TooLarge:
            await _refuse(scope, receive, send, 413, f"The request is larger than {MOST_BYTES:,} bytes.")
        except TooSlow:
            await _refuse(scope, receive, send, 408, f"The request did not arrive within {BODY_S:g} seconds.")
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


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, text: str) -> None:
    answer = PlainTextResponse(f"{text}\n", status, headers={"connection": "close"})
    await answer(scope, receive, _with_headers(send))


# Answers that come in parts: one line of JSON for each event, until they end or the reader is gone.

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
        if isinstance(events, AsyncGenerator):
            await events.aclose()
        raise
    except Exception as error:
        event = {"stage": "failed", "status": f"internal failure: {type(error).__name__}: {error}"}
        lines.put_nowait(json.dumps(event).encode() + b"\n")
    lines.put_nowait(None)


async def _gone(receive: Receive) -> None:
    """Return when the reader has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


# The addresses themselves.

RUNS = "runs"
"""Folder of run directories, in the chosen folder."""
_REPORT_BYTES = 16_000_000


@dataclass
class Site:
    """What the addresses share.

    :ivar first: the scenario that the page opens with; ``token``: that of its address.
    :ivar stopping: set when the server is to end; streams end then.
    """

    library: Library
    broker: Broker
    first: Opened
    token: str
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def app(self, port: int) -> Starlette:
        """Return the application."""
        routes = [
            Route("/", self.page),
            Route("/api/open", self.open, methods=["POST"]),
            Route("/api/follow", self.follow, methods=["POST"]),
            Route("/api/scenario", self.scenario, methods=["POST"]),
            Route("/api/report", self.report, methods=["POST"]),
            Route("/api/plan", self.plan, methods=["POST"]),
            Route("/" + RUNS + "/{name}/{file}", self.written),
        ]
        guard = Middleware(Guard, port=port, token=self.token)
        refused: Any = {_RefusedError: lambda request, error: error.answer}
        return Starlette(routes=routes, middleware=[guard], exception_handlers=refused)

    async def page(self, request: Request) -> Response:
        """Return the page."""
        html = await asyncio.to_thread(fragments.whole_page, self.library, self.first, self.token)
        return HTMLResponse(html, headers={"content-security-policy": fragments.page_policy()})

    async def open(self, request: Request) -> Response:
        """Open a scenario: its controls, or what is wrong with it."""
        return JSONResponse(await asyncio.to_thread(opened_event, self.library, await _page_request(request)))

    async def follow(self, request: Request) -> Response:
        """Follow a design for as long as the page listens."""
        return EventLines(follow(self.broker, self.library, await _page_request(request)), self.stopping)

    async def scenario(self, request: Request) -> Response:
        """Return the design as a scenario file."""
        design = await asyncio.to_thread(self._design, await _page_request(request))
        return PlainTextResponse(yaml_text(design.loaded.data), media_type="application/yaml")

    async def report(self, request: Request) -> Response:
        """Write the report of a design."""
        return await self._making(request, self._report)

    async def plan(self, request: Request) -> Response:
        """Plan along the control that was moved last."""
        return await self._making(request, self._plan)

    async def written(self, request: Request) -> Response:
        """Return a report that lies in the chosen folder."""
        name, file = request.path_params["name"], request.path_params["file"]
        path = self.library.folder / RUNS / name / file
        try:
            if file != "report.html" or path.resolve() != path:
                raise FileNotFoundError
            content = await asyncio.to_thread(read_regular, path, _REPORT_BYTES)
        except (OSError, ValueError):  # no such file, a link, or no name of a file
            return PlainTextResponse("There is no such report.\n", status_code=404)
        return HTMLResponse(content, headers={"content-security-policy": fragments.report_policy()})

    async def _report(self, design: ChosenDesign, asked: PageRequest) -> AsyncIterator[Event]:
        yield {"stage": "making", "status": "The full run and its report are under way."}
        folder = await asyncio.to_thread(free_folder, design.loaded, [{}], self.library.folder / RUNS)
        page = await self.broker.report(design, free(folder))
        yield self._made(page, None)

    async def _plan(self, design: ChosenDesign, asked: PageRequest) -> AsyncIterator[Event]:
        task, words = await asyncio.to_thread(plan_from_here, design, asked.moved, self.library.folder / RUNS)
        yield {"stage": "making", "status": f"Planning: {words}. This takes up to a few minutes."}
        answer, page = await self.broker.plan(task)
        yield self._made(page, answer)

    def _made(self, page: Path, answer: Any) -> Event:
        name = page.parent.name
        link = f"/{RUNS}/{quote(name)}/{page.name}?token={self.token}"
        shown = str(page.relative_to(self.library.folder))
        return {"stage": "made", "status": "Done.", "parts": {"made": fragments.part("made", answer, link, shown)}}

    async def _making(
        self, request: Request, make: Callable[[ChosenDesign, PageRequest], AsyncIterator[Event]]
    ) -> Response:
        asked = await _page_request(request)
        design = await asyncio.to_thread(self._design, asked)

        async def events() -> AsyncIterator[Event]:
            try:
                async for event in make(design, asked):
                    yield event
            except LoraplanError as error:
                yield {"stage": "failed", "status": str(error)}

        return EventLines(events(), self.stopping)

    def _design(self, asked: PageRequest) -> ChosenDesign:
        controls: tuple[Control, ...] = ()
        try:
            opened = self.library.open(asked.name, asked.text, again=False)
            controls = opened.controls
            return opened.design(asked.values)
        except InputError as error:
            problems = problems_of(error, controls, asked.moved)
            raise _RefusedError(JSONResponse({"stage": "refused", "problems": problems}, status_code=422)) from error


class _RefusedError(Exception):
    """What the page asks for can't be read, or makes no design."""

    def __init__(self, answer: Response) -> None:
        super().__init__()
        self.answer = answer


async def _page_request(request: Request) -> PageRequest:
    try:
        return PageRequest.model_validate_json(await request.body())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        answer = PlainTextResponse(f"{place or 'body'}: {first['msg']}\n", status_code=400)
        raise _RefusedError(answer) from error
