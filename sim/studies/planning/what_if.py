"""What one change at a time would do at a chosen design, under the same traffic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim.errors import InputError
from sim.results.files import json_ready
from sim.results.pairs import Difference, difference_of
from sim.results.point import Point
from sim.results.store import RunStore, point_key
from sim.results.verdict import verdict
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import LoadedScenario
from sim.studies.backends.pool import Pool
from sim.studies.planning.changes import Change, changes
from sim.studies.point import conclude, replications_of, simulate_replication, world_of
from sim.studies.sweep import code_version, input_digests, sent
from sim.world.build import build_world
from sim.world.world import World

ALWAYS = ("ttft_p99_s", "e2e_p99_s", "miss_ratio")
"""Metrics that every what-if shows, beside those of the SLO."""


def what_if(
    loaded: LoadedScenario,
    store: RunStore,
    *,
    pool: Pool,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[dict[str, Any]], int]:
    """Return one row a change, and how many requests were simulated.

    :param loaded: the chosen design; every change is made from there.
    :param store: where points are kept: a what-if that was killed goes on.
    :returns: rows ``{"group", "label", "set", "note", "refused", "verdict", "metrics": {NAME: Difference}}`` as plain
        data; ``refused`` says why a change can't be made, None where it can.
    """
    terms = loaded.scenario.slo.terms()
    names = list(dict.fromkeys([*terms, *ALWAYS]))
    tried: list[tuple[Change, LoadedScenario | None, str]] = [(Change("", "as planned"), loaded, "")]
    for change in changes(build_world(loaded.scenario)):
        try:
            design = loaded.with_values(change.set)
            build_world(design.scenario)
        except InputError as error:
            tried.append((change, None, error.problem))
        else:
            tried.append((change, design, ""))
    points = _points([design for _, design, _ in tried], store, pool, progress)
    base = points[0]
    assert base is not None, "the chosen design can be built"
    rows = []
    for (change, _, why), point in zip(tried[1:], points[1:], strict=True):
        row: dict[str, Any] = {"group": change.group, "label": change.label, "set": change.set, "note": change.note,
                               "refused": why or None, "verdict": None, "metrics": {}}  # fmt: skip
        if point is not None:
            row["verdict"] = verdict(point, terms)
            found = {name: difference_of(base, point, name) for name in names}
            row["metrics"] = {name: _plain(each) for name, each in found.items() if each is not None}
        rows.append(row)
    requests = sum(int(point.cost["requests"]) for point in points if point is not None)
    ready: list[dict[str, Any]] = json_ready(rows)
    return ready, requests


def _points(
    designs: list[LoadedScenario | None], store: RunStore, pool: Pool, progress: Callable[[int, int], None]
) -> list[Point | None]:
    """Return the point of every design that there is, simulating those that were not kept."""
    found: dict[int, Point] = {}
    keys: dict[int, str] = {}
    todo: list[tuple[int, LoadedScenario]] = []
    for place, design in enumerate(designs):
        if design is None:
            continue
        inputs = input_digests(design, build_world(design.scenario))
        keys[place] = point_key(design.data, {"what_if": True}, code_version(), inputs)
        kept = store.load_point(keys[place])
        if kept is None:
            todo.append((place, design))
        else:
            found[place] = kept
    progress(len(found), len(keys))
    for place, point in pool.unordered(_simulated, ((place, sent(design.scenario, pool)) for place, design in todo)):
        store.save_point(keys[place], point)
        found[place] = point
        progress(len(found), len(keys))
    return [found.get(place) for place in range(len(designs))]


def _simulated(place: int, what: Scenario | World) -> tuple[int, Point]:
    """Simulate a design with the profile's own costs: draws would cost more and cancel in the difference."""
    world = world_of(what)
    recordings = [simulate_replication(world, replication) for replication in range(replications_of(world))]
    return place, conclude(world, recordings, {}, with_requests=False).point


def _plain(found: Difference) -> dict[str, Any]:
    return {
        "unit": found.unit, "one": found.one, "other": found.other, "change": found.change, "lo": found.lo,
        "hi": found.hi, "relative": found.relative, "word": found.word, "paired": found.paired,
    }  # fmt: skip
