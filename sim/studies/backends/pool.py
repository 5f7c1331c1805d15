"""The interface through which studies run tasks, and the pool that is always there: this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from sim.studies.parallel import start_workers, unordered

Task = Callable[..., Any]


class Pool(Protocol):
    """Workers that take tasks.

    :ivar away: whether workers may run on other machines, without the files of this one.
    """

    away: bool

    def unordered(self, task: Task, arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield ``task(*a)`` for every ``a`` in the order in which they finish.

        :raises LoraplanError: if tasks were lost with their workers; a cluster yields all others first.
        """
        ...

    def for_workload(self, requests: float, least: int, tasks: int) -> Pool:
        """Return the pool that finishes so many simulated requests soonest; below ``least`` perhaps this process.

        :param tasks: how many there are. Workers for them are up when this returns.
        """
        ...


class Local:
    """Worker processes on this machine, or none.

    :param jobs: how many; -1: one for each core; 1: this process, in order.
    """

    away = False

    def __init__(self, jobs: int = -1) -> None:
        self._jobs = jobs
        self._started = False

    def unordered(self, task: Task, arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        return unordered(task, list(arguments), self._jobs)

    def for_workload(self, requests: float, least: int, tasks: int) -> Pool:
        if requests < least:
            return Local(1)
        if not self._started:
            start_workers(tasks, self._jobs)
            self._started = True
        return self
