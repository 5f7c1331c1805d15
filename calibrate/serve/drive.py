"""Open loop: every request is sent at its time, whatever the server does; each is kept as it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from calibrate.serve.client import BROKEN, COMPLETE, REFUSED, Sent, send
from calibrate.serve.connection import Host
from calibrate.serve.errors import ServerError
from calibrate.serve.planned import Planned
from calibrate.serve.server_metrics import Page, read_page

METRICS_EVERY_S = 2.0
_LEAD_S = 0.5
_FEW = 20
"""If so many have ended and none was served, no more are sent."""


@dataclass(slots=True)
class Run:
    """One run through the traffic.

    :ivar start: monotonic seconds of the traffic's time 0.
    :ivar sent: by index, those that ended, well or not.
    :ivar pages: readings of the metrics page, the first before and the last after the traffic.
    """

    start: float
    sent: list[Sent] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)
    end: float = 0.0


@dataclass(slots=True)
class Driver:
    """Send traffic to one server.

    :param names: what each adapter is called there.
    :param stall_s: nothing at all coming for so long while requests are open is a stall.
    :param died: says why a server of ours has ended; None while it lives.
    """

    host: Host
    names: Sequence[str]
    stall_s: float = 60.0
    died: Callable[[], str | None] = lambda: None
    progress: Callable[[int, int], None] = lambda done, total: None
    _heard: float = 0.0

    async def one(self, request: Planned) -> Sent:
        """Send one request now and wait for its end.

        :raises ServerError: unless it is served completely.
        """
        try:
            sent = await asyncio.wait_for(send(self.host, request, self.names[request.adapter]), self.stall_s)
        except TimeoutError:
            raise ServerError(f"no answer within {self.stall_s:g} s", where=self.host.url) from None
        if sent.status != COMPLETE:
            died = self.died()
            raise ServerError(
                f"the server died: {died}" if died else f"{self.names[request.adapter]}: {sent.problem}",
                where=self.host.url,
            )
        return sent

    async def run(self, planned: Sequence[Planned], kept: Path) -> Run:
        """Send all of it; append each request to ``kept`` as it ends.

        :raises ServerError: where the server stalls, dies or serves nobody; finished requests are in ``kept``.
        """
        pages = [page] if (page := await read_page(self.host)) else []
        gc.collect()
        gc.disable()  # a collection would stop all stamps at once
        try:
            with kept.open("w", encoding="utf-8", buffering=1) as file:
                run = Run(time.monotonic() + _LEAD_S, pages=pages)
                self._heard = run.start
                await self._send_all(run, planned, file)
        finally:
            gc.enable()
        run.end = time.monotonic()
        if pages and (page := await read_page(self.host)):
            run.pages.append(page)
        run.sent.sort(key=lambda sent: sent.request.index)
        return run

    async def _send_all(self, run: Run, planned: Sequence[Planned], file: TextIO) -> None:
        loop = asyncio.get_running_loop()
        shift = loop.time() - time.monotonic()
        problem: asyncio.Future[str] = loop.create_future()
        waiting: set[asyncio.Task[None]] = set()
        everything = asyncio.Event()
        left = len(planned)

        def begin(request: Planned) -> None:
            if not problem.done():
                task = loop.create_task(self._keep(run, request, file, problem))
                waiting.add(task)
                task.add_done_callback(ended)

        def ended(task: asyncio.Task[None]) -> None:
            nonlocal left
            waiting.discard(task)
            left -= 1
            self.progress(len(planned) - left, len(planned))
            if left == 0:
                everything.set()

        timers = [loop.call_at(run.start + shift + request.at_s, begin, request) for request in planned]
        watch = loop.create_task(self._watch(run, waiting, problem))
        done = loop.create_task(everything.wait())
        ends: list[asyncio.Future[Any]] = [done, problem]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for timer in timers:
                timer.cancel()
            for task in (watch, done, *waiting):
                task.cancel()
            await asyncio.gather(watch, done, *waiting, return_exceptions=True)
        if problem.done():
            good = sum(sent.status == COMPLETE for sent in run.sent)
            raise ServerError(
                f"{problem.result()} ({good} of {len(planned)} requests were served)", where=self.host.url,
                hint=f"those are kept in {file.name}",
            )  # fmt: skip

    async def _keep(self, run: Run, request: Planned, file: TextIO, problem: asyncio.Future[str]) -> None:
        sent = await send(self.host, request, self.names[request.adapter])
        self._heard = time.monotonic()
        run.sent.append(sent)
        file.write(json.dumps(kept_row(sent, run.start)) + "\n")
        if problem.done():
            return
        if sent.status == BROKEN and not await self._alive():
            if not problem.done():
                problem.set_result(f"the server died: {self.died() or sent.problem}")
        elif len(run.sent) >= _FEW and all(other.status in (REFUSED, BROKEN) for other in run.sent):
            problem.set_result(f"the server serves nobody: {sent.problem}")

    async def _alive(self) -> bool:
        """Return whether a server still answers anything."""
        if self.died() is not None:
            return False
        try:
            status, _ = await asyncio.wait_for(self.host.get("/v1/models"), 5)
        except Exception:
            return False
        return status < 500

    async def _watch(self, run: Run, waiting: set[asyncio.Task[None]], problem: asyncio.Future[str]) -> None:
        """Read the metrics now and then, and notice a stall."""
        while not problem.done():
            await asyncio.sleep(min(METRICS_EVERY_S, self.stall_s / 4))
            silent = time.monotonic() - max(self._heard, self.host.heard)
            if waiting and silent > self.stall_s:
                if not problem.done():
                    problem.set_result(f"the server stalled: nothing came for {silent:.0f} s")
                return
            if run.pages and time.monotonic() - run.pages[-1].at >= METRICS_EVERY_S:
                with contextlib.suppress(TimeoutError):
                    page = await asyncio.wait_for(read_page(self.host), METRICS_EVERY_S)
                    run.pages += [page] if page is not None else []


def kept_row(sent: Sent, start: float) -> dict[str, Any]:
    """Return a request as it is kept: times in seconds after the run's start."""
    r = sent.request
    return {
        "index": r.index, "adapter": r.adapter, "prompt_tokens": r.prompt_tokens, "output_tokens": r.output_tokens,
        "planned_s": r.at_s, "sent_s": round(sent.sent - start, 6) if sent.sent else None,
        "status": sent.status, "problem": sent.problem,
        "stamps": [[round(at - start, 6), tokens] for at, tokens in sent.stamps],
    }  # fmt: skip
