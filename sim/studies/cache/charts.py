"""Charts of a cache-only replay: the LRU curve in several orders, and the other policies."""

from __future__ import annotations

from collections.abc import Sequence

from reports.axes import spread
from reports.charts.axis_ticks import nice_log, scale_y, x_title, y_title
from reports.charts.canvas import Axes
from reports.charts.svg import COLOURS, SERIES, Chart, column_tips, drawing, legend_style, place, to_svg
from reports.charts.sweep_charts import end_labels
from reports.formatting import number, percent
from reports.table import Table
from sim.spec.units import human_bytes
from sim.studies.cache.findings import CLAIRVOYANT, capacity_words
from sim.studies.cache.study import CacheResult

_HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 340, 58, 36, 22, 52
_LABELS = 134  # the right margin where lines carry their names
_ROWS = 40
_ROOM = 0.15
"""Labels of capacities stand at least this share of the axis apart."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")


def orders_chart(result: CacheResult) -> Chart:
    """Draw LRU's whole curve: the trace's order, the same requests shuffled, and independent draws."""
    curve, ident = result.curve, "orders"
    title = "How much cache does LRU need, and how much is due to the order of requests?"
    shuffles = "a random order" if result.shuffles == 1 else f"the mean of {result.shuffles} random orders"
    caption = (
        "The gap between the trace's order and a shuffled one is locality: what sessions and bursts save. Shuffled: "
        f"{shuffles}. Independent draws: the same popularity, in the long run."
    )
    at = result.at
    desc = "LRU's miss ratio. " + " ".join(
        f"{capacity_words(result, c)}: {percent(real)} in the trace's order, {percent(shuffled)} shuffled."
        for c, real, shuffled in spread(list(zip(at.capacities, at.real, at.shuffled, strict=True)), 8)
    )
    lines = (
        ("the trace's order", curve.real, "s1", SERIES[0], "-"),
        ("shuffled (dashed)", curve.shuffled, "s2", SERIES[1], "--"),
        ("independent draws (Che, dotted)", curve.independent, "s6", SERIES[5], ":"),
    )
    shown = spread(list(zip(curve.capacities, curve.real, curve.shuffled, curve.independent, strict=True)), _ROWS)
    rows = [[capacity_words(result, c), *map(percent, ratios)] for c, *ratios in shown]
    head = ["capacity", *(label for label, *_ in lines)]
    table = Table("LRU's miss ratio", head, rows, "lru_curve.csv has every point of the curve.")
    with drawing(_HEIGHT) as figure:
        ax = place(figure, _LEFT, _TOP, _RIGHT, _BOTTOM)
        for _, values, _, colour, style in lines:
            ax.plot(curve.capacities, values, style, color=colour)
        seen = [float(value) for _, values, *_ in lines for value in values]
        _axes(ax, result, curve.capacities.tolist(), seen, "requests that miss")
        svg = to_svg(figure, ident, title, desc, column_tips([ax], [float(c) for c, *_ in shown], table))
    legend = [(label, f"var(--{name})") for label, _, name, *_ in lines]
    return Chart(ident, title, caption, desc, svg, table, legend, [legend_style(style) for *_, style in lines])


def policies_chart(result: CacheResult, *, of_bytes: bool) -> Chart:
    """Draw every policy at the given capacities.

    :param of_bytes: missed over requested bytes instead of requests.
    """
    ident = "policy-bytes" if of_bytes else "policies"
    what = "bytes that miss" if of_bytes else "requests that miss"
    title = "Which policy loads the fewest bytes?" if of_bytes else "Which policy misses least?"
    lines = [(policy, _ratios(result, policy, of_bytes)) for policy in result.policies]
    caption = f"Share of {what}, one mark a replay."
    if CLAIRVOYANT in result.policies:
        caption += " belady knows the future: " + (
            "no policy can miss less."
            if result.equal_sizes
            else "a strong reference where sizes differ, but not a bound."
        )
    desc, curve = _policies_desc(result, lines, what), result.curve
    rows = [[policy, *(percent(value) for value in values)] for policy, values in lines]
    table = Table(title, ["policy", *(capacity_words(result, c) for c in result.capacities)], rows)
    with drawing(_HEIGHT) as figure:
        ax = place(figure, _LEFT, _TOP, _LABELS, _BOTTOM)
        ends: list[tuple[float, tuple[str, str, float], str, str]] = []
        for index, (policy, values) in enumerate(lines):
            colour, style = _style(result.policies, policy)
            along = policy == "lru" and not of_bytes
            if along:  # every capacity between the marks is known
                inside = (curve.capacities >= result.capacities[0]) & (curve.capacities <= result.capacities[-1])
                ax.plot(curve.capacities[inside], curve.real[inside], color=colour, linewidth=1.5, zorder=3)
            marker = _MARKERS[index % len(_MARKERS)]
            ax.plot(
                result.capacities,
                values,
                linestyle="none" if along else style,
                color=colour,
                linewidth=1.5,
                marker=marker,
                markersize=6,
                markeredgecolor=COLOURS["paper"],
                markeredgewidth=0.8,
                zorder=3,
                clip_on=False,
            )
            ends.append((sum(values), (policy, colour, values[-1]), style, marker))
        _axes(ax, result, result.capacities, [value for _, values in lines for value in values], what)
        _ticks(ax, result, _apart(result.capacities))
        ends.sort(key=lambda end: end[0])  # labels of lines that end together are in the order of the lines before that
        end_labels(ax, [end[1] for end in ends], "both", [end[2] for end in ends], [end[3] for end in ends])
        turned = [list(column) for column in zip(table.head[1:], *(row[1:] for row in rows), strict=True)]
        by_capacity = Table("", ["", *result.policies], turned)
        svg = to_svg(figure, ident, title, desc, column_tips([ax], [float(c) for c in result.capacities], by_capacity))
    return Chart(ident, title, caption, desc, svg, table)


def _ratios(result: CacheResult, policy: str, of_bytes: bool) -> list[float]:
    return [
        point.miss_ratio if not of_bytes or point.byte_miss_ratio is None else point.byte_miss_ratio
        for point in result.row(policy)
    ]


def _style(policies: Sequence[str], policy: str) -> tuple[str, str]:
    """Return a policy's colour and line style: LRU has the colour of its curve; from the seventh on, dashed."""
    if policy == CLAIRVOYANT:
        return COLOURS["ink"], ":"
    others = [name for name in policies if name not in ("lru", CLAIRVOYANT)]
    turn = 0 if policy == "lru" else 1 + others.index(policy)
    return SERIES[turn % len(SERIES)], "-" if turn < len(SERIES) else "--"


def _policies_desc(result: CacheResult, lines: Sequence[tuple[str, list[float]]], what: str) -> str:
    parts = []
    for index, capacity in enumerate(result.capacities):
        values = ", ".join(f"{policy} {percent(ratios[index])}" for policy, ratios in lines)
        parts.append(f"{capacity_words(result, capacity)}: {values}.")
    return f"Share of {what}. {' '.join(parts)}"


def _axes(ax: Axes, result: CacheResult, capacities: Sequence[float], values: Sequence[float], what: str) -> None:
    """Set a logarithmic axis of capacities and one of shares.

    :param capacities: ascending; the axis ends a little beyond.
    """
    low, high = float(capacities[0]), float(capacities[-1])
    pad = (high / low) ** 0.02 if high > low else 1.5
    ax.set_xscale("log")
    ax.set_xlim(low / pad, high * pad)
    _ticks(ax, result, nice_log(low / pad, high * pad))
    scale_y(ax, values, "share")
    y_title(ax, what)
    x_title(ax, "slots" if result.by_slots else "capacity")


def _ticks(ax: Axes, result: CacheResult, places: Sequence[float]) -> None:
    ax.set_ticks("x", places, [number(at) if result.by_slots else human_bytes(at) for at in places])


def _apart(capacities: Sequence[int]) -> list[float]:
    """Return the capacities whose labels have room next to each other."""
    kept = [float(capacities[0])]
    share = (capacities[-1] / capacities[0]) ** _ROOM
    for capacity in capacities[1:]:
        if capacity >= kept[-1] * share:
            kept.append(float(capacity))
    return kept
