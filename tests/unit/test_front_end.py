"""The front end of measured runs: stalls, which requests wait for them, and how they grow."""

from __future__ import annotations

import pytest
from strategies import build, run

from sim.policies.front_end import FrontEnd, FrontEndCosts
from sim.results.point_summary import summarise
from sim.results.records import REFUSED, Recording
from sim.spec.profile import load_profile
from sim.spec.profile_choice import FRONT_END_S, front_end_s
from sim.studies.evaluate import facts_of
from sim.world.build import build_world
from sim.world.replication import assemble
from sim.world.world import World

COSTS = FrontEndCosts(
    scrape_interval_s=2.0, scrape_s=0.1, series_s=0.01, name_s=0.001, tokenizer_s=0.5, request_s=0.0, max_in_flight=10
)


def front_end(**changes: float) -> FrontEnd:
    fields = {name: getattr(COSTS, name) for name in FrontEndCosts.__slots__}
    return FrontEnd(FrontEndCosts(**{**fields, **changes}), 4)  # type: ignore[arg-type]


@pytest.mark.interpreted
def test_each_adapter_s_first_request_stops_the_server() -> None:
    server = front_end()
    assert server.enter(0.0, 1) == 0.5
    assert server.enter(0.1, 1) == 0.5, "who comes meanwhile waits"
    assert server.enter(0.2, 2) == 1.0, "stalls queue"
    assert server.enter(1.5, 1) == 1.5, "a known adapter costs nothing"
    assert server.seen(0.3) == 1.0
    assert server.seen(1.2) == 1.2


@pytest.mark.interpreted
def test_scrapes_come_a_while_after_the_last_has_ended() -> None:
    server = front_end()
    server.step_ended(2.0)
    assert server.seen(2.05) == pytest.approx(2.11), "0.1 s, and one series without names"
    server.step_ended(4.2)
    assert server.seen(4.15) == pytest.approx(4.22), "it began at 4.11"
    assert server.seen(4.05) == 4.05


@pytest.mark.interpreted
def test_every_pair_of_sets_is_a_series_once() -> None:
    server = front_end(scrape_interval_s=10.0)
    for time in (1.0, 2.0, 3.0, 4.0):
        server.waits(0)
        server.step_ended(time)  # 0 waits
        server.runs(0)
        server.step_ended(time + 0.3)  # 0 runs
        server.waits(1)
        server.step_ended(time + 0.6)  # 0 runs and 1 waits
        server.runs(1)
        server.ends(0)
        server.ends(1)
    server.step_ended(10.0)  # nobody
    assert server.seen(10.0) == pytest.approx(10.0 + 0.1 + 4 * 0.01 + 4 * 0.001)


@pytest.mark.interpreted
def test_stalled_time_is_counted_between_two_times() -> None:
    server = front_end()
    server.enter(0.0, 0)
    server.enter(1.0, 1)
    assert server.stalled_between(0.25, 1.25) == (pytest.approx(0.5), 2)
    assert server.stalled_between(0.5, 1.0)[0] == 0.0


@pytest.mark.interpreted
def test_a_request_that_the_front_end_refuses_is_not_counted_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that reads requests inside by adapter would else take the replica for busy for ever."""
    scenario = build(
        workload={"requests": 200, "arrivals": {"process": "poisson", "rate": "400/s"}},
        adapters={"count": 6, "rank": 8},
        fleet={"engine": "vllm-0.8", "replicas": 2, "front_end": "vllm-0.8-scraped"},
        cache={"gpu": {"slots": 2}, "host": {"slots": 6}},
        router={"policy": "affinity-activity"},
    )
    monkeypatch.setattr(FrontEnd, "max_in_flight", 4)
    world = build_world(scenario)
    fleet = assemble(world, 0, 1).fleet
    counts = fleet.count_inside()
    status = fleet.run(world.traffic.chunks(0)).requests["status"]
    assert (status == REFUSED).any()
    assert facts_of(world).refusals.endswith(", or the client had too many requests open")
    assert counts == [{}, {}]


FEW = {"workload": {"requests": 10, "arrivals": {"process": "poisson", "rate": "1/s"}}, "adapters": {"count": 4}}


def recorded(**fleet: object) -> tuple[World, Recording]:
    workload = {"requests": 300, "arrivals": {"process": "poisson", "rate": "6/s"}}
    world = build_world(build(workload=workload, adapters={"count": 20}, fleet={"engine": "vllm-0.12", **fleet}))
    return world, run(world)


def test_the_time_in_the_front_end_comes_on_top_and_changes_nothing_else() -> None:
    _, plain = recorded()
    world, behind = recorded(front_end_time="50 ms")
    for name, column in plain.requests.items():
        later = 0.05 if name in ("admitted_s", "first_token_s", "finished_s") else 0.0
        assert behind.requests[name] == pytest.approx(column + later, rel=1e-12), name
    point = summarise([behind], facts_of(world), {}, [])
    assert point.breakdown["front_end_s"] == pytest.approx(0.05)
    assert sum(point.breakdown.values()) == pytest.approx(point.metrics["e2e_mean_s"].value)


def test_clients_of_a_closed_loop_send_later_by_the_time_in_the_front_end() -> None:
    """As if they thought for so long: the engine can't tell the two apart."""

    def loop(think: str, front_end: str) -> Recording:
        arrivals = {"process": "closed", "concurrency": 3, "think": think}
        fleet = {"engine": "vllm-0.12", "front_end_time": front_end}
        return run(build(workload={"requests": 200, "arrivals": arrivals}, adapters={"count": 20}, fleet=fleet))

    thinking, behind = loop("300 ms", "0 s"), loop("100 ms", "200 ms")
    assert behind.requests["arrival_s"] == pytest.approx(thinking.requests["arrival_s"])
    assert behind.requests["finished_s"] == pytest.approx(thinking.requests["finished_s"] + 0.2)


def test_servers_that_were_measured_have_a_front_end_unless_told_otherwise() -> None:
    def seconds(**fleet: object) -> float:
        return build_world(build(fleet={"front_end_time": None, **fleet}, **FEW)).pools[0].front_end_s

    assert seconds(engine="vllm-0.32") == FRONT_END_S
    assert seconds(engine="vllm-0.16") == FRONT_END_S
    assert seconds(engine="vllm-0.12") == seconds(engine="continuous") == seconds(engine="sglang") == 0
    assert seconds(engine="vllm-0.32", front_end_time="3 ms") == 0.003
    assert seconds(engine="vllm-0.32", front_end_time="0 s") == 0
    assert seconds(engine="vllm-0.8", front_end="vllm-0.8-scraped") == 0
    measured = load_profile("cpu/tiny/vllm-0.32")[0]
    fleet = build(fleet={"engine": "vllm-0.32", "front_end_time": None}, **FEW).fleet
    assert front_end_s(fleet, measured) == measured.front_end_s > 0
