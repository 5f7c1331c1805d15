"""Scaling by the clock."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from sim.policies.autoscaling.fleet_reading import Reading, within


class Schedule:
    """As many replicas as the last entry of a timetable says, which begins again every ``every_s``.

    Like scheduled scaling of Amazon EC2 Auto Scaling, or KEDA's cron scaler with one window after the other. Before the
    first entry, the last one applies, as on the day before.

    :param entries: times and replicas, ascending.
    """

    def __init__(self, least: int, most: int, entries: Sequence[tuple[float, int]], every_s: float) -> None:
        self._least = least
        self._most = most
        self._times = [at for at, _ in entries]
        self._replicas = [replicas for _, replicas in entries]
        self._every_s = every_s

    def desired(self, reading: Reading) -> int:
        place = bisect_right(self._times, reading.time_s % self._every_s) - 1
        return within(self._replicas[place], self._least, self._most)
