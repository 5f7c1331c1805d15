"""Charts of two runs on the same axes: what changes, latencies, stages, curves over a swept key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reports.axes import Axis, shorten, spread
from reports.charts.axis_ticks import TICKS, count_tick, nice_linear, scale_rows, seconds_tick, x_title
from reports.charts.latency_charts import STAGES, Curve, measured_quantiles, quantile_chart
from reports.charts.svg import COLOURS, SERIES, Chart, Heading, drawing, place, row_tips, to_svg
from reports.charts.sweep_charts import VISIBLE, Line, YAxis, line_chart
from reports.formatting import metric_words, percent, show
from reports.table import Table, numbers_table
from reports.text.metric_text import change_cell, relative_cell
from sim.results.catalogue import SHARES, UNITS
from sim.results.pairs import BETTER, WORSE
from sim.results.slo_terms import judged, split_term
from sim.spec.units import human_seconds
from sim.studies.compare.design_words import side_names
from sim.studies.compare.study import Comparison, Pair, key_metrics

A, B = COLOURS["s6"], SERIES[0]
"""Colours of the two runs: the first as what exists, the second as what is proposed."""
_COLOUR_OF = {BETTER: COLOURS["s3"], WORSE: COLOURS["slo"]}
_LEGEND = [("clearly better", "var(--s3)"), ("clearly worse", "var(--slo)"), ("neither", "var(--muted)")]
_MOST_DOTS = 24
_FARTHEST = 2.0
"""Relative changes are drawn up to this; beyond it an arrow points on."""
_LEFT, _RIGHT = 158, 92
_LABEL = 15
"""Letters that fit at the end of a line."""


@dataclass(frozen=True)
class Dot:
    """One change with its interval.

    :ivar text: written at the right.
    """

    label: str
    value: float
    low: float
    high: float
    word: str
    text: str


def charts_of(comparison: Comparison) -> list[Chart]:
    """Return the charts that fit: of one pair its metrics and distributions, of several the curves of what decides."""
    axes = comparison.axes
    if len(comparison.pairs) == 1:
        (pair,) = comparison.pairs
        found = [changes_chart(pair, key_metrics(comparison)), *_latencies(comparison, pair), stages_chart(pair)]
        return [chart for chart in found if chart is not None]
    charts: list[Chart | None] = []
    for name in comparison.judged:
        if any(pair.differences[name].word in _COLOUR_OF for pair in comparison.pairs if name in pair.differences):
            one = len(axes) == 1
            charts.append(curves_chart(comparison, axes[0], name) if one else points_chart(comparison, axes, name))
    return [chart for chart in charts if chart is not None]


def changes_chart(pair: Pair, names: Sequence[str]) -> Chart | None:
    """Draw the relative change of each metric with its interval."""
    dots = []
    for name in names:
        d = pair.differences.get(name)
        if d is not None and d.lo is not None and d.hi is not None and d.change is not None and d.one:
            change, low, high = (value / abs(d.one) for value in (d.change, d.lo, d.hi))
            dots.append(Dot(metric_words(name), change, low, high, d.word, relative_cell(d)))
    if not dots:
        return None
    caption = "Change from A to B as a share of A's value; bars are 95 % intervals. Left of 0 means lower, not worse."
    rows = [
        [metric_words(n), change_cell(d), relative_cell(d), d.word] for n in names if (d := pair.differences.get(n))
    ]
    table = Table("Changes from A to B", ["metric", "change", "relative", "B is"], rows, words=(3,))
    heading = Heading("changes", "What changes from A to B?", caption)
    return dots_chart(heading, dots, _signed(percent), "change", table)


def points_chart(comparison: Comparison, axes: Sequence[Axis], name: str) -> Chart | None:
    """Draw the change of one metric at each point with its interval."""
    dots, rows = [], []
    shorts = [axis.short_labels(16) for axis in axes]  # of all points at once: each reads all values
    for pair in comparison.pairs:
        d = pair.differences.get(name)
        if d is None:
            continue
        where = ", ".join(axis.point_label(pair.other) for axis in axes)
        rows.append([where, show(name, d.one, d.unit), show(name, d.other, d.unit), change_cell(d), d.word])
        if d.change is not None and d.lo is not None and d.hi is not None:
            parts = (labels[axis.index(pair.other)] for axis, labels in zip(axes, shorts, strict=True))
            short = shorten(", ".join(parts), 20)
            dots.append(Dot(short, d.change, d.lo, d.hi, d.word, relative_cell(d)))
    if not dots:
        return None
    words = metric_words(name)
    over = ", ".join(axis.words for axis in axes) or "point"
    left_out = f" {_MOST_DOTS} of {len(dots)} points, evenly spaced." if len(dots) > _MOST_DOTS else ""
    caption = f"B minus A by {over}, in percent of A at the right; bars are 95 % intervals of the difference.{left_out}"
    table = Table(f"Change of {words}", [over, "A", "B", "change", "B is"], rows, words=(4,))
    title = f"How much does {words} change from A to B?"
    heading = Heading(_ident("change", comparison, name), title, caption)
    return dots_chart(heading, spread(dots, _MOST_DOTS), _ticks(name), f"change of {words}", table)


def dots_chart(heading: Heading, dots: Sequence[Dot], tick: Callable[[float], str], what: str, table: Table) -> Chart:
    """Draw changes as dots with intervals, one below the other, on both sides of 0."""
    relative = what == "change"
    ends = [value for dot in dots for value in (dot.low, dot.high, dot.value, 0.0)]
    low, high = min(ends), max(ends)
    if relative:
        low, high = max(low, -_FARTHEST), min(high, _FARTHEST)
    pad = 0.06 * ((high - low) or 1.0)
    low, high = low - pad, high + pad
    desc = " ".join(f"{dot.label}: {dot.text}, {dot.word}." for dot in dots)
    with drawing(72 + 26 * len(dots)) as figure:
        ax = place(figure, _LEFT, 14, _RIGHT, 52)
        ax.set_xlim(low, high)
        ax.axvline(0, color=COLOURS["ink"], linewidth=1.0, zorder=2)
        for row, dot in enumerate(dots):
            colour = _COLOUR_OF.get(dot.word, COLOURS["muted"])
            ax.hlines(row, max(dot.low, low), min(dot.high, high), color=colour, linewidth=2.6, alpha=0.5)
            outside = ">" if dot.value > high else "<" if dot.value < low else ""
            clear = dot.word in _COLOUR_OF
            ax.plot(
                [min(max(dot.value, low), high)],
                [row],
                outside or "o",
                color=colour,
                zorder=4,
                clip_on=False,
                markerfacecolor=colour if clear else COLOURS["paper"],
                markeredgewidth=1.6,
            )
            ax.annotate(dot.text, (1, row), (9, 0), xycoords=("axes fraction", "data"), va="center")
        ticks = nice_linear(low, high, 5)
        ax.set_ticks("x", ticks, [tick(value) for value in ticks])
        scale_rows(ax, [dot.label for dot in dots])
        x_title(ax, what)
        lines = Table("", ["", "", ""], [[dot.label, dot.text, dot.word] for dot in dots])
        svg = to_svg(figure, heading.ident, heading.title, desc, row_tips(ax, range(len(dots)), lines))
    return Chart(heading.ident, heading.title, heading.caption, desc, svg, table, legend=_LEGEND)


def _signed(tick: Callable[[float], str]) -> Callable[[float], str]:
    def write(value: float) -> str:
        text = tick(abs(value))
        return text if abs(value) < 1e-12 else f"{'−' if value < 0 else '+'}{text}"

    return write


def _ticks(name: str) -> Callable[[float], str]:
    _, metric = split_term(name)
    if metric in SHARES:
        return _signed(lambda share: percent(share).replace(" %", " pp"))
    return _signed(seconds_tick if UNITS[metric] == "s" else count_tick)


def curves_chart(comparison: Comparison, axis: Axis, name: str) -> Chart | None:
    """Draw a metric of both runs over the swept key, with bands and the SLO."""
    of_all = zip(*((p.one, p.other) for p in comparison.pairs), strict=True)
    sides = [[judged(point, name)[0] for point in sorted(side, key=axis.index)] for side in of_all]
    _, metric = split_term(name)
    labels = [shorten(label, _LABEL) for label in side_names(comparison)]
    lines = [Line(label, colour, metric, side) for label, colour, side in zip(labels, (A, B), sides, strict=True)]
    if not any(point.metrics[metric].value is not None for side in sides for point in side):
        return None
    words, target = metric_words(name), comparison.terms.get(name)
    targets = {} if target is None else {f"SLO {show(name, target)}": target}
    both = [numbers_table("", axis, side, [metric]).rows for side in sides]
    rows = [[a[0], a[1], b[1]] for a, b in zip(*both, strict=True)]
    table = Table(f"{words} by {axis.words}", [axis.words, *side_names(comparison)], rows)
    kind = "share" if metric in SHARES else "s" if UNITS[metric] == "s" else "count"
    assert kind in TICKS, "an axis has ticks"
    title = f"How does {words} change with {axis.words}, in A and in B?"
    caption = "Bands are the 95 % interval of each alone, wider than that of their difference; hollow: unsettled."
    heading = Heading(_ident("curves", comparison, name), title, caption)
    return line_chart(heading, axis, YAxis(words, kind, targets), lines, table)


def _ident(kind: str, comparison: Comparison, name: str) -> str:
    """Return the id of the chart of what is judged; tenants have any name, so their terms go by number."""
    tenant, metric = split_term(name)
    number = f"-{comparison.judged.index(name)}" if tenant else ""
    return f"{kind}-{metric.replace('_', '-')}{number}"


def _latencies(comparison: Comparison, pair: Pair) -> list[Chart]:
    """Return the distributions of the latencies whose p99 clearly differs, by enough to be seen."""
    charts, (one, other) = [], (shorten(label, _LABEL) for label in side_names(comparison))
    for key, words in (("ttft_s", "TTFT"), ("e2e_s", "E2E")):
        found = pair.differences.get(key.replace("_s", "_p99_s"))
        curves: list[Curve] = []
        for label, colour, point in ((one, A, pair.one), (other, B, pair.other)):
            if point.cdf.get(key) and any(value for value in point.cdf[key]):
                curves.append((label, colour, *measured_quantiles(point, key)))
        if len(curves) == 2 and found is not None and found.word in _COLOUR_OF and abs(found.relative or 1.0) > VISIBLE:
            title = f"How is {words} distributed, in A and in B?"
            charts.append(quantile_chart(f"cdf-{key.removesuffix('_s')}", title, "", words, curves))
    return charts


def stages_chart(pair: Pair) -> Chart | None:
    """Draw the mean time of each stage in both runs."""
    parts = [pair.one.breakdown, pair.other.breakdown]
    stages = [(key, words) for key, (words, _) in STAGES.items() if any(part.get(key, 0.0) > 0 for part in parts)]
    if not stages or not all(parts):
        return None
    fixed = all(not part.get("prefill_s") for part in parts)
    names = ["service" if fixed and key == "decode_s" else words for key, words in stages]
    high = max(part.get(key, 0.0) for part in parts for key, _ in stages)
    rows = [
        [name, *(human_seconds(part.get(key, 0.0)) for part in parts)]
        for name, (key, _) in zip(names, stages, strict=True)
    ]
    totals = [human_seconds(sum(part.values())) for part in parts]
    table = Table("Mean time by stage", ["stage", "A", "B"], [*rows, ["in all", *totals]])
    title = "Where does the time go, in A and in B?"
    desc = " ".join(f"{name}: {a} in A, {b} in B." for name, a, b in rows)
    with drawing(66 + 52 * len(stages)) as figure:
        ax = place(figure, 112, 14, 92, 52)
        for row, (key, _) in enumerate(stages):
            for part, colour, letter, shift in zip(parts, (A, B), "AB", (-0.19, 0.19), strict=True):
                length = part.get(key, 0.0)
                ax.barh(row + shift, length, height=0.34, color=colour, linewidth=0)
                ax.annotate(
                    f"{letter} {human_seconds(length)}",
                    (length, row + shift),
                    (6, 0),
                    va="center",
                )
        ax.set_xlim(0, high)
        ticks = nice_linear(0, high, 5)
        ax.set_ticks("x", ticks, [seconds_tick(tick) for tick in ticks])
        scale_rows(ax, names)
        x_title(ax, "mean time")
        svg = to_svg(figure, "stages", title, desc, row_tips(ax, range(len(stages)), Table("", table.head, rows)))
    caption = f"The mean request, stage by stage: {totals[0]} in A, {totals[1]} in B. No intervals."
    return Chart("stages", title, caption, desc, svg, table)
