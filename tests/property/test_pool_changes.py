"""Rollouts and faults in fleets of pools: equal pools are one fleet, and crashes of unequal pools lose nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import tables
from strategies import faulty_scenarios, rollout_scenarios, run
from test_pool_laws import scenario

from sim.errors import InputError
from sim.results.records import COMPLETED, FAILED, REFUSED
from sim.spec.scenario import Scenario
from sim.world.build import build_world
from sim.world.pools.pool_times import PoolTimes

CRASH = {"kind": "crash", "replica": 1, "at": "1 s", "down": "2 s", "detected": "100 ms"}


def in_pools(one: Scenario, cut: int) -> Scenario:
    """Return the same fleet as pools of equal replicas: ``cut`` in the first, the others in the second."""
    data = one.model_dump(mode="json", by_alias=True, exclude_unset=True)
    replicas = one.fleet.replicas
    data["fleet"] = {key: value for key, value in data["fleet"].items() if key != "replicas"}
    data["fleet"]["pools"] = [{"name": "a", "replicas": cut}, {"name": "b", "replicas": replicas - cut}]
    return Scenario.model_validate(data)


def same_everything(one: Scenario, cut: int) -> None:
    plain = run(one, sections=3)
    pooled = run(in_pools(one, cut), sections=3)
    assert tables(pooled) == tables(plain)
    assert repr(pooled.facts) == repr(plain.facts), "as text: no nan equals another"
    assert pooled.events == plain.events


@settings(max_examples=40, deadline=None)
@given(faulty_scenarios(several=True), st.data())
def test_equal_pools_with_faults_are_one_fleet_to_the_byte(one: Scenario, data: st.DataObject) -> None:
    same_everything(one, data.draw(st.integers(1, one.fleet.replicas - 1)))


@settings(max_examples=40, deadline=None)
@given(rollout_scenarios(several=True), st.data())
def test_equal_pools_with_rollouts_are_one_fleet_to_the_byte(one: Scenario, data: st.DataObject) -> None:
    same_everything(one, data.draw(st.integers(1, one.fleet.replicas - 1)))


pools = st.lists(
    st.fixed_dictionaries(
        {"replicas": st.integers(1, 3)},
        optional={
            "kv_tokens": st.sampled_from((2048, 65536)),
            "storage": st.sampled_from(({"load": {"law": "fixed", "value": "13 ms"}}, {"load": None})),
            "serves": st.sampled_from(("all", "adapters", {"kinds": [1]})),
        },
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=30, deadline=None)
@given(pools, st.data())
def test_crashes_in_unequal_pools_lose_no_request(specs: list[dict[str, Any]], data: st.DataObject) -> None:
    named = [{"name": f"p{i}", **spec} for i, spec in enumerate(specs)] + [{"name": "rest", "replicas": 1}]
    total = sum(spec.get("replicas", 1) for spec in named)
    times = st.integers(0, 30).map(lambda tenths: f"{tenths * 100} ms")
    faults = [
        {
            "kind": "crash",
            "replica": replica,
            "at": data.draw(times),
            "down": f"{data.draw(st.integers(1, 20)) * 100} ms",
            "detected": data.draw(st.sampled_from(("0 s", "70 ms", "1 s"))),
            "requests": data.draw(st.sampled_from(("reroute", "reroute", "lose"))),
        }
        for replica in data.draw(st.sets(st.integers(0, total - 1), min_size=1, max_size=3))
    ]
    one = scenario(
        {"pools": named, "kv_tokens": 65536},
        requests=200,
        faults=faults,
        router={"policy": data.draw(st.sampled_from(("least-loaded", "round-robin", "hash", "affinity-residency")))},
        run={"seed": data.draw(st.integers(0, 9)), "warmup": 0},
    )
    world = build_world(one)
    recording = run(world, sections=2)
    requests = recording.requests
    assert len(set(requests["index"].tolist())) == len(requests["index"]) == 200
    assert set(requests["status"].tolist()) <= {COMPLETED, REFUSED, FAILED}
    lost = {"lose"} & {fault["requests"] for fault in faults}
    assert lost or FAILED not in requests["status"]
    for replica, adapter, status, prompt, output in zip(
        *(requests[name].tolist() for name in ("replica", "adapter", "status", "prompt_tokens", "output_tokens")),
        strict=True,
    ):
        if status == COMPLETED:
            (pool,) = [pool for pool in world.pools if replica in pool.indices]
            assert pool.takes[adapter]
            assert prompt + output <= (pool.kv_tokens or 0)


@pytest.mark.parametrize("strategy", ["new-name", "in-place", "unload-then-load", "drain-then-swap", "lazy-reread"])
def test_rollouts_go_through_pools_that_differ_in_size(strategy: str) -> None:
    """Every request is answered, and after the rollout by the new version in each pool."""
    named = [
        {"name": "a", "replicas": 2, "max_num_seqs": 4},
        {"name": "b", "replicas": 2, "cache": {"gpu": {"slots": 9}}},
    ]
    rollout = {"strategy": strategy, "at": "1 s", "dwell": "100 ms"}
    one = scenario({"pools": named, "kv_tokens": 65536}, requests=400, rollouts=[rollout])
    requests = run(one).requests
    assert set(requests["status"].tolist()) <= ({COMPLETED, REFUSED} if strategy == "unload-then-load" else {COMPLETED})
    assert (requests["status"] == COMPLETED).sum() > 350
    late = (requests["arrival_s"] > 6) & (requests["adapter"] >= 0) & (requests["status"] == COMPLETED)
    for pool in ({0, 1}, {2, 3}):
        own = late & np.isin(requests["replica"], list(pool))
        assert own.sum() > 20
        versions = set(requests["version"][own].tolist())
        assert versions == {2} if strategy != "lazy-reread" else versions <= {1, 2}


def test_requests_wait_where_all_replicas_that_take_them_are_down() -> None:
    named = [{"name": "base", "replicas": 1, "serves": "base"}, {"name": "rest", "replicas": 2, "serves": "adapters"}]
    crash = {"kind": "crash", "replica": 0, "at": "1 s", "down": "2 s"}
    one = scenario({"pools": named, "kv_tokens": 65536}, requests=200, faults=[crash])
    requests = run(one).requests
    base = requests["adapter"] < 0
    during = (requests["arrival_s"] > 1) & (requests["arrival_s"] < 3)
    assert (base & during).any()
    assert (requests["admitted_s"][base & during] >= 3).all(), "they wait for the only replica that takes them"
    assert (requests["admitted_s"][~base & during] < 3).any()
    assert (requests["status"] == COMPLETED).all()


STRATEGIES = ("new-name", "in-place", "unload-then-load", "drain-then-swap", "lazy-reread")
STEERING = st.sampled_from(
    (
        {"kind": "misrouting", "probability": 0.3, "detector": {"checks": 0.5, "delay": "50 ms", "retries": 2}},
        {"kind": "stale-map", "share": 0.5, "at": "1 s", "propagation": {"law": "fixed", "value": "2 s"}},
        {"kind": "base-model", "probability": 0.3},
    )
)
ROLLOUTS = st.sampled_from(
    [{"strategy": strategy, "at": at} for strategy in STRATEGIES for at in ("1 s", "3 s")]
    + [{"strategy": "new-name", "at": "1 s", "rank": 64}]
)


@settings(max_examples=25, deadline=None)
@given(pools, st.lists(STEERING, max_size=2), st.lists(ROLLOUTS, max_size=1), st.integers(0, 9))
def test_requests_sent_to_other_adapters_reach_pools_that_take_those(
    specs: list[dict[str, Any]], faults: list[dict[str, Any]], rollouts: list[dict[str, Any]], seed: int
) -> None:
    """Every request ends once; a completed one in a pool that takes its adapter, or the one that it reached."""
    named = [{"name": f"p{i}", **spec} for i, spec in enumerate(specs)] + [{"name": "rest", "replicas": 1}]
    parts: dict[str, Any] = {"faults": faults, "rollouts": rollouts, "run": {"seed": seed, "warmup": 0}}
    world = build_world(scenario({"pools": named, "kv_tokens": 65536}, requests=200, **parts))
    recording = run(world, sections=2)
    requests = recording.requests
    assert len(set(requests["index"].tolist())) == len(requests["index"]) == 200
    assert set(requests["status"].tolist()) <= {COMPLETED, REFUSED, FAILED}
    completed = requests["status"] == COMPLETED
    assert completed.sum() > 100
    for replica, adapter in zip(
        requests["replica"][completed].tolist(), requests["adapter"][completed].tolist(), strict=True
    ):
        (pool,) = [pool for pool in world.pools if replica in pool.indices]
        assert pool.takes[adapter] or any(fault["kind"] in ("misrouting", "stale-map") for fault in faults)
    for replica, adapter in zip(recording.loads["replica"].tolist(), recording.loads["adapter"].tolist(), strict=True):
        (pool,) = [pool for pool in world.pools if replica in pool.indices]
        assert pool.takes[int(adapter)], "no pool loads what it doesn't take"


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("faults", [[], [{"kind": "misrouting", "probability": 0.3}]])
def test_pools_that_only_count_as_different_are_one_fleet(strategy: str, faults: list[dict[str, Any]]) -> None:
    """With more room for KV than is ever used, requests get their times by pool, and these are the same."""
    parts: dict[str, Any] = {"faults": faults, "rollouts": [{"strategy": strategy, "at": "1 s"}], "requests": 300}
    even = {"adapters": {"count": 40, "rank": 8}}
    one = run(scenario({"replicas": 3, "kv_tokens": 65536}, **parts, **even), sections=3)
    named = [{"name": "a", "replicas": 2}, {"name": "b", "kv_tokens": 131072}]
    pooled = run(scenario({"pools": named, "kv_tokens": 65536}, **parts, **even), sections=3)
    for name in ("replica", "arrival_s", "admitted_s", "first_token_s", "finished_s", "version"):
        assert pooled.requests[name].tolist() == one.requests[name].tolist(), name
    assert pooled.events == one.events


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"faults": [CRASH, {**CRASH, "replica": 2, "at": "1.5 s"}]},
        {"faults": [{"kind": "misrouting", "probability": 0.5}]},
        {"rollouts": [{"strategy": "new-name", "at": "1 s"}]},
        {"rollouts": [{"strategy": "in-place", "at": "1 s"}]},
    ],
)
def test_loads_take_the_time_of_the_pool_where_they_are(changes: dict[str, Any]) -> None:
    """Of requests, too, that were sent to another replica or to another adapter; a crash cuts loads short."""
    named = [
        {"name": f"of{ms}ms", "replicas": 2, "storage": {"load": {"law": "fixed", "value": f"{ms} ms"}}}
        for ms in (40, 10)
    ]
    loads = run(scenario({"pools": named, "kv_tokens": 65536}, requests=300, **changes)).loads
    seconds = np.round(loads["ended_s"] - loads["started_s"], 9)
    of_pool = Counter(zip((loads["replica"] < 2).tolist(), seconds.tolist(), strict=True))
    whole = [(True, 0.04), (False, 0.01)]
    cut = {key for key in of_pool if key not in whole}
    assert not cut or CRASH in changes["faults"]
    assert all(seconds < 0.04 and seconds != 0.01 for _, seconds in cut)
    assert min(of_pool[key] for key in whole) > 20


def test_a_rollout_reaches_each_pool_that_takes_its_adapters() -> None:
    named = [
        {"name": "low", "replicas": 2, "serves": {"kinds": [1]}},
        {"name": "high", "replicas": 2, "serves": {"kinds": [2]}},
        {"name": "base", "serves": "base"},
    ]
    mix = [{"share": 0.2, "kind": "base"}, {"share": 0.5, "rank": 8}, {"share": 0.3, "rank": 16}]
    parts: dict[str, Any] = {"adapters": {"count": 40, "mix": mix}, "requests": 600}
    rollout = {"strategy": "new-name", "at": "1 s", "rank": 64}
    plain, raised = (
        build_world(scenario({"pools": named, "kv_tokens": 65536}, rollouts=rollouts, **parts))
        for rollouts in ([], [rollout])
    )
    assert [pool.population.slot_bytes for pool in raised.pools[:2]] == [
        max(pool.population.slot_bytes for pool in raised.pools)
    ] * 2, "slots of both are padded to the new rank"
    assert plain.pools[0].population.slot_bytes < plain.pools[1].population.slot_bytes
    requests = run(raised).requests
    late = (requests["arrival_s"] > 10) & (requests["adapter"] >= 0)
    assert (requests["status"] == COMPLETED).all()
    assert set(requests["version"][late].tolist()) == {2}
    assert set(requests["replica"][late].tolist()) == {0, 1, 2, 3}


def test_a_request_too_long_for_its_pool_is_refused_there() -> None:
    named = [{"name": "large", "replicas": 2, "kv_tokens": 65536}, {"name": "small", "replicas": 2, "kv_tokens": 1024}]
    tokens = {"prompt": {"law": "fixed", "value": 1000}, "output": {"law": "fixed", "value": 100}}
    workload = {"requests": 100, "arrivals": {"process": "poisson", "rate": "20/s"}, "tokens": tokens}
    requests = run(scenario({"pools": named}, workload=workload)).requests
    assert set(requests["status"].tolist()) == {COMPLETED, REFUSED}
    assert set(requests["replica"][requests["status"] == COMPLETED].tolist()) == {0, 1}


def test_times_are_kept_for_requests_of_earlier_chunks() -> None:
    named = [
        {"name": "a", "storage": {"load": {"law": "exponential", "mean": "40 ms"}}},
        {"name": "b", "storage": {"load": {"law": "fixed", "value": "10 ms"}}},
    ]
    world = build_world(scenario({"pools": named}, requests=70_000))
    times = PoolTimes(world.pools)
    times.keeps = True
    chunks = list(world.traffic.chunks(0))
    assert len(chunks) == 2
    seconds = [times.of_requests().load(chunk) for chunk in chunks]
    from sim.traffic.request import Request

    for place in (7, 60_000, 69_000):
        chunk = chunks[place // len(chunks[0])]
        request = Request(place, 0.0, int(chunk.adapter[place - chunk.first]), 1, 1, 0.5, 0.5, 0.5)
        times.set_for(request, 0)
        assert request.load_s == seconds[place // len(chunks[0])][place - chunk.first]
        times.set_for(request, 1)
        assert request.load_s == 0.01


@pytest.mark.parametrize(
    ("fleet", "more", "problem"),
    [
        ({}, {"router": {"pools": "weight"}, "faults": [CRASH]}, "faults.0: where pools are drawn by weight"),
        ({}, {"faults": [{**CRASH, "replica": 4}]}, "faults.0.replica: no such replica"),
        (
            {"serves": "adapters"},
            {"faults": [CRASH, {"kind": "misrouting", "probability": 0.1}]},
            "faults.1: where pools take different requests, misrouting and crashes are not supported together",
        ),
        (
            {"load_at": "admission", "cache": {"prefetch": "queued"}},
            {"faults": [{"kind": "failing-loads", "probability": 0.1}]},
            "faults.0: a prefetched load has no waiting request that could fail",
        ),
    ],
)
def test_what_pools_do_not_support_is_refused(fleet: dict[str, Any], more: dict[str, Any], problem: str) -> None:
    named = [{"name": "a", "replicas": 2}, {"name": "b", "replicas": 2, **fleet}]
    with pytest.raises((InputError, ValueError)) as caught:
        build_world(scenario({"pools": named}, **more))
    error = caught.value
    text = str(error)
    if isinstance(error, ValueError) and hasattr(error, "errors"):
        (detail,) = error.errors()
        text = f"{detail['ctx']['key']}: {detail['ctx']['problem']}"
    assert problem in text
