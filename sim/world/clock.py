"""A SimPy environment that calls functions at exact times, and in a defined order at one instant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from heapq import heapify, heappop, heappush
from typing import Any

import simpy
from simpy.core import EmptySchedule

CONTROL, LOAD_DONE, BOUNDARY, ARRIVAL = 0, 1, 2, 3
"""Order of events at one instant: control events, ends of loads, step boundaries, arrivals (docs/model.md)."""


class Call(simpy.Event):
    """A reusable event that calls one function at its time.

    :ivar subject: data for the function.
    :ivar call: the event's callbacks. SimPy removes them when it calls them, so each use puts them back.
    """

    def __init__(self, clock: Clock, callback: Callable[[Any], None], subject: Any = None) -> None:
        self.env = clock
        self.subject = subject
        self._ok = True
        self._value = None
        self.call: list[Any] = [callback]
        self.callbacks = None  # type: ignore[assignment]  # set when it is scheduled


class Clock(simpy.Environment):
    """A SimPy environment for callbacks at absolute times.

    SimPy's own ``timeout`` takes a delay, and now + (t - now) is not always t in floating point. Arrival times of a
    trace and ends of leaps must be met exactly, so times go on SimPy's queue unchanged.

    :ivar push, next_id: the parts of ``schedule_call``. The busiest callers use these two C functions directly and save
        a Python call per event.
    :ivar queue: events to come, a heap whose entries begin with their time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.push: Callable[[tuple[float, int, int, Call]], None] = partial(heappush, self._queue)
        self.next_id = self._eid.__next__
        self.queue: list[Any] = self._queue

    def call_at(self, time: float, kind: int, callback: Callable[[Call], None], subject: Any = None) -> Call:
        """Call ``callback(event)`` at ``time``; at one instant in the order of ``kind``, then of creation."""
        event = Call(self, callback, subject)
        self.schedule_call(time, kind, event)
        return event

    def step(self) -> None:
        """Process the next event: SimPy's own step, without what it does for events that fail or that processes await.

        :raises EmptySchedule: if there is none.
        """
        if not self.queue:
            raise EmptySchedule
        self._now, _, _, event = heappop(self.queue)
        callbacks, event.callbacks = event.callbacks, None
        for callback in callbacks:
            callback(event)

    def pending(self) -> int:
        """Return the number of events still to come."""
        return len(self._queue)

    def forget_control_events(self) -> None:
        """Take all control events off the queue."""
        self._queue[:] = [entry for entry in self._queue if entry[1] != CONTROL]
        heapify(self._queue)

    def forget(self, owners: Sequence[object]) -> None:
        """Take all calls of methods of these objects off the queue."""
        ids = {id(owner) for owner in owners}
        self._queue[:] = [
            entry
            for entry in self._queue
            if not isinstance(entry[3], Call) or id(getattr(entry[3].call[0], "__self__", None)) not in ids
        ]
        heapify(self._queue)

    def schedule_call(self, time: float, kind: int, event: Call) -> None:
        """Schedule an event that is not on the queue; reusing events saves creating new ones."""
        event.callbacks = event.call
        self.push((time, kind, self.next_id(), event))
