"""How sure an answer is, in words."""

from __future__ import annotations

from collections.abc import Mapping

from reports.answers.verdicts import Confidence, Doubt, find_confidence
from reports.formatting import metric_words, percent
from reports.text.metric_text import missing, unsettled
from sim.results.point import Point

_REASONS: Mapping[Doubt, str] = {
    Doubt.OVERLOADED: "more requests arrive than can be served, so the numbers depend on how long the run is",
    Doubt.UNSERVED: "clearly more requests go unserved than the SLO allows",
    Doubt.NO_VALUE: "{metric}: {missing}",
    Doubt.DRAWS_OVERLOADED: (
        "with {found.overloaded} of {found.draws} draws of the profile's costs more requests arrive than can be served"
    ),
    Doubt.DRAWS_WIDE: (
        "the calibration interval of {metric} is {half}, because the profile's own measurements are uncertain"
    ),
    Doubt.DRAWS_MISSING: "{metric} has no calibration interval: a single replication is too short for one",
    Doubt.UNSETTLED: "{metric} is {unsettled}",
    Doubt.ONLY_DRAWS_UNCLEAR: (
        "only the calibration interval includes the target: measure the costs more precisely; a longer run does not "
        "help"
    ),
    Doubt.UNCLEAR: "an interval includes its target; run more requests",
    Doubt.ASSUMED: "the intervals are narrow, but the costs behind them are assumed, not measured",
    Doubt.WIDE: "the interval of {metric} is ±{found.half:.0%}",
    Doubt.NOTHING: "every interval is narrow and settled",
}


def confidence(point: Point, slo_terms: Mapping[str, float], *, assumed: bool = False) -> tuple[str, str]:
    """Return a confidence word and its reason."""
    found = find_confidence(point, slo_terms, assumed=assumed)
    return found.word, confidence_reason(found)


def confidence_reason(found: Confidence) -> str:
    """Return why an answer is this sure."""
    name, metric = found.metric, found.estimate
    reason = _REASONS[found.doubt].format(
        found=found,
        metric=metric_words(name),
        missing=missing(name, metric),
        unsettled="" if metric is None else unsettled(name, metric),
        half=_half_words(found.half),
    )
    if found.doubt is Doubt.UNSERVED and found.assumed:
        return f"{reason}, but the costs are assumed, not measured"
    return reason


def _half_words(half: float) -> str:
    """Return how wide an interval is, by its half-width as a share of the value."""
    return f"±{percent(round(half, 2))}" if half < 1 else f"{2 * half:.2g} times as wide as its value"
