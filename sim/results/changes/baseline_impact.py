"""The impact of rollouts and faults: what they did beyond what happens in the same traffic without them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.results.changes.change_metrics import wrong_ones
from sim.results.changes.change_summary import impact_of
from sim.results.model import WRONG_KINDS, Impact
from sim.results.point import Point
from sim.results.records import Recording
from sim.results.sample_data import MeasuredRequests, ScenarioFacts
from sim.results.statistics import mean_count

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class UsualImpact:
    """What happens to the measured requests of one replication without the rollouts and faults.

    :ivar wrong, late: the requests concerned, by index.
    :ivar impact: how many they are, by kind.
    """

    wrong: Ints
    late: Ints
    impact: Impact


def usual_impact(baseline: Recording, facts: ScenarioFacts) -> UsualImpact:
    """Return what happens in one replication of the baseline.

    :param facts: of the scenario with its rollouts and faults.
    """
    m = MeasuredRequests([baseline], facts)
    index, impact = m.column("index").astype(np.int64), impact_of(m)
    assert impact is not None, "the scenario has rollouts or faults"
    return UsualImpact(index[wrong_ones(m)], index[_late_ones(m)], impact)


def with_impact(
    point: Point, recordings: Sequence[Recording], facts: ScenarioFacts, usual: Sequence[UsualImpact]
) -> Point:
    """Return the point with the impact beyond the usual: of each replication, the difference to its baseline.

    The same requests come to both, so most of the chance cancels. A request that would be late anyway still counts if
    its answer is wrong: both times it is the same request.

    :param usual: of the same replications.
    """
    m = MeasuredRequests(list(recordings), facts)
    wrong, late = wrong_ones(m), _late_ones(m)
    was_wrong, was_late = _found(m, [each.wrong for each in usual]), _found(m, [each.late for each in usual])
    only_late = m.by_replication(late & ~wrong) - m.by_replication(was_late & ~wrong & ~was_wrong)
    excess = m.by_replication(wrong) - m.by_replication(was_wrong) + only_late
    impact, before = impact_of(m), [each.impact for each in usual]
    assert impact is not None, "the scenario has rollouts or faults"
    beyond = {name: impact.mean(name) - float(np.mean([each.mean(name) for each in before])) for name in WRONG_KINDS}
    beyond["slow"] = float(only_late.mean())
    return replace(
        point,
        metrics={**point.metrics, "harmed_excess": mean_count(excess, "requests", least=-math.inf)},
        impact=replace(impact, beyond={name: count for name, count in beyond.items() if count}),
    )


def _late_ones(m: MeasuredRequests) -> Mask:
    return np.zeros(len(m.section), dtype=np.bool_) if m.slow is None else m.slow


def _found(m: MeasuredRequests, indexes: Sequence[Ints]) -> Mask:
    """Return which measured requests are among those of their replication."""
    index, replication = m.column("index"), m.replication
    found = np.zeros(len(index), dtype=np.bool_)
    for place, some in enumerate(indexes):
        here = replication == place
        found[here] = np.isin(index[here], some)
    return found
