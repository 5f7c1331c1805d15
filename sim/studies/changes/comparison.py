"""Rollout strategies, faults and routers of a sweep compared: where a metric is lowest, whether that is certain, and
the sentences that say so.

Where a difference may be chance, the points are in one group: no order among them is claimed. Counts are those of one
rollout or fault: means over the replications.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reports.answers.points import (
    Contrast,
    any_value,
    certainly_less,
    compares_routers,
    find_extremes,
    has_rollout,
    impact_name,
    impact_of,
    is_changed,
    latency_name,
)
from reports.answers.verdicts import main_metric
from reports.axes import Axis, in_order, label_of
from reports.formatting import metric_words, show
from reports.text.metric_text import capital
from sim.results.model import WRONG_KINDS
from sim.results.point import Point
from sim.results.slo_terms import is_tail
from sim.results.verdict import (
    MET,
    NO_SLO,
    NOT_MET,
    PROBABLY_MET,
    PROBABLY_NOT,
    UNCLEAR,
    graded_verdict,
    most_strained,
    verdict,
)
from sim.studies.changes.findings import (
    MANY_POINTS,
    SOME,
    cause_of,
    change_sentences,
    composition,
    impact_clause,
    impact_parts,
    per_event,
    rerouted_sentence,
    rounded,
    setback,
    value_words,
    with_bounds,
)

_GROWS = frozenset({"lasts", "probability", "down", "detected", "factor", "delay", "share", "lifetime", "propagation"})
"""Last words of keys of a fault that say how bad it is, not what is done about it.

That a longer one has more impact is no finding. The question is in which design the worst one has the least.
"""
_MANY_TIMES = 10.0
"""How many times the least impact a design has that is to be avoided, whatever the order among the others."""
_AS_FAST = 1.1
"""A router whose latency is at most this many times the lowest is called as fast."""
_GRADES = (MET, NO_SLO, PROBABLY_MET, UNCLEAR, PROBABLY_NOT, NOT_MET)
"""Grades of ``graded_verdict``, the best first."""
_FEW = 4
"""Replications from which on designs are ranked: the intervals of fewer say too little."""
_DOES = {
    "mixed": "mixes versions in {n} answers",
    "stale": "leaves {n} stale answers",
    "refused_by_rollout": "refuses {n} requests",
    "wrong_served": "lets {n} wrong answers pass",
    "old_prefix": "reuses {n} old prefixes",
    "lost": "loses {n} requests",
    "failed_loads": "fails {n} requests with their loads",
    "failed": "fails {n} requests",
}
"""What a design does to requests, by the kind of impact."""
_NO_INTERVAL = "Small differences may be chance: set run.replications=4 for intervals."


def growing(axes: Sequence[Axis]) -> list[Axis]:
    """Return the axes along which a fault becomes worse."""
    return [a for a in axes if a.key.startswith("faults.") and a.numeric and a.key.rpartition(".")[2] in _GROWS]


def fault_series(points: Sequence[Point], axes: Sequence[Axis]) -> list[tuple[Point, ...]]:
    """Return the points of each design that differ in nothing but how bad the fault is, the mildest first.

    Only designs of which all steps are there; nothing where no fault grows.
    """
    worse = growing(axes)
    if not worse:
        return []
    others = [axis for axis in axes if axis not in worse]
    groups: dict[tuple[int, ...], list[Point]] = {}
    for point in in_order(points, [*others, *worse]):
        groups.setdefault(tuple(axis.index(point) for axis in others), []).append(point)
    if len(worse) > 1:  # of several, the mildest and the worst corner
        groups = {key: [found[0], found[-1]] for key, found in groups.items()}
    most = max(len(found) for found in groups.values())
    return [tuple(found) for found in groups.values() if len(found) == most > 1]


@dataclass(frozen=True)
class Ranking:
    """Where the impact is least.

    :ivar name: the metric: requests beyond the usual, or all of them where nothing shows what is usual.
    :ivar best: the point with the least, then those that have not certainly more.
    :ivar rest: those that certainly have more, least first.
    :ivar certain: whether anything is known of the differences; if not, ``rest`` has all others.
    """

    name: str
    best: tuple[Point, ...]
    rest: tuple[Point, ...]
    certain: bool

    @property
    def choice(self) -> tuple[Point, ...]:
        """The points to choose from: the best, and those close to it if others have many times the impact.

        With more replications ever smaller differences become certain. They still don't matter next to one of an order
        of magnitude.
        """
        least = max(1.0, self.best[0].value(self.name) or 0.0)
        near = [p for p in self.rest if (p.value(self.name) or 0.0) < _MANY_TIMES * least]
        return self.best if len(near) == len(self.rest) else (*self.best, *near)

    @property
    def others(self) -> tuple[Point, ...]:
        """The points to avoid, least impact first."""
        return tuple(point for point in self.rest if point not in self.choice)


def rank_impact(points: Sequence[Point], axes: Sequence[Axis]) -> Ranking:
    """Return where the impact is least, and where it is not certainly more."""
    name = impact_name(points)
    first, *others = sorted(in_order(points, axes), key=lambda p: p.value(name) or 0.0)
    pairs = len(points) * (len(points) - 1) // 2  # the best is chosen from the data, so each pair may be the one
    more = [certainly_less(first, other, name, pairs) for other in others]
    if None in more:
        return Ranking(name, (first,), tuple(others), certain=False)
    ties = [other for other, found in zip(others, more, strict=True) if not found]
    return Ranking(name, (first, *ties), tuple(other for other in others if other not in ties), certain=True)


def meeting(points: Sequence[Point], slo_terms: Mapping[str, float]) -> list[Point]:
    """Return the points that may well meet the SLO, else those that still may; all of them where none does."""
    graded = [(point, graded_verdict(point, slo_terms)) for point in points]
    may = [(point, grade) for point, grade in graded if grade != NOT_MET]
    return [point for point, grade in may if grade != PROBABLY_NOT] or [point for point, _ in may] or list(points)


def equals(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> tuple[Point, ...]:
    """Return the designs that get through, may meet the SLO, and of which none is known to have less impact.

    Where the fault is worst; those that are likeliest to meet the SLO come first, and of these the least impact.
    """
    points = _got_through(points) or points
    worst = [each[-1] for each in fault_series(points, axes)]
    found = rank_impact(meeting(worst or points, slo_terms), axes)
    some = found.best if found.certain else (*found.best, *found.rest)
    return tuple(sorted(some, key=lambda point: _GRADES.index(graded_verdict(point, slo_terms))))


def _got_through(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if not setback(point)]


def compare(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> list[str]:
    """Return what a sweep says of rollouts, faults or routers, the most important first; nothing where it has none."""
    if is_changed(points):
        changed = [per_event(point) for point in points if point.impact]  # held-back rollouts changed nothing
        if len(changed) == 1 < len(points):
            where = label_of(changed[0], axes)
            return [f"With {where}, {impact_clause(changed[0])}.", *change_sentences(changed[0], slo_terms)]
        return _compare_impact(changed, axes, slo_terms)
    if compares_routers(points, axes):
        return _compare_routers(points, axes, slo_terms)
    return []


def _compare_impact(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> list[str]:
    ordered, through = in_order(points, axes), in_order(_got_through(points), axes)
    some = through or points
    series = fault_series(some, axes)
    if len(some) == 1:
        said = [f"With {label_of(some[0], axes)}, {impact_clause(some[0])}."]
    else:
        said = _compare_series(series, axes, slo_terms) if series else _recommend(some, axes, slo_terms)
    if 0 < len(through) < len(points):
        said[0] = f"The rollout gets through only with {_listed([label_of(p, axes) for p in through])}. {said[0]}"
    if has_rollout(points):
        return said + _compare_rollouts(ordered, axes, slo_terms)
    said += _wrong_answers(ordered, axes)
    names = ["retried", "lost", "rerouted", latency_name(ordered, slo_terms)]
    if any((p.value("failed") or 0) > (p.value("lost") or 0) for p in ordered):
        names.insert(3, "failed")
    for name in names:
        if not any_value(ordered, name):
            continue
        some = [p for p in ordered if p.value(name)] if name in ("lost", "rerouted") else ordered
        if len(some) > 1:
            said += extremes(some, axes, name)
        else:
            said += [f"{capital(metric_words(name))}: {value_words(p, name)} with {label_of(p, axes)}." for p in some]
    return said + rerouted_sentence(ordered, axes)


def _recommend(
    points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float], step: str = ""
) -> list[str]:
    """Return which designs to choose: those with the least impact, among those that may meet the SLO.

    :param step: how bad the fault is, in words.
    """
    some = meeting(points, slo_terms)
    left = [point for point in in_order(points, axes) if point not in some]
    found = rank_impact(some, axes)
    name, least = found.name, found.best[0].value(found.name) or 0.0
    within = any((point.value(name) or 0.0) < least for point in left)
    others = "the others that meet the SLO" if left else "the others"
    said = [_recommendation(found, axes, step, others, within=within), *_what_differs(found, axes)]
    if left:
        where = f"With {step}, the" if step else "The"
        phrases = [f"{label_of(p, axes)}, which affects {with_bounds(p.metrics[name])} requests" for p in left]
        likely = (
            "not met" if all(verdict(point, slo_terms) == NOT_MET for point in left) else "not met, or probably not,"
        )
        said.append(f"{where} SLO is {likely} with {'; nor with '.join(phrases[:MANY_POINTS])}.")
    elif len(some) > 1 and all(verdict(point, slo_terms) == NOT_MET for point in some):
        said.append(f"{f'With {step}, no' if step else 'No'} design meets the SLO.")
    return said


def _recommendation(found: Ranking, axes: Sequence[Axis], step: str, others: str, *, within: bool) -> str:
    """Return the designs with the least impact, and how much more the others have.

    :param others: what those are called that are not to be avoided.
    :param within: whether designs that miss the SLO have less, so that they need to be excluded in words.
    """
    first, cause = found.best[0], cause_of((*found.best, *found.rest))
    where = f"with {step}, " if step else ""
    counts = [f"{with_bounds(p.metrics[found.name])} with {label_of(p, axes)}" for p in found.others[:MANY_POINTS]]
    more = f", against {', '.join(counts)}" if counts else ""
    own, hedge = with_bounds(first.metrics[found.name]), "" if found.certain else f" {_NO_INTERVAL}"
    if len(found.choice) == 1:
        said = f"Least impact{' within the SLO,' if within else ''} with {label_of(first, axes)}: "
        return f"{said}{where}{cause.affects} {own} requests{_in_brackets(composition(first))}{more}.{hedge}"
    few, many = (rounded(choose(p.value(found.name) or 0.0 for p in found.choice)) for choose in (min, max))
    spread = f"{where}{few if few == many else f'{few} to {many}'}"
    between = f"{spread} affected requests per {cause.per}"
    labels = [label_of(p, axes) for p in found.choice]
    if not found.others and few != many and len(first.metrics[found.name].parts) < _FEW:
        return f"Too few replications to rank {_listed(labels)}: {between}. Set run.replications to {_FEW} or more."
    if not found.others:
        return f"No clear difference between {_listed(labels)}: {between}."
    least = f" Of these, least with {_listed([label_of(p, axes) for p in found.best])}." if found.certain else hedge
    least = "" if found.choice == found.best else least
    if len(found.others) < len(found.choice) and not within:
        counts = [with_bounds(p.metrics[found.name]) for p in found.others]
        worst = _in_brackets(composition(found.others[-1])) if len(found.others) == 1 else ""
        avoid, harm = _listed([label_of(p, axes) for p in found.others]), _listed(counts)
        return f"Avoid {avoid}: {harm} affected requests per {cause.per}{worst}. With {others}, {spread}.{least}"
    return f"{capital(_listed(labels, 'or'))}: {between}{more}.{least}"


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _what_differs(found: Ranking, axes: Sequence[Axis]) -> list[str]:
    """Return what only some of the designs to choose from do to requests, if it can be told in one sentence."""
    choice, phrases = found.choice, list[str]()
    for kind in WRONG_KINDS:
        counts = [dict(impact_parts(point)).get(kind, 0.0) for point in choice]
        if min(counts) < SOME <= max(counts):
            phrases += [
                f"{label_of(point, axes)} {_DOES[kind].format(n=f'about {max(1.0, count):,.0f}')}"
                for point, count in zip(choice, counts, strict=True)
                if count >= SOME
            ]
    return [f"{capital('; '.join(phrases))}."] if phrases and len(phrases) <= MANY_POINTS else []


def _compare_series(
    series: Sequence[Sequence[Point]], axes: Sequence[Axis], slo_terms: Mapping[str, float]
) -> list[str]:
    """Return in which design the worst fault has the least impact, and the impact as the fault becomes worse."""
    name, worse = impact_name([p for each in series for p in each]), growing(axes)
    others = [axis for axis in axes if axis not in worse]
    worst = [each[-1] for each in series]
    said = _recommend(worst, others, slo_terms, label_of(worst[0], worse)) if len(series) > 1 else []
    for each in series if len(series) <= MANY_POINTS else (series[0], series[-1]):
        steps = [label_of(p, worse) for p in each]
        if len(worse) == 1:  # the first says which key it is
            steps[1:] = [worse[0].point_label(p) for p in each[1:]]
        first, *more = [f"{with_bounds(p.metrics[name])} with {step}" for p, step in zip(each, steps, strict=True)]
        design = f"With {label_of(each[0], others)}, " if others else ""
        listed = ", ".join([first.replace(" with", " requests with", 1), *more])
        said.append(f"{capital(f'{design}{cause_of(worst).affects}')} {listed}.")
    return said


def _wrong_answers(points: Sequence[Point], axes: Sequence[Axis]) -> list[str]:
    """Return how many wrong answers went unnoticed at each point, and how many requests were late there."""
    if not any_value(points, "wrong_adapter_served"):
        return []
    if len(points) > MANY_POINTS:
        return extremes(points, axes, "wrong_adapter_served")
    phrases = [f"{rounded(p.value('wrong_adapter_served') or 0)} with {label_of(p, axes)}" for p in points]
    said = f"Unnoticed wrong answers: {', '.join(phrases)}"
    if all(impact_of(p).slow is not None for p in points):
        late = [rounded(impact_of(p).mean("slow")) for p in points]
        said += f"; late: {', '.join(late)} (in the same order)"
    return [f"{said}."]


def _compare_rollouts(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> list[str]:
    name = latency_name(points, slo_terms)
    said = extremes(points, axes, "rollout_peak_loads_per_s", tail=_before(points, "before_peak_loads_per_s"))
    said += extremes(points, axes, f"rollout_{name}", tail=_before(points, f"before_{name}"))
    took = [(point, point.metrics["rollout_duration_s"]) for point in points]
    colon = "" if all(not axis.numeric for axis in axes) else ":"
    done = [f"{label_of(p, axes)}{colon} {show('rollout_duration_s', m.value)}" for p, m in took if m.value is not None]
    open_ = [label_of(p, axes) for p, m in took if m.value is None]
    if len(points) <= MANY_POINTS:
        phrases = [f"Complete after: {', '.join(done)}."] if done else []
        phrases += [f"Not complete in every replication: {_listed(open_)}."] if open_ else []
        said.append(" ".join(phrases))
    return said


def _before(points: Sequence[Point], name: str) -> str:
    """Return what a metric was before; it hardly differs from point to point, unless the sweep is of something else."""
    known = sorted(value for p in points if (value := p.value(name)) is not None)
    if not known:
        return ""
    low, high = show(name, known[0]), show(name, known[-1])
    return f", against {low if low == high else f'{low} to {high}'} before"


def extremes(points: Sequence[Point], axes: Sequence[Axis], name: str, tail: str = "") -> list[str]:
    """Return where a metric is certainly lowest and highest, or between what values it lies where that may be chance.

    :returns: a list of one sentence, or of none where nothing is known.
    """
    found = find_extremes(points, name)
    if found is None:
        return []
    low, high = found.low, found.high
    words = capital(metric_words(name))
    if found.contrast is Contrast.EQUAL:
        return [f"{words}: {show(name, low.value(name))} at every point{tail}."]
    if found.contrast is Contrast.UNCLEAR:
        return [f"{words}: {show(name, low.value(name))} to {show(name, high.value(name))} with each{tail}."]
    paired = found.contrast is Contrast.CLEAR_IN_PAIRS
    hedge = " (clear in the same replications, though the intervals overlap)" if paired else ""
    return [
        f"{words}: lowest with {label_of(low, axes)}, {value_words(low, name)}; highest with {label_of(high, axes)}, "
        f"{value_words(high, name)}{tail}{hedge}."
    ]


def _compare_routers(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> list[str]:
    """Return which routers to choose: the fastest, and those that are not certainly slower, or hardly. What they save
    is against round-robin, or else the slowest."""
    main = main_metric(points, slo_terms)
    name, ordered = main if is_tail(main) else latency_name(points, slo_terms), in_order(points, axes)
    known = [p for p in ordered if p.value(name) is not None]
    # With one replica there is nothing to route.
    known = [p for p in known if p.value("replica_load_skew") is not None] or known
    if len(known) < 2:
        return []
    load = [*extremes(ordered, axes, "loads_per_request"), *extremes(ordered, axes, "replica_load_skew")]
    found = [verdict(p, slo_terms) for p in known]
    met, open_ = [p for p, word in zip(known, found, strict=True) if word == MET], UNCLEAR in found
    if set(found) == {NOT_MET}:
        nearest = min(known, key=lambda p: most_strained(p, slo_terms))
        return [f"No router meets the SLO; nearest is {label_of(nearest, axes)}.", *load]
    if len(met) == 1:
        return [f"Use {label_of(met[0], axes)}: no other router {'certainly ' if open_ else ''}meets the SLO.", *load]
    chosen = met or meeting(known, slo_terms)
    first, *others = sorted(chosen, key=lambda p: p.value(name) or 0.0)
    near = _AS_FAST * (first.value(name) or 0.0)
    slower = [p for p in others if (p.value(name) or 0.0) > near and certainly_less(first, p, name)]
    words = metric_words(name)
    best = [p for p in (first, *others) if p not in slower]
    if slower:  # those that are slower than one of these may be so by chance, but nobody would choose them
        least = slower[0].value(name) or 0.0
        best = [p for p in best if (p.value(name) or 0.0) <= least]
    low, high = (show(name, point.value(name)) for point in (first, best[-1]))
    range_ = low if low == high else f"{low} to {high}"
    left_out = [p for p in known if p not in chosen]
    slower += [p for p in left_out if (p.value(name) or 0.0) > near and certainly_less(first, p, name)]
    missed = [label_of(p, axes) for p in left_out if met or verdict(p, slo_terms) == NOT_MET]
    said = f"The router makes no clear difference: {words} is {range_} with all of them."
    if slower or left_out:
        said = f"Use {_listed([label_of(point, axes) for point in best], 'or')}: {words} is {range_}"
        slowest = max(slower, key=lambda p: p.value(name) or 0.0, default=None)
        other = next((p for p in slower if "round-robin" in p.set.values()), slowest)
        said += f" instead of {show(name, other.value(name))} with {label_of(other, axes)}." if other else "."
    if missed:
        said += f" The SLO is not {'certainly ' if open_ and met else ''}met with {_listed(missed, 'or')}."
    if slo_terms and not met:
        with_others = " with the others" if missed else ""
        likely = {graded_verdict(p, slo_terms) for p in known} - {NOT_MET} == {PROBABLY_MET}
        said += f" It is probably met{with_others}." if likely else f" Whether it is met{with_others} is not certain."
    return [said, *load]


def _listed(labels: Sequence[str], word: str = "and") -> str:
    """Return labels as a list in a sentence, cut where there are many.

    :param word: before the last one.
    """
    if len(labels) > MANY_POINTS:
        return f"{', '.join(labels[:MANY_POINTS])} and {len(labels) - MANY_POINTS} more"
    return f" {word} ".join(filter(None, [", ".join(labels[:-1]), labels[-1]]))
