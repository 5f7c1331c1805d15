"""Step scaling: thresholds, each with a number of replicas to add or remove."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from sim.policies.autoscaling.fleet_reading import Reading, within


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What a threshold changes.

    :ivar above: applies where the mean is above it; None: it applies below ``below``.
    :ivar change: replicas to add; below 0: to remove.
    """

    above: float | None
    below: float | None
    change: int


class Steps:
    """Change by the adjustment of the farthest threshold that the mean over replicas has crossed.

    After a change, the fleet stays as it is for ``cooldown_s``. As step scaling policies and cooldowns of Amazon EC2
    Auto Scaling do ("Step and simple scaling policies", "Scaling cooldowns"); replicas without metrics are left out of
    the mean, as instances that warm up are.
    """

    def __init__(self, least: int, most: int, adjustments: Sequence[Adjustment], cooldown_s: float) -> None:
        self._least = least
        self._most = most
        self._adjustments = adjustments
        self._cooldown_s = cooldown_s
        self._changed_s = -inf

    def desired(self, reading: Reading) -> int:
        current = reading.replicas
        if not reading.values or reading.time_s - self._changed_s < self._cooldown_s:
            return current
        wanted = within(current + self._change(sum(reading.values) / len(reading.values)), self._least, self._most)
        if wanted != current:
            self._changed_s = reading.time_s
        return wanted

    def _change(self, mean: float) -> int:
        above = [(each.above, each.change) for each in self._adjustments if each.above is not None]
        below = [(-each.below, each.change) for each in self._adjustments if each.below is not None]
        crossed = [each for each in above if mean > each[0]] or [each for each in below if -mean > each[0]]
        return max(crossed)[1] if crossed else 0
