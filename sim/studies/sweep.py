"""A grid of points, simulated in parallel and kept as they finish; an interrupted sweep resumes. A run is one point."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sim.results.run_directory.result_files import json_ready
from sim.results.run_directory.store import RunStore
from sim.spec.files.tree import files_of
from sim.spec.profile_choice import prices_of
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import LoadedScenario
from sim.studies.backends.pool import PACE, Pool
from sim.studies.design import Design, design_of, make_design
from sim.studies.evaluate import (
    BASELINE,
    EvaluationOptions,
    Outcome,
    Part,
    evaluate,
    evaluate_scenario,
    on_pool,
    simulate_part,
)
from sim.studies.execution import Execution, Progress
from sim.studies.headroom import find_headroom
from sim.studies.study_identity import StudyOutcome, finished_study, input_digests, study_keys, study_record

SMALL_RUN = 100_000 * PACE
"""Simulated requests below which starting worker processes costs more than they save."""


def run_study(
    loaded: LoadedScenario,
    sets: list[dict[str, Any]],
    out: Path,
    execution: Execution,
    *,
    overwrite: bool = False,
    headroom: bool = False,
) -> StudyOutcome:
    """Simulate every point that ``out`` lacks, and write a run directory, without a report.

    One that holds this study already, finished, is read and left as it is.

    :param sets: swept keys and values of each point; ``[{}]`` for a single run.
    :param headroom: also simulate how much more traffic fits; for single runs.
    :raises InputError: if any point can't be simulated; nothing was simulated then.
    :raises KeyboardInterrupt: after finished points were saved.
    """
    started = time.perf_counter()
    finished = None if overwrite else finished_study(loaded, sets, out, headroom=headroom)
    if finished is not None:
        return finished
    tasks = (task_of(i, loaded.with_values(set_) if set_ else loaded, set_) for i, set_ in enumerate(sets))
    # Thousands of worlds exceed memory, so workers build theirs again, one at a time.
    plan = [task if len(sets) == 1 else replace(task, design=None) for task in tasks]
    keys = study_keys(loaded, sets, [task.inputs for task in plan])
    with RunStore.create(out, manifest_of(loaded, plan, keys, execution.command), overwrite) as store:
        prices = [prices_of(task.point.scenario) for task in plan]
        done = {
            key: point
            for key, price in zip(keys, prices, strict=True)
            if (point := store.load_priced(key, *price)) is not None
        }
        if not store.has_requests_of(keys[0]):
            done.pop(keys[0], None)  # the first point's requests are missing: simulate it again
        reused = len(done)
        with store.closing(lambda: {key: done[key] for key in keys if key in done}, started):
            todo = [task for task, key in zip(plan, keys, strict=True) if key not in done]
            for task, outcome in _simulate_all(todo, execution.pool, execution.on_progress):
                if outcome.requests is not None:
                    store.save_requests(outcome.requests, keys[task.index])
                done[keys[task.index]] = outcome.point
                store.save_point(keys[task.index], outcome.point)
            if headroom:
                # An earlier run of the same points may differ in its price or its name.
                before = store.previous or {}
                found = before.get("headroom") if not todo and before.get("point_keys") == keys else None
                found = found or json_ready(
                    find_headroom(loaded.scenario, done[keys[0]], execution.recording_of).to_json()
                )
                store.update({"headroom": found})
    return StudyOutcome(store.finished([done[key] for key in keys]), reused)


@dataclass(frozen=True, slots=True)
class PointTask:
    """One point to simulate.

    :ivar set: swept keys and values; ``inputs``: hashes of the files it reads, by key.
    :ivar work: requests to simulate in total, including draws of the profile; ``replications``: how many there are.
    :ivar design: with its worlds; None where workers build them.
    :ivar baseline: what its baseline follows from, as text; empty where nothing changes. Points with the same one share
        its simulation.
    """

    index: int
    point: LoadedScenario
    set: dict[str, Any]
    inputs: dict[str, str]
    work: float
    replications: int
    profile: dict[str, Any] | None
    design: Design | None
    baseline: str = ""

    @property
    def options(self) -> EvaluationOptions:
        """What its evaluation includes; only the first point keeps its request table."""
        return EvaluationOptions(self.set, requests=self.index == 0)


def task_of(index: int, point: LoadedScenario, set_: dict[str, Any]) -> PointTask:
    """Check that a point can be simulated, and build its worlds."""
    design = design_of(point, set_)
    world = design.world
    profile = None
    profiles = [pool.profile for pool in world.own_pools]
    if profiles[0] is not None:
        texts: dict[str, Any] = {
            name: "; ".join(dict.fromkeys(getattr(each, name) for each in profiles))
            for name in ("name", "status", "description", "error")
        }
        profile = {**texts, "sha256": world.profile_sha256}
        if world.draws:
            profile["draws"] = world.draws
    inputs = input_digests(point, world.profile_sha256)
    baseline, worlds = "", 1
    if design.baseline is not None:  # its numbers depend on all else in its scenario
        told = design.baseline.scenario.model_dump_json(exclude={"name", "description", "sweep"})
        baseline, worlds = f"{told} {inputs}", 2
    work = (world.traffic.expected_requests() or 0) * (design.replications * worlds + len(design.draws))
    return PointTask(index, point, set_, inputs, work, design.replications, profile, design, baseline)


def _simulate_all(tasks: list[PointTask], pool: Pool, progress: Progress) -> Iterator[tuple[PointTask, Outcome]]:
    """Yield outcomes as they come: parallel over points, or over replications and draws where there is one point."""
    count = len(tasks) if len(tasks) > 1 else sum(task.replications for task in tasks)
    pool = pool.for_workload(sum(task.work for task in tasks), SMALL_RUN, count)
    if len(tasks) == 1 and tasks[0].point.scenario.run.half_width is None:
        design = tasks[0].design or make_design(tasks[0].point.scenario)
        yield tasks[0], evaluate(design, tasks[0].options, on_pool(pool, progress))
        return
    progress(0, len(tasks))
    for count, (index, outcome) in enumerate(_points(tasks, pool), 1):
        yield tasks[index], outcome
        progress(count, len(tasks))


def _points(tasks: list[PointTask], pool: Pool) -> Iterator[tuple[int, Outcome]]:
    """Yield the places of tasks and their outcomes as they come.

    A worker that got a world instead of a scenario returns it after each doubling of the run: only this machine has
    the files to build a longer world from.
    """
    baselines = _shared_baselines(tasks, pool)
    todo = [(place, task.point.scenario) for place, task in enumerate(tasks)]
    while todo:
        arguments = (
            (place, to_worker(scenario, pool), tasks[place].options, baselines.get(tasks[place].baseline, {}))
            for place, scenario in todo
        )
        todo = []
        for place, outcome in pool.unordered(_point_task, arguments):
            if outcome.longer is None:
                yield place, outcome
            else:
                todo.append((place, outcome.longer))


def _shared_baselines(tasks: list[PointTask], pool: Pool) -> dict[str, dict[Part, Any]]:
    """Simulate once what several points have as their baseline: all strategies of a rollout have the same one."""
    sharing = Counter(task.baseline for task in tasks if task.point.scenario.run.half_width is None)
    first = {task.baseline: task for task in reversed(tasks) if task.baseline and sharing[task.baseline] > 1}
    arguments = [
        (key, to_worker(task.point.scenario, pool), Part(BASELINE, place))
        for key, task in first.items()
        for place in range(task.replications)
    ]
    found: dict[str, dict[Part, Any]] = {key: {} for key in first}
    for key, part, usual in pool.unordered(_baseline_task, arguments):
        found[key][part] = usual
    return found


def _baseline_task(key: str, what: Scenario | Design, part: Part) -> tuple[str, Part, Any]:
    return key, part, simulate_part(what if isinstance(what, Design) else make_design(what), part)


def to_worker(scenario: Scenario, pool: Pool) -> Scenario | Design:
    """Return what a worker simulates: a built design if the worker may lack files that the scenario reads."""
    reads_files = pool.away and any(files_of(scenario.model_dump()))
    return make_design(scenario) if reads_files else scenario


def _point_task(
    place: int, what: Scenario | Design, options: EvaluationOptions, known: dict[Part, Any]
) -> tuple[int, Outcome]:
    known = dict(known)
    if isinstance(what, Design):
        return place, evaluate(what, options, known=known)
    return place, evaluate_scenario(what, options, known)


def manifest_of(loaded: LoadedScenario, plan: list[PointTask], keys: list[str], command: str) -> dict[str, Any]:
    """Return how a run directory was made.

    :param plan: its points; ``keys``: the names of their files.
    """
    return {
        **study_record(loaded, [task.set for task in plan], [task.inputs for task in plan], keys),
        "command": command,
        "replications": plan[0].replications,
        "profile": plan[0].profile,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
