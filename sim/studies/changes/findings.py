"""What rollouts, faults, autoscalers and placement did at one point, and what holding a rollout back avoided; each with
its sentence.

Counts are those of one rollout or fault: means over the replications.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reports.answers.limits import Evidence, limits
from reports.answers.points import has_rollout, impact_name, impact_of, latency_name
from reports.axes import Axis, label_of
from reports.formatting import listed, metric_words, number, percent, show
from reports.text.metric_text import capital, signed, why, with_interval
from sim.results.intervals import student
from sim.results.metric_state import Cause as StateCause
from sim.results.model import WRONG_KINDS, Count, Difference, HeldBack, HeldBackRollout
from sim.results.point import Metric, Point
from sim.results.verdict import MET, NO_SLO, PROBABLY_MET
from sim.spec.units import human_bytes, human_seconds

MANY_POINTS = 6
"""Points up to which each is listed in a sentence."""
SOME = 0.5
"""Requests of a replication from which a kind of impact is there."""
_MANY = 0.05
"""Share of unanswered requests from which the latencies of the others no longer show what happened."""
_TELLS = 0.01
"""Share of the requests up to which an interval of the impact must reach to say that there is none: what a p99 allows.
"""
_FEWEST, _MOST = 5, 100
"""Replications from which an interval is not mainly that of a small sample, and the most that are worth a hint."""
_TWICE = 1.1
"""Kinds of impact together over the requests affected, from which some requests are of several kinds."""
_NOTICED_S = 0.25
"""From how long on a standstill is worth a sentence."""
_WORDS = {
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
_SHORT = {"clearly better": "better", "clearly worse": "worse"}
_SHOWN = ("rollout_ttft_p99_s", "rollout_e2e_p99_s", "rollout_loads")


# How much a change did, and what.


def impact_parts(point: Point) -> list[tuple[str, float]]:
    """Return the kinds of impact of a point, and how many requests of a replication each concerns, most frequent first.

    They are those beyond the usual, where that is known.
    """
    impact = impact_of(point)
    found = {kind: impact.mean(kind) for kind in (*WRONG_KINDS, "slow")} if impact.beyond is None else impact.beyond
    return sorted(((kind, count) for kind, count in found.items() if count > 0), key=lambda pair: -pair[1])


def has_wrong_answers(point: Point) -> bool:
    """Return whether a rollout or fault left requests with a mixed, stale or wrong answer, or with none."""
    return any(kind in WRONG_KINDS and count >= SOME for kind, count in impact_parts(point))


def has_clear_impact(point: Point) -> bool:
    """Return whether a rollout or fault did something to requests that is no chance.

    Wrong answers count as they are, and so does the difference of a single replication to its baseline.
    """
    if has_wrong_answers(point):
        return True
    metric = point.metrics.get("harmed_excess")
    return metric is not None and ((metric.value or 0.0) >= SOME if metric.lo is None else metric.lo > 0)


def per_event(point: Point) -> Point:
    """Return a point whose refused and failed requests are those of one replication, as all others of a change are."""
    count, metrics = impact_of(point).replications, dict(point.metrics)
    for name in ("refused", "failed"):
        if name in metrics:
            metric = metrics[name]
            value, low, high = (None if end is None else end / count for end in (metric.value, metric.lo, metric.hi))
            metrics[name] = replace(metric, value=value, lo=low, hi=high, parts=[])  # the parts add up to the total
    return replace(point, metrics=metrics)


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
    """Return what the impact of a point consists of, most frequent first: ``95 mixed versions, 4 fewer late``."""
    more = [f"{rounded(count)} {_WORDS[kind]}" for kind, count in impact_parts(point) if count >= SOME]
    beyond = (impact_of(point).beyond or {}).items()
    return ", ".join([*more, *(f"{rounded(-count)} fewer {_WORDS[kind]}" for kind, count in beyond if count <= -SOME)])


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


def rollouts_begun(point: Point) -> int:
    """Return how many rollouts began in the first replication; 0 for run directories without numbers in events."""
    return len({event["rollout"] for event in point.events if event["kind"] == "rollout" and "rollout" in event})


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
    """Return what a badge says next to the verdict: a clear impact, else that a rollout did not get through."""
    clear = [point for point in points if has_clear_impact(point)]
    if not clear:
        back = any(map(is_rolled_back, points))
        return "rolled back" if back else "not complete" if any(map(setback, points)) else ""
    name = impact_name(clear)
    worst = max(clear, key=lambda point: point.value(name) or 0.0)
    kind, count = (impact_parts(worst) or [("slow", worst.value(name) or 0.0)])[0]
    answers = _WORDS[kind]
    if kind == "mixed":
        answers = f"answers of {answers}"
    elif kind in ("refused_by_rollout", "lost", "failed", "slow"):
        answers = f"{answers} requests"
    return f"{'up to ' if len(points) > 1 else ''}about {rounded(count)} {answers}"


def impact_headline(point: Point, found: str, opening: str) -> str:
    """Return whether the SLO is met and what the change did, in one sentence.

    :param found: the grade on the SLO; ``opening``: it in words, a sentence or the start of one.
    """
    said, back = impact_clause(point), setback(point)
    said = f"{back}. {capital(said)}" if back else said
    if found == NO_SLO:
        return f"{capital(said)}."
    contrast = (has_clear_impact(point) or bool(back)) and found in (MET, PROBABLY_MET)
    if opening.endswith("."):
        return f"{opening[:-1]}; {said}."
    return f"{opening}, {'but' if contrast else 'and'} {said}."


def impact_clause(point: Point) -> str:
    """Return what a change did: ``the rollout affected 63 (50 to 76) of 39,000 requests: 60 stale answers``."""
    cause, metric = cause_of([point]).words, point.metrics[impact_name([point])]
    total = f"{impact_of(point).requests / impact_of(point).replications:,.0f} requests"
    if not has_clear_impact(point) and impact_name([point]) == "harmed_excess":
        if not metric.value and impact_of(point).slow is None:
            untold = "late ones aren't counted: the slo has no target for single requests"
            return f"{cause} left none of {total} without a correct answer ({untold})"
        if not metric.value:
            return f"{cause} affected none of {total}"
        counted = f"{with_bounds(metric)} of {total} were affected"
        if is_too_short(point):
            return f"{impact_of(point).replications} replications are too few to tell what {cause} did: {counted}"
        return f"{cause} had no clear impact: {counted}"
    parts, still = composition(point), _standstill(point)
    if sum(count for _, count in impact_parts(point)) > _TWICE * (metric.value or 0.0):
        parts += ", and some are counted twice"
    stops = f"; replicas stand still for {human_seconds(still)}" if still else ""
    return f"{cause} affected {with_bounds(metric)} of {total}{f': {parts}' if parts else ''}{stops}"


def is_rolled_back(point: Point) -> bool:
    """Return whether a gate sent a rollout back in some replication."""
    took = point.metrics.get("rollout_duration_s")
    return took is not None and took.state.cause in (StateCause.ROLLED_BACK, StateCause.ROLLED_BACK_IN_SOME)


def missed_by_gates(point: Point) -> list[tuple[str, float | None, float]]:
    """Return the terms that the first rollback of the first replication names: metric, value, and what was allowed."""
    rollbacks = (event for event in point.events if event["kind"] == "rollback")
    found: list[list[Any]] = next((event["missed"] for event in rollbacks if "missed" in event), [])
    return [(name if name == "miss_ratio" else f"{name}_s", value, limit) for name, value, limit in found]


def starved_gate(point: Point) -> bool:
    """Return whether a gate of the first replication waits for more requests than it got."""
    return any("missed" in event for event in point.events if event["kind"] == "end")


def setback(point: Point) -> str:
    """Return that a rollout was rolled back, or did not come to its last stage, and why in the first replication."""
    if not is_rolled_back(point):
        ends = [event["text"] for event in point.events if event["kind"] == "end" and "rollout" in event]
        if not ends:
            return ""
        subject = _subject(point)
        left = why("rollout_duration_s", point.metrics["rollout_duration_s"].state)
        return f"{subject[:1].lower()}{subject[1:]} {left} ({ends[0]})"
    state, which = point.metrics["rollout_duration_s"].state, "a" if cause_of([point]).several else "the"
    of, first = (f" in {state.others} of {state.needed} replications", "in the first, ") if state.needed else ("", "")
    reasons = [
        "requests of the new version failed"
        if value is None
        else f"{metric_words(name)} of the new version was {show(name, value)} (the gate allows {show(name, limit)})"
        for name, value, limit in missed_by_gates(point)
    ]
    return f"{which} rollout was rolled back{of}{f': {first}{listed(reasons)}' if reasons else ''}"


def _standstill(point: Point) -> float:
    """Return the longest standstill of a rollout in seconds; 0 where it is too short to mention."""
    still = point.value("rollout_standstill_s") or 0.0
    return still if still >= _NOTICED_S else 0.0


# What else there is to say of one point, the most important first.


def change_sentences(point: Point, slo_terms: Mapping[str, float]) -> list[str]:
    """Return more of what rollouts and faults did to one point, the most important first; nothing without any."""
    if point.impact is None:
        return []
    said = [*_longer(point), *_identity(point), *_without_answer(point), *_usual(point)]
    if has_rollout([point]):
        said += _rollout(point, slo_terms)
    elif point.value("wrong_adapter_served") is None and (peak := _afterwards(point)) is not None:
        said.append(peak)
    return said + _faults(point)


def is_too_short(point: Point) -> bool:
    """Return whether there are too few replications to tell: the impact may be none, or enough to miss a p99."""
    metric, impact = point.metrics.get("harmed_excess"), impact_of(point)
    if metric is None or metric.lo is None or metric.hi is None or has_clear_impact(point):
        return False
    return impact.replications > 1 and metric.hi > _TELLS * impact.requests / impact.replications


def replications_needed(point: Point) -> int | None:
    """Return how many replications would show an impact as large as it seems; None where too many, or it is none."""
    metric, count = point.metrics["harmed_excess"], impact_of(point).replications
    value = metric.value or 0.0
    if metric.lo is None or metric.hi is None or value <= 0:
        return None
    deviation = (metric.hi - metric.lo) / 2 / student(count - 1) * math.sqrt(count)
    enough = (n for n in range(max(count + 1, _FEWEST), _MOST + 1) if student(n - 1) * deviation < value * math.sqrt(n))
    return next(enough, None)


def _longer(point: Point) -> list[str]:
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
    every, beyond = point.value("harmed"), point.value("harmed_excess")
    if every is None:
        return []
    if beyond is None:
        late = impact_of(point).mean("slow")
        state = point.metrics["harmed_excess"].state if "harmed_excess" in point.metrics else None
        reason = "" if state is None else f" ({why('harmed_excess', state)})"
        return [f"Some of the {rounded(late)} late requests may be late anyway{reason}."] if late else []
    usual = every - beyond
    return [f"{rounded(usual)} would be late even without {cause_of([point]).words}."] if usual >= SOME else []


def _rollout(point: Point, slo_terms: Mapping[str, float]) -> list[str]:
    said = []
    name = latency_name([point], slo_terms)
    during, before = point.metrics[f"rollout_{name}"], point.metrics[f"before_{name}"]
    if during.value is not None:
        alike = before.value is not None and not point.times  # not night against noon
        against = f", against {with_interval(name, before)} before" if alike else ""
        said.append(
            f"{capital(metric_words(name))} is {with_interval(name, during)} for requests that come during the "
            f"rollout{against}."
        )
    took = point.metrics["rollout_duration_s"]
    if took.value is not None:
        one = rollouts_begun(point) == 1
        after = "The rollout is complete after" if one else "Each rollout is complete after at most"
        said.append(f"{after} {with_interval('rollout_duration_s', took)}.")
    else:
        said.append(f"{_subject(point)} {why('rollout_duration_s', took.state)}.")
    if still := _standstill(point):
        said.append(
            f"Replicas compute nothing for up to {human_seconds(still)} at a time, while versions load between two "
            "steps; with a spread of the rollout, only for one load at a time (rollouts[].spread)."
        )
    peak, usual = (point.value(f"{side}_peak_loads_per_s") for side in ("rollout", "before"))
    if peak is not None and usual is not None:
        said.append(
            f"Loads peak at {show('rollout_peak_loads_per_s', peak)} over ten seconds, against "
            f"{show('rollout_peak_loads_per_s', usual)} before."
        )
    extra = point.value("extra_resident_bytes_peak")
    if extra:
        said.append(f"During the rollout, old versions take up to {human_bytes(extra)} of extra GPU memory.")
    both, back = point.value("sessions_saw_both"), point.value("sessions_went_back")
    if both:
        said.append(
            f"{rounded(both)} sessions saw both versions; {rounded(back or 0)} of them went back to the older one."
        )
    return said


def _subject(point: Point) -> str:
    """Return the subject of when it was complete; old run directories don't say how many rollouts there are."""
    return "The rollout is" if rollouts_begun(point) == 1 else "The rollouts are"


def _identity(point: Point) -> list[str]:
    wrong, noticed, again = (point.value(n) for n in ("wrong_adapter_served", "wrong_adapter_detected", "retried"))
    if wrong is None:
        return []
    total = impact_of(point).requests / impact_of(point).replications
    return [
        f"{rounded(point.value('misrouted') or 0)} of {total:,.0f} requests did not reach their own adapter: "
        f"{rounded(wrong)} wrong answers went unnoticed, {rounded(noticed or 0)} were noticed, and "
        f"{rounded(again or 0)} requests were sent again."
    ]


def _faults(point: Point) -> list[str]:
    said = []
    lost, rerouted = point.value("lost"), point.value("rerouted")
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
    """Return what happened to those that came after the first event: unanswered, or slowest when.

    None where the timeline has too few spans to tell.
    """
    impact = impact_of(point)
    came = (impact.requests - (impact.requests_before or 0)) / impact.replications
    unanswered = (impact.unanswered_after or 0) / impact.replications
    if unanswered > _MANY * came:
        none = f"{rounded(unanswered)} had no answer when the run ended"
        return f"Of the {rounded(came)} requests after it began, {none}."
    begins = min((event["t_s"] for event in point.events if event["t_s"] > 0), default=0.0)
    times, means = point.timeline.t_s, point.timeline.e2e_mean_s
    known = [(value, time) for value, time in zip(means, times, strict=True) if value is not None]
    after = [pair for pair in known if pair[1] >= begins]
    if len(known) < 3 or not after:
        return None
    usual_s = sorted(value for value, _ in known)[len(known) // 2]
    worst_s, worst_at_s = max(after)
    return (
        f"Latency peaks at about {human_seconds(worst_at_s)} into the run: {human_seconds(worst_s)} on "
        f"average, against {human_seconds(usual_s)} usually (first replication)."
    )


def rerouted_sentence(points: Sequence[Point], axes: Sequence[Axis]) -> list[str]:
    """Return how long the requests take that restart on another replica, against all."""
    some = [p for p in points if p.value("rerouted_e2e_mean_s") is not None]
    if not some:
        return []
    if len(some) > MANY_POINTS:
        some = [some[0], some[-1]]
    phrases = [f"{value_words(p, 'rerouted_e2e_mean_s')}{f' with {label_of(p, axes)}' if axes else ''}" for p in some]
    usual = show("e2e_mean_s", some[0].value("e2e_mean_s"))
    return [f"Rerouted requests take on average {'; '.join(phrases)}; all requests take {usual}."]


def value_words(point: Point, name: str) -> str:
    """Return a metric's value with its interval, and whether it is unsettled."""
    metric: Metric = point.metrics[name]
    return with_interval(name, metric) + ("" if metric.settled else ", unsettled")


# Fleets that grow and shrink, and adapters that move.


def scaling_sentences(point: Point) -> list[str]:
    """Return how many replicas there were, and what their starts did; nothing of a fleet that stays as it is.

    How many are late is left out where cold starts limit the point: then ``limit_sentence`` has it.
    """

    mean = point.value("mean_replicas")
    if mean is None:
        return []
    cold_s, loads = point.value("cold_start_mean_s"), point.value("new_replica_loads")
    if cold_s is None or loads is None:
        return [f"There are {number(mean)} replicas on average, and none starts in the measured time."]
    started = number(point.value("replicas_started") or 0.0)
    each = f"each after {human_seconds(cold_s)}" if cold_s else "each at once"
    said = [
        f"There are {number(mean)} replicas on average; in the measured time {started} start, {each}, and make "
        f"{number(loads)} loads in their first minute."
    ]
    late, otherwise = point.value("late_while_starting"), point.value("late_otherwise")
    said_already = any(limit.evidence is Evidence.COLD_STARTS for limit in limits(point))
    if late is not None and otherwise is not None and not said_already:
        said.append(
            f"{percent(late)} of the requests that arrive while a replica starts are late, and {percent(otherwise)} of "
            "the others."
        )
    return said


def placement_sentences(point: Point) -> list[str]:
    """Return what moves of adapters cost; nothing where no controller places them."""

    moves, share = point.value("placement_moves"), point.value("placed_share")
    if moves is None:
        return []
    placed = "" if share is None else f"{percent(share)} of the requests are for adapters that have a place"
    if not moves:
        return [f"No adapter moves: {placed}." if placed else "No adapter moves."]
    loads, seconds = point.value("placement_loads") or 0.0, point.value("placement_load_s") or 0.0
    cost = "none of these moves costs a load"
    if loads:
        cost = f"{number(loads)} of these moves cost a load, {human_seconds(seconds)} in total"
    moved = f"Per replication, the controller moves {number(moves)} adapters: {cost}."
    return [f"{moved} {placed}." if placed else moved]


# Rollouts that were held back.


def held_back_sentences(points: Sequence[Point]) -> list[str]:
    """Return which rollouts were held back and what that avoided, the most important first; nothing where none is."""
    found = [point for point in points if point.held_back]
    if not found:
        return []
    point = found[0]
    held = point.held_back
    assert held is not None, "something is held back there"
    where = "" if len(found) == len(points) else f" at {len(found)} of {len(points):,} points"
    answered, total = held.answered, max(1, held.requests)
    count = f"{answered.value:,.0f} of {total:,} requests, {percent(answered.value / total)}"
    return [
        f"Held back{where}: {'; '.join(why_held_back(row) for row in held.rollouts)}. "
        f"The version held back would have answered {count}.",
        f"If it had been rolled out: {_changes(held)}.",
    ]


def why_held_back(row: HeldBackRollout) -> str:
    """Return which rollout was held back, and what the first failing version shows."""
    failing = [each for each in row.vetted if not each["passes"]]
    surest = next(iter(failing[0]["findings"]), None)  # what fails without one could not be judged
    shows = "can't be judged" if surest is None else f"shows {surest['mode']} ({surest['confidence']})"
    more = f" and {len(failing) - 1} more fail" if len(failing) > 1 else ""
    return f"rollouts.{row.rollout}, {failing[0]['path']} {shows}{more}"


def _changes(held: HeldBack) -> str:
    phrases = []
    for name in _SHOWN:
        found = held.metrics.get(name)
        if found is not None and found.one is not None and found.other is not None:
            change = f" ({clear_change(name, found)})" if name != "rollout_loads" else ""
            words = metric_words(name).removesuffix(" during")
            phrases.append(f"{words} {show(name, found.one)} → {show(name, found.other)}{change}")
    return ", ".join(phrases) or "nothing was measured"


def clear_change(name: str, found: Difference) -> str:
    """Return which way a metric would have changed, with the interval; ``no clear change`` where that is open."""
    if found.lo is None or found.hi is None:
        return "one replication gives no interval"
    word = _SHORT.get(found.word)
    between = f"{signed(name, found.lo, found.unit)} to {signed(name, found.hi, found.unit)}"
    return f"{word}: {between}" if word else "no clear change"


def count_bounds(count: Count) -> str:
    """Return the interval of a count, in brackets; empty where there is none."""
    return "" if count.lo is None else f" ({count.lo:,.0f} to {count.hi:,.0f})"
