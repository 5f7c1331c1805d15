"""The effect of one change at a time on a chosen design, under the same traffic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from sim.errors import InputError
from sim.results.by_tenant.slo_terms import all_terms
from sim.results.model import MetricChange
from sim.results.pairs import Difference, difference_of
from sim.results.point import Point
from sim.results.run_directory.store import RunStore, point_key
from sim.results.run_directory.study_records import WhatIfRow
from sim.results.verdict import verdict
from sim.spec.profile_choice import prices_of
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import LoadedScenario
from sim.studies.evaluate import Design, EvaluationOptions, evaluate, make_design
from sim.studies.execution import Execution
from sim.studies.planning.what_if_changes import Change, changes
from sim.studies.study_identity import code_version, input_digests
from sim.studies.sweep import to_worker
from sim.studies.training.vetting_gate import build
from sim.world.world import World

ALWAYS = ("ttft_p99_s", "e2e_p99_s", "miss_ratio", "loads_per_request")
"""Metrics that every what-if reports, in addition to those of the SLO."""
COSTS = ("usd_per_m_tokens",)
"""Those that it reports where there is a price."""


@dataclass(frozen=True, slots=True)
class ChangedDesign:
    """A change, and the design it leads to.

    :ivar design: None where the change is impossible; ``refused`` says why.
    :ivar memory: what fits into it (``memory_of``); ``key``: the name under which its ``point`` is kept.
    """

    change: Change
    design: LoadedScenario | None
    memory: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    key: str = ""
    point: Point | None = None


def what_if(
    loaded: LoadedScenario,
    store: RunStore,
    execution: Execution,
) -> tuple[list[WhatIfRow], int]:
    """Return one row for each change (see ``rows_of``), and how many requests were simulated.

    :param loaded: the design that every change starts from.
    :param store: keeps points, so that an interrupted what-if resumes.
    """
    found = changes(build(loaded.scenario))
    evaluated = try_changes(loaded, found, store, execution)
    requests = sum(int(each.point.cost["requests"]) for each in evaluated if each.point is not None)
    return rows_of(loaded, evaluated), requests


def try_changes(
    loaded: LoadedScenario,
    wanted: Sequence[Change],
    store: RunStore,
    execution: Execution,
) -> list[ChangedDesign]:
    """Simulate a design and each change of it under the same traffic; the unchanged design comes first."""
    evaluated = [_changed(loaded, change) for change in (Change("", "as it is"), *wanted)]
    assert evaluated[0].design is not None, "the chosen design can be built"
    return _points(evaluated, store, execution)


def rows_of(loaded: LoadedScenario, evaluated: Sequence[ChangedDesign]) -> list[WhatIfRow]:
    """Return the effect of each change against the unchanged design, which is the first of those evaluated."""
    terms = all_terms(loaded.scenario)
    base = evaluated[0].point
    assert base is not None, "it was simulated"
    names = list(dict.fromkeys([*terms, *ALWAYS, *(name for name in COSTS if name in base.metrics)]))
    rows = []
    for each in evaluated[1:]:
        change, point = each.change, each.point
        row = WhatIfRow(change.group, change.label, change.set, change.note, each.refused or None)
        if point is not None:
            found = {name: difference_of(base, point, name) for name in names}
            metrics = {name: _kept(each) for name, each in found.items() if each is not None}
            row = replace(row, verdict=verdict(point, terms), metrics=metrics)
        rows.append(row)
    return rows


def _changed(loaded: LoadedScenario, change: Change) -> ChangedDesign:
    if change.refused:
        return ChangedDesign(change, None, refused=change.refused)
    try:
        design = loaded.with_values(change.set) if change.set else loaded
        world = build(design.scenario)
    except InputError as error:
        return ChangedDesign(change, None, refused=error.problem)
    inputs = input_digests(design, world.profile_sha256)
    key = point_key(design.data, {"what_if": True}, code_version(), inputs)
    return ChangedDesign(change, design, memory_of(world), key=key)


def memory_of(world: World) -> dict[str, Any]:
    """Return what fits into one replica: GPU slots (of the mean size where bytes are counted), KV cache, copies.

    ``{"replicas", "slots", "kv_tokens", "host_bytes"}``, all but the first of one replica; None where nothing
    limits it.
    """
    cache, population = world.scenario.cache, world.traffic.population
    sizes = population.size_bytes[~population.full]
    slots = cache.gpu.slots
    if slots is None and not cache.gpu.unified:
        slots = int(world.capacity / float(sizes.mean()))
    host = None
    if cache.host is not None and cache.host.slots is not None:
        host = int(min(cache.host.slots, len(sizes)) * float(sizes.mean()))
    return {"replicas": world.replicas, "slots": slots, "kv_tokens": world.kv_tokens, "host_bytes": host}


def _points(evaluated: Sequence[ChangedDesign], store: RunStore, execution: Execution) -> list[ChangedDesign]:
    """Return every design with its point; simulate those without one, and equal designs only once."""
    designs = {each.key: each.design for each in evaluated if each.design is not None}
    found = {
        key: point
        for key, design in designs.items()
        if (point := store.load_priced(key, *prices_of(design.scenario))) is not None
    }
    execution.on_progress(len(found), len(designs))
    todo = [(key, design) for key, design in designs.items() if key not in found]
    arguments = ((place, to_worker(design.scenario, execution.pool)) for place, (_, design) in enumerate(todo))
    for place, point in execution.pool.unordered(_simulate, arguments):
        key = todo[place][0]
        store.save_point(key, point)
        found[key] = point
        execution.on_progress(len(found), len(designs))
    return [replace(each, point=found.get(each.key)) for each in evaluated]


def _simulate(place: int, what: Scenario | Design) -> tuple[int, Point]:
    """Simulate a design with the profile's own costs; draws take longer and cancel in the difference."""
    design = what if isinstance(what, Design) else make_design(what)
    # Naming the number of replications switches doubling off: every change meets the same traffic.
    options = EvaluationOptions(replications=design.replications, draws=False, counterfactual=False)
    return place, evaluate(design, options).point


def _kept(found: Difference) -> MetricChange:
    """Return a difference as a run directory keeps it: without its note."""
    names = (each.name for each in fields(MetricChange) if each.name != "note")
    return MetricChange(**{name: getattr(found, name) for name in names})
