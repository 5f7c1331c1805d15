"""Requests that once waited for each other forever: each of them must finish."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from strategies import build, fixed_time, poisson, run, write_profile, write_trace

from sim.errors import LoraplanError
from sim.results.records import COMPLETED, REFUSED
from sim.spec.scenario import Scenario
from sim.world.build import build_world
from sim.world.fleet import Fleet
from sim.world.replication import assemble

SEEDS = range(20)


def fleet_of(scenario: Scenario) -> tuple[Fleet, np.ndarray]:
    """Run a scenario; return what ran and how each request ended."""
    world = build_world(scenario)
    fleet = assemble(world, 0, 1).fleet
    return fleet, fleet.run(world.traffic.chunks(0)).requests["status"]


UNIFORM = {"law": "uniform"}


@pytest.mark.parametrize("crash", [False, True])
def test_a_request_with_its_last_token_keeps_no_swap_waiting(crash: bool) -> None:
    """The second rollout finds the adapter closed, and begins as the last request for it leaves."""
    rollouts = [
        {"strategy": "unload-then-load", "at": "0.5 s", "spread": "0.1 s"},
        {"strategy": "drain-then-swap", "at": "0.7 s", "spread": "0.1 s"},
    ]
    faults = [{"kind": "crash", "replica": 0, "at": "0.4 s", "down": "0.15 s"}] if crash else []
    for seed in range(60):
        scenario = build(
            workload=poisson(80, "20/s", popularity=UNIFORM),
            adapters={"count": 6, "size": "1 MB"},
            cache={"gpu": {"slots": 2}},
            fleet={"engine": "fixed", "service": fixed_time(0.04)},
            storage={"load": fixed_time(0.002)},
            rollouts=rollouts,
            faults=faults,
            run={"seed": seed, "warmup": 0},
        )
        _, status = fleet_of(scenario)
        assert np.all((status == COMPLETED) | (status == REFUSED)), f"seed {seed}"


@pytest.mark.parametrize("slots", [1, 2])
def test_held_requests_come_in_behind_one_that_has_the_only_place(slots: int) -> None:
    for seed in SEEDS:
        scenario = build(
            workload=poisson(300, "15/s", 100, 20, popularity=UNIFORM),
            adapters={"count": 3 * slots, "size": "1 MB"},
            cache={"gpu": {"slots": slots}},
            fleet={"admission": "stop", "load_at": "admission"},
            storage={"load": fixed_time(0.03)},
            rollouts=[{"strategy": "drain-then-swap", "at": "5 s", "spread": "5 s"}],
            run={"seed": seed, "warmup": 0},
        )
        _, status = fleet_of(scenario)
        assert np.all(status == COMPLETED), f"seed {seed}"


def small(**fleet: Any) -> dict[str, Any]:
    near, far = ({"open_s": open_s, "bandwidth_bytes_per_s": 1e12} for open_s in (0.003, 0.02))
    profile = write_profile({"fixed_s": 0.001, "tokens": [[0, 0.0], [64, 0.001]]}, host=near, storage=far)
    return {"profile": profile, "max_num_seqs": 8, "max_num_batched_tokens": 16, "block_size": 1, **fleet}


PROMPT, OUTPUT = ({"law": "uniform", "low": 1, "high": high} for high in (8, 40))
TOKENS = {"prompt": PROMPT, "output": OUTPUT}


def test_who_was_loaded_for_goes_before_older_ones_that_came_to_the_queue_later() -> None:
    """Host memory fills at arrival, so a request may reach a queue that stops after a younger one."""
    for seed in SEEDS:
        scenario = build(
            workload=poisson(60, "20/s", popularity={"law": "cyclic"}, tokens=TOKENS),
            adapters={"count": 6, "size": "1 MiB"},
            fleet=small(kv_tokens=48, admission="stop", load_at="admission"),
            cache={"gpu": {"slots": 1}, "host": {"fill": "arrival"}, "prefetch": "queued"},
            run={"seed": seed, "warmup": 0},
        )
        _, status = fleet_of(scenario)
        assert np.all(status == COMPLETED), f"seed {seed}"


def test_a_large_adapter_gets_its_turn_though_several_small_ones_must_go() -> None:
    """Nobody runs, so no further step would take out the next one."""
    mix = [{"share": "50%", "rank": 4, "size": "2 MiB"}, {"share": "50%", "rank": 4, "size": "1 MiB"}]
    for seed in SEEDS:
        scenario = build(
            workload=poisson(30, "20/s", popularity=UNIFORM, tokens=TOKENS),
            adapters={"count": 6, "mix": mix},
            fleet=small(kv_tokens=60, engine="lorax"),
            cache={"gpu": {"size": "3 MiB"}, "eviction": "cycle"},
            run={"seed": seed, "warmup": 0},
        )
        _, status = fleet_of(scenario)
        assert np.all(status == COMPLETED), f"seed {seed}"


@pytest.mark.interpreted
def test_a_stand_still_is_an_error_and_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(0.0, 0, 8, 4), (1.0, 1, 8, 4)]
    scenario = build(
        workload={"trace": {"file": write_trace(rows)}}, adapters={"size": "1 MB"}, cache={"gpu": {"slots": 1}}
    )
    assert np.all(run(scenario).requests["status"] == COMPLETED)
    monkeypatch.setattr("sim.policies.adapter_cache.GpuCache.reserve", lambda cache, adapter: False)
    with pytest.raises(
        LoraplanError, match="stands still at 1 s with requests inside: replica 0 has 2 inside"
    ) as raised:
        run(scenario)
    assert raised.value.exit_code == 3
