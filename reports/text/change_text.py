"""What rollouts, faults and routers did, in sentences: what the top box says of such scenarios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reports.answers.change_comparison import (
    MANY_POINTS,
    Contrast,
    any_value,
    compared_metrics,
    find_extremes,
    late_counts,
    least_added,
    points_at_worst,
    rank_impact,
    rank_routers,
    rerouted_points,
    shown_designs,
)
from reports.answers.change_findings import (
    aftermath,
    compares_routers,
    has_rollout,
    impact_of,
    impact_parts,
    is_changed,
    latency_name,
    rollouts_begun,
    slow_before,
    value_of,
)
from reports.answers.severity import FaultSeries, fault_series, growing, never_happens
from reports.axes import Axis, in_order
from reports.formatting import metric_words, percent, show
from reports.text.metric_text import capital, why, with_interval
from sim.results.point import Metric, Point
from sim.spec.units import human_bytes, human_seconds

IMPACT_WORDS = {
    "mixed": "mixed versions",
    "stale": "stale",
    "refused_by_rollout": "refused by the rollout",
    "wrong_served": "unnoticed wrong answers",
    "old_prefix": "old prefixes",
    "lost": "lost",
    "failed_loads": "failed loads",
    "failed": "failed",
    "slow": "slow",
}
"""The kinds of impact on a request, in words."""


def composition(point: Point) -> str:
    """Return what harmed the requests of a point, most frequent first: ``108 slow, 95 mixed versions``."""
    return ", ".join(f"{count:,} {IMPACT_WORDS[kind]}" for kind, count in impact_parts(point))


def harmed_words(point: Point) -> str:
    """Return how many requests were harmed, of how many, and by what."""
    count, total = int(value_of(point, "harmed") or 0), impact_of(point).requests
    if not count:
        return f"none of {total:,}"
    return f"{count:,} of {total:,}, {percent(count / max(total, 1))} ({composition(point)})"


def _without_answer(point: Point) -> list[str]:
    """Return how many had no answer when the run ended: those late by then, or, without targets to judge by, all."""
    unanswered, late = impact_of(point).unanswered, impact_of(point).slow_unanswered
    if late is None and unanswered:
        return [
            f"{unanswered:,} had no answer when the run ended, and no target in the slo says which of them are late"
        ]
    if not late:
        return []
    if late == value_of(point, "harmed"):
        return ["none of them had an answer when the run ended"]
    return [f"{late:,} of the slow ones had no answer when the run ended"]


def change_sentences(point: Point, slo_terms: Mapping[str, float]) -> list[str]:
    """Return what rollouts and faults did to one point, the most important first; nothing where there are none."""
    if point.impact is None:
        return []
    harmed = "; ".join([f"Requests harmed: {harmed_words(point)}", *_without_answer(point)])
    said = [*_identity(point), f"{harmed}.", *_slow_anyway([point])]
    if has_rollout([point]):
        said += _rollout(point, slo_terms)
    elif value_of(point, "wrong_adapter_served") is None and (peak := _afterwards(point)) is not None:
        said.append(peak)
    return said + _faults(point)


def _slow_anyway(points: Sequence[Point]) -> list[str]:
    """Return how many requests were slow before any rollout or fault: not all slow ones are its doing."""
    found = slow_before(points)
    if found is None:
        return []
    what = "rollout" if found.by_rollout else "fault"
    said = f"Before the {what}, {percent(found.share)} of the requests were already slow"
    (metric,) = [p.metrics.get("harmed_excess") for p in points] if len(points) == 1 else (None,)
    if metric is None or metric.value is None:
        return [f"{said}."]
    more = with_interval("harmed_excess", metric)
    return [f"{said}. Beyond that share, {more} of the later requests were harmed."]


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
        said.append(f"Old versions kept alongside new ones take up to {human_bytes(extra)} of GPU memory.")
    both, back = value_of(point, "sessions_saw_both"), value_of(point, "sessions_went_back")
    if both:
        said.append(f"{both:,.0f} sessions saw both versions; {back or 0:,.0f} of them went back to the older one.")
    return said


def _subject(point: Point) -> str:
    """Return the subject of when it was complete; old run directories don't say how many rollouts there are."""
    begun = rollouts_begun(point)
    return "The rollout is" if begun == 1 else "All rollouts together are" if begun else "All rollouts are"


def _identity(point: Point) -> list[str]:
    wrong, noticed, again = (value_of(point, n) for n in ("wrong_adapter_served", "wrong_adapter_detected", "retried"))
    if wrong is None:
        return []
    return [
        f"{value_of(point, 'misrouted') or 0:,.0f} of {impact_of(point).requests:,} requests did not reach their own "
        f"adapter: {wrong:,.0f} wrong answers went unnoticed, {noticed or 0:,.0f} were noticed, and "
        f"{again or 0:,.0f} requests were sent again."
    ]


def _faults(point: Point) -> list[str]:
    said = []
    lost, rerouted = value_of(point, "lost"), value_of(point, "rerouted")
    if lost is not None and rerouted is not None:
        said.append(f"{lost:,.0f} requests were lost with their replica; {rerouted:,.0f} were sent to another one.")
    said += _rerouted([point], [])
    impact = impact_of(point)
    if impact.failed_loads:
        said.append(f"{impact.failed_loads:,} requests failed because their adapter could not be loaded.")
    if impact.old_prefix:
        said.append(f"{impact.old_prefix:,} requests found a prefix that an older version had computed.")
    return said


def _afterwards(point: Point) -> str | None:
    """Return what happened to those that came after the first event: unanswered, or slowest when."""
    found = aftermath(point)
    if found.stuck:
        return f"Of the {found.came:,} requests after it began, {found.unanswered:,} had no answer when the run ended."
    if found.worst_s is None or found.worst_at_s is None or found.usual_s is None:
        return None
    return (
        f"Latency peaks at about {human_seconds(found.worst_at_s)} into the run: {human_seconds(found.worst_s)} on "
        f"average, against {human_seconds(found.usual_s)} usually (first replication)."
    )


def compare(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> list[str]:
    """Return what a sweep says of rollouts, faults or routers, the most important first; nothing where it has none."""
    if is_changed(points):
        changed = [point for point in points if point.impact]  # rollouts that were held back changed nothing
        if len(changed) == 1 < len(points):
            headline, *more = change_sentences(changed[0], slo_terms)
            return [f"With {label_of(changed[0], axes)}: {headline[:1].lower()}{headline[1:]}", *more]
        return _compare_impact(changed, axes, slo_terms)
    if compares_routers(points, axes):
        return _compare_routers(points, axes, slo_terms)
    return []


def label_of(point: Point, axes: Sequence[Axis]) -> str:
    """Return a point's swept values: quantities with their key in words, names as they are."""
    return ", ".join(axis.point_phrase(point) if axis.numeric else axis.point_label(point) for axis in axes)


def _compare_impact(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> list[str]:
    if growing(axes):  # how bad the fault is isn't a choice
        said = growing_impact(points, axes) or _rank_impact(points, axes)
        if not any(never_happens(axis) for axis in growing(axes)):  # there, the difference to the healthy point says it
            said += [*_at_worst(points, axes), *_slow_anyway(points)]
    else:
        said = _rank_impact(points, axes) + _slow_anyway(points)
    ordered = in_order(points, axes)
    if has_rollout(points):
        rollouts = _compare_rollouts(ordered, axes, slo_terms)
        # Names are strategies, whose impact differs in kind. With a quantity, the same impact is larger or smaller.
        said = [*rollouts, *said] if all(axis.numeric for axis in axes) else [*said, *rollouts]
    else:
        said += _compare_faults(ordered, axes, slo_terms)
    return [*_wrong_answers(ordered, axes), *said]


def _at_worst(points: Sequence[Point], axes: Sequence[Axis]) -> list[str]:
    """Return the impact in each design where the fault is worst."""
    worse = growing(axes)
    others = [axis for axis in axes if axis not in worse]
    worst = points_at_worst(points, axes)
    if not worst:
        return []
    phrases = [f"{harmed_words(p)}{f' with {label_of(p, others)}' if others else ''}" for p in worst]
    return [f"In all, with {label_of(worst[0], worse)}: {'; '.join(phrases)}."]


def _rank_impact(points: Sequence[Point], axes: Sequence[Axis]) -> list[str]:
    """Return with what fewest and most requests are harmed: beyond what is slow anyway, where that is known."""
    found = rank_impact(points, axes)
    beyond = found.name == "harmed_excess"
    if found.equal:
        return [f"The same number of requests is harmed at every point: {harmed_words(found.best)}."]

    def described(point: Point) -> str:
        excess = f"{with_interval(found.name, point.metrics[found.name])}; in all " if beyond else ""
        return f"{label_of(point, axes)}: {excess}{harmed_words(point)}"

    more = " beyond those that are slow anyway" if beyond else ""
    said = [f"Fewest requests are harmed{more} with {described(found.best)}. Most with {described(found.worst)}."]
    if found.close:
        close = _listed([label_of(p, axes) for p in found.close])
        said.append(f"Not certainly fewer than with {close}: the interval of the difference reaches 0.")
    return said


def _wrong_answers(points: Sequence[Point], axes: Sequence[Axis]) -> list[str]:
    """Return how many wrong answers went unnoticed at each point, and how many requests were late there."""
    if not any_value(points, "wrong_adapter_served"):
        return []
    if len(points) > MANY_POINTS:
        return extremes(points, axes, "wrong_adapter_served")
    phrases = [f"{value_of(p, 'wrong_adapter_served') or 0:,.0f} with {label_of(p, axes)}" for p in points]
    said = f"Unnoticed wrong answers: {', '.join(phrases)}"
    late = late_counts(points)
    if late is not None:
        said += f"; late: {', '.join(f'{count:,}' for count in late)} (in the same order)"
    return [f"{said}."]


def _compare_rollouts(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> list[str]:
    name = latency_name(points, slo_terms)
    said = extremes(points, axes, "rollout_peak_loads_per_s", tail=_before(points, "before_peak_loads_per_s"))
    said += extremes(points, axes, f"rollout_{name}", tail=_before(points, f"before_{name}"))
    took = [(point, point.metrics["rollout_duration_s"]) for point in points]
    colon = "" if all(not axis.numeric for axis in axes) else ":"
    done = [f"{label_of(p, axes)}{colon} {show('rollout_duration_s', m.value)}" for p, m in took if m.value is not None]
    open_ = [label_of(p, axes) for p, m in took if m.value is None]
    if len(points) <= MANY_POINTS:
        phrases = [f"Complete after: {', '.join(done)}."] if done else []
        phrases += [f"Not complete in every replication: {_listed(open_)}."] if open_ else []
        said.append(" ".join(phrases))
    return said


def _before(points: Sequence[Point], name: str) -> str:
    """Return what a metric was before; it hardly differs from point to point, unless the sweep is of something else."""
    known = sorted(value for p in points if (value := value_of(p, name)) is not None)
    if not known:
        return ""
    low, high = show(name, known[0]), show(name, known[-1])
    return f", against {low if low == high else f'{low} to {high}'} before"


def _compare_faults(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> list[str]:
    said = []
    for name, concerned in compared_metrics(points, latency_name(points, slo_terms)):
        said += _one_or_extremes(concerned, axes, name)
    return said + _rerouted(points, axes)


def _one_or_extremes(points: Sequence[Point], axes: Sequence[Axis], name: str) -> list[str]:
    if len(points) > 1:
        return extremes(points, axes, name)
    return [f"{capital(metric_words(name))}: {_value(p, name)} with {label_of(p, axes)}." for p in points]


def _rerouted(points: Sequence[Point], axes: Sequence[Axis]) -> list[str]:
    """Return how long the requests take that restart on another replica, against all."""
    some = rerouted_points(points)
    if not some:
        return []
    phrases = [f"{_value(p, 'rerouted_e2e_mean_s')}{f' with {label_of(p, axes)}' if axes else ''}" for p in some]
    usual = show("e2e_mean_s", value_of(some[0], "e2e_mean_s"))
    return [f"Rerouted requests take on average {'; '.join(phrases)}; all requests take {usual}."]


def extremes(points: Sequence[Point], axes: Sequence[Axis], name: str, tail: str = "") -> list[str]:
    """Return where a metric is certainly lowest and highest, or between what values it lies where that may be chance.

    :returns: a list of one sentence, or of none where nothing is known.
    """
    found = find_extremes(points, name)
    if found is None:
        return []
    low, high = found.low, found.high
    words = capital(metric_words(name))
    if found.contrast is Contrast.EQUAL:
        return [f"{words}: {show(name, value_of(low, name))} at every point{tail}."]
    if found.contrast is Contrast.UNCLEAR:
        return [
            f"{words}: {show(name, value_of(low, name))} to {show(name, value_of(high, name))}{tail}, without a clear "
            "difference."
        ]
    paired = found.contrast is Contrast.CLEAR_IN_PAIRS
    hedge = " (clear in the same replications, though the intervals overlap)" if paired else ""
    return [
        f"{words}: lowest with {label_of(low, axes)}, {_value(low, name)}; highest with {label_of(high, axes)}, "
        f"{_value(high, name)}{tail}{hedge}."
    ]


def _value(point: Point, name: str) -> str:
    metric: Metric = point.metrics[name]
    return with_interval(name, metric) + ("" if metric.settled else ", unsettled")


def _compare_routers(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> list[str]:
    """Return which routers to choose, and what they save."""
    found = rank_routers(points, axes, latency_name(points, slo_terms))
    if found is None:
        return []
    ordered, words = in_order(points, axes), metric_words(found.name)
    low, high = (show(found.name, value_of(point, found.name)) for point in (found.best[0], found.best[-1]))
    range_ = low if low == high else f"{low} to {high}"
    if found.other is None:
        said = f"The router makes no clear difference: {words} is {range_} with all of them."
    else:
        *some, last = [label_of(point, axes) for point in found.best[:MANY_POINTS]]
        said = (
            f"Use {' or '.join(filter(None, [', '.join(some), last]))}: {words} is {range_} instead of "
            f"{show(found.name, value_of(found.other, found.name))} with {label_of(found.other, axes)}."
        )
    return [said, *extremes(ordered, axes, "loads_per_request"), *extremes(ordered, axes, "replica_load_skew")]


def _listed(labels: Sequence[str]) -> str:
    """Return labels as a list in a sentence, cut where there are many."""
    if len(labels) > MANY_POINTS:
        return f"{', '.join(labels[:MANY_POINTS])} and {len(labels) - MANY_POINTS} more"
    return " and ".join(filter(None, [", ".join(labels[:-1]), labels[-1]]))


def growing_impact(points: Sequence[Point], axes: Sequence[Axis]) -> list[str]:
    """Return how many more requests a worse fault harms in each design, the worst first, and where it adds least."""
    worse, designs = growing(axes), fault_series(points, axes)
    if not designs:
        return []
    shown = shown_designs(designs)
    total = first.requests if (first := designs[0].points[0].impact) is not None else 0
    last = len(designs[0].points) - 1
    said = [
        f"{capital(_step(shown[0].points[last], shown[0].points[0], worse))} harms {_each(shown, last)} (of {total:,})."
    ]
    if last > 1:
        steps = [
            f"{worse[0].point_label(designs[0].points[step])}: {_values(shown, step)}"
            for step in range(last - 1, 0, -1)
        ]
        said.append(f"{capital('; '.join(steps))}{' (in the same order)' if len(shown) > 1 else ''}.")
    found = least_added(designs)
    if found is not None and not found.certain:
        said.append("It is not certain in which of these designs the fault adds least.")
    elif found is not None:
        close = ", ".join(_design(design) for design in found.close)
        hedge = f", not certainly less than with {close}" if close else ""
        said.append(f"The fault adds least with {_design(found.best)}{hedge}.")
    return said + _anyway(shown, worse)


def _design(series: FaultSeries) -> str:
    """Return what else is swept, in words; empty where nothing is."""
    return label_of(series.points[0], series.others)


def _added(series: FaultSeries, step: int) -> str:
    """Return how many more requests a step harms than the mildest fault, with the interval."""
    added = series.added(step)
    if added.lo is None or added.hi is None:
        return f"{added.count:,}"
    return f"{added.count:,} ({added.lo:,.0f} to {added.hi:,.0f})"


def _step(worst: Point, mildest: Point, worse: Sequence[Axis]) -> str:
    """Return the worst fault against the mildest, in words: ``time to notice 30 s instead of 0 s``."""
    said = [
        axis.point_phrase(worst) + ("" if never_happens(axis) else f" instead of {axis.point_label(mildest)}")
        for axis in worse
    ]
    return ", ".join(said)


def _each(designs: Sequence[FaultSeries], step: int) -> str:
    found = [f"{_added(d, step)} more requests" if i == 0 else _added(d, step) for i, d in enumerate(designs)]
    return ", ".join(f"{text} with {_design(d)}" if d.others else text for text, d in zip(found, designs, strict=True))


def _values(designs: Sequence[FaultSeries], step: int) -> str:
    return ", ".join(_added(design, step) for design in designs)


def _anyway(designs: Sequence[FaultSeries], worse: Sequence[Axis]) -> list[str]:
    """Return how many are slow where the fault never happens."""
    if len(worse) != 1 or not never_happens(worse[0]):
        return []
    healthy = [(int(design.points[0].metrics["harmed"].value or 0), _design(design)) for design in designs]
    phrases = ", ".join(f"{count:,} with {label}" if label else f"{count:,}" for count, label in healthy)
    return [f"Without the fault it is {phrases}."]
