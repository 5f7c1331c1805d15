"""Hands tasks to the workers, shares jobs between tabs, and keeps what was computed."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reports.charts.svg import Chart
from sim.results.point import Point
from sim.ui.library import ChosenDesign, kept_last
from sim.ui.simulating.tasks import Curve, Evaluation, PlanFromHere, PointAnswer, Progress, Report, ShortRun
from sim.ui.simulating.workers import FIRST, LAST, LATER, SECOND, Task, Worker, Workers

_POINTS_KEPT = 128
"""Points of designs that were looked at: about 150 kB each; a curve has up to 13."""
_FOLDERS_KEPT = 12
"""Run directories of final designs."""
ANSWER_S, PLAN_S = 120.0, 600.0
"""Computing time of one answer, and of a plan or a report, at most."""


@dataclass(eq=False)
class _Shared:
    """A task under way and the queues of its subscribers. It is cancelled when the last one unsubscribes."""

    computing: asyncio.Task[None] | None = None
    waiting: list[asyncio.Queue[Any]] = field(default_factory=list)
    latest: Any = None

    def deliver(self, message: Any) -> None:
        """Give a message to all subscribers; None at the end, or what went wrong."""
        for queue in self.waiting:
            queue.put_nowait(message)


class Broker:
    """Simulates designs, each of them once.

    :param workers: which it ends when it is closed.
    :ivar started: how often the simulation of each design was started, by kind and key.
    """

    def __init__(self, workers: Workers) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="loraplan-ui-")
        self._workers = workers
        self._answers, self._curves = workers.answers, workers.curves
        self._under_way: dict[tuple[str, str], _Shared] = {}
        self._points: OrderedDict[tuple[str, str], PointAnswer] = OrderedDict()
        self._folders: OrderedDict[str, Path] = OrderedDict()
        self.started: Counter[tuple[str, str]] = Counter()

    def close(self) -> None:
        """End the workers and remove what they wrote."""
        self._workers.close()
        self._scratch.cleanup()

    @property
    def busy(self) -> bool:
        """Whether anything is being computed."""
        return self._answers.busy or self._curves.busy

    def known(self, design: ChosenDesign) -> PointAnswer | None:
        """Return the best that is known of a design without computing anything."""
        return self._points.get(("final", design.key)) or self._points.get(("short", design.key))

    async def short(self, design: ChosenDesign, *, curve: bool = False) -> PointAnswer:
        """Return the point of a short run.

        :param curve: whether it is for a curve only, which may wait.
        :raises LoraplanError: if it can't be simulated.
        """
        key = "short", design.key
        if key not in self._points:
            worker, urgency = (self._curves, SECOND) if curve else (self._answers, FIRST)
            task = ShortRun(design.loaded, design.traffic_key)
            async for judged in self._follow(key, task, worker, urgency, ANSWER_S):
                self._keep(key, judged)
        return self._points[key]

    async def evaluate(self, design: ChosenDesign) -> AsyncIterator[PointAnswer | Progress]:
        """Yield ever better points of a design, the last of which ``loraplan run`` gives as well.

        :raises LoraplanError: if it can't be simulated; ``TooSlow`` if it takes too long.
        """
        key = "final", design.key
        if key in self._points:
            yield self._points[key]
            return
        task = self._evaluation(design)
        async for found in self._follow(key, task, self._answers, LATER, ANSWER_S):
            if isinstance(found, PointAnswer) and found.final:
                self._keep(key, found)
            yield found

    async def curve(self, points: tuple[Point, ...], here: Any, terms: dict[str, float]) -> Chart | None:
        """Return the chart of p99 along one key; None where there is nothing to draw.

        :param points: with that key in their ``set``; ``here``: its present value.
        """
        key = "curve", str(id(points))
        found = [chart async for chart in self._follow(key, Curve(points, here, terms), self._curves, SECOND, ANSWER_S)]
        return found[-1] if found else None

    async def report(self, design: ChosenDesign, destination: Path) -> Path:
        """Write the report of a design into a new folder and return its page."""
        key = "report", str(destination)
        task = Report(self._evaluation(design), destination)
        found = [each async for each in self._follow(key, task, self._answers, LAST, PLAN_S)]
        return Path(found[-1])

    async def plan(self, task: PlanFromHere) -> Any:
        """Answer a plan and return its answer and its page."""
        key = "plan", str(task.destination)
        found = [each async for each in self._follow(key, task, self._curves, LAST, PLAN_S)]
        return found[-1]

    def _evaluation(self, design: ChosenDesign) -> Evaluation:
        key = design.key
        if key not in self._folders:
            self._folders[key] = Path(self._scratch.name) / key
        self._folders.move_to_end(key)
        while len(self._folders) > _FOLDERS_KEPT:
            _, folder = self._folders.popitem(last=False)
            shutil.rmtree(folder, ignore_errors=True)
        return Evaluation(design.loaded, design.traffic_key, self._folders[key], design.command())

    def _keep(self, key: tuple[str, str], judged: PointAnswer) -> None:
        self._points[key] = judged
        kept_last(self._points, key, _POINTS_KEPT)

    async def _follow(
        self, key: tuple[str, str], task: Task, worker: Worker, urgency: int, limit_s: float
    ) -> AsyncIterator[Any]:
        """Yield the messages of a task, which is computed once for all of its subscribers."""
        shared = self._under_way.get(key)
        if shared is None:
            shared = self._under_way[key] = _Shared()
            shared.computing = asyncio.create_task(self._compute(key, shared, worker.messages(task, urgency, limit_s)))
            self.started[key] += 1
        queue: asyncio.Queue[Any] = asyncio.Queue()
        shared.waiting.append(queue)
        if shared.latest is not None:
            queue.put_nowait(shared.latest)
        try:
            while (message := await queue.get()) is not None:
                if isinstance(message, Exception):
                    raise message
                yield message
        finally:
            shared.waiting.remove(queue)
            if not shared.waiting and self._under_way.get(key) is shared:
                del self._under_way[key]
                assert shared.computing is not None, "it was started above"
                shared.computing.cancel()

    async def _compute(self, key: tuple[str, str], shared: _Shared, messages: AsyncIterator[Any]) -> None:
        ended: Exception | None = None
        try:
            async for message in messages:
                shared.latest = message
                shared.deliver(message)
        except Exception as error:
            ended = error
        if self._under_way.get(key) is shared:
            del self._under_way[key]
        shared.deliver(ended)
