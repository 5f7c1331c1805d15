"""A fleet whose adapters a controller places and moves: where requests go, what moves cost, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from catalogue_names import ALWAYS_THERE, needing
from strategies import build, fixed_time, run, services

from sim.policies.adapter_cache import ABSENT
from sim.policies.routing import RouterContext, View
from sim.policies.routing.placed import Placed
from sim.policies.vllm_lru import SetOrder, VllmLruCache
from sim.results.catalogue import PLACEMENT
from sim.results.fleet_metrics import ADAPTER, COMES, REPLICA, TIME
from sim.results.metrics import measure
from sim.results.records import COMPLETED, Recording
from sim.spec.policies import PLACERS
from sim.spec.scenario import Scenario
from sim.spec.sections.control_plane import Router
from sim.studies.changes.findings import placement_sentences
from sim.studies.evaluate import EvaluationOptions, evaluate_scenario, facts_of
from sim.traffic.request import BASE_MODEL, FROM_GPU, FROM_HOST, FROM_STORAGE, HIT
from sim.world.build import build_world
from sim.world.replication import assemble, simulate

MOVING = [entry.name for entry in PLACERS if entry.moves]
REQUESTS = 1500


def drifting(controller: dict[str, Any], **sections: Any) -> Scenario:
    """Sixty adapters on three vLLM replicas with eight slots each; a third trade places every 20 s."""
    tokens = {"prompt": {"law": "fixed", "value": 200}, "output": {"law": "fixed", "value": 40}}
    fleet = {"gpu": "h100-64gb", "engine": "vllm", "replicas": 3, "max_num_seqs": 16}
    workload = {
        "requests": REQUESTS,
        "arrivals": {"process": "poisson", "rate": "15/s"},
        "popularity": {"law": "zipf", "exponent": 1.0},
        "drift": {"every": "20 s", "share": "30%"},
        "tokens": tokens,
    }
    scenario: Scenario = build(
        workload=workload | sections.pop("workload", {}),
        adapters={"count": 60, "base_model": "llama-3.1-8b"} | sections.pop("adapters", {}),
        cache=sections.pop("cache", {"gpu": {"slots": 8}, "host": {"slots": 20}}),
        fleet=fleet | sections.pop("fleet", {}),
        router={"policy": "placement", "controller": {"period": "10 s", "history": "30 s", **controller}},
        **sections,
    )
    return scenario


def two_of_one_slot(rows: list[tuple[float, int]], load_s: float, controller: dict[str, Any]) -> Scenario:
    """Two replicas with one slot each; rows are arrivals and adapters."""
    given = {"cache": {"gpu": {"slots": 1}}, "storage": {"load": fixed_time(load_s)}}
    return services(rows, 0.1, fleet={"replicas": 2}, router={"policy": "placement", "controller": controller}, **given)


def homes_at(recording: Recording, time: float) -> dict[int, set[int]]:
    """The placement from a time on, the plain way."""
    homes: dict[int, set[int]] = {}
    for row in recording.moves:
        if row[TIME] <= time:
            here = homes.setdefault(int(row[ADAPTER]), set())
            (here.add if row[COMES] else here.remove)(int(row[REPLICA]))
    return {adapter: here for adapter, here in homes.items() if here}


@pytest.mark.parametrize("move", ["lazy", "eager"])
@pytest.mark.parametrize("policy", PLACERS.names)
def test_requests_go_only_where_their_adapter_is_placed(policy: str, move: str) -> None:
    recording = run(drifting({"policy": policy, "move": move}))
    requests = recording.requests
    assert requests["index"].tolist() == list(range(REQUESTS)), "each request ends once"
    assert (requests["status"] == COMPLETED).all()
    pins: dict[int, set[int]] = {}
    for at, adapter, replica in zip(requests["arrival_s"], requests["adapter"], requests["replica"], strict=True):
        homes = homes_at(recording, float(at)).get(int(adapter))
        if homes:
            assert int(replica) in homes
        else:
            pins.setdefault(int(adapter), set()).add(int(replica))
    assert all(len(replicas) == 1 for replicas in pins.values()), "an adapter without a place has one replica"
    for time in {0.0, *recording.moves[:, TIME].tolist()} if "dynamo" not in policy else ():  # which pins beyond slots
        placed = homes_at(recording, time)
        assert all(sum(r in here for here in placed.values()) <= 8 for r in range(3)), "slots of a replica"


def test_static_never_moves_and_the_others_follow_the_drift() -> None:
    assert (run(drifting({"policy": "static"})).moves[:, TIME] == 0).all()
    for policy in MOVING:
        decisions = set(run(drifting({"policy": policy})).moves[:, TIME].tolist()) - {0.0}
        assert decisions <= {10.0 * n for n in range(1, 20)}
        assert len(decisions) > 3


def test_a_replica_gets_requests_once_the_load_api_has_answered() -> None:
    """A decision every 10 s, calls of 2 s; those that fail bring nothing."""
    eager = {"policy": "popularity", "move": "eager", "call": "2 s"}
    rows = run(drifting(eager)).moves
    coming = rows[(rows[:, COMES] == 1) & (rows[:, TIME] > 0)]
    assert len(coming) > 10
    assert (coming[:, TIME] % 10 >= 2).all()
    failing = run(drifting({**eager, "failures": "100%"}))
    assert not failing.moves[failing.moves[:, TIME] > 0][:, COMES].any()
    assert (failing.requests["status"] == COMPLETED).all()


def test_an_adapter_that_nobody_asks_for_is_unloaded() -> None:
    """Adapter 0 pauses from 5 s to 61 s, and has to be loaded again; without unloading it is still there."""
    times = [(float(t), 0) for t in range(1, 6)] + [(t + 0.5, 1) for t in range(1, 80)] + [(61.0, 0)]
    for unload_after, outcome in (("30 s", FROM_STORAGE), (None, FROM_GPU)):
        controller = {"policy": "popularity", "period": "10 s", "history": "30 s", "unload_after": unload_after}
        given: dict[str, Any] = {"cache": {"gpu": {"slots": 2}}, "storage": {"load": fixed_time(0.1)}}
        router = {"policy": "placement", "controller": controller}
        recording = run(services(sorted(times), 0.1, fleet={"replicas": 2}, router=router, **given))
        last = np.flatnonzero(recording.requests["adapter"] == 0)[-1]
        assert recording.requests["tier"][last] == outcome


def test_demand_is_that_of_the_whole_history() -> None:
    """Two replicas with one slot each; a history of three periods of 10 s.

    Adapters 0 and 1 have more requests in the first period than adapter 2 in the second. Up to 30 s both periods count,
    so adapter 2 comes at 40 s, to both replicas, and not before.
    """
    rows = [*[(1.0, 0)] * 6, *[(2.0, 1)] * 5, *[(11.0, 2)] * 3, (45.0, 2)]
    controller = {"policy": "popularity", "period": "10 s", "history": "30 s"}
    recording = run(two_of_one_slot(rows, 0.1, controller))
    coming = recording.moves[recording.moves[:, COMES] > 0]
    assert coming[:, [TIME, ADAPTER]].tolist() == [[0, 0], [0, 1], [40, 2], [40, 2]]


MIX = [{"share": "70%", "rank": 16}, {"kind": "base", "share": "30%"}]
SLOTS: dict[str, Any] = {"gpu": {"slots": 8}, "host": {"slots": 20}}
WAYS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"engine": "vllm"}, SLOTS),
    ({"engine": "sglang"}, SLOTS),
    ({"engine": "lorax"}, SLOTS),
    ({"engine": "tensorrt-llm"}, SLOTS),
    ({"engine": "continuous", "load_at": "arrival"}, SLOTS),
    ({"engine": "continuous", "load_at": "admission"}, SLOTS),
    ({"engine": "continuous", "load_at": "admission"}, {**SLOTS, "prefetch": "queued"}),
    ({"engine": "continuous"}, {"gpu": {"slots": 8}, "host": {"slots": 20, "fill": "arrival"}}),
    ({"engine": "continuous"}, {"gpu": {"slots": 8}}),
]


@pytest.mark.parametrize(("fleet", "cache"), WAYS)
def test_eager_moves_load_without_a_request_however_adapters_are_served(
    fleet: dict[str, Any], cache: dict[str, Any]
) -> None:
    scenario = drifting({"policy": "popularity", "move": "eager"}, fleet=fleet, cache=cache)
    replication = assemble(build_world(scenario), 0, 2)
    chunks = build_world(scenario).traffic.chunks(0)
    recording = replication.fleet.run(chunks)
    assert (recording.requests["status"] == COMPLETED).all()
    for server in replication.fleet.servers:
        server.check_integrity()
    decisions = {10.0 * n for n in range(1, 20)}
    asked = recording.loads["asked_s"]
    unasked = [t for t in asked.tolist() if t in decisions]
    if fleet["engine"] != "vllm":  # whose loads are asked for at the step that makes them
        assert unasked, "loads begin at decisions"
    assert (recording.moves[:, TIME] > 0).any()


def cost_of_moves(move: str) -> dict[str, float]:
    scenario = drifting({"policy": "popularity", "move": move}, storage={"load": fixed_time(0.05)})
    world = build_world(scenario)
    found, _ = measure([simulate(world, 0, 2)], facts_of(world))
    return {name: found[name].value or 0.0 for name in needing(PLACEMENT)}


def test_an_eager_move_loads_more_and_never_less_than_a_lazy_one() -> None:
    lazy, eager = cost_of_moves("lazy"), cost_of_moves("eager")
    assert 0 < lazy["placement_loads"] <= lazy["placement_moves"]
    assert lazy["placement_loads"] < eager["placement_loads"] <= eager["placement_moves"]
    assert 0 < lazy["placed_share"] < 1


def test_a_crashed_replica_gets_nothing_and_its_adapters_get_other_places() -> None:
    crash = {"kind": "crash", "replica": 1, "at": "25 s", "down": "30 s"}
    for move in ("lazy", "eager"):
        recording = run(drifting({"policy": "popularity", "move": move}, faults=[crash]))
        requests = recording.requests
        assert (requests["status"] == COMPLETED).all()
        down = (requests["arrival_s"] > 25) & (requests["arrival_s"] < 55)
        assert not (requests["replica"][down] == 1).any()
        assert all(1 not in homes for homes in homes_at(recording, 30.0).values())
        assert any(1 in homes for homes in homes_at(recording, 60.0).values())


def test_without_moves_the_adapters_of_a_crashed_replica_go_elsewhere_until_it_is_back() -> None:
    crash = {"kind": "crash", "replica": 1, "at": "25 s", "down": "30 s"}
    recording = run(drifting({"policy": "static"}, faults=[crash]))
    requests, homes = recording.requests, homes_at(recording, 0.0)
    assert (requests["status"] == COMPLETED).all()
    own = np.array([homes.get(int(adapter)) == {1} for adapter in requests["adapter"]])
    arrival = np.asarray(requests["arrival_s"])
    assert (requests["replica"][own & (arrival > 55)] == 1).all()
    assert (requests["replica"][own & (arrival > 25) & (arrival < 55)] != 1).all()


def test_adapters_are_placed_only_on_replicas_that_an_autoscaler_has() -> None:
    waves = {"process": "diurnal", "rate": "12/s", "swing": 0.9, "period": "1 min", "peak_at": "15 s"}
    scaling = {"target": 6, "min": 2, "max": 5, "interval": "5 s", "stabilization_down": "10 s"}
    cold = {"cold_start": {"engine": fixed_time(3.0), "weights": fixed_time(0.0)}}
    for policy in MOVING:
        recording = run(
            drifting(
                {"policy": policy, "period": "5 s", "move": "eager"},
                workload={"arrivals": waves, "requests": 2500},
                fleet={"replicas": 2, "autoscale": scaling | cold},
            )
        )
        assert (recording.requests["status"] == COMPLETED).all()
        assert len(recording.lives) > 3, "the fleet grows"
        assert set(recording.moves[:, REPLICA]) > {0, 1}, "new replicas get adapters"
        for time in set(recording.moves[:, TIME].tolist()) - {0.0}:
            there = {int(row[0]) for row in recording.lives if row[2] <= time <= row[3]}
            assert set().union(*homes_at(recording, time).values()) <= there


def test_requests_to_the_base_model_go_to_any_replica() -> None:
    recording = run(drifting({"policy": "static"}, adapters={"mix": MIX}))
    base = recording.requests["adapter"] == BASE_MODEL
    assert set(recording.requests["replica"][base]) == {0, 1, 2}
    assert (recording.requests["status"] == COMPLETED).all()


def test_new_adapters_are_placed_once_they_are_asked_for() -> None:
    recording = run(drifting({"policy": "popularity"}, workload={"churn": {"every": "20 s", "share": "20%"}}))
    assert (recording.requests["status"] == COMPLETED).all()
    assert recording.moves[:, ADAPTER].max() >= 60


def test_a_steady_start_has_each_adapter_on_all_its_replicas() -> None:
    scenario = drifting(
        {"policy": "static", "copies": 2},
        adapters={"count": 20},
        cache={"gpu": {"slots": 16}, "host": {"slots": 20}, "warm": "steady"},
    )
    servers = assemble(build_world(scenario), 0, 2).fleet.servers
    homes = homes_at(run(scenario), 0.0)
    assert any(len(here) == 2 for here in homes.values())
    for adapter, here in homes.items():
        if len(here) == 2 and adapter < 10:
            assert {server.index for server in servers if server.cache.state[adapter] != ABSENT} == here


def test_metrics_by_hand() -> None:
    """Two adapters with one slot each on two replicas; from 20 s on only the third is asked for."""
    rows = [(float(second), second % 2 if second < 20 else 2) for second in range(40)]
    world = build_world(two_of_one_slot(rows, 0.5, {"period": "10 s", "history": "10 s"}))
    recording = simulate(world, 0, 1)
    # The trace asks most for adapter 2. So it is placed at the start, with the lower number of the two others.
    first = homes_at(recording, 0.0)
    assert set(first) == {0, 2}
    # At 10 and 20 s the other two are popular, and at 30 s the third one alone.
    moved = {(float(row[TIME]), int(row[ADAPTER])) for row in recording.moves if row[COMES] and row[TIME] > 0}
    assert moved == {(10.0, 1), (30.0, 2)}
    found, _ = measure([recording], facts_of(world))
    assert found["placement_moves"].value == 3, "with all requests, adapter 2 has both replicas"
    assert found["placement_loads"].value == 2, "it was without a place, and on one of them already"
    assert found["placement_load_s"].value == pytest.approx(1.0)
    assert found["placed_share"].value == pytest.approx(25 / 40), "but five of the first ten, and ten from 20 s on"


def test_other_routers_and_one_replica_have_none_of_these_metrics() -> None:
    hashed = drifting({}).model_copy(update={"router": Router(policy="hash")})
    for world in map(build_world, (hashed, drifting({}, fleet={"replicas": 1}))):
        assert list(measure([simulate(world, 0, 2)], facts_of(world))[0]) == list(ALWAYS_THERE)


def test_the_answer_says_what_moves_cost() -> None:
    point = evaluate_scenario(drifting({"policy": "popularity"}), EvaluationOptions()).point
    (sentence,) = placement_sentences(point)
    assert sentence.startswith("Per replication, the controller moves ")
    assert " cost a load, " in sentence
    static = evaluate_scenario(drifting({"policy": "static"}), EvaluationOptions()).point
    assert placement_sentences(static)[0].startswith("No adapter moves: ")
    hashed = drifting({}).model_copy(update={"router": Router(policy="hash")})
    assert placement_sentences(evaluate_scenario(hashed, EvaluationOptions()).point) == []


# The router alone


def placed(homes: dict[int, tuple[int, ...]], loads: list[int], up: list[int] | None = None) -> Placed:
    view = View(loads=loads, up=list(range(len(loads))) if up is None else up)
    return Placed(RouterContext(view, len(loads), 7, 8, homes=homes, base_model=99))


def test_the_least_loaded_home_is_chosen() -> None:
    router = placed({0: (0, 2), 1: (1,)}, [5, 9, 4])
    assert router.choose(0, 1) == 2
    assert router.choose(1, 1) == 1
    assert router.choose(99, 1) == 2
    assert router.asked == {0: 1, 1: 1}, "requests to the base model are no demand"
    equal = placed({0: (0, 2)}, [3, 0, 3])
    assert {equal.choose(0, number) for number in range(50)} == {0, 2}


def test_an_adapter_without_a_home_keeps_its_replica_when_others_go_down() -> None:
    all_up = [placed({}, [0] * 6).choose(adapter, 1) for adapter in range(90)]
    assert set(all_up) == set(range(6))
    without = [placed({}, [0] * 6, up=[0, 1, 2, 3, 4]).choose(adapter, 1) for adapter in range(90)]
    assert all(one == other for one, other in zip(all_up, without, strict=True) if one != 5)


# vLLM's cache


def test_a_load_without_a_request_takes_an_idle_slot_but_none_of_the_batch() -> None:
    cache = VllmLruCache(6, slots=2, host_slots=3, order=SetOrder(range(6)))
    cache.acquire(0)
    cache.touch()
    assert cache.load_idle(1) == FROM_STORAGE
    assert cache.load_idle(1) == FROM_GPU, "it is there"
    assert cache.load_idle(2) == FROM_STORAGE
    assert cache.state[:3] == [2, ABSENT, 2], "the idle one made room"
    assert cache.load_idle(1) == FROM_HOST
    cache.check_integrity()
    cache.acquire(1)
    cache.touch()
    assert cache.load_idle(3) == FROM_GPU, "both slots are the batch's"
    assert cache.load_idle(2) == FROM_GPU
    cache.check_integrity()


# What is refused


def notes(controller: dict[str, Any]) -> list[str]:
    return [note for note in build_world(drifting(controller)).notes if "router.controller" in note]


def test_a_run_that_ends_before_the_first_decision_has_a_note() -> None:
    """No error: a plan or the headroom may shorten a run."""
    assert notes({"period": "10 min", "history": "10 min"}) == [
        "router.controller.period (10 min) is longer than the run (100 s): no adapter moves"
    ]
    assert notes({"policy": "static", "period": "10 min", "history": "10 min"}) == []
    assert notes({}) == []


def test_hits_come_first_only_where_the_adapter_was() -> None:
    """A moved adapter that is requested within its period is a miss first: nothing else loads it."""
    recording = run(drifting({"policy": "popularity"}, cache={"gpu": {"slots": 8}, "host": {"slots": 8}}))
    requests = recording.requests
    order = np.argsort(requests["admitted_s"], kind="stable")
    seen: set[tuple[int, int]] = set()
    for index in order:
        pair = int(requests["adapter"][index]), int(requests["replica"][index])
        if pair not in seen:
            assert requests["outcome"][index] != HIT
        seen.add(pair)
