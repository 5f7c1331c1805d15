"""What holding a rollout avoided: the same traffic without and with it, compared in the time it would have taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sim.results.catalogue import CATALOGUE
from sim.results.metrics import Measured
from sim.results.model import Count, HeldBack, HeldBackRollout, MetricChange
from sim.results.pairs import difference_of
from sim.results.point import Metric, Point
from sim.results.records import COMPLETED, Recording
from sim.results.run_directory.result_files import json_ready
from sim.results.sample_data import MeasuredRequests, ScenarioFacts
from sim.results.traffic_digest import traffic_ids

NAMES = (
    "rollout_ttft_p99_s",
    "rollout_e2e_p99_s",
    "rollout_miss_ratio",
    "rollout_loads",
    "rollout_peak_loads_per_s",
)
"""Metrics of the requests that come, and of the loads that begin, from the rollout's begin on."""
_KEPT = ("unit", "one", "other", "change", "lo", "hi", "word", "note")


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
    found = {name: difference_of(sides[0], sides[1], name) for name in NAMES}
    changes = {
        name: MetricChange(**{key: json_ready(getattr(d, key)) for key in _KEPT})
        for name, d in found.items()
        if d is not None
    }
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
