"""Checks a replica against counts from scratch, at every step boundary of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sim.results.records import Recording
from sim.spec.scenario import Scenario
from sim.world.build import build_world
from sim.world.replica.continuous import BatchServer
from sim.world.replica.server import FixedServer
from sim.world.replication import simulate
from sim.world.world import World


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
