"""The answer of a plan: what is enough, what stands in the way of less, how sure that is; each with its sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reports.answers.limits import largest_stage, limits
from reports.axes import make_axis
from reports.formatting import listed, metric_words, percent, plural, read_terms, show, with_p
from reports.text.headroom_text import first_limit, headroom_sentences
from reports.text.limit_text import limit_line, limit_sentence, stage_words
from reports.text.metric_text import capital, term_sentence, unserved_words
from reports.text.setup_text import bill, cost_sentences, gpu_words
from reports.text.verdict_text import Trust, confidence, find_trust, more_of
from sim.results.pairs import BETTER
from sim.results.point import Metric, Point
from sim.results.slo_terms import metric_of, split_term, with_tenants
from sim.results.verdict import (
    MET,
    NOT_MET,
    PROBABLE,
    PROBABLY_MET,
    UNCLEAR,
    by_need,
    is_overloaded,
    lacks_answers,
    open_by_costs,
    out_of_hand,
    strain,
    strained,
    sure_in_plan,
    term_verdict,
)
from sim.studies.run.answer import Answer

if TYPE_CHECKING:
    from sim.results.run_directory.store import RunData
    from sim.results.run_directory.study_records import GradeRecord, WhatIfRow

RECOMMENDED = "recommended.yaml"
"""The scenario of the answer, in the run directory."""
_POOL_COUNT = re.compile(r"fleet\.pools\.[A-Za-z0-9_-]+\.replicas")
_GAIN = 0.005
"""Share of a value from which one step further is a gain to mention."""
LONGER = {
    "trace": "use a longer trace",
    "client": "let the client send more requests",
    "duration": "raise workload.duration",
}
"""How a run gets more requests whose number the scenario does not give, by the key of ``workload`` that does."""
_MOST_MIXES = 4
"""Mixes of two pools that are ruled out which the answer names."""


def is_plan(manifest: Mapping[str, Any]) -> bool:
    """Return whether a run directory holds a finished plan."""
    return manifest.get("kind") == "plan" and "answer" in (manifest.get("plan") or {})


class PlanReading:
    """The run directory of a finished plan, its points by the role they have.

    :ivar record: what the search left (``manifest["plan"]``).
    :ivar terms: targets of the fleet and its tenants (``sim.results.slo_terms``).
    :ivar chosen: the answer's point, or that of the best that was found; ``feasible``: whether it meets the SLO.
    :ivar edge: the more wanted neighbour that does not do; None: the range ends there, or it can't be built.
    :ivar short: the neighbour on which levers that cost no GPU were tried; None where none waits for adapters.
    :ivar workload: the section of the scenario, as it was written.
    :ivar mix_price: what the recommended mix of two pools costs per hour; None in other plans.
    """

    def __init__(self, data: RunData) -> None:
        self.record = record = data.plan
        self.points = data.points
        by_key: dict[str, Point] = dict(zip(data.manifest["point_keys"], data.points, strict=False))
        assert data.recommended is not None, "a finished plan has a nearest design at least"
        self.chosen = data.recommended
        self.terms = with_tenants(read_terms(data.slo), self.chosen)
        self.edge = by_key.get(record.edge_key or "")
        self.beyond = by_key.get(record.beyond_key or "")
        self.other_edge = by_key.get(record.other_edge_key or "")
        self.short = by_key.get(data.manifest.get("levers_key") or "")
        self.feasible = record.feasible
        self.workload = (data.manifest.get("scenario") or {}).get("workload") or {}
        self.mix_price: float | None = None
        if len(record.keys) == 2 and all(_POOL_COUNT.fullmatch(key) for key in record.keys):
            self.mix_price = next((row.price for row in record.frontier if row.set == record.answer), None)

    @property
    def recommends(self) -> bool:
        """Whether the chosen design meets the SLO, certainly or probably."""
        return self.feasible or self.record.probable is not None

    def phrase(self, set_: Mapping[str, Any], joint: str = ", ") -> str:
        """Return values in words: ``64 GPU slots, 2 replicas``; of several pools those that have replicas."""
        some = {key: value for key, value in set_.items() if value or not _POOL_COUNT.fullmatch(key)} or set_
        return joint.join(make_axis(key, self.points).phrase(value) for key, value in some.items())

    def open_designs(self) -> list[tuple[dict[str, Any], GradeRecord | None]]:
        """Return the designs that are too close to call, with their grades, the likeliest to meet the SLO first."""
        grades = [next((grade for grade in self.record.grades if grade.set == d), None) for d in self.record.doubtful]
        pairs = list(zip(self.record.doubtful, grades, strict=True))
        return sorted(pairs, key=lambda pair: 0.0 if pair[1] is None else -pair[1].probability)

    def missed(self, point: Point) -> list[str]:
        """Return the terms that a point does not certainly meet, the one that decides first."""
        return [name for name in by_need(point, self.terms) if term_verdict(point, name, self.terms[name]) != MET]

    def tightest(self) -> str:
        """Return the term that is nearest its target at the chosen point."""

        def over(name: str) -> float:
            value = _metric(self.chosen, name).value
            return 0.0 if value is None or not self.terms[name] else value / self.terms[name]

        return max(self.terms, key=over)

    def decides(self) -> str:
        """Return the term that decides: the neighbour misses it, or the answer is nearest to it."""
        point = self.edge if self.feasible else self.chosen
        return next(iter([] if point is None else self.missed(point)), self.tightest())


def plan_answer(data: RunData) -> Answer:
    """Return the answer of a finished plan."""
    read = PlanReading(data)
    binding, sentence = what_binds(read)
    today = limit_line(read.chosen, strained(read.chosen, read.terms), searched=data.headroom is not None)
    whose = "this" if read.record.direction == "maximize" else "today's"
    return Answer(
        headline=_headline(read),
        details=[*filter(None, _details(read)), *cost_sentences(read.chosen, data.headroom)],
        verdict=MET if read.feasible else NOT_MET if read.record.certain else UNCLEAR,
        binding=binding,
        binding_sentence=sentence,
        headroom=_headroom(read, headroom_sentences(data.headroom)),
        trust=_trust(read, assumed=data.costs_assumed),
        setting=" ".join(filter(None, (_setting(read), _free_lever(read, data)))),
        first_limit=first_limit(data.headroom, today, whose=whose) if read.feasible else sentence,
        bill=bill(read.chosen),
    )


# The headline: the design that is enough.


def _headline(read: PlanReading) -> str:
    record = read.record
    if not read.feasible:
        opening = f"No {_range_words(read)}{'' if record.certain else ' certainly'} meets the SLO"
        if record.probable is not None:
            return f"{opening}; {_graded(read, record.probable)} probably does."
        return f"{opening}; nearest is {read.phrase(read.chosen.set)}."
    probable = record.probable
    also = ""
    if probable is not None and probable.set != read.chosen.set and probable.probability is not None:
        also = f" {capital(read.phrase(probable.set))} would probably do ({percent(round(probable.probability, 2))})."
    decides = read.decides()
    found = term_sentence(read.chosen, decides, read.terms[decides], bounds=False)
    return f"{_decision(read)}: {found}.{also}"


def _decision(read: PlanReading) -> str:
    """Return what to use, or how much the fleet serves."""
    record, answer = read.record, read.record.answer
    if record.fleets:
        gpus = f" ({answer['gpus']:,} GPUs)" if "gpus" in answer else ""
        others = f", the cheapest of {len(record.fleets)} fleets" if len(record.fleets) > 1 else ""
        return (
            f"Use {plural(answer['fleet.replicas'], 'replica')}{_and_full(record.full_replicas)}{gpus} of "
            f"{answer['fleet']} for {_money(answer['price'])} an hour{others}"
        )
    phrase = read.phrase(answer, " and ")
    if read.mix_price is not None:
        return f"Use {phrase} for {_money(read.mix_price)} an hour, the cheapest mix"
    if record.question.get("values"):
        return f"Use {phrase}, the first of {record.candidates} that meets the SLO"
    if record.direction == "maximize":
        several = phrase[0].isdigit() and phrase.split()[0] != "1"
        if _ends(read):
            return f"{capital(phrase)} (the largest value tried) {'meet' if several else 'meets'} the SLO"
        most = "are the most that meet" if several else "is the largest that meets"
        if not record.certain:
            most = f"certainly {'meet' if several else 'meets'}"
        return f"{capital(phrase)} {most} the SLO"
    return f"Use {phrase}{' (the smallest value tried)' if _ends(read) else ''}"


def _ends(read: PlanReading) -> bool:
    """Return whether the answer is where the range of a plan's only variable ends, though values go on."""
    record = read.record
    ends = read.feasible and len(record.ranges) == 1 and not (record.edge_key or record.doubtful or record.refused)
    return ends and not record.edge_refused and [*record.answer.values()] != [1]


def _setting(read: PlanReading) -> str:
    """Return what to set, key by key."""
    record = read.record
    if record.probable is not None and not read.feasible:
        likely = ", ".join(
            f"{key}: {make_axis(key, read.points).label(value)}" for key, value in read.chosen.set.items()
        )
        return f"{likely}, which probably meets the SLO: {_how_to_decide(read)}. {_all_settings(read)}"
    if not read.feasible:
        nothing = "Nothing" if record.certain else "Nothing certain"
        return f"{nothing} in this range. Try another key or a wider range, or relax the target."
    keys = [*record.keys] if not record.fleets else ["fleet", "fleet.replicas"]
    axes = {key: make_axis(key, read.points) for key in keys}
    named = {key: axis.words if key.startswith("tenants.") else key for key, axis in axes.items()}
    values = ", ".join(f"{named[key]}: {axis.label(record.answer[key])}" for key, axis in axes.items())
    return f"{values}. {_all_settings(read)}"


def _all_settings(read: PlanReading) -> str:
    return f"All settings: {RECOMMENDED}{', or the command line below' if read.record.flags else ''}."


FOR_ADAPTERS = ("slots", "host copies", "router", "eviction")
"""Groups of changes that cost no GPU, for requests that wait for their adapter."""


def _free_lever(read: PlanReading, data: RunData) -> str:
    """Return what a change that costs no GPU would do: make the neighbour enough, or else help the recommended design.

    Empty where none was tried.
    """
    if read.short is not None:
        return _makes_enough(read, read.short, data.levers)
    name = read.decides()
    planned = read.record.keys  # what it makes small is not free
    free = [row for row in data.what_if if row.group in FOR_ADAPTERS and row.set.keys().isdisjoint(planned)]
    known = [(row.label, found) for row in free if (found := row.metrics.get(name)) is not None and found.one]
    kept = {row.label for row in free if row.verdict != NOT_MET}  # it may miss another term
    better = [pair for pair in known if pair[1].word == BETTER and pair[1].other is not None and pair[0] in kept]
    if not known or not read.feasible:
        return ""
    if not better:
        return f"Of the changes that cost no GPU, none clearly improves {metric_words(name)}."
    label, found = min(better, key=lambda pair: pair[1].other or 0.0)
    change = f"{metric_words(name)} from {show(name, found.one)} to {show(name, found.other)}"
    return f"Free to try: {label} takes {change} in short runs."


def _makes_enough(read: PlanReading, short: Point, rows: Sequence[WhatIfRow]) -> str:
    """Return which change would make a design enough that misses the SLO, and how to plan with it."""
    few, name, tried = read.phrase(short.set), misses_most(short, read.terms), [row for row in rows if row.verdict]
    labels = listed([row.label for row in tried])
    if not tried:
        return ""
    if not any(name in row.metrics and row.metrics[name].other is not None for row in tried):
        return f"Runs as short as these don't show what would make {few} enough; tried: {labels}."
    graded = [(row.grade, row) for row in tried if row.grade is not None and row.grade.probability > 1 - PROBABLE]
    if not graded:
        return f"Tried with {few}, without success: {labels}."
    grade, best = max(graded, key=lambda pair: pair[0].probability)
    more_than_one = [*read.record.keys] == ["fleet.replicas"] and short.set["fleet.replicas"] > 1
    fewer = ", perhaps fewer" if more_than_one and grade.verdict in (MET, PROBABLY_MET) else ""
    options = "add " + " ".join(f"--set {k}={'null' if v is None else v}" for k, v in best.set.items())
    if read.record.fleets:  # whose own set comes after --set
        values = ", ".join(f"{key}: {'null' if value is None else value}" for key, value in best.set.items())
        options = f"put {values} into the set of that fleet (plan.fleets)"
    would = {MET: "would do", PROBABLY_MET: f"would probably do ({with_p(grade.probability)})"}
    return (
        f"With {best.label}, {few} {would.get(grade.verdict, f'may do ({with_p(grade.probability)})')}{fewer}: "
        f"{metric_words(name)} {show(name, best.graded[name])} in place of {show(name, _metric(short, name).value)}. "
        f"To plan with it, {options}."
    )


def misses_most(short: Point, terms: Mapping[str, float]) -> str:
    """Return the term that is farthest beyond its target."""
    return max(terms, key=lambda each: strain(short, each, terms[each]))


def _graded(read: PlanReading, grade: GradeRecord) -> str:
    return f"{read.phrase(grade.set)} ({with_p(grade.probability)})"


def _and_full(count: int) -> str:
    return f" and {count} for full models" if count else ""


def _range_words(read: PlanReading) -> str:
    if read.record.fleets:
        (first, last, _), *_ = read.record.ranges.values()
        return f"fleet of {first} to {last} replicas"
    parts = [f"{make_axis(key, read.points).words} {_from_to(read, key)}" for key in read.record.ranges]
    return f"value of {' with '.join(parts)}"


def _from_to(read: PlanReading, key: str) -> str:
    axis, (first, last, _) = make_axis(key, read.points), read.record.ranges[key]
    low, high = (last, first) if read.record.direction == "maximize" else (first, last)
    return f"from {axis.label(low)} to {axis.label(high)}"


def _money(amount: float) -> str:
    return f"${amount:,.2f}".removesuffix(".00")


# What else there is to say, the most useful first; empty sentences are left out.


def _details(read: PlanReading) -> list[str]:
    record, chosen = read.record, read.chosen
    said = []
    if read.feasible and record.certain and len(record.ranges) == 1 and not record.fleets and not _ends(read):
        ((key, (*_, count)),) = record.ranges.items()
        most = "largest" if record.direction == "maximize" else "smallest"
        said.append(f"It is the {most} of {count} values {_from_to(read, key)} that meets the SLO.")
    where = f"At {read.phrase(chosen.set)}"
    phrases = [_term(read, chosen, name) for name in read.terms]
    if read.feasible or len(phrases) > 1:
        said.append(f"{where}, {'; '.join(phrases)}.")
    if any(tenant.slo for tenant in chosen.tenants):
        decides = split_term(read.decides())[0]
        said.append(
            f"The SLO of {decides} decides." if decides else "The SLO of the fleet decides, not those of its tenants."
        )
    if not read.feasible and out_of_hand(chosen):
        drawn, draws = chosen.calibration.get("overloaded", 0), chosen.calibration.get("draws", 0)
        some = "" if is_overloaded(chosen) else f" with {drawn} of the {draws} draws of the profile's costs"
        said.append(f"{where}, more requests arrive than are served{some}, so its numbers depend on the run's length.")
    too_close = [_too_close(read)] if record.doubtful else []
    fleets = []
    for row in record.fleets:
        total = row.word
        if row.total is not None:
            count = row.replicas or 0
            fleet = f"{plural(count, 'replica')}{_and_full(row.full_replicas)}"
            if row.gpus > 1:
                fleet = gpu_words(count + row.full_replicas, row.gpus)
            total = f"{fleet}, {_money(row.total)} an hour"
        fleets.append(f"{row.fleet} at {_money(row.price)} per GPU hour: {total}.")
    said += [*fleets, *too_close] if read.feasible else [*too_close, *fleets]
    if read.feasible and not record.edge_key and not record.doubtful:
        said.append(_at_the_end(read))
    return [*said, _other_edge(read), _missing_mixes(read), _unserved(read), _next_step(read), _left_out(read)]


def _term(read: PlanReading, point: Point, name: str) -> str:
    return term_sentence(point, name, read.terms[name])


def _metric(point: Point, name: str) -> Metric:
    return metric_of(point, name) or Metric(None)


def _too_close(read: PlanReading) -> str:
    """Name the designs whose verdict is open, with the probability that each meets the SLO."""
    likeliest = read.open_designs()[:4]
    named = [read.phrase(set_) if grade is None else _graded(read, grade) for set_, grade in likeliest]
    said = f"Not certain either way: {'; '.join(named)}."
    return f"{said} p is the probability of meeting the SLO." if any(grade for _, grade in likeliest) else said


def _at_the_end(read: PlanReading) -> str:
    record = read.record
    if record.edge_refused:
        return f"The next value, {read.phrase(record.edge_set or {})}, can't be built: {record.edge_refused}."
    if record.fleets or record.refused or _ends(read) or [*record.answer.values()] == [1]:
        return ""
    more = "larger" if record.direction == "maximize" else "smaller"
    return f"This is the end of the range; {more} values were not tried."


def _other_edge(read: PlanReading) -> str:
    """Say of two variables why the first can't be smaller."""
    point = read.other_edge
    missed = [] if point is None else read.missed(point)
    if point is None or not missed or not read.feasible:
        return ""
    key = read.record.keys[0]
    first = make_axis(key, read.points).phrase(point.set[key])
    rest = read.phrase({name: value for name, value in point.set.items() if name != key})
    return f"With {first} nothing meets the SLO; the nearest is {rest}, where {_term(read, point, missed[0])}."


def _missing_mixes(read: PlanReading) -> str:
    """Name the mixes of two pools that were ruled out: for each number of the first, the largest of the second.

    Fewer replicas are ruled out with them.
    """
    if read.mix_price is None:
        return ""
    outer, inner = read.record.keys
    largest: dict[Any, dict[str, Any]] = {}
    for row in read.record.grades:
        known = largest.get(row.set[outer])
        if row.verdict == NOT_MET and (known is None or known[inner] < row.set[inner]):
            largest[row.set[outer]] = row.set
    least = read.record.ranges[inner][0]
    mixes = [largest[count] for count in sorted(largest)]
    named = [f"{read.phrase(mix)}{' or fewer' if mix[inner] > least else ''}" for mix in mixes[:_MOST_MIXES]]
    more = f"; and {len(mixes) - _MOST_MIXES:,} more" if len(mixes) > _MOST_MIXES else ""
    return f"Not enough: {'; '.join(named)}{more}." if mixes else ""


def _unserved(read: PlanReading) -> str:
    """Say with which values too many requests are refused or fail: the one nearest to the answer stands for all."""
    if not read.feasible or len(read.record.keys) > 1 or read.record.fleets:
        return ""
    places = [i for i, p in enumerate(read.points) if any(lacks_answers(p, n, t) for n, t in read.terms.items())]
    if not places:
        return ""
    at = read.points.index(read.chosen)
    point = read.points[min(places, key=lambda i: abs(i - at))]
    said = unserved_words(read.chosen)
    here = f"at the answer {said}" if said else "at the answer every request is served"
    return f"With {read.phrase(point.set)}, {unserved_words(point)}; {here}."


def _next_step(read: PlanReading) -> str:
    """Say what one step of safety gives, unless it changes too little to mention."""
    if read.beyond is None or not read.feasible:
        return ""
    name = read.decides()
    here, there = (_metric(point, name).value for point in (read.chosen, read.beyond))
    again = [n for n, target in read.terms.items() if term_verdict(read.beyond, n, target) == NOT_MET]
    if here is None or there is None or (there >= here * (1 - _GAIN) and not again):
        return ""
    worse = f", and {metric_words(again[0])} misses its target again" if again else ""
    return (
        f"One step of safety, {read.phrase(read.beyond.set)}, takes {metric_words(name)} from "
        f"{show(name, here)} to {show(name, there)}{worse}."
    )


def _left_out(read: PlanReading) -> str:
    """Name designs that are not possible and that the search left out, with the reason for the first."""
    record = read.record
    if not record.refused:
        return ""
    named = "; ".join(read.phrase(design.set) for design in record.refused)
    more = max(record.refused_count, len(record.refused)) - len(record.refused)
    others = f"; and {more:,} more" if more else ""
    return f"Left out, because they are not possible: {named}{others}. {record.refused[0].why}."


# What limits the answer, how far it is from its target, and how sure that is.


def what_binds(read: PlanReading) -> tuple[str, str]:
    """Return what stands in the way of the next more wanted design, or what limits the best one: its name, and why."""
    record, point = read.record, read.edge or read.chosen
    limit, *_ = limits(point, read.missed(point))
    name, sentence = limit.name, limit_sentence(limit, point)
    stage = largest_stage(point) if limit.name == "none" else None
    if stage is not None and stage[0] in ("decode_s", "prefill_s"):
        name, sentence = (
            "compute",
            f"Few requests wait long: {stage_words(*stage)}, and steps take longer the larger the batch.",
        )
    elif stage is not None:
        name = "load time"
    if read.feasible and read.edge is None:
        if not record.edge_refused:
            return name, f"At the answer, {sentence[:1].lower()}{sentence[1:]}"
        more = "More" if record.direction == "maximize" else "Less"
        part = "host memory" if (record.edge_refused_key or "").startswith("cache.host") else "GPU memory"
        return part, f"{more} is not possible: {record.edge_refused}."
    missed = read.missed(point)
    if not missed:
        return name, sentence
    where = f"At {read.phrase(point.set)}"
    if limit.name in ("refusals", "failures"):
        return name, f"{where}, {sentence}"
    if split_term(missed[0])[1] == "miss_ratio":  # latencies have nothing to say of misses
        name, sentence = "adapter cache", "It holds too few of the requested adapters."
    return name, f"{where}, {_term(read, point, missed[0])}. {sentence}"


def _headroom(read: PlanReading, simulated: str) -> str:
    """Return how far the answer is from its target, and how much more traffic fits.

    :param simulated: the sentences on the latter; empty where it was not simulated.
    """
    if not read.feasible:
        return ""
    name = read.tightest()
    value, target = _metric(read.chosen, name).value, read.terms[name]
    if not value or not target:
        return simulated
    room = percent(round(1 - value / target, 3))
    return f"{capital(metric_words(name))} is {room} below its target. {simulated}".strip()


def _trust(read: PlanReading, *, assumed: bool) -> Trust:
    """Return how sure the choice is, and how well the numbers at the answer are known."""
    record, sure = read.record, percent(read.record.confidence)
    if record.certain and read.feasible:
        choice = f"The choice is {sure} sure."
    elif record.certain:
        choice = f"That none meets the SLO is {sure} sure."
    else:
        open_ = f"{_open_call(read)}: {_how_to_decide(read)}."
        choice = f"The recommendation is sure; {open_}" if read.feasible else capital(open_)
    return find_trust(read.chosen, read.terms, assumed=assumed, choice=choice, about=read.decides())


def _open_call(read: PlanReading) -> str:
    """Say how likely the design of the headline would do; without one, that the likeliest is too close to call."""
    likely, designs = _likely_and_open(read), read.open_designs()
    if likely is not None:
        return f"the chance that {read.phrase(likely.set, ' and ')} would do is {percent(round(likely.probability, 2))}"
    return f"whether {read.phrase(designs[0][0], ' and ') if designs else 'another'} would do is open"


def _likely_and_open(read: PlanReading) -> GradeRecord | None:
    likely = read.record.probable
    return likely if likely is not None and likely.set in read.record.doubtful else None


def confidence_of(read: PlanReading, *, assumed: bool) -> tuple[str, str]:
    """Return ``high``, ``medium`` or ``low``, and why, as ``plan --json`` has it."""
    record = read.record
    if not record.certain:
        if _open_by_costs(read):
            return "low", "the measurements behind the profile leave the call open, and longer runs can't decide it"
        return "low", f"the call is too close for the requests that were simulated; {_how_to_decide(read)}"
    level = percent(record.confidence)
    word, reason = confidence(read.chosen, read.terms, assumed=assumed)
    if not read.feasible:
        return ("medium" if assumed else "high"), f"sure at {level} that the nearest of them misses the SLO"
    return word, f"{level} sure of the answer and its neighbour; {reason}"


def _how_to_decide(read: PlanReading) -> str:
    """Return what would decide the open call."""
    if _open_by_costs(read):
        return "only a better profile can decide it, not a longer run"
    point = _open_point(read)
    if point is not None and more_of(point, read.terms) != "requests":
        return "raise run.replications to decide it"
    longer = (words for key, words in LONGER.items() if read.workload.get(key) is not None)
    return f"{next(longer, 'raise workload.requests')} to decide it"


def _open_point(read: PlanReading) -> Point | None:
    """Return the point of the open call: that of ``_open_call``."""
    likely, designs = _likely_and_open(read), read.open_designs()
    named = likely.set if likely is not None else designs[0][0] if designs else None
    return next((point for point in read.points if point.set == named), None)


def _open_by_costs(read: PlanReading) -> bool:
    """Return whether no longer run decides the open call."""
    point = _open_point(read)
    return point is not None and open_by_costs(point, read.terms, sure_in_plan(read.record.confidence))
