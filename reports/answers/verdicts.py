"""Verdicts in words, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from reports.formatting import metric_words, percent
from reports.text import missing, unsettled
from sim.results.metric_state import Kind
from sim.results.point import Metric, Point
from sim.results.verdict import (
    NOT_MET,
    UNCLEAR,
    is_overloaded,
    lacks_answers,
    late_verdict,
    verdict,
)

_WIDE = 0.05
"""Half-width over value from which confidence is medium."""
_VERY_WIDE = 0.25
"""Half-width of a calibration interval over value from which confidence is low."""
_KEY_METRICS = ("ttft_p99_s", "e2e_p99_s", "miss_ratio")


def main_metric(points: Sequence[Point], slo_terms: Mapping[str, float]) -> str:
    """Return the metric that the answer is about: the SLO's first p99, else TTFT, else E2E."""
    asked = [name for name in slo_terms if "_p99" in name] or list(slo_terms)
    for name in (*asked, "e2e_p99_s", "ttft_p99_s"):
        if any((metric := point.metrics.get(name)) and metric.value is not None for point in points):
            return name
    return asked[0] if asked else "e2e_p99_s"


def confidence(point: Point, slo_terms: Mapping[str, float], *, assumed: bool = False) -> tuple[str, str]:
    """Return a confidence word and its reason."""
    names = list(slo_terms) or [n for n in _KEY_METRICS if n in point.metrics]
    metrics = {name: point.metrics[name] for name in names if name in point.metrics}
    if is_overloaded(point):
        return "low", "more requests arrive than can be served, so the numbers depend on how long the run is"
    if any(lacks_answers(point, n, t) and late_verdict(point, n, t) == NOT_MET for n, t in slo_terms.items()):
        reason = "clearly more requests go unserved than the SLO allows"
        return ("medium", f"{reason}, but the costs are assumed, not measured") if assumed else ("high", reason)
    for name, metric in metrics.items():
        if metric.value is None and (name in slo_terms or metric.state.kind is Kind.TOO_FEW_REQUESTS):
            return "low", f"{metric_words(name)}: {missing(name, metric)}"
    drawn = _of_calibration(point, metrics)
    if drawn is not None and drawn[0] == "low":  # before what a longer run could mend
        return drawn
    for name, metric in metrics.items():
        if metric.value is not None and not metric.settled:
            return "low", f"{metric_words(name)} is {unsettled(name, metric)}"
    if verdict(point, slo_terms) == UNCLEAR:
        if verdict(_without_draws(point), slo_terms) != UNCLEAR:
            return "medium", (
                "only the calibration interval reaches across the target; more measurements of the costs would decide, "
                "a longer run would not"
            )
        return "medium", "an interval lies on both sides of its target; a longer run would decide"
    if assumed:
        return "medium", "the intervals are narrow, but the costs behind them are assumed, not measured"
    if drawn is not None:
        return drawn
    for name, metric in metrics.items():
        if metric.value and metric.lo is not None and metric.hi is not None:
            half = (metric.hi - metric.lo) / 2 / abs(metric.value)
            if half > _WIDE and name != "miss_ratio":
                return "medium", f"the interval of {metric_words(name)} is ±{half:.0%}"
    return "high", "every interval is narrow and settled"


def _of_calibration(point: Point, metrics: Mapping[str, Metric]) -> tuple[str, str] | None:
    """Return what the draws of the profile leave of confidence; None where they don't lower it."""
    if not point.calibration:
        return None
    overloaded, draws = point.calibration["overloaded"], point.calibration["draws"]
    if overloaded:
        return (
            "low",
            f"with {overloaded} of {draws} draws of the profile's costs more requests arrive than can be served",
        )
    known = {name: metric for name, metric in metrics.items() if metric.value and name != "miss_ratio"}
    halves = {name: half for name, metric in known.items() if (half := _calibration_half(metric)) is not None}
    widest = max(halves, key=lambda name: halves[name], default=None)
    if widest is not None and halves[widest] > _WIDE:
        word = "low" if halves[widest] > _VERY_WIDE else "medium"
        return word, (
            f"the calibration interval of {metric_words(widest)} is ±{percent(round(halves[widest], 2))}: the "
            "measurements behind the profile leave that much open"
        )
    missed = [metric_words(name) for name in known if name not in halves]
    if missed:
        return "medium", f"{missed[0]} has no calibration interval: a single replication is too short for one"
    return None


def _calibration_half(metric: Metric) -> float | None:
    """Return half the width of the calibration interval over the value."""
    if not metric.value or metric.calibration_lo is None or metric.calibration_hi is None:
        return None
    return (metric.calibration_hi - metric.calibration_lo) / 2 / abs(metric.value)


def _without_draws(point: Point) -> Point:
    """Return the point as it would be for a profile without draws."""
    plain = {n: replace(m, calibration_lo=None, calibration_hi=None) for n, m in point.metrics.items()}
    return replace(point, metrics=plain, calibration={})
