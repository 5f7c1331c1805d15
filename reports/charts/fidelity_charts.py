"""Charts that compare predictions with measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from reports.charts.axis_ticks import count_tick, nice_log, scale_log, seconds_tick, x_title, y_title
from reports.charts.canvas import Axes
from reports.charts.svg import COLOURS, SERIES, Chart, column_tips, drawing, legend_style, place, spot_tips, to_svg
from reports.table import Table

REGIME_COLOURS = {
    "unsaturated": ("s1", SERIES[0], "o"),
    "slot-limited": ("s2", SERIES[1], "^"),
    "kv-or-compute-limited": ("s3", SERIES[2], "s"),
}
"""CSS variable, stand-in colour and marker of each regime: regimes differ in shape as well."""

BAND = 1.25
"""Factor up to which a prediction lies inside the band."""
_SIDE, _LEFT, _TOP, _RIGHT, _BOTTOM = 430, 66, 20, 16, 52


def is_within(measured: float, predicted: float) -> bool:
    """Return whether a prediction lies inside the band."""
    return 1 / BAND <= predicted / measured <= BAND


def draw_agreement(ax: Axes, low: float, high: float, tick: Callable[[float], str]) -> None:
    """Draw the line of equal values and the band around it, on two equal logarithmic axes."""
    ends = [low, high]
    below, above = [end / BAND for end in ends], [end * BAND for end in ends]
    ax.fill_between(ends, below, above, color=COLOURS["muted"], alpha=0.16, linewidth=0)
    ax.plot(ends, ends, color=COLOURS["muted"], linewidth=1)
    scale_log(ax, "x", low, high, tick)
    scale_log(ax, "y", low, high, tick)
    ax.grid()


def scatter_chart(
    name: str, title: str, what: str, points: Sequence[tuple[float, float, str, str]], table: Table
) -> Chart:
    """Draw predicted against measured values, both on logarithmic axes.

    :param points: measured, predicted, regime, and what the run is called.
    """
    within = sum(is_within(measured, predicted) for measured, predicted, *_ in points)
    caption = (
        f"One mark a run. On the line prediction and measurement agree; the band is a factor of {BAND} either way and "
        f"holds {within / len(points):.0%} of {len(points):,} runs."
    )
    desc = f"{what}: {within} of {len(points)} predictions lie within a factor of {BAND} of the measurement."
    scale = 1e-3 if name.endswith("_ms") else 1.0
    tick = seconds_tick if name.endswith("_ms") else count_tick
    ident = f"scatter-{name.replace('_', '-')}"
    values = [value * scale for measured, predicted, *_ in points for value in (measured, predicted)]
    low, high = min(values) / 1.3, max(values) * 1.3
    with drawing(_SIDE + 30, _SIDE + 60) as figure:
        ax = place(figure, _LEFT, _TOP, _RIGHT, _BOTTOM)
        draw_agreement(ax, low, high, tick)
        for regime, (_, colour, marker) in REGIME_COLOURS.items():
            some = [(measured * scale, predicted * scale) for measured, predicted, r, _ in points if r == regime]
            if some:
                xs, ys = zip(*some, strict=True)
                ax.plot(xs, ys, marker, color=colour, markersize=4.2, alpha=0.7, markeredgewidth=0)
        _titles(ax, f"measured {what}", f"predicted {what}")
        marks = [(measured * scale, predicted * scale) for measured, predicted, *_ in points]
        said = [
            (label, f"measured {tick(float(f'{m:.3g}'))}", f"predicted {tick(float(f'{p:.3g}'))}")
            for (*_, label), (m, p) in zip(points, marks, strict=True)
        ]
        svg = to_svg(figure, ident, title, desc, spot_tips(ax, marks, said))
    legend = [(regime, f"var(--{variable})") for regime, (variable, _, _) in REGIME_COLOURS.items()]
    styles = [legend_style("", marker) for _, _, marker in REGIME_COLOURS.values()]
    return Chart(ident, title, caption, desc, svg, table, legend, styles)


def slots_chart(ident: str, label: str, runs: Sequence[tuple[int, Mapping[str, float], Mapping[str, float]]]) -> Chart:
    """Draw p50 TTFT against slots of one workload.

    :param runs: slots, what was measured with them, and what was predicted.
    """
    slots = [count for count, _, _ in runs]
    lines = (
        ("measured p50", [measured["ttft_p50_ms"] / 1e3 for _, measured, _ in runs], SERIES[1], "o-"),
        ("predicted p50", [predicted["ttft_p50_ms"] / 1e3 for _, _, predicted in runs], SERIES[0], "s--"),
    )
    best, *_ = min(runs, key=lambda run: run[1]["ttft_p99_ms"])
    title = f"How many slots for {label}?"
    chosen, *_ = min(runs, key=lambda run: run[2]["ttft_p99_ms"])
    same = "the same" if best == chosen else str(chosen)
    caption = f"p50 TTFT by slots. Best measured p99 TTFT: {best} slots; predicted: {same}."
    head = ["slots", "p50 TTFT measured", "predicted", "p99 TTFT measured", "predicted "]
    rows = [
        [
            str(count),
            *(
                seconds_tick(float(f"{side[name] / 1e3:.3g}"))
                for name in ("ttft_p50_ms", "ttft_p99_ms")
                for side in sides
            ),
        ]
        for count, *sides in runs
    ]
    desc = f"{title} " + " ".join(f"{row[0]} slots: measured {row[1]}, predicted {row[2]}." for row in rows)
    values = [value for _, ys, _, _ in lines for value in ys]
    table = Table(title, head, rows)
    with drawing(300) as figure:
        ax = place(figure, _LEFT, 30, 24, _BOTTOM)
        for _, ys, colour, style in lines:
            ax.plot(slots, ys, style, color=colour, markersize=5)
        pad = (max(slots) / min(slots)) ** 0.05
        ax.set_xscale("log")
        ax.set_xlim(min(slots) / pad, max(slots) * pad)
        ax.set_ticks("x", slots, _thinned(slots))
        low, high = min(values) / 1.4, max(values) * 1.4
        ax.set_yscale("log")
        ax.set_ylim(low, high)
        ticks = nice_log(low, high)
        ax.set_ticks("y", ticks, [seconds_tick(value) for value in ticks])
        ax.grid(axis="y")
        _titles(ax, "slots", "p50 TTFT")
        svg = to_svg(figure, ident, title, desc, column_tips([ax], slots, table))
    legend = [("measured", "var(--s2)"), ("predicted", "var(--s1)")]
    styles = [legend_style("-", "o"), legend_style("--", "s")]
    return Chart(ident, title, caption, desc, svg, table, legend, styles)


def _thinned(slots: Sequence[int]) -> list[str]:
    """Return labels of a logarithmic axis, without those that would touch the one before."""
    words, last = [], 0.0
    for value in slots:
        room = value >= 1.2 * last
        words.append(str(value) if room else "")
        last = value if room else last
    return words


def _titles(ax: Axes, below: str, left: str) -> None:
    x_title(ax, below)
    y_title(ax, left, 0)
