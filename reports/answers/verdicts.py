"""How sure an answer is, and which metric it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from sim.results.metric_state import Kind
from sim.results.point import Metric, Point
from sim.results.slo_terms import metric_of, split_term, with_tenants
from sim.results.verdict import (
    MET,
    NOT_MET,
    UNCLEAR,
    is_overloaded,
    lacks_answers,
    late_verdict,
    strain,
    term_probability,
    term_verdict,
    verdict,
)

_WIDE = 0.05
"""Half-width over value from which confidence is medium."""
_VERY_WIDE = 0.25
"""Half-width of a calibration interval over value from which confidence is low."""
_KEY_METRICS = ("ttft_p99_s", "e2e_p99_s", "miss_ratio")


def main_metric(points: Sequence[Point], slo_terms: Mapping[str, float]) -> str:
    """Return the metric that the answer is about: the SLO's first p99, else TTFT, else E2E."""
    targets = [name for name in slo_terms if "_p99" in name] or list(slo_terms)
    for name in (*targets, "e2e_p99_s", "ttft_p99_s"):
        if any((metric := point.metrics.get(name)) and metric.value is not None for point in points):
            return name
    return targets[0] if targets else "e2e_p99_s"


def deciding_term(point: Point, slo_terms: Mapping[str, float], found: str) -> str:
    """Return the term that the headline is about.

    With SLOs of tenants, that is the least likely one, the fleet's first. Where all are met, it is the fleet's main
    one, else the one that is nearest to its target.
    """
    terms = with_tenants(slo_terms, point)
    if found == MET:
        if slo_terms:
            return main_metric([point], slo_terms)
        return max(terms, key=lambda name: strain(point, name, terms[name]))
    each = [name for name, target in terms.items() if term_verdict(point, name, target) == found]
    if len(terms) == len(slo_terms):
        return each[0]
    return min(each, key=lambda name: term_probability(point, name, terms[name]))


def missed_term(point: Point, slo_terms: Mapping[str, float]) -> str | None:
    """Return the first term that decides a verdict other than met, the fleet's first; None where no term does."""
    found = verdict(point, slo_terms)
    if found not in (NOT_MET, UNCLEAR):
        return None
    terms = with_tenants(slo_terms, point)
    return next((name for name, target in terms.items() if term_verdict(point, name, target) == found), None)


class Doubt(Enum):
    """What lowers confidence most, or why there is nothing to doubt."""

    OVERLOADED = auto()
    UNSERVED = auto()
    NO_VALUE = auto()
    DRAWS_OVERLOADED = auto()
    DRAWS_WIDE = auto()
    DRAWS_MISSING = auto()
    UNSETTLED = auto()
    ONLY_DRAWS_UNCLEAR = auto()
    UNCLEAR = auto()
    ASSUMED = auto()
    WIDE = auto()
    NOTHING = auto()


@dataclass(frozen=True)
class Confidence:
    """How sure an answer is.

    :ivar word: ``high``, ``medium`` or ``low``.
    :ivar metric: name of the metric that the doubt is about; ``estimate``: its value. Empty where it is about all.
    :ivar half: half the width of the interval over the value.
    :ivar overloaded, draws: draws of the profile with which the fleet is overloaded, and how many were simulated.
    :ivar assumed: whether the costs come from a profile that was not measured.
    """

    word: str
    doubt: Doubt
    metric: str = ""
    estimate: Metric | None = None
    half: float = 0.0
    overloaded: int = 0
    draws: int = 0
    assumed: bool = False


def find_confidence(point: Point, slo_terms: Mapping[str, float], *, assumed: bool = False) -> Confidence:
    """Return how sure the answer of a point is, and what lowers that most."""
    base_alone = point.traffic.get("base_share") == 1.0  # nothing can miss
    names = list(slo_terms) or [n for n in _KEY_METRICS if not (base_alone and n == "miss_ratio")]
    metrics = {name: metric for name in names if (metric := metric_of(point, name)) is not None}
    if is_overloaded(point):
        return Confidence("low", Doubt.OVERLOADED)
    if any(lacks_answers(point, n, t) and late_verdict(point, n, t) == NOT_MET for n, t in slo_terms.items()):
        return Confidence("medium" if assumed else "high", Doubt.UNSERVED, assumed=assumed)
    for name, metric in metrics.items():
        if metric.value is None and (name in slo_terms or metric.state.kind is Kind.TOO_FEW_REQUESTS):
            return Confidence("low", Doubt.NO_VALUE, name, metric)
    drawn = _of_calibration(point, metrics)
    if drawn is not None and drawn.word == "low":  # before what a longer run could mend
        return drawn
    for name, metric in metrics.items():
        if metric.value is not None and not metric.settled:
            return Confidence("low", Doubt.UNSETTLED, name, metric)
    if verdict(point, slo_terms) == UNCLEAR:
        only_draws = verdict(point.without_calibration(), slo_terms) != UNCLEAR
        return Confidence("medium", Doubt.ONLY_DRAWS_UNCLEAR if only_draws else Doubt.UNCLEAR)
    if assumed:
        return Confidence("medium", Doubt.ASSUMED, assumed=True)
    if drawn is not None:
        return drawn
    for name, metric in metrics.items():
        if metric.value and metric.lo is not None and metric.hi is not None:
            half = (metric.hi - metric.lo) / 2 / abs(metric.value)
            if half > _WIDE and split_term(name)[1] != "miss_ratio":
                return Confidence("medium", Doubt.WIDE, name, metric, half)
    return Confidence("high", Doubt.NOTHING)


def _of_calibration(point: Point, metrics: Mapping[str, Metric]) -> Confidence | None:
    """Return what the draws of the profile leave of confidence; None where they don't lower it."""
    if not point.calibration:
        return None
    overloaded, draws = point.calibration["overloaded"], point.calibration["draws"]
    if overloaded:
        return Confidence("low", Doubt.DRAWS_OVERLOADED, overloaded=overloaded, draws=draws)
    known = {name: each for name, each in metrics.items() if each.value and split_term(name)[1] != "miss_ratio"}
    halves = {name: half for name, metric in known.items() if (half := _calibration_half(metric)) is not None}
    widest = max(halves, key=lambda name: halves[name], default=None)
    if widest is not None and halves[widest] > _WIDE:
        word = "low" if halves[widest] > _VERY_WIDE else "medium"
        return Confidence(word, Doubt.DRAWS_WIDE, widest, known[widest], halves[widest])
    missed = [name for name in known if name not in halves]
    if missed:
        return Confidence("medium", Doubt.DRAWS_MISSING, missed[0], known[missed[0]])
    return None


def _calibration_half(metric: Metric) -> float | None:
    """Return half the width of the calibration interval over the value."""
    if not metric.value or metric.calibration_lo is None or metric.calibration_hi is None:
        return None
    return (metric.calibration_hi - metric.calibration_lo) / 2 / abs(metric.value)
