"""What holding a rollout avoided: the same traffic without and with it, compared in the time it would have taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sim.results.change_metrics import counted, window_metrics
from sim.results.pairs import difference_of
from sim.results.point import Metric, Point
from sim.results.records import COMPLETED, Recording
from sim.results.run_directory.result_files import json_ready
from sim.results.sample_data import Facts, Measured
from sim.results.traffic_digest import traffic_ids

NAMES = (
    "rollout_ttft_p99_s", "rollout_e2e_p99_s", "rollout_miss_ratio", "rollout_loads", "rollout_peak_loads_per_s",
)  # fmt: skip
"""Metrics of the requests that come, and of the loads that begin, from the rollout's begin on."""


@dataclass(frozen=True, slots=True)
class HeldBack:
    """A rollout that is held.

    :ivar adapters: whom it would have replaced, as the traffic numbers them; ``versions``: by what, one for each.
    :ivar from_s, to_s: the time that counts as during it.
    """

    adapters: tuple[int, ...]
    versions: tuple[int, ...]
    from_s: float
    to_s: float


def avoided(
    happened: Sequence[Recording], otherwise: Sequence[Recording], facts: Facts, held: Sequence[HeldBack]
) -> dict[str, Any]:
    """Return what the requests of the same traffic would have met with, as plain data.

    :param happened: replications without the held rollouts, ``otherwise``: with them; ``facts``: of these.
    :returns: ``{"requests", "answered": metric, "by_rollout": [metric], "metrics": {NAME: difference}}``: measured
        requests; those that a held version would have answered to the end, all together and by rollout; how much its
        rollout would have changed.
    """
    begins, ends = min(each.from_s for each in held), max(each.to_s for each in held)
    sides = []
    for recordings in (happened, otherwise):
        marked = [replace(r, facts={**r.facts, "during_from_s": begins, "during_to_s": ends}) for r in recordings]
        metrics = window_metrics(Measured(marked, facts))
        sides.append(Point({}, metrics, traffic_ids=traffic_ids(marked, facts)))
    m = Measured(list(otherwise), facts)
    each = [_answered(m, (one,)) for one in held]
    found = {name: difference_of(sides[0], sides[1], name) for name in NAMES}
    data: dict[str, Any] = json_ready({
        "requests": len(m.section), "answered": _plain(_answered(m, held)),
        "by_rollout": [_plain(metric) for metric in each],
        "metrics": {
            name: {"unit": d.unit, "one": d.one, "other": d.other, "change": d.change, "lo": d.lo, "hi": d.hi,
                   "word": d.word, "note": d.note}
            for name, d in found.items() if d is not None
        },
    })  # fmt: skip
    return data


def _answered(m: Measured, held: Sequence[HeldBack]) -> Metric:
    """Return the measured requests whose last token would have come from a held version."""
    count = len(m.facts.size_bytes)
    adapter, version = m.column("adapter").astype(np.int64), m.column("last_version").astype(np.int64)
    done = m.column("status") == COMPLETED
    found = np.zeros(len(done), dtype=np.bool_)
    for each in held:
        brings = np.zeros(count, dtype=np.int64)
        brings[list(each.adapters)] = each.versions
        found |= done & (version > 0) & (version == brings[adapter])
    return counted(m, found)


def _plain(metric: Metric) -> dict[str, Any]:
    return {"value": metric.value, "lo": metric.lo, "hi": metric.hi}
