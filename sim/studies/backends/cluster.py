"""A pool over a cluster's futures: limits tasks in flight, yields results as they end, counts losses."""

from __future__ import annotations

import pickle
import platform
import signal
import time
import traceback
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from itertools import islice
from multiprocessing import resource_tracker
from typing import Any, Protocol

from sim.errors import InputError, LoraplanError
from sim.studies.backends.pool import Pool, Task
from sim.studies.study_identity import code_version

# Shared by both clusters: workers that ignore Ctrl-C, and the error for workers without loraplan.


@contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Start processes that don't get a terminal's Ctrl-C; one in the meantime is delivered afterwards.

    They inherit the mask, as do threads that start more of them later.
    """
    resource_tracker.ensure_running()  # which takes SIGINT off the mask of the thread that first needs it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def lacks_loraplan(error: BaseException) -> bool:
    """Say whether a task failed because its worker could not import the simulator."""
    seen: BaseException | None = error
    while seen is not None:
        if "No module named 'sim'" in str(seen) or "No module named 'sim." in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def no_loraplan(where: str) -> InputError:
    """Return the error for a worker without loraplan."""
    return InputError(
        f"a worker of {where} has no loraplan", key="--backend", hint="install the same versions on every worker"
    )


# Runs on a worker: compares its software with that of the study, then runs the task.


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """The outcome of a task: its value, or the error it raised.

    Errors are returned as values, because each cluster wraps raised errors in its own way.
    """

    value: Any = None
    error: Exception | None = None

    def open(self) -> Any:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value


@lru_cache(maxsize=1)
def software() -> Mapping[str, str]:
    """Return the versions of everything that affects results to the last digit."""
    packages = {name: metadata.version(name) for name in ("numpy", "scipy", "simpy")}
    return {"loraplan": code_version(), "Python": ".".join(platform.python_version_tuple()[:2]), **packages}


def run_on_worker(home: Mapping[str, str], task: Callable[..., Any], arguments: tuple[Any, ...]) -> TaskOutcome:
    """Run a task on a worker.

    :param home: ``software`` of the study; a worker with other software refuses.
    """
    try:
        _check_software(home)
        return TaskOutcome(task(*arguments))
    except Exception as error:
        error.add_note(f"on the worker:\n{traceback.format_exc()}")
        return TaskOutcome(error=_picklable(error))


def _check_software(home: Mapping[str, str]) -> None:
    own = software()
    others = [name for name in home if own.get(name) != home[name]]
    if others:
        raise InputError(
            f"a worker on {platform.node()} has other versions, which may give other numbers",
            key="--backend",
            got=", ".join(f"{name} {own.get(name)}" for name in others),
            allowed=", ".join(f"{name} {home[name]}" for name in others),
            hint="install the same versions on every worker",
        )


def _picklable(error: Exception) -> Exception:
    """Return the error, or its text where it can't be pickled, as errors of some packages."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return LoraplanError(f"{type(error).__name__}: {error}")
    return error


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
