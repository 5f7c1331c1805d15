"""The impact of rollouts and faults: the difference to a baseline that is the same world until something changes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from strategies import run

from sim.results.baseline_impact import usual_impact, with_impact
from sim.results.intervals import student
from sim.results.point import Point
from sim.results.point_summary import summarise
from sim.results.records import Recording
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import load_scenario
from sim.studies.backends.pool import Local
from sim.studies.design import baseline_of, make_design
from sim.studies.evaluate import EvaluationOptions, evaluate_scenario, facts_of
from sim.studies.execution import Execution
from sim.studies.sweep import run_study

FLEET = ["workload.duration=30 s", "rollouts=null", "run.replications=1", "run.warmup=10%"]
QUEUE = [
    "workload.requests=null",
    "workload.duration=45 s",
    "adapters.count=60",
    "cache.gpu.size=2 GB",
    "run.warmup=10%",
]
LATER = {
    **{
        strategy: f"rollouts=[{{strategy: {strategy}, at: 15 s, spread: 5 s, observe: 10 s}}]"
        for strategy in ("new-name", "in-place", "unload-then-load", "drain-then-swap", "lazy-reread")
    },
    "crash": "faults=[{kind: crash, replica: 1, at: 15 s, down: 5 s, detected: 1 s}]",
    "storage-stall": "faults=[{kind: storage-stall, at: 15 s, lasts: 5 s}]",
    "misrouting": "faults=[{kind: misrouting, at: 15 s, probability: 20%}]",
}
STALL = "faults=[{kind: storage-stall, at: 30 s, lasts: 2 s}]"


def scenario(name: str, settings: list[str]) -> Scenario:
    return load_scenario(name, settings).scenario


@pytest.mark.parametrize("change", LATER.values(), ids=LATER)
def test_the_baseline_is_the_same_world_until_something_changes(change: str) -> None:
    design = make_design(scenario("rollout-blue-green", [*FLEET, change]))
    assert design.baseline is not None
    one, other = (run(world, sections=20) for world in (design.world, design.baseline))
    over = (one.requests["finished_s"] >= 0) & (one.requests["finished_s"] < 15)
    assert over.sum() > 150
    for name, column in one.requests.items():
        compared = slice(None) if name in ("index", "arrival_s", "prompt_tokens", "output_tokens") else over
        assert np.array_equal(column[compared], other.requests[name][compared]), name


def test_what_is_there_from_the_start_is_usual_unless_nothing_else_changes() -> None:
    always, later = "{kind: misrouting, probability: 1%}", "{kind: storage-stall, at: 30 s, lasts: 2 s}"
    both = baseline_of(scenario("cache-thrash", [*QUEUE, f"faults=[{always}, {later}]"]))
    assert [fault.kind for fault in both.faults] == ["misrouting"]
    alone = baseline_of(scenario("cache-thrash", [*QUEUE, f"faults=[{always}]"]))
    assert alone.faults == ()
    assert baseline_of(scenario("cache-thrash", QUEUE)) is None


def test_a_fault_that_never_happens_has_no_impact() -> None:
    never = evaluate_scenario(
        scenario("cache-thrash", [*QUEUE, STALL.replace("2 s", "0 s"), "run.replications=2"])
    ).point
    found = never.metrics["harmed_excess"]
    assert (found.value, found.lo, found.hi) == (0, 0, 0)


def impact(point: Point) -> float:
    value = point.metrics["harmed_excess"].value
    assert value is not None
    return value


def test_the_impact_is_the_same_for_one_four_and_eight_replications() -> None:
    design = make_design(scenario("cache-thrash", [*QUEUE, STALL, "run.replications=8"]))
    assert design.baseline is not None
    facts = facts_of(design.world)
    changed = [run(design.world, place, 20) for place in range(13)]
    usual = [usual_impact(run(design.baseline, place, 20), facts) for place in range(13)]

    def of(*places: int) -> Point:
        some: list[Recording] = [changed[place] for place in places]
        return with_impact(summarise(some, facts, {}, []), some, facts, [usual[place] for place in places])

    eight, four, one = of(*range(8)), of(*range(8, 12)), of(12)
    metric = eight.metrics["harmed_excess"]
    assert metric.lo > 10, "the stall certainly has an impact"
    parts = np.array(metric.parts, dtype=float)
    spread = float(parts.std(ddof=1))
    for other, count in ((four, 4), (one, 1)):  # other replications: by what a mean of so many may differ
        assert abs(impact(other) - impact(eight)) < student(7) * spread * math.sqrt(1 / 8 + 1 / count)


def test_points_that_share_a_baseline_are_as_they_are_alone(tmp_path: Path) -> None:
    loaded = load_scenario("cache-thrash", [*QUEUE, STALL, "run.replications=2"])
    sets = [{"faults.0.lasts": lasts} for lasts in ("1 s", "2 s")]
    shared = run_study(loaded, sets, tmp_path / "run", Execution(Local(1))).points
    for point, set_ in zip(shared, sets, strict=True):
        alone = evaluate_scenario(loaded.with_values(set_).scenario, EvaluationOptions(set_)).point
        assert point.metrics == alone.metrics
        assert point.impact == alone.impact
