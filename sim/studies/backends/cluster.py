"""A pool over a cluster's futures: limits tasks in flight, yields results as they end, counts losses."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol

from sim.errors import LoraplanError
from sim.studies.backends.pool import Pool, Task
from sim.studies.backends.remote import run_on_worker, software

POLL_S = 1.0
"""How long the main thread waits at a time; signals are handled between two waits."""
QUEUED = 2
"""Tasks in flight per core: one runs and one waits, so that no worker idles while a result is sent."""
FEWEST = 16
"""Tasks in flight, at least, so that a cluster that scales with its queue sees the work."""
PATIENCE_S = 15.0
"""Seconds without a worker before the user gets a note."""

Handle = Hashable


class TaskLost(Exception):
    """A task died with its workers more than once, so it is not run again."""


class ClusterGone(LoraplanError):
    """The cluster itself can't be reached any more."""

    def __init__(self, where: str) -> None:
        super().__init__(f"{where} is gone; finished results are kept: run the same command to resume")


class Futures(Protocol):
    """The parts of Dask and Ray that a pool needs. Both rerun a task elsewhere, a few times, when its worker dies.

    :ivar name: such as ``the Dask cluster at tcp://host:8786``.
    """

    name: str

    def cores(self) -> int:
        """Return how many tasks run at a time now; 0 while there are no workers."""
        ...

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Handle:
        """Begin a call on some worker."""
        ...

    def ended(self, timeout_s: float) -> list[Any]:
        """Return handles of calls that ended since the last call; wait up to the timeout for one."""
        ...

    def result(self, handle: Any) -> Any:
        """Return the result of a call that ended.

        :raises TaskLost: where it died with its workers.
        :raises ClusterGone: where the cluster did.
        """
        ...

    def close(self) -> None:
        """Cancel everything in flight and disconnect; stop the cluster if this study started it."""
        ...


class Cluster:
    """A pool over futures.

    :param jobs: most tasks in flight; -1: as many as keep all cores busy.
    :param on_note: called with notes for the user.
    """

    away = True

    def __init__(self, futures: Futures, jobs: int = -1, on_note: Callable[[str], None] = lambda text: None) -> None:
        self._futures = futures
        self._jobs = jobs
        self._on_note = on_note
        self._workers_seen_s = time.monotonic()

    def for_workload(self, requests: float, least: int, tasks: int) -> Pool:
        return self

    def unordered(self, task: Task, arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield results as they end. Arguments are consumed as there is room, so they need not exist all at once."""
        home, left = software(), iter(arguments)
        in_flight, lost = 0, 0
        while True:
            for each in islice(left, max(0, self._room() - in_flight)):
                self._futures.submit(run_on_worker, home, task, each)
                in_flight += 1
            if not in_flight:
                break
            for handle in self._futures.ended(POLL_S):
                in_flight -= 1
                try:
                    ended = self._futures.result(handle)
                except TaskLost:
                    lost += 1
                    continue
                yield ended.open()
        if lost:
            tasks = f"{lost} tasks" if lost > 1 else "a task"
            raise LoraplanError(
                f"{tasks} died with every worker that tried, perhaps out of memory; all other results are kept: "
                "run the same command to try again, with fewer tasks per machine"
            )

    def close(self) -> None:
        """Cancel what is in flight and disconnect."""
        self._futures.close()

    def _room(self) -> int:
        cores, now = self._futures.cores(), time.monotonic()
        if cores:
            self._workers_seen_s = now
        elif now - self._workers_seen_s > PATIENCE_S:
            self._on_note(f"note: {self._futures.name} has no workers; waiting for some")
            self._workers_seen_s = float("inf")  # once is enough
        return self._jobs if self._jobs > 0 else max(QUEUED * cores, FEWEST)
