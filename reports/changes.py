"""What rollouts, faults and routers did, in sentences: what the top box says of such scenarios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reports.axes import Axis, in_order
from reports.verdicts import capital, main_metric
from reports.words import metric_words, percent, show, with_interval
from sim.results.point import Metric, Point
from sim.spec.units import human_bytes, human_seconds

HARM_WORDS = {
    "mixed": "mixed versions", "stale": "stale", "refused_by_rollout": "refused by the rollout",
    "wrong_served": "wrong answers taken for right", "old_prefix": "old prefixes", "lost": "lost",
    "failed_loads": "failed loads", "failed": "failed", "slow": "slow",
}  # fmt: skip
"""What harms a request, in words."""
_LISTED = 6


def is_changed(points: Sequence[Point]) -> bool:
    """Return whether something changes while traffic flows: there are rollouts or faults."""
    return any(point.harm for point in points)


def has_rollout(points: Sequence[Point]) -> bool:
    """Return whether there are rollouts."""
    return any(point.version_mix for point in points)


def compares_routers(points: Sequence[Point], axes: Sequence[Axis]) -> bool:
    """Return whether a sweep of a fleet changes its router."""
    return any(axis.key.startswith("router.") for axis in axes) and any(point.replicas for point in points)


def value_of(point: Point, name: str) -> float | None:
    """Return a metric's value, None where there is none."""
    metric = point.metrics.get(name)
    return None if metric is None else metric.value


def composition(point: Point) -> str:
    """Return what harmed the requests of a point, most frequent first: ``108 slow, 95 mixed versions``."""
    harm = dict(point.harm)
    others = (harm.get("failed") or 0) - (harm.get("lost") or 0) - (harm.get("failed_loads") or 0)
    harm["failed"] = max(0, others)
    counts = sorted(((harm.get(key) or 0, words) for key, words in HARM_WORDS.items()), key=lambda pair: -pair[0])
    return ", ".join(f"{count:,} {words}" for count, words in counts if count)


def harmed_words(point: Point) -> str:
    """Return how many requests were harmed, of how many, and by what."""
    count, total = int(value_of(point, "harmed") or 0), int(point.harm["requests"] or 0)
    if not count:
        return f"none of {total:,}"
    return f"{count:,} of {total:,}, {percent(count / max(total, 1))} ({composition(point)})"


def tell(point: Point, slo_terms: Mapping[str, float]) -> list[str]:
    """Return what rollouts and faults did to one point, the most telling first; nothing where there are none."""
    if not point.harm:
        return []
    said = [*_identity(point), f"Requests harmed: {harmed_words(point)}.", *_slow_anyway([point])]
    if has_rollout([point]):
        said += _rollout(point, slo_terms)
    elif value_of(point, "wrong_adapter_served") is None and (peak := _slowest_span(point)) is not None:
        said.append(peak)
    return said + _faults(point)


def _slow_anyway(points: Sequence[Point]) -> list[str]:
    """Return how many requests were slow before any rollout: slow ones are not all its doing."""
    before = sum(point.harm.get("requests_before") or 0 for point in points)
    slow = sum(point.harm.get("slow_before") or 0 for point in points)
    if not before or not slow:
        return []
    return [f"Some are slow anyway: {percent(slow / before)} of those that came before the rollout."]


def _rollout(point: Point, slo_terms: Mapping[str, float]) -> list[str]:
    said = []
    name = latency_name([point], slo_terms)
    during, before = point.metrics[f"rollout_{name}"], point.metrics[f"before_{name}"]
    if during.value is not None:
        against = f", against {with_interval(name, before)} before" if before.value is not None else ""
        said.append(
            f"{capital(metric_words(name))} is {with_interval(name, during)} for requests that come during the "
            f"rollout{against}."
        )
    took = point.metrics["rollout_duration_s"]
    if took.value is not None:
        said.append(f"The rollout is complete after {with_interval('rollout_duration_s', took)}.")
    else:
        said.append(f"The rollout is {took.note.replace('complete in 0 of', 'complete in none of')}.")
    peak, usual = (value_of(point, f"{side}_peak_loads_per_s") for side in ("rollout", "before"))
    if peak is not None and usual is not None:
        said.append(
            f"Loads peak at {show('rollout_peak_loads_per_s', peak)} over ten seconds, against "
            f"{show('rollout_peak_loads_per_s', usual)} before."
        )
    extra = value_of(point, "extra_resident_bytes_peak")
    if extra:
        said.append(f"Old versions beside new ones take up to {human_bytes(extra)} of GPU memory.")
    both, back = value_of(point, "sessions_saw_both"), value_of(point, "sessions_went_back")
    if both:
        said.append(f"{both:,.0f} sessions saw both versions; {back or 0:,.0f} of them went back to the older one.")
    return said


def _identity(point: Point) -> list[str]:
    wrong, noticed, again = (value_of(point, n) for n in ("wrong_adapter_served", "wrong_adapter_detected", "retried"))
    if wrong is None:
        return []
    return [
        f"{value_of(point, 'misrouted') or 0:,.0f} of {point.harm['requests']:,} requests reached a wrong adapter: "
        f"{wrong:,.0f} wrong answers were taken for right, {noticed or 0:,.0f} were noticed, and {again or 0:,.0f} "
        "requests sent again."
    ]  # fmt: skip


def _faults(point: Point) -> list[str]:
    said = []
    lost, rerouted = value_of(point, "lost"), value_of(point, "rerouted")
    if lost is not None and rerouted is not None:
        said.append(f"With their replica {lost:,.0f} requests were lost; {rerouted:,.0f} were sent to another one.")
    if point.harm.get("failed_loads"):
        said.append(f"{point.harm['failed_loads']:,} requests failed because their adapter could not be loaded.")
    if point.harm.get("old_prefix"):
        said.append(f"{point.harm['old_prefix']:,} requests found a prefix that an older version had computed.")
    return said


def _slowest_span(point: Point) -> str | None:
    """Return when requests were slowest, from the first replication's timeline."""
    times, means = point.timeline.get("t_s") or [], point.timeline.get("e2e_mean_s") or []
    known = [(value, time) for value, time in zip(means, times, strict=True) if value is not None]
    if len(known) < 3:
        return None
    usual = sorted(value for value, _ in known)[len(known) // 2]
    worst, when = max(known)
    return (
        f"Requests that come at about {human_seconds(when)} take longest: {human_seconds(worst)} on average, usually "
        f"{human_seconds(usual)} (first replication)."
    )


def latency_name(points: Sequence[Point], slo_terms: Mapping[str, float]) -> str:
    """Return the p99 that during and before are compared by: the SLO's, where it is one of TTFT or E2E."""
    name = main_metric(points, slo_terms)
    return name if name in ("ttft_p99_s", "e2e_p99_s") else "ttft_p99_s"


def compare(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> list[str]:
    """Return what a sweep says of rollouts, faults or routers, the most telling first; nothing where it has none."""
    if is_changed(points):
        return _compare_harm(points, axes, slo_terms)
    if compares_routers(points, axes):
        return _compare_routers(points, axes)
    return []


def label_of(point: Point, axes: Sequence[Axis]) -> str:
    """Return a point's swept values: quantities with their key in words, names as they are."""
    return ", ".join(axis.phrase(point.set.get(axis.key)) if axis.numeric else axis.point_label(point) for axis in axes)


def _compare_harm(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> list[str]:
    ordered = sorted(in_order(points, axes), key=lambda p: value_of(p, "harmed") or 0.0)
    best, worst = ordered[0], ordered[-1]
    if value_of(best, "harmed") == value_of(worst, "harmed"):
        said = [f"Every point harms the same number of requests: {harmed_words(best)}."]
    else:
        said = [
            f"Fewest requests are harmed with {label_of(best, axes)}: {harmed_words(best)}. "
            f"Most with {label_of(worst, axes)}: {harmed_words(worst)}."
        ]
        close = [label_of(p, axes) for p in ordered[1:] if not certainly_less(best, p, "harmed")]
        if close and best.metrics["harmed"].parts:
            said.append(f"Not certainly fewer than with {_listed(close)}: the interval of the difference reaches 0.")
    said += _slow_anyway(points)
    if has_rollout(points):
        rollouts = _compare_rollouts(in_order(points, axes), axes, slo_terms)
        # Names are strategies, which harm in different ways; a quantity makes the same harm larger or smaller.
        said = [*rollouts, *said] if all(axis.numeric for axis in axes) else [*said, *rollouts]
    else:
        said += _compare_faults(in_order(points, axes), axes, slo_terms)
    wrong = (
        extremes(in_order(points, axes), axes, "wrong_adapter_served") if _any(points, "wrong_adapter_served") else []
    )
    return [*wrong, *said]


def _any(points: Sequence[Point], name: str) -> bool:
    return any(value_of(point, name) for point in points)


def _compare_rollouts(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> list[str]:
    name = latency_name(points, slo_terms)
    said = extremes(points, axes, "rollout_peak_loads_per_s", tail=_before(points, "before_peak_loads_per_s"))
    said += extremes(points, axes, f"rollout_{name}", tail=_before(points, f"before_{name}"))
    took = [(point, point.metrics["rollout_duration_s"]) for point in points]
    colon = "" if all(not axis.numeric for axis in axes) else ":"
    done = [f"{label_of(p, axes)}{colon} {show('rollout_duration_s', m.value)}" for p, m in took if m.value is not None]
    open_ = [label_of(p, axes) for p, m in took if m.value is None]
    if len(points) <= _LISTED:
        told = [f"Complete after: {', '.join(done)}."] if done else []
        told += [f"Not complete in every replication: {_listed(open_)}."] if open_ else []
        said.append(" ".join(told))
    return said


def _before(points: Sequence[Point], name: str) -> str:
    """Return what a metric was before; it hardly differs from point to point, unless the sweep is of something else."""
    known = sorted(value for p in points if (value := value_of(p, name)) is not None)
    if not known:
        return ""
    low, high = show(name, known[0]), show(name, known[-1])
    return f", against {low if low == high else f'{low} to {high}'} before"


def _compare_faults(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> list[str]:
    said = []
    names = ["retried", "lost", "rerouted", latency_name(points, slo_terms)]
    if any((value_of(p, "failed") or 0) > (value_of(p, "lost") or 0) for p in points):
        names.insert(3, "failed")
    for name in names:
        if _any(points, name):
            said += extremes(points, axes, name)
    return said


def extremes(points: Sequence[Point], axes: Sequence[Axis], name: str, tail: str = "") -> list[str]:
    """Return where a metric is lowest and highest, as a list of one sentence, or of none where nothing is known."""
    known = [(value, point) for point in points if (value := value_of(point, name)) is not None]
    if len(known) < 2:
        return []
    low, high = min(known, key=lambda pair: pair[0])[1], max(known, key=lambda pair: pair[0])[1]
    words = capital(metric_words(name))
    if value_of(low, name) == value_of(high, name):
        return [f"{words}: {show(name, value_of(low, name))} at every point{tail}."]
    return [
        f"{words}: lowest with {label_of(low, axes)}, {_value(low, name)}; highest with {label_of(high, axes)}, "
        f"{_value(high, name)}{tail}."
    ]  # fmt: skip


def _value(point: Point, name: str) -> str:
    metric: Metric = point.metrics[name]
    return with_interval(name, metric) + ("" if metric.settled else ", unsettled")


def _compare_routers(points: Sequence[Point], axes: Sequence[Axis]) -> list[str]:
    ordered = in_order(points, axes)
    known = [p for p in ordered if value_of(p, "loads_per_request") is not None]
    # With one replica there is nothing to route.
    known = [p for p in known if value_of(p, "replica_load_skew") is not None] or known
    if len(known) < 2:
        return []
    best = min(known, key=lambda p: value_of(p, "loads_per_request") or 0.0)
    plain = next((p for p in known if "round-robin" in p.set.values()), None)
    other = plain if plain is not None and plain is not best else max(
        known, key=lambda p: value_of(p, "loads_per_request") or 0.0
    )  # fmt: skip
    few, many = value_of(best, "loads_per_request") or 0.0, value_of(other, "loads_per_request") or 0.0
    times = f", {many / few:.2g} times as many" if few > 0 and 1.05 * few < many < 100 * few else ""
    said = [
        f"Fewest loads with {label_of(best, axes)}: {_per_thousand(best)} per 1,000 requests, at a load skew of "
        f"{_value(best, 'replica_load_skew')}. With {label_of(other, axes)}: {_per_thousand(other)}{times}, at "
        f"{_value(other, 'replica_load_skew')}."
    ]
    close = [label_of(p, axes) for p in known if p is not best and not certainly_less(best, p, "loads_per_request")]
    if close and best.metrics["loads_per_request"].parts:
        said.append(f"Not certainly fewer loads than with {_listed(close)}: the interval of the difference reaches 0.")
    return said + extremes(ordered, axes, "ttft_p99_s") + extremes(ordered, axes, "replica_load_skew")


def _per_thousand(point: Point) -> str:
    """Return loads of a thousand requests, with their interval."""
    metric = point.metrics["loads_per_request"]
    low, value, high = (None if v is None else 1000 * v for v in (metric.lo, metric.value, metric.hi))
    return with_interval("loads_per_request", Metric(value, low, high))


def certainly_less(one: Point, other: Point, name: str) -> bool:
    """Return whether a metric is lower at one point, by the interval of the difference."""
    from sim.results.pairs import difference_of

    found = difference_of(one, other, name)
    return found is not None and found.lo is not None and found.lo > 0


def _listed(labels: Sequence[str]) -> str:
    """Return labels as a list in a sentence, cut where there are many."""
    if len(labels) > _LISTED:
        return f"{', '.join(labels[:_LISTED])} and {len(labels) - _LISTED} more"
    return " and ".join(filter(None, [", ".join(labels[:-1]), labels[-1]]))
