"""Runs of drawn scenarios, and what laws of every kind of scenario ask of their recordings."""

from __future__ import annotations

import numpy as np

from sim.results.records import COMPLETED, STATUS_WORDS, Recording
from sim.spec.scenario import Scenario
from sim.world.build import build_world
from sim.world.replication import simulate


def run(scenario: Scenario, replication: int = 0) -> Recording:
    return simulate(build_world(scenario), replication, 1)


def tables(recording: Recording) -> dict[str, bytes]:
    """Return everything that is recorded of requests, loads and time."""
    columns = {**recording.requests, **{f"load {name}": column for name, column in recording.loads.items()}}
    names = ("gap_counts", "gap_sum_s", "busy_s", "blocked_s", "busy_by_replica", "bounds")
    columns |= {name: getattr(recording, name) for name in names}
    return {name: column.tobytes() for name, column in columns.items()}


def marked(recording: Recording, mark: int) -> np.ndarray:
    return np.asarray((recording.requests["marks"].astype(np.int64) & mark) > 0)


def ends_of(scenario: Scenario, recording: Recording) -> dict[str, int]:
    """Return how many requests ended in each way, after checking that each that arrived has a row of its own."""
    requests, end_s = recording.requests, scenario.workload.duration or np.inf
    arrived = sum(int(np.sum(chunk.arrival_s < end_s)) for chunk in build_world(scenario).traffic.chunks(0))
    assert requests["index"].tolist() == list(range(arrived))
    ends = {word: int(np.sum(requests["status"] == status)) for status, word in enumerate(STATUS_WORDS)}
    assert sum(ends.values()) == arrived
    assert np.all((requests["finished_s"] >= 0) == (requests["status"] == COMPLETED))
    return ends
