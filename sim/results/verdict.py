"""Whether a point meets its SLO: how likely that is, and the word for it (docs/statistics.md)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from statistics import NormalDist

from sim.results.intervals import NORMAL, wilson
from sim.results.point import Metric, Point
from sim.results.slo_terms import judged, metric_of, quantile_of, value_of, with_tenants

MET, NOT_MET, UNCLEAR, NO_SLO = "met", "not met", "unclear", "no SLO"
PROBABLY_MET, PROBABLY_NOT = "probably met", "probably not met"

SURE = 0.975
"""Probability at which a verdict is certain: the target lies at one end of the 95 % interval."""
PROBABLE = 0.8
"""Probability from which a design is said to meet an SLO probably."""
LOOKS = 3
"""Evaluations of a design in a plan, at most."""
NO_DATA = 0.5
"""Probability where there is no value: data for neither verdict."""
UNSETTLED_MARGIN = 0.25
"""Share of its value that an unsettled metric must leave to its target, at least, to count as met."""
UNSETTLED_TIMES = 1.5
"""How much wider the interval of an unsettled time or rate counts that is within its target. At most 2 % of the runs of
M/M/1 with 60,000 requests and loads up to 0.95 then meet 95 % of the true p99 (tests/statistical/test_coverage.py)."""
_NEAR = 2.0
"""A value over its target up to which one burst may decide in the runs of a plan."""
NO_INTERVAL = 1.0
"""Half-width, as a share of the value, where the run is too short for an interval."""


def verdict_word(probability: float, sure: float = SURE) -> str:
    """Return the verdict on a target that is met with this probability."""
    return MET if probability >= sure else NOT_MET if probability <= 1 - sure else UNCLEAR


def grade(probability: float, sure: float = SURE) -> str:
    """Return the verdict with "probably" where it is likely, but not certain."""
    word = verdict_word(probability, sure)
    if word != UNCLEAR:
        return word
    return PROBABLY_MET if probability >= PROBABLE else PROBABLY_NOT if probability <= 1 - PROBABLE else UNCLEAR


def metric_probability(metric: Metric | None, target: float) -> float:
    """Return how likely a value is within its target, by its intervals alone; for an SLO see ``term_probability``.

    The error is normal; that of times and rates is normal in the logarithm, since wide intervals of such values are far
    from symmetric. The calibration interval is an independent error, so the two add up as squares. Unsettled values
    are too low more often than too high, because longer runs see longer queues. So if such a value is within the
    target, its half-width is doubled (of times: half as wide again, since their intervals follow the effective sample
    size), and is at least a quarter of the value. A value beyond the target counts as it is.
    """
    if metric is None or metric.value is None:
        return NO_DATA
    value, logarithmic = metric.value, metric.unit not in ("1", "requests") and metric.value > 0 and target > 0
    high = value * (1 + NO_INTERVAL) if metric.hi is None else metric.hi
    low = value / (1 + NO_INTERVAL) if metric.lo is None else metric.lo
    halves = []
    for end, other in ((high, low), (metric.calibration_hi, metric.calibration_lo)):
        if end is None or other is None:
            continue
        halves.append(math.log(end / value) if logarithmic else end - value if target >= value else value - other)
    if not metric.settled and value <= target:
        margin = math.log1p(UNSETTLED_MARGIN) if logarithmic else UNSETTLED_MARGIN * abs(value)
        halves[0] = max(margin, (UNSETTLED_TIMES if logarithmic else 2.0) * halves[0])
    distance = math.log(target / value) if logarithmic else target - value
    half = math.hypot(*halves)
    if not half:
        return 1.0 if distance >= 0 else 0.0
    return 0.5 * math.erfc(-NORMAL * distance / half / math.sqrt(2))


def is_overloaded(point: Point) -> bool:
    """Return whether more requests arrive than can be served."""
    load = point.capacity.offered_load
    return load is not None and load >= 1


def out_of_hand(point: Point) -> bool:
    """Return whether more requests arrive than are served, with the profile's costs or with some of its draws."""
    return _chance_of_no_overload(point) < 1


def _chance_of_no_overload(point: Point) -> float:
    """Return how likely the fleet can serve the load: the share of the draws with which it can.

    An overload in a short run may only be its cold start, so it alone doesn't rule a design out; its waits do.
    """
    if is_overloaded(point):
        return 0.5
    draws = point.calibration.get("draws", 0)
    return 1 - point.calibration["overloaded"] / draws if draws else 1.0


def allowed(name: str) -> float:
    """Return the share of the measured requests that may be late for a term: what its quantile leaves, else 1 %."""
    q = None if name.startswith("itl") else quantile_of(name)
    return 0.01 if q is None else round(1 - q, 2)


def late_share(point: Point, name: str, target: float) -> Metric | None:
    """Return the share of the measured requests that are late for a term; None where every one was served.

    Refused and failed requests are infinitely late (``sim.results.served``). Points that were simulated for another
    target only have counts and the distribution of completed requests: these say nearly the same, with an interval as
    of independent requests.
    """
    point, name = judged(point, name)
    if name == "miss_ratio":  # judges the cache, by admitted requests
        return None
    late = point.late.get(name)
    if late is not None and late.target == target:
        return late.share
    lost, total = unserved(point)
    if not lost or not total:
        return None
    value = (lost + (total - lost) * _share_beyond(point, name, target)) / total
    return Metric(value, *wilson(value, total))


def strain(point: Point, name: str, target: float) -> float:
    """Return a term's value over its target, or late requests over those allowed to be late, whichever is more.

    Above 1 the term is missed. Without refused or failed requests, both say the same.
    """
    late, value = late_share(point, name, target), _over(value_of(point, name), target)
    return value if late is None else max(value, _over(late.value, allowed(name)))


def by_need(point: Point, terms: Mapping[str, float]) -> list[str]:
    """Return the terms in the order in which they decide: the least likely to be met first.

    Of equally likely ones, that with the largest value over its target comes first.

    :param terms: those of tenants included.
    """

    def need(name: str) -> tuple[float, float]:
        target = terms[name]
        return round(term_probability(point, name, target), 2), -strain(point, name, target)

    return sorted(terms, key=need)


def strained(point: Point, terms: Mapping[str, float]) -> list[str]:
    """Return the terms that a point's values miss, certainly or not, in the order of ``by_need``."""
    return [name for name in by_need(point, terms) if strain(point, name, terms[name]) > 1]


def most_strained(point: Point, slo_terms: Mapping[str, float]) -> float:
    """Return how far a point is from the target that it misses most; infinite where a term has no value."""
    terms = with_tenants(slo_terms, point)
    known = all(value_of(point, name) is not None for name in terms)
    return max(strain(point, name, target) for name, target in terms.items()) if known else math.inf


def _over(value: float | None, target: float) -> float:
    if value is None:
        return 1.0
    return value / target if target > 0 else math.inf if value > 0 else 0.0


def unserved(point: Point) -> tuple[float, float]:
    """Return how many measured requests were refused or failed, and how many there are."""
    counts = {name: point.value(name) or 0.0 for name in ("completed", "unfinished", "refused", "failed")}
    return counts["refused"] + counts["failed"], sum(counts.values())


def is_lacking(point: Point) -> bool:
    """Return whether more requests go unserved than a target for p99 allows."""
    lost, total = unserved(point)
    return lost > allowed("ttft_p99_s") * total


def _share_beyond(point: Point, name: str, target: float) -> float:
    """Return which share of the completed requests is beyond the target of a quantile, by their distribution."""
    stage = name.partition("_")[0]
    curve = point.cdf.get(f"{stage}_s") or (point.cdf.get("e2e_s") if stage == "ttft" else None)
    if quantile_of(name) is None or not curve:
        return 0.0
    within = bisect_right(curve, target)
    return 1 - point.cdf["q"][within - 1] if within else 1.0


def late_probability(point: Point, name: str, target: float) -> float:
    """Return how likely no more of the measured requests are late for a term than may be.

    Where the term's value over the completed requests is unsettled, so is this share.
    """
    late, metric = late_share(point, name, target), metric_of(point, name)
    if late is None:
        return 1.0
    point, _ = judged(point, name)
    if metric is not None and metric.value is not None and not metric.settled:
        late = replace(late, state=metric.state)
    return min(metric_probability(late, allowed(name)), _chance_of_no_overload(point))


def late_verdict(point: Point, name: str, target: float) -> str:
    """Return whether no more of the measured requests are late for a term than may be."""
    return verdict_word(late_probability(point, name, target))


def value_verdict(point: Point, name: str, target: float) -> str:
    """Return whether the value over the completed requests is within the target of a term."""
    return verdict_word(_value_probability(point, name, target))


def value_grade(point: Point, name: str, target: float) -> str:
    """Return the same with "probably" where it is likely, but not certain."""
    return grade(_value_probability(point, name, target))


def _value_probability(point: Point, name: str, target: float) -> float:
    point, name = judged(point, name)
    return min(metric_probability(point.metrics.get(name), target), _chance_of_no_overload(point))


def term_probability(point: Point, name: str, target: float) -> float:
    """Return how likely a point meets a term: by the value over completed requests, and by all that are late."""
    return min(_value_probability(point, name, target), late_probability(point, name, target))


def term_verdict(point: Point, name: str, target: float) -> str:
    """Return whether a point meets a term of its SLO."""
    return verdict_word(term_probability(point, name, target))


def lacks_answers(point: Point, name: str, target: float) -> bool:
    """Return whether a term isn't certainly met because requests go unserved: at least half of the late ones do."""
    point, name = judged(point, name)
    late = late_share(point, name, target)
    if late is None or not late.value or late_verdict(point, name, target) == MET:
        return False
    lost, total = unserved(point)
    return total > 0 and lost / total >= late.value / 2


def met_probability(point: Point, slo_terms: Mapping[str, float]) -> float:
    """Return how likely a point meets its SLO: that of its least likely term, for terms of one run err together."""
    return min((term_probability(point, name, target) for name, target in slo_terms.items()), default=1.0)


def open_by_costs(point: Point, slo_terms: Mapping[str, float], sure: float = SURE) -> bool:
    """Return whether the draws of the profile leave a verdict open by themselves, so that no longer run decides it."""
    known = bool(point.calibration) and all(value_of(point, name) is not None for name in slo_terms)
    return known and verdict(point.of_endless_run(), slo_terms, sure) == UNCLEAR


def sure_in_plan(confidence: float) -> float:
    """Return the probability at which each verdict of a plan is certain enough for its confidence.

    The answer is wrong if the verdict on it or on its more wanted neighbour is wrong. Each is evaluated up to three
    times, and each evaluation may err to one side (Bonferroni).
    """
    return 1 - (1 - confidence) / (2 * LOOKS)


def planning_probability(point: Point, slo_terms: Mapping[str, float]) -> float:
    """Return how likely a point meets its SLO where a plan may rule it out: with more caution than a run's verdict.

    The runs of a plan have few replications. Where every term that is missed is unsettled and near its target, one
    burst may decide, so the error is taken to be twice as large.
    """
    probability = met_probability(point, slo_terms)
    strains = {name: strain(point, name, target) for name, target in slo_terms.items()}
    missed = [name for name, value in strains.items() if value > 1]
    metrics = (metric_of(point, name) for name in missed)
    if not missed or max(strains.values()) >= _NEAR or any(metric and metric.settled for metric in metrics):
        return probability
    normal = NormalDist()
    return normal.cdf(normal.inv_cdf(min(max(probability, 1e-300), 0.5)) / 2)


def verdict(point: Point, slo_terms: Mapping[str, float], sure: float = SURE) -> str:
    """Return the verdict over all terms, those of the point's tenants included.

    :param slo_terms: targets of the fleet, by metric name.
    :param sure: probability from which a verdict is certain.
    """
    terms = with_tenants(slo_terms, point)
    return verdict_word(met_probability(point, terms), sure) if terms else NO_SLO


def graded_verdict(point: Point, slo_terms: Mapping[str, float]) -> str:
    """Return the same with "probably" where it is likely, but not certain."""
    terms = with_tenants(slo_terms, point)
    return grade(met_probability(point, terms)) if terms else NO_SLO
