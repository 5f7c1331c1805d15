"""``loraplan vet --scenario``: prices every remedy that a vetting found on a fleet, in a run directory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from sim.results.point import Point
from sim.results.run_directory.result_files import json_ready, scenario_hash
from sim.results.run_directory.study_records import RemedyRow
from sim.spec.scenario_file import LoadedScenario
from sim.studies.design import build
from sim.studies.execution import Execution
from sim.studies.plan.study import free_folder, open_folder
from sim.studies.plan.what_if import ChangedDesign, rows_of, try_changes
from sim.studies.sweep import manifest_of, task_of
from sim.studies.vet.remedies import RemedyChange, changes_of, remedies_of
from sim.training.vet_results import Vetted


@dataclass(frozen=True)
class PricedRemedies:
    """The cost of remedies.

    :ivar point: of the scenario as it is.
    :ivar rows: one for each change, as the manifest keeps them under ``cures``.
    """

    path: Path
    point: Point
    rows: list[RemedyRow]


def price_remedies(
    vetted: Sequence[Vetted],
    loaded: LoadedScenario,
    out: Path | None = None,
    execution: Execution | None = None,
) -> PricedRemedies | None:
    """Run the what-if of every remedy and write a run directory, without a report.

    An interrupted run resumes.

    :param out: the run directory; None: ``runs/NAME-cures``.
    :returns: None if no remedy changes the cost of serving.
    :raises InputError: if the scenario as it is can't be simulated.
    """
    started = time.perf_counter()
    execution = execution or Execution()
    wanted = remedies_of(vetted)
    if not wanted:
        return None
    task = task_of(0, loaded, {})  # locates errors in the file
    world = build(loaded.scenario)
    found = [(change, whose) for remedy, whose in wanted for change in changes_of(remedy, whose, loaded, world)]
    question = json_ready([[each.change.label, each.change.set] for each, _ in found])
    folder = out or free_folder(loaded, question, kind="cures")
    manifest = {
        **manifest_of(loaded, [task], [], execution.command),
        "kind": "cures",
        "asked": scenario_hash(loaded.data),
        "cures": {"question": question},
    }
    ended: dict[str, Point] = {}
    opened = open_folder(folder, manifest, question, "cures", given=out is not None)
    with opened as store, store.closing(lambda: ended, started):
        evaluated = try_changes(loaded, [each.change for each, _ in found], store, execution)
        base = evaluated[0].point
        assert base is not None, "it was simulated"
        ended[evaluated[0].key] = base
        rows = _rows(loaded, evaluated, found)
        record = {
            "question": question,
            "rows": json_ready([row.to_json() for row in rows]),
            "memory": evaluated[0].memory,
            "vetted": [one.to_json() for one in vetted],
        }
        store.update({"point_keys": [evaluated[0].key], "sets": [{}], "points_total": 1, "cures": record})
    return PricedRemedies(folder, base, rows)


def _rows(
    loaded: LoadedScenario, evaluated: Sequence[ChangedDesign], found: Sequence[tuple[RemedyChange, list[Vetted]]]
) -> list[RemedyRow]:
    before, base = evaluated[0].memory, evaluated[0].point
    assert base is not None, "it was simulated"
    rows = []
    for row, each, (changed, whose) in zip(rows_of(loaded, evaluated), evaluated[1:], found, strict=True):
        rows.append(
            RemedyRow(
                **{each.name: getattr(row, each.name) for each in fields(row)},
                title=changed.title,
                who=changed.who,
                scope=changed.scope,
                adapters=changed.adapters,
                cure=changed.remedy.words,
                warnings=[] if each.point is None else [w for w in each.point.warnings if w not in base.warnings],
                paths=[str(vetted.path) for vetted in whose],
                adapter_bytes=[changed.bytes_before, changed.bytes_after],
                memory={name: [before[name], each.memory.get(name)] for name in before},
            )
        )
    return rows
