"""What single changes do, as a table and as a chart: those of a what-if, and remedies whose price is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from reports.charts.axis_ticks import draw_grid
from reports.charts.canvas import Axes
from reports.charts.svg import COLOURS, Chart, drawing, place, row_tips, to_svg
from reports.formatting import metric_words, show, with_p
from reports.table import Table
from reports.text.metric_text import CLEAR_WORDS, bounds_words, signed
from sim.results.model import Difference
from sim.results.run_directory.study_records import WhatIfRow

_COSTS = ("usd_per_m_tokens",)
"""Metrics that the table ends with, where there is a price."""
_ROW, _MOST = 24, 30
"""Pixels of a row, and the most rows."""
_LEAST = 0.01
"""Smallest ratio that is drawn."""
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1000.0)
_MOST_TICKS = 7
_LABELS = 200


def what_if_table(
    rows: Sequence[WhatIfRow],
    names: Sequence[str],
    title: str = "What if? One change at a time",
    before: str = "As planned",
) -> Table | None:
    """Return each change with its effect on every metric; None where nothing was tried.

    :param names: metrics, the most important first.
    :param before: the design that is changed, in words.
    """
    if not rows:
        return None
    base: Mapping[str, Difference] = next((row.metrics for row in rows if row.metrics), {})
    names = [*names, *(name for name in _COSTS if name in base and name not in names)]
    lines = []
    for row in rows:
        if row.refused:
            lines.append([row.label, "not possible", *([""] * len(names))])
            continue
        cells = [what_if_cell(name, row.metrics.get(name)) for name in names]
        lines.append([row.label, row.verdict or "", *cells])
    refused = [f"{row.label}: {row.refused}" for row in rows if row.refused]
    notes = [f"{row.label}: {row.note}" for row in rows if row.note]
    notes += [f"{row.label}, evaluated as a design: {with_p(row.grade.probability)}" for row in rows if row.grade]
    known = [name for name in names if name in base and base[name].one is not None]
    sentences = [
        f"{before}: " + ", ".join(f"{metric_words(name)} {show(name, base[name].one)}" for name in known),
        "Brackets: the change and its 95 % interval, from pairs under the same traffic",
        *refused,
        *notes,
    ]
    note = ". ".join(sentences)
    head = ["change", "SLO", *(metric_words(name) for name in names)]
    verdicts = {(index, 1): row.verdict for index, row in enumerate(rows) if row.verdict}
    optional = tuple(range(len(head) - 1, 2, -1))
    return Table(title, head, lines, f"{note}.", (1,), verdicts, optional)


def what_if_cell(name: str, found: Difference | None) -> str:
    """Return what a metric becomes, and the interval of its change where that is clear."""
    if found is None or found.other is None:
        return "–"
    text = show(name, found.other)
    if found.lo is None or found.hi is None:
        return text
    if found.word not in CLEAR_WORDS:
        return f"{text} (no clear change)"
    return f"{text} ({CLEAR_WORDS[found.word]}: {bounds_words(name, found)})"


def tornado_chart(
    rows: Sequence[WhatIfRow], name: str, before: str = "as planned", labels: int = _LABELS
) -> Chart | None:
    """Draw how many times larger one metric gets, the largest change first; None where nothing was measured.

    :param before: what the changes are compared with, in words; ``labels``: width for those of the rows.
    """
    known = [(row, row.metrics[name]) for row in rows if _drawn(row.metrics.get(name))]
    known.sort(key=lambda pair: -abs(math.log(_ratio(pair[1]))))
    known = known[:_MOST]
    if not known:
        return None
    words = metric_words(name)
    title = f"Which change moves {words} most?"
    parts = [f"{row.label} ×{_ratio(found):.3g} ({found.word})" for row, found in known]
    desc = f"How many times larger {words} gets than {before.removeprefix('as ')}: {'; '.join(parts)}."
    head = ["change", "change of the value", "95 % interval", "verdict"]
    lines = [
        [row.label, signed(name, found.change or 0.0, found.unit), bounds_words(name, found), found.word]
        for row, found in known
    ]
    table = Table(f"Change of {words}", head, lines, words=(3,))
    with drawing(_ROW * len(known) + 56) as figure:
        ax = place(figure, labels, 14, 56, 40)
        _bars(ax, known)
        svg = to_svg(figure, "tornado", title, desc, row_tips(ax, range(len(known)), table))
    caption = f"Times {words} {before}, under the same traffic; whiskers: 95 %. Hollow: no clear difference."
    return Chart("tornado", title, caption, desc, svg, table)


def _drawn(found: Difference | None) -> bool:
    return found is not None and found.lo is not None and bool(found.one) and bool(found.other)


def _ratio(found: Difference, key: str = "change") -> float:
    """Return how many times the planned value it is; ends of an interval that reach below 0 are cut."""
    one, change = found.one, getattr(found, key)
    assert one, "checked by _drawn"
    assert change is not None, "checked by _drawn"
    return max(_LEAST, float((one + change) / one))


def _bars(ax: Axes, known: Sequence[tuple[WhatIfRow, Difference]]) -> None:
    ratios = [_ratio(found) for _, found in known]
    low = max(_LEAST, min(1.0, min(ratios) / 1.1, *(_ratio(found, "lo") for _, found in known), 1 / 1.1))
    high = max(1.1, max(ratios) * 1.1, *(min(_ratio(found, "hi"), 2 * max(ratios)) for _, found in known))
    ax.set_xscale("log")
    ax.set_xlim(low / 1.02, high * 1.02)
    ax.set_ylim(len(known) - 0.4, -0.6)
    for i, (_, found) in enumerate(known):
        value, clear = _ratio(found), found.word in CLEAR_WORDS
        colour = COLOURS["s2"] if value > 1 else COLOURS["s1"]
        ax.barh(i, value - 1, left=1, height=0.62, color=colour if clear else "none", edgecolor=colour, linewidth=1.2)
        ends = [min(max(_ratio(found, key), low), high) for key in ("lo", "hi")]
        ax.plot(ends, [i, i], color=COLOURS["ink"], linewidth=1.2)
        for end in ends:
            ax.plot([end, end], [i - 0.14, i + 0.14], color=COLOURS["ink"], linewidth=1.2)
        ax.annotate(f"×{value:.3g}", (1.02, i), xycoords=("axes fraction", "data"), va="center")
    ax.axvline(1, color=COLOURS["ink"], linewidth=1)
    ax.set_ticks("y", range(len(known)), [row.label for row, _ in known])
    draw_grid(ax, "x")
    apart, ticks = math.log(high / low) / _MOST_TICKS, [1.0]
    for tick in sorted(_TICKS, key=lambda tick: abs(math.log(tick))):
        if low <= tick <= high and all(abs(math.log(tick / kept)) >= apart for kept in ticks):
            ticks.append(tick)
    ticks.sort()
    ax.set_ticks("x", ticks, [f"×{tick:g}" for tick in ticks])
