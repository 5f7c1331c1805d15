"""What rollouts, faults, autoscalers and placement did at one point, in sentences.

Counts are those of one rollout or fault: means over the replications.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reports.answers.change_comparison import impact_name, rerouted_points
from reports.answers.change_findings import (
    SOME,
    aftermath,
    has_clear_impact,
    has_rollout,
    impact_of,
    impact_parts,
    is_too_short,
    latency_name,
    replications_needed,
    rollouts_begun,
    value_of,
)
from reports.axes import Axis
from reports.formatting import metric_words, number, percent, show
from reports.text.limit_text import Evidence, limits
from reports.text.metric_text import capital, why, with_interval
from sim.results.point import Metric, Point
from sim.results.verdict import MET, NO_SLO, PROBABLY_MET
from sim.spec.units import human_bytes, human_seconds

IMPACT_WORDS = {
    "mixed": "mixed versions",
    "stale": "stale answers",
    "refused_by_rollout": "refused",
    "wrong_served": "unnoticed wrong answers",
    "old_prefix": "old prefixes",
    "lost": "lost",
    "failed_loads": "failed loads",
    "failed": "failed",
    "slow": "late",
}
"""The kinds of impact on a request, in words."""


def rounded(count: float) -> str:
    """Return a count to read: three digits, and whole from ten on."""
    few = f"{round(count, 1) + 0.0:.1f}".removesuffix(".0")  # adding 0 turns −0 into 0
    return (few if abs(count) < 10 else f"{float(f'{count:.3g}'):,.0f}").replace("-", "−")


def with_bounds(metric: Metric) -> str:
    """Return a mean count with its interval, rounded alike.

    A count beyond the usual may come out negative by chance. There are no fewer than none.
    """
    text = rounded(max(metric.value or 0.0, 0.0))
    if metric.lo is None or metric.hi is None or metric.lo == metric.hi:
        return text
    if metric.lo < 0:
        return f"{text} (up to {rounded(max(metric.hi, 0.0))})"
    return f"{text} ({rounded(metric.lo)} to {rounded(metric.hi)})"


def composition(point: Point) -> str:
    """Return what the impact of a point consists of, most frequent first: ``108 late, 95 mixed versions``."""
    return ", ".join(f"{rounded(count)} {IMPACT_WORDS[kind]}" for kind, count in impact_parts(point) if count >= SOME)


@dataclass(frozen=True)
class Cause:
    """What changed while traffic flowed.

    :ivar words: with its article, such as ``the crash``; ``several``: whether that is a plural.
    :ivar per: what its impact is counted by.
    """

    words: str
    per: str
    several: bool = False

    @property
    def affects(self) -> str:
        """What it does, in the present tense: ``the crash affects``."""
        return f"{self.words} {'affect' if self.several else 'affects'}"


def cause_of(points: Sequence[Point]) -> Cause:
    """Return what changed at these points: a rollout, a fault by its kind, or several."""
    if has_rollout(points):
        several = any(rollouts_begun(point) > 1 for point in points)
        return Cause("the rollouts" if several else "the rollout", "rollout", several)
    kinds = {kind for point in points for kind in impact_of(point).faults}
    if len(kinds) > 1:
        return Cause("the faults", "run", several=True)
    kind = next(iter(kinds), "")
    if kind == "crash" and any(sum(event["kind"] == "crash" for event in point.events) > 1 for point in points):
        return Cause("the crashes", "run", several=True)
    return _CAUSES.get(kind, Cause("the fault", "fault"))


_CAUSES = {
    "crash": Cause("the crash", "crash"),
    "slow-storage": Cause("the slow storage", "run"),
    "storage-stall": Cause("the storage stall", "stall"),
    "failing-loads": Cause("the failing loads", "run", several=True),
    "network-delay": Cause("the network delay", "run"),
    "misrouting": Cause("the misrouting", "run"),
    "stale-map": Cause("the stale router map", "run"),
    "base-model": Cause("the fallback to the base model", "run"),
    "named-prefixes": Cause("the stale prefixes", "run", several=True),
}


def badge_words(points: Sequence[Point]) -> str:
    """Return what a badge says of the impact next to the verdict; empty where none is clear."""
    clear = [point for point in points if has_clear_impact(point)]
    if not clear:
        return ""
    name = impact_name(clear)
    worst = max(clear, key=lambda point: value_of(point, name) or 0.0)
    kind, count = (impact_parts(worst) or [("slow", value_of(worst, name) or 0.0)])[0]
    return f"{'up to ' if len(points) > 1 else ''}about {rounded(count)} {_answers(kind)}"


def _answers(kind: str) -> str:
    words = IMPACT_WORDS[kind]
    if kind == "mixed":
        return f"answers of {words}"
    return f"{words} requests" if kind in ("refused_by_rollout", "lost", "failed", "slow") else words


def impact_headline(point: Point, found: str, opening: str) -> str:
    """Return whether the SLO is met and what the change did, in one sentence.

    :param found: the grade on the SLO; ``opening``: it in words.
    """
    said = impact_clause(point)
    if found == NO_SLO:
        return f"{capital(said)}."
    contrast = has_clear_impact(point) and found in (MET, PROBABLY_MET)
    return f"{opening}, {'but' if contrast else 'and'} {said}."


def impact_clause(point: Point) -> str:
    """Return what a change did: ``the rollout affected 63 (50 to 76) of 39,000 requests: 60 stale answers``."""
    cause, metric = cause_of([point]).words, point.metrics[impact_name([point])]
    total = f"{impact_of(point).requests / impact_of(point).replications:,.0f} requests"
    beyond = " beyond the usual" if impact_name([point]) == "harmed_excess" else ""
    if not has_clear_impact(point) and beyond:
        if not metric.value and impact_of(point).slow is None:
            untold = "late ones aren't counted: the slo has no target for single requests"
            return f"{cause} left none of {total} without a correct answer ({untold})"
        if not metric.value:
            return f"{cause} affected none of {total}{beyond}"
        counted = f"{with_bounds(metric)} of {total} affected{beyond}"
        if is_too_short(point):
            return f"{impact_of(point).replications} replications are too few to tell what {cause} did: {counted}"
        return f"{cause} had no clear impact: {counted}"
    parts = composition(point)
    return f"{cause} affected {with_bounds(metric)} of {total}{beyond}{f': {parts}' if parts else ''}"


def change_sentences(point: Point, slo_terms: Mapping[str, float]) -> list[str]:
    """Return more of what rollouts and faults did to one point, the most important first; nothing without any."""
    if point.impact is None:
        return []
    said = [*_longer(point), *_identity(point), *_without_answer(point), *_usual(point)]
    if has_rollout([point]):
        said += _rollout(point, slo_terms)
    elif value_of(point, "wrong_adapter_served") is None and (peak := _afterwards(point)) is not None:
        said.append(peak)
    return said + _faults(point)


def _longer(point: Point) -> list[str]:
    """Return how many replications would tell what a change did, where there are too few."""
    count = replications_needed(point) if is_too_short(point) else None
    if count is None:
        return []
    return [
        f"About {count} replications would tell, if the impact is as large as it seems: --set run.replications={count}."
    ]


def _without_answer(point: Point) -> list[str]:
    """Return how many had no answer when the run ended: those late by then, or, without targets to judge by, all."""
    impact = impact_of(point)
    late = impact.slow_unanswered
    unanswered, late_ones = impact.unanswered / impact.replications, (late or 0) / impact.replications
    if late is None and unanswered >= 1:
        said = f"{rounded(unanswered)} had no answer when the run ended"
        return [f"{said}, and no target in the slo says which of them are late."]
    return [f"{rounded(late_ones)} late requests had no answer when the run ended."] if late_ones >= 1 else []


def _usual(point: Point) -> list[str]:
    """Return how many requests are late without the rollout or fault, too."""
    every, beyond = value_of(point, "harmed"), value_of(point, "harmed_excess")
    if every is None:
        return []
    if beyond is None:
        late = impact_of(point).mean("slow")
        state = point.metrics["harmed_excess"].state if "harmed_excess" in point.metrics else None
        reason = "" if state is None else f" ({why('harmed_excess', state)})"
        return [f"Some of the {rounded(late)} late requests may be late anyway{reason}."] if late else []
    usual = every - beyond
    return [f"{rounded(usual)} more would be late without {cause_of([point]).words}, too."] if usual >= SOME else []


def _rollout(point: Point, slo_terms: Mapping[str, float]) -> list[str]:
    said = []
    name = latency_name([point], slo_terms)
    during, before = point.metrics[f"rollout_{name}"], point.metrics[f"before_{name}"]
    if during.value is not None:
        against = f", against {with_interval(name, before)} before" if before.value is not None else ""
        said.append(
            f"{capital(metric_words(name))} is {with_interval(name, during)} for requests that come during the "
            f"rollout{against}."
        )
    took = point.metrics["rollout_duration_s"]
    if took.value is not None:
        said.append(f"{_subject(point)} complete after {with_interval('rollout_duration_s', took)}.")
    else:
        said.append(f"{_subject(point)} {why('rollout_duration_s', took.state)}.")
    peak, usual = (value_of(point, f"{side}_peak_loads_per_s") for side in ("rollout", "before"))
    if peak is not None and usual is not None:
        said.append(
            f"Loads peak at {show('rollout_peak_loads_per_s', peak)} over ten seconds, against "
            f"{show('rollout_peak_loads_per_s', usual)} before."
        )
    extra = value_of(point, "extra_resident_bytes_peak")
    if extra:
        said.append(f"During the rollout, old versions take up to {human_bytes(extra)} of extra GPU memory.")
    both, back = value_of(point, "sessions_saw_both"), value_of(point, "sessions_went_back")
    if both:
        said.append(
            f"{rounded(both)} sessions saw both versions; {rounded(back or 0)} of them went back to the older one."
        )
    return said


def _subject(point: Point) -> str:
    """Return the subject of when it was complete; old run directories don't say how many rollouts there are."""
    begun = rollouts_begun(point)
    return "The rollout is" if begun == 1 else "All rollouts together are" if begun else "All rollouts are"


def _identity(point: Point) -> list[str]:
    wrong, noticed, again = (value_of(point, n) for n in ("wrong_adapter_served", "wrong_adapter_detected", "retried"))
    if wrong is None:
        return []
    total = impact_of(point).requests / impact_of(point).replications
    return [
        f"{rounded(value_of(point, 'misrouted') or 0)} of {total:,.0f} requests did not reach their own adapter: "
        f"{rounded(wrong)} wrong answers went unnoticed, {rounded(noticed or 0)} were noticed, and "
        f"{rounded(again or 0)} requests were sent again."
    ]


def _faults(point: Point) -> list[str]:
    said = []
    lost, rerouted = value_of(point, "lost"), value_of(point, "rerouted")
    if lost is not None and rerouted is not None:
        said.append(
            f"{rounded(lost)} requests were lost with their replica; {rounded(rerouted)} were sent to another one."
        )
    said += rerouted_sentence([point], [])
    impact = impact_of(point)
    if impact.failed_loads:
        failed = rounded(impact.mean("failed_loads"))
        said.append(f"{failed} requests failed because their adapter could not be loaded.")
    if impact.old_prefix:
        found = rounded(impact.mean("old_prefix"))
        said.append(f"{found} requests found a prefix that an older version had computed.")
    return said


def _afterwards(point: Point) -> str | None:
    """Return what happened to those that came after the first event: unanswered, or slowest when."""
    found = aftermath(point)
    if found.stuck:
        return (
            f"Of the {rounded(found.came)} requests after it began, {rounded(found.unanswered)} had no answer when the "
            "run ended."
        )
    if found.worst_s is None or found.worst_at_s is None or found.usual_s is None:
        return None
    return (
        f"Latency peaks at about {human_seconds(found.worst_at_s)} into the run: {human_seconds(found.worst_s)} on "
        f"average, against {human_seconds(found.usual_s)} usually (first replication)."
    )


def label_of(point: Point, axes: Sequence[Axis]) -> str:
    """Return a point's swept values: quantities with their key in words, names as they are."""
    return ", ".join(axis.point_phrase(point) if axis.numeric else axis.point_label(point) for axis in axes)


def rerouted_sentence(points: Sequence[Point], axes: Sequence[Axis]) -> list[str]:
    """Return how long the requests take that restart on another replica, against all."""
    some = rerouted_points(points)
    if not some:
        return []
    phrases = [f"{value_words(p, 'rerouted_e2e_mean_s')}{f' with {label_of(p, axes)}' if axes else ''}" for p in some]
    usual = show("e2e_mean_s", value_of(some[0], "e2e_mean_s"))
    return [f"Rerouted requests take on average {'; '.join(phrases)}; all requests take {usual}."]


def value_words(point: Point, name: str) -> str:
    """Return a metric's value with its interval, and whether it is unsettled."""
    metric: Metric = point.metrics[name]
    return with_interval(name, metric) + ("" if metric.settled else ", unsettled")


def scaling_sentences(point: Point) -> list[str]:
    """Return how many replicas there were, and what their starts did; nothing of a fleet that stays as it is.

    How many are late is left out where cold starts limit the point: then ``limit_sentence`` has it.
    """

    def value(name: str) -> float | None:
        metric = point.metrics.get(name)
        return None if metric is None else metric.value

    mean = value("mean_replicas")
    if mean is None:
        return []
    cold_s, loads = value("cold_start_mean_s"), value("new_replica_loads")
    if cold_s is None or loads is None:
        return [f"There are {number(mean)} replicas on average, and none starts in the measured time."]
    started = number(value("replicas_started") or 0.0)
    each = f"each after {human_seconds(cold_s)}" if cold_s else "each at once"
    said = [
        f"There are {number(mean)} replicas on average; in the measured time {started} start, {each}, and make "
        f"{number(loads)} loads in their first minute."
    ]
    late, otherwise = value("late_while_starting"), value("late_otherwise")
    said_already = any(limit.evidence is Evidence.COLD_STARTS for limit in limits(point))
    if late is not None and otherwise is not None and not said_already:
        said.append(
            f"{percent(late)} of the requests that arrive while a replica starts are late, and {percent(otherwise)} of "
            "the others."
        )
    return said


def placement_sentences(point: Point) -> list[str]:
    """Return what moves of adapters cost; nothing where no controller places them."""

    def value(name: str) -> float | None:
        metric = point.metrics.get(name)
        return None if metric is None else metric.value

    moves, share = value("placement_moves"), value("placed_share")
    if moves is None:
        return []
    placed = "" if share is None else f"{percent(share)} of the requests are for adapters that have a place"
    if not moves:
        return [f"No adapter moves: {placed}." if placed else "No adapter moves."]
    loads, seconds = value("placement_loads") or 0.0, value("placement_load_s") or 0.0
    cost = "none of these moves costs a load"
    if loads:
        cost = f"{number(loads)} of these moves cost a load, {human_seconds(seconds)} in total"
    moved = f"Per replication, the controller moves {number(moves)} adapters: {cost}."
    return [f"{moved} {placed}." if placed else moved]
