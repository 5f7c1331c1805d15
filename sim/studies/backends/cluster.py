"""A pool made of a cluster's futures: a window of tasks under way, results home as they end, losses counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol

from sim.errors import LoraplanError
from sim.studies.backends.pool import Pool, Task
from sim.studies.backends.remote import run_on_worker, software

POLL_S = 1.0
"""How long the main thread waits at a time: a signal is handled between two waits, whatever a library does."""
QUEUED = 2
"""Tasks under way per core: one that runs and one that waits, so that no worker idles while its result travels."""
FEWEST = 16
"""Tasks under way at least: a cluster that grows with its queue sees that there is work."""
PATIENCE_S = 15.0
"""After how long without a worker the user is told."""

Handle = Hashable


class TaskLost(Exception):
    """A task died with its workers, more than once; running it again would cost another."""


class ClusterGone(LoraplanError):
    """The cluster itself can't be reached any more."""

    def __init__(self, where: str) -> None:
        super().__init__(f"{where} is gone; what was finished is kept: run the same command to go on")


class Futures(Protocol):
    """What of Dask and of Ray is needed. Each runs a task again elsewhere when its worker dies, a few times.

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
        """Return handles of calls that have ended since they were last asked for; wait for one, but not longer."""
        ...

    def result(self, handle: Any) -> Any:
        """Return what a call that ended gave.

        :raises TaskLost: where it died with its workers.
        :raises ClusterGone: where the cluster did.
        """
        ...

    def close(self) -> None:
        """Call off all that is under way and let go of the cluster; end it if it was started for this."""
        ...


class Cluster:
    """A pool over futures.

    :param jobs: most tasks under way; -1: as many as keep all cores busy.
    :param told: called with sentences for the user.
    """

    away = True

    def __init__(self, futures: Futures, jobs: int = -1, told: Callable[[str], None] = lambda text: None) -> None:
        self._futures = futures
        self._jobs = jobs
        self._told = told
        self._workers_seen_s = time.monotonic()

    def for_workload(self, requests: float, least: int) -> Pool:
        return self

    def unordered(self, task: Task, arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield results as they end. Arguments are taken as there is room: what they hold needn't exist all at once."""
        home, left = software(), iter(arguments)
        under_way, lost = 0, 0
        while True:
            for each in islice(left, max(0, self._room() - under_way)):
                self._futures.submit(run_on_worker, home, task, each)
                under_way += 1
            if not under_way:
                break
            for handle in self._futures.ended(POLL_S):
                under_way -= 1
                try:
                    ended = self._futures.result(handle)
                except TaskLost:
                    lost += 1
                    continue
                yield ended.open()
        if lost:
            tasks = f"{lost} tasks" if lost > 1 else "a task"
            raise LoraplanError(
                f"{tasks} died with every worker that tried, perhaps for want of memory; all others are kept: run the "
                "same command to try again, with fewer tasks on a machine"
            )

    def close(self) -> None:
        """Call off what is under way and let go of the cluster."""
        self._futures.close()

    def _room(self) -> int:
        cores, now = self._futures.cores(), time.monotonic()
        if cores:
            self._workers_seen_s = now
        elif now - self._workers_seen_s > PATIENCE_S:
            self._told(f"note: {self._futures.name} has no workers; waiting for some")
            self._workers_seen_s = float("inf")  # once is enough
        return self._jobs if self._jobs > 0 else max(QUEUED * cores, FEWEST)
