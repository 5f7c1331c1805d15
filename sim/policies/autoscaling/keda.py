"""KEDA's ScaledObject: a metric of the whole fleet, and replicas down to zero."""

from __future__ import annotations

from math import ceil, inf

from sim.policies.autoscaling.behavior import Behavior
from sim.policies.autoscaling.fleet_reading import Reading, milli, milli_target


class Keda:
    """Ask for ``ceil(total / target)``; go to zero with a total that has been 0 for ``cooldown_s``, and to one above.

    From the "ScaledObject specification" (``cooldownPeriod``, ``minReplicaCount``) and "Scaling Deployments,
    StatefulSets & Custom Resources" of KEDA's documentation: above zero, KEDA leaves the number to an HPA with an
    external metric of type ``AverageValue``, which it reads as a total over a target for each replica
    (``GetExternalPerPodMetricReplicas`` in ``replica_calculator.go``). Between zero and one, KEDA decides by itself,
    here with its default ``activationThreshold`` of 0.
    """

    def __init__(self, target: float, tolerance: float, behavior: Behavior, *, cooldown_s: float) -> None:
        self._target = milli_target(target)
        self._tolerance = tolerance
        self._behavior = behavior
        self._cooldown_s = cooldown_s
        self._active_s = -inf  # when there last was activity

    def desired(self, reading: Reading) -> int:
        time_s, current, total = reading.time_s, reading.replicas, reading.total
        if self._active_s == -inf or total > 0:
            self._active_s = time_s
        if self._behavior.least == 0:
            if current == 0:
                return 1 if total > 0 else 0
            if total == 0 and time_s - self._active_s >= self._cooldown_s:
                return 0
        elif current == 0:
            return self._behavior.least
        ratio = milli(total) / (self._target * current)
        tolerated = 1.0 - self._tolerance <= ratio <= 1.0 + self._tolerance
        asked = current if tolerated else max(1, ceil(milli(total) / self._target))
        return max(1, self._behavior.limit(time_s, current, asked))
