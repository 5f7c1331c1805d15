"""The report of a plan: its answer, the designs to choose from, how the search went, and the flags of the answer."""

from __future__ import annotations

from typing import Any

from reports.answers.verdicts import main_metric
from reports.axes import make_axis
from reports.document import Code, File, Note, Opening, Report, Section
from reports.formatting import likelihood, metric_words, percent, read_terms, show
from reports.table import Table
from reports.text.setup_text import setup_line
from sim.results.run_directory.store import RunData
from sim.results.slo_terms import split_term
from sim.results.verdict import MET, NOT_MET, verdict_word
from sim.studies.plan.effects import tornado_chart, what_if_table
from sim.studies.plan.findings import RECOMMENDED, PlanReading, confidence_of, plan_answer
from sim.studies.run.answer import Answer
from sim.studies.run.report import further_findings, points_report

_BADGES = {MET: ("✓", "A plan that meets the SLO", "met"), NOT_MET: ("✕", "Nothing meets the SLO", "not-met")}
_MOST_ROWS = 200
_MARK = "recommended"
_P = "p is the probability of meeting the SLO."


def plan_report(data: RunData) -> Report:
    """Return the report of a finished plan."""
    read, answer = PlanReading(data), plan_answer(data)
    record, also = read.record, read.record.flags and read.record.beyond_flags
    names = list(dict.fromkeys([*read.terms, "ttft_p99_s", "e2e_p99_s", "miss_ratio"]))
    tables = [frontier_table(read), what_if_table(data.what_if, names)]
    if read.short is not None:
        few = read.phrase(read.short.set)
        tables.append(what_if_table(data.levers, names, f"What would make {few} enough?", f"With {few}"))
    return points_report(
        data,
        answer,
        focus=read.chosen,
        badge=_BADGES.get(answer.verdict, ("?", "Nothing certainly meets the SLO", "unclear")),
        study=Section(
            "plan",
            "How was it found, and what would change it?",
            Note(record.no_flags),
            Note(f"In addition to the command: {'; '.join(record.beyond_flags)}.") if also else None,
            *tables,
            search_table(read),
            formulas_table(read),
            listed="Plan",
        ),
        tornado=tornado_chart(data.what_if, main_metric([read.chosen], read_terms(data.slo))),
        data=_data(read, answer, data),
        terminal=_terminal(read, answer, tables, str(data.manifest.get("name"))),
        files=[File(RECOMMENDED, None, "scenario")] if read.recommends else (),
        closing=_closing(read),
        margin=10,
    )


def _data(read: PlanReading, answer: Answer, data: RunData) -> dict[str, Any]:
    record, chosen = read.record, read.chosen
    word, reason = confidence_of(read, assumed=data.costs_assumed)
    return {
        "feasible": read.feasible,
        "answer": record.answer,
        "binding": answer.binding,
        "confidence": word,
        "metrics": chosen.metrics_json(),
        "simulated_requests": record.simulated_requests,
        "certain": record.certain,
        "unclear": record.doubtful,
        "grades": [each.to_json() for each in record.grades],
        "probable": record.probable.to_json() if record.probable is not None else {},
        "frontier": [each.to_json() for each in record.frontier],
        "best": chosen.set,
        **({"decides": split_term(read.decides())[0]} if any(each.slo for each in chosen.tenants) else {}),
        "reason": reason,
        "flags": record.flags,
        "no_flags": record.no_flags,
        "setup": chosen.setup.to_json() if chosen.setup else {},
        "what_if": data.manifest.get("what_if", []),
        "levers": data.manifest.get("levers", []),
        "headroom": None if data.headroom is None else data.headroom.summary(),
        "short_answer": answer.to_json(),
    }


def _terminal(read: PlanReading, answer: Answer, tables: list[Table | None], name: str) -> list[str | Table | Opening]:
    return [
        Opening(f"{name}: {answer.headline}", answer.verdict),
        *(f"  {sentence}" for sentence in (setup_line([read.chosen]), *further_findings(answer))),
        *(part for table in tables if table is not None for part in ("", table)),
    ]


def _closing(read: PlanReading) -> list[str | Code]:
    """Return the command lines that start what is recommended, as the terminal ends with them."""
    record, found = read.record, list[str | Code]()
    if read.recommends:
        found += [Code(line, engine) for engine, line in record.flags.items()]
        found += [f"flags     {record.no_flags}"] if record.no_flags else []
        found += [f"also set  {'; '.join(record.beyond_flags)}"] if record.flags and record.beyond_flags else []
    return found


def search_table(read: PlanReading) -> Table | None:
    """Return the designs that the search evaluated, in order; None where the plan kept none."""
    record = read.record
    if not record.looks:
        return None
    rows = []
    for number, look in enumerate(record.looks[:_MOST_ROWS], 1):
        term, seen = metric_words(look.term), "" if look.value is None else show(look.term, look.value)
        if look.unserved is not None:
            term, seen = "refused or failed", percent(look.unserved)
        score = percent(look.score) if look.score is not None else ""
        likely, runs = likelihood(look.probability), f"{look.replications} × {look.requests:,}"
        rows.append([str(number), read.phrase(look.set), term, seen, score, look.word, likely, runs])
    share = record.simulated_requests / max(1, record.every_candidate_requests)
    note = f"{record.simulated_requests:,} requests were simulated"
    if share < 1:
        note += f", {percent(share)} of what one run of each of the {record.candidates:,} candidates would take"
    if len(rows) < len(record.looks):
        note += f"; the first {len(rows)} of {len(record.looks):,} evaluations are shown"
    note += "."
    head = ["evaluation", "design", "deciding term", "value", "of its target", "verdict", "p", "requests"]
    return Table("How the search went", head, rows, note, words=(1, 2, 5))


def frontier_table(read: PlanReading) -> Table | None:
    """Return the designs to choose from: by value of the first of two variables, or by fleet; None where there is one.

    The recommended one is marked.
    """
    record = read.record
    if record.fleets:
        return _fleets_table(read)
    if len(record.frontier) < 2:
        return None
    keys = record.keys
    axes = [make_axis(key, read.points) for key in keys]
    priced = any(row.price is not None for row in record.frontier)
    rows = [
        [
            *(axis.label(row.set[key]) for axis, key in zip(axes, keys, strict=True)),
            *([f"${row.price:,.2f}" if row.price is not None else "–"] if priced else []),
            row.verdict,
            likelihood(row.probability),
            _MARK if row.set == record.answer else "",
        ]
        for row in record.frontier
    ]
    head = [*(axis.words for axis in axes), *(["price per hour"] if priced else []), "SLO", "p", ""]
    extreme = "largest" if record.direction == "maximize" else "smallest"
    note = f"Each row has the {extreme} second value for the first. {_P}"
    if read.mix_price is not None:
        note = f"By replicas of the first pool, the fewest of the second. Mixes that cost more are not searched. {_P}"
    slo = head.index("SLO")
    verdicts = {(number, slo): verdict_word(row.probability) for number, row in enumerate(record.frontier)}
    return Table("What is enough", head, rows, note, words=(slo, slo + 2), verdicts=verdicts, keys=2)


def _fleets_table(read: PlanReading) -> Table:
    record = read.record
    grades = {tuple(sorted(grade.set.items())): grade for grade in record.grades}
    rows = []
    for fleet in record.fleets:
        cells = [fleet.fleet, f"${fleet.price:,.2f}"]
        if fleet.total is None:
            rows.append([*cells, "–", "–", fleet.word, "–", ""])
            continue
        count = (fleet.replicas or 0) + fleet.full_replicas
        grade = grades.get((("fleet", fleet.fleet), ("fleet.replicas", fleet.replicas)))
        likely = "–" if grade is None else likelihood(grade.probability)
        mark = _MARK if fleet.fleet == record.answer.get("fleet") else ""
        rows.append([*cells, f"{count * fleet.gpus}", f"${fleet.total:,.2f}", fleet.word, likely, mark])
    head = ["fleet", "price per GPU hour", "GPUs", "price per hour", "SLO", "p", ""]
    note = f"Each row has the fewest replicas of its fleet. A fleet that costs more is not searched further. {_P}"
    return Table("What each fleet costs", head, rows, note, words=(4, 6))


def formulas_table(read: PlanReading) -> Table | None:
    """Return what the formulas estimate for the answer, next to what was simulated; None where the plan kept none."""
    formulas = read.record.formulas
    if formulas is None:
        return None
    metrics, kv = read.chosen.metrics, read.chosen.capacity.kv
    rows = [
        ["miss ratio (Che)", _percent(formulas.miss_ratio), _percent(metrics["miss_ratio"].value)],
        ["load of the loaders", _percent(formulas.loader_load), _percent(metrics["loader_utilization"].value)],
        ["load of the GPU, at its largest batch", _percent(formulas.gpu_load), "–"],
        ["KV memory that the batch needs", _percent(formulas.kv_share), _percent(kv.peak_share if kv else None)],
    ]
    note = (
        "Formulas ignore bursts and queues; they only decide where the search begins. In the simulation the miss ratio "
        "counts delayed hits as hits."
    )
    return Table("What the formulas estimate", ["", "formula", "simulated"], rows, note)


def _percent(value: float | None) -> str:
    return "–" if value is None else percent(value)
