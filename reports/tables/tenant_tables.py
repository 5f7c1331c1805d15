"""The tables of tenants: what the requests of each got, whether its own SLO is met, and what it pays and costs."""

from __future__ import annotations

from collections.abc import Sequence

from reports.axes import Axis, in_order, spread
from reports.formatting import interval, metric_words, show
from reports.table import Table
from reports.text.metric_text import verdict_words
from sim.results.point import Metric, Point, TenantResult
from sim.results.verdict import verdict

_COLUMNS = ("ttft_mean_s", "ttft_p99_s", "e2e_mean_s", "e2e_p99_s", "miss_ratio", "output_tokens_per_s")
_COST = "usd_per_month"
_MONEY = ("revenue_usd_per_month", "cost_share", "usd_per_month", "margin_usd_per_month")
_MOST_ROWS = 200


def tenants_table(points: Sequence[Point], axes: Sequence[Axis] = (), where: str = "") -> Table | None:
    """Return one row for each point and tenant; None without tenants.

    :param where: which of several points it is about, for the caption.
    """
    rows_of = [(point, tenant) for point in in_order(points, axes) for tenant in point.tenants]
    if not rows_of:
        return None
    shown = spread(rows_of, _MOST_ROWS)
    names = [name for name in _COLUMNS if any(_applies(tenant.metrics.get(name)) for _, tenant in shown)]
    lost = any(_unserved(tenant) for _, tenant in shown)
    judged = any(tenant.slo for _, tenant in shown)
    costs = all(_COST in point.metrics for point, _ in shown)
    head = [*(axis.words for axis in axes), "tenant", *(["SLO"] if judged else []), "requests"]
    head += [*(["refused or failed"] if lost else []), *map(metric_words, names)]
    head += [metric_words(_COST)] if costs else []
    rows: list[list[str]] = []
    verdicts = {}
    for point, tenant in shown:
        own = point.of_tenant(tenant)
        if tenant.slo:
            verdicts[len(rows), len(axes) + 1] = verdict(own, tenant.slo)
        slo = [verdict_words(own, tenant.slo) if tenant.slo else "–"] if judged else []
        refused = [f"{_unserved(tenant):,.0f}"] if lost else []
        cells = [_cell(name, tenant.metrics.get(name)) for name in names]
        cost = [show(_COST, (point.metrics[_COST].value or 0.0) * tenant.token_share)] if costs else []
        labels = [axis.point_label(point) for axis in axes]
        requests = _count(tenant, "completed") + _count(tenant, "unfinished") + _unserved(tenant)
        rows.append([*labels, tenant.name, *slo, f"{requests:,.0f}", *refused, *cells, *cost])
    keys = len(axes) + 1
    optional = tuple(range(len(head) - 1, keys + 3, -1))
    notes = ["* unsettled."] if any(" *" in cell for row in rows for cell in row) else []
    notes += ["Costs are shared out by prompt and output tokens."] if costs else []
    note = " ".join([*notes, "tenants.csv has intervals and more metrics."])
    return Table(f"Tenants{where}", head, rows, note, tuple(range(keys)), verdicts, optional, keys)


def money_table(points: Sequence[Point], axes: Sequence[Axis] = (), where: str = "") -> Table | None:
    """Return what each tenant pays and costs, one row for each point and tenant; None where none pays.

    :param where: which of several points it is about, for the caption.
    """
    rows_of = [(point, tenant) for point in in_order(points, axes) for tenant in point.tenants]
    if not any(tenant.price for _, tenant in rows_of):
        return None
    shown = spread(rows_of, _MOST_ROWS)
    names = [name for name in _MONEY if any(name in tenant.money for _, tenant in shown)]
    head = [*(axis.words for axis in axes), "tenant", *map(metric_words, names)]
    rows = [
        [
            *(axis.point_label(point) for axis in axes),
            tenant.name,
            *(_with_interval(name, tenant.money.get(name)) for name in names),
        ]
        for point, tenant in shown
    ]
    keys = len(axes) + 1
    priced = "usd_per_month" in names
    note = "" if priced else "fleet.price adds what each tenant costs, and its margin."
    note = "Costs are shared out by prompt and output tokens. A margin is revenue less cost." if priced else note
    optional = (head.index(metric_words("cost_share")),) if priced else ()
    return Table(f"What tenants pay{where}", head, rows, note, tuple(range(keys)), optional=optional, keys=keys)


def _with_interval(name: str, metric: Metric | None) -> str:
    if metric is None or metric.value is None:
        return "–"
    between = interval(name, metric)
    return show(name, metric.value, metric.unit) + (f" ({between})" if between else "")


def _cell(name: str, metric: Metric | None) -> str:
    if metric is None or metric.value is None:
        return "–"
    return show(name, metric.value, metric.unit) + ("" if metric.settled else " *")


def _applies(metric: Metric | None) -> bool:
    return metric is not None and metric.value is not None


def _count(tenant: TenantResult, name: str) -> float:
    metric = tenant.metrics.get(name)
    return 0.0 if metric is None or metric.value is None else metric.value


def _unserved(tenant: TenantResult) -> float:
    return _count(tenant, "refused") + _count(tenant, "failed")
