"""Tables of slices: what the requests of each tenant, pool, group of adapters or replica got, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from reports.axes import Axis, in_order, spread
from reports.formatting import interval, metric_words, percent, plural, show, size_words
from reports.table import Table
from reports.text.metric_text import verdict_words, with_interval
from reports.text.setup_text import memory_of
from sim.results.fleet_costs import SLICE_COST
from sim.results.model import Setup
from sim.results.point import Point, SliceResult, TenantResult
from sim.results.verdict import unserved, verdict
from sim.spec.units import human_bytes


def _count(value: float) -> str:
    return f"{value:,.0f}"


_FACTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "replicas": ("replicas", _count),
    "gpus": ("GPUs", _count),
    "device": ("device", str),
    "adapters": ("adapters", _count),
    "adapter_bytes": ("adapter size", size_words),
    "role": ("role", str),
    "requests": ("requests", _count),
    "request_share": ("of all", percent),
    "completed": ("completed", _count),
    "loads": ("loads", _count),
    "unserved": ("refused or failed", _count),
}
"""Facts of slices that are no metrics of a fleet: their words, and how a value is shown."""
_OF_GROUPS = ("adapters", "adapter_bytes", "requests", "miss_ratio", "ttft_p50_s", "ttft_p99_s", "e2e_p99_s")
_OF_REPLICAS = ("requests", "completed", "miss_ratio", "loads", "gpu_utilization", "e2e_p99_s")
_OF_POOLS = (
    *("role", "replicas", "gpus", "device", "requests", "request_share"),
    *("miss_ratio", "gpu_utilization", "ttft_mean_s", "ttft_p99_s", "e2e_p99_s"),
)
_OF_TIMES = ("requests", "request_share", "slo_attainment", "miss_ratio", "ttft_p50_s", "ttft_p99_s", "e2e_p99_s")
_OF_TENANTS = (
    *("requests", "unserved", "ttft_mean_s", "ttft_p99_s", "e2e_mean_s", "e2e_p99_s"),
    *("miss_ratio", "output_tokens_per_s"),
)
_MONEY = ("revenue_usd_per_month", "cost_share", "usd_per_month", "margin_usd_per_month")
_MOST_ROWS = 200
_SHARED_OUT = "Costs are shared out by prompt and output tokens."

Lead = Sequence[tuple[str, Sequence[str]]]
"""Columns that name a slice: heads and cells."""


def slice_table(
    caption: str, lead: Lead, slices: Sequence[SliceResult], names: Sequence[str], note: str, *, bounds: bool = False
) -> Table:
    """Return one row a slice; unsettled values carry a mark, and what no slice has is left out.

    :param names: of facts and metrics; the cost follows, where there is one.
    :param bounds: whether metrics have their intervals, for which a page has room.
    """
    columns = [(name, [_cell(name, one, bounds) for one in slices]) for name in dict.fromkeys((*names, SLICE_COST))]
    shown = [(name, cells) for name, cells in columns if set(cells) != {"–"}]
    heads = [_FACTS[name][0] if name in _FACTS else metric_words(name) for name, _ in shown]
    rows = [list(row) for row in zip(*(cells for _, cells in (*lead, *shown)), strict=True)]
    marked = "* unsettled." if any(" *" in cell for row in rows for cell in row) else ""
    return Table(caption, [*(head for head, _ in lead), *heads], rows, f"{marked} {note}".strip())


def _cell(name: str, one: SliceResult, bounds: bool) -> str:
    metric, fact = one.metrics.get(name), one.facts.get(name)
    if metric is not None and metric.value is not None:
        between = interval(name, metric) if bounds else ""
        text = show(name, metric.value, metric.unit) + (f" ({between})" if between else "")
        return text if metric.settled else f"{text} *"
    if fact is None or fact == "" or (name == "adapter_bytes" and not fact):
        return "–"
    return _FACTS[name][1](fact) if name in _FACTS else show(name, fact)


def pools_table(point: Point, where: str, *, bounds: bool = False) -> Table | None:
    """Return one row a pool, in a fleet of several."""
    pools, note = point.pools, "All replications, measured requests."
    if any("role" in pool.facts for pool in pools):
        note += " A request, and all that it waits for, is counted in the pool that answers it."
    lead = [("pool", [pool.name for pool in pools])]
    return slice_table(f"Pools{where}", lead, pools, _OF_POOLS, note, bounds=bounds) if pools else None


def memory_table(setup: Setup | None) -> Table | None:
    """Return what each part of GPU and host memory takes, in one replica of each pool and in all."""
    pools = [] if setup is None else memory_of(setup)
    if not pools:
        return None
    parts: dict[str, list[int]] = {}
    for _, use in pools:
        slots, copies = plural(use.slots or 0, "adapter slot"), f"copies of {plural(use.copies, 'adapter')}"
        named = {
            "weights": use.weights,
            (slots if len(pools) == 1 and use.slots else "adapters"): use.adapters,
            "engine": use.engine,
            "KV cache": use.kv,
            (f"host memory: {copies}" if len(pools) == 1 else "host memory: copies"): use.host,
            "host memory: KV": use.host_kv,
        }
        for name, size in named.items():
            parts.setdefault(name, []).append(size)
    counts = [use.replicas for _, use in pools]
    head = [
        "",
        *(f"each replica of {pool}" if pool else "each replica" for pool, _ in pools),
        *([f"all {sum(counts):,}"] if sum(counts) > 1 else []),
    ]
    rows = []
    for name, sizes in parts.items():
        total = sum(count * size for count, size in zip(counts, sizes, strict=True))
        rows.append([name, *map(human_bytes, sizes), *([human_bytes(total)] if sum(counts) > 1 else [])])
    return Table("What memory holds", head, [row for row in rows if {*row[1:]} != {human_bytes(0)}])


def groups_table(point: Point, where: str) -> Table | None:
    """Return one row for the base model and one for all adapters, if both are asked for, one for each kind of adapter,
    and one for each band of popularity."""
    if not point.groups or point.traffic.get("base_share") == 1.0:
        return None
    base = "the base model and all adapters, then " if point.traffic.get("base_share") else ""
    note = f"Groups: {base}by kind, then by popularity."
    return _groups(point.groups, f"Groups of {'requests' if base else 'adapters'}{where}", note, bounds=True)


def times_table(point: Point, where: str, *, bounds: bool = False) -> Table | None:
    """Return one row for each part of the day, or of another cycle that the rate repeats."""
    times, note = point.times, "By when requests came, in all cycles that the rate went through."
    if not times:
        return None
    lead, names = [("time", [one.name for one in times])], [*_OF_TIMES, *times[0].metrics]  # and what the SLO is about
    return slice_table(f"Times{where}", lead, times, names, note, bounds=bounds)


def base_model_table(point: Point) -> Table | None:
    """Return one row for the base model and one for all adapters; None where all are for one of these."""
    if point.traffic.get("base_share", 0.0) in (0.0, 1.0):
        return None
    return _groups(point.groups[:2], "Requests to the base model and to adapters", "", bounds=False)


def _groups(groups: Sequence[SliceResult], caption: str, note: str, *, bounds: bool) -> Table:
    priced = any(SLICE_COST in one.facts for one in groups)
    lead = [("group", [one.name for one in groups])]
    note = f"{note} {_SHARED_OUT}".strip() if priced else note
    return slice_table(caption, lead, groups, _OF_GROUPS, note, bounds=bounds)


def replicas_table(point: Point, where: str) -> Table | None:
    """Return what each replica did in the first replication, and how unevenly."""
    if not point.replicas:
        return None
    note, skew = "First replication, measured requests.", point.metrics.get("replica_load_skew")
    if skew is not None and skew.value is not None:
        times = with_interval("replica_load_skew", skew)
        note += f" Over all replications the busiest replica gets {times} times the mean."
    names = [f"{one.name} ({pool})" if (pool := one.facts["pool"]) else one.name for one in point.replicas]
    return slice_table(f"Replicas{where}", [("replica", names)], point.replicas, _OF_REPLICAS, note)


def tenants_table(points: Sequence[Point], axes: Sequence[Axis] = ()) -> Table | None:
    """Return one row for each point and tenant; None without tenants."""
    shown = _tenants(points, axes)
    if not shown:
        return None
    costs = all(SLICE_COST in point.metrics for point, _ in shown)
    lead, keys = _names(shown, axes), len(axes) + 1
    verdicts, slo, slices = {}, [], []
    for row, (point, tenant) in enumerate(shown):
        own = point.of_tenant(tenant)
        if tenant.slo:
            verdicts[row, keys] = verdict(own, tenant.slo)
        slo.append(verdict_words(own, tenant.slo) if tenant.slo else "–")
        lost, total = unserved(own)
        cost = {SLICE_COST: (point.metrics[SLICE_COST].value or 0.0) * tenant.token_share} if costs else {}
        slices.append(SliceResult(tenant.name, {"requests": total, "unserved": lost, **cost}, tenant.metrics))
    anything_lost = any(one.facts["unserved"] for one in slices)
    names = [name for name in _OF_TENANTS if anything_lost or name != "unserved"]
    rest = f"intervals and more metrics{_of_all(points, shown)}"
    note = f"{_SHARED_OUT if costs else ''} tenants.csv has {rest}.".strip()
    table = slice_table("Tenants", [*lead, *([("SLO", slo)] if verdicts else [])], slices, names, note)
    optional = tuple(range(len(table.head) - 1, keys + 3, -1))
    return replace(table, words=tuple(range(keys)), verdicts=verdicts, optional=optional, keys=keys)


def money_table(points: Sequence[Point], axes: Sequence[Axis]) -> Table | None:
    """Return what each tenant pays and costs, one row for each point and tenant; None where none pays."""
    if not any(tenant.price for point in points for tenant in point.tenants):
        return None
    shown, keys = _tenants(points, axes), len(axes) + 1
    slices = [SliceResult(tenant.name, {}, tenant.money) for _, tenant in shown]
    priced = any("usd_per_month" in one.metrics for one in slices)
    note = f"{_SHARED_OUT} A margin is revenue less cost." if priced else ""
    note = note or "fleet.price adds what each tenant costs, and its margin."
    if rest := _of_all(points, shown):
        note += f" tenants.csv has more{rest}."
    table = slice_table("What tenants pay", _names(shown, axes), slices, _MONEY, note, bounds=True)
    optional = (table.head.index(metric_words("cost_share")),) if priced else ()
    return replace(table, words=tuple(range(keys)), optional=optional, keys=keys)


def _tenants(points: Sequence[Point], axes: Sequence[Axis]) -> list[tuple[Point, TenantResult]]:
    return spread([(point, tenant) for point in in_order(points, axes) for tenant in point.tenants], _MOST_ROWS)


def _of_all(points: Sequence[Point], shown: Sequence[Any]) -> str:
    """Return which rows only the file has; empty where all are shown."""
    total = sum(len(point.tenants) for point in points)
    return "" if len(shown) == total else f", of all {total:,} rows; {len(shown)} are shown, evenly spaced"


def _names(shown: Sequence[tuple[Point, TenantResult]], axes: Sequence[Axis]) -> Lead:
    labels = [(axis.words, [axis.point_label(point) for point, _ in shown]) for axis in axes]
    return [*labels, ("tenant", [tenant.name for _, tenant in shown])]
