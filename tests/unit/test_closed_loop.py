"""Closed loops in scenarios and reports: what is refused, what is said, what is planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scenario_samples import base
from strategies import build, fixed_time

from reports.tables.metric_tables import traffic_sentence
from sim.errors import InputError
from sim.results.pairs import same_draws, same_requests
from sim.results.point import Point
from sim.spec.scenario import Scenario, scenario_schema
from sim.spec.scenario_file import load_scenario
from sim.studies.evaluate import evaluate_scenario
from sim.studies.plan.screen import screen
from sim.studies.plan.what_if import _traffic as traffic_changes
from sim.studies.run.method import _traffic
from sim.world.build import build_world

__all__ = ["base"]  # a fixture, used by its name


def test_belady_takes_a_loop_with_a_last_request(base: Path) -> None:
    load_scenario("base.yaml", ["workload.arrivals={process: closed, concurrency: 4}", "cache.eviction=belady"])


def loop(clients: int, requests: int = 600, **sections: Any) -> Scenario:
    arrivals = {"process": "closed", "concurrency": clients, "think": sections.pop("think", "0 s")}
    sections.setdefault("run", {"seed": 1, "warmup": 0.1, "replications": 2})
    return build(
        workload={"requests": requests, "arrivals": arrivals},
        adapters={"count": 20, "size": "1 MiB"},
        cache={"gpu": {"slots": 4}},
        fleet={"engine": "fixed", "service": fixed_time(0.001)},
        storage={"load": fixed_time(0.02)},
        **sections,
    )


def test_clients_that_think_past_the_end_are_a_run_without_requests() -> None:
    scenario = loop(2, think="10 s")
    workload = scenario.workload.model_copy(update={"requests": None, "duration": 1.0})
    with pytest.raises(InputError, match=r"no request arrives in this duration \(got 1 s\); simulate longer, or let"):
        evaluate_scenario(scenario.model_copy(update={"workload": workload}))


def test_a_note_says_that_clients_have_nothing_to_send() -> None:
    assert not build_world(loop(8)).notes
    (note,) = build_world(loop(8, requests=5)).notes
    assert note.startswith("workload.requests (5) is below workload.arrivals.concurrency (8), so 3 clients send no req")


def test_the_schema_knows_a_duration_and_a_law() -> None:
    models = scenario_schema()["$defs"]
    duration, law = models["ClosedArrivals"]["properties"]["think"]["anyOf"]
    assert (duration["type"], duration["examples"]) == ("string", ["20 ms"])
    assert {"$ref": "#/$defs/ExponentialTime"} in law["oneOf"]
    overlay = models["ClosedArrivals.overlay"]["properties"]["think"]["anyOf"][0]["anyOf"]
    assert {"$ref": "#/$defs/ExponentialTime.overlay"} in overlay[1]["anyOf"]


def test_a_law_and_a_duration_read_back_as_they_were() -> None:
    for think in ("2 s", {"law": "exponential", "mean": "2 s"}):
        scenario = loop(3, think=think)
        again = Scenario.model_validate(scenario.model_dump(mode="json", by_alias=True, exclude_unset=True))
        assert again.workload.arrivals == scenario.workload.arrivals


@pytest.fixture(scope="module")
def point() -> Point:
    """A point whose only loader has all the work that four clients can give it."""
    return evaluate_scenario(loop(4)).point


def test_no_load_is_offered_in_a_closed_loop(point: Point) -> None:
    assert point.capacity.loader.utilization > 0.95
    assert point.capacity.offered_load is None
    assert "rate_rps" not in point.traffic
    assert point.traffic["clients"] == 4
    assert not [warning for warning in point.warnings if "overloaded" in warning]


def test_the_answer_names_clients(point: Point) -> None:
    assert traffic_sentence([point]).startswith("Traffic: a closed loop of 4 concurrent requests; the hottest 1 / 10 ")
    workload = {"arrivals": {"process": "closed", "concurrency": 4}}
    assert any(
        sentence.startswith("Requests come from a closed loop: each client") for sentence in _traffic(workload, ())
    )


def test_designs_are_compared_request_by_request(point: Point) -> None:
    faster = loop(4)
    cache = faster.cache.model_copy(update={"gpu": faster.cache.gpu.model_copy(update={"slots": 20})})
    assert same_requests(point, evaluate_scenario(faster.model_copy(update={"cache": cache})).point)
    more = evaluate_scenario(loop(5)).point
    assert not same_requests(point, more)
    assert same_draws(point, more)


def test_formulas_know_no_loads_and_what_if_varies_the_clients() -> None:
    world = build_world(loop(4))
    found = screen(world)
    assert (found.loader_load, found.gpu_load) == (None, None)
    assert found.miss_ratio > 0.5
    assert [(change.label, change.set) for change in traffic_changes(world.scenario)] == [
        ("twice the clients", {"workload.arrivals.concurrency": 8}),
        ("half the clients", {"workload.arrivals.concurrency": 2}),
    ]
    assert [change.label for change in traffic_changes(loop(1))] == ["twice the clients"]
