"""``loraplan plan``: from the question in a scenario to the answer in a run directory."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Collection, Container, Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sim.errors import InputError, OutputError
from sim.results.point import Point
from sim.results.records import request_table
from sim.results.run_directory.result_files import MANIFEST, json_ready, read_manifest, scenario_hash, write_text
from sim.results.run_directory.store import RunStore
from sim.results.run_directory.study_records import EvaluationRecord, PlanRecord, RefusedDesign
from sim.results.verdict import PROBABLE
from sim.spec.engine_flags.command_lines import as_started, beyond_flags, engine_flags, model_to_fill_in, why_no_flags
from sim.spec.files.yaml_tree import yaml_text
from sim.spec.scenario import Plan
from sim.spec.scenario_file import LoadedScenario
from sim.studies.evaluate import facts_of
from sim.studies.execution import Execution
from sim.studies.headroom import find_headroom
from sim.studies.plan.candidates import Variable
from sim.studies.plan.checks import check_plan
from sim.studies.plan.evaluator import DesignEvaluator, PlanDesign
from sim.studies.plan.findings import FOR_ADAPTERS, RECOMMENDED
from sim.studies.plan.levers import falls_short, waits_for_adapters, with_grades
from sim.studies.plan.questions import SearchResult, full_replicas, gpus_of_replica, price_of, search
from sim.studies.plan.screen import screen
from sim.studies.plan.what_if import what_if
from sim.studies.sweep import manifest_of, task_of
from sim.world.memory.gpu_memory import host_kv_bytes


@dataclass(frozen=True)
class PlanOutcome:
    """The answer of a plan.

    :ivar point: of the answer, or of the design closest to meeting the SLO; ``points``: of all that were evaluated.
    :ivar record: everything as plain data, as the manifest keeps it under ``plan``.
    :ivar resumed: whether the folder has points of an earlier search.
    """

    path: Path
    point: Point
    points: list[Point]
    record: PlanRecord
    resumed: bool


def make_plan(
    loaded: LoadedScenario,
    out: Path | None = None,
    execution: Execution | None = None,
    *,
    and_what_if: bool = False,
    headroom: bool = False,
    on_evaluation: Callable[[EvaluationRecord], None] = lambda entry: None,
) -> PlanOutcome:
    """Answer the scenario's ``plan`` and write a run directory, without a report.

    An interrupted search resumes: the directory keeps every point.

    :param out: the run directory; None: ``runs/NAME-plan``.
    :param execution: reports progress on the what-if.
    :param and_what_if: also try one change at a time at the answer, or at the best design found.
    :param headroom: also simulate how much more traffic fits into the answer, or into the best design found.
    :param on_evaluation: called with every evaluation of a design.
    :raises InputError: if the question makes no sense, or none of its designs can be simulated.
    """
    started = time.perf_counter()
    execution = execution or Execution()
    loaded = in_steady_state(loaded)
    plan, axes, first = check_plan(loaded)
    question = json_ready(plan.model_dump(mode="json", exclude_none=True))
    folder = out or free_folder(loaded, question)
    task = task_of(0, first, {})
    manifest = {
        **manifest_of(loaded, [task], [], execution.command),
        "kind": "plan",
        "asked": scenario_hash(loaded.data),
        "plan": {"question": question},
    }
    ended: dict[str, Point] = {}
    opened = open_folder(folder, manifest, question, given=out is not None)
    with opened as store, store.closing(lambda: ended, started):
        evaluator = DesignEvaluator(
            loaded, store, pool=execution.pool, confidence=plan.confidence, on_evaluation=on_evaluation
        )
        found = search(plan, axes, evaluator)
        found.likely = likely_design(evaluator, axes, plan)
        chosen, record = found.chosen, _record(plan, axes, found, evaluator, loaded)
        designs = _in_order(evaluator.designs(), axes, plan)
        ended |= {design.key: design.point for design in designs if design.point is not None}
        points = list(ended.values())
        if (named := found.answer or found.likely) is not None:
            assert named.simulated is not None, "it was evaluated"
            # As long as the run that decided on it.
            kept = {key: value for key, value in named.simulated.data.items() if key not in ("plan", "sweep")}
            write_text(folder / RECOMMENDED, yaml_text(kept))
        assert chosen.world is not None, "it was evaluated"
        requests_ = request_table(evaluator.first_recording(chosen), chosen.world.traffic.names, facts_of(chosen.world))
        store.save_requests(requests_, chosen.key)
        store.update(
            {
                "point_keys": [design.key for design in designs],
                "sets": [point.set for point in points],
                "points_total": len(points),
                "plan": json_ready(record.to_json()),
            }
        )
        if headroom:
            _keep_headroom(store, chosen)
        assert chosen.point is not None, "it was evaluated"
        wanted_last = [*reversed(_most_wanted_first(designs, axes, plan))]
        short, levers = falls_short(found, wanted_last, evaluator, plan.keys)
        if short is not None:
            _keep_changes(store, "levers", short, execution, levers, plan.keys, evaluator)
            store.update({"levers_key": short.key})
        if and_what_if or (short is None and waits_for_adapters(chosen)):
            _keep_changes(store, "what_if", chosen, execution, () if and_what_if else FOR_ADAPTERS, plan.keys)
    return PlanOutcome(folder, chosen.point, points, record, store.resumed)


def _keep_changes(
    store: RunStore,
    name: str,
    design: PlanDesign,
    execution: Execution,
    groups: Container[str],
    planned: Collection[str],
    evaluator: DesignEvaluator | None = None,
) -> None:
    """Try one change at a time on a design, and keep the rows under a name.

    :param groups: of ``what_if``, as ``planned``; ``evaluator``: evaluates the change that helps most as the plan does
        its designs.
    """
    rows, requests = what_if(design.loaded, store, execution, groups, planned)
    if evaluator is not None:
        before = evaluator.requests
        rows = with_grades(rows, design, evaluator)
        requests += evaluator.requests - before
    store.update({name: json_ready([row.to_json() for row in rows]), f"{name}_requests": requests})


def _keep_headroom(store: RunStore, chosen: PlanDesign) -> None:
    """Find the headroom of a design, unless an earlier search of this question has."""
    assert chosen.point is not None, "it was evaluated"
    previous = store.previous or {}
    record = previous.get("plan") or {}
    same = chosen.key in (record.get("answer_key"), record.get("best_key"))
    known = previous.get("headroom") if same else None
    store.update({"headroom": known or json_ready(find_headroom(chosen.loaded.scenario, chosen.point).to_json())})


def in_steady_state(loaded: LoadedScenario) -> LoadedScenario:
    """Return a scenario whose short runs show the steady state.

    Its caches start full unless it says otherwise, and where an autoscaler's bounds are planned, the fleet starts at
    the minimum, whatever that is.
    """
    plan, values = loaded.scenario.plan, dict[str, Any]()
    if "warm" not in (loaded.data.get("cache") or {}):
        values["cache.warm"] = "steady"
    if plan is not None and {"fleet.autoscale.min", "fleet.autoscale.max"} & {*plan.keys}:
        values["fleet.replicas"] = None
    return loaded.with_values(values) if values else loaded


def open_folder(
    folder: Path, manifest: Mapping[str, Any], question: Any, kind: str = "plan", *, given: bool
) -> RunStore:
    """Open the run directory of a question.

    :param kind: of the run directory: ``plan``, or ``cures``.
    :param given: whether the user chose the folder.
    :raises OutputError: if the folder can't be used.
    """
    if given:
        _refuse_other(folder, question, kind)
    try:
        return RunStore.create(folder, dict(manifest))
    except OutputError as error:
        error.hint = "give another --out"
        raise


def _refuse_other(folder: Path, question: Any, kind: str) -> None:
    """Refuse a folder that holds a run or the answer to another question: its report would be lost."""
    if not (folder / MANIFEST).exists():
        return
    try:
        old = read_manifest(folder)
    except OutputError:
        return  # opening the folder reports it
    if isinstance(old, dict) and (old.get(kind) or {}).get("question") != question:
        what = "the answer to another question" if old.get("kind") == kind else f"a {old.get('kind', 'run')}"
        raise OutputError(f"this folder holds {what}", file=str(folder), got=old.get("name"), hint="give another --out")


def free_folder(loaded: LoadedScenario, question: Any, root: Path = Path("runs"), kind: str = "plan") -> Path:
    """Return ``runs/NAME-plan``, with ``-2``, ``-3``, … if that folder holds something else.

    :param kind: of the run directory: ``plan``, or ``cures``.
    """
    wanted = scenario_hash(loaded.data)
    for number in itertools.count(1):
        folder = root / (f"{loaded.scenario.name}-{kind}" + (f"-{number}" if number > 1 else ""))
        if not folder.exists() or not any(folder.iterdir()):
            return folder
        try:
            old = read_manifest(folder)
        except OutputError:
            continue
        if isinstance(old, dict) and old.get("asked") == wanted and (old.get(kind) or {}).get("question") == question:
            return folder
    raise AssertionError("numbers don't end")


def _in_order(designs: list[PlanDesign], axes: list[Variable], plan: Plan) -> list[PlanDesign]:
    """Return designs by their values, as a sweep has them."""
    fleets = [fleet.name for fleet in plan.fleets]

    def place(design: PlanDesign) -> list[int]:
        found = [fleets.index(design.set["fleet"])] if fleets else []
        for axis in axes:
            index = axis.values.index(design.set[axis.key])
            found.append(-index if plan.direction == "maximize" else index)
        return found

    return sorted(designs, key=place)


def _most_wanted_first(designs: list[PlanDesign], axes: list[Variable], plan: Plan) -> list[PlanDesign]:
    """Return designs by what the plan wants: by price, or by the first variable and then the second."""
    fleets = {fleet.name: fleet for fleet in plan.fleets}

    def place(design: PlanDesign) -> list[float]:
        if not fleets:
            return [axis.values.index(design.set[axis.key]) for axis in axes]
        fleet = fleets[design.set["fleet"]]
        count = design.set["fleet.replicas"] + full_replicas(design)
        return [fleet.price * gpus_of_replica(fleet, design.loaded) * count]

    return sorted(designs, key=place)


def likely_design(evaluator: DesignEvaluator, axes: list[Variable], plan: Plan) -> PlanDesign | None:
    """Return the most wanted design that probably meets the SLO; None where none does.

    Of one variable, the less wanted ones must, too; else, where more is worse, a neighbour of the likeliest: with
    little effort for each, one may look good by chance.
    """
    wanted = _most_wanted_first(evaluator.designs(), axes, plan)
    chances = [evaluator.grade(design).probability for design in wanted]
    if len(axes) > 1 or plan.fleets:
        return next((design for design, chance in zip(wanted, chances, strict=True) if chance >= PROBABLE), None)
    likeliest = max(range(len(wanted)), key=lambda i: (chances[i], i), default=-1)
    behind = len([*itertools.takewhile(lambda chance: chance >= PROBABLE, chances[likeliest:])])
    for last, least in ((len(wanted) - 1, 1), (likeliest + behind - 1, 2)):
        good = [*itertools.takewhile(lambda i: chances[i] >= PROBABLE, range(last, -1, -1))]
        if len(good) >= least:
            return wanted[good[-1]]
    return None


def _record(
    plan: Plan, axes: list[Variable], found: SearchResult, evaluator: DesignEvaluator, loaded: LoadedScenario
) -> PlanRecord:
    answer: dict[str, Any] = {}
    if found.answer is not None:
        answer = dict(found.answer.set)
        if plan.fleets:
            fleet = next(each for each in plan.fleets if each.name == answer["fleet"])
            replicas = answer["fleet.replicas"] + full_replicas(found.answer)
            gpus = gpus_of_replica(fleet, found.answer.loaded)
            answer["price"] = fleet.price * gpus * replicas
            if gpus > 1:
                answer["gpus"] = gpus * replicas
    chosen, named = found.chosen, found.answer is not None or found.likely is not None
    assert chosen.world is not None, "it was evaluated"
    candidates = math.prod(len(axis.values) for axis in axes) * max(1, len(plan.fleets))
    each = chosen.world.traffic.expected_requests() or 0
    every = each * (1 if chosen.world.traffic.replayed else loaded.scenario.run.replications)
    refused = [design for design in evaluator.all_designs() if design.refused is not None and design is not found.edge]
    started = as_started(chosen.loaded.scenario, host_kv_bytes(chosen.world.pools[0]))
    grades = [evaluator.grade(design) for design in _most_wanted_first(evaluator.designs(), axes, plan)]
    return PlanRecord(
        question=plan.model_dump(mode="json", exclude_none=True),
        direction=plan.direction,
        keys=list(plan.keys),
        confidence=plan.confidence,
        ranges={axis.key: [axis.values[0], axis.values[-1], len(axis.values)] for axis in axes},
        feasible=found.answer is not None,
        answer=answer,
        certain=not found.doubtful,
        answer_key=None if found.answer is None else found.answer.key,
        best_key=chosen.key,
        edge_key=found.edge.key if found.edge is not None and found.edge.point is not None else None,
        other_edge_key=None if found.other_edge is None else found.other_edge.key,
        edge_set=None if found.edge is None else found.edge.set,
        edge_refused=None if found.edge is None or found.edge.refused is None else found.edge.refused.problem,
        beyond_key=found.beyond.key if found.beyond is not None and found.beyond.point is not None else None,
        doubtful=[design.set for design in found.doubtful],
        grades=grades,
        probable=None if found.likely is None else evaluator.grade(found.likely),
        frontier=[
            replace(evaluator.grade(design), price=price_of(design))
            for design in _most_wanted_first(found.frontier, axes, plan)
        ],
        edge_refused_key=None if found.edge is None or found.edge.refused is None else found.edge.refused.key,
        refused=[RefusedDesign(design.set, _reason(design.refused)) for design in refused[:3]],
        refused_count=len(refused),
        fleets=found.fleets,
        looks=evaluator.log,
        simulated_requests=evaluator.requests,
        candidates=candidates,
        every_candidate_requests=round(every * candidates),
        formulas=screen(chosen.world),
        flags=engine_flags(started, chosen.world.pools[0].kv_tokens) if named else {},
        no_flags=why_no_flags(started) if named else "",
        beyond_flags=[*model_to_fill_in(chosen.loaded.scenario), *beyond_flags(chosen.loaded.scenario)],
        full_replicas=full_replicas(chosen),
        replications=0 if chosen.point is None else int(chosen.point.cost["replications"]),
    )


def _reason(error: InputError | None) -> str:
    """Return what an error says, without where it was found: in no file, but in the search."""
    assert error is not None, "the design was refused"
    found = copy(error)
    found.file = found.line = None
    return str(found)
