"""A simulation leaves nothing to the cycle collector, which is off meanwhile."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from sim.results.records import Recording
from sim.spec.scenario import Scenario
from sim.traffic import generate
from sim.world.build import build_world
from sim.world.fleet import Fleet
from sim.world.gc_pause import collector_paused
from sim.world.replication import simulate


@pytest.mark.parametrize(
    ("more", "most"),
    [
        ({}, 0),
        ({"fleet": {"engine": "vllm-0.32", "replicas": 2}}, 0),
        ({"fleet": {"engine": "lorax", "replicas": 2}, "cache": {"gpu": {"size": "1 GB"}}}, 0),
        ({"faults": [{"kind": "crash", "replica": 0, "at": "3 s", "down": "2 s"}]}, 500),  # the dead replica
    ],
    ids=["continuous", "vllm", "lorax", "crash"],
)
def test_a_simulation_leaves_nothing_in_cycles_while_it_runs(
    more: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "BLOCK", 1024)
    found: list[int] = []
    close = Fleet._close

    def collect_first(fleet: Fleet) -> Recording:
        found.append(gc.collect())
        return close(fleet)

    monkeypatch.setattr(Fleet, "_close", collect_first)
    world = build_world(
        Scenario.model_validate(
            {
                "schema_version": 1,
                "name": "garbage",
                "workload": {"requests": 4_000, "arrivals": {"process": "poisson", "rate": "20/s"}},
                "adapters": {"count": 200, "rank": 8},
                "cache": {"gpu": {"slots": 32}},
                "fleet": {"replicas": 2},
                **more,
            }
        )
    )
    gc.collect()
    with collector_paused():
        recording = simulate(world, 0, 20)
    assert len(recording.loads["started_s"]) > 200, "without loads it would show nothing"
    assert len(found) == 1
    assert found[0] <= most


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_is_left_as_it_was(on: bool) -> None:
    was_on = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        with collector_paused():
            assert not gc.isenabled()
        assert gc.isenabled() == on
        with pytest.raises(ZeroDivisionError), collector_paused():
            raise ZeroDivisionError
        assert gc.isenabled() == on
    finally:
        (gc.enable if was_on else gc.disable)()
