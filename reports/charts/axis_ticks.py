"""Axes that read well: few round ticks with units, logarithmic where values span much."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from reports.axes import Axis
from reports.charts.canvas import Axes
from reports.charts.svg import COLOURS
from reports.formatting import percent
from sim.spec.units import human_seconds

_LOG_SPAN = 20.0
_LEVEL, _SLANTED = 24, 20
_LETTER = 7.2
"""Width of a letter in chart units, on average, with room for the larger text of phones."""


def seconds_tick(value: float) -> str:
    """Return a time for an axis: µs, ms or s, never minutes, so that round ticks stay round."""
    if value == 0:
        return "0"
    if abs(value) < 0.9995e-3:
        return f"{value * 1e6:.6g} µs"
    return f"{value * 1e3:.6g} ms" if abs(value) < 0.9995 else f"{value:,.6g} s"


_CLOCK_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 14400, 21600, 43200, 86400)


def clock_ticks(start: float, end: float, day_s: int, most: int = 6) -> list[float]:
    """Return simulated times at round times of day inside an interval, at most about so many; midnights of a long one.

    :param day_s: time of day at simulated time 0, in seconds from midnight.
    """
    days = 86400 * math.ceil((end - start) / most / 86400)
    step = next((step for step in _CLOCK_STEPS if (end - start) / step <= most), days)
    first = math.ceil((start + day_s) / step)
    return [float(place * step - day_s) for place in range(first, math.floor((end + day_s) / step) + 1)]


def clock_words(seconds: float, day_s: int) -> str:
    """Return the time of day at a simulated time: ``08:30``, with seconds where there are some; ``day 2 08:30``."""
    minutes, rest = divmod(round(seconds) + day_s, 60)
    day, minutes = divmod(minutes, 1440)
    return f"{f'day {day + 1} ' if day else ''}{minutes // 60:02}:{minutes % 60:02}{f':{rest:02}' if rest else ''}"


def moment_words(seconds: float, day_s: int | None) -> str:
    """Return a simulated time as the time of day, where the run has one; else since its start."""
    return human_seconds(seconds) if day_s is None else clock_words(seconds, day_s)


def time_ticks(start: float, end: float, day_s: int | None) -> tuple[list[float], list[str]]:
    """Return round simulated times inside an interval and how they read: times of day, or days down to seconds."""
    if day_s is None and end < 600:
        ticks = nice_linear(start, end, 6)
        return ticks, [seconds_tick(tick) for tick in ticks]
    ticks = clock_ticks(start, end, day_s or 0)
    size, unit = (86400, "d") if end - start > 259_200 else (3600, "h") if end >= 10800 else (60, "min")
    return ticks, [f"{t / size:,.6g} {unit}" if day_s is None else clock_words(t, day_s) for t in ticks]


def count_tick(value: float) -> str:
    """Return a plain number for an axis."""
    return f"{value:,.6g}" if abs(value) < 1e5 else f"{value:,.0f}"


TICKS: dict[str, Callable[[float], str]] = {
    "s": seconds_tick,
    "share": percent,
    "count": count_tick,
    "requests": count_tick,
    "stacked": seconds_tick,
}
"""How the ticks of an axis read, by what it shows; seconds that are stacked can't be compared on a logarithmic one."""


def nice_log(low: float, high: float, most: int = 7) -> list[float]:
    """Return ticks at 1, 2 and 5 times powers of ten inside an interval, thinned to at most ``most``."""
    found: list[float] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [s * 10.0**d for d in decades for s in steps if low * 0.999 <= s * 10.0**d <= high * 1.001]
        if len(found) <= most:
            break
    return found if len(found) <= most else found[:: math.ceil(len(found) / most)]


def nice_linear(low: float, high: float, most: int = 6) -> list[float]:
    """Return round, evenly spaced ticks inside an interval."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / (most - 1)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(s * unit for s in (1, 2, 2.5, 5, 10) if s * unit >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [(first + i) * step for i in range(count)]


def scale_y(ax: Axes, values: Sequence[float], kind: str) -> None:
    """Set limits, ticks and grid of the y axis, which is logarithmic where values span much.

    :param values: everything that must be visible.
    :param kind: key of ``TICKS``.
    """
    positive = [value for value in values if value > 0]
    high = max(values, default=1.0) or 1.0
    may = kind == "s" or (kind == "requests" and len(positive) == len(values))
    if positive and may and max(positive) > _LOG_SPAN * min(positive):
        low, high = min(positive) / 1.25, max(positive) * 1.25
        ax.set_yscale("log")
        ticks = nice_log(low, high)
    else:
        top = 1.08 * high
        low, high = min(0.0, *values), min(top, 1.0) if kind == "share" and high <= 1 else top
        ticks = nice_linear(low, high)
    ax.set_ylim(low, high)
    ax.set_ticks("y", ticks, [TICKS[kind](tick) for tick in ticks])
    draw_grid(ax, "y")


def draw_grid(ax: Axes, which: Literal["both", "x", "y"]) -> None:
    """Draw a grid below the data, in place of the line at the left."""
    ax.grid(axis=which)
    ax.frame.discard("left")


def scale_rows(ax: Axes, labels: Sequence[str]) -> None:
    """Give each row of a chart its label, the first on top, with a grid along x."""
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.set_ticks("y", range(len(labels)), labels)
    draw_grid(ax, "x")


def scale_log(ax: Axes, which: Literal["x", "y"], low: float, high: float, tick: Callable[[float], str]) -> None:
    """Set a logarithmic axis with up to six ticks."""
    ticks = nice_log(low, high, 6)
    if which == "x":
        ax.set_xscale("log")
        ax.set_xlim(low, high)
    else:
        ax.set_yscale("log")
        ax.set_ylim(low, high)
    ax.set_ticks(which, ticks, [tick(value) for value in ticks])


def scale_x(ax: Axes, axis: Axis, room: float) -> None:
    """Set limits and ticks of an x axis that shows a swept key.

    :param room: width of the axis in chart units, for as many labels as fit.
    """
    if not axis.numeric:
        _categories(ax, axis, room)
        return
    low, high = axis.places[0], axis.places[-1]
    if axis.log:
        ax.set_xscale("log")
        pad = (high / low) ** 0.03
        ax.set_xlim(low / pad, high * pad)
        ticks = nice_log(low, high)
    else:
        pad = (high - low) * 0.03
        ax.set_xlim(low - pad, high + pad)
        ticks = nice_linear(low, high)
    swept = _swept_ticks(ax, axis, room)
    if swept:
        ax.set_ticks("x", [axis.places[i] for i in swept], [axis.label(axis.values[i]) for i in swept])
    else:
        ax.set_ticks("x", ticks, [axis.tick(tick) for tick in ticks])


def _swept_ticks(ax: Axes, axis: Axis, room: float) -> list[int]:
    """Return which swept values are ticks themselves: those far enough apart if they are few, else none."""
    if len(axis.places) > 12:
        return []
    low, high = ax.get_xlim()
    where = [math.log(p / low) / math.log(high / low) if axis.log else (p - low) / (high - low) for p in axis.places]
    halves = [len(axis.label(value)) * _LETTER / 2 for value in axis.values]
    kept: list[int] = []
    for i, share in enumerate(where):
        if not kept or (share - where[kept[-1]]) * room > halves[i] + halves[kept[-1]] + 8:
            kept.append(i)
    return kept


def _categories(ax: Axes, axis: Axis, room: float) -> None:
    """Label categories below the axis, slanted or thinned where they are long or many."""
    ax.set_xlim(-0.5, len(axis.values) - 0.5)
    if slanted(axis, room) == 0:
        ax.set_ticks("x", list(axis.places), axis.short_labels(_LEVEL))
        return
    labels = axis.short_labels(_SLANTED)
    every = math.ceil(len(labels) * 26 / room)
    ax.set_ticks("x", axis.places[::every], labels[::every], turn=35)


def slanted(axis: Axis, room: float) -> float:
    """Return how many chart units the labels of an axis need below it, beyond one line."""
    if axis.numeric:
        return 0.0
    level = max(map(len, axis.short_labels(_LEVEL))) * _LETTER
    longest = max(map(len, axis.short_labels(_SLANTED))) * _LETTER
    return 0.0 if level + 8 <= room / len(axis.values) else 0.58 * longest


def y_title(ax: Axes, text: str, left: float = 46) -> None:
    """Write what the y axis shows above it, horizontally, this far left of the axis."""
    ax.annotate(text, (0, 1), (-left, 14), xycoords="axes fraction", color=COLOURS["muted"])


def x_title(ax: Axes, text: str, below: float = 0.0) -> None:
    """Write what the x axis shows below it."""
    ax.annotate(text, (0.5, 0), (0, -36 - below), xycoords="axes fraction", color=COLOURS["muted"], ha="center")
