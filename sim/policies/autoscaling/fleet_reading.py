"""What an autoscaler reads, and what every scaling policy returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Reading:
    """The metrics of a fleet at one moment. Replicas that drain are left out, as pods that are being deleted are.

    :ivar time_s: when.
    :ivar replicas: replicas that are ready, start, or are down after a crash.
    :ivar values: the metric of each ready replica.
    :ivar held: requests that wait because no replica is ready; they are part of the total.
    """

    time_s: float
    replicas: int
    values: Sequence[float]
    held: int = 0

    @property
    def without_metrics(self) -> int:
        """Replicas that don't report anything: they start, or are down."""
        return self.replicas - len(self.values)

    @property
    def total(self) -> float:
        """The metric of the whole fleet."""
        return sum(self.values) + self.held


class ScalingPolicy(Protocol):
    """Decides how many replicas a fleet should have."""

    def desired(self, reading: Reading) -> int:
        """Return the number of replicas wanted from now on, between the minimum and the maximum.

        Call it once for each reading, in order of time: a policy may remember earlier readings and decisions.
        """
        ...


def milli(value: float) -> int:
    """Return a metric in milli-units, cut off as metrics adapters do: Kubernetes computes with those only."""
    return int(value * 1000)


def milli_target(value: float) -> int:
    """Return a target in milli-units. It is at least one of them."""
    return max(1, round(value * 1000))


def within(value: int, least: int, most: int) -> int:
    """Return ``value``, or the bound that it exceeds."""
    return max(least, min(most, value))
