"""What a worker process computes for a page. Each task yields messages; the last one is its result.

A task that is stopped leaves what it has finished in the worker's ``Memory``, and goes on from there.
"""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from reports.render.html import write
from sim.errors import LoraplanError, ScenarioError
from sim.results.fleet_costs import priced
from sim.results.point import Point
from sim.results.point_summary import summarise
from sim.results.records import Recording
from sim.results.run_directory.headroom_record import Headroom
from sim.results.run_directory.store import read_run
from sim.spec.profile_choice import prices_of
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import LoadedScenario
from sim.spec.sections.tenants import Slo
from sim.spec.units import human_seconds
from sim.studies.backends.pool import Local
from sim.studies.design import Design, make_design, setup_of
from sim.studies.evaluate import REPLICATION, EvaluationOptions, Part, evaluate, facts_of, parts_of, simulate_part
from sim.studies.execution import Execution
from sim.studies.run.answer import Answer
from sim.studies.run.report import point_answer, run_answer, run_report
from sim.studies.short_runs import Traffic, steady
from sim.studies.sweep import run_study
from sim.ui.controls import Control, moved_or_slots
from sim.ui.library import ChosenDesign, kept_last
from sim.world.replication import Simulate, simulate
from sim.world.world import World

SHORT = 2_000
"""Requests of a short run; up to twice as many where traffic is bursty, and more where its rate changes slowly."""
SECTIONS = 20
MOST_REQUESTS = 3_000_000
"""Requests of a design in all its replications and draws, at most: longer ones are left to the command line."""
_SHORT_RUNS_KEPT = 16
_DESIGNS_KEPT = 2


@dataclass(frozen=True)
class PointAnswer:
    """A point and what it says.

    :ivar done, of: simulations that it is made from, and those that the final one is made from; 0 of 0: a short run.
    :ivar final: whether it is what ``loraplan run`` gives.
    :ivar headroom: how much more traffic fits; for final ones.
    :ivar replications: that the run has; a trace has one, whatever the scenario says.
    """

    point: Point
    answer: Answer
    done: int = 0
    of: int = 0
    final: bool = False
    headroom: Headroom | None = None
    replications: int = 1

    @property
    def short(self) -> bool:
        """Whether it is from a short run."""
        return not (self.final or self.of)


class TooLong(LoraplanError):
    """A design has more requests than a page simulates, or traffic that takes too long for a short run."""


@dataclass(frozen=True)
class Progress:
    """How many simulations of a design are done."""

    done: int
    of: int


@dataclass
class _Kept:
    """A design, and what was simulated of it.

    :ivar recordings: by what asked for them. They don't depend on the objective.
    """

    design: Design
    recordings: dict[Hashable, Recording] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        """How many requests were simulated."""
        return sum(len(recording.section_of) for recording in self.recordings.values())

    def with_slo(self, scenario: Scenario) -> Design:
        """Return the design with this scenario's objective."""
        return replace(self.design, scenario=scenario, world=_with_slo(self.design.world, scenario.slo))


@dataclass
class Memory:
    """What a worker keeps between tasks, within bounds.

    :ivar shorts: world and recording of short runs; ``designs``: what was evaluated. Both by ``traffic_key``.
    :ivar simulated: how many simulations it has made, for tests.
    """

    shorts: OrderedDict[str, tuple[World, Recording]] = field(default_factory=OrderedDict)
    designs: OrderedDict[str, _Kept] = field(default_factory=OrderedDict)
    simulated: int = 0

    def short(self, key: str, loaded: LoadedScenario) -> tuple[World, Recording]:
        """Return the short run of a scenario; designs that differ in their SLO share it.

        :raises TooLong: if its traffic changes too slowly for one.
        """
        if key not in self.shorts:
            traffic = Traffic.of(steady(loaded.scenario))
            if not traffic.fits:
                phases = human_seconds(traffic.changes_over_s)
                raise TooLong(f"the traffic takes {phases} to go through its phases, too long for a short run")
            world = traffic.world(1.0, max(1, round(SHORT * min(1.0, 2 / traffic.burstiness))))
            self.simulated += 1
            self.shorts[key] = world, simulate(world, 0, SECTIONS)
        return kept_last(self.shorts, key, _SHORT_RUNS_KEPT)

    def design(self, key: str, loaded: LoadedScenario) -> _Kept:
        """Return what is known of a design."""
        if key not in self.designs:
            self.designs[key] = _Kept(make_design(loaded.scenario))
        return kept_last(self.designs, key, _DESIGNS_KEPT)

    def make_room(self, requests: int) -> None:
        """Forget designs but the last used one, until this many requests of it can be kept beside the others."""
        while len(self.designs) > 1 and requests + sum(each.requests for each in self.designs.values()) > MOST_REQUESTS:
            self.designs.popitem(last=False)

    def simulating(self, kept: _Kept, what: Hashable) -> Simulate:
        """Return what simulates a replication of a design only where nothing has done so before.

        :param what: a part of its evaluation, or the headroom, whose worlds differ in their traffic.
        """

        def recording_of(world: World, replication: int, sections: int) -> Recording:
            key = what, world.scenario.workload.model_dump_json(), replication, sections
            if key not in kept.recordings:
                self.simulated += 1
                kept.recordings[key] = simulate(world, replication, sections)
            return kept.recordings[key]

        return recording_of


@dataclass(frozen=True)
class ShortRun:
    """Simulate few requests, without draws of the profile."""

    draws: ClassVar[bool] = False
    loaded: LoadedScenario
    traffic_key: str

    def run(self, memory: Memory) -> Iterator[PointAnswer]:
        """Yield the point.

        :raises TooLong: as ``Memory.short``.
        """
        world, recording = memory.short(self.traffic_key, self.loaded)
        world = _with_slo(world, self.loaded.scenario.slo)
        point = summarise([recording], facts_of(world), {}, list(world.notes))
        point = priced(replace(point, setup=setup_of(world)), *prices_of(self.loaded.scenario))
        yield _point_answer(point, self.loaded)


@dataclass(frozen=True)
class Evaluation:
    """Do what ``loraplan run`` does, and show how far it is: one replication after the other, draws, headroom.

    :ivar folder: a run directory to be written; one that holds this run is read.
    :ivar command: the command line that reproduces it.
    """

    draws: ClassVar[bool] = False
    loaded: LoadedScenario
    traffic_key: str
    folder: Path
    command: str

    def run(self, memory: Memory) -> Iterator[PointAnswer | Progress]:
        """Yield a point after every replication, then the final one.

        :raises TooLong: if it has too many requests.
        """
        kept = memory.design(self.traffic_key, self.loaded)
        design = kept.with_slo(self.loaded.scenario)
        doubles = design.scenario.run.half_width is not None  # then the run itself decides what follows
        parts = [part for part in parts_of(design, EvaluationOptions()) if part.kind == REPLICATION or not doubles]
        requests = len(parts) * (design.world.traffic.expected_requests() or 0)
        if requests > MOST_REQUESTS:
            raise TooLong(f"a run of this design simulates more than {MOST_REQUESTS:,} requests")
        memory.make_room(requests - kept.requests)
        of = len(parts) + 1  # the last step is what else a run does: headroom, tables
        known: dict[Part, Any] = {}
        for done, part in enumerate(parts, 1):
            known[part] = simulate_part(design, part, memory.simulating(kept, part))
            if part.kind == REPLICATION:
                options = EvaluationOptions(replications=done, draws=False, counterfactual=False)
                yield _point_answer(evaluate(design, options, known=dict(known)).point, self.loaded, done, of)
            else:
                yield Progress(done, of)
        yield self._finish(Execution(_Known(known), self.command, recording_of=memory.simulating(kept, "headroom")))

    def _finish(self, execution: Execution) -> PointAnswer:
        """Return the final point, from a run directory that is written as ``loraplan run`` writes it."""
        try:
            run_study(self.loaded, [{}], self.folder, execution, headroom=True)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        data = read_run(self.folder)
        count = data.manifest["replications"]
        return PointAnswer(data.points[0], run_answer(data), final=True, headroom=data.headroom, replications=count)


@dataclass(frozen=True)
class Report:
    """Write the report of a design that was evaluated into a folder of the visitor's.

    :ivar evaluation: gives the run directory.
    :ivar destination: a new folder.
    """

    draws: ClassVar[bool] = True
    evaluation: Evaluation
    destination: Path

    def run(self, memory: Memory) -> Iterator[Any]:
        """Yield progress, then the page's path."""
        if not (self.evaluation.folder / "summary.json").is_file():
            yield from self.evaluation.run(memory)
        page = write(run_report(read_run(self.evaluation.folder)), self.evaluation.folder)
        self.destination.parent.mkdir(parents=True, exist_ok=True)
        self._copy()
        yield self.destination / page.name

    def _copy(self) -> None:
        """Copy the run directory under a hidden name first: a copy that was stopped is no run, and is made again."""
        unfinished = self.destination.with_name(f".{self.destination.name}")
        try:
            shutil.copytree(self.evaluation.folder, unfinished, dirs_exist_ok=True)
            unfinished.rename(self.destination)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise


def free(folder: Path) -> Path:
    """Return a folder that does not exist: this one, or with a number."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return folder if not folder.exists() else next(each for each in numbered if not each.exists())


@dataclass(frozen=True)
class PlanFromHere:
    """Answer a plan's question, and write its report.

    :ivar loaded: with its ``plan`` block.
    :ivar destination: None: ``runs/NAME-plan`` in the working folder.
    """

    draws: ClassVar[bool] = True
    loaded: LoadedScenario
    destination: Path | None
    command: str

    def run(self, memory: Memory) -> Iterator[Any]:
        """Yield the plan's answer and the page's path."""
        from sim.studies.plan.findings import plan_answer
        from sim.studies.plan.report import plan_report
        from sim.studies.plan.study import make_plan

        outcome = make_plan(self.loaded, self.destination, Execution(Local(1), self.command))
        data = read_run(outcome.path)
        yield plan_answer(data), write(plan_report(data), outcome.path)


_MAXIMIZED = ("workload.arrivals.rate", "workload.arrivals.concurrency", "adapters.count", "workload.trace.time_scale")
"""Keys of which more is wanted; less of others."""
_NEVER = ("slo.", "adapters.rank")
"""What a plan can't answer: its targets, and the rank, of which the smallest is always enough."""


def plan_from_here(design: ChosenDesign, moved: str | None, runs: Path) -> tuple[PlanFromHere, str]:
    """Return the plan along the control that was moved last, and its question in words.

    :param runs: folder of run directories.
    :raises InputError: if nothing can be planned along it.
    """
    from sim.studies.plan.study import free_folder

    control = _planned(design, moved)
    verb = "maximize" if control.key in _MAXIMIZED or "workload.client." in control.key else "minimize"
    stops = list(filter(None, control.stops))
    values = [control.typed(stop) for stop in stops]
    if control.listed:
        question: dict[str, Any] = {verb: control.key, "values": values if verb == "minimize" else values[::-1]}
        option = ["--set", f"plan={json.dumps(question)}"]
    else:
        question = {verb: control.key, "range": [values[0], values[-1]]}
        option = [f"--{verb}", f"{control.key}={values[0]}..{values[-1]}"]
    loaded = design.loaded.with_values({"plan": question})
    command = f"{design.command('plan')} {shlex.join(option)}"
    most = "largest" if verb == "maximize" else "smallest"
    low, high = (f"{stop}{control.unit}" for stop in (stops[0], stops[-1]))
    words = f"the {most} value of “{control.words}” from {low} to {high} that meets the SLO"
    return PlanFromHere(loaded, free_folder(loaded, question, runs), command), words


def _planned(design: ChosenDesign, moved: str | None) -> Control:
    able = [
        control
        for control in design.opened.controls
        if control.stops and not control.disabled and not control.key.startswith(_NEVER)
    ]
    found = moved_or_slots(able, moved)
    if found is None:
        raise ScenarioError("a plan needs a number to look for", hint="move a slider first, such as GPU slots")
    return found


@dataclass(frozen=True)
class Curve:
    """Draw p99 along one key.

    :ivar points: with that key in their ``set``.
    :ivar here: its present value.
    """

    draws: ClassVar[bool] = True
    points: tuple[Point, ...]
    here: Any
    terms: dict[str, float]

    def run(self, memory: Memory) -> Iterator[Any]:
        """Yield the chart; None where there is nothing to draw."""
        from reports.axes import make_axes
        from reports.charts.sweep_charts import latency_chart

        axes = make_axes(self.points)
        (key,) = {key for point in self.points for key in point.set}
        chosen = next((point for point in self.points if point.set[key] == self.here), None)
        yield latency_chart(self.points, axes[0], self.terms, chosen) if axes and chosen is not None else None


class _Known:
    """A pool that has the results of parts that were simulated before, and simulates others in this process."""

    away = False

    def __init__(self, known: dict[Part, Any]) -> None:
        self._known = known

    def unordered(self, task: Any, arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield the results in order."""
        for given in arguments:
            if len(given) == 2:  # a design and one of its parts
                yield (given[1], self._known[given[1]]) if given[1] in self._known else task(*given)
            else:  # a whole point, of a run that may be doubled
                *what, known = given
                yield task(*what, {**known, **self._known})

    def for_workload(self, requests: float, least: int, tasks: int) -> _Known:
        return self


def _with_slo(world: World, slo: Slo) -> World:
    return replace(world, scenario=world.scenario.model_copy(update={"slo": slo}))


def _point_answer(point: Point, loaded: LoadedScenario, done: int = 0, of: int = 0) -> PointAnswer:
    assert point.setup is not None, "every point says on what it was simulated"
    assumed = {each.status for each in point.setup.pools or (point.setup,)} == {"assumed"}
    answer = point_answer(point, loaded.scenario.slo.terms(), loaded.data, assumed=assumed)
    return PointAnswer(point, answer, done, of)
