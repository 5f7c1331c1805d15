"""Send requests in an open loop: each at its time, whatever the server does; each is saved when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from calibrate.serve.client import BROKEN, COMPLETE, MODELS_BYTES, REFUSED, PlannedRequest, SentRequest, send
from calibrate.serve.connection import Host
from calibrate.serve.http_answer import Broken, ServerError
from calibrate.serve.server_metrics import PAGE_LIMIT_S, MetricsPage, read_page
from sim.errors import OutputError

METRICS_EVERY_S = 2.0
ALIVE_LIMIT_S = 5.0
_LEAD_S = 0.5
_FEW = 20
"""After so many failed requests without a served one, no more are sent."""


@dataclass(slots=True)
class LiveRun:
    """One run through the traffic.

    :ivar start: monotonic seconds of the traffic's time 0.
    :ivar sent: by index, those that ended, well or not.
    :ivar pages: readings of the metrics page, the first before and the last after the traffic.
    """

    start: float
    sent: list[SentRequest] = field(default_factory=list)
    pages: list[MetricsPage] = field(default_factory=list)
    end: float = 0.0
    kept: int = 0


@dataclass(slots=True)
class Driver:
    """Send traffic to one server.

    :param names: what each adapter is called there.
    :param stall_s: no token and no end of a request for so long while requests are open is a stall.
    :param died: says why a server of ours has ended; None while it lives.
    """

    host: Host
    names: Sequence[str]
    stall_s: float = 60.0
    died: Callable[[], str | None] = lambda: None
    progress: Callable[[int, int], None] = lambda done, total: None
    _heard: float = 0.0
    _open: dict[int, SentRequest] = field(default_factory=dict)

    @property
    def page_limit_s(self) -> float:
        """Seconds that a metrics page may take."""
        return min(PAGE_LIMIT_S, self.stall_s)

    async def one(self, request: PlannedRequest) -> SentRequest:
        """Send one request now and wait for its end.

        :raises ServerError: unless it is served completely.
        """
        return (await self.together([request]))[0]

    async def together(self, requests: Sequence[PlannedRequest]) -> list[SentRequest]:
        """Send requests at once and wait for all, as long as tokens come.

        :raises ServerError: unless all are served completely.
        """
        tasks = [asyncio.ensure_future(self._send(request)) for request in requests]
        self._heard = time.monotonic()
        try:
            left: Iterable[asyncio.Task[SentRequest]] = tasks
            while left:
                silent = self._silent_s()
                if silent >= self.stall_s:
                    raise ServerError(self._died() or stalled(silent), where=self.host.url)
                _, left = await asyncio.wait(left, timeout=self.stall_s - silent)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        sent = [task.result() for task in tasks]
        for one in sent:
            if one.status != COMPLETE:
                raise ServerError(
                    self._died() or f"{self.names[one.request.adapter]}: {one.problem}", where=self.host.url
                )
        return sent

    async def _send(self, request: PlannedRequest) -> SentRequest:
        sent = self._open[request.index] = SentRequest(request)
        try:
            return await send(self.host, request, self.names[request.adapter], sent)
        finally:
            del self._open[request.index]
            self._heard = time.monotonic()

    def _silent_s(self) -> float:
        """Return for how long no token has come and no request has ended.

        Bytes alone are not heard: a server could send some for ever. What has come is read only where that seems long,
        since reading delays stamps.
        """
        if time.monotonic() - self._heard >= self.stall_s:
            for sent in self._open.values():
                sent.stream.read()
                self._heard = max(self._heard, sent.last)
        return time.monotonic() - self._heard

    def _died(self) -> str | None:
        reason = self.died()
        return None if reason is None else f"the server died: {reason}"

    async def run(self, planned: Sequence[PlannedRequest], kept: Path) -> LiveRun:
        """Send all requests; append each to ``kept`` as it ends.

        :raises ServerError: where the server stalls, dies or serves no request; finished requests are in ``kept``.
        :raises OutputError: where ``kept`` can't be written, such as on a full disk.
        """
        pages = [page] if (page := await read_page(self.host, self.page_limit_s)) else []
        gc.collect()
        gc.disable()  # a collection would stop all stamps at once
        try:
            with _opened(kept) as file:
                run = LiveRun(time.monotonic() + _LEAD_S, pages=pages)
                self._heard = run.start
                await self._send_all(run, planned, file)
        finally:
            gc.enable()
        run.end = time.monotonic()
        if pages and (page := await read_page(self.host, self.page_limit_s)):
            run.pages.append(page)
        run.sent.sort(key=lambda sent: sent.request.index)
        return run

    async def _send_all(self, run: LiveRun, planned: Sequence[PlannedRequest], file: BinaryIO) -> None:
        loop = asyncio.get_running_loop()
        shift = loop.time() - time.monotonic()
        problem: asyncio.Future[str] = loop.create_future()
        waiting: set[asyncio.Task[None]] = set()
        everything = asyncio.Event()
        left = len(planned)

        def begin(request: PlannedRequest) -> None:
            if not problem.done():
                if not waiting:
                    self._heard = time.monotonic()  # there was nothing to hear
                task = loop.create_task(self._keep(run, request, file, problem))
                waiting.add(task)
                task.add_done_callback(ended)

        def failed(task: asyncio.Task[None]) -> None:
            error = None if task.cancelled() else task.exception()
            if error is not None and not problem.done():
                problem.set_exception(error)

        def ended(task: asyncio.Task[None]) -> None:
            nonlocal left
            waiting.discard(task)
            failed(task)
            left -= 1
            self.progress(len(planned) - left, len(planned))
            if left == 0:
                everything.set()

        timers = [loop.call_at(run.start + shift + request.at_s, begin, request) for request in planned]
        watch = loop.create_task(self._watch(run, waiting, problem))
        watch.add_done_callback(failed)
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
        good = sum(sent.status == COMPLETE for sent in run.sent)
        if not problem.done() and not good:
            problem.set_result(serves_nothing(run.sent[-1]))
        if problem.done():
            raise ServerError(
                f"{problem.result()} ({good} of {len(planned)} requests were served)",
                where=self.host.url,
                hint=f"those are kept in {file.name}",
            )

    async def _keep(self, run: LiveRun, request: PlannedRequest, file: BinaryIO, problem: asyncio.Future[str]) -> None:
        sent = await self._send(request)
        run.sent.append(sent)
        if not problem.done() or problem.exception() is None:
            try:
                run.kept += _write_row(file, kept_row(sent, run.start), run.kept)
            except OutputError as error:  # at once: no row may follow one that is missing
                if not problem.done():
                    problem.set_exception(error)
                return
        if problem.done():
            return
        if sent.status == BROKEN and not await self._alive():
            if not problem.done():
                problem.set_result(f"the server died: {self.died() or sent.problem}")
        elif len(run.sent) >= _FEW and all(other.status in (REFUSED, BROKEN) for other in run.sent):
            problem.set_result(serves_nothing(sent))

    async def _alive(self) -> bool:
        if self.died() is not None:
            return False
        try:
            status, _ = await self.host.get("/v1/models", ALIVE_LIMIT_S, MODELS_BYTES)
        except (Broken, OSError):
            return False
        return status < 500

    async def _watch(self, run: LiveRun, waiting: set[asyncio.Task[None]], problem: asyncio.Future[str]) -> None:
        while not problem.done():
            await asyncio.sleep(min(METRICS_EVERY_S, self.stall_s / 4))
            if waiting and (silent := self._silent_s()) >= self.stall_s:
                if not problem.done():
                    problem.set_result(stalled(silent))
                return
            if run.pages and time.monotonic() - run.pages[-1].at >= METRICS_EVERY_S:
                page = await read_page(self.host, METRICS_EVERY_S)
                run.pages += [page] if page is not None else []


def stalled(silent_s: float) -> str:
    """Say that a server stalled."""
    return f"the server stalled: no token came for {silent_s:.0f} s"


def serves_nothing(last: SentRequest) -> str:
    """Say that no request was served, and what went wrong with one of them."""
    return f"the server completed no request: {last.problem}"


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("wb", buffering=0)  # so that no row waits to be written
    except OSError as error:
        raise OutputError(f"can't write this file: {error.strerror or error}", file=str(path)) from None


def _write_row(file: BinaryIO, row: dict[str, Any], before: int) -> int:
    """Write one row and return 1; where there is no room for it, half a row is taken back.

    :param before: rows that are written.
    """
    data = json.dumps(row).encode() + b"\n"
    start = written = 0
    try:
        start = file.tell() if file.seekable() else 0
        while written < len(data):
            written += file.write(data[written:])
    except OSError as error:
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), start)
        raise OutputError(
            f"can't write this file: {error.strerror or error}",
            file=str(file.name),
            hint=f"the run has ended; {before:,} finished requests are kept there",
        ) from None
    return 1


def kept_row(sent: SentRequest, start: float) -> dict[str, Any]:
    """Return a request as it is kept: times in seconds after the run's start."""
    r = sent.request
    return {
        "index": r.index,
        "adapter": r.adapter,
        "prompt_tokens": r.prompt_tokens,
        "output_tokens": r.output_tokens,
        "planned_s": r.at_s,
        "sent_s": round(sent.sent - start, 6) if sent.sent else None,
        "status": sent.status,
        "problem": sent.problem,
        "stamps": [[round(at - start, 6), tokens] for at, tokens in sent.stamps],
    }
