"""Charts of a trace: LRU's miss ratio over slots in several orders, and the rate over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reports.axes import spread
from reports.charts.axis_ticks import nice_log, scale_y, time_ticks, x_title, y_title
from reports.charts.svg import COLOURS, SERIES, WIDTH, Chart, Heading, column_tips, drawing, legend_style, place, to_svg
from reports.formatting import number, percent, plural
from reports.table import Table
from sim.spec.units import human_seconds
from sim.studies.trace.facts import FitCheck, TraceFacts
from sim.studies.trace.findings import points

_HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 330, 58, 36, 22, 52
_MOST_MARKERS = 40
_MOST_ROWS = 60
_LEAST_SPANS = 3


@dataclass(frozen=True)
class SlotLine:
    """Miss ratios over slots.

    :ivar label: in the legend.
    :ivar series: 1 to 6: the colour.
    :ivar style: as ``Axes.plot`` takes it: ``-``, ``--``, ``:``.
    :ivar marker: at each point; empty for none.
    """

    label: str
    ratios: Sequence[float]
    series: int
    style: str
    marker: str = ""


def curve_chart(facts: TraceFacts, table: Table | None) -> Chart | None:
    """Draw LRU's curve in the trace's order, shuffled, and of independent draws; None for fewer than two points."""
    curve = facts.curve
    if curve is None or table is None or len(curve.slots) < 2:
        return None
    lines = (
        SlotLine("the trace's order", curve.real, 1, "-", "o"),
        SlotLine("shuffled (dashed)", curve.shuffled, 2, "--"),
        SlotLine("independent draws (Che, dotted)", curve.independent, 6, ":"),
    )
    caption = (
        "Share of requests that miss in an LRU cache that starts empty. The gap between the trace's order and the same "
        "requests shuffled is locality: what sessions and bursts save."
    )
    at_a_time = None if facts.sessions is None else facts.sessions.at_a_time
    if at_a_time is not None and curve.slots[0] <= at_a_time <= curve.slots[-1]:
        caption += " The vertical line is the mean number of sessions under way."
    else:
        at_a_time = None
    heading = Heading("curve", "How many slots does the traffic need?", caption)
    return slots_chart(heading, curve.slots, lines, table, at_a_time)


def check_chart(fit: FitCheck | None) -> Chart | None:
    """Draw the curve of the part that was not fitted, that of the fitted traffic and that of independent draws."""
    if fit is None or len(fit.slots) < 2:
        return None
    lines = (
        SlotLine("trace, second part", fit.real, 1, "-", "o"),
        SlotLine("fitted traffic (dashed, squares)", fit.synthetic, 3, "--", "s"),
        SlotLine("independent draws (dotted)", fit.independent, 6, ":"),
    )
    caption = (
        f"Fitted to the first {plural(fit.requests_fitted, 'request')}, compared with the "
        f"{number(fit.requests_checked)} after them, which the fit did not use."
    )
    heading = Heading("check", "Does fitted traffic miss as often as the trace?", caption)
    return slots_chart(heading, fit.slots, lines, check_curve_table(fit))


def check_curve_table(fit: FitCheck) -> Table:
    """Return the miss ratios behind the check at every slot count, with their difference."""
    rows = [
        [number(slots), percent(real), percent(made), percent(draws), points(made - real)]
        for slots, real, made, draws in zip(fit.slots, fit.real, fit.synthetic, fit.independent, strict=True)
    ]
    head = ["slots", "trace", "fitted traffic", "independent draws", "fitted − trace"]
    return Table("Miss ratio of LRU on the part that was not fitted", head, rows)


def slots_chart(
    heading: Heading, slots: Sequence[int], lines: Sequence[SlotLine], table: Table, vertical: float | None = None
) -> Chart:
    """Draw miss ratios over slots on a logarithmic axis.

    :param slots: ascending, at least two.
    :param vertical: slots at which a vertical line stands, or None.
    """
    desc = f"{heading.title} " + " ".join(
        f"{plural(slots[i], 'slot')}: {', '.join(f'{line.label} {percent(line.ratios[i])}' for line in lines)}."
        for i in spread(range(len(slots)), 8)
    )
    pad = (slots[-1] / slots[0]) ** 0.03
    with drawing(_HEIGHT) as figure:
        ax = place(figure, _LEFT, _TOP, _RIGHT, _BOTTOM)
        if vertical is not None:
            ax.axvline(vertical, color=COLOURS["muted"], linewidth=1)
        for line in lines:
            marker = line.marker if len(slots) <= _MOST_MARKERS else ""
            ax.plot(
                slots,
                line.ratios,
                linestyle=line.style,
                color=SERIES[line.series - 1],
                marker=marker or "none",
                markersize=4.5,
                clip_on=False,
                zorder=3,
            )
        ax.set_xscale("log")
        ax.set_xlim(slots[0] / pad, slots[-1] * pad)
        ticks = _powers_of_two(slots[0], slots[-1])
        ax.set_ticks("x", ticks, [number(tick) for tick in ticks])
        scale_y(ax, [ratio for line in lines for ratio in line.ratios], "share")
        y_title(ax, "requests that miss")
        x_title(ax, "slots")
        svg = to_svg(figure, heading.ident, heading.title, desc, column_tips([ax], slots, table))
    legend = [(line.label, f"var(--s{line.series})") for line in lines]
    styles = [legend_style(line.style, line.marker) for line in lines]
    return Chart(heading.ident, heading.title, heading.caption, desc, svg, table, legend, styles)


def _powers_of_two(low: int, high: int, most: int = 10) -> list[float]:
    """Return powers of two, or of four, …, inside an interval: people choose such slots; else 1, 2, 5 and tens."""
    powers = range(math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9) + 1)
    found = [2.0**power for power in powers]
    found = found[:: math.ceil(len(found) / most)] if found else found
    return found if len(found) > 1 else nice_log(low, high)


def rate_chart(facts: TraceFacts) -> Chart | None:
    """Draw the rate over time with its mean and what chance alone would do; None for too short a trace."""
    times, rates = facts.timeline.get("t_s", []), facts.timeline.get("rate_rps", [])
    if len(times) < _LEAST_SPANS or not facts.span_s > 0:
        return None
    width, mean = times[1] - times[0], facts.rate_rps
    around = 1.96 * math.sqrt(mean / width)
    low, high = max(0.0, mean - around), mean + around
    inside = sum(low <= rate <= high for rate in rates) / len(rates)
    title = "How steady is the rate?"
    caption = (
        f"Requests per second in spans of {human_seconds(width)}. Dashed: the mean, {number(mean)}/s. Band: where 95 % "
        f"of the spans of Poisson arrivals would lie; {percent(round(inside, 2))} do."
    )
    desc = f"Rate over time: mean {number(mean)} requests/s, " + ", ".join(
        f"{word} {number(rate)} at {human_seconds(times[rates.index(rate)])}"
        for word, rate in (("lowest", min(rates)), ("highest", max(rates)))
    )
    shown = spread(list(zip(times, rates, strict=True)), _MOST_ROWS)
    rows = [[human_seconds(t), f"{number(rate)}/s"] for t, rate in shown]
    note = (
        ""
        if len(rows) == len(times)
        else f"{len(rows)} of {len(times)} spans, evenly spaced; trace.json has all of them."
    )
    table = Table("Rate over time", ["middle of the span", "rate"], rows, note)
    with drawing(_HEIGHT, WIDTH) as figure:
        ax = place(figure, _LEFT, _TOP, _RIGHT, _BOTTOM)
        ax.axhspan(low, high, color=COLOURS["muted"], alpha=0.16, linewidth=0)
        edges = [time - width / 2 for time in times] + [times[-1] + width / 2]
        ax.stairs(rates, edges, color=SERIES[0], linewidth=1.3, baseline=None)
        ax.axhline(mean, color=COLOURS["ink"], linewidth=1, linestyle=(0, (5, 3)))
        ax.set_xlim(0.0, edges[-1])
        ticks, labels = time_ticks(0.0, edges[-1], None)
        ax.set_ticks("x", ticks, labels)
        scale_y(ax, [*rates, high], "count")
        y_title(ax, "requests/s")
        x_title(ax, "time since the first request")
        svg = to_svg(figure, "rate", title, desc, column_tips([ax], [t for t, _ in shown], table))
    legend = [("rate", "var(--s1)"), ("mean (dashed)", "currentColor")]
    return Chart("rate", title, caption, desc, svg, table, legend, ["line", "dashed"])
