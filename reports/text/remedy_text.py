"""What the remedies of a vetting cost, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from reports.answers.verdicts import main_metric
from reports.formatting import metric_words, read_terms, show
from reports.text.answer_text import Answer, answer
from reports.text.metric_text import capital
from sim.results.point import Point
from sim.results.run_directory.study_records import RemedyRow
from sim.results.verdict import MET, NOT_MET, verdict

if TYPE_CHECKING:
    from sim.results.run_directory.store import RunData


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
    return replace(said, headline=headline, details=[*found_sentences(data.manifest["cures"]["vetted"]), *phrases])


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
    phrases = _moved(row)
    name = main_metric([base], terms)
    if (found := row.metrics.get(name)) is not None and found.one is not None and found.other is not None:
        phrases.append(f"{metric_words(name)} {show(name, found.one)} → {show(name, found.other)}")
    if terms:
        phrases.append(_verdicts(row, base, terms))
    return f"{what}: {', '.join(phrases)}."


def _moved(row: RemedyRow) -> list[str]:
    """Return what a change takes, in words: replicas, slots, or the KV cache where slots stay."""
    found: list[str] = []
    for key, words in (("replicas", "replicas"), ("slots", "slots"), ("kv_tokens", "KV tokens")):
        before, after = row.memory[key]
        if before is not None and before != after and not (key == "kv_tokens" and found):
            found.append(f"{before:,} → {after:,} {words}")
    return found


def _verdicts(row: RemedyRow, base: Point, terms: Mapping[str, float]) -> str:
    before, after = verdict(base, terms), row.verdict
    return f"SLO {after}" if before == after else f"SLO {before} → {after}"
