"""Whether a point meets its SLO, by intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sim.results.point import Metric, Point

MET, NOT_MET, UNCLEAR, NO_SLO = "met", "not met", "unclear", "no SLO"


def term_verdict(metric: Metric | None, target: float, *, overloaded: bool = False, widen: float = 1.0) -> str:
    """Return whether a metric meets its target, by its interval.

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
    loads = [point.capacity.get(part, {}).get("offered_load") for part in ("loader", "compute")]
    known = [float(load) for load in loads if load is not None]
    return max(known) if known else None


def is_overloaded(point: Point) -> bool:
    """Return whether more arrives than can ever be served."""
    load = offered(point)
    return load is not None and load >= 1


def out_of_hand(point: Point) -> bool:
    """Return whether more arrives than is served, with the profile's costs or with some of its draws."""
    return is_overloaded(point) or bool(point.calibration.get("overloaded"))


def certainly_late(point: Point, slo_terms: Mapping[str, float]) -> bool:
    """Return whether so many wait in vain when the run ends that one of the p99 targets is missed, whatever comes.

    Latencies are those of completed requests. But of those that are late without an answer, each is beyond one of the
    targets for single requests: more than 1 % of all for each such target, and one of these has its 1 %.
    """
    single = [name for name in slo_terms if name in ("ttft_p99_s", "e2e_p99_s", "queue_p99_s")]
    if not single or "tpot_mean_s" in slo_terms:
        return False
    late, total = point.harm.get("slow_unanswered") or 0, point.harm.get("requests") or 0
    return late > 0.01 * len(single) * total


def verdict(point: Point, slo_terms: Mapping[str, float], widen: float = 1.0) -> str:
    """Return the verdict over all terms: one that is not met decides, then one that is unclear.

    :param widen: factor on the half-widths of all intervals.
    """
    if not slo_terms:
        return NO_SLO
    if certainly_late(point, slo_terms):
        return NOT_MET
    bad = out_of_hand(point)
    found = {
        term_verdict(point.metrics.get(name), target, overloaded=bad, widen=widen) for name, target in slo_terms.items()
    }
    return NOT_MET if NOT_MET in found else UNCLEAR if UNCLEAR in found else MET
