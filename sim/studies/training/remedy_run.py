"""``loraplan vet --scenario``: every cure that a vetting found, priced at a fleet, in a run directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sim.errors import OutputError
from sim.results.model import RemedyRow
from sim.results.point import Point
from sim.results.run_directory.result_files import json_ready
from sim.results.run_directory.store import RunStore, scenario_hash
from sim.spec.scenario_file import LoadedScenario
from sim.studies.backends.pool import Local
from sim.studies.planning.plan_study import free_folder, refuse_other
from sim.studies.planning.what_if import Tried, rows_of, try_changes
from sim.studies.sweep import Task, manifest_of, task_of
from sim.studies.training.remedies import CureChange, changes_of, cures_of
from sim.studies.training.rollout_gate import build
from sim.training.vet_results import Vetted
from sim.training.vet_text import as_json


@dataclass(frozen=True)
class PricedCures:
    """What the cures cost.

    :ivar point: of the scenario as it is.
    :ivar rows: one a change, as the manifest keeps them under ``cures``.
    """

    path: Path
    point: Point
    rows: list[RemedyRow]


def price_cures(
    vetted: Sequence[Vetted],
    loaded: LoadedScenario,
    out: Path | None = None,
    *,
    command: str = "",
    jobs: int = -1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PricedCures | None:
    """Run the what-if of every cure, and leave a run directory without report; None where no cure changes serving.

    A run that was killed goes on where it was.

    :param out: the run directory; None: ``runs/NAME-cures``.
    :raises InputError: if the scenario as it is can't be simulated.
    """
    started = time.perf_counter()
    wanted = cures_of(vetted)
    if not wanted:
        return None
    task = task_of(0, loaded, {})  # says where what is wrong was written
    world = build(loaded.scenario)
    found = [(change, whose) for cure, whose in wanted for change in changes_of(cure, whose, loaded, world)]
    question = json_ready([[each.change.label, each.change.set] for each, _ in found])
    folder = out or free_folder(loaded, question, kind="cures")
    if out is not None:
        refuse_other(folder, question, "cures")
    try:
        opened = RunStore.create(folder, _manifest(loaded, task, question, command))
    except OutputError as error:
        error.hint = "give another --out"
        raise
    points: list[Point] = []
    with opened as store, store.closing(lambda: points, started):
        tried = try_changes(loaded, [each.change for each, _ in found], store, pool=Local(jobs), progress=progress)
        base = tried[0].point
        assert base is not None, "it was simulated"
        points.append(base)
        rows = _rows(loaded, tried, found)
        record = {
            "question": question,
            "rows": json_ready([row.to_json() for row in rows]),
            "memory": tried[0].memory,
            "vetted": [as_json(one) for one in vetted],
        }
        store.update({"point_keys": [tried[0].key], "sets": [{}], "points_total": 1, "cures": record})
    return PricedCures(folder, base, rows)


def _manifest(loaded: LoadedScenario, task: Task, question: Any, command: str) -> dict[str, Any]:
    return {
        **manifest_of(loaded, [task], [], command),
        "kind": "cures",
        "asked": scenario_hash(loaded.data),
        "cures": {"question": question},
    }


def _rows(
    loaded: LoadedScenario, tried: Sequence[Tried], found: Sequence[tuple[CureChange, list[Vetted]]]
) -> list[RemedyRow]:
    """Return the rows of the what-if, with what is known of the cure and of memory."""
    before, base = tried[0].memory, tried[0].point
    assert base is not None, "it was simulated"
    rows = []
    for row, each, (cured, whose) in zip(rows_of(loaded, tried), tried[1:], found, strict=True):
        rows.append(
            RemedyRow(
                **{each.name: getattr(row, each.name) for each in fields(row)},
                title=cured.title,
                who=cured.who,
                scope=cured.scope,
                adapters=cured.adapters,
                cure=cured.cure.words,
                warnings=[] if each.point is None else [w for w in each.point.warnings if w not in base.warnings],
                paths=[str(vetted.path) for vetted in whose],
                adapter_bytes=[cured.bytes_before, cured.bytes_after],
                memory={name: [before[name], each.memory.get(name)] for name in before},
            )
        )
    return rows
