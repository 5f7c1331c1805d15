"""Checks a replica against counts from scratch, at every step boundary of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from sim.spec.scenario import Scenario
from sim.world.build import build_world
from sim.world.replica.continuous import BatchServer
from sim.world.replica.fixed import FixedServer
from sim.world.replication import simulate


@contextmanager
def checked_boundaries() -> Iterator[list[float]]:
    """Check replicas after every boundary or service; yields the times of the checks so far. Interpreted code only."""
    times: list[float] = []

    def checked(method: Any) -> Any:
        def wrapper(self: Any, event: Any) -> None:
            method(self, event)
            self.check_integrity()
            times.append(self.clock.now)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchServer, "boundary", checked(BatchServer.boundary))
        patch.setattr(FixedServer, "_served", checked(FixedServer._served))
        yield times


def assert_sums_agree_at_every_boundary(scenario: Scenario) -> None:
    with checked_boundaries() as times:
        recording = simulate(build_world(scenario), 0, 1)
    ended = np.any(recording.requests["finished_s"] >= 0)
    assert times or not ended, "the wrapped methods are not called any more"
