"""The same traffic without what changes: the impact of rollouts and faults, and what holding a rollout back avoided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sim.arrays import Ints, Mask
from sim.results.catalogue import CATALOGUE
from sim.results.change_metrics import impact_of, wrong_ones
from sim.results.metrics import Measured
from sim.results.model import WRONG_KINDS, Count, HeldBack, HeldBackRollout, Impact
from sim.results.pairs import difference_of
from sim.results.point import Metric, Point
from sim.results.point_summary import traffic_ids
from sim.results.records import COMPLETED, Recording
from sim.results.run_directory.result_files import json_ready
from sim.results.sample_data import MeasuredRequests, ScenarioFacts
from sim.results.statistics import mean_count


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
    index, replication = m.column("index"), m.replication
    found = np.zeros(len(index), dtype=np.bool_)
    for place, some in enumerate(indexes):
        here = replication == place
        found[here] = np.isin(index[here], some)
    return found


# What holding a rollout avoided: the same traffic without and with it, compared in the time it would have taken.

NAMES = ("rollout_ttft_p99_s", "rollout_e2e_p99_s", "rollout_miss_ratio", "rollout_loads", "rollout_peak_loads_per_s")
"""Metrics of the requests that come, and of the loads that begin, from the rollout's begin on."""


@dataclass(frozen=True, slots=True)
class WithheldVersions:
    """The versions that the rollout would have brought.

    :ivar adapters: that it would have replaced, as the traffic numbers them; ``versions``: by what, one for each.
    :ivar from_s, to_s: the time that counts as during it.
    """

    adapters: tuple[int, ...]
    versions: tuple[int, ...]
    from_s: float
    to_s: float


def avoided(
    happened: Sequence[Recording],
    otherwise: Sequence[Recording],
    facts: ScenarioFacts,
    held: Sequence[WithheldVersions],
    rollouts: list[HeldBackRollout],
) -> HeldBack:
    """Return what the requests of the same traffic would have met with.

    :param happened: replications without the rollouts held back, ``otherwise``: with them; ``facts``: of these.
    :param rollouts: which ones they are, and why they are held back.
    """
    begins, ends = min(each.from_s for each in held), max(each.to_s for each in held)
    sides = []
    for recordings in (happened, otherwise):
        marked = [replace(r, facts={**r.facts, "during_from_s": begins, "during_to_s": ends}) for r in recordings]
        measured = Measured(marked, facts)
        metrics = {name: metric for name in NAMES if (metric := CATALOGUE[name].of(measured)) is not None}
        sides.append(Point({}, metrics, traffic_ids=traffic_ids(marked, facts)))
    m = MeasuredRequests(list(otherwise), facts)
    each = [_answered(m, (one,)) for one in held]
    changes = {name: d for name in NAMES if (d := difference_of(sides[0], sides[1], name)) is not None}
    requests = round(len(m.section) / m.replications)
    return HeldBack(rollouts, requests, _count(_answered(m, held)), [_count(metric) for metric in each], changes)


def _answered(m: MeasuredRequests, held: Sequence[WithheldVersions]) -> Metric:
    """Return the measured requests whose last token would have come from a version that is held back."""
    count = len(m.facts.size_bytes)
    adapter, version = m.column("adapter").astype(np.int64), m.column("last_version").astype(np.int64)
    done = m.column("status") == COMPLETED
    found = np.zeros(len(done), dtype=np.bool_)
    for each in held:
        brings = np.zeros(count + 1, dtype=np.int64)  # last: of the base model, nothing
        brings[list(each.adapters)] = each.versions
        found |= done & (version > 0) & (version == brings[adapter])
    return m.counted(found)


def _count(metric: Metric) -> Count:
    return Count(*json_ready([metric.value, metric.lo, metric.hi]))
