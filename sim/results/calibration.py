"""Calibration intervals: what the draws of a profile leave open (docs/statistics.md).

A profile is fitted to finitely many measurements. Others would give other costs, and the bootstrap draws show how
different they would be. Each is simulated on the traffic of one replication and compared with the profile itself on the
same traffic, so that only the costs differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.results.catalogue import ONLY_WITH_PRICE, SHARES
from sim.results.intervals import student
from sim.results.point import COUNTS, LateShare, Metric, Point, TenantResult
from sim.results.point_summary import measure_alone
from sim.results.records import Recording
from sim.results.sample_data import ScenarioFacts
from sim.results.slices import tenant_results

_COMPARABLE = 10.0
"""Values further apart than this factor are compared by their difference: one is near 0, or near saturation."""


@dataclass(frozen=True, slots=True)
class ReplicationValues:
    """What one replication by itself says.

    :ivar values: by metric; None where it has not enough data.
    :ivar overloaded: whether more requests arrive than are served.
    :ivar late: share of late requests by latency term of the SLO.
    :ivar tenants: the same for the requests of each tenant; () without tenants.
    """

    values: dict[str, float | None]
    overloaded: bool
    late: dict[str, float | None] = field(default_factory=dict)
    tenants: tuple[ReplicationValues, ...] = ()


def values_of_replication(recording: Recording, facts: ScenarioFacts) -> ReplicationValues:
    """Return what one replication says by itself."""
    metrics, late, overloaded = measure_alone(recording, facts)
    tenants = tuple(
        _values(each.metrics, each.late, overloaded=each.overload is not None)
        for each in tenant_results([recording], facts, alone=True)
    )
    return replace(_values(metrics, late, overloaded=overloaded), tenants=tenants)


def _values(metrics: Mapping[str, Metric], late: Mapping[str, LateShare], *, overloaded: bool) -> ReplicationValues:
    values = {name: metric.value for name, metric in metrics.items()}
    return ReplicationValues(values, overloaded, {name: each.share.value for name, each in late.items()})


def with_calibration(
    point: Point, own: Sequence[ReplicationValues], drawn: Sequence[ReplicationValues], of: int
) -> Point:
    """Return the point with calibration intervals.

    :param own: (R,) the replications with the profile's own costs; ``drawn``: (K,) draws, the k-th on the traffic of
        replication k modulo R.
    :param of: how many draws the profile has.
    """
    pairs = [(own[k % len(own)], draw) for k, draw in enumerate(drawn)]
    overloaded = sum(draw.overloaded for draw in drawn)
    warnings = list(point.warnings)
    if overloaded and not all(each.overloaded for each in own):
        warnings.append(
            f"with {overloaded} of {len(drawn)} draws of the profile's costs more requests arrive than are served: the "
            "profile does not show whether this load can be served, and calibration intervals depend on how long the "
            "run is"
        )
    tenants = [
        replace(tenant, **_parts(tenant, [(before.tenants[place], after.tenants[place]) for before, after in pairs]))
        for place, tenant in enumerate(point.tenants)
    ]
    calibration = {"draws": len(drawn), "of": of, "overloaded": overloaded}
    return replace(point, **_parts(point, pairs), calibration=calibration, warnings=warnings, tenants=tenants)


_Pairs = Sequence[tuple[ReplicationValues, ReplicationValues]]
"""What the profile's own costs and a draw of it give on the same traffic."""


def _parts(one: Point | TenantResult, pairs: _Pairs) -> dict[str, Any]:
    """Return the metrics and the shares of late requests with their calibration intervals."""
    found = {
        # Counts are exact for their run; draws are not priced.
        name: metric
        if metric.unit in COUNTS or name in ONLY_WITH_PRICE
        else _calibrated(name, metric, [(before.values[name], after.values[name]) for before, after in pairs])
        for name, metric in one.metrics.items()
    }
    good, served = found.get("goodput_rps"), found.get("throughput_rps")
    if good and good.value and served and good.calibration_hi:  # what is good is a part of what is served
        most = max(good.value, served.hi or 0.0, served.calibration_hi or 0.0)
        found["goodput_rps"] = replace(good, calibration_hi=min(good.calibration_hi, most))
    late = {}
    for name, each in one.late.items():
        values = [(before.late[name], after.late[name]) for before, after in pairs]
        late[name] = replace(each, share=_calibrated("slo_attainment", each.share, values))
    return {"metrics": found, "late": late}


def _calibrated(name: str, metric: Metric, values: Sequence[tuple[float | None, float | None]]) -> Metric:
    """Return a metric with its calibration interval, where every pair of replication and draw has a value."""
    known = [(before, after) for before, after in values if before is not None and after is not None]
    if metric.value is None or metric.lo is None or len(known) < len(values):
        return metric
    low, high = bounds(name, metric, known)
    return replace(metric, calibration_lo=low, calibration_hi=high)


def bounds(name: str, metric: Metric, pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the ends of the 95 % calibration interval of a value.

    Student's t, with as many degrees of freedom as there are draws, times the root mean square distance of the draws
    from the profile's own value; never narrower than the draws themselves. Distances are logarithms of ratios, so that
    times and rates stay above 0; of shares and of values near 0 they are differences.

    :param pairs: (own, drawn) values of the metric on the same traffic.
    """
    value = metric.value
    assert value is not None, "there is nothing to put an interval around"
    own, drawn = (np.asarray(side, dtype=np.float64) for side in zip(*pairs, strict=True))
    relative = metric.unit != "1" and value > 0 and bool(np.all(own > 0) and np.all(drawn > 0))
    if relative and np.all(np.abs(np.log(drawn / own)) <= math.log(_COMPARABLE)):
        low, high = _reach(np.log(drawn / own))
        return value * math.exp(low), value * math.exp(high)
    low, high = _reach(drawn - own)
    return max(0.0, value + low), min(1.0 if name in SHARES else math.inf, value + high)


def _reach(distances: NDArray[np.float64]) -> tuple[float, float]:
    half = student(len(distances)) * math.sqrt(float(np.mean(distances**2)))
    return min(-half, float(distances.min())), max(half, float(distances.max()))
