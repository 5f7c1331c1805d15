"""Full models beside adapters: nobody else notices them, and a pool that swaps them keeps its rule."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from naive_swap import Job, Swapping
from strategies import ODD, build, fixed_time, poisson, seconds, write_profile, write_trace

from sim.results.records import COMPLETED, Recording
from sim.spec.scenario import Scenario
from sim.traffic.generate import Chunk
from sim.world.build import build_world
from sim.world.replica.continuous import BatchServer
from sim.world.replication import assemble, simulate
from sim.world.times import request_times
from sim.world.world import World

STEP = {
    "fixed_s": 0.004 * ODD,
    "tokens": [[0, 0.0], [64, 0.016]],
    "per_kv_token_s": 2e-5 * ODD,
    "lora": {"fixed_s": 0.002, "per_slot_s": 1e-4, "per_adapter_s": 3e-4, "per_adapter_rank_s": 1e-5},
    "per_passed_s": 1e-4,
}
FULL_FIRST = [{"share": 0.4, "kind": "full", "size": "2 GB"}, {"share": 0.6, "rank": 8, "size": "2 MiB"}]
FREE_OF_REPLICAS = (
    "arrival_s",
    "adapter",
    "outcome",
    "tier",
    "preemptions",
    "load_queue_s",
    "load_wait_s",
    "admitted_s",
    "first_token_s",
    "finished_s",
    "status",
)

Rows = list[tuple[float, int, int, int]]


@st.composite
def rows(draw: st.DrawFn, adapters: int, most: int = 40) -> Rows:
    """Rows of a trace at odd times, so that nothing happens at the same instant by chance."""
    row = st.tuples(st.integers(1, 400), st.integers(0, adapters - 1), st.integers(1, 8), st.integers(1, 30))
    found, time = [], 0.0
    for gap, adapter, prompt, output in draw(st.lists(row, min_size=1, max_size=most)):
        time += gap * ODD * 0.9713e-3
        found.append((time, adapter, prompt, output))
    return found


def scenario_of(trace: Rows, full_models: dict[str, Any] | None, count: int = 8, **more: Any) -> Scenario:
    # A fault must begin before the last request.
    assume("faults" not in more or trace[-1][0] > 0.3)
    # A first row for each adapter in turn numbers them as the trace names them.
    names = [(0.0, adapter, 1, 1) for adapter in range(count)]
    fleet = {
        "profile": write_profile(STEP, {"open_s": 0.011, "bandwidth_bytes_per_s": 2.0**33}),
        "kv_tokens": 65536,
        "max_num_seqs": 6,
        "max_num_batched_tokens": 512,
        **more.pop("fleet", {}),
    }
    if full_models is not None:
        fleet["full_models"] = full_models
    adapters = more.pop("adapters", {"count": count, "mix": FULL_FIRST})
    return build(
        workload={"trace": {"file": write_trace(names + [(t + 5, *rest) for t, *rest in trace])}},
        adapters=adapters,
        fleet=fleet,
        cache={"gpu": {"slots": 3}, **more.pop("cache", {})},
        **more,
    )


@st.composite
def pools(draw: st.DrawFn) -> dict[str, Any]:
    if draw(st.booleans()):
        return {"serve": "dedicated", "replicas": draw(st.integers(1, 2))}
    full = {
        "serve": "swap",
        "replicas": draw(st.integers(1, 3)),
        "resident": draw(st.integers(1, 3)),
        "turn": seconds(draw(st.sampled_from((0.0, 0.05, 0.4))) * ODD),
    }
    if draw(st.booleans()):
        full["load"] = {"law": "uniform", "low": "20 ms", "high": "90 ms"}
    return full


def crash(replica: int) -> dict[str, Any]:
    return {"kind": "crash", "replica": replica, "at": "5.1 s", "down": "400 ms", "detected": "30 ms"}


SLOW = {"kind": "slow-storage", "factor": 3, "at": "5.2 s", "lasts": "1 s"}


others = st.sampled_from(
    (
        {"fleet": {"replicas": 2}, "router": {"policy": "round-robin"}},
        {"fleet": {"replicas": 2}, "router": {"policy": "hash"}},
        {"fleet": {"replicas": 2}, "router": {"policy": "round-robin"}, "faults": (crash(0), crash(2))},
        {"fleet": {"replicas": 1}, "router": {"policy": "round-robin"}, "faults": (crash(1), SLOW)},
        {"fleet": {"replicas": 2}, "router": {"policy": "affinity-residency"}},
        {"fleet": {"replicas": 2}, "router": {"policy": "affinity-activity", "staleness": "0 s"}},
        {"fleet": {"replicas": 1, "engine": "vllm-0.8", "max_num_batched_tokens": 64}, "storage": {}},
        {"fleet": {"engine": "lorax"}},
        {"fleet": {"replicas": 2, "engine": "sglang"}, "cache": {"gpu": {"slots": 3, "base_model_slot": True}}},
        {"fleet": {"engine": "s-lora", "block_size": 1}, "cache": {"gpu": {"unified": True}}},
    )
)


def keeping(chunk: Chunk, chosen: np.ndarray) -> Chunk:
    """Return the requests of a chunk that were chosen, numbered anew."""
    arrays = {
        field.name: getattr(chunk, field.name)[chosen]
        for field in fields(chunk)
        if isinstance(getattr(chunk, field.name), np.ndarray)
    }
    return replace(chunk, first=0, **arrays)


def alone(world: World, chosen: np.ndarray) -> Recording:
    fleet = assemble(world, 0, 1).fleet
    chunk = keeping(next(world.traffic.chunks(0)), chosen)
    fleet._window = replace(fleet._window, total=len(chunk))
    return fleet.run(iter([chunk]))


@settings(max_examples=60)
@given(rows(8), pools(), others)
def test_each_part_of_the_fleet_is_as_if_the_other_had_no_requests(
    trace: Rows, full: dict[str, Any], other: dict[str, Any]
) -> None:
    world = build_world(scenario_of(trace, full, **{key: copy.deepcopy(value) for key, value in other.items()}))
    is_full = world.traffic.population.full
    whole = simulate(world, 0, 1).requests
    for part in (True, False):
        chosen = is_full[np.asarray(whole["adapter"])] == part
        own = world.scenario.fleet.replicas
        assert np.all((np.asarray(whole["replica"])[chosen] >= own) == part)
        if world.scenario.router.policy in ("round-robin", "hash") and not part and chosen.any():
            # Other routers draw by the number of a request, which is another one there.
            ours = alone(world, chosen).requests
            for name in (*FREE_OF_REPLICAS, "replica"):
                assert ours[name].tolist() == whole[name][chosen].tolist(), name
        elif part and chosen.any() and (full["serve"] == "dedicated" or full["replicas"] == 1):
            ours = alone(world, chosen).requests
            for name in FREE_OF_REPLICAS:
                assert ours[name].tolist() == whole[name][chosen].tolist(), name


def checked(server: type[BatchServer]) -> type[BatchServer]:
    """Return a class of servers that count everything anew at every boundary."""

    class Checked(server):  # type: ignore[misc, valid-type]
        __slots__ = ()

        def _next_leap(self, now: float) -> float:
            end_s = super()._next_leap(now)
            self.check_integrity()
            return float(end_s)

    return Checked


@settings(max_examples=60)
@given(rows(8), pools(), others)
def test_nobody_is_lost_and_every_cache_agrees_with_a_count(
    trace: Rows, full: dict[str, Any], other: dict[str, Any]
) -> None:
    scenario = scenario_of(trace, full, **{key: copy.deepcopy(value) for key, value in other.items()})
    world = build_world(scenario)
    assembly = assemble(world, 0, 1, checked)
    servers = assembly.fleet.servers
    recording = assembly.fleet.run(world.traffic.chunks(0))
    requests = recording.requests
    assert requests["status"].tolist() == [COMPLETED] * len(requests["status"])
    here = world.traffic.population.full[np.asarray(requests["adapter"])]
    loads = recording.loads["replica"] >= scenario.fleet.replicas
    assert int(np.sum(here & (requests["outcome"] == 2))) == int(loads.sum())
    for server in servers:
        server.check_integrity()
        if isinstance(server, BatchServer) and server.index >= scenario.fleet.replicas:
            assert server.scheduler.kv.tokens == 0
            assert server.cache.in_use <= server.cache.capacity
            for load, ended, replica in zip(
                recording.loads["started_s"], recording.loads["ended_s"], recording.loads["replica"], strict=True
            ):
                if replica == server.index:  # nothing runs there meanwhile
                    first = np.asarray(requests["first_token_s"])[np.asarray(requests["replica"]) == replica]
                    assert not np.any((first > load) & (first < ended))
    again = simulate(world, 0, 1)
    assert {name: column.tobytes() for name, column in requests.items()} == {
        name: column.tobytes() for name, column in again.requests.items()
    }


@settings(max_examples=80)
@given(rows(8), st.integers(1, 3), st.sampled_from((0.0, 0.06, 0.5)), st.integers(1, 5))
def test_a_pool_of_one_does_what_a_naive_one_does(trace: Rows, resident: int, turn_s: float, seats: int) -> None:
    turn_s *= ODD
    full = {
        "serve": "swap",
        "resident": resident,
        "turn": seconds(turn_s),
        "load": {"law": "uniform", "low": "20 ms", "high": "90 ms"},
    }
    world = build_world(scenario_of(trace, full, fleet={"max_num_seqs": seats}))
    chunk = next(world.traffic.chunks(0))
    chosen = np.flatnonzero(world.traffic.population.full[chunk.adapter])
    served = world.pools[-1]
    load_s = request_times(served.scenario, served.profile, served.population).load(chunk)
    jobs = [
        Job(
            int(i),
            float(chunk.arrival_s[i]),
            int(chunk.adapter[i]),
            int(chunk.prompt_tokens[i]),
            int(chunk.output_tokens[i]),
            float(load_s[i]),
        )
        for i in chosen
    ]
    step = served.profile.step
    slope = step.tokens[1][1] / step.tokens[1][0]
    naive = Swapping(
        jobs, lambda tokens, kv: step.fixed_s + slope * tokens + step.per_kv_token_s * kv, resident, turn_s, seats
    )
    naive.run()
    requests = simulate(world, 0, 1).requests
    for name in ("admitted_s", "first_token_s", "finished_s"):
        assert np.asarray(requests[name])[chosen].tolist() == pytest.approx([getattr(job, name) for job in jobs])
    assert np.asarray(requests["outcome"])[chosen].tolist() == [job.outcome for job in jobs]


@settings(max_examples=40)
@given(rows(1, most=60), st.integers(1, 3), st.integers(0, 99))
def test_dedicated_replicas_are_a_plain_fleet_without_lora(trace: Rows, replicas: int, seed: int) -> None:
    run = {"seed": seed, "warmup": 0}
    mix = [{"share": 0.5, "kind": "full", "size": "2 GB"}, {"share": 0.5, "size": "2 MiB"}]
    full = {"serve": "dedicated", "replicas": replicas}
    ours = simulate(build_world(scenario_of(trace, full, 1, adapters={"count": 1, "mix": mix}, run=run)), 0, 1)
    without = write_profile({name: cost for name, cost in STEP.items() if name not in ("lora", "per_passed_s")})
    plain = scenario_of(
        trace,
        None,
        1,
        adapters={"count": 1, "size": "2 MiB"},
        run=run,
        router={"policy": "least-loaded"},
        fleet={"replicas": replicas, "profile": without},
        cache={"gpu": {"slots": 1}, "pinned": 1},
    )
    theirs = simulate(build_world(plain), 0, 1)
    for name in FREE_OF_REPLICAS:
        assert ours.requests[name].tobytes() == theirs.requests[name].tobytes(), name
    assert (ours.requests["replica"] - 1).tolist() == theirs.requests["replica"].tolist()
    assert ours.gap_counts.tobytes() == theirs.gap_counts.tobytes()
    assert ours.busy_s.tolist() == theirs.busy_s.tolist()


@pytest.mark.parametrize("full", [{"serve": "dedicated"}, {"serve": "swap", "replicas": 2, "turn": "1 s"}])
@pytest.mark.parametrize("engine", ["continuous", "vllm-0.8", "lorax"])
def test_a_mix_without_full_models_is_as_if_nobody_had_thought_of_them(full: dict[str, Any], engine: str) -> None:
    parts: dict[str, Any] = {
        "workload": poisson(400, "30/s", popularity={"law": "zipf", "exponent": 0.9}),
        "cache": {"gpu": {"slots": 6}},
        "router": {"policy": "affinity-residency"},
        "run": {"seed": 3, "warmup": 0},
    }
    fleet = {"replicas": 2, "engine": engine}
    kinds = [{"share": 0.5, "rank": 8}, {"share": 0.5, "rank": 32, "targets": ["q", "v"]}]
    plain = simulate(build_world(build(**parts, adapters={"count": 40, "mix": kinds}, fleet=fleet)), 0, 20)
    mix = [*kinds, {"share": 0, "kind": "full"}]
    beside = build(**parts, adapters={"count": 40, "mix": mix}, fleet={**fleet, "full_models": full})
    ours = simulate(build_world(beside), 0, 20)
    for name, column in plain.requests.items():
        assert ours.requests[name].tobytes() == column.tobytes(), name
    for name in ("gap_counts", "gap_sum_s", "busy_s", "blocked_s"):
        assert getattr(ours, name).tobytes() == getattr(plain, name).tobytes(), name
    for name, values in plain.loads.items():
        assert ours.loads[name].tobytes() == values.tobytes(), name


def alternating(gap_s: float, full: dict[str, Any]) -> Recording:
    """Return twelve requests that ask for two full models in turn, all the same."""
    mix = [{"share": share, "kind": "full", "size": size} for share, size in ((0.5, "2 GB"), (0.4, "3 GB"))]
    mix.append({"share": 0.1, "size": "1 MiB"})
    trace = [(gap_s * i, i % 2, 4, 5) for i in range(12)]
    fleet = {
        "profile": write_profile({"fixed_s": 0.01}, {"open_s": 0.05, "bandwidth_bytes_per_s": 1e9}),
        "kv_tokens": 4096,
        "full_models": {"serve": "swap", **full},
    }
    scenario = build(workload={"trace": {"file": write_trace(trace)}}, adapters={"count": 2, "mix": mix}, fleet=fleet)
    return simulate(build_world(scenario), 0, 1)


def test_two_models_in_turn_take_a_load_and_a_service_each() -> None:
    recording = alternating(10.0, {})
    requests = recording.requests
    sizes = np.array([2.0, 3.0])[np.asarray(requests["adapter"])]  # GB, at 1 GB/s
    assert requests["finished_s"] - requests["arrival_s"] == pytest.approx(0.05 + sizes + 5 * 0.01)
    assert requests["load_wait_s"] == pytest.approx(0.05 + sizes)
    assert requests["outcome"].tolist() == [2] * 12


def test_at_once_they_come_first_served_and_swap_for_each() -> None:
    recording = alternating(0.0, {})
    each = 0.05 + np.array([2.0, 3.0] * 6) + 5 * 0.01
    assert recording.requests["finished_s"] == pytest.approx(np.cumsum(each))


def test_with_a_turn_all_requests_of_a_model_share_its_load() -> None:
    recording = alternating(0.0, {"turn": "1 s"})
    assert sorted(recording.loads["adapter"].tolist()) == [0, 1]
    finished = np.asarray(recording.requests["finished_s"])
    later = np.array([0, 1, 1, 1, 1, 1]) * 0.01  # the turn begins with the end of the load: they join a step later
    first = 0.05 + 2 + 5 * 0.01 + later
    assert finished[::2] == pytest.approx(first)
    assert finished[1::2] == pytest.approx(first[-1] + 0.05 + 3 + 5 * 0.01)  # by then nobody is before them


@pytest.mark.parametrize("turn_s", [0.0, 0.7])
def test_a_model_that_is_never_idle_lets_another_one_in_after_its_turn(turn_s: float) -> None:
    steps, fixed_s, load_s = 40, 0.01, 0.5
    trace = [(0.02 * i, 0, 1, steps) for i in range(300)]
    trace.append((1.0013, 1, 1, steps))
    mix = [{"share": 0.9, "kind": "full", "size": "2 GB"}, {"share": 0.1, "size": "1 MiB"}]
    fleet = {
        "profile": write_profile({"fixed_s": fixed_s}),
        "kv_tokens": 65536,
        "full_models": {"serve": "swap", "turn": seconds(turn_s), "load": fixed_time(load_s)},
    }
    scenario = build(
        workload={"trace": {"file": write_trace(sorted(trace))}}, adapters={"count": 2, "mix": mix}, fleet=fleet
    )
    requests = simulate(build_world(scenario), 0, 1).requests
    other = np.asarray(requests["adapter"]) == 1
    waited = float((requests["admitted_s"] - requests["arrival_s"])[other][0])
    over = max(0.0, load_s + turn_s - 1.0013)  # the first load began at 0
    assert waited <= over + (steps + 1) * fixed_s + 1e-9
    assert waited > over, "somebody is there all the time"
