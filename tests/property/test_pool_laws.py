"""Fleets of pools: equal pools are one fleet, no request is lost, shares are as weighed, and only full pools spill."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import tables
from strategies import ODD, build, run, seconds, write_profile
from test_full_model_laws import alone

from sim.policies.routing import View
from sim.policies.routing.pool_router import ByWeight, RoutedPool
from sim.results.records import COMPLETED, REFUSED
from sim.rng import stream_key
from sim.spec.policies import ROUTERS
from sim.spec.scenario import Scenario
from sim.studies.evaluate import evaluate_scenario
from sim.world.build import build_world
from sim.world.replication import assemble

POLICIES = [entry.name for entry in ROUTERS if not entry.places_adapters and not entry.reads_text]
ENGINES = ("continuous", "vllm-0.8", "vllm-0.32", "sglang", "lorax", "s-lora", "fixed")
BASE = {"share": 0.3, "kind": "base"}


def scenario(fleet: dict[str, Any], engine: str = "continuous", requests: int = 300, **more: Any) -> Scenario:
    if engine == "fixed":
        fleet = {"service": {"law": "exponential", "mean": "60 ms"}, **fleet}
    elif "profile" not in fleet:
        fleet = {"kv_tokens": 16384, **fleet}
    cache: dict[str, Any] = {"gpu": {"unified": True}} if engine == "s-lora" else {"gpu": {"slots": 5}}
    given: dict[str, Any] = {
        "workload": {"requests": requests, "arrivals": {"process": "poisson", "rate": "40/s"}},
        "adapters": {"count": 25, "mix": [BASE, {"share": 0.5, "rank": 8}, {"share": 0.2, "rank": 32}]},
        "cache": cache,
    }
    return build(**{**given, **more}, fleet={"engine": engine, **fleet})


def test_a_pool_may_know_the_future_beside_one_that_does_not() -> None:
    """It misses less than with LRU; a pool of other adapters doesn't change."""
    future = {"gpu": {"slots": 5}, "eviction": "belady"}
    one = scenario({"replicas": 4}, requests=600, cache=future)
    split = [{"name": "a", "replicas": 2}, {"name": "b", "replicas": 2}]
    pooled = scenario({"pools": split}, requests=600, cache=future)
    assert tables(run(pooled, sections=4)) == tables(run(one, sections=4))
    calm = {"requests": 2000, "arrivals": {"process": "poisson", "rate": "1/s"}, "popularity": {"law": "uniform"}}
    loads = []
    for eviction in ("belady", "lru"):
        own = [
            {"name": "low", "serves": {"kinds": [1]}, "cache": {"eviction": eviction}},
            {"name": "rest", "serves": {"kinds": [2]}},
            {"name": "base", "serves": "base"},
        ]
        mixed = scenario({"pools": own}, workload=calm)
        loads.append(np.bincount(run(mixed).loads["replica"].astype(int)).tolist())
    (foreseen, other), (recent, same) = loads
    assert foreseen < 0.9 * recent
    assert other == same


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("policy", POLICIES)
def test_pools_of_equal_cards_are_one_fleet_to_the_byte(policy: str, engine: str) -> None:
    router: dict[str, Any] = {"policy": policy}
    if policy in ("least-loaded", "hash"):
        router["staleness"] = "50 ms"
    more: dict[str, Any] = {"cache": {"gpu": {"slots": 5}, "warm": "steady"}} if engine == "sglang" else {}
    one = scenario({"replicas": 5}, engine, router=router, **more)
    split = [{"name": "a", "replicas": 2}, {"name": "b", "replicas": 0}, {"name": "c", "replicas": 3}]
    pooled = scenario({"pools": split}, engine, router=router, **more)
    assert tables(run(pooled, sections=4)) == tables(run(one, sections=4))


def test_equal_pools_give_the_same_point_with_calibration_and_in_a_closed_loop() -> None:
    closed = {"requests": 600, "arrivals": {"process": "closed", "concurrency": 24}}
    for workload in ({"requests": 600, "arrivals": {"process": "poisson", "rate": "20/s"}}, closed):
        profile = {"profile": "h100-64gb/llama-3.1-8b/vllm-0.8.5"}
        parts: dict[str, Any] = {"workload": workload, "run": {"replications": 2}}
        one = evaluate_scenario(scenario({**profile, "replicas": 4}, "vllm-0.8", **parts)).point
        split = [{"name": "a", "replicas": 1}, {"name": "b", "replicas": 3}]
        pooled = evaluate_scenario(scenario({**profile, "pools": split}, "vllm-0.8", **parts)).point
        assert one.calibration
        assert pooled.metrics == one.metrics
        assert pooled.calibration == one.calibration


pools = st.lists(
    st.fixed_dictionaries(
        {"replicas": st.integers(1, 3)},
        optional={
            "max_num_seqs": st.integers(1, 8),
            "kv_tokens": st.sampled_from((1100, 4096, 65536)),
            "engine": st.sampled_from(("continuous", "sglang", "vllm-0.32", "lorax")),
            "storage": st.sampled_from(({"load": {"law": "fixed", "value": "13 ms"}}, {"load": None})),
            "serves": st.sampled_from(("all", "adapters", "base", {"kinds": [1]}, {"kinds": [2, 1]})),
        },
    ),
    min_size=1,
    max_size=4,
)
routers = st.sampled_from(
    (
        *({"policy": policy} for policy in POLICIES),
        {"policy": "least-loaded", "pools": "weight"},
        {"policy": "round-robin", "pools": "weight", "spill": "full"},
        {"policy": "affinity-residency", "pools": "weight", "spill": 3, "staleness": "20 ms"},
    )
)


@settings(max_examples=60, deadline=None)
@given(pools, routers, st.integers(0, 99))
def test_every_request_ends_in_one_pool_that_takes_it(
    specs: list[dict[str, Any]], router: dict[str, Any], seed: int
) -> None:
    named = [{"name": f"p{i}", **spec} for i, spec in enumerate(specs)]
    named.append({"name": "rest", "max_num_seqs": 4})
    step = {"fixed_s": 0.004 * ODD, "tokens": [[0, 0.0], [64, 0.016]], "per_kv_token_s": 1e-5}
    profile = write_profile(step, {"open_s": 0.011, "bandwidth_bytes_per_s": 2.0**33})
    fleet = {"profile": profile, "kv_tokens": 65536, "max_num_batched_tokens": 1024, "pools": named}
    tokens = {"prompt": {"law": "uniform", "low": 1, "high": 1000}, "output": {"law": "uniform", "low": 1, "high": 200}}
    workload = {"requests": 120, "arrivals": {"process": "poisson", "rate": "60/s"}, "tokens": tokens}
    one = scenario(fleet, workload=workload, router=router, run={"seed": seed, "warmup": 0, "replications": 2})
    world = build_world(one)
    recording = run(world)
    requests = recording.requests
    assert len(set(requests["index"].tolist())) == 120
    assert set(requests["status"].tolist()) <= {COMPLETED, REFUSED}
    assert [pool.first for pool in world.pools] == np.cumsum([0, *(p.replicas for p in world.pools)])[:-1].tolist()
    for replica, adapter, status, prompt, output in zip(
        *(requests[name].tolist() for name in ("replica", "adapter", "status", "prompt_tokens", "output_tokens")),
        strict=True,
    ):
        if status == REFUSED:
            assert replica == -1
            takers = [pool.kv_tokens or 0 for pool in world.pools if pool.takes[adapter]]
            assert prompt + output > min(takers) - 32, "some pool is too small for it"
            continue
        (pool,) = [pool for pool in world.pools if replica in pool.indices]
        assert pool.takes[adapter]
        assert prompt + output <= pool.kv_tokens
    point = evaluate_scenario(one).point
    unserved = point.unserved.get("refused", 0)
    assert sum(pool.facts["requests"] for pool in point.pools) + unserved == point.traffic["requests"]
    assert sum(pool.facts["completed"] for pool in point.pools) == point.metrics["completed"].value
    assert sum(pool.facts["replicas"] for pool in point.pools) == world.replicas
    assert sum(pool.facts["gpus"] for pool in point.pools) == point.usage.gpus
    utilization = sum(pool.facts["gpu_utilization"] * pool.facts["replicas"] for pool in point.pools) / world.replicas
    assert utilization == pytest.approx(point.metrics["gpu_utilization"].value)


class Always:
    def __init__(self, replica: int) -> None:
        self.replica = replica

    def choose(self, adapter: int, number: int) -> int:
        return self.replica


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from((0.0, 0.5, 1.0, 4.0)), min_size=2, max_size=4), st.integers(0, 10**6))
def test_pools_get_the_shares_of_their_weights(weights: list[float], key: int) -> None:
    if not any(weights):
        weights[0] = 1.0

    view = View(loads=[0] * 4, up=[0, 1, 2, 3])
    router = ByWeight([RoutedPool(Always(i), view, weight) for i, weight in enumerate(weights)], key)
    drawn = Counter(router.choose(0, number) for number in range(20_000))
    for place, weight in enumerate(weights):
        share = weight / sum(weights)
        sd = (share * (1 - share) / 20_000) ** 0.5
        assert abs(drawn[place] / 20_000 - share) <= 5 * sd, "five standard deviations of a binomial"
        assert (drawn[place] == 0) == (weight == 0)


def test_a_full_pool_passes_requests_on_to_the_next_one_in_the_order_of_the_scenario() -> None:
    loads = [0, 0, 0]
    views = [View(loads=loads, up=[place]) for place in range(3)]
    pools = [RoutedPool(Always(i), views[i], float(i == 1), full=1) for i in range(3)]
    router = ByWeight(pools, 7)
    found = []
    for number in range(4):  # every request draws the second pool
        found.append(router.choose(0, number))
        loads[found[-1]] += 1
    assert found == [1, 2, 0, 1], "in a full fleet, it stays where it was drawn"


def test_a_request_draws_the_same_pool_whatever_the_fleet() -> None:
    def pools_of(count: int) -> list[int]:
        split = [{"name": "a", "weight": 1, "replicas": count}, {"name": "b", "weight": 3}]
        world = build_world(scenario({"pools": split}, router={"policy": "least-loaded", "pools": "weight"}))
        replicas = run(world).requests["replica"]
        return [int(replica >= count) for replica in replicas.tolist()]

    assert pools_of(1) == pools_of(4)


class Watched:
    """A router that notes what it saw when it sent a request."""

    def __init__(self, router: Any, view: View, seen: list[tuple[int, list[int]]]) -> None:
        self._router, self._view, self._seen = router, view, seen

    def choose(self, adapter: int, number: int) -> int:
        chosen: int = self._router.choose(adapter, number)
        self._seen.append((chosen, list(self._view.loads)))
        return chosen


@pytest.mark.parametrize("spill", ["full", 2])
def test_a_pool_spills_only_when_it_is_full(spill: str | int) -> None:
    split = [{"name": "a", "replicas": 2, "max_num_seqs": 3}, {"name": "b", "replicas": 2, "weight": 0}]
    router = {"policy": "least-loaded", "pools": "weight", "spill": spill}
    world = build_world(scenario({"pools": split, "max_num_seqs": 5}, requests=400, router=router))
    fleet = assemble(world, 0, 1).fleet
    seen: list[tuple[int, list[int]]] = []
    fleet._router = Watched(fleet._router, View(loads=fleet.inside), seen)
    fleet.run(world.traffic.chunks(0))
    limits = (3, 5) if spill == "full" else (2, 2)
    spilled = [loads for chosen, loads in seen if chosen >= 2]
    assert spilled, "the first pool is too small"
    assert all(min(loads[:2]) >= limits[0] for loads in spilled)
    assert all(min(loads[2:]) < limits[1] for loads in spilled), "in a full fleet, requests stay where they were drawn"
    stayed = [loads for chosen, loads in seen if chosen < 2]
    assert all(min(loads[:2]) < limits[0] or min(loads[2:]) >= limits[1] for loads in stayed)


def test_without_spill_the_other_pool_gets_nothing() -> None:
    weighed = [{"name": "a", "weight": 1e-9}, {"name": "b", "weight": 1}]
    world = build_world(scenario({"pools": weighed}, router={"policy": "least-loaded", "pools": "weight"}))
    assert set(run(world).requests["replica"].tolist()) == {1}


def test_a_pool_is_as_fast_as_a_fleet_of_its_own() -> None:
    """Two pools that share no request are two fleets: each request is served as in a fleet of that pool alone."""
    mix = [{"share": 0.5, "rank": 8}, {"share": 0.5, "rank": 8, "targets": ["q", "v"]}]
    fast = {"law": "uniform", "low": seconds(0.01), "high": seconds(0.02)}
    slow = {"law": "uniform", "low": seconds(0.1 * ODD), "high": seconds(0.3)}
    own: list[dict[str, Any]] = [{"max_num_seqs": 4, "kv_tokens": 8192}, {"max_num_seqs": 9, "kv_tokens": 32768}]
    split = [
        {"name": name, "serves": {"kinds": [i]}, **own[i], "storage": {"load": law}}
        for i, (name, law) in enumerate((("large", fast), ("small", slow)))
    ]
    parts: dict[str, Any] = {"adapters": {"count": 25, "mix": mix}, "cache": {"gpu": {"size": "600 MB"}}}
    together = build_world(scenario({"pools": split}, **parts))
    requests = run(together).requests
    kind = together.traffic.population.kind[requests["adapter"]]
    for i, law in enumerate((fast, slow)):
        mine = kind == i
        assert mine.any()
        recording = alone(build_world(scenario(own[i], storage={"load": law}, **parts)), mine)
        for name in ("adapter", "admitted_s", "first_token_s", "finished_s", "load_wait_s", "outcome"):
            assert recording.requests[name].tolist() == requests[name][mine].tolist(), name


def test_the_draw_of_a_pool_has_a_stream_of_its_own() -> None:
    assert stream_key(1, 0, "pool") != stream_key(1, 0, "router")
