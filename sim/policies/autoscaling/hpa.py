"""The HorizontalPodAutoscaler of Kubernetes, with a metric of each pod."""

from __future__ import annotations

from math import ceil

from sim.policies.autoscaling.behavior import Behavior
from sim.policies.autoscaling.fleet_reading import Reading, milli, milli_target, within


class Hpa:
    """Ask for ``ceil(replicas * mean / target)``, unless the mean is within the tolerance of the target.

    From "Algorithm details" in the documentation of horizontal pod autoscaling, and ``calcPlainMetricReplicas`` in
    ``pkg/controller/podautoscaler/replica_calculator.go``, for a metric of type ``Pods``. A replica without metrics
    counts as idle where the others ask for more, and as exactly on target where they ask for fewer. If that turns the
    direction round, nothing changes.

    :param target: the mean over replicas to aim for; ``tolerance``: as a share of it.
    """

    def __init__(self, target: float, tolerance: float, behavior: Behavior) -> None:
        self._target = milli_target(target)
        self._tolerance = tolerance
        self._behavior = behavior

    def desired(self, reading: Reading) -> int:
        least, most = self._behavior.least, self._behavior.most
        if not least <= reading.replicas <= most:
            asked = within(reading.replicas, least, most)
        elif reading.values:
            asked = self._asked(reading)
        else:
            return reading.replicas  # without any metric, Kubernetes leaves the fleet as it is
        return self._behavior.limit(reading.time_s, reading.replicas, asked)

    def _asked(self, reading: Reading) -> int:
        values = [milli(value) for value in reading.values]
        first = self._ratio(values)
        if reading.without_metrics == 0:
            return reading.replicas if self._tolerates(first) else ceil(first * len(values))
        values += [self._target if first < 1.0 else 0] * reading.without_metrics
        ratio = self._ratio(values)
        turned = (first < 1.0 < ratio) or (ratio < 1.0 < first)
        return reading.replicas if self._tolerates(ratio) or turned else ceil(ratio * len(values))

    def _ratio(self, values: list[int]) -> float:
        """Return the mean over the target. The mean is an integer too (``GetMetricUsageRatio``)."""
        return sum(values) // len(values) / self._target

    def _tolerates(self, ratio: float) -> bool:
        return 1.0 - self._tolerance <= ratio <= 1.0 + self._tolerance
