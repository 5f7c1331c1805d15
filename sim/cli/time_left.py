"""How long work that is counted will still take."""

from __future__ import annotations

import time
from collections.abc import Callable

_UNDER_WAY = 0.3
"""Share of a task under way that is taken to be done: half on average, less right after a round of equal tasks."""


class TimeLeft:
    """Estimate the time left from the tasks that are done, and those under way.

    The clock starts when work does: at the last report that nothing is done yet. Tasks under way, one for each
    worker but the one that has just reported, count in part. Between two reports the estimate counts down.

    :param workers: how many tasks run at a time.
    :param clock: returns seconds.
    """

    def __init__(self, workers: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers, self._clock = workers, clock
        self._started = self._reported = clock()
        self._left_s: float | None = None

    def report(self, done: int, total: int) -> None:
        """Take note of the tasks done and the tasks there are."""
        now = self._clock()
        if done == 0:
            self._started = now
            self._left_s = None
            return
        under_way = min(self._workers - 1, total - done)  # one worker has just begun
        finished = done + _UNDER_WAY * under_way
        self._reported = now
        self._left_s = (now - self._started) * (total - finished) / finished

    def seconds(self) -> float | None:
        """Return the time left; None before anything is done."""
        if self._left_s is None:
            return None
        return max(0.0, self._left_s - (self._clock() - self._reported))

    def text(self) -> str:
        """Return the time left in words; empty before anything is done."""
        seconds = self.seconds()
        return "" if seconds is None else f"about {round(seconds) // 60}:{round(seconds) % 60:02d} left"
