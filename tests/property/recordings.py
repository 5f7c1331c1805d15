"""Runs of drawn scenarios, what laws of every kind ask of their recordings, and checks at every step boundary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sim.results.records import COMPLETED, STATUS_WORDS, Recording
from sim.spec.scenario import Scenario
from sim.world.build import build_world
from sim.world.replica.continuous import BatchServer
from sim.world.replica.server import FixedServer
from sim.world.replication import simulate
from sim.world.world import World


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


def simulate_checked(world: World, sections: int) -> tuple[Recording, list[float]]:
    """Simulate, checking replicas after every boundary or service; also return the times of the checks."""
    times: list[float] = []

    def check(server: Any) -> None:
        server.check_integrity()
        times.append(server.clock.now)

    def checked(server: type[BatchServer]) -> Callable[..., BatchServer]:
        class CheckedServer(server):  # type: ignore[valid-type, misc]
            def boundary(self, event: Any) -> None:
                super().boundary(event)
                check(self)

        return CheckedServer

    served = FixedServer._served

    def checked_service(self: FixedServer, event: Any) -> None:
        served(self, event)
        check(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FixedServer, "_served", checked_service)
        return simulate(world, 0, sections, checked), times


def assert_sums_agree_at_every_boundary(scenario: Scenario) -> None:
    recording, times = simulate_checked(build_world(scenario), 1)
    ended = np.any(recording.requests["finished_s"] >= 0)
    assert times or not ended, "the checks are not called any more"
