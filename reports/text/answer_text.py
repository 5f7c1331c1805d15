"""The answer of a run or a sweep in words: does it meet the SLO, what limits it, how sure is that.

No HTML and no heavy import: the terminal's table prints the same words as the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reports.answers.bottleneck import Evidence, limits
from reports.answers.change_findings import is_changed
from reports.answers.findings import BOUGHT, Boundary, Cliff, find_boundary, find_cliff, slowest_point, sweep_focus
from reports.answers.verdicts import deciding_term, main_metric
from reports.axes import Axis, make_axes, point_words
from reports.formatting import metric_words, show
from reports.text.change_comparison_text import compare
from reports.text.held_back_text import held_back_sentences
from reports.text.impact_text import change_sentences, impact_headline, placement_sentences, scaling_sentences
from reports.text.limit_text import (
    fails_today,
    headroom_sentences,
    headroom_words,
    limit_sentence,
    limit_words,
    overload_words,
)
from reports.text.metric_text import capital, says_unserved, term_sentence, unserved_words, with_interval
from reports.text.setup_text import cheapest_sentence, cost_sentences
from reports.text.verdict_text import confidence, other_tenants_sentences, tenants_of_sweep, verdict_opening, whose_slo
from sim.results.point import Point
from sim.results.run_directory.study_records import Headroom
from sim.results.slo_terms import with_tenants
from sim.results.verdict import (
    MET,
    NO_SLO,
    NOT_MET,
    PROBABLY_NOT,
    UNCLEAR,
    grade,
    is_lacking,
    is_overloaded,
    met_probability,
    verdict,
)


@dataclass(frozen=True)
class Answer:
    """What a reader wants to know first.

    :ivar headline: one sentence with value, unit and interval.
    :ivar details: further sentences, the most useful first.
    :ivar verdict: ``met``, ``not met``, ``unclear`` or ``no SLO``.
    :ivar binding: name of what limits it: see ``Limit.name``.
    :ivar binding_sentence: why, with numbers.
    :ivar headroom: at what multiple of the traffic the SLO fails; empty where that was not simulated.
    :ivar confidence: ``high``, ``medium`` or ``low``.
    :ivar reason: why that confidence.
    :ivar headroom_words: the headroom in a few words.
    """

    headline: str
    details: list[str]
    verdict: str
    binding: str
    binding_sentence: str
    headroom: str
    confidence: str
    reason: str
    headroom_words: str = ""


def _headline(point: Point, slo_terms: Mapping[str, float], found: str) -> tuple[str, str | None]:
    """Return the headline, and the term or the metric whose sentence it has."""
    bad = is_overloaded(point)
    start = f"{overload_words(point)}. " if bad else ""
    if found == NO_SLO:
        name = main_metric([point], slo_terms)
        metric = point.metrics.get(name)
        if metric is None or metric.value is None:
            return f"{start}There is not enough data for {metric_words(name)}.", None
        hedge = "" if metric.settled else ", unsettled"
        return f"{start}{capital(metric_words(name))} is {with_interval(name, metric)}{hedge}.", name
    deciding = deciding_term(point, slo_terms, found)
    target = with_tenants(slo_terms, point)[deciding]
    alone = len(whose_slo(point, slo_terms, deciding)) == 1  # the opening names the tenant
    said = term_sentence(point, deciding, target, its=alone)
    return f"{start}{verdict_opening(point, slo_terms, deciding)}: {said}.", deciding


def _details(point: Point, slo_terms: Mapping[str, float], shown: str | None) -> list[str]:
    """Return further sentences.

    :param shown: the metric whose sentence the headline has.
    """
    found = [f"{capital(term_sentence(point, name, target))}." for name, target in slo_terms.items() if name != shown]
    found += other_tenants_sentences(point, shown)
    lost = unserved_words(point)
    unserved_limit = any(limit.name in ("refusals", "failures") for limit in limits(point))  # it says how many
    if lost and not unserved_limit and not any(says_unserved(point, n, target) for n, target in slo_terms.items()):
        found.append(f"{capital(lost)}.")
    for name in ("ttft_p99_s", "e2e_p99_s"):
        metric = point.metrics.get(name)
        words = metric_words(name)
        if metric is not None and metric.value is not None and name not in slo_terms and name != shown:
            found.append(f"{capital(words)} is {with_interval(name, metric)}{'' if metric.settled else ', unsettled'}.")
    miss, late = point.metrics.get("miss_ratio"), point.metrics.get("delayed_hit_ratio")
    if miss is not None and miss.value is not None and "miss_ratio" not in slo_terms:
        joined = ""
        if late is not None and late.value is not None:
            joined = f"; {show('delayed_hit_ratio', late.value)} join a load in flight"
        some = "requests for adapters" if point.traffic.get("base_share") else "requests"
        found.append(f"{show('miss_ratio', miss.value)} of {some} miss and start a load{joined}.")
    cached = point.metrics.get("prefix_hit_ratio")
    if cached is not None and cached.value is not None:
        found.append(f"{show('prefix_hit_ratio', cached.value)} of all prompt tokens are found in the prefix cache.")
    return found


_COLD = "The caches start empty, which may be why {missed}. To start with full caches: --set cache.warm=steady."
_MISSED = {NOT_MET: "the SLO is missed", UNCLEAR: "this is unclear"}


def answer(
    point: Point,
    slo_terms: Mapping[str, float],
    *,
    assumed: bool = False,
    cold: bool = False,
    headroom: Headroom | None = None,
) -> Answer:
    """Return the answer of one point.

    :param slo_terms: targets by metric name, as ``Slo.terms()`` or ``read_terms`` give them.
    :param assumed: whether the costs come from a profile that was not measured.
    :param cold: whether its caches started empty.
    :param headroom: how much more traffic fits, where that was simulated.
    """
    found, terms = verdict(point, slo_terms), with_tenants(slo_terms, point)
    headline, shown = _headline(point, slo_terms, found)
    binding, *others = limits(point)
    details = _details(point, slo_terms, shown)
    missed = point.metrics.get("miss_ratio")
    starts_decide = binding.evidence is Evidence.COLD_STARTS
    cold = cold and found in _MISSED and missed is not None and bool(missed.value) and not starts_decide
    if headroom is not None and fails_today(headroom):
        cold = False  # full caches, with which that was found, don't help
    if cold:
        details.insert(0, _COLD.format(missed=_MISSED[found]))
    details += [f"Also near its limit: {other.name}. {limit_sentence(other, point)}" for other in others]
    details = [*change_sentences(point, slo_terms), *details]
    if point.impact is not None:
        word = NO_SLO if found == NO_SLO else grade(met_probability(point, terms))
        opening = verdict_opening(point, slo_terms, shown)
        headline, details = impact_headline(point, word, opening), [headline, *details]
    if held := held_back_sentences([point]):
        headline, details = held[0], [*held[1:], headline, *details]
    word, reason = confidence(point, terms, assumed=assumed)
    details += scaling_sentences(point) + placement_sentences(point)
    details += cost_sentences(point, None if headroom is None else headroom.load)
    sentence = limit_sentence(binding, point)
    missed_today = bool(terms) and grade(met_probability(point, terms)) in (NOT_MET, PROBABLY_NOT)
    more = headroom_sentences(headroom, missed_today=missed_today, cold=cold)
    few = headroom_words(headroom, missed_today=missed_today)
    return Answer(headline, details, found, limit_words(binding), sentence, more, word, reason, few)


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
        unsure = [p for p, word in zip(found.points, found.verdicts, strict=True) if word == UNCLEAR]
        if len(unsure) == total:
            return f"it is unclear whether the SLO is met {_tried(found, axis, 'any')}"
        if unsure:
            return (
                f"the SLO is not certainly met {_tried(found, axis, 'any')}; it is unclear with {_labels(axis, unsure)}"
            )
        return f"the SLO is not met {_tried(found, axis, 'any')}"
    if len(found.met) == total:
        return f"the SLO is met {_tried(found, axis, 'every')}"
    if found.edge is None or found.beyond is None:
        if len(found.met) > 4:
            return f"the SLO is met with {len(found.met)} of {total} values of {what}"
        listed = _listed(axis, [found.points[i] for i in found.met])
        return f"the SLO is met with {listed}, {_other_words(found, axis)}"
    next_word = "it isn't" if found.verdicts[found.beyond] == NOT_MET else "that is unclear"
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


def _other_words(found: Boundary, axis: Axis) -> str:
    """Return how values stand that don't certainly meet the SLO: ``not with 16, unclear with 64``."""
    by_word: dict[str, list[Point]] = {}
    for place, (point, word) in enumerate(zip(found.points, found.verdicts, strict=True)):
        if place not in found.met:
            by_word.setdefault("not" if word == NOT_MET else "unclear", []).append(point)
    return ", ".join(f"{word} with {_labels(axis, points, 'or')}" for word, points in by_word.items())


def _listed(axis: Axis, points: Sequence[Point], *, last: str = "and") -> str:
    """Return values with their key in words: ``16, 32 and 64 GPU slots``, ``arrival rate 25/s and 26/s``."""
    text = _labels(axis, points, last)
    words = axis.words.removesuffix("s") if text == "1" else axis.words
    return f"{text} {words}" if axis.counted else f"{words} {text}"


def _labels(axis: Axis, points: Sequence[Point], last: str = "and", most: int = 6) -> str:
    labels = [axis.point_label(point) for point in points]
    if len(labels) > most:
        labels = [*labels[:most], f"{len(labels) - most} more"]
    return f" {last} ".join(filter(None, [", ".join(labels[:-1]), labels[-1]]))


def sweep_answer(points: Sequence[Point], slo_terms: Mapping[str, float], *, assumed: bool = False) -> Answer:
    """Return the answer of a sweep: which value meets the SLO, where the cliff is, what limits it there."""
    axes = make_axes(points)
    if not axes:
        return answer(points[0], slo_terms, assumed=assumed)
    name = main_metric(points, slo_terms)
    changed = compare(points, axes, slo_terms)
    words = {verdict(point, slo_terms) for point in points}
    # If more than the router is swept, whether the SLO is met comes first.
    slo_first = words != {NO_SLO} and not is_changed(points) and len(axes) > 1
    with_range = not changed or slo_first  # what changed says more than the range of one metric
    if len(axes) == 1:
        headline, details = _one_axis(points, axes[0], slo_terms, name, with_range=with_range)
    else:
        headline, details = _many_axes(points, axes, slo_terms, with_range=with_range)
    focus = sweep_focus(points, slo_terms)
    said = answer(focus, slo_terms, assumed=assumed)
    where = point_words(focus, axes)
    worst = slowest_point([p for p in points if verdict(p, slo_terms) != MET] or points, name)
    binding, *_ = limits(worst)
    bound = f"At {point_words(worst, axes)}: {_lower(limit_sentence(binding, worst))}"
    overall = NO_SLO if words == {NO_SLO} else MET if MET in words else UNCLEAR if UNCLEAR in words else NOT_MET
    details[:0] = tenants_of_sweep(points, slo_terms)
    refusing = [point for point in points if is_lacking(point)]
    if refusing:
        details.insert(0, f"At {len(refusing):,} of {len(points):,} points more than 1 % of the requests go unserved.")
    known = [p.metrics[name] for p in points if name in p.metrics and p.metrics[name].value is not None]
    wobbly = sum(not metric.settled for metric in known)
    if wobbly:
        details.append(f"At {wobbly} of {len(points):,} points {metric_words(name)} is unsettled.")
    if cheapest := cheapest_sentence(points, slo_terms):
        details.append(cheapest)
    if changed and slo_first:
        details += changed
    elif changed:
        headline, details = changed[0], [*changed[1:], *([headline] if headline else []), *details]
    if held := held_back_sentences(points):
        headline, details = held[0], [*held[1:], headline, *details]
    return Answer(
        headline,
        details,
        overall,
        limit_words(binding),
        bound,
        "",
        said.confidence,
        f"at {where}: {said.reason}",
    )


def _lower(sentence: str) -> str:
    """Return a sentence that can follow a colon."""
    return sentence if sentence[:2].isupper() else sentence[:1].lower() + sentence[1:]


def _range_sentence(points: Sequence[Point], axes: Sequence[Axis], name: str) -> str:
    known = [p for p in points if name in p.metrics and p.metrics[name].value is not None]
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
    points: Sequence[Point], axis: Axis, slo_terms: Mapping[str, float], name: str, *, with_range: bool
) -> tuple[str, list[str]]:
    """Return headline and details.

    :param with_range: whether to say from what to what the metric goes; without it and an SLO there is no headline.
    """
    cliff = find_cliff(points, axis, name)
    details = [cliff_sentence(cliff, axis, name)] if cliff is not None else []
    spread = _range_sentence(points, [axis], name) if with_range else ""
    if all(verdict(point, slo_terms) == NO_SLO for point in points):
        return spread, details
    found = find_boundary(points, axis, slo_terms)
    headline, edge = boundary_words(found, axis), found.edge_point
    if edge is not None and name in slo_terms:
        details.insert(0, f"At {axis.point_phrase(edge)}, {term_sentence(edge, name, slo_terms[name])}.")
    if cliff is None and spread:
        details.append(spread)
    return f"{capital(headline)}.", details


def _many_axes(
    points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float], *, with_range: bool
) -> tuple[str, list[str]]:
    name = main_metric(points, slo_terms)
    if all(verdict(point, slo_terms) == NO_SLO for point in points):
        return _range_sentence(points, axes, name) if with_range else "", []
    good = sum(verdict(point, slo_terms) == MET for point in points)
    unsure = sum(verdict(point, slo_terms) == UNCLEAR for point in points)
    tail = f"; {unsure:,} {'is' if unsure == 1 else 'are'} unclear" if unsure else ""
    if good == len(points):
        return f"All {good:,} combinations meet the SLO.", []
    headline = f"{good:,} of {len(points):,} combinations meet{'s' if good == 1 else ''} the SLO{tail}."
    details = []
    if len(axes) == 2:
        inner = next((a for a in axes if a.key.rsplit(".", 1)[-1] in BOUGHT), axes[0])
        outer = axes[1] if inner is axes[0] else axes[0]
        rows: dict[str, list[str]] = {}  # one sentence for all values with the same boundary
        for i, value in enumerate(outer.values[:8]):
            row = [point for point in points if outer.index(point) == i]
            if row:
                found = rows.setdefault(boundary_words(find_boundary(row, inner, slo_terms), inner), [])
                found.append(outer.label(value) if found else outer.phrase(value))
        details += [f"With {' and '.join(values)}, {words}." for words, values in rows.items()]
    return headline, details
