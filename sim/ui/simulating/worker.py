"""A process that stays warm and runs one task after the other, each of which may be stopped at any moment."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, ClassVar, Protocol

from sim.errors import LoraplanError

STOP = signal.SIGUSR1
"""Stops the task that is running."""


class Task(Protocol):
    """Something to compute: yields messages, the last of which is its result.

    :ivar draws: whether it draws or plans, which takes further modules.
    """

    draws: ClassVar[bool]

    def run(self, memory: Any) -> Iterator[Any]: ...


@dataclass(frozen=True)
class TaskMessage:
    """A task on its way to a worker.

    :ivar signals: how many stop signals were sent before it: a late one must not hit this task.
    """

    task: Task
    signals: int


@dataclass(frozen=True)
class Message:
    """One message of a task."""

    what: Any


@dataclass(frozen=True)
class Ended:
    """The task is over.

    :ivar how: ``done``, ``stopped``, ``refused`` (with the user's error) or ``failed`` (with a traceback).
    :ivar simulated: simulations that the worker has made so far.
    """

    how: str
    error: Any = None
    simulated: int = 0


DONE, STOPPED, REFUSED, FAILED = "done", "stopped", "refused", "failed"


class _Stopped(BaseException):
    """The running task is to end now."""


class _Stops:
    """Turns stop signals into exceptions, but only while a task computes: never in the middle of a message."""

    def __init__(self) -> None:
        self._seen = 0
        self._before = 0
        self._open = False
        signal.signal(STOP, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._seen += 1
        self._raise()

    def _raise(self) -> None:
        if self._open and self._seen > self._before:
            self._open = False  # once: what cleans up is left alone
            raise _Stopped

    def begin(self, before: int) -> None:
        """Begin a task: the next signal is for it.

        :param before: signals that were sent for earlier tasks; those on their way are waited for.
        """
        while self._seen < before:
            time.sleep(0.001)
        self._before = before

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Let a signal stop what is done inside, also one that came between ``begin`` and here."""
        self._open = True
        try:
            self._raise()
            yield
        finally:
            self._open = False


def work(connection: Connection, parent: int, draws: bool) -> None:
    """Run tasks until the other end is closed; the main function of a worker process.

    :param parent: id of the process that it ends with.
    :param draws: whether it will have to draw soon. It then gets ready for that first, and lets others go first.
    """
    # The terminal sends Ctrl-C to all processes; the parent decides what becomes of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    stops = _Stops()
    if draws:
        os.nice(5)
    from sim.studies.backends.pool import end_with_parent
    from sim.ui.simulating.tasks import Memory

    end_with_parent(parent)
    _import_simulator()
    memory = Memory()
    if draws:
        _import_charts()
    connection.send(Ended(DONE))
    while True:
        try:
            order: TaskMessage = connection.recv()
        except (EOFError, OSError):
            return
        if order.task.draws:
            _import_charts()
        stops.begin(order.signals)
        connection.send(_run(order.task, memory, connection, stops))


def _run(task: Task, memory: Any, connection: Connection, stops: _Stops) -> Ended:
    messages = task.run(memory)
    try:
        while True:
            with stops.allowed():
                what = next(messages, None)
            if what is None:
                return Ended(DONE, simulated=memory.simulated)
            connection.send(Message(what))
    except _Stopped:
        return Ended(STOPPED, simulated=memory.simulated)
    except LoraplanError as error:
        return Ended(REFUSED, error, memory.simulated)
    except Exception as error:
        return Ended(FAILED, f"{type(error).__name__}: {error}\n{traceback.format_exc()}", memory.simulated)


# Modules are imported between tasks: a task that is stopped must not leave one half imported.


def _import_simulator() -> None:
    import scipy.special
    import scipy.stats  # noqa: F401

    import sim.studies.headroom
    import sim.world.replication  # noqa: F401


@cache
def _import_charts() -> None:
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401

    import sim.studies.plan.study
    import sim.studies.plan.what_if  # noqa: F401
    from reports.charts.svg import drawing, place, to_svg

    with drawing(100) as figure:
        place(figure, 10, 10, 10, 10)
        to_svg(figure, "warm-up", "", "", [])
