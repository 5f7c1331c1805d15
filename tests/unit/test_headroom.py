"""Headroom: the search on curves with a known edge, and on queues whose edge is known exactly."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from strategies import build, poisson, run

from reports.answers.limits import limits
from reports.text.headroom_text import headroom_sentences
from reports.text.limit_text import limit_sentence
from sim.results.point import Point
from sim.results.point_summary import summarise
from sim.results.run_directory.headroom_record import (
    ALWAYS,
    BUCKETS,
    CLOSED_LOOP,
    EMPTY_CACHES,
    FOUND,
    NEVER,
    QUEUES,
    TOO_LONG,
    TOO_SHORT,
    Headroom,
)
from sim.results.verdict import is_overloaded
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import load_scenario
from sim.studies import headroom
from sim.studies.evaluate import evaluate_scenario, facts_of
from sim.studies.headroom import FINE, LEAST, NARROW, Strains, find_edge, find_headroom
from sim.studies.run.answer import Answer, answer
from sim.studies.short_runs import MOST, WARMUP, Traffic
from validation.benches.bench_headroom import compared, random_scenario

SERVICE_S = 0.01
RATE = 40.0
FLEET = {"engine": "fixed", "service": {"law": "fixed", "value": f"{SERVICE_S} s"}}


def curve(edge: float, power: float = 1.0, log: list[float] | None = None) -> Any:
    """Return strains that are exactly 1 at the edge; the coarse ones are 5 % too high."""

    def strains(multiple: float, *, fine: bool) -> Strains:
        if log is not None:
            log.append(multiple)
        return {"a": (multiple / edge) ** power * (1 if fine else 1.05), "flat": 0.5}

    return strains


@pytest.mark.parametrize("power", [0.3, 1.0, 20.0])
@pytest.mark.parametrize("edge", [0.05, 0.7, 0.999, 1.0, 1.001, 1.37, 5.0, 11.9])
def test_the_search_finds_the_edge_of_a_curve(edge: float, power: float) -> None:
    log: list[float] = []
    found = find_edge(curve(edge, power, log), LEAST, 12.0, top_fails=True)
    assert found.outcome == FOUND
    assert found.multiple == pytest.approx(edge, rel=1e-6)
    assert found.lo <= found.multiple <= found.hi <= found.lo * NARROW * (1 + 1e-6)
    assert len(log) < 20


def test_the_search_says_where_there_is_no_edge() -> None:
    assert find_edge(curve(1e-6), LEAST, 12.0, top_fails=True).outcome == NEVER
    assert find_edge(curve(1e6), LEAST, 12.0, top_fails=False).outcome == ALWAYS
    at_the_top = find_edge(curve(1e6), LEAST, 12.0, top_fails=True)
    assert (at_the_top.outcome, at_the_top.multiple) == (FOUND, 12.0)


def test_between_probes_the_term_decides_that_fails_first() -> None:
    """A term that hardly changes may be worst below the edge, and says nothing of where the other one crosses it."""

    def strains(multiple: float, *, fine: bool) -> Strains:
        return {"steep": (multiple / 1.3) ** 30, "flat": 0.99}

    assert find_edge(strains, LEAST, 12.0, top_fails=True).multiple == pytest.approx(1.3, rel=1e-6)


def one_server(service: str, slo: dict[str, str], **more: Any) -> Scenario:
    """Return one server whose adapter never leaves, with Poisson arrivals."""
    law: dict[str, Any] = {"law": service, ("value" if service == "fixed" else "mean"): f"{SERVICE_S} s"}
    return build(
        workload=poisson(5000, f"{RATE}/s"),
        adapters={"count": 1, "size": "1 MB"},
        fleet={"engine": "fixed", "service": law},
        cache={"gpu": {"slots": 1}},
        storage={"load": {"law": "fixed", "value": "1 ms"}},
        slo=slo,
        **more,
    )


def test_without_an_slo_it_is_where_the_server_is_full() -> None:
    found = find_headroom(one_server("fixed", {}))
    assert found.multiple == pytest.approx(1 / (RATE * SERVICE_S), rel=0.01)
    assert found.load == pytest.approx(RATE * SERVICE_S, rel=0.01)
    assert (found.outcome, found.term) == (FOUND, QUEUES)


def test_a_run_that_can_not_serve_its_traffic_has_no_headroom() -> None:
    """Where every batch is full of waiting requests a fleet serves more than with the queue that its traffic makes."""
    scenario = one_server("fixed", {})
    today = evaluate_scenario(scenario).point
    compute = replace(today.capacity.compute, offered_load=1.25)
    found = find_headroom(scenario, replace(today, capacity=replace(today.capacity, compute=compute)))
    assert found.saturation == 0.8
    assert found.multiple < 0.9


def test_without_an_slo_a_loader_may_be_full_before() -> None:
    """Of uniform requests for 1,000 adapters, 80 % miss a cache of 200, and each load takes 35 ms on average."""
    found = find_headroom(load_scenario("cache-thrash", ["slo=null"]).scenario)
    assert found.multiple == pytest.approx(1 / (26 * 0.8 * 0.035), rel=0.04)
    assert found.saturation == pytest.approx(100 / 26, rel=0.01)


def test_of_one_server_with_exponential_services_it_is_known() -> None:
    """The mean time in M/M/1 is 1 / (1 / service − rate), so a target for it says at which rate it fails."""
    found = find_headroom(one_server("exponential", {"e2e_mean": "40 ms"}))
    assert found.multiple == pytest.approx((1 / SERVICE_S - 1 / 0.040) / RATE, rel=0.07)
    assert found.term == "e2e_mean_s"
    assert found.failing.capacity.compute.utilization == pytest.approx(0.75, abs=0.08)


@pytest.mark.parametrize(
    ("arrivals", "times"), [("process: poisson", 1), ("process: gamma, cv: 1.5", 2.25), ("process: gamma, cv: 8", 4)]
)
def test_bursty_traffic_is_simulated_for_longer(arrivals: str, times: float) -> None:
    """A few bursts decide, and a short run meets too few of them."""
    sets = [f"workload.arrivals={{{arrivals}, rate: 6/s}}", "workload.requests=1000"]
    found = find_headroom(load_scenario("quickstart", sets).scenario)
    finest = max(probe.requests for probe in found.probes)
    assert finest == pytest.approx(FINE * times * (1 - WARMUP), rel=0.01)


@pytest.mark.parametrize(
    "arrivals", ["process: gamma, cv: 8, rate: 6/s", "process: on-off, on: 5 s, off: 5 s, rate: 6/s"]
)
def test_no_simulation_has_more_requests_than_the_limit(arrivals: str) -> None:
    """Bursty or changing traffic multiplies the requests of the overloaded simulation of a large fleet."""
    sets = [f"workload.arrivals={{{arrivals}}}", "workload.requests=1000"]
    traffic = Traffic.of(load_scenario("quickstart", sets).scenario)
    world = traffic.world(32.0, MOST)
    assert world.scenario.workload.requests == MOST


def with_bucket(full: str, slo: dict[str, str] | None = None, counts: str = "tokens") -> Scenario:
    """Return one server of 100 requests/s, and tenants at 16/s and 24/s, the latter of which asks for 2,400 tokens/s
    of 3,000 that its bucket admits; or 24 requests/s of 30."""
    rate, burst = ("3000/s", 100) if counts == "tokens" else ("30/s", 1)
    bucket = {"counts": counts, "rate": rate, "burst": burst, "full": full}
    return build(
        workload=poisson(5000, f"{RATE}/s", 80, 20),
        adapters={"count": 2, "size": "1 MB"},
        fleet=FLEET,
        cache={"gpu": {"slots": 2}},
        storage={"load": {"law": "fixed", "value": "1 ms"}},
        tenants=[
            {"name": "paid", "adapters": 1, "share": "40%", "slo": slo or {}},
            {"name": "free", "adapters": 1, "share": "60%", "bucket": bucket},
        ],
    )


@pytest.mark.parametrize(
    ("full", "slo", "multiple", "counts"),
    [
        ("queue", {}, 1.25, "tokens"),  # the queue in front of the bucket grows from 3,000 tokens/s on
        ("queue", {}, 1.25, "requests"),
        ("refuse", {}, 70 / 16, "tokens"),  # the bucket lets 30 requests/s pass, so 70 are left for the other tenant
        # No objective of the tenant's or the fleet's says that it may not wait.
        ("queue", {"e2e_p99": "1 h"}, 70 / 16, "tokens"),
    ],
)
def test_what_a_bucket_holds_or_refuses_is_no_load_of_the_replicas(
    full: str, slo: dict[str, str], multiple: float, counts: str
) -> None:
    found = find_headroom(with_bucket(full, slo, counts))
    assert found.multiple == pytest.approx(multiple, rel=0.03)
    assert found.saturation == pytest.approx(2.5, rel=0.01), "of all requests, as if there were no bucket"
    assert found.failing is not None
    limit = limits(found.failing)[0]
    assert limit.name == "token bucket"
    said = headroom_sentences(found)
    assert ("token bucket" in said) == (found.term == BUCKETS)


PERIOD_S, BURST_S = 210.0, 10.0
STEPS = [{"time": f"{PERIOD_S - BURST_S:g} s", "level": 1}, {"time": f"{BURST_S:g} s", "level": 8}]
"""Arrivals of which a short run at a constant rate would see no burst."""


def rare_bursts(requests: int = 5000, slo: str = "1 s") -> Scenario:
    """Return one server of 100 requests/s, and two tenants at 10/s each, one of which comes in bursts of 60/s."""
    tenants = [
        {"name": "chat", "adapters": 1, "share": "50%", "slo": {"e2e_p99": slo}},
        {"name": "batch", "adapters": 1, "share": "50%", "steps": STEPS},
    ]
    return build(
        workload=poisson(requests, "20/s"),
        adapters={"count": 2, "size": "1 MB"},
        fleet=FLEET,
        cache={"gpu": {"slots": 2}},
        storage={"load": {"law": "fixed", "value": "1 ms"}},
        tenants=tenants,
    )


def test_a_tenants_rare_bursts_decide() -> None:
    """For 10 s, m times the traffic brings 70 m requests/s to a server of 100/s. Its queue is then (70 m − 100) · 10
    long, a wait of 1 s at m = 1.57; 5 % of the requests of chat wait, so its p99 is 0.8 of that or more."""
    found = find_headroom(rare_bursts())
    assert 1.54 < found.multiple < 1.64
    assert found.term == "tenants.chat.e2e_p99_s"
    for probe in found.probes[1:]:  # the first one overloads the server, so that it doesn't matter when requests come
        periods = probe.requests / (20 * probe.multiple * PERIOD_S)
        assert periods == pytest.approx(round(periods), abs=0.01), "a part of a period has too many bursts, or too few"
        assert periods > 1.9


def test_a_tenants_burstier_gaps_are_simulated_for_longer() -> None:
    scenario = rare_bursts()
    gaps = scenario.tenants[1].model_copy(update={"steps": (), "cv": 2.0})
    scenario = scenario.model_copy(update={"tenants": (scenario.tenants[0], gaps)})
    assert Traffic.of(scenario).world(1.0, FINE).traffic.total == 4 * FINE


@pytest.mark.parametrize(
    ("arrivals", "period"),
    [
        ("process: diurnal, rate: 6/s", 24 * 3600.0),
        ("process: piecewise, rate: 6/s, steps: [{time: 20 min, level: 1}, {time: 1 h, level: 2}]", 4800.0),
        ("process: on-off, rate: 6/s, on: 30 min, off: 1 h", 5400.0),
        ("process: mmpp, rate: 6/s, states: [{time: 30 min, level: 1}, {time: 1 h, level: 3}]", 5400.0),
    ],
)
def test_there_is_none_where_whole_periods_are_too_many_requests(arrivals: str, period: float) -> None:
    """Parts of a period would say nothing of the whole: those at night nothing of the day."""
    sets = [f"workload.arrivals={{{arrivals}}}", "workload.requests=200000"]
    found = find_headroom(load_scenario("quickstart", sets).scenario)
    assert (found.outcome, found.period_s) == (TOO_LONG, period)
    assert [probe.term for probe in found.probes] == [QUEUES], "only the throughput of full batches is known"
    assert found.load == found.probes[0].strain / found.probes[0].multiple
    assert not found.holds_today, "the search says nothing of today either"


def test_there_is_none_where_the_run_itself_is_a_part_of_a_period() -> None:
    found = find_headroom(rare_bursts(requests=2000))
    assert (found.outcome, found.period_s) == (TOO_LONG, PERIOD_S)


def from_trace(folder: Path, requests: int) -> Scenario:
    """A server of one H100, up to 256 requests at a time, and a trace of 5 requests/s."""
    rng = np.random.default_rng(1)
    times, adapters = np.cumsum(rng.exponential(0.2, requests)), rng.integers(0, 20, requests)
    rows = [f"{time:.4f},a{adapter},300,100" for time, adapter in zip(times, adapters, strict=True)]
    file = folder / "trace.csv"
    file.write_text("\n".join(["timestamp_s,adapter_id,input_tokens,output_tokens", *rows]), encoding="utf-8")
    workload, slo = {"trace": {"file": str(file)}}, {"ttft_p99": "500 ms", "e2e_p99": "10 s"}
    fleet, cache = {"gpu": "h100-80gb", "max_num_seqs": 256}, {"gpu": {"slots": 20}}
    return build(workload=workload, adapters={"base_model": "llama-3.1-8b"}, fleet=fleet, cache=cache, slo=slo)


def test_there_is_none_where_a_trace_is_too_short_to_fill_the_batches(tmp_path: Path) -> None:
    found = find_headroom(from_trace(tmp_path, 600))
    assert (found.outcome, found.trace_requests, found.needed_requests) == (TOO_SHORT, 600, 4 * 256)
    assert found.multiple is None
    assert found.load is None
    assert "The traffic has 600 requests" in headroom_sentences(found)
    assert find_headroom(from_trace(tmp_path, 4 * 256)).outcome == FOUND, "as many as were asked for are enough"


@pytest.mark.slow
def test_empty_caches_are_named_where_requests_pile_up_while_they_fill() -> None:
    """Most requests are the first for their adapter: 2 loads of 1 s a second. Full caches meet the SLO."""

    def found(rate: str) -> tuple[Point, Headroom, Answer]:
        scenario = build(
            workload=poisson(300, rate, 100, 10, popularity={"law": "uniform"}),
            adapters={"count": 2000, "base_model": "llama-3.1-8b"},
            fleet={"engine": "vllm", "gpu": "h100-80gb", "max_num_seqs": 16},
            cache={"gpu": {"slots": 16}, "host": {"slots": 2000}},
            storage={"load": {"law": "fixed", "value": "1 s"}},
            slo={"ttft_mean": "1 s"},
        )
        point = evaluate_scenario(scenario).point
        headroom = find_headroom(scenario, point)
        return point, headroom, answer(point, scenario.slo.terms(), cold=True, headroom=headroom)

    point, headroom, said = found("2/s")
    assert is_overloaded(point)
    assert headroom.without == (EMPTY_CACHES,)
    assert headroom.holds_today
    assert said.headline.startswith("Caches start empty, and requests pile up while they fill.")
    assert "More requests arrive" not in said.trust.choice
    _, headroom, said = found("800/s")
    assert (headroom.without, headroom.holds_today) == ((), False)
    assert said.headline.startswith("Overloaded")


def test_few_completions_do_not_say_how_many_times_as_much_comes() -> None:
    """5,000 requests arrive in 125 s, and 12 of them are answered by then."""
    point = evaluate_scenario(
        build(
            workload=poisson(5000, f"{RATE}/s"),
            adapters={"count": 1, "size": "1 MB"},
            fleet={"engine": "fixed", "service": {"law": "fixed", "value": "10 s"}},
            cache={"gpu": {"slots": 1}},
            run={"seed": 1, "warmup": 0, "replications": 1},
        )
    ).point
    assert point.capacity.compute.offered_load == 1
    assert "overloaded: more requests arrived than were served" in " ".join(point.warnings)
    assert limit_sentence(limits(point)[0], point).startswith("More requests arrived than were served")


def test_the_search_ends_where_whole_periods_become_too_many_requests() -> None:
    found = find_headroom(rare_bursts(requests=10_000, slo="1 h"))
    assert found.outcome == ALWAYS
    assert found.lo == pytest.approx((1 - WARMUP) * MOST / (2 * 20 * PERIOD_S))
    assert found.period_s == PERIOD_S
    assert found.failing is None


def test_short_runs_leave_out_their_first_fifth() -> None:
    """In it, queues and batches fill."""
    world = Traffic.of(one_server("exponential", {})).world(2.0, 1000)
    assert (run(world, sections=20).section_of < 0).tolist() == [True] * 200 + [False] * 800


@pytest.mark.parametrize("slo", [{}, {"e2e_p99": "1 h"}])
def test_what_limits_is_said_by_a_run_at_the_headroom(slo: dict[str, str]) -> None:
    """The throughput comes from a run at many times the traffic, which says nothing of how it fails."""
    found = find_headroom(one_server("fixed", slo))
    assert found.term == QUEUES
    assert found.failing.capacity.compute.utilization == pytest.approx(1.0, abs=0.03)
    assert (found.failing.capacity.compute.offered_load or 1.0) < 1.1


def test_without_a_miss_an_idle_server_can_be_too_slow() -> None:
    found = find_headroom(one_server("fixed", {"e2e_p99": "9 ms"}))
    assert (found.outcome, found.multiple) == (NEVER, None)
    assert found.failing is not None


@pytest.fixture(scope="module")
def found() -> Headroom:
    return find_headroom(one_server("fixed", {"e2e_p99": "50 ms"}))


def test_the_same_seed_gives_the_same_headroom_and_faults_are_left_out(found: Headroom) -> None:
    stall = {"kind": "storage-stall", "at": "10 s", "lasts": "30 s"}
    again = find_headroom(one_server("fixed", {"e2e_p99": "50 ms"}, faults=[stall]))
    assert again == replace(found, without=("faults",))


def closed_loop(slo: dict[str, str]) -> Scenario:
    return build(
        workload={"requests": 2000, "arrivals": {"process": "closed", "concurrency": 4}},
        adapters={"count": 1, "size": "1 MB"},
        fleet=FLEET,
        cache={"gpu": {"slots": 1}},
        storage={"load": {"law": "fixed", "value": "1 ms"}},
        slo=slo,
    )


def test_in_a_closed_loop_it_scales_the_clients() -> None:
    """Each of n clients waits for all others: n services, so a target of 12.5 services allows 12 clients."""
    found = find_headroom(closed_loop({"e2e_mean": f"{12.5 * SERVICE_S:g} s"}))
    assert found.multiple == pytest.approx(12.5 / 4, rel=0.05)
    assert found.load is None
    assert find_headroom(closed_loop({})).outcome == CLOSED_LOOP


def test_what_a_short_run_has_too_little_of_is_made_up_for() -> None:
    """Where today's own point has 1.2 times the mean of a short run, that of its multiples is taken to be 1.2 times as
    large too: it is within 40 ms where the short runs have 33 ms, at 100 − 1 / 0.0333 = 70 requests/s."""
    scenario = one_server("exponential", {"e2e_mean": "40 ms"})
    world = Traffic.of(scenario).world(1.0, FINE)
    short = summarise([run(world, sections=20)], facts_of(world), {}, [])
    mean = replace(short.metrics["e2e_mean_s"], value=1.2 * (short.metrics["e2e_mean_s"].value or 0.0))
    many = replace(short.metrics["completed"], value=FINE)
    found = find_headroom(scenario, replace(short, metrics={**short.metrics, "e2e_mean_s": mean, "completed": many}))
    assert found.multiple == pytest.approx(70 / RATE, rel=0.05)


def test_the_throughput_is_that_of_full_batches() -> None:
    """Batches fill and empty slowly, at 1 request/s; while they are full, 10 requests/s are answered."""
    gaps = np.repeat([1.0, 0.1, 1.0], [25, 50, 25])
    requests = {"finished_s": np.cumsum(gaps), "replica": np.zeros(100, dtype=np.int16)}
    assert headroom._served(SimpleNamespace(requests=requests)) == pytest.approx(10)  # type: ignore[arg-type]


def test_an_overload_that_loses_its_prefixes_does_not_say_what_a_fleet_serves() -> None:
    """Among all that waits then, what sessions come back for is evicted: it serves less than arrives today."""
    sessions = {"requests": 8, "gap_median": "5 s", "gap_sigma": 1, "gap_max": "2 min", "history": True}
    scenario = build(
        workload=poisson(7000, "5/s", 1000, 10, sessions=sessions),
        adapters={"count": 1, "rank": 16},
        fleet={"prefix_caching": True, "kv_tokens": 280_000},
        cache={"gpu": {"slots": 1}},
        slo={"ttft_mean": "2 s"},
    )
    today = evaluate_scenario(scenario).point
    assert today.value("ttft_mean_s") < 0.5
    found = find_headroom(scenario, today)
    assert found.probes[0].multiple / found.probes[0].strain < 0.95
    assert found.multiple > 1.2


def test_no_fleet_is_full_below_a_traffic_that_meets_its_slo() -> None:
    """A short run may serve less than the scenario's own run, which is longer; here by far, to see which counts."""
    scenario = one_server("fixed", {"e2e_mean": "1 h"})
    today = evaluate_scenario(scenario).point
    faster = scenario.workload.arrivals.model_copy(update={"rate": 1.2 / SERVICE_S})
    crowded = scenario.model_copy(update={"workload": scenario.workload.model_copy(update={"arrivals": faster})})
    assert find_headroom(crowded, today).saturation == NARROW
    overloaded = evaluate_scenario(crowded).point
    assert find_headroom(crowded, overloaded).saturation == pytest.approx(1 / 1.2, rel=0.01)


def test_todays_point_decides_on_which_side_of_1_it_is() -> None:
    scenario = one_server("exponential", {"e2e_mean": "40 ms"})
    point = evaluate_scenario(scenario).point
    late, misses = (replace(point.metrics[name], value=v) for name, v in (("e2e_mean_s", 0.041), ("miss_ratio", 0.0)))
    metrics = {**point.metrics, "e2e_mean_s": late}
    found = find_headroom(scenario, replace(point, metrics={**metrics, "miss_ratio": misses}))
    assert found.multiple < found.hi == 1
    assert found.failing.metrics["e2e_mean_s"].value == 0.041
    found = find_headroom(scenario, replace(point, metrics=metrics))
    assert (found.multiple > 1, found.without) == (True, ()), "its cold start may be why"
    metrics["e2e_mean_s"] = replace(late, value=0.4, lo=0.3, hi=0.5)
    assert find_headroom(scenario, replace(point, metrics=metrics)).without == (EMPTY_CACHES,)
    empty = scenario.model_copy(update={"cache": scenario.cache.model_copy(update={"warm": 0})})
    found = find_headroom(empty, replace(point, metrics=metrics))
    assert (found.multiple > 1, found.without) == (True, ()), "the search started with empty ones, too"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 3, 5, 17])
def test_direct_runs_agree_outside_the_range_of_a_headroom(seed: int) -> None:
    """Of bursts, a schedule, a tenant's bursts and a closed loop; ``bench_headroom.py --random`` tries more."""
    found = compared(random_scenario(seed))
    assert found.strains, "it has a number"
    assert not found.wrong, (found.scenario, found.found.summary(), found.strains)


def test_a_headroom_reads_what_it_wrote(found: Headroom) -> None:
    assert Headroom.from_json(found.to_json()).to_json() == found.to_json()
    assert math.isclose(found.summary()["load"], RATE * SERVICE_S, rel_tol=0.01)
