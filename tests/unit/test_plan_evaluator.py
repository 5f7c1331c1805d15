"""How a plan makes its runs longer, and where it repeats them instead."""

from __future__ import annotations

from pathlib import Path

import pytest
from strategies import write_trace

from sim.results.metric_state import Cause, State
from sim.results.point import Metric, Point
from sim.results.verdict import met_probability, planning_probability
from sim.spec.scenario_file import LoadedScenario, load_scenario
from sim.studies.design import make_design
from sim.studies.plan.evaluator import TIMES, efforts_of, longer


def quickstart(*overrides: str) -> LoadedScenario:
    return load_scenario("quickstart", ["workload.requests=1000", *overrides])


def test_more_effort_makes_runs_longer() -> None:
    for times in TIMES:
        found = longer(quickstart(), times).scenario
        assert (found.workload.requests, found.run.replications) == (1000 * times, 2)
    assert longer(quickstart("run.replications=1"), 4).scenario.run.replications == 1


def test_a_duration_grows_like_a_number_of_requests() -> None:
    found = longer(quickstart("workload.requests=null", "workload.duration=90 s"), 4).scenario
    assert (found.workload.requests, found.workload.duration, found.run.replications) == (None, 360.0, 2)


@pytest.mark.parametrize(
    "override",
    [
        "faults=[{kind: crash, replica: 0, at: 20 s, down: 10 s}]",
        "workload.arrivals={process: diurnal, rate: 8/s}",
        "workload.arrivals={process: piecewise, rate: 8/s, steps: [{time: 60 s, level: 1}, {time: 60 s, level: 2}]}",
    ],
)
def test_where_something_happens_at_set_times_runs_are_repeated(override: str) -> None:
    found = longer(quickstart(override), 4).scenario
    assert (found.workload.requests, found.run.replications) == (1000, 8)


def test_a_trace_is_replayed_once(tmp_path: Path) -> None:
    trace = write_trace([(float(i), i % 3, 4, 4) for i in range(20)])
    path = tmp_path / "t.yaml"
    path.write_text(
        f"schema_version: 1\nname: t\nworkload: {{trace: {{file: {trace}}}}}\nadapters: {{count: 4, rank: 16}}\n"
        "fleet: {engine: continuous, profile: h100-64gb/llama-3.1-8b/assumed}\ncache: {gpu: {slots: 2}}\n"
    )
    loaded = load_scenario(str(path))
    assert longer(loaded, 16) is loaded
    assert efforts_of(make_design(loaded.scenario).world) == (1,)


def test_the_plan_decides_how_long_a_run_is() -> None:
    assert longer(quickstart("run.half_width=5%"), 4).scenario.run.half_width is None


@pytest.mark.parametrize("value", [1.1, 1.3, 1.9])
def test_a_plan_takes_the_error_of_an_unsettled_miss_to_be_twice_as_large(value: float) -> None:
    """One burst may decide in its few replications. What is settled, or far from its target, may be ruled out."""

    def missing(value: float, half: float, cause: Cause) -> Point:
        """Return a point whose interval reaches from value / half to value × half."""
        return Point({}, {"ttft_p99_s": Metric(value, value / half, value * half, "s", State(cause))})

    slo = {"ttft_p99_s": 1.0}
    unsettled, wider = (missing(value, half, Cause.FEW_EFFECTIVE) for half in (1.2, 1.2**2))
    assert planning_probability(unsettled, slo) == pytest.approx(met_probability(wider, slo))
    assert planning_probability(unsettled, slo) > met_probability(unsettled, slo)
    for point in (missing(value, 1.2, Cause.NONE), missing(2.0 * value, 1.2, Cause.FEW_EFFECTIVE)):
        assert planning_probability(point, slo) == met_probability(point, slo)
