"""The answer in words: does it meet the SLO, what limits it, how sure is that.

No HTML and no heavy import: the terminal's table prints the same words as the report.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reports.answers.bottleneck import headroom, limits, overload_words
from reports.answers.change_findings import compare, is_changed, tell
from reports.answers.held_back_rollouts import tell_held
from reports.answers.verdicts import confidence, main_metric
from reports.axes import Axis, in_order, make_axes, point_words
from reports.formatting import metric_words, show
from reports.text import capital, term_sentence, unserved_words, with_interval
from sim.results.model import Impact
from sim.results.point import Point
from sim.results.verdict import (
    MET,
    NO_SLO,
    NOT_MET,
    UNCLEAR,
    is_lacking,
    is_overloaded,
    late_verdict,
    term_verdict,
    verdict,
)

_CLIFF = 1.5
"""A step of a sweep on which the latency grows by this factor is called a cliff."""
_RESOURCES = ("slots", "size", "replicas", "loaders", "max_num_seqs", "kv_tokens")
"""Last words of keys that one buys: for these the question is how much is enough."""


@dataclass(frozen=True)
class Answer:
    """What a reader wants to know first.

    :ivar headline: one sentence with value, unit and interval.
    :ivar details: further sentences, the most useful first.
    :ivar verdict: ``met``, ``not met``, ``unclear`` or ``no SLO``.
    :ivar binding: name of what limits it: loader, slots, KV memory, seats, compute or none.
    :ivar binding_sentence: why, with numbers.
    :ivar headroom: how much more fits, as far as the run shows it.
    :ivar confidence: ``high``, ``medium`` or ``low``.
    :ivar reason: why that confidence.
    """

    headline: str
    details: list[str]
    verdict: str
    binding: str
    binding_sentence: str
    headroom: str
    confidence: str
    reason: str


def _headline(point: Point, slo_terms: Mapping[str, float], found: str) -> str:
    bad = is_overloaded(point)
    start = f"{overload_words(point)}. " if bad else ""
    if found == NO_SLO:
        name = main_metric([point], slo_terms)
        metric = point.metrics.get(name)
        if metric is None or metric.value is None:
            return f"{start}There is not enough data for {metric_words(name)}."
        hedge = "" if metric.settled else ", unsettled"
        return f"{start}{capital(metric_words(name))} is {with_interval(name, metric)}{hedge}."
    each = {n: term_verdict(point, n, t) for n, t in slo_terms.items()}
    if found == NOT_MET and NOT_MET not in each.values():
        impact = point.impact or Impact()
        late, total = impact.slow_unanswered or 0, impact.requests
        return f"{start}The SLO is not met: {late:,} of {total:,} requests were late and had no answer yet."
    deciding = main_metric([point], slo_terms) if found == MET else next(n for n, v in each.items() if v == found)
    metric = point.metrics.get(deciding)
    sure = metric is None or metric.settled or bad or late_verdict(point, deciding, slo_terms[deciding]) == NOT_MET
    probably = "" if sure else "probably "
    opening = {
        MET: f"The SLO is {probably}met",
        NOT_MET: f"The SLO is {probably}not met",
        UNCLEAR: "Whether the SLO is met is unclear",
    }[found]
    return f"{start}{opening}: {term_sentence(point, deciding, slo_terms[deciding])}."


def _details(point: Point, slo_terms: Mapping[str, float], headline: str) -> list[str]:
    found = []
    for name, target in slo_terms.items():
        sentence = term_sentence(point, name, target)
        if sentence not in headline:
            found.append(f"{capital(sentence)}.")
    lost = unserved_words(point)
    if lost and lost not in " ".join([headline, *found]):
        found.append(f"{capital(lost)}.")
    for name in ("ttft_p99_s", "e2e_p99_s"):
        metric = point.metrics.get(name)
        words = metric_words(name)
        if metric is not None and metric.value is not None and name not in slo_terms:
            sentence = f"{capital(words)} is {with_interval(name, metric)}{'' if metric.settled else ', unsettled'}."
            if sentence not in headline:
                found.append(sentence)
    miss, late = point.metrics.get("miss_ratio"), point.metrics.get("delayed_hit_ratio")
    if miss is not None and miss.value is not None and "miss_ratio" not in slo_terms:
        joined = ""
        if late is not None and late.value is not None:
            joined = f"; {show('delayed_hit_ratio', late.value)} join a load under way"
        found.append(f"{show('miss_ratio', miss.value)} of requests miss and start a load{joined}.")
    return found


def answer(point: Point, slo_terms: Mapping[str, float], *, assumed: bool = False) -> Answer:
    """Return the answer of one point.

    :param slo_terms: targets by metric name, as ``Slo.terms()`` or ``read_terms`` give them.
    :param assumed: whether the costs come from a profile that was not measured.
    """
    found = verdict(point, slo_terms)
    headline = _headline(point, slo_terms, found)
    binding, *others = limits(point)
    details = _details(point, slo_terms, headline)
    details += [f"Also near its limit: {other.name}. {other.sentence}" for other in others]
    changed = [*tell_held([point]), *tell(point, slo_terms)]
    if changed:
        headline, details = changed[0], [*changed[1:], headline, *details]
    word, reason = confidence(point, slo_terms, assumed=assumed)
    name = "none: nothing is near its limit" if binding.name == "none" else binding.name
    return Answer(headline, details, found, name, binding.sentence, headroom(point), word, reason)


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
    """Return the shortest stretch at the end of a numeric axis on which a metric doubles: a cliff in small steps."""
    if not axis.numeric or len(known) < 3:
        return None
    values = [p.metrics[name].value or 0.0 for p in known]
    if values[0] > values[-1]:
        known, values = known[::-1], values[::-1]
    for start in range(len(values) - 2, -1, -1):
        if values[start] and values[-1] >= 2 * values[start]:
            return Cliff(known[start], known[-1], values[-1] / values[start])
    return None


def cliff_sentence(cliff: Cliff, axis: Axis, name: str) -> str:
    """Return where the cliff is, in words."""
    low, high = cliff.before, cliff.after
    times = f"{cliff.factor:.2g}" if cliff.factor < 100 else f"{cliff.factor:,.0f}"
    hedge = "" if high.metrics[name].settled else ", unsettled"
    return (
        f"The cliff lies between {axis.phrase(low.set.get(axis.key))} and {axis.point_label(high)}: "
        f"{metric_words(name)} grows {times} times, from {with_interval(name, low.metrics[name])} to "
        f"{with_interval(name, high.metrics[name])}{hedge}."
    )


def boundary(points: Sequence[Point], axis: Axis, slo_terms: Mapping[str, float]) -> tuple[str, Point | None]:
    """Return which value of one axis is the first or last to meet the SLO, in words, and its point.

    :param points: one point a value of the axis, in any order.
    """
    ordered = in_order(points, [axis])
    found = [verdict(point, slo_terms) for point in ordered]
    good = [i for i, word in enumerate(found) if word == MET]
    what = axis.words
    if not good:
        unsure = [p for p, word in zip(ordered, found, strict=True) if word == UNCLEAR]
        tail = f"; unclear at {_listed(axis, unsure)}" if unsure else ""
        return f"no value of {what} that was tried certainly meets the SLO{tail}", None
    if len(good) == len(ordered):
        return f"every {what if not axis.numeric else f'value of {what} that was'} tried meets the SLO", None
    run = good == list(range(good[0], good[-1] + 1))
    if not axis.numeric or not run or (good[0] > 0 and good[-1] < len(ordered) - 1):
        if len(good) > 4:
            return f"the SLO is met with {len(good)} of {len(ordered)} values of {what}", None
        listed = _listed(axis, [ordered[i] for i in good])
        return f"the SLO is met with {what} {listed}, not certainly with the others", None
    last = good[0] == 0
    edge, beyond = (good[-1], good[-1] + 1) if last else (good[0], good[0] - 1)
    next_word = "it isn't" if found[beyond] == NOT_MET else "that is unclear"
    limit = axis.phrase(ordered[edge].set.get(axis.key))
    side = f"up to {limit}" if last else f"from {limit} on"
    return f"the SLO is met {side}; at {axis.point_label(ordered[beyond])} {next_word}", ordered[edge]


def _listed(axis: Axis, points: Sequence[Point], most: int = 6) -> str:
    labels = [axis.point_label(point) for point in points]
    return ", ".join(labels) if len(labels) <= most else f"{', '.join(labels[:most])} and {len(labels) - most} more"


def sweep_answer(points: Sequence[Point], slo_terms: Mapping[str, float], *, assumed: bool = False) -> Answer:
    """Return the answer of a sweep: which value meets the SLO, where the cliff is, what limits it there."""
    axes = make_axes(points)
    if not axes:
        return answer(points[0], slo_terms, assumed=assumed)
    name = main_metric(points, slo_terms)
    if len(axes) == 1:
        headline, details, edge = _one_axis(points, axes[0], slo_terms, name)
    else:
        headline, details, edge = _many_axes(points, axes, slo_terms)
    focus = edge or _tightest(points, slo_terms)
    said = answer(focus, slo_terms, assumed=assumed)
    where = point_words(focus, axes)
    worst = _slowest([p for p in points if verdict(p, slo_terms) != MET] or points, name)
    binding, *_ = limits(worst)
    bound = f"At {point_words(worst, axes)}: {_lower(binding.sentence)}"
    words = {verdict(point, slo_terms) for point in points}
    overall = NO_SLO if not slo_terms else MET if MET in words else UNCLEAR if UNCLEAR in words else NOT_MET
    refusing = [point for point in points if is_lacking(point)]
    if refusing:
        details.insert(0, f"At {len(refusing):,} of {len(points):,} points more than 1 % of the requests go unserved.")
    known = [p.metrics[name] for p in points if name in p.metrics and p.metrics[name].value is not None]
    wobbly = sum(not metric.settled for metric in known)
    if wobbly:
        details.append(f"At {wobbly} of {len(points):,} points {metric_words(name)} is unsettled.")
    binding_name = "none: nothing is near its limit" if binding.name == "none" else binding.name
    changed = compare(points, axes, slo_terms)
    if changed and slo_terms and not is_changed(points) and len(axes) > 1:
        details += changed  # more than the router is swept, so the SLO is asked about first
    elif changed:
        plain = [text for text in (headline, *details) if text != _range_sentence(points, axes, name)]
        headline, details = changed[0], [*changed[1:], *plain]
    if held := tell_held(points):
        headline, details = held[0], [*held[1:], headline, *details]
    return Answer(
        headline,
        details,
        overall,
        binding_name,
        bound,
        f"At {where}: {_lower(said.headroom)}",
        said.confidence,
        f"at {where}: {said.reason}",
    )


def sweep_focus(points: Sequence[Point], slo_terms: Mapping[str, float]) -> Point:
    """Return the point whose numbers a reader wants first: the edge of the SLO, else the slowest."""
    axes = make_axes(points)
    edge = boundary(points, axes[0], slo_terms)[1] if len(axes) == 1 and slo_terms else None
    return edge or _tightest(points, slo_terms)


def _tightest(points: Sequence[Point], slo_terms: Mapping[str, float]) -> Point:
    """Return the slowest point that meets the SLO, or the slowest of all where none does."""
    good = [point for point in points if verdict(point, slo_terms) == MET]
    return _slowest(good or points, main_metric(points, slo_terms))


def _slowest(points: Sequence[Point], name: str) -> Point:
    return max(points, key=lambda p: (p.metrics[name].value or 0.0) if name in p.metrics else 0.0)


def _lower(sentence: str) -> str:
    """Return a sentence that can follow a colon."""
    return sentence if sentence[:2].isupper() else sentence[:1].lower() + sentence[1:]


def _range_sentence(points: Sequence[Point], axes: Sequence[Axis], name: str) -> str:
    known = [p for p in points if name in p.metrics and p.metrics[name].value is not None]
    if not known:
        return f"There is not enough data for {metric_words(name)} at any point."
    low, high = min(known, key=lambda p: p.metrics[name].value or 0.0), _slowest(known, name)
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
    points: Sequence[Point], axis: Axis, slo_terms: Mapping[str, float], name: str
) -> tuple[str, list[str], Point | None]:
    cliff = find_cliff(points, axis, name)
    details = [cliff_sentence(cliff, axis, name)] if cliff is not None else []
    spread = _range_sentence(points, [axis], name)
    if not slo_terms:
        return spread, details, None
    headline, edge = boundary(points, axis, slo_terms)
    if edge is not None and name in slo_terms:
        details.insert(0, f"There, {term_sentence(edge, name, slo_terms[name])}.")
    return f"{capital(headline)}.", details if cliff is not None else [*details, spread], edge


def _many_axes(
    points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]
) -> tuple[str, list[str], Point | None]:
    name = main_metric(points, slo_terms)
    if not slo_terms:
        return _range_sentence(points, axes, name), [], None
    good = sum(verdict(point, slo_terms) == MET for point in points)
    unsure = sum(verdict(point, slo_terms) == UNCLEAR for point in points)
    tail = f"; {unsure:,} {'is' if unsure == 1 else 'are'} unclear" if unsure else ""
    if good == len(points):
        return f"All {good:,} combinations meet the SLO.", [], None
    headline = f"{good:,} of {len(points):,} combinations meet{'s' if good == 1 else ''} the SLO{tail}."
    details = []
    if len(axes) == 2:
        inner = next((a for a in axes if a.key.rsplit(".", 1)[-1] in _RESOURCES), axes[0])
        outer = axes[1] if inner is axes[0] else axes[0]
        rows: dict[str, list[str]] = {}  # what holds for several values is said once
        for i, value in enumerate(outer.values[:8]):
            row = [point for point in points if outer.index(point) == i]
            if row:
                found = rows.setdefault(boundary(row, inner, slo_terms)[0], [])
                found.append(outer.label(value) if found else outer.phrase(value))
        details += [f"With {' and '.join(values)}, {words}." for words, values in rows.items()]
    return headline, details, None
