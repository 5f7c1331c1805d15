"""What a result is about, in one line: device, model, engine and profile; and what the fleet costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from reports.axes import make_axes, point_words
from reports.formatting import money, number, percent, plural, show
from reports.text.headroom_text import unused_sentence
from sim.results.fleet_costs import HOURS_PER_MONTH, is_priced
from sim.results.model import GpuShare, MemoryUse, Setup
from sim.results.point import Point
from sim.results.run_directory.headroom_record import Headroom
from sim.results.verdict import MET, verdict
from sim.spec.engines import engine_words
from sim.spec.units import human_bytes, human_seconds

_MOST_NAMED = 2
"""Profiles that are named; of more, only how many there are."""
_ASSUMED_KEYS = {"GPU": "fleet.gpu", "base model": "adapters.base_model"}
"""Keys that name what is assumed where a scenario doesn't."""


def setup_line(points: Sequence[Point]) -> str:
    """Return on what the points were simulated; where they differ, every value. Empty: they don't say."""
    return setup_words([point.setup for point in points if point.setup is not None])


def setup_words(setups: Sequence[Setup]) -> str:
    """Return on what points are simulated, and what was assumed for them."""
    joint = "and" if any(each.pools for each in setups) else "or"
    setups = [own for each in setups for own in each.pools or (each,)]
    profiles = _profiles(setups, joint)
    shares = list(dict.fromkeys(each.share for each in setups if each.share))
    assumed = list(dict.fromkeys(name for each in setups for name in each.assumed.split(", ") if name))
    keys = " and ".join(_ASSUMED_KEYS.get(name, name) for name in assumed)
    parts = [
        _listed((each.device for each in setups), joint),
        _listed((each.model for each in setups), joint),
        _listed((engine_words(each.engine) for each in setups), joint),
        profiles or ("all times given by the scenario" if setups else ""),
        f"{' and '.join(assumed)} assumed (set {keys})" if assumed else "",
        f"{gpu_words(shares[0].replicas, shares[0].gpus)}; {_held(shares[0])}" if len(shares) == 1 else "",
    ]
    return " · ".join(part for part in parts if part)


def gpu_words(replicas: int, gpus: int) -> str:
    """Return the GPUs of replicas over several each, in words: ``3 replicas of 4 GPUs = 12 GPUs``."""
    return f"{plural(replicas, 'replica')} of {gpus} GPUs = {replicas * gpus:,} GPUs"


def _held(share: GpuShare) -> str:
    """Return what each GPU holds, and what a load brings to it."""
    kept = (
        "" if share.slot_bytes is None else f"each GPU keeps {share.slots:,} slots of {human_bytes(share.slot_bytes)}; "
    )
    return f"{kept}a load copies up to {human_bytes(share.load_bytes or 0)} to each GPU"


def memory_sentences(setup: Setup, *, brief: bool = False) -> list[str]:
    """Return what a replica of each pool keeps on its GPUs and in host memory.

    :param brief: leave out what the engine takes, and what one slot and the KV cache are in other units.
    """
    said = []
    for pool, use in memory_of(setup):
        whose = f"{' of each replica' if use.replicas > 1 else ''}{f' of {pool}' if pool else ''}"
        said.append(f"GPU memory{whose}: {_memory_words(use, brief)}.")
    return said


def memory_of(setup: Setup) -> list[tuple[str, MemoryUse]]:
    """Return what a replica of each pool keeps in memory, by the pool's name; empty in a fleet without pools."""
    return [(each.pool, each.memory) for each in setup.pools or (setup,) if each.memory is not None]


def memory_change(one: Setup | None, other: Setup | None) -> str:
    """Return what a replica of each pool keeps in memory of one fleet and of another, where that differs.

    Empty for fleets of other pools.
    """
    sides = [[] if each is None else memory_of(each) for each in (one, other)]
    if [pool for pool, _ in sides[0]] != [pool for pool, _ in sides[1]]:
        return ""
    said = []
    for (pool, a), (_, b) in zip(*sides, strict=True):
        parts = {
            "weights": (a.weights, b.weights),
            "adapters": (a.adapters, b.adapters),
            "KV cache": (a.kv, b.kv),
            "host memory": (a.host + a.host_kv, b.host + b.host_kv),
        }
        if not (a.adapters and b.adapters):  # one has them in its KV cache
            del parts["adapters"]
        sizes = {name: [human_bytes(size) for size in pair] for name, pair in parts.items()}
        changed = [f"{name} {' → '.join(pair)}" for name, pair in sizes.items() if len(set(pair)) > 1]
        if changed:
            said.append(f"Memory of each replica{f' of {pool}' if pool else ''}: {', '.join(changed)}.")
    return " ".join(said)


def _memory_words(use: MemoryUse, brief: bool) -> str:
    held = [f"weights {human_bytes(use.weights)}"]
    if use.slots:
        each = "" if brief else f" ({human_bytes(use.adapters / use.slots)} each)"
        held.append(f"{plural(use.slots, 'slot')} {human_bytes(use.adapters)}{each}")
    elif use.adapters:
        held.append(f"adapter cache {human_bytes(use.adapters)}")
    if use.engine and not brief:
        held.append(f"engine {human_bytes(use.engine)}")
    held.append(f"KV cache {human_bytes(use.kv)}{'' if brief else f' ({use.kv_tokens:,} tokens)'}")
    host = use.host + use.host_kv
    in_all = f", {human_bytes(use.replicas * host)} in all" if use.replicas > 1 else ""
    kv = f", KV {human_bytes(use.host_kv)}" if use.host_kv else ""
    copies = f"copies of {plural(use.copies, 'adapter')}{kv}{in_all}"
    return f"{', '.join(held)}; host memory {human_bytes(host)} ({copies})" if host else ", ".join(held)


def bill(point: Point) -> str:
    """Return what a point takes: GPUs and their price, GPU memory and host memory."""
    memory = [] if point.setup is None else memory_sentences(point.setup, brief=True)
    return " ".join(filter(None, [fleet_words(point), *memory]))


def fleet_words(point: Point) -> str:
    """Return how many GPUs a point has, and what they cost."""
    usage = point.usage
    if usage is None:
        return ""
    costs = {name: metric.value for name in usage.metrics if (metric := point.metrics.get(name)) is not None}
    month, tokens = costs.get("usd_per_month"), costs.get("usd_per_m_tokens")
    count, mean = plural(usage.gpus, "GPU"), point.value("mean_replicas")
    if mean is not None:
        share = None if point.setup is None else point.setup.share
        each = 1 if share is None else share.gpus
        count = f"{number(mean * each)} GPUs on average, up to {usage.gpus:,}"
    prices = [] if usage.price is not None else ["no price given (fleet.price)"]
    prices += [f"{money(month)} a month"] if month else []
    prices += [f"{money(tokens)} per million tokens"] if tokens else []
    return f"{', '.join([count, *prices])}."


def _profiles(setups: Iterable[Setup], joint: str) -> str:
    """Return the profiles with their status and why they were chosen, those with the same together."""
    names: dict[str, list[str]] = {}
    for each in setups:
        origin = "; ".join(filter(None, (each.status, each.chosen)))
        if each.profile and each.profile not in (known := names.setdefault(origin, [])):
            known.append(each.profile)
    parts = []
    for origin, found in names.items():
        which = f"profile {_listed(found, joint)}" if len(found) <= _MOST_NAMED else f"{len(found)} profiles"
        parts.append(f"{which} ({origin})")
    return ", ".join(parts)


def _listed(words: Iterable[str], joint: str) -> str:
    """Return each word once: ``a``, ``a or b``, ``a, b or c``.

    :param joint: ``or`` between points, ``and`` between pools of a fleet.
    """
    *first, last = dict.fromkeys(word for word in words if word) or [""]
    return f"{', '.join(first)} {joint} {last}" if first else last


def cost_sentences(point: Point, headroom: Headroom | None = None, *, missed_today: bool = False) -> list[str]:
    """Return what tokens, requests and months cost, and what unused capacity does; none without a price.

    :param headroom: how much more traffic fits, where that was searched; ``missed_today``: whether the SLO is missed.
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
        headroom = None  # it is that of the largest fleet
    else:
        mean = " on average" if len(point.pools) > 1 else ""
        fleet = f"{plural(usage.gpus, 'GPU')} at {money(usage.price)} an hour{mean}"
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
    said += filter(None, [unused_sentence(headroom, month, missed_today=missed_today)])
    return [*said, *_revenue(point)]


def _revenue(point: Point) -> list[str]:
    """Return what tenants pay a month, and how far that covers the cost; nothing where none pays."""
    paid = [tenant.money["revenue_usd_per_month"].value for tenant in point.tenants if tenant.price]
    known = [value for value in paid if value is not None]
    if not known:
        return []
    revenue, cost = sum(known), point.value("usd_per_month")
    if cost is None:
        return [f"Tenants pay {money(revenue)} a month."]
    margin = revenue - cost
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
