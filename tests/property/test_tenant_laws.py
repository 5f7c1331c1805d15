"""Scheduling between tenants: the fairness bound of VTC, the order of priorities, fcfs with one tenant, naive twins."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from naive_tenants import CodeFleet, TenantFleet
from strategies import VLLM, build, engine_scenarios, run, scenarios
from test_leaping import tell_and_compare

from sim.policies.queues.fair_queue import INPUT_WEIGHT, OUTPUT_WEIGHT
from sim.results.records import COMPLETED
from sim.spec.scenario import Scenario
from sim.traffic.request import Request
from sim.world.build import build_world
from sim.world.replication import simulate

LONGEST_PROMPT, LONGEST_OUTPUT = 400, 120
FAIR_ENGINES: dict[str, dict[str, Any]] = {
    # Blocks are reserved for whole answers, as the paper assumes: no request is preempted.
    "continuous": {"kv_check": "whole-answer", "kv_tokens": 6000, "max_num_seqs": 24},
    "s-lora": {"kv_tokens": 6000, "max_num_seqs": 24},
}


def shared(engine: str, scheduling: str, tenants: list[dict[str, Any]], **more: Any) -> Scenario:
    """Return a scenario that is overloaded for a while: 600 requests within a few seconds."""
    fleet = {"engine": engine, "scheduling": scheduling, **FAIR_ENGINES.get(engine, {}), **more.pop("fleet", {})}
    unified = engine == "s-lora"
    return build(
        workload={
            "requests": 600,
            "arrivals": {"process": "poisson", "rate": "100/s"},
            "tokens": {
                "prompt": {"law": "uniform", "low": 1, "high": LONGEST_PROMPT},
                "output": {"law": "uniform", "low": 1, "high": LONGEST_OUTPUT},
            },
        },
        adapters={"count": 12, "rank": 8},
        cache={"gpu": {"unified": True} if unified else {"slots": 12}, "warm": 12},
        fleet=fleet,
        tenants=tenants,
        **more,
    )


class Watch:
    """Counts at every boundary, from the requests alone, what each tenant was served and what waits."""

    def __init__(self, tenants: int) -> None:
        self.served: list[list[float]] = []
        self.waiting: list[list[int]] = []
        self.joined: list[tuple[list[Request], list[Request]]] = []
        self.requests: list[Request] = []
        self.preempted: list[tuple[list[Request], list[Request]]] = []
        self.preemptions: dict[int, int] = {}
        self.tenants = tenants

    def wrap(self, server: type) -> Callable[..., Any]:
        watch = self

        class Watched(server):  # type: ignore[misc, valid-type]
            def arrive(self, request: Request) -> None:
                watch.requests.append(request)
                super().arrive(request)

            def _next_leap(self, now: float) -> float:
                end = super()._next_leap(now)
                watch.look(self, now)
                return float(end)

        return Watched

    def look(self, server: Any, now: float) -> None:
        queue = server.mode.waiting.all_requests()
        served = [0.0] * self.tenants
        for request in self.requests:
            if request.admitted_s >= 0:
                tokens = request.output_tokens if self.is_gone(server, request) else server.tokens_out(request)
                served[request.tenant] += INPUT_WEIGHT * request.prompt_tokens + OUTPUT_WEIGHT * tokens
        self.served.append(served)
        self.waiting.append([sum(r.tenant == place for r in queue) for place in range(self.tenants)])
        before, self.preemptions = self.preemptions, {r.index: r.preemptions for r in self.requests}
        victims = [r for r in self.requests for _ in range(r.preemptions - before.get(r.index, 0))]
        if victims:
            self.preempted.append((victims, list(server.scheduler.running)))
        joined = [r for r in server.scheduler.decided.prefills if r.admitted_s == now]
        self.joined.append((joined, [r for r in queue if server.scheduler.uses(r.adapter)]))

    @staticmethod
    def is_gone(server: Any, request: Request) -> bool:
        return request not in server.scheduler.running


def widest_gap(watch: Watch, weights: list[float]) -> tuple[float, int]:
    """Return the most by which the weighted service of two tenants differs while both wait, and the longest such time
    in boundaries."""
    served, backlogged = np.array(watch.served) / weights, (np.array(watch.waiting) > 0).all(axis=1)
    difference = served[:, 0] - served[:, 1]
    widest, longest, first = 0.0, 0, 0
    for place in range(len(backlogged) + 1):
        if place < len(backlogged) and backlogged[place]:
            continue
        if place > first:
            part = difference[first:place]
            widest, longest = max(widest, float(part.max() - part.min())), max(longest, place - first)
        first = place + 1
    return widest, longest


@pytest.mark.interpreted
@pytest.mark.parametrize("engine", FAIR_ENGINES)
@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 1.0)])
def test_the_service_of_backlogged_tenants_differs_by_no_more_than_the_papers_bound(
    engine: str, weights: tuple[float, float]
) -> None:
    """Theorem 4.4 of arXiv 2401.00588: 2 max(w_p L_input, w_q M), M the most tokens in a batch."""
    tenants = [
        {"name": name, "adapters": 6, "share": share, "weight": weight}
        for name, share, weight in (("noisy", "70%", weights[0]), ("quiet", "30%", weights[1]))
    ]
    gaps = {}
    for scheduling in ("vtc", "fcfs"):
        watch = Watch(2)
        simulate(build_world(shared(engine, scheduling, tenants)), 0, 3, watch.wrap)
        gaps[scheduling], longest = widest_gap(watch, list(weights))
        assert longest > 100, "both tenants wait for a long time"
    bound = 2 * max(INPUT_WEIGHT * LONGEST_PROMPT, OUTPUT_WEIGHT * FAIR_ENGINES[engine]["kv_tokens"])
    # The paper's M counts what the batch may hold at once; of answers that is at most a batch of the longest.
    tight = 2 * max(LONGEST_PROMPT, OUTPUT_WEIGHT * FAIR_ENGINES[engine]["max_num_seqs"] * LONGEST_OUTPUT)
    assert gaps["vtc"] <= tight / min(weights) <= bound
    assert gaps["fcfs"] > 2 * gaps["vtc"], "first come, first served divides service as it comes"


@pytest.mark.interpreted
@pytest.mark.parametrize("engine", ["continuous", "vllm"])
def test_no_request_joins_while_one_of_higher_priority_waits_that_fits(engine: str) -> None:
    tenants = [
        {"name": "batch", "adapters": 6, "share": "50%", "priority": 5},
        {"name": "chat", "adapters": 6, "share": "50%", "priority": -1},
    ]
    watch = Watch(2)
    simulate(build_world(shared(engine, "priority", tenants, fleet={"max_num_seqs": 8})), 0, 3, watch.wrap)
    order, seen = {0: 1, 1: 0}, 0
    for joined, waiting in watch.joined:
        for request in joined:
            ahead = [other for other in waiting if order[other.tenant] < order[request.tenant]]
            assert not ahead, "requests for adapters in the batch are never over the adapter limit"
            seen += bool(waiting)
    assert seen > 50, "requests join while others wait"


@pytest.mark.interpreted
def test_with_priorities_the_last_in_their_order_is_preempted() -> None:
    tenants = [
        {"name": "batch", "adapters": 6, "share": "50%", "priority": 1},
        {"name": "chat", "adapters": 6, "share": "50%"},
    ]
    watch = Watch(2)
    world = build_world(shared("vllm", "priority", tenants, fleet={"kv_tokens": 3000, "max_num_seqs": 64}))
    recording = simulate(world, 0, 3, watch.wrap)
    assert (recording.requests["status"] == COMPLETED).all(), "nothing is lost"
    assert sum(len(victims) for victims, _ in watch.preempted) == recording.requests["preemptions"].sum() > 50
    order = {0: 1, 1: 0}
    both = 0
    for victims, stayed in watch.preempted:
        for victim in victims:
            place = order[victim.tenant], victim.index
            assert all((order[other.tenant], other.index) < place for other in stayed)
            both += any(other.tenant != victim.tenant for other in stayed)
    assert both > 5, "the batch has requests of both tenants at times"


@pytest.mark.parametrize(
    ("engine", "scheduling", "fleet"),
    [
        ("continuous", "priority", {}),
        ("continuous", "vtc", {}),
        ("s-lora", "vtc", {"front_end": "s-lora"}),
        ("s-lora", "lcf", {}),
        ("vllm", "priority", {"max_num_seqs": 8}),
    ],
)
def test_with_one_tenant_every_policy_is_first_come_first_served(
    engine: str, scheduling: str, fleet: dict[str, Any]
) -> None:
    """To the last bit. With a seat for every adapter, requests join in the order in which they come."""
    tenants = [{"name": "all", "adapters": 12, "priority": 3, "weight": 2.0}]
    one, other = (run(shared(engine, each, tenants, fleet=fleet), sections=3) for each in (scheduling, "fcfs"))
    for name, column in one.requests.items():
        np.testing.assert_array_equal(column, other.requests[name])
    for name in ("gap_counts", "gap_sum_s", "busy_s", "blocked_s", "bounds"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_only_engines_with_a_policy_have_it() -> None:
    tenants = [{"name": "all", "adapters": 12}]
    for engine, policy, words in (
        ("sglang", "priority", "allowed fcfs, lpm"),
        ("vllm", "vtc", "allowed fcfs, priority"),
        ("vllm-0.9.1", "priority", "allowed fcfs"),
        ("s-lora", "priority", "allowed fcfs, vtc, lcf"),
    ):
        with pytest.raises(ValueError, match=f"engine {engine} has no scheduling policy {policy}") as caught:
            shared(engine, policy, tenants)
        (error,) = caught.value.errors()
        assert f"allowed {error['ctx']['allowed']}" == words
        assert f"{policy} is simulated for" in error["ctx"]["hint"]
    with pytest.raises(ValueError, match="not known for this way of serving adapters"):
        shared("continuous", "vtc", tenants, fleet={"load_at": "admission"})
    with pytest.raises(ValueError, match="not known for this way of serving adapters"):
        shared("continuous", "priority", tenants, fleet={"admission": "stop"})


# Leaps against a naive twin that takes every step


PRIORITY_ENGINES = ("continuous", *(engine for engine in VLLM if engine != "vllm-0.8"))


def with_tenants(data: st.DataObject, scenario: Scenario, **fleet: Any) -> Scenario:
    """Return a scenario whose adapters are divided among one to three tenants."""
    world = build_world(scenario)
    names, count = world.traffic.names, world.traffic.places
    cuts = sorted(data.draw(st.sets(st.integers(1, count - 1), max_size=2))) if count > 1 else []
    edges = [0, *cuts, count]
    tenants = []
    for place, (first, last) in enumerate(itertools.pairwise(edges)):
        own = {"match": list(names[first:last]) or ["no such adapter"]} if names else {"adapters": last - first}
        priority, weight = data.draw(st.integers(-1, 2)), data.draw(st.sampled_from((1.0, 2.0, 4.0)))
        tenants.append({"name": f"t{place}", "priority": priority, "weight": weight, **own})
    if world.traffic.base_share > 0:
        tenants[0]["base_model"] = True
    plain = scenario.model_dump(mode="json", by_alias=True, exclude_unset=True)
    plain["fleet"] = {**plain["fleet"], **fleet}
    return Scenario.model_validate({**plain, "tenants": tenants})


@pytest.mark.parametrize("engine", PRIORITY_ENGINES)
@examples(200)
@given(data=st.data())
def test_leaps_equal_steps_with_priorities(engine: str, data: st.DataObject) -> None:
    scenario = data.draw(scenarios(engine=engine, prefetch=False))
    assume(scenario.fleet.admission == "skip" and scenario.cache.prefetch == "none")
    # Where a request that preempts itself ends the scan, gaps and ends rarely differ by a step: not understood yet.
    # Those rules are held by the records of vLLM alone.
    scenario = with_tenants(data, scenario, scheduling="priority", self_preemption="goes-on")
    tell_and_compare(scenario, TenantFleet)


@pytest.mark.parametrize("scheduling", ["vtc", "lcf"])
@examples(200)
@given(data=st.data())
def test_leaps_equal_steps_with_the_virtual_token_counter(scheduling: str, data: st.DataObject) -> None:
    scenario = data.draw(scenarios(engine="continuous", prefetch=False))
    assume(scenario.load_at == "arrival")
    scenario = with_tenants(data, scenario, scheduling=scheduling)
    tell_and_compare(scenario, TenantFleet)


@pytest.mark.parametrize("scheduling", ["vtc", "lcf"])
@examples(100)
@given(data=st.data())
def test_leaps_equal_steps_with_the_counters_of_the_papers_code(scheduling: str, data: st.DataObject) -> None:
    scenario = data.draw(engine_scenarios(engine="s-lora"))
    scenario = with_tenants(data, scenario, scheduling=scheduling)
    assume(len(scenario.tenants) > 1)
    tell_and_compare(scenario, CodeFleet)
