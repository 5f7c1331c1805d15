"""Verdicts in words, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from reports.words import metric_words, missing, percent, show, with_interval
from sim.results.point import Metric, Point
from sim.results.verdict import (
    MET,
    NOT_MET,
    UNCLEAR,
    allowed,
    interval_verdict,
    is_overloaded,
    lacks_answers,
    late_share,
    late_verdict,
    out_of_hand,
    unserved,
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


def term_sentence(point: Point, name: str, target: float) -> str:
    """Return what a term says: ``p99 E2E is 300 ms (295 to 305), below the 1 s asked for``."""
    words, metric = metric_words(name), point.metrics.get(name)
    overloaded = out_of_hand(point)
    found = interval_verdict(metric, target, overloaded=overloaded)
    if found != NOT_MET and late_verdict(point, name, target) != MET:
        return _late_sentence(point, name, target)
    if metric is None or metric.value is None:
        return f"{words}: {missing(metric)}"
    side = {MET: "within the", NOT_MET: "above the", UNCLEAR: "too uncertain to compare with the"}[found]
    hedge = "" if metric.settled else ", unsettled"
    if found == UNCLEAR and overloaded and interval_verdict(metric, target) == MET:
        return (
            f"{words} of those answered is {with_interval(name, metric)}{hedge}, but more arrives than is served, so "
            f"that says nothing of the {show(name, target)} asked for"
        )
    return f"{words} is {with_interval(name, metric)}{hedge}, {side} {show(name, target)} asked for"


def _late_sentence(point: Point, name: str, target: float) -> str:
    """Return that more requests are late than a term allows, or may be, and what its value over the others is."""
    late, metric, words = late_share(point, name, target), point.metrics.get(name), metric_words(name)
    assert late is not None, "some are late"
    if lacks_answers(point, name, target):
        who = unserved_words(point)
    else:
        seconds = show(name, target)
        who = f"{with_interval('slo_attainment', late)} of the requests had no answer within {seconds}"
    side = "more than the" if late_verdict(point, name, target) == NOT_MET else "too close to the"
    said = f"{who}, {side} {percent(allowed(name))} that a target for {words} allows"
    if metric is None or metric.value is None:
        return said
    hedge = "" if metric.settled else ", unsettled"
    return f"{said}; {words} of the completed ones is {with_interval(name, metric)}{hedge}"


def confidence(point: Point, slo_terms: Mapping[str, float], *, assumed: bool = False) -> tuple[str, str]:
    """Return a confidence word and its reason."""
    names = list(slo_terms) or [n for n in _KEY_METRICS if n in point.metrics]
    metrics = {name: point.metrics[name] for name in names if name in point.metrics}
    if is_overloaded(point):
        return "low", "more arrives than can be served, so the numbers depend on how long the run is"
    if any(lacks_answers(point, n, t) and late_verdict(point, n, t) == NOT_MET for n, t in slo_terms.items()):
        reason = "clearly more requests go unserved than the SLO allows"
        return ("medium", f"{reason}, but the costs are assumed, not measured") if assumed else ("high", reason)
    for name, metric in metrics.items():
        if metric.value is None and (name in slo_terms or metric.note.startswith("not enough data")):
            return "low", f"{metric_words(name)}: {missing(metric)}"
    drawn = _of_calibration(point, metrics)
    if drawn is not None and drawn[0] == "low":  # before what a longer run could mend
        return drawn
    for name, metric in metrics.items():
        if metric.value is not None and not metric.settled:
            return "low", f"{metric_words(name)} is unsettled{f': {metric.note}' if metric.note else ''}"
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
        return "low", f"with {overloaded} of {draws} draws of the profile's costs more arrives than can be served"
    known = {name: metric for name, metric in metrics.items() if metric.value and name != "miss_ratio"}
    halves = {name: half for name, metric in known.items() if (half := _calibration_half(metric)) is not None}
    widest = max(halves, key=lambda name: halves[name], default=None)
    if widest is not None and halves[widest] > _WIDE:
        word = "low" if halves[widest] > _VERY_WIDE else "medium"
        return word, (
            f"the calibration interval of {metric_words(widest)} is ±{percent(round(halves[widest], 2))}: so much "
            "do the measurements behind the profile leave open"
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


def unserved_words(point: Point) -> str:
    """Return which share of the requests was refused and which failed; empty where there are none."""
    _, total = unserved(point)
    told = []
    for name, words in (("refused", "were refused"), ("failed", "failed")):
        metric = point.metrics.get(name)
        if metric is not None and metric.value:
            told.append((percent(metric.value / total), words))
    return " and ".join(f"{share}{'' if i else ' of the requests'} {words}" for i, (share, words) in enumerate(told))


def capital(text: str) -> str:
    """Return a sentence's start with a capital; ``p99`` stays as it is."""
    return text[:1].upper() + text[1:] if not text.startswith("p99") else text
