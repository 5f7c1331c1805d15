"""Closed loops: clients that wait for their answers, against the naive twin and the laws of closed queues."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from naive_engines import EngineFleet
from strategies import GRID, VLLM, build, engine_scenarios, fixed_time, run, scenarios, seconds
from test_leaping import tell_and_compare

from sim.results.records import COMPLETED, FAILED, REFUSED, UNFINISHED, Recording
from sim.spec.scenario import Scenario
from sim.world.closed_loop import PAUSE_S

ON_GRID = ("0 s", "0 s", seconds(3 * GRID))
THINKS = (*ON_GRID, {"law": "uniform", "low": "0 s", "high": "137 ms"}, {"law": "exponential", "mean": "31.7 ms"})


@st.composite
def closed(draw: st.DrawFn, open_: st.SearchStrategy[Scenario], *, on_grid: bool = False) -> Scenario:
    """A scenario of these whose requests come from a closed loop."""
    scenario = draw(open_)
    # All clients start at once, so replicas often step at one instant; their sums must be exact to agree on the order.
    assume(scenario.fleet.replicas == 1 or on_grid)
    sections = scenario.model_dump(mode="json", by_alias=True, exclude_unset=True)
    workload = {
        "requests": draw(st.sampled_from((40, 25, 10, 1))),
        "arrivals": {
            "process": "closed",
            "concurrency": draw(st.sampled_from((1, 2, 3, 5, 8, 13))),
            "think": draw(st.sampled_from(ON_GRID if on_grid else THINKS)),
        },
        "tokens": sections["workload"].get("tokens")
        or {"prompt": {"law": "uniform", "low": 1, "high": 40}, "output": {"law": "uniform", "low": 1, "high": 20}},
    }
    return Scenario.model_validate({**sections, "workload": workload})


@examples(300)
@given(closed(st.one_of(scenarios(grid=False), scenarios(grid=False), scenarios(engine=VLLM[-1], grid=False))))
def test_leaps_equal_steps(scenario: Scenario) -> None:
    tell_and_compare(scenario)


@examples(200)
@given(closed(scenarios(grid=True), on_grid=True))
def test_leaps_equal_steps_where_much_happens_at_one_instant(scenario: Scenario) -> None:
    tell_and_compare(scenario)


@examples(150)
@given(closed(engine_scenarios(grid=False)))
def test_leaps_equal_steps_of_engines(scenario: Scenario) -> None:
    tell_and_compare(scenario, EngineFleet)


def loop_of(clients: int, think: Any = "0 s", requests: int = 2000, **sections: Any) -> Scenario:
    """One server of engine ``fixed`` with exponential service of 10 ms, whose adapters are all there."""
    return build(
        workload={"requests": requests, "arrivals": {"process": "closed", "concurrency": clients, "think": think}},
        adapters={"count": 4, "size": "1 MiB"},
        cache={"gpu": {"slots": 4}, "warm": 4},
        fleet={"engine": "fixed", "service": {"law": "exponential", "mean": "10 ms"}, **sections.pop("fleet", {})},
        storage={"load": fixed_time(0.01)},
        **sections,
    )


def inside(recording: Recording, at: np.ndarray) -> np.ndarray:
    """How many requests are under way at these times."""
    requests = recording.requests
    sent, gone = np.sort(requests["arrival_s"]), np.sort(requests["finished_s"])
    return np.searchsorted(sent, at, side="right") - np.searchsorted(gone, at, side="right")


@settings(max_examples=60)
@given(closed(st.one_of(scenarios(), engine_scenarios())))
def test_no_more_requests_are_under_way_than_there_are_clients(scenario: Scenario) -> None:
    requests = run(scenario).requests
    assert requests["index"].tolist() == list(range(len(requests["index"])))
    assert np.all(np.diff(requests["arrival_s"]) >= 0), "numbered in the order in which they are sent"
    assert not np.any(requests["status"] == UNFINISHED)
    kept = requests["status"] == COMPLETED  # the time at which others leave is not recorded
    sent, gone = requests["arrival_s"][kept], np.sort(requests["finished_s"][kept])
    under_way = np.arange(1, len(sent) + 1) - np.searchsorted(gone, sent, side="right")
    assert np.all(under_way <= scenario.workload.arrivals.concurrency)


def test_without_thinking_every_client_has_a_request_under_way_until_the_last_is_sent() -> None:
    recording = run(loop_of(7))
    last_s = float(recording.requests["arrival_s"][-1])
    at = np.linspace(0, last_s, 1001)[:-1]
    assert set(inside(recording, at).tolist()) == {7}
    assert inside(recording, np.array([recording.stopped_s])).tolist() == [0]


def test_a_server_that_always_has_work_serves_one_request_a_service_time() -> None:
    scenario = loop_of(3, fleet={"service": fixed_time(0.01)})
    requests = run(scenario).requests
    assert requests["finished_s"].tolist() == pytest.approx([0.01 * (place + 1) for place in range(2000)])


def test_as_many_requests_as_the_machine_repairman_model_says() -> None:
    # M/M/1//N: n of N clients are at the server with a probability in proportion to N!/(N - n)! (service / think)^n.
    clients, service_s, think_s = 6, 0.01, 0.04
    weights = [math.perm(clients, n) * (service_s / think_s) ** n for n in range(clients + 1)]
    rate = (1 - weights[0] / sum(weights)) / service_s
    requests = run(loop_of(clients, {"law": "exponential", "mean": "40 ms"}, requests=200_000)).requests
    assert len(requests["arrival_s"]) / float(requests["arrival_s"][-1]) == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize("think_s", [0.0, 0.03])
def test_clients_are_their_rate_times_response_and_think_time(think_s: float) -> None:
    # N = X (R + Z), the interactive response time law.
    recording = run(loop_of(9, seconds(think_s), requests=20_000))
    requests = recording.requests
    rate = len(requests["index"]) / float(requests["finished_s"].max())
    response_s = float(np.mean(requests["finished_s"] - requests["arrival_s"]))
    assert rate * (response_s + think_s) == pytest.approx(9, rel=0.002)


def test_the_same_requests_are_sent_whatever_the_fleet_does() -> None:
    slow, fast = (
        run(loop_of(5, {"law": "exponential", "mean": "20 ms"}, fleet={"replicas": replicas})).requests
        for replicas in (1, 4)
    )
    for name in ("adapter", "prompt_tokens", "output_tokens"):
        assert slow[name].tolist() == fast[name].tolist()
    assert slow["arrival_s"][0] == fast["arrival_s"][0], "the first comes after the same thinking"
    assert float(slow["arrival_s"][-1]) > float(fast["arrival_s"][-1])


def test_requests_are_those_of_an_open_loop_with_the_same_seed() -> None:
    closed_loop, poisson = loop_of(5), loop_of(5).model_dump(mode="json", by_alias=True, exclude_unset=True)
    poisson["workload"]["arrivals"] = {"process": "poisson", "rate": "10/s"}
    ours, theirs = run(closed_loop).requests, run(Scenario.model_validate(poisson)).requests
    for name in ("adapter", "prompt_tokens", "output_tokens"):
        assert ours[name].tolist() == theirs[name].tolist()


def test_a_run_for_a_duration_sends_until_its_end() -> None:
    scenario = loop_of(4, "20 ms")
    workload = scenario.workload.model_copy(update={"requests": None, "duration": 3.0})
    recording = run(scenario.model_copy(update={"workload": workload}))
    requests = recording.requests
    assert recording.stopped_s == 3.0
    assert float(requests["arrival_s"].max()) < 3.0
    assert int(np.sum(requests["status"] == UNFINISHED)) <= 4


def test_a_refused_client_goes_on_after_a_pause() -> None:
    # No answer fits into 8 tokens of KV cache, so the only client is refused again and again.
    scenario = build(
        workload={
            "requests": 5,
            "arrivals": {"process": "closed", "concurrency": 1},
            "tokens": {"prompt": {"law": "fixed", "value": 10}, "output": {"law": "fixed", "value": 10}},
        },
        adapters={"count": 1, "size": "1 MiB"},
        fleet={"kv_tokens": 16},
    )
    requests = run(scenario).requests
    assert requests["status"].tolist() == [REFUSED] * 5
    assert requests["arrival_s"].tolist() == [place * PAUSE_S for place in range(5)]


def crashing(crash: dict[str, Any], **more: Any) -> Scenario:
    return loop_of(6, requests=400, faults=[{"kind": "crash", "replica": 0, "at": "1 s", **crash}], **more)


def test_clients_of_lost_requests_send_others() -> None:
    requests = run(
        crashing({"down": "500 ms", "detected": "100 ms", "requests": "lose"}, fleet={"replicas": 2})
    ).requests
    assert len(requests["index"]) == 400
    failed = requests["status"] == FAILED
    assert 0 < int(np.sum(failed)) < 50
    assert int(np.sum(requests["status"] == COMPLETED)) == 400 - int(np.sum(failed))


def test_clients_wait_for_a_fleet_that_never_comes_up_again() -> None:
    recording = run(crashing({"detected": "100 ms", "requests": "reroute"}))
    requests = recording.requests
    assert int(np.sum(requests["status"] == UNFINISHED)) == 6
    assert len(requests["index"]) < 400, "the others are never sent"


PLACING = {"policy": "placement", "controller": {"policy": "popularity", "period": "70 ms", "history": "140 ms"}}


@pytest.mark.parametrize("router", [{"policy": "least-loaded"}, PLACING])
def test_a_stale_view_of_a_fleet_that_never_comes_up_again_is_not_read_for_ever(router: dict[str, Any]) -> None:
    """Nor do its readings and the decisions of a placement controller keep each other going."""
    scenario = crashing({"detected": "100 ms", "requests": "reroute"}, router={**router, "staleness": "50 ms"})
    faults = [*scenario.model_dump(mode="json", by_alias=True, exclude_unset=True)["faults"]]
    faults.append({**faults[0], "replica": 1})
    sections = scenario.model_dump(mode="json", by_alias=True, exclude_unset=True)
    sections["fleet"]["replicas"] = 2
    requests = run(Scenario.model_validate({**sections, "faults": faults})).requests
    assert int(np.sum(requests["status"] == UNFINISHED)) == 6


def test_a_client_behind_a_front_end_goes_on_when_it_sees_the_answer() -> None:
    workload = {
        "requests": 400,
        "arrivals": {"process": "closed", "concurrency": 1},
        "tokens": {"prompt": {"law": "fixed", "value": 8}, "output": {"law": "fixed", "value": 4}},
    }
    profile = "h100-64gb/llama-3.1-8b/vllm-0.8.5"
    fleet = {"engine": "vllm-0.8", "profile": profile, "front_end": "vllm-0.8-scraped"}
    scenario = Scenario.model_validate(
        {
            "schema_version": 1,
            "name": "test",
            "workload": workload,
            "adapters": {"count": 2},
            "fleet": fleet,
            "cache": {"gpu": {"slots": 2}},
            "run": {"warmup": 0},
        }
    )
    requests = run(scenario).requests
    assert np.array_equal(requests["arrival_s"][1:], requests["finished_s"][:-1])
