"""A simulation leaves nothing to the cycle collector, which is off meanwhile."""

from __future__ import annotations

import gc
from typing import Any
from weakref import ref

import pytest
from strategies import run

from sim.results.records import Recording
from sim.spec.scenario import Scenario
from sim.traffic import generate
from sim.world.build import build_world
from sim.world.fleet import Fleet
from sim.world.replication import collector_paused
from sim.world.world import World


def _world(more: dict[str, Any]) -> World:
    return build_world(
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


@pytest.mark.interpreted
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
    world = _world(more)
    gc.collect()
    with collector_paused():
        recording = run(world, sections=20)
    assert len(recording.loads["started_s"]) > 200, "without loads it would show nothing"
    assert len(found) == 1
    assert found[0] <= most


@pytest.mark.interpreted
def test_the_fleet_of_a_replication_is_freed_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a sweep keeps the memory of all its points until the next full collection, which is far away."""
    fleets: list[ref[Fleet]] = []
    close = Fleet._close

    def remember(fleet: Fleet) -> Recording:
        fleets.append(ref(fleet))
        return close(fleet)

    monkeypatch.setattr(Fleet, "_close", remember)
    run(_world({}), sections=20)
    assert [fleet() for fleet in fleets] == [None]


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


def test_frozen_objects_are_let_go_and_those_of_others_stay_frozen() -> None:
    with collector_paused():
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0
    gc.freeze()
    try:
        with collector_paused():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_garbage_of_a_replication_is_collected_at_its_end() -> None:
    class Node:
        pass

    with collector_paused():
        node = Node()
        node.me = node  # type: ignore[attr-defined]
        gone = ref(node)
        del node
        assert gone() is not None
    assert gone() is None


def test_a_signal_while_it_collects_leaves_the_collector_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(generation: int) -> int:
        raise KeyboardInterrupt

    was_on = gc.isenabled()
    gc.enable()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(gc, "collect", stopped)
            with pytest.raises(KeyboardInterrupt), collector_paused():
                pass
        assert gc.isenabled()
        assert gc.get_freeze_count() == 0
    finally:
        (gc.enable if was_on else gc.disable)()
