"""Metrics of an autoscaler by hand: replica-seconds, cold starts, lateness, the load storm, costs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from catalogue_names import ALWAYS_THERE, needing
from strategies import fixed_time, services

from reports.answers.limits import limits
from reports.text.setup_text import cost_sentences
from sim.results.catalogue import AUTOSCALER
from sim.results.metrics import measure
from sim.results.point import Metric, SliceResult
from sim.results.records import Recording
from sim.results.run_directory.headroom_record import ALWAYS, SCALING, Headroom
from sim.results.sample_data import provisioned_s, starting
from sim.results.timeline import replicas_over_time
from sim.spec.scenario import Scenario
from sim.studies.changes.findings import scaling_sentences
from sim.studies.evaluate import EvaluationOptions, evaluate_scenario, facts_of
from sim.studies.run.answer import answer
from sim.world.build import build_world
from sim.world.replication import simulate

SCHEDULE = [{"at": "0 s", "replicas": 1}, {"at": "10 s", "replicas": 2}, {"at": "40 s", "replicas": 1}]
ROWS = [(0.0, 0), (12.0, 0), (12.0, 1), (12.0, 2), (30.0, 0), (30.0, 1), (39.0, 1), (60.0, 0)]
"""Services of 1 s, loads of 0.25 s. From 10 s on a second replica starts; it is ready at 20 s."""


def scenario(run: dict[str, Any] | None = None, **fleet: Any) -> Scenario:
    cold = {"engine": fixed_time(10.0)}
    scaling = {"policy": "schedule", "max": 2, "interval": "10 s", "schedule": SCHEDULE, "cold_start": cold}
    more = {"storage": {"load": fixed_time(0.25)}, "router": {"policy": "round-robin"}, "slo": {"e2e_p99": "2 s"}}
    return services(ROWS, fleet={"autoscale": scaling, **fleet}, **more, **({} if run is None else {"run": run}))


def metrics(given: Scenario) -> tuple[dict[str, Metric], Recording]:
    world = build_world(given)
    recording = simulate(world, 0, 1)
    found, _ = measure([recording], facts_of(world))
    return found, recording


def test_metrics_by_hand() -> None:
    found, recording = metrics(scenario())
    assert recording.lives.tolist() == [[1, 10, 20, 40, 40.25], [0, 0, 0, math.inf, math.inf]]
    assert recording.bounds.tolist() == [0, 60], "from the first to the last arrival"
    values = {name: found[name].value for name in needing(AUTOSCALER) if name in found}
    assert values == {
        "replica_seconds": pytest.approx(60 + 30.25),
        "mean_replicas": pytest.approx(90.25 / 60),
        "replicas_started": 1,
        "replicas_stopped": 1,
        "cold_start_mean_s": 10,
        # Three arrive at 12 s, on one replica, and take 1, 2 and 3 s.
        "late_while_starting": pytest.approx(1 / 3),
        "late_otherwise": 0,
        # At 30 s one of two goes to the new replica, and at 39 s one for the other adapter.
        "new_replica_loads": 2,
        "new_replica_miss_ratio": 1,
    }


def test_what_happens_in_the_warm_up_does_not_count() -> None:
    found, recording = metrics(scenario(run={"warmup": 0.5}))
    assert recording.bounds.tolist() == [30, 60], "from the fifth of eight requests"
    assert recording.lives.tolist() == [[1, 10, 20, 40, 40.25], [0, 0, 0, math.inf, math.inf]]
    assert (found["replicas_started"].value, found["replicas_stopped"].value) == (0, 1)
    found, _ = metrics(scenario(run={"warmup": 0.9}))  # from 60 s on
    assert (found["replicas_started"].value, found["replicas_stopped"].value) == (0, 0)


def test_busy_and_loader_shares_are_of_the_replicas_that_there_are() -> None:
    found, recording = metrics(scenario())
    assert found["gpu_utilization"].value == pytest.approx(recording.busy_s.sum() / 90.25)
    seconds = (recording.loads["ended_s"] - recording.loads["started_s"]).sum()
    assert found["loader_utilization"].value == pytest.approx(seconds / 90.25)


def test_a_fixed_fleet_has_none_of_these_metrics() -> None:
    found, _ = metrics(scenario(autoscale=None))
    assert list(found) == list(ALWAYS_THERE)


def test_costs_follow_from_replica_seconds() -> None:
    given = scenario(price="3.60", gpus_per_replica=2)
    point = evaluate_scenario(given, EvaluationOptions()).point
    assert point.metrics["cost_usd"].value == pytest.approx(90.25 * 2 * 3.6 / 3600)
    assert point.metrics["usd_per_month"].value == pytest.approx(90.25 / 60 * 2 * 730 * 3.6)
    fixed = evaluate_scenario(scenario(price="3.60", gpus_per_replica=2, autoscale=None), EvaluationOptions()).point
    assert "cost_usd" not in fixed.metrics
    assert fixed.metrics["usd_per_month"].value == pytest.approx(2 * 730 * 3.6)


def test_the_timeline_has_both_counts() -> None:
    _, recording = metrics(scenario())
    times = np.array([0.0, 9.9, 10.0, 19.9, 20.0, 39.9, 40.0, 40.2, 40.3])
    provisioned, serving = replicas_over_time(recording, times)
    assert provisioned.tolist() == [1, 1, 2, 2, 2, 2, 2, 2, 1]
    assert serving.tolist() == [1, 1, 1, 1, 2, 2, 1, 1, 1]
    assert starting(recording, times).tolist() == [False, False, True, True, False, False, False, False, False]
    point = evaluate_scenario(scenario(), EvaluationOptions()).point
    assert len(point.timeline.replicas) == len(point.timeline.t_s)


@pytest.mark.parametrize(
    ("starting", "otherwise", "attainment", "found"),
    [(0.33, 0.007, 0.95, True), (0.33, 0.007, 0.995, False), (0.33, 0.2, 0.7, False), (0.33, None, 0.95, False)],
)
def test_cold_starts_limit_where_requests_are_late_during_them(
    starting: float, otherwise: float | None, attainment: float, found: bool
) -> None:
    point = evaluate_scenario(scenario(), EvaluationOptions()).point
    shares = {"late_while_starting": starting, "late_otherwise": otherwise, "slo_attainment": attainment}
    point = replace(point, metrics=point.metrics | {name: Metric(value, unit="1") for name, value in shares.items()})
    assert ("cold starts" in [limit.name for limit in limits(point)]) is found
    noon = SliceResult("noon", {}, {"slo_attainment": Metric(0.9, unit="1")})
    at_noon = limits(replace(point, times=[noon]))
    assert ("cold starts" in [limit.name for limit in at_noon]) is (otherwise == 0.007), "late at one time of the day"
    if found:
        said = answer(point, {"e2e_p99_s": 2.0}, cold=True)
        assert said.binding == "cold starts"
        assert said.binding_sentence.startswith(
            "33 % of the requests that arrive while a replica starts are late, and 0.7 % of the others. Keep more"
        )
        assert "full caches" not in said.setting
        search = Headroom(ALWAYS, lo=1.8, without=(SCALING,))
        point = replace(point, metrics=point.metrics | {"e2e_p99_s": Metric(5.0, 4.0, 6.0, "s")})
        assert answer(point, {"e2e_p99_s": 0.001}, headroom=search).first_limit.startswith("Cold starts: 33 % of the")
        assert answer(point, {"e2e_p99_s": 999.0}, headroom=search).first_limit.startswith(
            "Nothing, with every replica"
        )


def test_the_answer_says_what_starts_did() -> None:
    point = evaluate_scenario(scenario(), EvaluationOptions()).point
    starts = (
        "There are 1.5 replicas on average; in the measured time 1 start, each after 10 s, and make 2 loads in their "
        "first minute."
    )
    late = "33.3 % of the requests that arrive while a replica starts are late, and 0 % of the others."
    assert scaling_sentences(point) == [starts], "the limit says it"
    in_time = replace(point, metrics={**point.metrics, "slo_attainment": Metric(0.995, unit="1")})
    assert scaling_sentences(in_time) == [starts, late]
    dear = evaluate_scenario(scenario(price=2.0), EvaluationOptions()).point
    assert any("a month, if all of it is like the 61 s that were simulated." in said for said in cost_sentences(dear))
    assert scaling_sentences(evaluate_scenario(scenario(autoscale=None), EvaluationOptions()).point) == []


def test_seconds_by_section_add_up() -> None:
    rng = np.random.default_rng(5)
    begin = rng.uniform(0, 100, 50)
    end = np.where(rng.random(50) < 0.2, math.inf, begin + rng.uniform(0, 50, 50))
    bounds = np.array([10.0, 30.0, 31.0, 80.0])
    _, recording = metrics(scenario())
    lives = np.column_stack((begin, begin, begin, end, end))
    found = provisioned_s(replace(recording, lives=lives, bounds=bounds))
    grid = np.arange(10, 80, 0.001) + 0.0005
    alive = sum(((grid >= a) & (grid < b)).astype(float) for a, b in zip(begin, end, strict=True))
    each = [float(alive[(grid >= low) & (grid < high)].sum()) * 0.001 for low, high in ((10, 30), (30, 31), (31, 80))]
    assert found == pytest.approx(each, rel=1e-3)
    assert provisioned_s(recording).sum() == pytest.approx(90.25)
