"""What happened when: a timeline of the first replication, with the events of rollouts and faults."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from reports.axes import spread
from reports.charts.axis_ticks import (
    count_tick,
    draw_grid,
    moment_words,
    nice_linear,
    seconds_tick,
    time_ticks,
    x_title,
    y_title,
)
from reports.charts.canvas import Axes
from reports.charts.svg import COLOURS, Chart, column_tips, drawing, place, to_svg
from reports.charts.sweep_charts import end_labels
from reports.formatting import number
from reports.table import Table
from sim.results.point import Point
from sim.spec.units import human_seconds

Series = tuple[str, str, str]
"""Key of the timeline, label, colour."""
LATENCIES = ("ttft_mean_s", "ttft_p99_s", "e2e_mean_s", "e2e_p99_s")
"""Keys of the timeline that are times of requests."""
_DASHES = ("-", (0, (4, 1.2)))
"""Styles of the lines of a strip, which are two at most."""
_EACH = 104
_ROWS = 60
_APART = 0.03
"""Events closer than this share of the axis get one label."""
_CHARACTER = 0.022
"""Share of the axis that a character of a label takes."""
_MOST_NAMED = 4
_TITLED, _LETTER, _GAP = 22.0, 7.2, 4
"""How far the title of a strip reaches over it, the width of a letter and the room after a label, in chart units."""
_TITLE = 0.3
"""Share of the axis above which its title stands."""


def timeline_chart(
    point: Point, where: str, day_s: int | None = None, rates: Sequence[tuple[float, float]] = ()
) -> Chart | None:
    """Draw arrivals, loads, running and waiting requests over the first replication; latencies where things change.

    :param day_s: time of day at its start, in seconds from midnight, where the scenario has one.
    :param rates: when the scenario changes its rate, and the requests a second from then on.
    """
    values: dict[str, list[float]] = {}
    for key, column in point.timeline.columns().items():
        missing = math.nan if key in LATENCIES else 0.0  # nothing measured is a gap in a latency
        values[key] = [missing if value is None else float(value) for value in column]
    times = values.get("t_s") or []
    panels: list[tuple[str, list[Series]]] = [
        ("requests", [("running", "running", "s1"), ("waiting", "waiting", "s2")]),
        ("loads", [("loads_in_flight", "loads under way", "s5")]),
        ("per second", [("arrivals_per_s", "arrivals", "s6"), ("loads_per_s", "loads", "s5")]),
    ]
    if point.timeline.replicas:
        replicas = [("replicas", "provisioned", "s1"), ("serving_replicas", "serving", "s6")]
        panels = [("replicas", replicas), *panels]
    if point.events or point.timeline.replicas:
        panels = [
            ("TTFT by arrival", [("ttft_p99_s", "p99", "s2"), ("ttft_mean_s", "mean", "s1")]),
            ("E2E by arrival", [("e2e_p99_s", "p99", "s2"), ("e2e_mean_s", "mean", "s1")]),
            *panels,
        ]
    panels = [(w, [s for s in series if any(not math.isnan(v) for v in values.get(s[0], []))]) for w, series in panels]
    panels = [panel for panel in panels if panel[1]]
    if len(times) < 2 or not panels:
        return None
    title = "What happened when?"
    peaks = [
        f"{_name(key, label, what)} up to {_value_words(key, max(_known(values[key])))}"
        for what, series in panels
        for key, label, _ in series
    ]
    desc = f"First replication over {human_seconds(times[-1])}, in spans: {', '.join(peaks)}."
    marks = event_marks(point.events, times[0], times[-1])
    added = _added(values.get("replicas", []))
    happened: dict[int, list[str]] = {}
    for at, text in [
        *((event["t_s"], f"{i} {event['text']}") for i, event in enumerate(point.events, 1)),
        *((times[i], f"+{count} replica{'s' * (count > 1)}") for i, count in added),
        *((at, f"{rate:.3g}/s from here") for at, rate in rates),
    ]:
        happened.setdefault(max(0, min(int(at / (2 * times[0])), len(times) - 1)), []).append(text)
    picked = sorted({*spread(range(len(times)), _ROWS), *spread(sorted(happened), _ROWS)})
    colours = [COLOURS[colour] for _, series in panels for _, _, colour in series]
    table, every = (_numbers(values, some, panels, day_s, happened) for some in (picked, range(len(times))))
    with drawing(_EACH * len(panels) + 48) as figure:
        strips = []
        for i, (what, series) in enumerate(panels):
            ax = place(figure, 58, 34 + _EACH * i, 142, 48 + _EACH * (len(panels) - 1 - i))
            strips.append(ax)
            _panel(ax, values, times, what, series)
            time_axis(ax, times[0], times[-1], last=i == len(panels) - 1, day_s=day_s)
            draw_events(ax, marks, named=i == 0)
            _draw_steps(ax, [(times[j], f"+{count}") for j, count in added], named=what == "replicas")
            _draw_steps(ax, [(at, f"{rate:.3g}/s") for at, rate in rates], named=what == "per second")
        svg = to_svg(figure, "timeline", title, desc, column_tips(strips, times, every, colours, len(times)))
    caption = f"First replication{where}, warm-up included; means over short spans.{_events_words(point.events, day_s)}"
    caption += f"{' +: replicas added.' * bool(added)}{' Above arrivals: the rate in the scenario.' * bool(rates)}"
    return Chart("timeline", title, caption, desc, svg, table)


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _value_words(key: str, value: float) -> str:
    return human_seconds(value) if key in LATENCIES else number(value)


def _name(key: str, label: str, what: str) -> str:
    """Return what a line shows, where its strip isn't named."""
    return f"{label} {what}" if key in LATENCIES or what in ("per second", "replicas") else label


def _numbers(
    values: dict[str, list[float]],
    picked: Sequence[int],
    panels: Sequence[tuple[str, Sequence[Series]]],
    day_s: int | None,
    happened: Mapping[int, Sequence[str]],
) -> Table:
    times = values["t_s"]
    series = [(key, _name(key, label, what)) for what, some in panels for key, label, _ in some]
    rows = []
    for i in picked:
        cells = [values[key][i] for key, _ in series]
        texts = [
            "–" if math.isnan(v) else _value_words(key, v) if key in LATENCIES else f"{v:.3g}"
            for v, (key, _) in zip(cells, series, strict=True)
        ]
        rows.append([moment_words(times[i], day_s), *texts, *(["; ".join(happened.get(i, ()))] if happened else [])])
    note = f"{len(picked)} of {len(times)} spans." if len(picked) < len(times) else ""
    head = ["time", *(label for _, label in series), *(["event"] if happened else [])]
    return Table("First replication over time", head, rows, note, words=(len(head) - 1,) if happened else ())


def _added(counts: Sequence[float]) -> list[tuple[int, int]]:
    """Return the spans in which replicas are added, and how many: a mean over a span may rise in two steps."""
    rises = [b - a for a, b in itertools.pairwise(counts)]
    runs = [list(some) for up, some in itertools.groupby(range(len(rises)), lambda i: rises[i] > 0.01) if up]
    return [(run[0] + 1, max(1, round(sum(rises[i] for i in run)))) for run in runs]


def _draw_steps(ax: Axes, steps: Sequence[tuple[float, str]], *, named: bool) -> None:
    """Draw a thin line at each step; above its strip, where there is room, its label: a rate holds until the next."""
    start, end = ax.get_xlim()
    room, free = ax.bbox.width, _TITLED
    places = [(at - start) / (end - start) * room for at, _ in steps]
    for (at, label), place_, until in zip(steps, places, [*places, room + _TITLED][1:], strict=True):
        ax.axvline(at, color=COLOURS["muted"], linewidth=0.6, alpha=0.6, zorder=1)
        left, width = max(place_, free), len(label) * _LETTER + _GAP
        if named and (left + width <= until if label.endswith("/s") else left == place_):
            ax.annotate(label, (left / room, 1), (0, 3), xycoords="axes fraction")
            free = left + width


def _panel(
    ax: Axes, values: dict[str, list[float]], times: Sequence[float], what: str, series: Sequence[Series]
) -> None:
    """Draw one strip of the timeline."""
    every, ends = [], []
    for (key, label, colour), dash in zip(series, _DASHES, strict=False):
        column = values[key]
        ax.plot(times, column, color=COLOURS[colour], linewidth=1.2, linestyle=dash)
        if key not in LATENCIES:
            ax.fill_between(times, 0, column, color=COLOURS[colour], alpha=0.12, linewidth=0)
        known = _known(column)
        every += known
        ends.append((label, COLOURS[colour], known[-1]))
    top = max(every) * 1.08 or 1.0
    ticks = nice_linear(0, top, 3)
    ax.set_ylim(0, top)
    show_tick = seconds_tick if series[0][0] in LATENCIES else count_tick
    ax.set_ticks("y", ticks, [show_tick(tick) for tick in ticks])
    end_labels(ax, ends, dashes=_DASHES)
    y_title(ax, what)


def time_axis(ax: Axes, start: float, end: float, *, last: bool, day_s: int | None = None) -> None:
    """Set limits, ticks and grid of an axis over simulated time; only the last strip names its ticks.

    :param day_s: time of day at its start, in seconds from midnight: then the ticks are times of day.
    """
    ax.set_xlim(start, end)
    ticks, labels = time_ticks(start, end, day_s)
    ax.set_ticks("x", ticks, labels if last else [""] * len(ticks))
    draw_grid(ax, "y")
    if last:
        x_title(ax, "simulated time" if day_s is None else "time of day")


def event_marks(events: Sequence[dict[str, Any]], start: float, end: float) -> list[tuple[float, str]]:
    """Return where lines stand and their labels: the numbers of the events, one label for those close together."""
    marks: list[tuple[float, list[int]]] = []
    widest = _CHARACTER * len(f"{len(events)}–{len(events)}") if len(events) > 9 else 0.0  # most labels are ranges then
    for place_, event in enumerate(events, 1):
        at = min(max(event["t_s"], start), end)
        if marks and at - marks[-1][0] < max(_APART, widest) * (end - start):
            marks[-1][1].append(place_)
        else:
            marks.append((at, [place_]))
    return [(at, str(some[0]) if len(some) == 1 else f"{some[0]}–{some[-1]}") for at, some in marks]


def draw_events(ax: Axes, marks: Sequence[tuple[float, str]], *, named: bool) -> None:
    """Draw a line where something happened, with its number above the first strip; inside it, below its title."""
    start, end = ax.get_xlim()
    for at, label in marks:
        ax.axvline(at, color=COLOURS["muted"], linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)
        look: dict[str, Any] = {"offset": (0, 3), "ha": "center", "va": "bottom"}
        if at - start < _TITLE * (end - start):
            look = {"offset": (3, -2), "ha": "left", "va": "top"}
        if named:
            ax.annotate(label, (at, 1), xycoords=("data", "axes fraction"), color=COLOURS["ink"], **look)


def _events_words(events: Sequence[dict[str, Any]], day_s: int | None) -> str:
    """Return what the numbered lines are."""
    if not events:
        return ""
    some = enumerate(events[:_MOST_NAMED], 1)
    named = [f"{i} {event['text']} ({moment_words(event['t_s'], day_s)})" for i, event in some]
    more = " The table of events lists all." if len(events) > _MOST_NAMED else ""
    return f" Lines: {'; '.join(named)}.{more}"
