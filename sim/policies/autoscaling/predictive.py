"""Scaling by a forecast: start replicas for the load that is there when they are ready."""

from __future__ import annotations

from math import ceil

from sim.policies.autoscaling.behavior import Behavior
from sim.policies.autoscaling.fleet_reading import Reading, milli, milli_target


class Predictive:
    """Fit a straight line to the total of the last ``history_s``, and ask for what it says ``lead_s`` ahead.

    Never for less than the total of now asks for, so a forecast starts replicas early and stops none. No product
    computes exactly this. Predictive scaling of Amazon EC2 Auto Scaling forecasts from days of history; one simulated
    day has none of that.

    :param lead_s: how long a new replica takes to be ready.
    """

    def __init__(self, target: float, tolerance: float, behavior: Behavior, *, history_s: float, lead_s: float) -> None:
        self._target = milli_target(target)
        self._tolerance = tolerance
        self._behavior = behavior
        self._history_s = history_s
        self._lead_s = lead_s
        self._seen: list[tuple[float, float]] = []

    def desired(self, reading: Reading) -> int:
        time_s, current = reading.time_s, reading.replicas
        self._seen = [each for each in self._seen if each[0] >= time_s - self._history_s]
        self._seen.append((time_s, reading.total))
        total = milli(max(reading.total, self._forecast(time_s + self._lead_s)))
        ratio = total / (self._target * current) if current else 0.0
        tolerated = 1.0 - self._tolerance <= ratio <= 1.0 + self._tolerance
        asked = current if tolerated else ceil(total / self._target)
        return self._behavior.limit(time_s, current, asked)

    def _forecast(self, at_s: float) -> float:
        """Return the least-squares line at a time; of fewer than three readings there is none."""
        count = len(self._seen)
        if count < 3:
            return 0.0
        mean_t = sum(at for at, _ in self._seen) / count
        mean_y = sum(total for _, total in self._seen) / count
        spread = sum((at - mean_t) ** 2 for at, _ in self._seen)
        slope = sum((at - mean_t) * (total - mean_y) for at, total in self._seen) / spread
        return mean_y + slope * (at_s - mean_t)
