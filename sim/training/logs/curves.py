"""Robust statistics of noisy curves: medians of windows, never single points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from sim.training.logs.training_log import StepSeries, entries


@dataclass(frozen=True, slots=True)
class Level:
    """The median of a window of entries, and the window's steps."""

    value: float
    first: int
    last: int

    @property
    def where(self) -> str:
        """The steps of the window, in words."""
        return f"step {self.first}" if self.first == self.last else f"steps {self.first} to {self.last}"


def window(series: StepSeries, begin: int, end: int) -> Level:
    """Return the level of entries ``begin`` up to but not including ``end``, cut to what there is; at least one."""
    begin = min(max(begin, 0), len(series) - 1)
    end = min(max(end, begin + 1), len(series))
    return Level(median(series.values[begin:end]), series.steps[begin], series.steps[end - 1])


def start(series: StepSeries) -> Level:
    """Return where a curve starts: the median of its first twentieth, since it falls steeply there."""
    return window(series, 0, max(1, len(series) // 20))


def tail(series: StepSeries) -> Level:
    """Return where a curve ends: the median of its last tenth, of three entries at least."""
    return window(series, len(series) - max(3, len(series) // 10), len(series))


def at_share(series: StepSeries, share: float) -> Level:
    """Return the level at a share of the steps, over a window as wide as that of ``tail``."""
    step = series.steps[0] + share * (series.steps[-1] - series.steps[0])
    at = sum(one <= step for one in series.steps)
    wide = max(3, len(series) // 10)
    return window(series, at - (wide + 1) // 2, at + wide // 2)


def lowest(series: StepSeries, wide: int = 3) -> tuple[int, Level]:
    """Return the lowest level of ``wide`` entries, and the index of the lowest entry among them."""
    places = range(0, max(1, len(series) - wide + 1), max(1, wide // 8))  # all would cost n² where windows grow with n
    levels = [(window(series, at, at + wide), at) for at in places]
    level, at = min(levels, key=lambda pair: pair[0].value)
    inside = range(at, min(at + wide, len(series)))
    return min(inside, key=lambda index: series.values[index]), level


def near(series: StepSeries, step: int, wide: int = 5) -> Level:
    """Return the level of the ``wide`` entries around a step."""
    at = min(range(len(series)), key=lambda index: abs(series.steps[index] - step))
    return window(series, at - wide // 2, at - wide // 2 + wide)


def slope(values: Sequence[float]) -> float:
    """Return the median slope of all pairs of points (Theil-Sen), per entry; at most the last 60 are taken."""
    values = values[-60:]
    pairs = [(values[j] - values[i]) / (j - i) for i in range(len(values)) for j in range(i + 1, len(values))]
    return median(pairs) if pairs else 0.0


@dataclass(frozen=True, slots=True)
class Jump:
    """A rise of a curve: level before, level after, and the step where it begins."""

    step: int
    before: Level
    after: Level

    @property
    def ratio(self) -> float:
        """The level after it over the level before."""
        return self.after.value / self.before.value if self.before.value > 0 else math.inf


_BEFORE, _AFTER = 10, 5
"""Entries before a rise, and after one that lasts, whose medians are compared."""


def largest_jump(series: StepSeries) -> Jump | None:
    """Return the largest ratio of the median after an entry to that before it; None for curves too short."""
    best: Jump | None = None
    for at in range(5, len(series) - _AFTER + 1):
        jump = Jump(series.steps[at], window(series, at - _BEFORE, at), window(series, at, at + _AFTER))
        if jump.before.value > 0 and (best is None or jump.ratio > best.ratio):
            best = jump
    return best


def largest_spike(series: StepSeries, ratio: float) -> Jump | None:
    """Return the rise to the highest single entry that is ``ratio`` times the median of those ahead of it.

    The first three entries never count: norms are high in warm-up.
    """
    spikes: list[Jump] = []
    calm = 2  # the last entry that was no spike
    for at in range(3, len(series)):
        level = window(series, at - _BEFORE, at).value
        if level > 0 and series.values[at] >= ratio * level:
            spikes.append(Jump(series.steps[at], window(series, calm, calm + 1), window(series, at, at + 1)))
        else:
            calm = at
    return max(spikes, key=lambda spike: spike.after.value, default=None)


def points(series: StepSeries, limit: int = 8) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return up to ``limit`` evenly chosen (steps, values) as evidence, the first and the last among them."""
    if len(series) <= limit:
        return series.steps, series.values
    chosen = [round(index * (len(series) - 1) / (limit - 1)) for index in range(limit)]
    both = list(entries(series))
    return tuple(both[at][0] for at in chosen), tuple(both[at][1] for at in chosen)
