"""How many replicas a fleet should have, decided from one reading of its metrics after another."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Protocol

from sim.spec.sections.control_plane import Autoscale


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


# Stabilization windows and rate limits, as a HorizontalPodAutoscaler's ``behavior`` has them.


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


def _tolerated(ratio: float, tolerance: float) -> bool:
    return 1.0 - tolerance <= ratio <= 1.0 + tolerance


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
            return reading.replicas if _tolerated(first, self._tolerance) else ceil(first * len(values))
        values += [self._target if first < 1.0 else 0] * reading.without_metrics
        ratio = self._ratio(values)
        turned = (first < 1.0 < ratio) or (ratio < 1.0 < first)
        return reading.replicas if turned or _tolerated(ratio, self._tolerance) else ceil(ratio * len(values))

    def _ratio(self, values: list[int]) -> float:
        """Return the mean over the target. The mean is an integer too (``GetMetricUsageRatio``)."""
        return sum(values) // len(values) / self._target


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
        tolerated = _tolerated(milli(total) / (self._target * current), self._tolerance)
        asked = current if tolerated else max(1, ceil(milli(total) / self._target))
        return max(1, self._behavior.limit(time_s, current, asked))


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
        asked = current if _tolerated(ratio, self._tolerance) else ceil(total / self._target)
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


def make_policy(spec: Autoscale, lead_s: float) -> ScalingPolicy:
    """Return a new policy, which has seen nothing.

    :param lead_s: mean time from the decision to start a replica until it is ready.
    """
    if spec.policy == "step":
        adjustments = [Adjustment(step.above, step.below, step.add or -(step.remove or 0)) for step in spec.steps]
        return Steps(spec.min, spec.max, adjustments, spec.cooldown)
    if spec.policy == "schedule":
        entries = sorted((entry.at, entry.replicas) for entry in spec.schedule)
        return Schedule(spec.min, spec.max, entries, spec.every)
    assert spec.target is not None, "checked by the scenario"
    rates = Rates(spec.period, spec.up_replicas, spec.up_share, spec.down_replicas, spec.down_share)
    behavior = Behavior(spec.min, spec.max, spec.stabilization_up, spec.stabilization_down, rates)
    if spec.policy == "keda":
        return Keda(spec.target, spec.tolerance, behavior, cooldown_s=spec.cooldown)
    if spec.policy == "predictive":
        return Predictive(spec.target, spec.tolerance, behavior, history_s=spec.history, lead_s=lead_s)
    return Hpa(spec.target, spec.tolerance, behavior)


__all__ = ["Behavior", "Reading", "ScalingPolicy", "make_policy"]
