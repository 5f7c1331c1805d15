"""Two plans side by side: what changes in what they recommend, and what was changed in their scenarios."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from reports.document import File, Opening, Report
from reports.formatting import key_words, listed, money, percent
from reports.text.headroom_text import failing_limit, first_limit
from reports.text.limit_text import limit_line
from reports.text.metric_text import capital, signed, term_sentence
from reports.text.setup_text import memory_change
from sim.errors import InputError
from sim.results.run_directory.headroom_record import ALWAYS
from sim.results.run_directory.store import RunData
from sim.results.slo_terms import value_of
from sim.spec.files import tree
from sim.spec.scenario_file import resolved_values
from sim.studies.compare.design_words import by_name, changes_of, valued
from sim.studies.compare.findings import caution_sentences, of_both
from sim.studies.compare.report import compare_report
from sim.studies.compare.study import ABSENT, UNSET, compare_runs
from sim.studies.plan.findings import PlanReading, is_plan, plan_answer, what_binds

_GIVEN, _PLANNED = tree.Origin("scenario"), tree.Origin("plan")
_IN_HEADLINE, _LISTED = 2, 6
"""Changes of the scenario that the headline and their own line name."""
_NO_CHANGE = ("plan.", "run.", "workload.requests", "workload.duration")
"""Keys of what was searched, and for how long it was simulated."""
_COST = "usd_per_month"


class PlanSide:
    """One of two plans.

    :ivar values: of its scenario with what it recommends, or with the nearest design, defaults included.
    :ivar planned: the keys among them that the plan chose; ``given``: those that are not left to defaults.
    :ivar run: that design as a run of one point.
    :ivar month: what ``run`` costs; None without a price.
    :ivar deciding: the SLO term that decides what it recommends.
    :ivar limit: what limits the traffic at which the SLO fails; empty where that is not known.
    """

    def __init__(self, letter: str, data: RunData) -> None:
        if not is_plan(data.manifest):
            raise InputError("this plan is not finished", file=str(data.path), hint="plan again; it resumes")
        self.letter, self.data, self.headroom = letter, data, data.headroom
        self.read, self.answer = PlanReading(data), plan_answer(data)
        given = tree.planted(data.manifest.get("scenario") or {}, _GIVEN)
        root = tree.changed(given, _chosen_values(self.read), _PLANNED)
        scenario, origins = tree.plain(root), tree.origins(root)
        self.values, self.given = resolved_values(scenario), set(origins)
        self.planned = [key for key, origin in origins.items() if origin == _PLANNED and key in self.values]
        point = replace(self.read.chosen, set={})
        self.run = RunData(data.path, {**data.manifest, "scenario": scenario}, [point])
        self.month = point.value(_COST)
        self.deciding = self.read.decides()
        endless = self.headroom is not None and self.headroom.outcome == ALWAYS
        self.limit = "none" if endless else failing_limit(self.headroom)[0]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data; ``nearest`` is the design that is judged where nothing is recommended."""
        value, target = value_of(self.read.chosen, self.deciding), self.read.terms[self.deciding]
        return {
            "feasible": self.read.feasible,
            "certain": self.read.record.certain,
            "answer": self.read.record.answer,
            "nearest": {} if self.read.feasible else self.read.chosen.set,
            "deciding": {"term": self.deciding, "value": value, "target": target},
            "first_limit": self.limit or None,
            _COST: self.month,
            "headroom": None if self.headroom is None else self.headroom.summary(),
        }


def _chosen_values(read: PlanReading) -> dict[str, Any]:
    """Return what a plan chose, by key of the scenario: a fleet by name stands for what it sets."""
    found = dict(read.chosen.set)
    name = found.pop("fleet", None)
    for fleet in read.record.question.get("fleets") or []:
        if fleet["name"] == name:
            gpus = {"fleet.gpus_per_replica": fleet["gpus"]} if fleet.get("gpus") else {}
            found = {**found, **fleet.get("set", {}), **gpus, "fleet.price": fleet["price"]}
    return found


class PlanDiff:
    """Two plans, of any ranges and scenarios.

    :ivar comparison: of the designs that they recommend, or of the nearest ones.
    :ivar recommended: key and both values of what either plan chose; the other may have left it to its scenario.
    :ivar scenario: the same of what else was changed, without what follows from presets.
    :ivar cost: the difference a month; None where not both have a price.
    :raises InputError: if a plan is not finished.
    """

    def __init__(self, one: RunData, other: RunData) -> None:
        self.sides = a, b = PlanSide("A", one), PlanSide("B", other)
        self.comparison = compare_runs(a.run, b.run)
        keys, self._part_of = dict.fromkeys([*a.planned, *b.planned]), self.comparison.parts.part_of
        self.recommended = [(key, a.values.get(key, ABSENT), b.values.get(key, ABSENT)) for key in keys]
        said = {*keys, *filter(None, map(self._part_of, keys))}
        self.scenario = [
            row
            for row in self.comparison.changed
            if row[0] in a.given | b.given and not row[0].startswith(_NO_CHANGE)
            if not {row[0], self._part_of(row[0])} & said
        ]
        self.cost = None if a.month is None or b.month is None else b.month - a.month

    def arrows(self, rows: Iterable[tuple[str, str, str]]) -> list[str]:
        """Return what changes in rows: ``3 → 4 replicas``; nothing for equal values."""
        return [change.arrow for change in changes_of(self.comparison, [row for row in rows if row[1] != row[2]])]

    def design_words(self) -> str:
        """Return how the recommendation changes."""
        if any(self._part_of(key) for key, *_ in self.recommended):  # pools on one side alone have no common keys
            return " → ".join(dict.fromkeys(side.read.phrase(side.read.chosen.set) for side in self.sides))
        same = [valued(by_name(self.comparison, key), a) for key, a, _ in self.recommended]
        return ", ".join(self.arrows(self.recommended)) or f"still {listed(same)}"

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        recommended, scenario = (
            [{"key": by_name(self.comparison, key), "one": a, "other": b} for key, a, b in rows]
            for rows in (self.recommended, self.scenario)
        )
        sides = {name: side.to_json() for name, side in zip(("one", "other"), self.sides, strict=True)}
        return {**sides, "recommended": recommended, "scenario": scenario, f"{_COST}_change": self.cost}


def headline(diff: PlanDiff) -> str:
    """Return in one sentence what changes in the recommendation, with which changes of the scenario."""
    if not all(side.read.feasible for side in diff.sides):
        return " ".join(f"{side.letter}: {side.answer.headline}" for side in diff.sides)
    changes, cost = diff.arrows(diff.scenario), diff.cost
    named = listed(changes) if len(changes) <= _IN_HEADLINE else f"{len(changes)} changes of the scenario"
    effects = [] if cost is None else [f"{signed(_COST, cost, 'USD')} a month" if cost else "the same cost"]
    a, b = (side.limit for side in diff.sides)
    if a and b:
        effects.append(f"first limit still {a}" if a == b else f"first limit {a} → {b}")
    found = f"{capital(diff.design_words())}{f' with {named}' if changes else ''}"
    return f"{': '.join(filter(None, (found, ', '.join(effects))))}."


def lines(diff: PlanDiff) -> list[tuple[str, str]]:
    """Return what else there is to say: label and words of each line."""
    changes = diff.arrows(diff.scenario)
    more = f" and {len(changes) - _LISTED} more" if len(changes) > _LISTED else ""
    months = " → ".join(money(side.month or 0.0) for side in diff.sides)
    nearest = listed([side.letter for side in diff.sides if not side.read.feasible])
    designs = f", with the nearest design of {nearest}" if nearest else ""
    deciding, limits, less = [], [], []
    for side in diff.sides:
        read, name, probable = side.read, side.deciding, side.read.record.probable
        deciding.append(term_sentence(read.chosen, name, read.terms[name], bounds=False))
        today = limit_line(read.chosen, read.missed(read.chosen))
        limits.append(first_limit(side.headroom, today, whose="its") if read.feasible else capital(what_binds(read)[0]))
        if probable is not None and read.feasible and probable.set != read.chosen.set:
            chance = percent(round(probable.probability, 2))
            less.append(f"{read.phrase(probable.set)} would probably do in {side.letter} ({chance})")
    bill = [] if diff.cost is None else [f"{months} a month ({signed(_COST, diff.cost, 'USD')}){designs}."]
    bill.append(memory_change(*(side.read.chosen.setup for side in diff.sides)))
    found = [
        ("Scenario", (", ".join(changes[:_LISTED]) or "the same") + more),
        ("Not planned", ", ".join(_not_planned(diff))),
        ("Deciding", " → ".join(dict.fromkeys(deciding))),
        ("First limit", of_both(limits)),
        ("Bill", " ".join(filter(None, bill))),
        ("Not certain", "; ".join(less)),
    ]
    return [(label, f"{text.rstrip('.')}.") for label, text in found if text]


def _not_planned(diff: PlanDiff) -> list[str]:
    """Return keys that only one plan chose, with what they are in the other."""
    return [
        f"{key_words(by_name(diff.comparison, key))} in {side.letter} ({value}, "
        f"{'from its scenario' if key in side.given else 'the default'})"
        for place, side in enumerate(diff.sides)
        for key, *values in diff.recommended
        if key not in side.planned and not diff.comparison.parts.part_of(key)
        if (value := values[place]) not in (ABSENT, UNSET)
    ]


def plans_report(diff: PlanDiff, command: str) -> Report:
    """Return the report on two plans: that on the designs which they recommend, with an answer of its own.

    :param command: the command that makes the report again.
    """
    base, answer, found = compare_report(diff.comparison, command), headline(diff), lines(diff)
    said = [f"{label}: {text}" for label, text in found]
    # Each plan has traffic and an SLO of its own; the lines say so.
    cautions = caution_sentences(replace(diff.comparison, pairs=(), slo_of="", tenants_alone=((), ())))
    data = {**base.data, "headline": answer, "details": said, "cautions": cautions, "plans": diff.to_json()}
    without = listed([side.letter for side in diff.sides if not side.read.feasible])
    badge = ("✕", f"No recommendation in {without}", "not-met") if without else ("✓", "Both meet their SLO", "met")
    return replace(
        base,
        lead="Two plans, A and B: what changes in what they recommend, and what was changed in their scenarios.",
        verdict=(*badge, ""),
        headline=answer,
        data=data,
        short=found,
        terminal=[Opening(answer), *base.terminal[1:]],
        files=[File("compare.json", data, "data")],
        notes=cautions,
        cautions=cautions,
    )
