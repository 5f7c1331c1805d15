"""A SimPy environment that calls functions at exact times, and in a defined order at one instant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, Final

import simpy
from simpy.core import EmptySchedule, StopSimulation

CONTROL: Final = 0
LOAD_DONE: Final = 1
BOUNDARY: Final = 2
ARRIVAL: Final = 3
"""Order of events at one instant: control events, ends of loads, step boundaries, arrivals (docs/model.md)."""

_push: Final = heappush  # compiled, constants are found faster than names
_pop: Final = heappop


class Call:
    """A reusable event that calls one function at its time.

    :ivar callback: is called with this event.
    :ivar subject: data for the function.
    """

    def __init__(self, callback: Callable[[Any], None], subject: Any = None) -> None:
        self.callback = callback
        self.subject = subject

    def happen(self) -> None:
        """Call the function. Frequent events do so themselves: compiled, a method is called faster than a function."""
        self.callback(self)


class Clock:
    """The time of one replication, and the calls to come.

    The queue is that of a SimPy environment, which also runs it. SimPy's own ``timeout`` takes a delay, and now +
    (t - now) is not always t in floating point. Arrival times of a trace and ends of leaps must be met exactly, so
    times go on SimPy's queue unchanged. This class is not itself an environment, because those can't be compiled.

    :ivar now: the time in seconds.
    :ivar queue: events to come, a heap whose entries begin with their time.
    :ivar periodic: how many events repeat themselves for as long as anything else is to come.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._environment = CallEnvironment(self)
        self.queue: list[Any] = self._environment._queue
        self.periodic = 0
        self._scheduled = 0  # events so far
        self._paused = False

    def call_at(self, time: float, kind: int, callback: Callable[[Call], None], subject: Any = None) -> Call:
        """Call ``callback(event)`` at ``time``; at one instant in the order of ``kind``, then of creation."""
        event = Call(callback, subject)
        self.schedule(time, kind, event)
        return event

    def until(self, time: float, kind: int = CONTROL) -> Call:
        """Return an event at ``time``, for a process to yield."""
        return self.call_at(time, kind, lambda event: None)

    def process(self, steps: Iterator[Call]) -> None:
        """Run what happens seldom and is written in order: a generator goes on with each event that it yields."""
        for event in steps:
            event.callback = lambda event: self.process(steps)
            return

    def schedule(self, time: float, kind: int, event: Call) -> None:
        """Schedule an event that is not on the queue; reusing events saves creating new ones."""
        self._scheduled = number = self._scheduled + 1
        _push(self.queue, (time, kind, number, event))

    def reach(self, time: float, kind: int, event: Call) -> bool:
        """Go to ``time`` at once if nothing else happens by then, otherwise schedule ``event``; return which.

        The caller does the work of ``event`` itself if the time is reached. That saves a call of it, and its way
        through the queue.
        """
        queue = self.queue
        if queue and queue[0][0] <= time:
            self._scheduled = number = self._scheduled + 1
            _push(queue, (time, kind, number, event))
            return False
        self.now = time
        return True

    def step(self) -> None:
        """Process the next event.

        :raises EmptySchedule: if there is none.
        """
        if not self.queue:
            raise EmptySchedule
        entry = _pop(self.queue)
        self.now = entry[0]
        event: Call = entry[3]
        event.happen()

    def run_to_pause(self) -> None:
        """Process events until one of them calls ``pause``.

        :raises EmptySchedule: if none does.
        """
        self._paused = False
        queue = self.queue
        while not self._paused:
            if not queue:
                raise EmptySchedule
            entry = _pop(queue)
            self.now = entry[0]
            event: Call = entry[3]
            event.happen()

    def pause(self) -> None:
        """Let ``run_to_pause`` return after the event that is being processed."""
        self._paused = True

    def run(self, until: float = inf) -> None:
        """Process events up to a time, before all but control events of that instant; infinite: until none is left."""
        if until < inf:
            self.call_at(until, CONTROL, _stop)
        self._environment.run()

    def pending(self) -> int:
        """Return the number of events still to come."""
        return len(self.queue)

    def peek(self) -> float:
        """Return the time of the next event; infinite if there is none."""
        return self._environment.peek()

    def forget_control_events(self) -> None:
        """Take all control events off the queue."""
        self.queue[:] = [entry for entry in self.queue if entry[1] != CONTROL]
        heapify(self.queue)

    def forget(self, owners: Sequence[object]) -> None:
        """Take all calls of methods of these objects off the queue."""
        ids = {id(owner) for owner in owners}
        self.queue[:] = [entry for entry in self.queue if id(getattr(entry[3].callback, "__self__", None)) not in ids]
        heapify(self.queue)


def _stop(event: Call) -> None:
    raise StopSimulation(None)


class CallEnvironment(simpy.Environment):
    """A SimPy environment whose steps a ``Clock`` takes."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def step(self) -> None:
        """Process the next event."""
        self._clock.step()
