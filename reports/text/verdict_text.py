"""Whose SLO is met, how sure an answer is, and how well its numbers are known, in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from reports.formatting import listed, metric_words, percent
from reports.text.metric_text import capital, missing, term_sentence, unsettled
from sim.results.metric_state import Kind
from sim.results.model import Setup
from sim.results.point import Metric, Point
from sim.results.slo_terms import metric_of, split_term, with_tenants
from sim.results.verdict import (
    MET,
    NO_SLO,
    NOT_MET,
    PROBABLY_MET,
    PROBABLY_NOT,
    UNCLEAR,
    grade,
    is_overloaded,
    lacks_answers,
    late_verdict,
    met_probability,
    open_by_costs,
    term_verdict,
    verdict,
)
from sim.spec.units import human_seconds

_WIDE = 0.05
"""Half-width over value from which confidence is medium."""
_VERY_WIDE = 0.25
"""Half-width of a calibration interval over value from which confidence is low."""
_KEY_METRICS = ("ttft_p99_s", "e2e_p99_s", "miss_ratio")


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
    TOGETHER_UNCLEAR = auto()
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
    :ivar more: what more of would decide: what begins within a run happens once in each replication, however long.
    """

    word: str
    doubt: Doubt
    metric: str = ""
    estimate: Metric | None = None
    half: float = 0.0
    overloaded: int = 0
    draws: int = 0
    assumed: bool = False
    more: str = "requests"


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
        return _open_verdict(point, slo_terms)
    if assumed:
        return Confidence("medium", Doubt.ASSUMED, assumed=True)
    if drawn is not None:
        return drawn
    for name, metric in metrics.items():
        if metric.value and metric.lo is not None and metric.hi is not None:
            half = (metric.hi - metric.lo) / 2 / abs(metric.value)
            if half > _WIDE and split_term(name)[1] != "miss_ratio":
                return Confidence("medium", Doubt.WIDE, name, metric, half, more=more_of(point, metrics))
    return Confidence("high", Doubt.NOTHING)


def _open_verdict(point: Point, slo_terms: Mapping[str, float]) -> Confidence:
    """Return which error leaves a verdict open: the run's, that of the profile's draws, or only both together."""
    doubt = Doubt.ONLY_DRAWS_UNCLEAR if open_by_costs(point, slo_terms) else Doubt.TOGETHER_UNCLEAR
    by_run = verdict(point.without_calibration(), slo_terms) == UNCLEAR
    return Confidence("medium", Doubt.UNCLEAR if by_run else doubt, more=more_of(point, slo_terms))


def more_of(point: Point, terms: Collection[str]) -> str:
    """Return what a point needs more of for narrower intervals of the metrics of these terms."""
    once = point.impact is not None and any(event["t_s"] > 0 for event in point.events)
    once = once or any(metric.state.once for name in terms if (metric := metric_of(point, name)) is not None)
    recorded = any(metric.state.recorded for metric in point.metrics.values())  # each replication is the same trace
    return "replications (run.replications)" if once and not recorded else "requests"


def _of_calibration(point: Point, metrics: Mapping[str, Metric]) -> Confidence | None:
    """Return what the draws of the profile leave of confidence; None where they don't lower it."""
    if not point.calibration:
        return None
    overloaded, draws = point.calibration["overloaded"], point.calibration["draws"]
    if overloaded:
        return Confidence("low", Doubt.DRAWS_OVERLOADED, overloaded=overloaded, draws=draws)
    known = {name: each for name, each in metrics.items() if each.value and split_term(name)[1] != "miss_ratio"}
    halves = {name: sum(ends) / 2 for name, metric in known.items() if (ends := _calibration_ends(metric)) is not None}
    widest = max(halves, key=lambda name: halves[name], default=None)
    if widest is not None and halves[widest] > _WIDE:
        word = "low" if halves[widest] > _VERY_WIDE else "medium"
        return Confidence(word, Doubt.DRAWS_WIDE, widest, known[widest], halves[widest])
    missed = [name for name in known if name not in halves]
    if missed:
        return Confidence("medium", Doubt.DRAWS_MISSING, missed[0], known[missed[0]])
    return None


def _calibration_ends(metric: Metric) -> tuple[float, float] | None:
    """Return how far the ends of the calibration interval lie below and above the value, as shares of it."""
    if not metric.value or metric.calibration_lo is None or metric.calibration_hi is None:
        return None
    below, above = metric.value - metric.calibration_lo, metric.calibration_hi - metric.value
    return below / abs(metric.value), above / abs(metric.value)


_REASONS: Mapping[Doubt, str] = {
    Doubt.OVERLOADED: "more requests arrived than were served, so the numbers depend on how long the run is",
    Doubt.UNSERVED: "clearly more requests go unserved or late than the SLO allows",
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
    Doubt.UNCLEAR: "an interval includes its target; run more {found.more}",
    Doubt.TOGETHER_UNCLEAR: "its two intervals together include the target; run more {found.more}",
    Doubt.ASSUMED: "the intervals are narrow, but the costs behind them are assumed, not measured",
    Doubt.WIDE: "the interval of {metric} is {half}",
    Doubt.NOTHING: "every interval is narrow and settled",
}


def confidence(point: Point, slo_terms: Mapping[str, float], *, assumed: bool = False) -> tuple[str, str]:
    """Return a confidence word and its reason."""
    found = find_confidence(point, slo_terms, assumed=assumed)
    return found.word, confidence_reason(found)


def confidence_reason(found: Confidence) -> str:
    """Return why an answer is this sure."""
    name, metric = found.metric, found.estimate
    half = f"±{percent(round(found.half, 2))}" if found.half < 1 else f"{2 * found.half:.2g} times as wide as its value"
    reason = _REASONS[found.doubt].format(
        found=found,
        metric=metric_words(name),
        missing=missing(name, metric),
        unsettled="" if metric is None else unsettled(name, metric),
        half=half,
    )
    if found.doubt is Doubt.UNSERVED and found.assumed:
        return f"{reason}, but the costs are assumed, not measured"
    return reason


# What to trust: how sure the verdict is, by statistics, and how well the numbers are known, by the profile's costs.

_CORRECT = "a benchmark of your server corrects them (loraplan profiles adjust --anchor)"
_NARROW = "a benchmark of your server at another load would narrow it (loraplan profiles adjust --anchor)"
_ORIGINS = {"assumed": "are assumed", "derived": "are derived, not measured"}
_FOREIGN = {"assumed": "are assumed for", "derived": "are derived for", "measured": "were measured under"}


@dataclass(frozen=True)
class Trust:
    """What to trust of an answer.

    :ivar choice: how sure it is, as a sentence; ``number``: how well its numbers are known, or nothing.
    :ivar part: of how much of the traffic's cycle it holds, where that is not all of it.
    """

    choice: str
    number: str
    part: str = ""

    @property
    def sentence(self) -> str:
        """All of them."""
        return " ".join(filter(None, (self.part, self.choice, self.number)))


def find_trust(
    point: Point,
    slo_terms: Mapping[str, float],
    *,
    assumed: bool = False,
    choice: str | None = None,
    about: str | None = None,
) -> Trust:
    """Return what to trust of a point's answer.

    :param assumed: whether the costs come from a profile that was not measured.
    :param choice: how sure the answer is, where it isn't about this point alone.
    :param about: the term that the headline is about.
    """
    number = _number(point, slo_terms, about, assumed=assumed)
    return Trust(choice or _choice(point, slo_terms), number, _part(point))


def _part(point: Point) -> str:
    """Return of how much of the cycle that the rate repeats an answer holds, if that is only a part."""
    if "cycle_s" not in point.traffic:
        return ""
    measured, cycle, whole = (human_seconds(point.traffic[key]) for key in ("measured_s", "cycle_s", "whole_s"))
    return f"Only {measured} of a cycle of {cycle} were measured: set workload.duration to {whole}."


def _choice(point: Point, slo_terms: Mapping[str, float]) -> str:
    """Return how sure a point's verdict is, from the intervals of its simulation."""
    found = find_confidence(point.without_calibration(), slo_terms)
    if found.doubt in (Doubt.NOTHING, Doubt.WIDE, Doubt.UNSERVED):
        if verdict(point, slo_terms) == UNCLEAR:
            return f"The verdict is open: {confidence_reason(_open_verdict(point, slo_terms))}."
        what, word = ("The verdict is", "sure") if slo_terms else ("The intervals are", "narrow")
        wide = found.doubt is Doubt.WIDE
        if wide and not slo_terms:
            return f"{capital(confidence_reason(found))}: run more {found.more}."
        why = f", though {confidence_reason(found)}" if wide else ""
        why = f": {confidence_reason(found)}" if found.doubt is Doubt.UNSERVED else why
        return f"{what} {word}{why}."
    if found.doubt is Doubt.UNCLEAR:
        return f"The verdict is open: {confidence_reason(found)}."
    return f"{capital(confidence_reason(found))}."


def _number(point: Point, slo_terms: Mapping[str, float], about: str | None, *, assumed: bool) -> str:
    """Return how well a number is known, from the draws of the profile: that of the headline, else the worst."""
    if is_overloaded(point):
        return ""  # the numbers depend on the run, whatever the costs
    names = [name for name in slo_terms or _KEY_METRICS if split_term(name)[1] != "miss_ratio"]
    metrics = {name: metric for name in names if (metric := metric_of(point, name)) is not None}
    setups = () if point.setup is None else point.setup.pools or (point.setup,)
    drawn = _of_calibration(point, metrics)
    if drawn is not None and drawn.doubt is not Doubt.DRAWS_WIDE:
        return f"{capital(confidence_reason(drawn))}."
    ends = {name: each for name, metric in metrics.items() if (each := _calibration_ends(metric)) is not None}
    if not ends:
        return f"The costs are assumed, not measured; {_CORRECT}." if assumed else ""
    widest = about if about in ends else max(ends, key=lambda name: sum(ends[name]))
    own = next((each for each in setups if each.costs_of or each.beyond), None)
    own = own or next((each for each in setups if each.anchored or each.status in _ORIGINS), None)
    foreign = own is not None and bool(own.costs_of or own.beyond)
    half = max(ends[widest])
    factor = float(f"{1 + half:.2g}")
    reach = f"±{percent(max(0.01, round(half, 2)))}" if half < 1 else f"within a factor of {factor:,g}"
    known = f"{capital(metric_words(widest))} is known to {reach}{' at best' if foreign else ''}"
    if round(sum(ends[widest]) / 2, 2) <= _WIDE and not assumed and not foreign:
        # Where the simulation itself is less sure, that is said, and this would contradict it.
        return f"{known}." if metrics[widest].settled else ""
    return f"{known}, because {_origin(own)}; {_NARROW if own is not None and own.anchored else _CORRECT}."


def _origin(own: Setup | None) -> str:
    """Return why numbers are known no better, by the pool whose costs are known least."""
    if own is None:
        return "the profile's own measurements vary"
    origin = f"{_FOREIGN[own.status]} {own.costs_of}" if own.costs_of else _ORIGINS.get(own.status)
    origin = f"are {own.status}, and corrected by measurements of your server" if own.anchored else origin
    beyond = f"are extrapolated to {own.beyond}" if own.beyond else None
    return f"this GPU's costs {', and '.join(filter(None, (origin, beyond)))}"


# Whose SLO is met, in words: that of the fleet, and those of its tenants.

_NAMED = 3
"""How many tenants or terms a sentence names, at most; the table of tenants has all of them."""


_OPENINGS = {
    MET: "{slo} {are} met",
    PROBABLY_MET: "{slo} {are} probably met",
    UNCLEAR: "It is unclear whether {slo} {are} met",
    PROBABLY_NOT: "{slo} {are} probably not met",
    NOT_MET: "{slo} {are} not met",
}


def verdict_opening(point: Point, slo_terms: Mapping[str, float], deciding: str | None) -> str:
    """Return whether the SLO is met, as the start of a sentence; empty without an SLO.

    Where one is missed or unclear, that is the one of the deciding term. Met are all.

    :param slo_terms: those of the fleet; ``deciding``: a term of the fleet or a tenant.
    """
    terms = with_tenants(slo_terms, point)
    if not terms:
        return ""
    word, whose = grade(met_probability(point, terms)), whose_slo(point, slo_terms, deciding)
    return capital(_OPENINGS[word].format(slo=_slo_words(whose), are="are" if len(whose) > 1 else "is"))


def whose_slo(point: Point, slo_terms: Mapping[str, float], deciding: str | None) -> list[str]:
    """Return whose SLO a headline is about: tenants by name, and the fleet as an empty one."""
    named = with_tenants(slo_terms, point) if verdict(point, slo_terms) == MET else [deciding or ""]
    return list(dict.fromkeys(split_term(name)[0] for name in named))


def _slo_words(whose: Sequence[str]) -> str:
    """Return what the SLO of the fleet, of a tenant or of several of them is called.

    :param whose: tenants by name; the fleet is empty.
    """
    if list(whose) == [""]:
        return "the SLO"
    if len(whose) == 1:
        return f"the SLO of {whose[0]}"
    fleet, tenants = [name for name in whose if not name], [name for name in whose if name]
    names = [*(["the fleet"] if fleet else []), *(tenants if len(tenants) <= _NAMED else [f"{len(tenants)} tenants"])]
    return f"the SLOs of {listed(names)}"


def other_tenants_sentences(point: Point, shown: str | None) -> list[str]:
    """Return what tenants miss or may miss, other than the term that the headline shows."""
    terms = with_tenants({}, point)
    missed = [n for n, target in terms.items() if n != shown and term_verdict(point, n, target) != MET]
    said = [f"{capital(term_sentence(point, name, terms[name]))}." for name in missed[:_NAMED]]
    more = len(missed) - len(said)
    if more:
        said.append(
            f"{more:,} more target{' is' if more == 1 else 's are'} missed or unclear: see the table of tenants."
        )
    return said


def tenants_of_sweep(points: Sequence[Point], slo_terms: Mapping[str, float]) -> list[str]:
    """Return at how many points each SLO is missed or unclear, in one sentence; nothing where no tenant has one.

    :param slo_terms: those of the fleet.
    """
    tenants = dict.fromkeys(split_term(name)[0] for point in points for name in with_tenants({}, point))
    if not tenants:
        return []
    words = {name: [_verdict_of(point, name) for point in points] for name in tenants}
    if slo_terms:
        fleet = [verdict(replace(point, tenants=[]), slo_terms) for point in points]
        words = {"the fleet": fleet, **words}
    lacking = {name: found for name, found in words.items() if {NOT_MET, UNCLEAR} & set(found)}
    if not lacking:
        return []
    parts: list[str] = []
    for name, found in lacking.items():
        counts = [(word, sum(each == word for each in found)) for word in (NOT_MET, UNCLEAR)]
        said = " and ".join(f"{word} at {count:,}" for word, count in counts if count)
        start = f"that of {name}" if parts else f"The SLO of {name}"
        parts.append(f"{start} is {said} of {len(found):,} points")
    named, more = parts[:_NAMED], len(parts) - _NAMED
    return [f"{'; '.join(named)}{f'; {more:,} more are missed or unclear somewhere' if more > 0 else ''}."]


def _verdict_of(point: Point, tenant: str) -> str:
    """Return the verdict on the SLO of one tenant."""
    found = next((each for each in point.tenants if each.name == tenant), None)
    return NO_SLO if found is None else verdict(point.of_tenant(found), found.slo)
