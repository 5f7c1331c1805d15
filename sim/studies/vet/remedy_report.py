"""What the remedies of a vetting cost: the answer, tables of the fleet without and with them, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from reports.answers.verdicts import main_metric
from reports.document import Opening, Report, Section
from reports.formatting import metric_words, read_terms, show
from reports.table import Table
from reports.text.metric_text import capital, with_interval
from reports.text.setup_text import setup_line
from sim.results.model import Difference
from sim.results.pairs import BETTER, WORSE
from sim.results.point import Point
from sim.results.run_directory.store import RunData
from sim.results.run_directory.study_records import RemedyRow
from sim.results.verdict import MET, NOT_MET, verdict
from sim.spec.units import human_bytes
from sim.studies.plan.effects import tornado_chart, what_if_cell
from sim.studies.run.answer import Answer, answer
from sim.studies.run.report import points_report

_LABEL_WIDTH, _LETTER = 120, 6.4
"""Pixels for the names of a chart's rows: the least, and for each letter."""
_MEMORY = {
    "replicas": "replicas",
    "slots": "GPU slots",
    "kv_tokens": "KV cache, tokens",
    "host_bytes": "copies in host memory",
}

_METRICS = ("miss_ratio", "loads_per_request", "ttft_p99_s", "e2e_p99_s")


def is_priced(manifest: Mapping[str, Any]) -> bool:
    """Return whether a run directory holds finished prices of remedies."""
    return manifest.get("kind") == "cures" and "rows" in (manifest.get("cures") or {})


def remedies_report(data: RunData) -> Report:
    """Return the report of priced remedies: that of the fleet as it is, with what each change would do."""
    several = len({row.title for row in data.remedies}) > 1
    rows = [replace(row, label=f"{row.title}: {row.scope}" if several else row.who) for row in data.remedies]
    width = max(_LABEL_WIDTH, *(int(_LETTER * len(row.label)) for row in rows))
    return points_report(
        data,
        cures_answer(data),
        badge=badge(data),
        study=Section(
            "plan",
            "What was found, and what would its remedies cost?",
            *remedy_tables(data),
            vetted_table(data),
            listed="Remedies",
        ),
        tornado=tornado_chart(rows, main_metric(data.points[:1], read_terms(data.slo)), "as it is", width),
        where=" as it is",
    )


def prices_report(data: RunData) -> Report:
    """Return what the terminal shows of them: the answer, and a table for each remedy."""
    name = data.manifest["name"]
    terminal = [
        Opening(f"{name}: {cures_answer(data).headline}"),
        f"  {setup_line(data.points)}",
        *(part for table in remedy_tables(data) for part in ("", table.caption, table)),
    ]
    return Report("cures", name, None, terminal)


def cures_answer(data: RunData) -> Answer:
    """Return what the remedies cost in words; limits and confidence are those of the fleet as it is."""
    rows, terms = data.remedies, read_terms(data.slo)
    said = answer(data.points[0], terms, assumed=data.costs_assumed)
    by_title: dict[str, list[RemedyRow]] = {}
    for row in rows:
        by_title.setdefault(row.title, []).append(row)
    # The first row of a remedy is that for one adapter, where there is one, the next for all; tables have the rest.
    phrases = [_in_short(found[:2][-1], data.points[0], terms) for found in by_title.values()]
    headline = _in_short(rows[0], data.points[0], terms)
    phrases = [sentence for sentence in phrases if sentence != headline]
    details = [*found_sentences(data.manifest["cures"]["vetted"]), *phrases]
    return replace(said, headline=headline, details=details, setting="")


def badge(data: RunData) -> tuple[str, str, str]:
    """Return mark, words and style of the verdict: whether the remedies leave the SLO met."""
    terms = read_terms(data.slo)
    if not terms:
        return "–", "No SLO given", "no-SLO"
    words = [row.verdict for row in data.remedies if row.verdict is not None]
    good = words.count(MET)
    if words and good == len(words):
        return "✓", "SLO met after every remedy", "met"
    if good == 0 and words.count(NOT_MET) == len(words):
        before = ", nor before" if verdict(data.points[0], terms) == NOT_MET else ""
        return "✕", f"SLO not met after any remedy{before}", "not-met"
    if good == 0:
        return "?", "Unclear whether any remedy leaves the SLO met", "unclear"
    return "◐", f"SLO met after {good} of {len(words)} changes", "partly"


def found_sentences(vetted: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one sentence a finding: what it is, how sure, and the first evidence."""
    said = []
    for each in vetted:
        for finding in each["findings"]:
            evidence = f": {finding['evidence'][0]['what'].rstrip('.')}" if finding["evidence"] else ""
            said.append(f"{each['path']}: {finding['mode']}, {finding['confidence']}{evidence}.")
    return said


def _in_short(row: RemedyRow, base: Point, terms: Mapping[str, float]) -> str:
    """Return what a change takes of memory, and what becomes of the metric that matters most."""
    what = f"{capital(row.title)}, for {row.who}"
    if row.refused:
        return f"{what}: not possible, for {row.refused}."
    if not row.set:
        return f"{what}: it costs nothing; {row.note}."
    phrases: list[str] = []
    for key, words in (("replicas", "replicas"), ("slots", "slots"), ("kv_tokens", "KV tokens")):
        before, after = row.memory[key]
        if before is not None and before != after and not (key == "kv_tokens" and phrases):
            phrases.append(f"{before:,} → {after:,} {words}")
    name = main_metric([base], terms)
    if (found := row.metrics.get(name)) is not None and found.one is not None and found.other is not None:
        phrases.append(f"{metric_words(name)} {show(name, found.one)} → {show(name, found.other)}")
    if terms:
        now = verdict(base, terms)
        phrases.append(f"SLO {now}" if now == row.verdict else f"SLO {now} → {row.verdict}")
    return f"{what}: {', '.join(phrases)}."


def remedy_tables(data: RunData) -> list[Table]:
    """Return one table for each remedy: the fleet as it is, and with each change, side by side."""
    rows, memory = data.remedies, data.manifest["cures"]["memory"]
    terms = read_terms(data.slo)
    by_title = {
        title: [row for row in rows if row.title == title] for title in dict.fromkeys(row.title for row in rows)
    }
    return [_remedy_table(title, found, memory, data.points[0], terms) for title, found in by_title.items()]


def vetted_table(data: RunData) -> Table:
    """Return what was found, with its evidence and remedies."""
    rows = []
    for each in data.manifest["cures"]["vetted"]:
        for finding in each["findings"]:
            evidence = "; ".join(seen["what"] for seen in finding["evidence"])
            cures = "; ".join(cure["words"] for cure in finding["cures"])
            rows.append([each["path"], finding["mode"], finding["confidence"], evidence, cures])
    head = ["adapter", "finding", "confidence", "evidence", "remedies, in order"]
    return Table("What the vetting found", head, rows, words=(1, 2, 3, 4))


def _remedy_table(
    title: str, rows: Sequence[RemedyRow], memory: Mapping[str, Any], base: Point, terms: Mapping[str, float]
) -> Table:
    shown = [row for row in rows if not row.refused]
    names = list(dict.fromkeys([*_METRICS[:2], *terms, *_METRICS]))
    names = [name for name in names if base.metrics[name].value is not None]
    lines = [["one such adapter", *_sizes(shown)]] if any(row.adapter_bytes[1] for row in shown) else []
    for key, words in _MEMORY.items():
        moved = any(row.memory[key][1] != memory[key] for row in shown)
        if memory[key] is not None and (moved or key != "replicas"):
            cells = [_memory_cell(key, row.memory[key][1]) for row in shown]
            lines.append([words, _memory_cell(key, memory[key]), *cells])
    for name in names:
        cells = [what_if_cell(name, row.metrics.get(name)) for row in shown]
        lines.append([metric_words(name), with_interval(name, base.metrics[name]), *cells])
    if terms:
        lines.append(["SLO", verdict(base, terms), *(str(row.verdict) for row in shown)])
    sentences = ["Brackets: the 95 % interval; for a change, that of the difference, from pairs under the same traffic"]
    sentences += [f"{capital(row.who)}: not possible, for {row.refused}" for row in rows if row.refused]
    sentences += [f"{capital(row.who)}: {row.note}" for row in shown if row.note]
    sentences += [f"{capital(row.who)}: {warning}" for row in shown for warning in row.warnings]
    clear = [[row.metrics.get(name, Difference()).word for name in _METRICS[:2]] for row in shown]
    if [BETTER, WORSE] in clear:
        sentences.append(
            "Fewer requests miss, because those whose adapter is resident overtake those that wait; yet more is "
            "loaded: adapters in use are evicted and come back"
        )
    return Table(capital(title), ["", "as it is", *(row.who for row in shown)], lines, f"{'. '.join(sentences)}.")


def _sizes(rows: Sequence[RemedyRow]) -> list[str]:
    before = next((row.adapter_bytes[0] for row in rows if row.adapter_bytes[0]), None)
    found = [before, *(row.adapter_bytes[1] for row in rows)]
    return ["–" if size is None else human_bytes(size) for size in found]


def _memory_cell(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    return human_bytes(value) if key.endswith("bytes") else f"{value:,}"
