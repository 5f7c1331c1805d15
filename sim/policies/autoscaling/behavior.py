"""Stabilization windows and rate limits, as a HorizontalPodAutoscaler's ``behavior`` has them."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from sim.policies.autoscaling.fleet_reading import within


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast a fleet may grow and shrink. Of a count and a share, the one that allows more applies.

    :ivar up, down: replicas within ``period_s``; None: only the share applies.
    :ivar up_share, down_share: share of the replicas at the start of the period.
    """

    period_s: float
    up: int | None
    up_share: float
    down: int | None
    down_share: float


class Behavior:
    """Limits what a metric asks for, step by step.

    The rules are those of ``autoscaling/v2`` in Kubernetes 1.35 ("Configurable scaling behavior" in the documentation
    of horizontal pod autoscaling; ``pkg/controller/podautoscaler/horizontal.go``):

    1. Stabilization: the fleet grows to at most the smallest number asked for within ``up_s``, and shrinks to at least
       the largest one within ``down_s``.
    2. Rates: it changes at most as ``rates`` allow within their period.
    3. It stays between ``least`` and ``most``.
    """

    def __init__(self, least: int, most: int, up_s: float, down_s: float, rates: Rates) -> None:
        self.least = least
        self.most = most
        self._up_s = up_s
        self._down_s = down_s
        self._rates = rates
        self._asked: list[tuple[float, int]] = []  # numbers asked for, with their times
        self._changes: list[tuple[float, int]] = []  # replicas added (removed: below 0), with their times

    def limit(self, time_s: float, current: int, asked: int) -> int:
        """Return the number of replicas to have from now on.

        :param current: how many there are; ``asked``: how many the metric asks for.
        """
        if not self._asked:
            self._asked.append((time_s, current))
        desired = self._within_rates(time_s, current, self._stable(time_s, current, asked))
        self._asked = [each for each in self._asked if each[0] > time_s - max(self._up_s, self._down_s)]
        self._asked.append((time_s, asked))
        if desired != current:
            self._changes = [each for each in self._changes if each[0] > time_s - self._rates.period_s]
            self._changes.append((time_s, desired - current))
        return desired

    def _stable(self, time_s: float, current: int, asked: int) -> int:
        up = min([asked, *(number for at, number in self._asked if at > time_s - self._up_s)])
        down = max([asked, *(number for at, number in self._asked if at > time_s - self._down_s)])
        return min(max(current, up), down)

    def _within_rates(self, time_s: float, current: int, wanted: int) -> int:
        rates = self._rates
        wanted = within(wanted, self.least, self.most)
        start = current - sum(change for at, change in self._changes if at > time_s - rates.period_s)
        if wanted > current:
            most = ceil(start * (1 + rates.up_share))
            most = most if rates.up is None else max(most, start + rates.up)
            return max(current, min(wanted, most))
        if wanted < current:
            fewest = int(start * (1 - rates.down_share))
            fewest = fewest if rates.down is None else min(fewest, start - rates.down)
            return min(current, max(wanted, fewest))
        return wanted
