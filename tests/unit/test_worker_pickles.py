"""What travels to workers and back goes through pickle: on Python 3.14, which has none for itertools, and compiled."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cloudpickle import CloudPickler
from traffic_samples import drawn, traffic

from sim.spec.scenario_file import bundled_scenarios, load_scenario
from sim.studies.backends.pool import Local
from sim.studies.sweep import SMALL_RUN, task_of
from sim.world.build import build_world
from sim.world.replication import simulate


class Strict(CloudPickler):
    """The pickler of worker processes. It refuses what 3.14 no longer pickles; only 3.12 and 3.13 warn of it."""

    def reducer_override(self, thing: Any) -> Any:
        if type(thing).__module__ == "itertools":
            raise pickle.PicklingError(f"an {type(thing).__name__} of itertools")
        return super().reducer_override(thing)


def sent(thing: Any) -> Any:
    """Return a thing as a worker gets it."""
    buffer = io.BytesIO()
    Strict(buffer).dump(thing)
    return pickle.loads(buffer.getvalue())


@pytest.mark.parametrize("thing", [itertools.repeat(1), itertools.count(), itertools.chain([1], [2]), iter([1])])
def test_the_pickler_here_refuses_objects_of_itertools_and_nothing_else(thing: Any) -> None:
    if type(thing).__module__ == "builtins":
        assert list(sent(thing)) == [1]
        return
    with pytest.raises(pickle.PicklingError, match="of itertools"):
        sent({"deep": [thing]})


RATE = "9/s"
LEVELS = [{"time": "10 s", "level": 1}, {"time": "20 s", "level": 3}]
ARRIVALS: list[dict[str, Any]] = [
    {"process": "poisson", "rate": RATE},
    {"process": "gamma", "rate": RATE, "cv": 3},
    {"process": "gamma", "rate": RATE, "cv": 3, "per": "adapter"},
    {"process": "weibull", "rate": RATE, "cv": 2},
    {"process": "on-off", "rate": RATE, "on": "5 s", "off": "5 s"},
    {"process": "piecewise", "rate": RATE, "steps": LEVELS},
    {"process": "diurnal", "rate": RATE, "period": "60 s"},
    {"process": "mmpp", "rate": RATE, "states": LEVELS},
]
POPULARITY: list[dict[str, Any]] = [
    {"law": "uniform"},
    {"law": "zipf", "exponent": 1.1},
    {"law": "cyclic"},
    {"law": "hot-cold", "hot": 0.2, "requests": 0.8},
]
MORE: list[dict[str, Any]] = [
    {"sessions": {"requests": 4, "gap_median": "2 s"}},
    {"churn": {"every": "50 s"}},
    {"drift": {"every": "10 s", "share": 0.1}},
]


@pytest.mark.parametrize("arrivals", ARRIVALS, ids=lambda law: f"{law['process']}-{law.get('per', 'all')}")
def test_traffic_of_every_process_travels(arrivals: dict[str, Any]) -> None:
    _travels(arrivals=arrivals)


@pytest.mark.parametrize("popularity", POPULARITY, ids=lambda law: str(law["law"]))
def test_traffic_of_popularity_laws_travels(popularity: dict[str, Any]) -> None:
    _travels(popularity=popularity)


@pytest.mark.parametrize("more", MORE, ids=lambda more: "-".join(more))
def test_traffic_with_sessions_churn_or_drift_travels(more: dict[str, Any]) -> None:
    _travels(**more)


def _travels(**workload: Any) -> None:
    made = traffic(**workload)
    for here, there in zip(drawn(made), drawn(sent(made)), strict=True):
        assert np.array_equal(here, there)


@pytest.mark.parametrize("name", bundled_scenarios())
def test_worlds_and_tasks_of_bundled_scenarios_travel(name: str) -> None:
    loaded = load_scenario(name, [], None)
    world = build_world(loaded.scenario)
    assert sent(world).pools[0].weights == world.pools[0].weights
    task = task_of(0, loaded, {})
    assert sent(task).inputs == task.inputs


def test_a_recording_travels_home() -> None:
    world = build_world(load_scenario("quickstart", ["workload.requests=200"], None).scenario)
    run = simulate(sent(world), 0, 1)
    home = sent(run)
    assert all(np.array_equal(home.requests[name], column) for name, column in run.requests.items())


@pytest.mark.slow
def test_a_run_through_workers_needs_no_pickle_that_ends_with_3_14(tmp_path: Path) -> None:
    """On 3.12 and 3.13 the warning is an error here, in the workers too; 3.14 has no such pickles."""
    enough = SMALL_RUN // 4 + 1  # for worker processes, which get the world
    sizes = ("--set", f"workload.requests={enough}", "--set", "run.replications=4")
    command = ("run", "quickstart", *sizes, "--jobs", "2", "--quiet", "--out", str(tmp_path / "out"))
    warnings = "error:Pickle:DeprecationWarning"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sim.cli", *command],  # -P: compiled where these tests are
        env={**os.environ, "PYTHONWARNINGS": warnings},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_workers_start_for_much_work_and_then_take_smaller_tasks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.studies.backends.pool.start_workers", lambda tasks, jobs: None)

    pool = Local(2)
    asked = ((99, 2), (100, 1), (100, 2), (10, 2), (9, 2), (50, 1))
    here = [pool.for_workload(requests, 100, tasks) is not pool for requests, tasks in asked]
    assert here == [True, True, False, False, True, True]
