"""What a fleet costs, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reports.axes import make_axes, point_words
from reports.formatting import money, number, percent, show
from sim.results.fleet_costs.prices import HOURS_PER_MONTH, is_priced
from sim.results.point import Point
from sim.results.verdict import MET, verdict
from sim.spec.units import human_seconds


def cost_sentences(point: Point, load: float | None = None) -> list[str]:
    """Return what tokens, requests and months cost, and what idle GPUs do; none without a price.

    :param load: the traffic as a share of what full batches could serve, where that is known.
    """
    usage = point.usage
    if usage is None or usage.price is None:
        return _revenue(point)
    costs = {name: point.metrics[name].value for name in usage.metrics if name in point.metrics}
    month, each = costs.get("usd_per_month") or 0.0, costs.get("usd_per_m_tokens")
    if "mean_replicas" in point.metrics:
        gpus = month / (usage.price * HOURS_PER_MONTH)
        said = [f"{number(gpus)} GPUs on average at {money(usage.price)} an hour cost {money(month)} a month"]
        if seconds := point.timeline.t_s:  # another time of day may take other replicas
            said[0] += f", if all of it is like the {human_seconds(seconds[0] + seconds[-1])} that were simulated"
        said[0] += "."
        load = None  # it refers to the largest fleet
    else:
        fleet = f"{usage.gpus:,} GPU{'s' if usage.gpus != 1 else ''} at {money(usage.price)} an hour"
        said = [f"{fleet} cost{'' if usage.gpus != 1 else 's'} {money(month)} a month."]
    if each is not None:
        answers = show("usd_per_m_output_tokens", costs["usd_per_m_output_tokens"])
        said.append(
            f"That is {money(each)} per million tokens, prompts included, or {answers} per million output tokens."
        )
    elif costs.get("usd_per_request") is not None:
        said.append(f"That is {show('usd_per_request', costs['usd_per_request'])} per request.")
    idle = costs.get("idle_usd_per_month")
    if idle is not None and month and round(idle / month, 3) > 0:
        said.append(f"GPUs are idle {percent(idle / month)} of the time, which costs {money(idle)} a month.")
    if load is not None and load < 1:
        spare = money((1 - load) * month)
        said.append(f"Capacity that this traffic leaves unused, up to full batches, costs {spare} a month.")
    return [*said, *_revenue(point)]


def _revenue(point: Point) -> list[str]:
    """Return what tenants pay a month, and how far that covers the cost; nothing where none pays."""
    paid = [tenant.money["revenue_usd_per_month"].value for tenant in point.tenants if tenant.price]
    known = [value for value in paid if value is not None]
    if not known:
        return []
    revenue, cost = sum(known), point.metrics.get("usd_per_month")
    if cost is None or cost.value is None:
        return [f"Tenants pay {money(revenue)} a month."]
    margin = revenue - cost.value
    more = "more" if margin >= 0 else "less"
    return [f"Tenants pay {money(revenue)} a month, {money(abs(margin))} {more} than the fleet costs."]


def cheapest_sentence(points: Sequence[Point], slo_terms: Mapping[str, float]) -> str:
    """Return which point of a sweep meets the SLO for the least money; empty without prices, or if none does."""
    fit = [p for p in points if is_priced(p) and verdict(p, slo_terms) == MET]
    costs = {point.metrics["usd_per_month"].value for point in points if is_priced(point)}
    if not fit or len(costs) < 2:
        return ""

    def cost(point: Point) -> tuple[float, float]:
        return point.metrics["usd_per_month"].value or 0.0, point.metrics["usd_per_m_tokens"].value or 0.0

    best = min(fit, key=cost)
    month = money(cost(best)[0])
    return f"The cheapest point that meets the SLO is {point_words(best, make_axes(points))}, for {month} a month."
