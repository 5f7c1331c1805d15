"""The worker processes of a page: each stays warm and computes one task at a time, the most urgent first.

A task yields messages, one for each call of its process. It may be stopped at any moment: for a more urgent one, when
its time is over, and when the visitor has left.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from time import monotonic
from typing import Any, ClassVar, Protocol

from sim.errors import LoraplanError

FIRST, SECOND, LATER, LAST = range(4)
"""Urgency of a task: an answer that somebody waits for, the curve around it, a longer run, a plan or a report."""
_DIED = "the simulation ended unexpectedly, perhaps out of memory; a smaller design may work"
_STOP = signal.SIGUSR1
_GRACE_S = 5.0
"""Time in which a task that was stopped must end, before its process is replaced."""
_STOPPED = object()


class Task(Protocol):
    """Something to compute: yields messages, the last of which is its result.

    :ivar draws: whether it draws or plans, which takes further modules.
    """

    draws: ClassVar[bool]

    def run(self, memory: Any) -> Iterator[Any]: ...


class TooSlow(LoraplanError):
    """A task took longer than a page allows."""


class Worker:
    """One process, and who may use it.

    :param draws: whether it gets ready to draw before it takes tasks.
    :ivar simulated: simulations that its process has made.
    """

    def __init__(self, *, draws: bool = False) -> None:
        self._draws = draws
        self._numbers = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._urgency: int | None = None
        self._stopping = self._computing = self._closed = False
        self._call = 0
        self.simulated = 0
        self._start()

    async def messages(self, task: Task, urgency: int, limit_s: float) -> AsyncIterator[Any]:
        """Yield the messages of a task. Stopped for a more urgent one, it begins again, from what its process has kept.

        :param limit_s: computing time, at most.
        :raises LoraplanError: the task's own; ``TooSlow``; one that says that the process died.
        """
        number, left_s = next(self._numbers), limit_s
        while left_s > 0:
            async with self._turn(urgency, number):
                while not self._stopping:
                    began = monotonic()
                    message = await self._next(number, task, left_s)
                    left_s -= monotonic() - began
                    if message is _STOPPED:
                        break
                    if message is None:
                        return
                    yield message
        raise TooSlow(f"stopped after {limit_s / 60:.0f} minutes; run the command below instead")

    @property
    def busy(self) -> bool:
        """Whether a task is computed or waits."""
        return self._urgency is not None

    def close(self) -> None:
        """End the process; more than once does no harm."""
        self._closed = True
        self._process.kill()
        self._pool.shutdown(cancel_futures=True)

    def _start(self) -> None:
        if self._closed:
            return
        context = multiprocessing.get_context("spawn")
        self._last_stopped = context.Value("q", 0, lock=False)
        self._pool = ProcessPoolExecutor(1, context, _begin, (self._last_stopped, os.getpid(), self._draws))
        others = set(multiprocessing.active_children())
        self._ready = self._pool.submit(int)
        (self._process,) = set(multiprocessing.active_children()) - others

    @asynccontextmanager
    async def _turn(self, urgency: int, number: int) -> AsyncIterator[None]:
        """Wait until nothing more urgent is left, and stop what is less so."""
        if self._urgency is not None:
            if urgency < self._urgency:
                self._stop()
            turn = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (urgency, number, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():
                    self._hand_on()
                raise
        self._urgency = urgency
        try:
            yield
        finally:
            self._hand_on()

    def _hand_on(self) -> None:
        self._urgency, self._stopping = None, False
        while self._waiting and self._urgency is None:
            urgency, _, turn = heapq.heappop(self._waiting)
            if not turn.done():  # else it was cancelled
                self._urgency = urgency
                turn.set_result(None)

    async def _next(self, number: int, task: Task, left_s: float) -> Any:
        """Return a task's next message; None at its end."""
        timer = asyncio.get_running_loop().call_later(left_s, self._stop)
        try:
            await asyncio.shield(asyncio.wrap_future(self._ready))  # a process that starts can't be stopped
            if self._stopping:
                return _STOPPED
            self._call += 1
            call = asyncio.wrap_future(self._pool.submit(_next_message, self._call, number, task))
            self._computing = True
            try:
                await asyncio.wait([call])
            except asyncio.CancelledError:
                self._stop()
                await asyncio.wait([call])
                if isinstance(call.exception(), BrokenExecutor):
                    self._start()
                raise
            stopped, message, self.simulated = call.result()
            return _STOPPED if stopped else message
        except BrokenExecutor:
            self._start()
            if self._stopping:  # it was killed because it didn't stop
                return _STOPPED
            raise LoraplanError(_DIED) from None
        finally:
            self._computing = False
            timer.cancel()

    def _stop(self) -> None:
        """Stop the task that has its turn."""
        if not self._stopping:
            self._stopping = True
            if self._computing and self._process.pid is not None:
                self._last_stopped.value = self._call
                os.kill(self._process.pid, _STOP)
                asyncio.get_running_loop().call_later(_GRACE_S, self._kill, self._call)

    def _kill(self, call: int) -> None:
        if self._computing and self._call == call:
            self._process.kill()


class Workers:
    """The two workers of a page: one follows the visitor, the other draws curves and answers plans.

    They get ready in parallel with the rest of the program, so this module imports little.
    """

    def __init__(self) -> None:
        self.answers = Worker()
        self.curves = Worker(draws=True)

    def close(self) -> None:
        """End both; more than once does no harm."""
        self.answers.close()
        self.curves.close()


# In the process itself.


class _Stopped(BaseException):
    """The running task is to end now."""


class _Process:
    """What a process keeps from one call to the next: what it has simulated, and the task under way.

    :param last_stopped: number of the last call that is to stop. It is signalled, and the signal may come late: it must
        not stop another.
    """

    def __init__(self, memory: Any, last_stopped: Any) -> None:
        self.memory = memory
        self.task = -1
        self.messages: Iterator[Any] = iter(())
        self._last_stopped = last_stopped
        self._call, self._computing = 0, False
        signal.signal(_STOP, lambda number, frame: self._end())

    def _end(self) -> None:
        if self._computing and self._call <= self._last_stopped.value:
            self._computing = False  # once: what cleans up is left alone
            raise _Stopped

    @contextmanager
    def computing(self, call: int) -> Iterator[None]:
        """Let a signal stop what is done inside, and never the sending of a message."""
        self._call, self._computing = call, True
        try:
            self._end()
            yield
        finally:
            self._computing = False


_process: _Process


def _begin(last_stopped: Any, parent: int, draws: bool) -> None:
    """Get ready.

    :param parent: id of the process that this one ends with.
    :param draws: whether it will have to draw soon. It then gets ready for that first, and lets others go first.
    """
    # The terminal sends Ctrl-C to all processes; the parent decides what becomes of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if draws:
        os.nice(5)
    from sim.studies.backends.pool import end_with_parent
    from sim.ui.simulating.tasks import Memory

    global _process
    end_with_parent(parent)
    _import_simulator()
    if draws:
        _import_plans()
    _process = _Process(Memory(), last_stopped)


def _next_message(call: int, number: int, task: Task) -> tuple[bool, Any, int]:
    """Return whether the task was stopped, else its next message, and the simulations that were made so far."""
    here, message, stopped = _process, None, False
    if task.draws:
        _import_plans()
    if here.task != number:
        here.task, here.messages = number, task.run(here.memory)
    try:
        with here.computing(call):
            message = next(here.messages, None)
    except _Stopped:
        here.task, stopped = -1, True
    except LoraplanError:
        raise
    except Exception as error:
        raise LoraplanError(f"{type(error).__name__}: {error}".partition("\n")[0]) from error
    return stopped, message, here.memory.simulated


# Modules are imported between tasks: a task that is stopped must not leave one half imported.


def _import_simulator() -> None:
    import scipy.special
    import scipy.stats  # noqa: F401

    import sim.studies.headroom
    import sim.world.replication  # noqa: F401


@cache
def _import_plans() -> None:
    import sim.studies.plan.study
    import sim.studies.plan.what_if  # noqa: F401
