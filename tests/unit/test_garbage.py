"""What a simulation leaves to the cycle collector, which rests meanwhile, doesn't grow with its requests."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from sim.spec.scenario import Scenario
from sim.world.build import build_world, simulate
from sim.world.garbage import uncollected


def garbage_after(requests: int, **more: Any) -> int:
    """Return how many objects in cycles a simulation leaves, of which half of the requests miss."""
    world = build_world(
        Scenario.model_validate({
            "schema_version": 1, "name": "garbage",
            "workload": {"requests": requests, "arrivals": {"process": "poisson", "rate": "20/s"}},
            "adapters": {"count": 200, "rank": 8}, "cache": {"gpu": {"slots": 32}}, "fleet": {"replicas": 2}, **more,
        })
    )  # fmt: skip
    gc.collect()
    with uncollected():
        recording = simulate(world, 0, 20)
        assert len(recording.loads["started_s"]) > requests / 20, "without loads it would show nothing"
        return gc.collect()


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"fleet": {"engine": "vllm-0.32", "replicas": 2}},
        {"fleet": {"engine": "lorax", "replicas": 2}, "cache": {"gpu": {"size": "1 GB"}}},
        {"faults": [{"kind": "crash", "replica": 0, "at": "3 s", "down": "2 s"}]},
    ],
    ids=["continuous", "vllm", "lorax", "crash"],
)
def test_garbage_does_not_grow_with_requests(more: dict[str, Any]) -> None:
    short, long = garbage_after(1_500, **more), garbage_after(6_000, **more)
    assert long < short + 1_500, "less than one object for three more requests"


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_is_left_as_it_was(on: bool) -> None:
    was_on = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() == on
        with pytest.raises(ZeroDivisionError), uncollected():
            raise ZeroDivisionError
        assert gc.isenabled() == on
    finally:
        (gc.enable if was_on else gc.disable)()
