"""Sentences made from states and numbers: why a metric has no value, how far it is from its target, how it changes.

Nothing else turns a state into words, and nothing reads these words to decide. Numbers get their units in
``reports.formatting``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from reports.answers.points import find_extremes
from reports.answers.verdicts import missed_term
from reports.axes import Axis
from reports.formatting import calibration, interval, metric_words, percent, show
from sim.results.catalogue import SHARES
from sim.results.metric_state import Cause, Kind, State
from sim.results.model import Difference
from sim.results.pairs import BETTER, LESS, MORE, WORSE
from sim.results.point import Metric, Point
from sim.results.slo_terms import judged, metric_of, split_term, with_tenants
from sim.results.verdict import (
    MET,
    NOT_MET,
    PROBABLY_MET,
    PROBABLY_NOT,
    UNCLEAR,
    allowed,
    lacks_answers,
    late_share,
    late_verdict,
    metric_probability,
    out_of_hand,
    unserved,
    value_grade,
    value_verdict,
    verdict,
    verdict_word,
)

_OTHER_WORDS: Mapping[Cause, str] = {
    Cause.FEW_EFFECTIVE: "the run is too short for a reliable {metric}; {longer}",
    Cause.LOADER_BUSY: "the loader is busy {busy} of the time, close to saturation",
    Cause.SERVER_BUSY: "the server is busy {busy} of the time, close to saturation",
    Cause.COMPLETE_IN_SOME: "complete in {some} of {needed} replications",
    Cause.ROLLED_BACK_IN_SOME: "complete in {some} of {needed} replications; rolled back in {others}",
}
"""Causes that people read in other words than the notes of files."""


def why(name: str, state: State) -> str:
    """Return why a metric has no value or can't be trusted, and what to do about it; empty where there is nothing."""
    return _OTHER_WORDS.get(state.cause, state.cause.note).format(
        metric=metric_words(name),
        measured=state.measured,
        needed=state.needed,
        others=state.others,
        some=state.found or "none",
        longer=state.longer,
        busy=percent(state.share),
    )


def missing(name: str, metric: Metric | None) -> str:
    """Return why a metric has no value, beginning with ``not enough data``."""
    said = "" if metric is None else why(name, metric.state)
    if metric is not None and metric.state.kind is Kind.TOO_FEW_REQUESTS:
        return said
    return f"{_NOT_ENOUGH} ({said})" if said else _NOT_ENOUGH


_NOT_ENOUGH = "not enough data"


def unsettled(name: str, metric: Metric) -> str:
    """Return ``unsettled``, why, and the option that makes the run long enough."""
    option = f" (--set workload.requests={metric.state.requests})" if metric.state.requests else ""
    return _unsettled(name, metric) + option


def _unsettled(name: str, metric: Metric) -> str:
    said = why(name, metric.state)
    return f"unsettled: {said}" if said else "unsettled"


def remark(name: str, metric: Metric) -> str:
    """Return what a table says next to a value, or in its place."""
    if metric.value is None:
        return why(name, metric.state) or _NOT_ENOUGH
    return why(name, metric.state) if metric.settled else _unsettled(name, metric)


def with_interval(name: str, metric: Metric, *, bounds: bool = True) -> str:
    """Return a value, its unit and its intervals: ``"300 ms (295 to 305; calibration 280 to 320)"``.

    :param bounds: whether to name the intervals.
    """
    if metric.value is None:
        return missing(name, metric)
    found = calibration(name, metric)
    both = [text for text in (interval(name, metric), f"calibration {found}" if found else "") if text]
    text = show(name, metric.value, metric.unit)
    return f"{text} ({'; '.join(both)})" if both and bounds else text


_SIDES = {
    MET: "within the",
    PROBABLY_MET: "probably within the",
    UNCLEAR: "too uncertain to compare with the",
    PROBABLY_NOT: "probably above the",
    NOT_MET: "above the",
}
"""Where a value lies, seen from its target."""


def term_sentence(point: Point, name: str, target: float, *, its: bool = False, bounds: bool = True) -> str:
    """Return what a term says: ``p99 E2E is 300 ms (295 to 305), below the 1 s target``.

    :param its: whether the words before it name the tenant of the term: ``its p99 E2E is 300 ms``.
    :param bounds: whether to name the intervals of the value.
    """
    tenant, of_tenant = split_term(name)
    words = f"its {metric_words(of_tenant)}" if its and tenant else metric_words(name)
    metric = metric_of(point, name)
    overloaded = out_of_hand(point)
    found = value_verdict(point, name, target)
    if found != NOT_MET and late_verdict(point, name, target) != MET:
        return _late_sentence(point, name, target, its=its)
    if metric is None or metric.value is None:
        return f"{words}: {missing(name, metric)}"
    graded = value_grade(point, name, target)
    hedge = "" if metric.settled else ", unsettled"
    if found == UNCLEAR and overloaded and verdict_word(metric_probability(metric, target)) == MET:
        return (
            f"{words} of those answered is {with_interval(name, metric)}{hedge}, but more requests arrive than are "
            f"served, so that does not show whether the target of {show(name, target)} is met"
        )
    side, at = _SIDES[graded], _time_beyond(point, name, target) if graded in (MET, PROBABLY_MET) else ""
    return f"{words} is {with_interval(name, metric, bounds=bounds)}{hedge}, {side} {show(name, target)} target{at}"


def _time_beyond(point: Point, name: str, target: float) -> str:
    """Return the time of the cycle that rates repeat at which a metric is worst, if it is beyond its target then."""
    known = [(one.metrics[name].value or 0.0, one) for one in point.times if name in one.metrics]
    value, worst = max(known, key=lambda each: each[0], default=(0.0, None))
    if worst is None or value <= target:
        return ""
    return f", but {show(name, value)}{'' if worst.metrics[name].settled else ', unsettled,'} from {worst.name}"


def verdict_words(point: Point, slo_terms: Mapping[str, float]) -> str:
    """Return the verdict on a point, and the term that decides it: ``not met: p99 TTFT``."""
    found, name = verdict(point, slo_terms), missed_term(point, slo_terms)
    if name is None:
        return found
    lacking = lacks_answers(point, name, with_tenants(slo_terms, point)[name])
    return f"{found}: {'unserved requests' if lacking else metric_words(name)}"


def matrix_note(metric: str, across: str, slo_terms: Mapping[str, float]) -> str:
    """Return what the columns, the cells and the marks of a matrix are."""
    marks = " ✓ meets the SLO, ✗ misses it (in brackets: another term that fails), ? is unclear." if slo_terms else ""
    return f"Columns: {across}. Cells: {metric}.{marks} points.csv has every metric."


def says_unserved(point: Point, name: str, target: float) -> bool:
    """Return whether ``term_sentence`` says which share of the requests goes unserved."""
    found = value_verdict(point, name, target)
    late = found != NOT_MET and late_verdict(point, name, target) != MET
    return late and lacks_answers(point, name, target)


def _late_sentence(point: Point, name: str, target: float, *, its: bool) -> str:
    """Return that more requests are late than a term allows, or may be, and what its value over the others is."""
    late, metric, (tenant, own) = late_share(point, name, target), metric_of(point, name), split_term(name)
    words = metric_words(own if its else name)
    whose = "the requests" if not tenant else "its requests" if its else f"the requests of {tenant}"
    assert late is not None, "some are late"
    own_point, missed = judged(point, name)[0], late_verdict(point, name, target) == NOT_MET
    lost, total = unserved(own_point)
    lacking = lacks_answers(point, name, target)
    if lacking and (not missed or lost > allowed(name) * total):
        who = unserved_words(own_point, whose)
    else:
        who = f"{with_interval('slo_attainment', late)} of {whose} had no answer within {show(name, target)}"
        if lacking:  # only together with the late ones they are too many
            who += f" ({unserved_words(own_point, 'them')})"
    side = "more than the" if missed else "perhaps more than the"
    said = f"{who}, {side} {percent(allowed(name))} that a target for {words} allows"
    if metric is None or metric.value is None:
        return said
    hedge = "" if metric.settled else ", unsettled"
    return f"{said}; {words} of the completed ones is {with_interval(name, metric)}{hedge}"


def unserved_words(point: Point, whose: str = "the requests") -> str:
    """Return which share of the requests was refused and which failed; empty where there are none.

    :param whose: the requests in words.
    """
    _, total = unserved(point)
    phrases = []
    for name, words in (("refused", "were refused"), ("failed", "failed")):
        if lost := point.value(name):
            phrases.append((percent(lost / total), words))
    return " and ".join(f"{share}{'' if i else f' of {whose}'} {words}" for i, (share, words) in enumerate(phrases))


def capital(text: str) -> str:
    """Return a sentence's start with a capital; ``p99``, ``p95`` and the keys of scenarios stay as they are."""
    first = text.partition(" ")[0]
    return text if re.fullmatch(r"p\d+", first) or "." in first.rstrip(".") else text[:1].upper() + text[1:]


# How changes read: with a sign, in the unit of the metric, shares in percentage points.

CLEAR_WORDS = {BETTER: "better", WORSE: "worse", MORE: "more", LESS: "less"}
"""Verdicts of a clear difference, in short."""
_AMOUNT = re.compile(r"^[−+]?\$?[\d.,]+(e[-+]?\d+)?")


def signed(name: str, value: float, unit: str) -> str:
    """Return a change: ``−72 ms``, ``+3.1 pp``, ``+1,204``, ``0``."""
    if split_term(name)[1] in SHARES:
        text = f"{abs(value) * 100:.3g}"
        text = f"{0 if 'e-' in text else text} pp"
    else:
        text = show(name, abs(value), unit)
    sign = "−" if value < 0 else "+"
    return text if value == 0 or text.startswith("0 ") or text in ("0", "$0") else f"{sign}{text}"


def bounds_words(name: str, found: Difference) -> str:
    """Return the interval of a change that is kept as a row of a file: ``−80 ms to −64 ms``."""
    low, high = (0.0 if end is None else end for end in (found.lo, found.hi))
    return f"{signed(name, low, found.unit)} to {signed(name, high, found.unit)}"


def interval_words(difference: Difference) -> str:
    """Return the interval of a change: ``−80 to −64 ms``; nothing where there is none or it has no width."""
    d = difference
    if d.lo is None or d.hi is None or d.lo == d.hi:
        return ""
    low, high = signed(d.name, d.lo, d.unit), signed(d.name, d.hi, d.unit)
    suffixes = [_AMOUNT.sub("", text) for text in (low, high)]
    return f"{low.removesuffix(suffixes[0]) if suffixes[0] == suffixes[1] else low} to {high}"


def change_words(difference: Difference) -> str:
    """Return a change and its interval: ``−72 ms, 95 %: −80 to −64 ms``."""
    d = difference
    if d.change is None:
        return "not comparable"
    if d.change == 0 and not interval_words(d):
        return "no change"
    bounds = interval_words(d)
    return signed(d.name, d.change, d.unit) + (
        f", 95 %: {bounds}" if bounds else ", no interval" if d.lo is None else ""
    )


def change_cell(difference: Difference | None) -> str:
    """Return a change for a table: ``−72 ms (−80 to −64 ms)``."""
    d = difference
    if d is None or d.change is None:
        return "–"
    bounds = interval_words(d)
    return signed(d.name, d.change, d.unit) + (f" ({bounds})" if bounds else "")


_NEAR = 10.0
"""Up to how many times the smaller one the larger of two times has the same unit."""


def values_of(difference: Difference) -> list[str]:
    """Return both values, times in the unit of the larger one unless they are far apart: ``9.2 min``, ``10.8 min``."""
    d = difference
    low, high = sorted((d.one or 0.0, d.other or 0.0))
    like = high if high <= _NEAR * low else None
    return ["–" if value is None else show(d.name, value, d.unit, like) for value in (d.one, d.other)]


def short_change(difference: Difference) -> str:
    """Return a change in short: of a share in percentage points, else relative to the first value."""
    d = difference
    if d.change is not None and split_term(d.name)[1] in SHARES:
        return signed(d.name, d.change, d.unit)
    return relative_cell(d) if d.one else change_words(d)


def relative_cell(difference: Difference | None) -> str:
    """Return the change as a share of the first value: ``−11.8 %``."""
    if difference is None or difference.relative is None:
        return "–"
    text = percent(abs(difference.relative))
    if text == "0 %":
        return text
    return f"{'−' if difference.relative < 0 else '+'}{text}"


def unchanged_sentence(points: Sequence[Point], axes: Sequence[Axis], names: Sequence[str]) -> str:
    """Return which metrics differ too little between points to be drawn; empty where there are none."""
    said = []
    for name in names:
        found = find_extremes(points, name)
        if found is not None:
            low, high = (show(name, point.metrics[name].value) for point in (found.low, found.high))
            said.append(f"{metric_words(name)} ({low if low == high else f'{low} to {high}'})")
    swept = " and ".join(axis.words for axis in axes)
    hardly = "it hardly changes" if len(said) == 1 else "they hardly change"
    return f"Not drawn, because {hardly} with {swept}: {', '.join(said)}." if said else ""
