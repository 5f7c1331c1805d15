"""Charts of rollouts and faults: their impact, strategies side by side over time, and which version answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from reports.answers.points import any_value, impact_name
from reports.axes import Axis, in_order, shorten, spread
from reports.charts.axis_ticks import count_tick, moment_words, nice_linear, seconds_tick, y_title
from reports.charts.canvas import Axes
from reports.charts.svg import COLOURS, SERIES, Chart, Heading, column_tips, dash_of, drawing, hatched, place, to_svg
from reports.charts.sweep_charts import Line, YAxis, end_labels, line_chart
from reports.charts.timeline_chart import LATENCIES, draw_events, event_marks, time_axis
from reports.formatting import percent
from reports.table import Table, cell, point_rows
from sim.results.point import Point
from sim.spec.units import human_seconds
from sim.studies.changes.comparison import growing
from sim.studies.changes.findings import per_event

_ROWS, _MOMENTS = 25, 100
"""Times in a table, and of which the pointer shows values."""
_KINDS = ("stale_after_cutover", "mixed_version_responses", "wrong_adapter_served", "refused", "failed", "lost")
"""Ways in which requests are affected that a table shows where they occur."""
_STRIP, _PANEL = 58, 128
_PANELS = (
    ("ttft_p99_s", "p99 TTFT by arrival"),
    ("e2e_p99_s", "p99 E2E by arrival"),
    ("loads_per_s", "loads per second"),
)
_Panels = Sequence[tuple[str, str]]
_Times = tuple[float, float]
"""Start and end of what is shown, in seconds."""
_AROUND = 0.4
"""Room before the first event and after the last, as a share of the time between them; at least of the whole run."""
_LEAST = 0.12
_APART = 0.2
"""Share of the peak by which lines must differ somewhere to be drawn."""
_SAME = 0.03
"""Strips of versions whose shares never differ by more are drawn once."""
_VERSION_COLOURS = ("s6", "s1", "s2", "s4", "s3", "s5")
_CSS_OF = {"none": "var(--slo)"}


def impact_chart(points: Sequence[Point], axes: Sequence[Axis]) -> Chart | Table | None:
    """Return how many requests a rollout or fault affects, against one swept key or two: of categories a table."""
    some = [point for point in in_order(points, axes) if point.impact]
    if len(some) < 2 or not 1 <= len(axes) <= 2 or not any_value(some, name := impact_name(some)):
        return None
    axis = (growing(axes) or [each for each in axes if each.numeric] or list(axes))[0]
    if not axis.numeric:
        kinds = [kind for kind in _KINDS if any_value(some, kind)]
        cells = point_rows([per_event(point) for point in some], axes, {}, [name, *kinds])
        return Table("How many requests does it affect?", *cells, "Means of the replications, on the same traffic.")
    found: dict[str, list[Point]] = {}
    for point in some:
        label = ", ".join(each.short_label(point, 15) for each in axes if each is not axis)
        found.setdefault(label or "affected", []).append(point)
    rows = {label: in_order(some, [axis]) for label, some in found.items() if len(some) == len(axis.values)}
    if not 1 <= len(rows) <= len(SERIES):
        return None
    lines = [Line(label, colour, name, row) for colour, (label, row) in zip(SERIES, rows.items(), strict=False)]
    title = "How many requests does it affect?"
    caption = "Affected requests in one replication. Bands are 95 % intervals."
    columns = [[cell(point, name) for point in row] for row in rows.values()]
    body = [list(row) for row in zip(map(axis.label, axis.values), *columns, strict=True)]
    table = Table("Affected requests", [axis.words, *rows], body)
    return line_chart(Heading("impact", title, caption), axis, YAxis("affected requests", "count"), lines, table)


def moments_chart(points: Sequence[Point], axes: Sequence[Axis], day_s: int | None = None) -> Chart | None:
    """Draw p99 E2E and loads per second around the events, one line a point of a sweep (at most six)."""
    some = [p for p in in_order(points, axes) if _event_times(p) and p.timeline.e2e_p99_s] if axes else []
    some = spread(some, len(SERIES))
    if len(some) < 2:
        return None
    events = [time for p in some for time in _event_times(p)]
    times = some[0].timeline.t_s
    room = max(_AROUND * (max(events) - min(events)), _LEAST * (times[-1] - times[0]))
    shown = start, end = max(times[0], min(events) - room), min(times[-1], max(events) + room)
    labels = [shorten(", ".join(axis.short_label(p, 16) for axis in axes), 18) for p in some]
    title = "How slow are requests while it happens?"
    panels = [(key, what) for key, what in _PANELS if _differs(some, key, shown)]
    if not panels:
        return None
    parts = [
        f"{label} up to {', '.join(f'{_value_words(key, _peak(p, key, shown))} {what}' for key, what in panels)}"
        for label, p in zip(labels, some, strict=True)
    ]
    desc = f"From {moment_words(start, day_s)} to {moment_words(end, day_s)}: {'; '.join(parts)}."
    inside = spread(_within(some[0], "loads_per_s", shown)[0], _MOMENTS)
    table, every = (_moments_table(some, labels, panels, times, day_s) for times in (spread(inside, _ROWS), inside))
    strips = []
    with drawing(_PANEL * len(panels) + 48) as figure:
        for i, (key, what) in enumerate(panels):
            ax = place(figure, 58, 34 + _PANEL * i, 150, 48 + _PANEL * (len(panels) - 1 - i))
            _lines(ax, some, labels, key, shown, named=i == 0)
            time_axis(ax, start, end, last=i == len(panels) - 1, day_s=day_s)
            draw_events(ax, [(min(events), "begin")], named=i == 0)
            y_title(ax, what)
            strips.append(ax)
        colours = [colour for _ in panels for _, colour in zip(some, SERIES, strict=False)]
        svg = to_svg(figure, "moments", title, desc, column_tips(strips, inside, every, colours))
    caption = (
        "First replication of each point, the same traffic in all. Each p99 is taken over five short spans, none of "
        "them beyond the time at which something began."
    )
    return Chart("moments", title, caption, desc, svg, table)


def _event_times(point: Point) -> list[float]:
    """Return when something happened; what holds from the start has nothing before it to compare with."""
    return [event["t_s"] for event in point.events if event["t_s"] > 0]


def _within(point: Point, key: str, shown: _Times) -> tuple[list[float], list[float]]:
    pairs = zip(point.timeline.t_s, point.timeline.column(key), strict=True)
    inside = [(t, math.nan if v is None else v) for t, v in pairs if shown[0] <= t <= shown[1]]
    return [t for t, _ in inside], [v for _, v in inside]


def _peak(point: Point, key: str, shown: _Times) -> float:
    return max((v for v in _within(point, key, shown)[1] if not math.isnan(v)), default=0.0)


def _differs(points: Sequence[Point], key: str, shown: _Times) -> bool:
    """Return whether the lines of several points are ever apart by a part of their peak that one can see."""
    spans = zip(*(_within(point, key, shown)[1] for point in points), strict=False)
    known = [[v for v in values if not math.isnan(v)] for values in spans]
    return max((max(v) - min(v) for v in known if v), default=0.0) > _APART * max(_peak(p, key, shown) for p in points)


def _lines(ax: Axes, points: Sequence[Point], labels: Sequence[str], key: str, shown: _Times, *, named: bool) -> None:
    top, ends = 0.0, []
    for point, label, colour in zip(points, labels, SERIES, strict=False):
        times, values = _within(point, key, shown)
        ax.plot(times, values, color=colour, linewidth=1.5, linestyle=dash_of(colour))
        known = [value for value in values if not math.isnan(value)] or [0.0]
        top = max(top, *known)
        ends.append((label, colour, known[-1]))
    top = top * 1.08 or 1.0
    ticks = nice_linear(0, top, 4)
    ax.set_xlim(shown)
    ax.set_ylim(0, top)
    ax.set_ticks("y", ticks, [(seconds_tick if key in LATENCIES else count_tick)(t) for t in ticks])
    if named:
        end_labels(ax, ends)


def _moments_table(
    points: Sequence[Point], labels: Sequence[str], panels: _Panels, times: Sequence[float], day_s: int | None
) -> Table:
    columns, head = [], ["time"]
    for key, what in panels:
        for point, label in zip(points, labels, strict=True):
            head.append(f"{label}: {what}")
            columns.append((key, point.timeline.t_s, point.timeline.column(key)))
    rows = [[moment_words(time, day_s), *(_cell(key, t, c, time) for key, t, c in columns)] for time in times]
    return Table("Around the events, first replication of each point", head, rows)


def _cell(key: str, times: Sequence[float], column: Sequence[float | None], time: float) -> str:
    value = _value_at(times, column, time)
    return "–" if value is None or math.isnan(value) else _value_words(key, value)


def _value_words(key: str, value: float) -> str:
    return human_seconds(value) if key in LATENCIES else f"{value:.3g}"


def _value_at(times: Sequence[float], column: Sequence[float | None], time: float) -> float | None:
    """Return the value of the span around a time; None after the last one. Runs of several lengths have other spans.

    :param times: the middles of equal spans.
    """
    i = int(time / (2 * times[0]))
    return column[i] if i < len(column) else None


def version_chart(points: Sequence[Point], axes: Sequence[Axis], day_s: int | None = None) -> Chart | None:
    """Draw which version answers the requests that arrive, as stacked areas: one strip a point (at most six)."""
    alike: list[list[Point]] = []
    for point in (p for p in in_order(points, axes) if p.version_mix.get("versions")):
        same = next((group for group in alike if _same_mix(group[0], point)), None)
        alike.append([point]) if same is None else same.append(point)
    if not alike:
        return None
    alike = spread(alike, len(SERIES))
    some = [group[0] for group in alike]
    names = sorted({name for p in some for name in p.version_mix["versions"]}, key=lambda n: (n == "none", n))
    title = "Which version answers?"
    desc = "Shares of arrivals by the version of their first token. " + " ".join(
        _mix_words(group, axes) for group in alike
    )
    strip = 150 if len(some) == 1 else _STRIP + 34
    times = max((p.version_mix["t_s"] for p in some), key=lambda each: float(each[-1]))
    table, every = (_mix_table(some, axes, names, spread(times, most), day_s) for most in (_ROWS, _MOMENTS))
    strips = []
    with drawing(strip * len(some) + 48 + 6) as figure:
        for i, point in enumerate(some):
            ax = place(figure, 58, 34 + strip * i, 24, 54 + strip * (len(some) - 1 - i))
            _stack(ax, point.version_mix, names)
            time_axis(ax, times[0], times[-1], last=i == len(some) - 1, day_s=day_s)
            draw_events(ax, event_marks(point.events, times[0], times[-1]), named=not axes)
            y_title(ax, _strip_title(alike[i], axes) if axes else "share of arrivals", 0 if axes else 46)
            strips.append(ax)
        svg = to_svg(figure, "versions", title, desc, column_tips(strips, spread(times, _MOMENTS), every))
    caption = (
        "First replication: shares of the requests that arrive in a short span, by the version of their first token."
    )
    legend = [(_version_words(name), _CSS_OF.get(name, f"var(--{_colour(name)})")) for name in names]
    styles = [_colour(name) for name in names]
    return Chart("versions", title, caption, desc, svg, table, legend, styles)


def _same_mix(one: Point, other: Point) -> bool:
    mixes = one.version_mix["versions"], other.version_mix["versions"]
    if len(one.version_mix["t_s"]) != len(other.version_mix["t_s"]):
        return False
    nothing = [0.0] * len(one.version_mix["t_s"])
    pairs = (
        zip(mixes[0].get(name, nothing), mixes[1].get(name, nothing), strict=True) for name in {**mixes[0], **mixes[1]}
    )
    return all(abs(a - b) <= _SAME for shares in pairs for a, b in shares)


def _strip_title(points: Sequence[Point], axes: Sequence[Axis]) -> str:
    return shorten("; ".join(", ".join(axis.short_label(point, 40) for axis in axes) for point in points), 78)


def _version_words(name: str) -> str:
    return "refused or failed" if name == "none" else f"version {name}"


def _colour(name: str) -> str:
    return "slo" if name == "none" else _VERSION_COLOURS[(int(name) - 1) % len(_VERSION_COLOURS)]


def _stack(ax: Axes, mix: dict[str, Any], names: Sequence[str]) -> None:
    shares = [mix["versions"].get(name, [0.0] * len(mix["t_s"])) for name in names]
    base = [0.0] * len(mix["t_s"])
    for name, share in zip(names, shares, strict=True):
        top = [a + b for a, b in zip(base, share, strict=True)]
        ax.fill_between(mix["t_s"], base, top, **hatched(COLOURS[_colour(name)]))
        base = top
    ax.set_ylim(0, 1)
    ax.set_ticks("y", [0, 0.5, 1], [percent(tick) for tick in (0, 0.5, 1)])


def _mix_words(points: Sequence[Point], axes: Sequence[Axis]) -> str:
    last = {name: shares[-2] for name, shares in points[0].version_mix["versions"].items()}
    start = f"{_strip_title(points, axes)} ends with " if axes else "At the end "
    return f"{start}{', '.join(f'{percent(share)} {_version_words(name)}' for name, share in last.items())}."


def _mix_table(
    points: Sequence[Point], axes: Sequence[Axis], names: Sequence[str], times: Sequence[float], day_s: int | None
) -> Table:
    columns, head = [], ["time"]
    for point in points:
        for name in names:
            if name in point.version_mix["versions"] and name != "1":
                head.append(f"{_strip_title([point], axes)}: {_version_words(name)}" if axes else _version_words(name))
                columns.append((point.version_mix["t_s"], point.version_mix["versions"][name]))
    rows = []
    for time in times:
        shares = [_value_at(middles, column, time) for middles, column in columns]
        rows.append([moment_words(time, day_s), *("–" if share is None else percent(share) for share in shares)])
    return Table("Shares of arrivals by version", head, rows, "The rest is version 1.")
