"""The addresses of the page: the page itself, what it asks for, and the reports it has written."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from sim.errors import InputError, LoraplanError
from sim.reading import read_regular
from sim.spec.files.yaml_text import yaml_text
from sim.studies.study_identity import free_folder
from sim.ui import fragments
from sim.ui.controls import Control
from sim.ui.following import Event, PageRequest, follow, open_requested, opened_event
from sim.ui.guard import Guard
from sim.ui.library import ChosenDesign, Library, Opened, problems_of
from sim.ui.planning import plan_from_here
from sim.ui.simulating.broker import Broker
from sim.ui.streaming import EventLines

RUNS = "runs"
"""Folder of run directories, in the chosen folder."""
_REPORT_BYTES = 16_000_000
_PLACES = ("report.html",)


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
        return Starlette(routes=routes, middleware=[Middleware(Guard, port=port, token=self.token)])

    async def page(self, request: Request) -> Response:
        """Return the page."""
        html = await asyncio.to_thread(fragments.whole_page, self.library, self.first, self.token)
        return HTMLResponse(html, headers={"content-security-policy": fragments.page_policy()})

    async def open(self, request: Request) -> Response:
        """Open a scenario: its controls, or what is wrong with it."""
        asked = await _page_request(request)
        if isinstance(asked, Response):
            return asked
        return JSONResponse(await asyncio.to_thread(opened_event, self.library, asked))

    async def follow(self, request: Request) -> Response:
        """Follow a design for as long as the page listens."""
        asked = await _page_request(request)
        return asked if isinstance(asked, Response) else self._stream(follow(self.broker, self.library, asked))

    async def scenario(self, request: Request) -> Response:
        """Return the design as a scenario file."""
        asked = await _page_request(request)
        if isinstance(asked, Response):
            return asked
        design = await asyncio.to_thread(self._design, asked)
        if isinstance(design, list):
            return JSONResponse({"stage": "refused", "problems": design}, status_code=422)
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
            if file not in _PLACES or path.resolve() != path:
                raise FileNotFoundError
            content = await asyncio.to_thread(read_regular, path, _REPORT_BYTES)
        except (OSError, ValueError):  # no such file, a link, or no name of a file
            return PlainTextResponse("There is no such report.\n", status_code=404)
        return HTMLResponse(content, headers={"content-security-policy": fragments.report_policy()})

    async def _report(self, design: ChosenDesign, asked: PageRequest) -> AsyncIterator[Event]:
        yield {"stage": "making", "status": "The full run and its report are under way."}
        folder = await asyncio.to_thread(free_folder, design.loaded, [{}], self.library.folder / RUNS)
        page = await self.broker.report(design, _free(folder))
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
        return {"stage": "made", "status": "Done.", "parts": {"made": fragments.made(answer, link, shown)}}

    async def _making(
        self, request: Request, make: Callable[[ChosenDesign, PageRequest], AsyncIterator[Event]]
    ) -> Response:
        asked = await _page_request(request)
        if isinstance(asked, Response):
            return asked
        design = await asyncio.to_thread(self._design, asked)
        if isinstance(design, list):
            return JSONResponse({"stage": "refused", "problems": design}, status_code=422)

        async def events() -> AsyncIterator[Event]:
            try:
                async for event in make(design, asked):
                    yield event
            except LoraplanError as error:
                yield {"stage": "failed", "status": str(error)}

        return self._stream(events())

    def _design(self, asked: PageRequest) -> ChosenDesign | list[dict[str, Any]]:
        controls: tuple[Control, ...] = ()
        try:
            opened = open_requested(self.library, asked)
            controls = opened.controls
            return opened.design(asked.values)
        except InputError as error:
            return problems_of(error, controls, asked.moved)

    def _stream(self, events: AsyncIterator[Event]) -> Response:
        return EventLines(events, self.stopping)


async def _page_request(request: Request) -> PageRequest | Response:
    """Return what the page asks for, or what to answer if it can't be read."""
    try:
        return PageRequest.model_validate_json(await request.body())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        return PlainTextResponse(f"{place or 'body'}: {first['msg']}\n", status_code=400)


def _free(folder: Path) -> Path:
    """Return a folder that does not exist: this one, or with a number."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return folder if not folder.exists() else next(each for each in numbered if not each.exists())
