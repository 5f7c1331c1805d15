"""What a sweep shows: which values meet the SLO, where the cliff is, and which point its report is about."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from reports.answers.limits import Evidence, limits
from reports.answers.points import is_changed
from reports.answers.verdicts import deciding_term, main_metric
from reports.axes import Axis, in_order, label_of, make_axes, point_words
from reports.formatting import metric_words, singular
from reports.text.limit_text import limit_line, limit_sentence, limit_words
from reports.text.metric_text import capital, term_sentence, with_interval
from reports.text.setup_text import bill, cheapest_sentence
from reports.text.verdict_text import find_trust, tenants_of_sweep
from sim.results.point import Point
from sim.results.slo_terms import value_of, with_tenants
from sim.results.verdict import (
    MET,
    NO_SLO,
    NOT_MET,
    PROBABLY_MET,
    PROBABLY_NOT,
    UNCLEAR,
    graded_verdict,
    is_lacking,
    most_strained,
    strained,
    verdict,
)
from sim.studies.changes.comparison import compare, equals, growing
from sim.studies.changes.findings import held_back_sentences
from sim.studies.run.answer import COLD_FIRST, Answer, Rank, answer, by_rank, may_be_cold

_BEYOND = {
    NOT_MET: "it isn't",
    PROBABLY_NOT: "it probably isn't",
    UNCLEAR: "that is unclear",
    PROBABLY_MET: "it probably is",
}
"""How the value beyond the edge stands."""
_OPEN = {
    PROBABLY_MET: ("probably does", "probably do"),
    UNCLEAR: ("is unclear", "are unclear"),
    PROBABLY_NOT: ("probably does not", "probably do not"),
}
"""How combinations stand of which the SLO is open: one, and several."""
_ALIKE = 0.05
"""Share by which values of every target may differ that make no choice."""
_CLIFF = 1.5
"""A step of a sweep on which the latency grows by this factor is called a cliff."""
BOUGHT = ("slots", "size", "replicas", "loaders", "max_num_seqs", "kv_tokens")
"""Last words of keys that one buys: for these the question is how much is enough."""
_FREE = ("fleet.speculation.tokens", "fleet.max_num_batched_tokens", "fleet.prefix_caching", "fleet.async_scheduling")
"""Keys of numbers and switches that cost nothing; so do words, such as policies, unless traffic has them."""
_NO_PRODUCTS = ("continuous", "fixed")
"""Idealised engines, which no server runs."""
_DEMANDED = ("rate", "concurrency", "count", "hottest", "cv")
"""Last words of keys that traffic demands: for these the question is how much can be served."""


@dataclass(frozen=True)
class Cliff:
    """The step of a sweep on which the latency grows most.

    :ivar before, after: the neighbouring points, the slower one last.
    :ivar factor: how many times the latency grows.
    """

    before: Point
    after: Point
    factor: float


def find_cliff(points: Sequence[Point], axis: Axis, name: str) -> Cliff | None:
    """Return the steepest step of a metric along a numeric axis, None where no step is steep."""
    known = [p for p in in_order(points, [axis]) if name in p.metrics and p.metrics[name].value]
    best: Cliff | None = None
    for left, right in itertools.pairwise(known):
        low, high = sorted((left, right), key=lambda p: p.metrics[name].value or 0.0)
        factor = (high.metrics[name].value or 0.0) / (low.metrics[name].value or 1.0)
        apart = (low.metrics[name].hi or 0.0) <= (high.metrics[name].lo or float("inf"))
        if axis.numeric and apart and factor >= _CLIFF and (best is None or factor > best.factor):
            best = Cliff(low, high, factor)
    return best or _climb(known, axis, name)


def _climb(known: Sequence[Point], axis: Axis, name: str) -> Cliff | None:
    """Return the last stretch of a numeric axis on which a metric doubles, and stays so: a cliff in small steps."""
    if not axis.numeric or len(known) < 3:
        return None
    values = [p.metrics[name].value or 0.0 for p in known]
    if values[0] > values[-1]:
        known, values = known[::-1], values[::-1]
    for start in range(len(values) - 2, -1, -1):
        if values[start] and values[-1] >= 2 * values[start]:
            end = next(i for i, value in enumerate(values) if i > start and value >= 2 * values[start])
            return Cliff(known[start], known[end], values[end] / values[start])
    return None


@dataclass(frozen=True)
class Boundary:
    """Which values of one axis meet the SLO.

    :ivar points: one a value, in the order of the axis; ``verdicts``: theirs, with "probably" where they are likely.
    :ivar met: places of those that meet it.
    :ivar edge: the place of the first or last value that meets it, where all values on one side of it do; ``beyond``:
        its neighbour that does not. Both are None where nothing, everything or something in between meets it.
    """

    points: tuple[Point, ...]
    verdicts: tuple[str, ...]
    met: tuple[int, ...]
    edge: int | None = None
    beyond: int | None = None

    @property
    def edge_point(self) -> Point | None:
        """The point at the edge, if there is one."""
        return None if self.edge is None else self.points[self.edge]


def find_boundary(points: Sequence[Point], axis: Axis, slo_terms: Mapping[str, float]) -> Boundary:
    """Return which values of one axis meet the SLO.

    :param points: one point a value of the axis, in any order.
    """
    ordered = tuple(in_order(points, [axis]))
    found = tuple(graded_verdict(point, slo_terms) for point in ordered)
    met = tuple(i for i, word in enumerate(found) if word == MET)
    if not met or len(met) == len(ordered) or not axis.numeric:
        return Boundary(ordered, found, met)
    together = met == tuple(range(met[0], met[-1] + 1))
    if not together or (met[0] > 0 and met[-1] < len(ordered) - 1):
        return Boundary(ordered, found, met)
    if met[0] == 0:
        return Boundary(ordered, found, met, met[-1], met[-1] + 1)
    return Boundary(ordered, found, met, met[0], met[0] - 1)


def sweep_focus(points: Sequence[Point], slo_terms: Mapping[str, float]) -> Point:
    """Return the point that the key numbers are of, which is the one to choose where there is a choice.

    That is the edge of the SLO: of several keys the least that serves the most demand, and of what costs nothing the
    fastest value. Of rollouts and faults it is the design with the least impact, of policies, engines or GPUs the
    fastest, and else the slowest point that meets the SLO. Where no point meets it, that is the one least far from its
    targets, of those that may meet it if there are any. An engine that is no product is chosen only where no other was
    tried.
    """
    points = [point for point in points if point.set.get("fleet.engine") not in _NO_PRODUCTS] or points
    axes = make_axes(points)
    held = [point for point in points if point.held_back]
    if held:  # for good reason, whatever would have become of it
        return fastest_point(held, slo_terms)
    if is_changed(points):
        return equals([point for point in points if point.impact], axes, slo_terms)[0]
    words = [verdict(point, slo_terms) for point in points]
    if MET not in words and NO_SLO not in words:
        unclear = [point for point, word in zip(points, words, strict=True) if word == UNCLEAR]
        return min(unclear or points, key=lambda point: most_strained(point, slo_terms))
    if axes and not any(axis.numeric for axis in axes):
        return fastest_point(points, slo_terms)
    good = [point for point in points if verdict(point, slo_terms) == MET]
    demanded, bought = ([a for a in axes if a.key.rsplit(".", 1)[-1] in kind] for kind in (_DEMANDED, BOUGHT))
    free = [a for a in axes if a.key in _FREE or not (a.numeric or a.key.startswith("workload."))]
    if good and len(axes) > 1 and all(axis in demanded or axis in bought or axis in free for axis in axes):
        costs = [([-a.index(p) for a in demanded], [a.index(p) for a in bought]) for p in good]
        least = min(costs)
        return fastest_point([p for p, cost in zip(good, costs, strict=True) if cost == least], slo_terms)
    edge = find_boundary(points, axes[0], slo_terms).edge_point if len(axes) == 1 else None
    return edge or slowest_point(good or points, main_metric(points, slo_terms))


def fastest_point(points: Sequence[Point], slo_terms: Mapping[str, float]) -> Point:
    """Return the fastest point that meets the SLO, or the fastest of all where there is none."""
    good, name = [point for point in points if verdict(point, slo_terms) == MET], main_metric(points, slo_terms)
    good = [point for point in good if not is_lacking(point)] or good  # refusing requests is fast, and no remedy
    known = [point for point in good or points if point.value(name) is not None]
    return min(known, key=lambda point: point.metrics[name].value or 0.0) if known else points[0]


def slowest_point(points: Sequence[Point], name: str) -> Point:
    """Return the point at which a metric is largest."""
    return max(points, key=lambda p: (p.metrics[name].value or 0.0) if name in p.metrics else 0.0)


# The answer of a sweep, in words.


def cliff_sentence(cliff: Cliff, axis: Axis, name: str) -> str:
    """Return where the cliff is, in words."""
    low, high = cliff.before, cliff.after
    times = f"{cliff.factor:.2g}" if cliff.factor < 100 else f"{cliff.factor:,.0f}"
    hedge = "" if high.metrics[name].settled else ", unsettled"
    return (
        f"The cliff lies between {axis.point_phrase(low)} and {axis.point_label(high)}: "
        f"{metric_words(name)} grows {times} times, from {with_interval(name, low.metrics[name])} to "
        f"{with_interval(name, high.metrics[name])}{hedge}."
    )


def boundary_words(found: Boundary, axis: Axis) -> str:
    """Return which value of one axis is the first or last to meet the SLO."""
    what, total = axis.words, len(found.points)
    if not found.met:
        words, tried = set(found.verdicts), _tried(found, axis, "any")
        if words == {UNCLEAR}:
            return f"it is unclear whether the SLO is met {tried}"
        if words == {PROBABLY_MET}:
            return f"the SLO is probably met {_tried(found, axis, 'every')}"
        if len(words) == 1:
            return f"the SLO is {words.pop()} {tried}"
        return f"the SLO is not certainly met {tried}: {_other_words(found, axis, 'and')}"
    if len(found.met) == total:
        return f"the SLO is met {_tried(found, axis, 'every')}"
    if found.edge is None or found.beyond is None:
        if len(found.met) > 4:
            return f"the SLO is met with {len(found.met)} of {total} values of {what}"
        listed = _listed(axis, [found.points[i] for i in found.met])
        return f"the SLO is met with {listed}, {_other_words(found, axis)}"
    next_word = _BEYOND[found.verdicts[found.beyond]]
    limit = axis.point_phrase(found.points[found.edge])
    side = f"up to {limit}" if found.edge < found.beyond else f"from {limit} on"
    return f"the SLO is met {side}; at {axis.point_label(found.points[found.beyond])} {next_word}"


def _tried(found: Boundary, axis: Axis, each: str) -> str:
    """Return all values of an axis in words: ``at every value tried, 8 to 128 GPU slots``.

    :param each: ``every`` or ``any``.
    """
    low, high = found.points[0], found.points[-1]
    if len(found.points) == 2:
        return f"with {_listed(axis, found.points, last='or')}"
    if not axis.numeric:
        return f"with {each} {axis.words} tried"
    if axis.counted:
        return f"at {each} value tried, {axis.point_label(low)} to {axis.point_phrase(high)}"
    return f"at {each} {axis.words} tried, {axis.point_label(low)} to {axis.point_label(high)}"


def _other_words(found: Boundary, axis: Axis, last: str = "or") -> str:
    """Return how values stand that don't certainly meet the SLO: ``not with 16, unclear with 64``."""
    by_word: dict[str, list[Point]] = {}
    for place, (point, word) in enumerate(zip(found.points, found.verdicts, strict=True)):
        if place not in found.met:
            by_word.setdefault(word.replace(" met", ""), []).append(point)
    return ", ".join(f"{word} with {_labels(axis, points, last)}" for word, points in by_word.items())


def _listed(axis: Axis, points: Sequence[Point], *, last: str = "and") -> str:
    """Return values with their key in words: ``16, 32 and 64 GPU slots``, ``arrival rate 25/s and 26/s``."""
    text = _labels(axis, points, last)
    words = singular(axis.words) if text == "1" else axis.words
    return f"{text} {words}" if axis.counted else f"{words} {text}"


def _labels(axis: Axis, points: Sequence[Point], last: str = "and", most: int = 6) -> str:
    return _joined([axis.point_label(point) for point in points], last, most)


def _joined(labels: Sequence[str], last: str, most: int = 6) -> str:
    if len(labels) > most:
        labels = [*labels[:most], f"{len(labels) - most} more"]
    return f" {last} ".join(filter(None, [", ".join(labels[:-1]), labels[-1]]))


def sweep_answer(
    points: Sequence[Point], slo_terms: Mapping[str, float], *, assumed: bool = False, cold: bool = False
) -> Answer:
    """Return the answer of a sweep: which value meets the SLO, where the cliff is, what limits it there.

    :param cold: whether caches start empty wherever the sweep does not say.
    """
    axes = make_axes(points)
    if not axes:
        return answer(points[0], slo_terms, assumed=assumed)
    name, focus = main_metric(points, slo_terms), sweep_focus(points, slo_terms)
    changed = _what_changed(focus, points, axes, slo_terms)
    words = {verdict(point, slo_terms) for point in points}
    # If more than the router is swept, whether the SLO is met comes first.
    slo_first = words != {NO_SLO} and not is_changed(points) and len(axes) > 1
    with_range = not changed or slo_first  # what changed says more than the range of one metric
    found = _one_axis if len(axes) == 1 else _many_axes
    headline, *details = by_rank(
        {
            **found(points, axes, slo_terms, with_range=with_range),
            Rank.HELD_BACK: held_back_sentences(points),
            Rank.ROUTER if slo_first else Rank.CHANGE: changed,
            Rank.TENANTS: tenants_of_sweep(points, slo_terms),
            **_doubts(points, name),
            Rank.COST: [cheapest_sentence(points, slo_terms)],
        }
    )
    open_ = deciding_term(focus, slo_terms, UNCLEAR) if verdict(focus, slo_terms) == UNCLEAR else name
    trust = find_trust(focus, with_tenants(slo_terms, focus), assumed=assumed, about=open_)
    cold = cold and may_be_cold(focus, slo_terms) and not is_changed(points)
    cold = cold and not any(axis.key.startswith("cache.warm") for axis in axes)
    worst = _limited_point(focus, points, slo_terms, name)
    over = strained(worst, with_tenants(slo_terms, worst))
    binding, *_ = limits(worst, over)
    return Answer(
        headline,
        details,
        NO_SLO if words == {NO_SLO} else MET if MET in words else UNCLEAR if UNCLEAR in words else NOT_MET,
        limit_words(binding),
        _at(point_words(worst, axes), limit_sentence(binding, worst)),
        "",
        replace(trust, choice=_at(point_words(focus, axes), trust.choice)),
        " ".join(filter(None, (COLD_FIRST if cold else "", _setting(focus, points, axes, slo_terms)))),
        _limit(worst, over, axes, slo_terms),
        bill(focus),
    )


def _what_changed(
    focus: Point, points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]
) -> list[str]:
    """Return what the sweep says of rollouts, faults and routers: of the latter, beside the point to choose."""
    others = [axis for axis in axes if not axis.key.startswith("router.")]
    if is_changed(points) or not others or len(others) == len(axes):
        return compare(points, axes, slo_terms)
    beside = [point for point in points if all(axis.index(point) == axis.index(focus) for axis in others)]
    said = compare(beside, [axis for axis in axes if axis not in others], slo_terms)
    return [_at(point_words(focus, others), said[0]), *said[1:]] if said else []


def _limited_point(focus: Point, points: Sequence[Point], slo_terms: Mapping[str, float], name: str) -> Point:
    """Return the point whose limit is named.

    That is the focus, if it doesn't certainly meet the SLO and something limits it. Otherwise it is the point that
    fails nearest to its targets, or the slowest where none fails.
    """
    words = [(point, verdict(point, slo_terms)) for point in points]
    missing = [point for point, word in words if word in (NOT_MET, UNCLEAR)]
    if focus in missing:
        binding, *_ = limits(focus, strained(focus, with_tenants(slo_terms, focus)))
        if binding.evidence is not Evidence.NOTHING:
            return focus
    failing = [point for point, word in words if word == NOT_MET]
    nearest = min(failing, key=lambda p: most_strained(p, slo_terms), default=None)
    return nearest or slowest_point(missing or points, name)


def _limit(worst: Point, over: Sequence[str], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> str:
    """Return what limits the point where the SLO fails; where nothing does, the term that it misses there.

    :param over: the terms that it misses.
    """
    found, at = verdict(worst, slo_terms), f", at {point_words(worst, axes)}"
    if limits(worst, over)[0].evidence is not Evidence.NOTHING or found != NOT_MET:
        return limit_line(worst, over, where=at, searched=any(axis.key.startswith("workload.") for axis in axes))
    term = deciding_term(worst, slo_terms, found)
    said = term_sentence(worst, term, with_tenants(slo_terms, worst)[term], bounds=False)
    return f"{capital(point_words(worst, axes))}: {said}."


def _setting(focus: Point, points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> str:
    """Return what to set for the point to choose; traffic, targets, prices and how bad a fault is are what they are."""
    demanded = [a for a in axes if not {"workload", "slo", "price"}.isdisjoint(a.key.split("."))]
    demanded += [a for a in axes if a.key.rsplit(".", 1)[-1] in _DEMANDED]
    given = {axis.key for axis in (*growing(axes), *demanded)}
    chosen = {axis.key: axis.point_label(focus) for axis in axes if axis.key not in given}
    values = ", ".join(f"{key}: {label}" for key, label in chosen.items())
    if not values:
        return "No change." if all(verdict(point, slo_terms) == MET for point in points) else ""
    found = graded_verdict(focus, slo_terms)
    doubt = {NOT_MET: ", the nearest to the SLO", UNCLEAR: ", whose SLO is still unclear"}.get(found, "")
    if found in (PROBABLY_MET, PROBABLY_NOT):
        doubt = f", with which the SLO is {found}"
    return f"{values}{doubt or _no_choice(focus, points, axes, slo_terms)}."


def _no_choice(focus: Point, points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> str:
    """Return what a sweep of policies, cards or changes can't tell of the one that it names: others do, or are nearly,
    the same.

    :param focus: the fastest that meets the SLO, or has the least impact.
    """
    if is_changed(points) and not any(point.held_back for point in points):
        _, *others = equals([point for point in points if point.impact], axes, slo_terms)
        free = [axis for axis in axes if axis not in growing(axes)]
        labels = [label_of(point, free) for point in others]
        return f"; its impact isn't clearly less than with {_joined(labels, 'or')}" if labels else ""
    if len(axes) != 1 or axes[0].numeric or verdict(focus, slo_terms) != MET or is_changed(points):
        return ""
    terms = with_tenants(slo_terms, focus)
    points = [point for point in points if point.set.get("fleet.engine") not in _NO_PRODUCTS]

    def is_alike(point: Point) -> bool:
        pairs = ((value_of(point, name), value_of(focus, name)) for name in terms)
        return all(each is not None and ours is not None and abs(each - ours) <= _ALIKE * ours for each, ours in pairs)

    alike = [point for point in points if point is not focus and is_alike(point)]
    if alike:
        return f"; it is hardly different from {_labels(axes[0], alike, 'or')}"
    met = sum(verdict(point, slo_terms) == MET for point in points)
    if met == 1:
        return ""
    return f"; {met} of {len(points)} meet the SLO, and which takes the most traffic was not simulated"


def _doubts(points: Sequence[Point], name: str) -> dict[Rank, list[str]]:
    """Return at how many points requests go unserved, and at how many the main metric is unsettled."""
    refusing = sum(map(is_lacking, points))
    known = [p.metrics[name] for p in points if p.value(name) is not None]
    wobbly, total = sum(not metric.settled for metric in known), f"{len(points):,} points"
    return {
        Rank.UNSERVED: [f"At {refusing:,} of {total} more than 1 % of the requests go unserved."] if refusing else [],
        Rank.UNSETTLED: [f"At {wobbly} of {total} {metric_words(name)} is unsettled."] if wobbly else [],
    }


def _at(point: str, sentence: str) -> str:
    """Return a sentence with the point that it is about, in words."""
    lower = sentence if sentence[:2].isupper() else sentence[:1].lower() + sentence[1:]
    return f"At {point}{':' if ',' in point else ','} {lower}"


def _range_sentence(points: Sequence[Point], axes: Sequence[Axis], name: str) -> str:
    known = [p for p in points if p.value(name) is not None]
    if not known:
        return f"There is not enough data for {metric_words(name)} at any point."
    low, high = min(known, key=lambda p: p.metrics[name].value or 0.0), slowest_point(known, name)
    if low.metrics[name].value == high.metrics[name].value:
        where = "at every point" if len(known) == len(points) else f"at {point_words(low, axes)}"
        rest = (
            "" if len(known) == len(points) else f"; {len(points) - len(known):,} of {len(points):,} points lack data"
        )
        return f"{capital(metric_words(name))} is {with_interval(name, low.metrics[name])} {where}{rest}."
    return (
        f"{capital(metric_words(name))} goes from {with_interval(name, low.metrics[name])} at {point_words(low, axes)} "
        f"to {with_interval(name, high.metrics[name])} at {point_words(high, axes)}."
    )


def _one_axis(
    points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float], *, with_range: bool
) -> dict[Rank, list[str]]:
    """Return what a sweep of one key shows.

    :param with_range: whether to say from what to what the metric goes.
    """
    axis, name = axes[0], main_metric(points, slo_terms)
    cliff = find_cliff(points, axis, name)
    spread = [_range_sentence(points, axes, name)] if with_range else []
    said = {Rank.CLIFF: [cliff_sentence(cliff, axis, name)] if cliff is not None else []}
    if all(verdict(point, slo_terms) == NO_SLO for point in points):
        return {**said, Rank.VERDICT: spread}
    found = find_boundary(points, axis, slo_terms)
    edge, said[Rank.VERDICT] = found.edge_point, [f"{capital(boundary_words(found, axis))}."]
    if edge is not None and name in slo_terms:
        said[Rank.BOUNDARY] = [f"At {axis.point_phrase(edge)}, {term_sentence(edge, name, slo_terms[name])}."]
    return said if cliff is not None else {**said, Rank.RANGE: spread}


def _many_axes(
    points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float], *, with_range: bool
) -> dict[Rank, list[str]]:
    """Return what a sweep of several keys shows."""
    if all(verdict(point, slo_terms) == NO_SLO for point in points):
        name = main_metric(points, slo_terms)
        return {Rank.VERDICT: [_range_sentence(points, axes, name)]} if with_range else {}
    good = sum(verdict(point, slo_terms) == MET for point in points)
    grades = Counter(graded_verdict(point, slo_terms) for point in points)
    unsure = sum(grades[word] for word in _OPEN)
    open_ = [f"{grades[word]:,} {_OPEN[word][grades[word] > 1]}" for word in _OPEN if grades[word]]
    tail = f"; {', '.join(open_)}" if open_ else ""
    if good == len(points):
        return {Rank.VERDICT: [f"All {good:,} combinations meet the SLO."]}
    some = f"{good:,} of {len(points):,} combinations meet{'s' if good == 1 else ''} the SLO{tail}"
    if good == len(points) - 1 and not unsure:
        missing = next(point for point in points if verdict(point, slo_terms) != MET)
        some = f"Only {point_words(missing, axes).replace(', ', ' with ', 1)} misses the SLO"
    said = {Rank.VERDICT: [f"{some}."]}
    if len(axes) != 2:
        return said
    inner = next((a for a in axes if a.key.rsplit(".", 1)[-1] in BOUGHT), axes[0])
    outer = axes[1] if inner is axes[0] else axes[0]
    rows: dict[str, list[str]] = {}  # one sentence for all values with the same boundary
    for i, value in enumerate(outer.values[:8]):
        row = [point for point in points if outer.index(point) == i]
        if row:
            found = rows.setdefault(boundary_words(find_boundary(row, inner, slo_terms), inner), [])
            found.append(outer.label(value) if found else outer.phrase(value))
    return {**said, Rank.BOUNDARY: [f"With {' and '.join(values)}, {words}." for words, values in rows.items()]}
