"""How changes read: with a sign, in the unit of the metric, shares in percentage points."""

from __future__ import annotations

import re
from collections.abc import Sequence

from reports.answers.change_comparison import find_extremes
from reports.axes import Axis
from reports.formatting import metric_words, percent, show
from sim.results.by_tenant.slo_terms import split_term
from sim.results.catalogue import SHARES
from sim.results.model import MetricChange
from sim.results.pairs import BETTER, LESS, MORE, WORSE, Difference
from sim.results.point import Point

CLEAR_WORDS = {BETTER: "better", WORSE: "worse", MORE: "more", LESS: "less"}
"""Verdicts of a clear difference, in short."""
_AMOUNT = re.compile(r"^[−+]?\$?[\d.,]+(e[-+]?\d+)?")


def signed(name: str, value: float, unit: str) -> str:
    """Return a change: ``−72 ms``, ``+3.1 pp``, ``+1,204``, ``0``."""
    if split_term(name)[1] in SHARES:
        text = f"{abs(value) * 100:.3g}"
        text = f"{0 if 'e-' in text else text} pp"
    else:
        text = show(name, abs(value), unit)
    sign = "−" if value < 0 else "+"
    return text if value == 0 or text.startswith("0 ") or text in ("0", "$0") else f"{sign}{text}"


def bounds_words(name: str, found: MetricChange) -> str:
    """Return the interval of a change that is kept as a row of a file: ``−80 ms to −64 ms``."""
    low, high = (0.0 if end is None else end for end in (found.lo, found.hi))
    return f"{signed(name, low, found.unit)} to {signed(name, high, found.unit)}"


def interval_words(difference: Difference) -> str:
    """Return the interval of a change: ``−80 to −64 ms``; nothing where there is none or it has no width."""
    d = difference
    if d.lo is None or d.hi is None or d.lo == d.hi:
        return ""
    low, high = signed(d.name, d.lo, d.unit), signed(d.name, d.hi, d.unit)
    suffixes = [_AMOUNT.sub("", text) for text in (low, high)]
    return f"{low.removesuffix(suffixes[0]) if suffixes[0] == suffixes[1] else low} to {high}"


def change_words(difference: Difference) -> str:
    """Return a change and its interval: ``−72 ms, 95 %: −80 to −64 ms``."""
    d = difference
    if d.change is None:
        return "not comparable"
    if d.change == 0 and not interval_words(d):
        return "no change"
    bounds = interval_words(d)
    return signed(d.name, d.change, d.unit) + (
        f", 95 %: {bounds}" if bounds else ", no interval" if d.lo is None else ""
    )


def change_cell(difference: Difference | None) -> str:
    """Return a change for a table: ``−72 ms (−80 to −64 ms)``."""
    d = difference
    if d is None or d.change is None:
        return "–"
    bounds = interval_words(d)
    return signed(d.name, d.change, d.unit) + (f" ({bounds})" if bounds else "")


def relative_cell(difference: Difference | None) -> str:
    """Return the change as a share of the first value: ``−11.8 %``."""
    if difference is None or difference.relative is None:
        return "–"
    text = percent(abs(difference.relative))
    if text == "0 %":
        return text
    return f"{'−' if difference.relative < 0 else '+'}{text}"


def unchanged_sentence(points: Sequence[Point], axes: Sequence[Axis], names: Sequence[str]) -> str:
    """Return which metrics differ too little between points to be drawn; empty where there are none."""
    said = []
    for name in names:
        found = find_extremes(points, name)
        if found is not None:
            low, high = (show(name, point.metrics[name].value) for point in (found.low, found.high))
            said.append(f"{metric_words(name)} ({low if low == high else f'{low} to {high}'})")
    swept = " and ".join(axis.words for axis in axes)
    hardly = "it hardly changes" if len(said) == 1 else "they hardly change"
    return f"Not drawn, because {hardly} with {swept}: {', '.join(said)}." if said else ""
