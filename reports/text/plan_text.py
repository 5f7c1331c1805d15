"""The answer of a plan in words: what is enough, what stands in the way of less, how sure that is.

And what the remedies of a vetting cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from reports.answers.plan_reading import (
    Binding,
    Hindrance,
    PlanReading,
    deciding_tenant,
    find_binding,
    missed_terms,
    mixes_that_miss,
    nearest_unserved,
    open_by_costs,
    room_to_target,
    safety_step,
)
from reports.answers.verdicts import main_metric
from reports.axes import make_axis
from reports.formatting import likelihood, metric_words, percent, plural, read_terms, show
from reports.text.answer_text import Answer, answer
from reports.text.limit_text import headroom_sentences, headroom_words, limit_sentence
from reports.text.metric_text import capital, term_sentence, unserved_words
from reports.text.setup_text import cost_sentences, gpu_words
from reports.text.verdict_text import confidence
from sim.results.point import Point
from sim.results.run_directory.study_records import RemedyRow
from sim.results.verdict import MET, NOT_MET, UNCLEAR, is_overloaded, out_of_hand, verdict

if TYPE_CHECKING:
    from sim.results.run_directory.store import RunData
    from sim.results.run_directory.study_records import GradeRecord


_MOST_MIXES = 4
"""Mixes of two pools that are ruled out which the answer names."""


def plan_answer(data: RunData) -> Answer:
    """Return the answer of a finished plan."""
    read = PlanReading(data)
    assert read.chosen is not None, "a finished plan has a best point"
    word, reason = _confidence(read, assumed=data.costs_assumed)
    binding, sentence = _binding(read)
    load = None if data.headroom is None else data.headroom.load
    details = [*_details(read), *cost_sentences(read.chosen, load)]
    found = MET if read.feasible else NOT_MET if read.record.certain else UNCLEAR
    return Answer(
        _headline(read),
        details,
        found,
        binding,
        sentence,
        _headroom(read, headroom_sentences(data.headroom)),
        word,
        reason,
        headroom_words(data.headroom) if read.feasible else "",
    )


def plan_json(data: RunData) -> dict[str, Any]:
    """Return what ``loraplan plan --json`` prints."""
    read = PlanReading(data)
    assert read.chosen is not None, "a finished plan has a best point"
    said = plan_answer(data)
    record = read.record
    return {
        "feasible": read.feasible,
        "answer": record.answer,
        "binding": said.binding,
        "confidence": said.confidence,
        "metrics": read.chosen.metrics_json(),
        "simulated_requests": record.simulated_requests,
        "certain": record.certain,
        "unclear": record.doubtful,
        "grades": [each.to_json() for each in record.grades],
        "probable": record.probable.to_json() if record.probable is not None else {},
        "frontier": [each.to_json() for each in record.frontier],
        "best": read.chosen.set,
        **({"decides": deciding_tenant(read)} if any(each.slo for each in read.chosen.tenants) else {}),
        "reason": said.reason,
        "flags": record.flags,
        "no_flags": record.no_flags,
        "setup": read.chosen.setup.to_json() if read.chosen.setup else {},
        "what_if": data.manifest.get("what_if", []),
        "headroom": None if data.headroom is None else data.headroom.summary(),
    }


def _headline(read: PlanReading) -> str:
    record = read.record
    if not read.feasible:
        assert read.chosen is not None, "checked by the caller"
        searched = _range_words(read)
        unclear = "" if record.certain else " certainly"
        if record.probable is not None:
            return f"No {searched}{unclear} meets the SLO; {_graded(read, record.probable)} probably does."
        return f"No {searched}{unclear} meets the SLO; nearest is {read.phrase(read.chosen.set)}."
    answer = record.answer
    if record.fleets:
        total = answer["price"]
        gpus = f" ({answer['gpus']:,} GPUs)" if "gpus" in answer else ""
        others = f" of {len(record.fleets)} fleets" if len(record.fleets) > 1 else ""
        return (
            f"{capital(plural(answer['fleet.replicas'], 'replica'))}{_and_full(record.full_replicas)}"
            f"{gpus} of {answer['fleet']} for {_money(total)} an hour: "
            f"the cheapest{others} that {'meets' if record.certain else 'certainly meets'} "
            f"the SLO{_or_probably(read)}."
        )
    phrase = capital(read.phrase(answer))
    if read.mix_price is not None:
        meets = "meets" if record.certain else "certainly meets"
        return (
            f"{phrase} for {_money(read.mix_price)} an hour: the cheapest mix that {meets} the SLO{_or_probably(read)}."
        )
    most = record.direction == "maximize"
    several = phrase[0].isdigit() and phrase.split()[0] != "1"
    if record.question.get("values"):
        meets = "meets" if record.certain else "certainly meets"
        return f"{phrase} is the first of {record.candidates} that {meets} the SLO{_or_probably(read)}."
    if not record.certain and most:
        return f"{phrase} certainly {'meet' if several else 'meets'} the SLO{_or_probably(read)}."
    if not record.certain:
        return f"{phrase} {'are' if several else 'is'} certainly enough{_or_probably(read)}."
    if most:
        what = "are the most that meet" if several else "is the largest that meets"
        return f"{phrase} {what} the SLO{_of_range(read)}."
    return f"{phrase} {'are' if several else 'is'} enough: the smallest that meets the SLO{_of_range(read)}."


def _or_probably(read: PlanReading) -> str:
    """Return the more wanted design that probably meets the SLO; empty where there is none."""
    likely = read.record.probable
    if likely is None or read.chosen is None or likely.set == read.chosen.set:
        return ""
    return f", {_graded(read, likely)} probably"


def _graded(read: PlanReading, grade: GradeRecord) -> str:
    p = likelihood(grade.probability)
    return f"{read.phrase(grade.set)} (p {'' if p[0] in '<>' else '= '}{p})"


def _too_close(read: PlanReading) -> str:
    """Name the designs whose verdict is open, with the probability that each meets the SLO."""
    grades = [next((g for g in read.record.grades if g.set == set_), None) for set_ in read.record.doubtful[:4]]
    named = [
        read.phrase(set_) if grade is None else _graded(read, grade)
        for set_, grade in zip(read.record.doubtful, grades, strict=False)
    ]
    said = f"Not certain either way: {'; '.join(named)}."
    return f"{said} p is the probability of meeting the SLO." if any(grades) else said


def _and_full(count: int) -> str:
    """Return the replicas of full models that run in addition to those counted."""
    return f" and {count} for full models" if count else ""


def _of_range(read: PlanReading) -> str:
    ranges = read.record.ranges
    if len(ranges) != 1:
        return ""
    ((key, (first, last, count)),) = ranges.items()
    axis = make_axis(key, read.points)
    low, high = (last, first) if read.record.direction == "maximize" else (first, last)
    return f", of {count} values from {axis.label(low)} to {axis.label(high)}"


def _range_words(read: PlanReading) -> str:
    ranges = read.record.ranges
    if read.record.fleets:
        (first, last, _), *_ = ranges.values()
        return f"fleet of {first} to {last} replicas"
    parts = []
    for key, (first, last, _) in ranges.items():
        axis = make_axis(key, read.points)
        low, high = (last, first) if read.record.direction == "maximize" else (first, last)
        parts.append(f"{axis.words} from {axis.label(low)} to {axis.label(high)}")
    return f"value of {' with '.join(parts)}"


def _details(read: PlanReading) -> list[str]:
    record, chosen, terms = read.record, read.chosen, read.terms
    assert chosen is not None, "checked by the caller"
    said = []
    bad = out_of_hand(chosen)
    where = "There" if read.feasible else f"At {read.phrase(chosen.set)}"
    phrases = [term_sentence(chosen, name, target) for name, target in terms.items()]
    if read.feasible or len(phrases) > 1:
        said.append(f"{where}, {'; '.join(phrases)}.")
    if any(tenant.slo for tenant in chosen.tenants):
        decides = deciding_tenant(read)
        said.append(
            f"The SLO of {decides} decides." if decides else "The SLO of the fleet decides, not those of its tenants."
        )
    if not read.feasible and bad:
        drawn, draws = chosen.calibration.get("overloaded", 0), chosen.calibration.get("draws", 0)
        some = "" if is_overloaded(chosen) else f" with {drawn} of the {draws} draws of the profile's costs"
        said.append(f"{where}, more requests arrive than are served{some}, so its numbers depend on the run's length.")
    if not read.feasible and record.doubtful:
        said.append(_too_close(read))
    for row in record.fleets:
        total = ""
        if row.total is not None:
            count = row.replicas or 0
            fleet = f"{plural(count, 'replica')}{_and_full(row.full_replicas)}"
            if row.gpus > 1:
                fleet = gpu_words(count + row.full_replicas, row.gpus)
            total = f"{fleet}, {_money(row.total)} an hour"
        said.append(f"{row.fleet} at {_money(row.price)} per GPU hour: {total or row.word}.")
    if read.feasible and record.doubtful:
        said.append(_too_close(read))
    if read.feasible and not record.edge_key and not record.doubtful:
        said.append(_at_the_end(read))
    said += [_other_edge(read), _missing_mixes(read), _unserved(read), _next_step(read), _left_out(read)]
    return [sentence for sentence in said if sentence]


def _at_the_end(read: PlanReading) -> str:
    if read.record.edge_refused:
        return f"The next value, {read.phrase(read.record.edge_set or {})}, can't be built: {read.record.edge_refused}."
    if read.record.fleets or read.record.refused:
        return ""
    more = "larger" if read.record.direction == "maximize" else "smaller"
    return f"This is the end of the range; {more} values were not tried."


def _left_out(read: PlanReading) -> str:
    """Name designs that are not possible and that the search left out, with the reason for the first."""
    record = read.record
    if not record.refused:
        return ""
    named = "; ".join(read.phrase(design.set) for design in record.refused)
    more = max(record.refused_count, len(record.refused)) - len(record.refused)
    others = f"; and {more:,} more" if more else ""
    return f"Left out, because they are not possible: {named}{others}. {record.refused[0].why}."


def _other_edge(read: PlanReading) -> str:
    """Say of two variables why the first can't be smaller."""
    point = read.other_edge
    if point is None or not read.feasible:
        return ""
    key = read.record.keys[0]
    missed = missed_terms(read, point)
    if not missed:
        return ""
    first = make_axis(key, read.points).phrase(point.set[key])
    rest = read.phrase({name: value for name, value in point.set.items() if name != key})
    return f"With {first} nothing meets the SLO; the nearest is {rest}, where {_term(read, point, missed[0])}."


def _missing_mixes(read: PlanReading) -> str:
    """Name the mixes of two pools that were ruled out; fewer replicas are ruled out with them."""
    mixes = mixes_that_miss(read)
    if not mixes:
        return ""
    inner = read.record.keys[1]
    least = read.record.ranges[inner][0]
    named = [f"{read.phrase(mix)}{' or fewer' if mix[inner] > least else ''}" for mix in mixes[:_MOST_MIXES]]
    more = f"; and {len(mixes) - _MOST_MIXES:,} more" if len(mixes) > _MOST_MIXES else ""
    return f"Not enough: {'; '.join(named)}{more}."


def _unserved(read: PlanReading) -> str:
    """Say with which values too many requests are refused or fail: the one nearest to the answer stands for all."""
    point = nearest_unserved(read)
    if point is None:
        return ""
    assert read.chosen is not None, "it is feasible"
    said = unserved_words(read.chosen)
    here = f"at the answer {said}" if said else "at the answer every request is served"
    return f"With {read.phrase(point.set)}, {unserved_words(point)}; {here}."


def _term(read: PlanReading, point: Point, name: str) -> str:
    return term_sentence(point, name, read.terms[name])


def _next_step(read: PlanReading) -> str:
    """Say what one step of safety gives."""
    step = safety_step(read)
    if step is None:
        return ""
    worse = f", and {metric_words(step.missed)} misses its target again" if step.missed is not None else ""
    return (
        f"One step of safety, {read.phrase(step.point.set)}, takes {metric_words(step.name)} from "
        f"{show(step.name, step.here)} to {show(step.name, step.there)}{worse}."
    )


def _binding(read: PlanReading) -> tuple[str, str]:
    """Return what stands in the way of the next more wanted design, or what limits the best one."""
    found = find_binding(read)
    name, sentence = _limit(found)
    if found.hindrance is Hindrance.NOTHING_SMALLER:
        more = "More" if read.record.direction == "maximize" else "Less"
        part = "host memory" if (read.record.edge_refused_key or "").startswith("cache.host") else "GPU memory"
        return part, f"{more} is not possible: {read.record.edge_refused}."
    if found.hindrance is Hindrance.AT_ANSWER:
        return name, f"At the answer, {sentence[:1].lower()}{sentence[1:]}"
    if found.hindrance is Hindrance.LIMIT:
        return name, sentence
    where = f"At {read.phrase(found.point.set)}"
    if found.hindrance is Hindrance.UNSERVED:
        return name, f"{where}, {sentence}"
    if found.hindrance is Hindrance.CACHE:
        name, sentence = "adapter cache", "It holds too few of the requested adapters."
    assert found.term is not None, "it misses one"
    return name, f"{where}, {_term(read, found.point, found.term)}. {sentence}"


def _limit(found: Binding) -> tuple[str, str]:
    """Return what limits a point; where no request waits, the largest part of the latency."""
    limit, point = found.limit, found.point
    if found.stage is None:
        return limit.name, limit_sentence(limit, point)
    name, share = found.stage
    if name in ("decode_s", "prefill_s"):
        return "compute", (
            f"No request waits long: {percent(share)} of the mean latency is {name.removesuffix('_s')}, and steps "
            "take longer the larger the batch."
        )
    return "load time", limit_sentence(limit, point)


def _headroom(read: PlanReading, simulated: str) -> str:
    """Return how far the answer is from its target, and how much more traffic fits.

    :param simulated: the sentences on the latter; empty where it was not simulated.
    """
    assert read.chosen is not None, "checked by the caller"
    if not read.feasible:
        return ""
    found = room_to_target(read)
    if found is None:
        return simulated
    name, room = found
    return f"{capital(metric_words(name))} is {percent(room)} below its target. {simulated}".strip()


def _confidence(read: PlanReading, *, assumed: bool) -> tuple[str, str]:
    record = read.record
    assert read.chosen is not None, "checked by the caller"
    if not record.certain:
        if open_by_costs(read):
            return "low", "the measurements behind the profile leave the call open, and longer runs can't decide it"
        return "low", "the call is too close for the requests that were simulated; raise workload.requests to decide it"
    level = percent(record.confidence)
    word, reason = confidence(read.chosen, read.terms, assumed=assumed)
    if not read.feasible:
        return ("medium" if assumed else "high"), f"sure at {level} that the nearest of them misses the SLO"
    return word, f"{level} sure of the answer and its neighbour; {reason}"


def _money(amount: float) -> str:
    return f"${amount:,.2f}".removesuffix(".00")


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
