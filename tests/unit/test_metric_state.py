"""States of metrics: files keep them, every one has words, and results are frozen."""

from __future__ import annotations

import dataclasses
import inspect
from types import ModuleType

import pytest
from strategies import build

from reports.text.metric_text import remark, unsettled, why
from sim.results import calibration, metric_state, model, point
from sim.results.metric_state import SETTLED, Cause, State
from sim.results.model import from_plain
from sim.results.point import Metric, Point
from sim.results.run_directory import headroom_record, study_records
from sim.studies.evaluate import evaluate_scenario


@pytest.mark.parametrize("cause", Cause)
def test_a_point_keeps_states_and_notes(cause: Cause) -> None:
    metric = Metric(1.5, 1.4, 1.6, "s", State(cause, 12, 3500, 1, 0.97))
    data = Point({}, {"e2e_p99_s": metric}).to_json()
    (read,) = Point.from_json(data).metrics.values()
    assert (read.note, read.settled, read.state.cause) == (metric.note, metric.settled, cause)


@pytest.mark.parametrize("cause", Cause)
def test_every_cause_has_words(cause: Cause) -> None:
    assert bool(why("e2e_p99_s", State(cause, 10, 35))) == (cause is not Cause.NONE)


def test_too_short_a_run_says_how_many_requests_it_needs() -> None:
    longer = Metric(1.5, 1.4, 1.6, "s", State(Cause.FEW_EFFECTIVE, 487, 1266))
    assert remark("e2e_p99_s", longer) == (
        "unsettled: the run is too short for a reliable p99 E2E; run at least 2.6 times as long"
    )
    state = State(Cause.FEW_EFFECTIVE, 2308, 6000, requests=26_000)
    metric = Metric(1.5, 1.4, 1.6, "s", state)
    said = "unsettled: the run is too short for a reliable p99 E2E; run at least 26,000 requests"
    assert remark("e2e_p99_s", metric) == said
    assert unsettled("e2e_p99_s", metric) == f"{said} (--set workload.requests=26000)"
    assert metric.note == "the effective sample size is 2,308, 6,000 are needed; run at least 26,000 requests"
    assert from_plain(State, state.to_json()) == state


@pytest.mark.parametrize(
    ("state", "advice"),
    [
        (State(Cause.WIDE, times=1.6), "run at least 1.6 times as long"),
        (State(Cause.WIDE, times=1.6, recorded=True), "take a trace at least 1.6 times as long"),
        (State(Cause.WIDE, times=1e9, recorded=True), "take a trace more than 100 times as long"),
        (State(Cause.WIDE, recorded=True), "take a longer trace"),
        (
            State(Cause.WIDE, times=14.0, by_cycle=True),
            "run five or more replications of whole cycles",
        ),
        (State(Cause.WIDE, times=3.2, once=True), "run at least 4 times as many replications"),
        (State(Cause.WIDE, times=1e9, once=True), "run many more replications"),
    ],
)
def test_what_makes_a_value_settled_depends_on_the_traffic(state: State, advice: str) -> None:
    assert state.longer == advice


@pytest.mark.parametrize(("cycle_s", "by_cycle"), [(20, True), (0.2, False)])
def test_parts_of_a_cycle_differ_by_design_and_need_whole_ones(cycle_s: float, by_cycle: bool) -> None:
    steps = [{"time": f"{cycle_s / 2} s", "level": level} for level in (1, 3)]
    arrivals = {"process": "piecewise", "rate": "10/s", "steps": steps}
    workload = {"requests": 100, "arrivals": arrivals}
    sections = {"workload": workload, "adapters": {"count": 4, "size": "1 MB"}, "run": {"replications": 2}}
    metrics = evaluate_scenario(build(**sections, fleet={"price": 3600.0})).point.metrics
    throughput, cost = metrics["throughput_rps"], metrics["usd_per_request"]
    assert throughput.state != SETTLED
    assert throughput.state.by_cycle is by_cycle
    assert cost.note == throughput.note
    inverse = (1 / end for end in (throughput.value, throughput.hi, throughput.lo))
    assert (cost.value, cost.lo, cost.hi) == pytest.approx(tuple(inverse)), "at a dollar a second"


def test_what_happens_once_in_a_run_needs_more_of_them() -> None:
    faults = [{"kind": "storage-stall", "at": "2 s", "lasts": "1 s"}]
    workload = {"requests": 100, "arrivals": {"process": "poisson", "rate": "10/s"}}
    sections = {"workload": workload, "adapters": {"count": 4, "size": "1 MB"}, "run": {"replications": 2}}
    once = evaluate_scenario(build(**sections, faults=faults)).point.metrics["throughput_rps"].state
    assert (once.once, once.requests) == (True, None)
    assert not evaluate_scenario(build(**sections)).point.metrics["throughput_rps"].state.once


# What a point or a run directory says can't be changed in passing


def types_of(module: ModuleType) -> list[type]:
    return [
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind) and kind.__module__ == module.__name__ and dataclasses.is_dataclass(kind)
    ]


@pytest.mark.parametrize(
    "module", [model, headroom_record, study_records, point, metric_state, calibration], ids=lambda m: m.__name__
)
def test_every_result_is_frozen(module: ModuleType) -> None:
    kinds = types_of(module)
    assert kinds, "the module has results"
    for kind in kinds:
        assert kind.__dataclass_params__.frozen, kind.__name__  # type: ignore[attr-defined]
