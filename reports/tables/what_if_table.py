"""What one change at a time would do: a table, and a chart of the metric that matters most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from reports.answers.deltas import signed
from reports.charts.axis_ticks import set_ticks
from reports.charts.svg import COLOURS, Chart, Table, drawing, place, to_svg
from reports.formatting import metric_words, show
from sim.results.model import MetricChange, WhatIfRow
from sim.results.pairs import BETTER, LESS, MORE, WORSE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW = 24
_MOST = 30
_LEAST = 0.01
"""Smallest ratio that is drawn."""
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1000.0)
_MOST_TICKS = 7
_LABELS = 200
_SHORT = {BETTER: "better", WORSE: "worse", MORE: "more", LESS: "less"}


def what_if_table(rows: Sequence[WhatIfRow], names: Sequence[str]) -> Table | None:
    """Return every change with what it does to each metric; None where nothing was tried.

    :param names: metrics, the most important first.
    """
    if not rows:
        return None
    lines = []
    for row in rows:
        if row.refused:
            lines.append([row.label, "not possible", *([""] * len(names))])
            continue
        cells = [change_cell(name, row.metrics.get(name)) for name in names]
        lines.append([row.label, row.verdict or "", *cells])
    refused = [f"{row.label}: {row.refused}" for row in rows if row.refused]
    notes = [f"{row.label}: {row.note}" for row in rows if row.note]
    base: Mapping[str, MetricChange] = next((row.metrics for row in rows if row.metrics), {})
    known = [name for name in names if name in base and base[name].one is not None]
    said = [
        "As planned: " + ", ".join(f"{metric_words(name)} {show(name, base[name].one)}" for name in known),
        "Brackets: the change and its 95 % interval, from pairs under the same traffic", *refused, *notes,
    ]  # fmt: skip
    note = ". ".join(said)
    head = ["change", "SLO", *(metric_words(name) for name in names)]
    return Table("What if? One change at a time", head, lines, f"{note}.", words=(1,))


def change_cell(name: str, found: MetricChange | None) -> str:
    """Return what a metric becomes, and the interval of its change where that is clear."""
    if found is None or found.other is None:
        return "–"
    text = show(name, found.other)
    if found.lo is None or found.hi is None:
        return text
    if found.word not in _SHORT:
        return f"{text} (no clear change)"
    return f"{text} ({_SHORT[found.word]}: {_interval(name, found)})"


def _interval(name: str, found: MetricChange) -> str:
    low, high = (0.0 if end is None else end for end in (found.lo, found.hi))
    return f"{signed(name, low, found.unit)} to {signed(name, high, found.unit)}"


def tornado_chart(
    rows: Sequence[WhatIfRow], name: str, before: str = "as planned", labels: int = _LABELS
) -> Chart | None:
    """Draw how many times larger one metric gets, the largest change first; None where nothing is known.

    :param before: what the changes are held against, in words; ``labels``: width for those of the rows.
    """
    known = [(row, row.metrics[name]) for row in rows if _drawn(row.metrics.get(name))]
    known.sort(key=lambda pair: -abs(math.log(_ratio(pair[1]))))
    known = known[:_MOST]
    if not known:
        return None
    words = metric_words(name)
    title = f"Which change moves {words} most?"
    told = [f"{row.label} ×{_ratio(found):.3g} ({found.word})" for row, found in known]
    desc = f"How many times larger {words} gets than {before.removeprefix('as ')}: {'; '.join(told)}."
    with drawing(_ROW * len(known) + 56) as figure:
        ax = place(figure, labels, 14, 56, 40)
        _bars(ax, known)
        svg = to_svg(figure, "tornado", title, desc)
    caption = f"Times {words} {before}, under the same traffic; whiskers: 95 %. Hollow: no clear difference."
    head = ["change", "change of the value", "95 % interval", "verdict"]
    lines = [
        [row.label, signed(name, found.change or 0.0, found.unit), _interval(name, found), found.word]
        for row, found in known
    ]  # fmt: skip
    return Chart("tornado", title, caption, desc, svg, Table(f"Change of {words}", head, lines, words=(3,)))


def _drawn(found: MetricChange | None) -> bool:
    return found is not None and found.lo is not None and bool(found.one) and bool(found.other)


def _ratio(found: MetricChange, key: str = "change") -> float:
    """Return how many times the planned value it is; ends of an interval that reach below 0 are cut."""
    one, change = found.one, getattr(found, key)
    assert one, "checked by _drawn"
    assert change is not None, "checked by _drawn"
    return max(_LEAST, float((one + change) / one))


def _bars(ax: Axes, known: Sequence[tuple[WhatIfRow, MetricChange]]) -> None:
    ratios = [_ratio(found) for _, found in known]
    low = max(_LEAST, min(1.0, min(ratios) / 1.1, *(_ratio(found, "lo") for _, found in known), 1 / 1.1))
    high = max(1.1, max(ratios) * 1.1, *(min(_ratio(found, "hi"), 2 * max(ratios)) for _, found in known))
    ax.set_xscale("log")
    ax.set_xlim(low / 1.02, high * 1.02)
    ax.set_ylim(len(known) - 0.4, -0.6)
    for i, (_, found) in enumerate(known):
        value, clear = _ratio(found), found.word in _SHORT
        colour = COLOURS["s2"] if value > 1 else COLOURS["s1"]
        ax.barh(i, value - 1, left=1, height=0.62, color=colour if clear else "none", edgecolor=colour, linewidth=1.2)
        ends = [min(max(_ratio(found, key), low), high) for key in ("lo", "hi")]
        ax.plot(ends, [i, i], color=COLOURS["ink"], linewidth=1.2)
        for end in ends:
            ax.plot([end, end], [i - 0.14, i + 0.14], color=COLOURS["ink"], linewidth=1.2)
        ax.text(1.02, i, f"×{value:.3g}", transform=ax.get_yaxis_transform(), va="center", ha="left", fontsize=11)
    ax.axvline(1, color=COLOURS["ink"], linewidth=1)
    ax.set_yticks(range(len(known)))
    ax.set_yticklabels([row.label for row, _ in known])
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.set_axisbelow(True)
    ax.spines["left"].set_visible(False)
    apart, ticks = math.log(high / low) / _MOST_TICKS, [1.0]
    for tick in sorted(_TICKS, key=lambda tick: abs(math.log(tick))):
        if low <= tick <= high and all(abs(math.log(tick / kept)) >= apart for kept in ticks):
            ticks.append(tick)
    ticks.sort()
    set_ticks(ax, "x", ticks, [f"×{tick:g}" for tick in ticks])
