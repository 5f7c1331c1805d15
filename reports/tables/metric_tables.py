"""Tables of the report: key numbers, every metric, what was simulated and what could limit it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from reports.answers.limits import is_fixed, limits
from reports.answers.points import compares_routers, has_rollout, impact_name, is_changed
from reports.answers.verdicts import main_metric, missed_term
from reports.axes import Axis, in_order, spread
from reports.formatting import calibration, interval, metric_words, percent, popular_words, show
from reports.table import Table, brackets_note, cell, point_rows, table_note
from reports.text.metric_text import matrix_note, remark, verdict_words
from sim.results.catalogue import UNITS, shown_in
from sim.results.point import Point
from sim.results.slo_terms import metric_of, with_tenants
from sim.results.verdict import by_need, strained, term_verdict, verdict
from sim.spec.units import human_bytes, human_seconds

ROLLOUT_TILES = ("rollout_ttft_p99_s", "rollout_e2e_p99_s", "rollout_peak_loads_per_s")
_RESOURCES = {
    "loader": "loader",
    "slots": "slots",
    "kv": "KV memory",
    "seats": "batch slots (max_num_seqs)",
    "compute": "compute",
    "full_models": "loads of whole models",
}
"""What a point can run out of, by its key in ``Point.capacity``."""
_COSTS = ("usd_per_m_tokens", "usd_per_month")
"""What tables of several points show of costs."""
_OF_ADAPTERS = ("miss_ratio", "delayed_hit_ratio", "hit_ratio", "byte_miss_ratio", "loads_per_request")
_ALL_METRICS_UP_TO = 40
_ALL_ACROSS_UP_TO = 8
_MOST_POINTS = 1000
_TENANT_TILES = 2


@dataclass(frozen=True)
class Tile:
    """One key number.

    :ivar bounds: the sampling interval, ``calibration`` that of the profile's draws, or nothing.
    :ivar mark: how it compares with the SLO: ``met``, ``not met``, ``unclear`` or nothing.
    """

    words: str
    value: str
    bounds: str
    calibration: str
    target: str
    mark: str
    settled: bool


def shown_metrics(points: Sequence[Point]) -> list[str]:
    """Return the metrics that mean something at one of these points, in the order of tables."""
    names = [name for name in UNITS if any(name in p.metrics and p.metrics[name].applies for p in points)]
    if not is_changed(points) and not any(point.value("failed") for point in points):
        names = [name for name in names if name != "failed"]
    if all(point.traffic.get("base_share") == 1.0 for point in points):  # nothing can miss
        names = [name for name in names if name not in _OF_ADAPTERS]
    return names


def make_tiles(point: Point, slo_terms: Mapping[str, float]) -> list[Tile]:
    """Return the key numbers of a point; SLO terms come first, with those of tenants that are nearest to a miss."""
    terms = with_tenants(slo_terms, point)
    of_tenants = by_need(point, {name: target for name, target in terms.items() if name not in slo_terms})
    during = ROLLOUT_TILES if has_rollout([point]) else ()
    changed = (impact_name([point]), *during) if is_changed([point]) else ()
    asked = [*slo_terms, *of_tenants[:_TENANT_TILES]]
    names = [*asked, *(name for name in (*changed, *shown_in("tile")) if name not in slo_terms)]
    tiles = []
    if is_fixed(point) and "ttft_p99_s" not in slo_terms:
        names.remove("ttft_p99_s")  # the first token is the whole answer
    for name in names:
        metric = metric_of(point, name)
        if metric is None or (metric.value is None and name not in asked):
            continue
        target = terms.get(name)
        tiles.append(
            Tile(
                metric_words(name),
                show(name, metric.value, metric.unit) if metric.value is not None else "–",
                interval(name, metric) if metric.value is not None else remark(name, metric),
                calibration(name, metric),
                "" if target is None else f"SLO {show(name, target)}",
                "" if target is None else term_verdict(point, name, target),
                metric.settled or metric.value is None,
            )
        )
    return tiles[: 7 if changed else 8]


def metrics_table(point: Point) -> Table:
    """Return every metric of one point with its intervals."""
    drawn = bool(point.calibration)
    rows = []
    for name in shown_metrics([point]):
        metric = point.metrics.get(name)
        if metric is not None:
            value = "–" if metric.value is None else show(name, metric.value, metric.unit)
            more = (
                [calibration(name, metric) or ("–" if metric.calibration_lo is None else "no change")] if drawn else []
            )
            rows.append([metric_words(name), value, interval(name, metric) or "–", *more, remark(name, metric)])
    head = ["metric", "value", "95 % interval", *(["calibration"] if drawn else []), "remark"]
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    note = f"calibration: {calibration_note(point)}" if drawn else ""
    caption = "Every metric with its 95 % interval" + (" and its calibration interval" if drawn else "")
    return Table(caption, head, rows, note, words=(4 if drawn else 3,), optional=(3,) if drawn else (), keys=2)


def calibration_note(point: Point) -> str:
    """Return in one sentence what a calibration interval is made of."""
    draws, of = point.calibration["draws"], point.calibration["of"]
    which = f"{draws} of the {of:,} draws" if of > draws else f"the {draws} draws"
    return f"95 %, from {which} of the profile's costs on the same traffic; not included in the 95 % interval."


def points_table(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> Table:
    """Return one row for each point: every metric for few points, the key ones for many."""
    measured = [name for name in shown_metrics(points) if any(p.value(name) is not None for p in points)]
    names = [n for n in measured if len(points) <= _ALL_METRICS_UP_TO or n in shown_in("key") or n in slo_terms]
    shown = spread(in_order(points, axes), _MOST_POINTS)
    if len(axes) == 1 and len(points) <= _ALL_ACROSS_UP_TO:
        # One row for each metric and one column for each point, to compare along a line.
        axis = axes[0]
        rows = [[metric_words(name), *(cell(p, name) for p in shown)] for name in names]
        if slo_terms:
            rows.insert(0, ["SLO", *(verdict(p, slo_terms) for p in shown)])
        head = [axis.words, *(axis.point_label(p) for p in shown)]
        return Table("Every metric with its 95 % interval", head, rows, brackets_note(shown))
    head, rows = point_rows(shown, axes, slo_terms, names)
    note = table_note(len(points), len(shown))
    if len(names) < len(measured):
        note = f"{note} The key metrics; points.csv has all {len(measured)}.".strip()
    note = f"{note} {brackets_note(points)}".strip()
    return Table("All points with 95 % intervals", head, rows, note)


def terminal_table(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> Table:
    """Return one row for each point with what decides: narrow enough for a terminal, without intervals."""
    rest: tuple[str, ...] = ("miss_ratio", "loader_utilization", "throughput_rps")
    if is_changed(points):
        during = ("rollout_ttft_p99_s", "rollout_peak_loads_per_s") if has_rollout(points) else ()
        rest = (impact_name([point for point in points if point.impact]), *during)
    elif compares_routers(points, axes):
        rest = ("miss_ratio", "loads_per_request", "replica_load_skew")
    cached = ("prefix_hit_ratio", "host_prefix_hit_ratio")
    wanted = dict.fromkeys([*slo_terms, "ttft_p99_s", "e2e_p99_s", *rest, *cached, *_COSTS])
    if all(is_fixed(point) for point in points):
        wanted.pop("ttft_p99_s", None)  # the first token is the whole answer
    names = [name for name in wanted if any(p.value(name) is not None for p in points)]
    head = [*(axis.words for axis in axes), *(["SLO"] if slo_terms else []), *map(metric_words, names), "limit"]
    keys = len(axes)
    rows: list[list[str]] = []
    verdicts = {}
    for point in in_order(points, axes):
        if slo_terms:
            verdicts[len(rows), keys] = verdict(point, slo_terms)
        judged = [verdict_words(point, slo_terms)] if slo_terms else []
        cells = [_short_cell(point, name) for name in names]
        limit = limits(point, strained(point, with_tenants(slo_terms, point)))[0].name
        labels = [axis.point_label(point) for axis in axes]
        rows.append([*labels, *judged, *cells, "–" if limit == "none" else limit])
    # A narrow terminal keeps the verdict, the first metric, and the limit.
    optional = tuple(range(len(head) - 2, keys + bool(slo_terms), -1))
    words = tuple(index for index, axis in enumerate(axes) if not axis.numeric)
    return Table("Points", head, rows, _starred(rows), words, verdicts, optional, keys)


def matrix_table(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> Table | None:
    """Return a sweep of two keys as rows and columns, with the verdict and the main metric in each cell.

    None where other metrics matter more (rollouts and faults), or there are not two keys. The verdicts are marks, so
    this needs a terminal that shows them.
    """
    if len(axes) != 2 or is_changed(points):
        return None
    down, across = axes
    name = main_metric(points, slo_terms)
    rows = [[down.label(value), *["–"] * len(across.values)] for value in down.values]
    verdicts = {}
    for point in points:
        row, column = down.index(point), 1 + across.index(point)
        found = missed_term(point, slo_terms)
        rows[row][column] = _short_cell(point, name) + ("" if found in (None, name) else f" ({metric_words(found)})")
        if slo_terms:
            verdicts[row, column] = verdict(point, slo_terms)
    head = [down.words, *map(across.label, across.values)]
    note = matrix_note(metric_words(name), across.words, slo_terms)
    return Table("Points", head, rows, f"{note} {_starred(rows)}".strip(), verdicts=verdicts)


def _short_cell(point: Point, name: str) -> str:
    """Return a value without its interval, and a star if it is unsettled."""
    metric = point.metrics.get(name)
    if metric is None or not metric.applies:
        return "–"
    starred = "" if metric.settled or metric.value is None else " *"
    return show(name, metric.value, metric.unit) + starred


def _starred(rows: Sequence[Sequence[str]]) -> str:
    return "* unsettled: the report says why" if any(" *" in cell for row in rows for cell in row) else ""


def traffic_table(point: Point) -> Table | None:
    """Return what was simulated, as it turned out."""
    words = {
        "requests": "requests measured",
        "adapters": "adapters requested",
        "rate_rps": "arrival rate",
        "clients": "concurrent requests (closed loop)",
        "base_share": "requests for the base model",
        "top_1pct": "traffic of the hottest 1 %",
        "top_10pct": "traffic of the hottest 10 %",
        "top_20pct": "traffic of the hottest 20 %",
        "effective_adapters": "effective adapters",
    }
    rows = []
    for key, label in words.items():
        value = point.traffic.get(key)
        if value is not None:
            shares = key == "base_share" or "pct" in key
            text = f"{value:.4g}/s" if key == "rate_rps" else percent(value) if shares else f"{value:,.0f}"
            rows.append([label, text])
    return Table("The traffic as simulated", ["", "value"], rows) if rows else None


_FEW_ADAPTERS = 10


def traffic_sentence(points: Sequence[Point]) -> str:
    """Return how concentrated the simulated traffic is, over all points."""
    known = [point.traffic for point in points if point.traffic.get("effective_adapters") is not None]
    if not known:
        return ""

    def span(key: str, show_one: Callable[[float], str]) -> str:
        shown = [show_one(value) for value in sorted(traffic[key] for traffic in known)]
        return shown[0] if shown[0] == shown[-1] else f"{shown[0]} to {shown[-1]}"

    clients = {traffic.get("clients") for traffic in known}
    loop = f"a closed loop of {span('clients', '{:,.0f}'.format)} concurrent requests; " if None not in clients else ""
    tops = " / ".join(span(f"top_{part}pct", percent) for part in (1, 10, 20))
    whole = "{:,.0f}".format
    known = [{"base_share": 0.0, **traffic} for traffic in known]
    count, effective = span("adapters", whole), span("effective_adapters", whole)
    hottest, spread_out = (
        f"the hottest 1 / 10 / 20 % of {count} adapters get {tops}",
        f"about as spread out as {popular_words(effective)}",
    )
    if max(traffic["adapters"] for traffic in known) < _FEW_ADAPTERS:  # these shares are of one or two
        hottest = f"the hottest of {count} adapters gets {span('top_1pct', percent)}"
    if all(traffic["base_share"] == 1 for traffic in known):
        return "Traffic: all requests are for the base model."
    if any(traffic["base_share"] for traffic in known):
        base = f"{span('base_share', percent)} of the requests are for the base model"
        if count == "1":
            return f"Traffic: {loop}{base}, all others for one adapter."
        return f"Traffic: {loop}{base}; of the others, {hottest}; they are {spread_out}."
    if count == "1":
        return f"Traffic: {loop}all requests are for one adapter."
    return f"Traffic: {loop}{hottest} of the requests; it is {spread_out}."


def capacity_table(point: Point) -> Table | None:
    """Return what could limit the point, and how heavily each resource is used."""
    rows = []
    for part, words in _RESOURCES.items():
        values = getattr(point.capacity, part)
        use = {} if values is None else asdict(values)
        if any(value is not None for value in use.values()):
            share = use.get("blocked_share")
            waited = "–" if share is None else f"{percent(share)} of the time"
            of_bytes = part == "slots" and use["slots"] is None
            rows.append(["memory for adapters" if of_bytes else words, _use(use), waited, _amount(use)])
    head = ["resource", "used", "requests waited for it", "amount"]
    return Table("What could limit this point", head, rows, words=(1, 2)) if rows else None


def _use(values: Mapping[str, float | None]) -> str:
    for key, word in (("utilization", "of the time"), ("peak_share", "at the peak")):
        value = values.get(key)
        if value is not None:
            load = values.get("offered_load")
            used, offered = f"{percent(value)} {word}", "" if load is None else percent(load)
            return used if offered in ("", percent(value)) else f"{used}, offered load {offered}"
    peak = values.get("in_use_peak")
    if peak is None:
        return "–"
    return f"up to {human_bytes(peak) if values['slots'] is None else format(peak, ',.0f')} wanted at once"


def _amount(values: Mapping[str, float | None]) -> str:
    for key in ("loaders", "slots", "tokens", "limit", "replicas"):
        value = values.get(key)
        if value is not None:
            words = "batch slots" if key == "limit" else key
            return f"{value:,.0f} {words.removesuffix('s') if round(value) == 1 else words}"
    return "–"


def wall_words(manifest: Mapping[str, object]) -> str:
    """Return how long the simulation took, in words."""
    wall = manifest.get("wall_s")
    return human_seconds(float(wall)) if isinstance(wall, (int, float)) else "unknown"
