"""Whether a point meets its SLO, by intervals."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sim.results.intervals.wilson import wilson
from sim.results.model import Impact
from sim.results.point import Metric, Point

MET, NOT_MET, UNCLEAR, NO_SLO = "met", "not met", "unclear", "no SLO"


def interval_verdict(metric: Metric | None, target: float, *, overloaded: bool = False, widen: float = 1.0) -> str:
    """Return whether a value meets its target, by its interval alone; for a term of an SLO see ``term_verdict``.

    An unsettled interval is doubled before it may decide, and to count as met it must also leave a quarter
    of the value to the target: waits that haven't settled grow with a longer run, they don't shrink. The
    calibration interval widens it: the two errors are independent, so their widths add up as squares. Under
    overload nothing counts as met.

    :param widen: factor on the half-widths, where a verdict has to be surer than 95 %.
    """
    if metric is None or metric.value is None:
        return UNCLEAR
    low = metric.value if metric.lo is None else metric.value - widen * (metric.value - metric.lo)
    high = metric.value if metric.hi is None else metric.value + widen * (metric.hi - metric.value)
    if not metric.settled:
        low = metric.value - 2 * (metric.value - low)
        high = metric.value + max(0.25 * abs(metric.value), 2 * (high - metric.value))
    if metric.calibration_lo is not None and metric.calibration_hi is not None:
        low = metric.value - math.hypot(metric.value - low, widen * (metric.value - metric.calibration_lo))
        high = metric.value + math.hypot(high - metric.value, widen * (metric.calibration_hi - metric.value))
    if low > target:
        return NOT_MET
    return MET if high <= target and not overloaded else UNCLEAR


def offered(point: Point) -> float | None:
    """Return the highest offered load, to the loader or to the replicas; at 1 or more, queues grow for ever."""
    return point.capacity.offered_load


def is_overloaded(point: Point) -> bool:
    """Return whether more arrives than can ever be served."""
    load = offered(point)
    return load is not None and load >= 1


def out_of_hand(point: Point) -> bool:
    """Return whether more requests arrive than are served, with the profile's costs or with some of its draws."""
    return is_overloaded(point) or bool(point.calibration.get("overloaded"))


def allowed(name: str) -> float:
    """Return the share of the measured requests that may be late for a term: half for a median, else 1 %."""
    return 0.5 if name.endswith("_p50_s") else 0.01


def late_share(point: Point, name: str, target: float) -> Metric | None:
    """Return the share of the measured requests that are late for a term; None where every one was served.

    Refused and failed requests are infinitely late (``sim.results.served``). Points of older versions, and those
    simulated for another target, only have counts and the distribution of completed requests: these say nearly the
    same, with an interval as of independent requests.
    """
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


def unserved(point: Point) -> tuple[float, float]:
    """Return how many measured requests were refused or failed, and how many there are."""
    counts = {
        name: (metric.value if (metric := point.metrics.get(name)) is not None else None) or 0.0
        for name in ("completed", "unfinished", "refused", "failed")
    }
    return counts["refused"] + counts["failed"], sum(counts.values())


def is_lacking(point: Point) -> bool:
    """Return whether more requests go unserved than a target for p99 allows."""
    lost, total = unserved(point)
    return lost > allowed("ttft_p99_s") * total


def _share_beyond(point: Point, name: str, target: float) -> float:
    """Return which share of the completed requests is beyond the target of a quantile, by their distribution."""
    stage, _, statistic = name.removesuffix("_s").partition("_")
    curve = point.cdf.get(f"{stage}_s") or (point.cdf.get("e2e_s") if stage == "ttft" else None)
    if statistic not in ("p50", "p99") or not curve:
        return 0.0
    within = bisect_right(curve, target)
    return 1 - point.cdf["q"][within - 1] if within else 1.0


def late_verdict(point: Point, name: str, target: float, widen: float = 1.0) -> str:
    """Return whether no more of the measured requests are late for a term than may be.

    Where the term's value over the completed requests is unsettled, so is this share.
    """
    late, metric = late_share(point, name, target), point.metrics.get(name)
    if late is None:
        return MET
    if metric is not None and metric.value is not None and not metric.settled:
        late = replace(late, state=metric.state)
    return interval_verdict(late, allowed(name), overloaded=out_of_hand(point), widen=widen)


def term_verdict(point: Point, name: str, target: float, widen: float = 1.0) -> str:
    """Return whether a point meets a term of its SLO: by the value over completed requests, and by all that are late.

    :param widen: factor on the half-widths, where a verdict has to be surer than 95 %.
    """
    by_value = interval_verdict(point.metrics.get(name), target, overloaded=out_of_hand(point), widen=widen)
    return _worst([by_value, late_verdict(point, name, target, widen)])


def lacks_answers(point: Point, name: str, target: float) -> bool:
    """Return whether it is for want of answers that a term isn't certainly met: most late requests have none."""
    late = late_share(point, name, target)
    if late is None or not late.value or late_verdict(point, name, target) == MET:
        return False
    lost, total = unserved(point)
    return total > 0 and lost / total >= late.value / 2


def certainly_late(point: Point, slo_terms: Mapping[str, float]) -> bool:
    """Return whether so many wait in vain when the run ends that one of the p99 targets is missed, whatever comes.

    Of points of older versions, which don't say for which target: more than 1 % of all for each of them, and one of
    these has its 1 %.
    """
    single = [name for name in slo_terms if name in ("ttft_p99_s", "e2e_p99_s", "queue_p99_s")]
    if point.late or not single or "tpot_mean_s" in slo_terms:
        return False
    impact = point.impact or Impact()
    return (impact.slow_unanswered or 0) > 0.01 * len(single) * impact.requests


def verdict(point: Point, slo_terms: Mapping[str, float], widen: float = 1.0) -> str:
    """Return the verdict over all terms: one that is not met decides, then one that is unclear.

    :param widen: factor on the half-widths of all intervals.
    """
    if not slo_terms:
        return NO_SLO
    if certainly_late(point, slo_terms):
        return NOT_MET
    return _worst([term_verdict(point, name, target, widen) for name, target in slo_terms.items()])


def _worst(words: Sequence[str]) -> str:
    return NOT_MET if NOT_MET in words else UNCLEAR if UNCLEAR in words else MET
