"""What a study returns is what its run directory says: reports are made of either."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sim.results.run_directory.store import read_run
from sim.spec.scenario_file import load_scenario
from sim.studies.backends.pool import Local
from sim.studies.execution import Execution
from sim.studies.sweep import run_study


def typed(value: Any) -> Any:
    """Return a value with the type of everything in it: ``==`` finds numpy's numbers equal to Python's."""
    if dataclasses.is_dataclass(value):
        return type(value), [(each.name, typed(getattr(value, each.name))) for each in dataclasses.fields(value)]
    if isinstance(value, dict):
        return type(value), [(typed(key), typed(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [typed(item) for item in value]
    return type(value), repr(value)


# Between them, these have all parts of points that a scenario can ask for.
NAMES = (
    "disk-stall",
    "full-models-beside-adapters",
    "misrouting",
    "noisy-neighbour",
    "plan-cheapest-fleet",
    "prefix-sharing",
    "quickstart",
    "replica-crash",
    "rollout-blue-green",
    "scale-storm",
    "sessions",
    "two-cards",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_study_returns_what_is_read_back(name: str, tmp_path: Path) -> None:
    loaded = load_scenario(name)
    fewer: dict[str, Any] = {"run.replications": 1}
    if loaded.scenario.workload.requests is not None:
        fewer["workload.requests"] = 1200
    outcome = run_study(loaded.with_values(fewer), [{}], tmp_path / "run", Execution(Local(1)))
    assert typed(outcome.run) == typed(read_run(tmp_path / "run"))


def test_a_sweep_returns_what_is_read_back_in_the_order_of_its_points(tmp_path: Path) -> None:
    loaded = load_scenario("quickstart").with_values({"workload.requests": 300, "run.replications": 1})
    sets: list[dict[str, Any]] = [{"cache.gpu.slots": slots} for slots in (64, 16, 32)]
    for sets_so_far in (sets[:2], sets):  # the second one finds two of its points there
        outcome = run_study(loaded, sets_so_far, tmp_path / "run", Execution(Local(1)))
        assert [point.set for point in outcome.points] == sets_so_far
        assert typed(outcome.run) == typed(read_run(tmp_path / "run"))
    assert outcome.reused == 2


def test_a_point_with_another_price_is_returned_as_it_is_read_back(tmp_path: Path) -> None:
    loaded = load_scenario("quickstart").with_values({"workload.requests": 300, "run.replications": 1})
    for price in (2.5, 4):
        priced = loaded.with_values({"fleet.price": price})
        outcome = run_study(priced, [{}], tmp_path / "run", Execution(Local(1)))
        assert typed(outcome.run) == typed(read_run(tmp_path / "run"))
    assert outcome.reused == 1
