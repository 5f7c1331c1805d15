"""What rollouts, faults and routers did, in sentences: what the top box says of such scenarios.

Counts are those of one rollout or fault: means over the replications.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reports.answers.change_comparison import (
    MANY_POINTS,
    Contrast,
    Ranking,
    any_value,
    compared_metrics,
    find_extremes,
    impact_name,
    late_counts,
    meeting,
    rank_impact,
    rank_routers,
    rerouted_points,
    telling_kinds,
)
from reports.answers.change_findings import (
    SOME,
    aftermath,
    compares_routers,
    has_clear_impact,
    has_rollout,
    impact_of,
    impact_parts,
    is_changed,
    latency_name,
    per_event,
    rollouts_begun,
    value_of,
)
from reports.answers.severity import FaultSeries, fault_series, growing
from reports.axes import Axis, in_order
from reports.formatting import metric_words, show
from reports.text.metric_text import capital, why, with_interval
from sim.results.point import Metric, Point
from sim.results.verdict import MET, NO_SLO, NOT_MET, PROBABLY_MET, verdict
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
_FEW = 4
"""Replications from which on designs are ranked: the intervals of fewer say too little."""
_DOES = {
    "mixed": "mixes versions in {n} answers",
    "stale": "leaves {n} stale answers",
    "refused_by_rollout": "refuses {n} requests",
    "wrong_served": "lets {n} wrong answers pass",
    "old_prefix": "reuses {n} old prefixes",
    "lost": "loses {n} requests",
    "failed_loads": "fails {n} requests with their loads",
    "failed": "fails {n} requests",
}
"""What a design does to requests, by the kind of impact."""


def rounded(count: float) -> str:
    """Return a count to read: three digits, and whole from ten on."""
    few = f"{round(count, 1) + 0.0:.1f}".removesuffix(".0")  # adding 0 turns −0 into 0
    return (few if abs(count) < 10 else f"{float(f'{count:.3g}'):,.0f}").replace("-", "−")


def with_bounds(metric: Metric) -> str:
    """Return a mean count with its interval, rounded alike."""
    text = rounded(metric.value or 0.0)
    if metric.lo is None or metric.hi is None or metric.lo == metric.hi:
        return text
    return f"{text} ({rounded(metric.lo)} to {rounded(metric.hi)})"


def composition(point: Point) -> str:
    """Return what the impact of a point consists of, most frequent first: ``108 late, 95 mixed versions``."""
    return ", ".join(f"{rounded(count)} {IMPACT_WORDS[kind]}" for kind, count in impact_parts(point) if count >= SOME)


def cause_words(points: Sequence[Point]) -> str:
    """Return what changed: ``the rollout``."""
    if has_rollout(points):
        return "the rollouts" if any(rollouts_begun(point) > 1 for point in points) else "the rollout"
    return "the crash" if all(value_of(p, "lost") is not None for p in points) else "the fault"


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
    said = _impact_clause(point)
    if found == NO_SLO:
        return f"{capital(said)}."
    contrast = has_clear_impact(point) and found in (MET, PROBABLY_MET)
    return f"{opening}, {'but' if contrast else 'and'} {said}."


def _impact_clause(point: Point) -> str:
    """Return what a change did: ``the rollout affected 63 (50 to 76) of 39,000 requests: 60 stale answers``."""
    cause, metric = cause_words([point]), point.metrics[impact_name([point])]
    total = f"{impact_of(point).requests / impact_of(point).replications:,.0f} requests"
    beyond = " beyond the usual" if impact_name([point]) == "harmed_excess" else ""
    if not has_clear_impact(point) and beyond:
        if not metric.value:
            return f"{cause} affected none of {total}{beyond}"
        return f"{cause} had no clear impact: {with_bounds(metric)} of {total} affected{beyond}"
    parts = composition(point)
    return f"{cause} affected {with_bounds(metric)} of {total}{beyond}{f': {parts}' if parts else ''}"


def change_sentences(point: Point, slo_terms: Mapping[str, float]) -> list[str]:
    """Return more of what rollouts and faults did to one point, the most important first; nothing without any."""
    if point.impact is None:
        return []
    said = [*_identity(point), *_without_answer(point), *_usual(point)]
    if has_rollout([point]):
        said += _rollout(point, slo_terms)
    elif value_of(point, "wrong_adapter_served") is None and (peak := _afterwards(point)) is not None:
        said.append(peak)
    return said + _faults(point)


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
    return [f"{rounded(usual)} more are late, as they are without {cause_words([point])}."] if usual >= SOME else []


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
    said += _rerouted([point], [])
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


def compare(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> list[str]:
    """Return what a sweep says of rollouts, faults or routers, the most important first; nothing where it has none."""
    if is_changed(points):
        changed = [per_event(point) for point in points if point.impact]  # held-back rollouts changed nothing
        if len(changed) == 1 < len(points):
            where = label_of(changed[0], axes)
            return [f"With {where}, {_impact_clause(changed[0])}.", *change_sentences(changed[0], slo_terms)]
        return _compare_impact(changed, axes, slo_terms)
    if compares_routers(points, axes):
        return _compare_routers(points, axes, slo_terms)
    return []


def label_of(point: Point, axes: Sequence[Axis]) -> str:
    """Return a point's swept values: quantities with their key in words, names as they are."""
    return ", ".join(axis.point_phrase(point) if axis.numeric else axis.point_label(point) for axis in axes)


def _compare_impact(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> list[str]:
    series = fault_series(points, axes) if growing(axes) else []
    said = _compare_series(series, axes, slo_terms) if series else _recommend(points, axes, slo_terms)
    ordered = in_order(points, axes)
    if has_rollout(points):
        said += _compare_rollouts(ordered, axes, slo_terms)
    else:
        said += [*_wrong_answers(ordered, axes), *_compare_faults(ordered, axes, slo_terms)]
    return said


def _recommend(
    points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float], step: str = ""
) -> list[str]:
    """Return which designs to choose: those with the least impact, among those that may meet the SLO.

    :param step: how bad the fault is, in words.
    """
    some = meeting(points, slo_terms)
    left = [point for point in in_order(points, axes) if point not in some]
    found = rank_impact(some, axes)
    name, least = found.name, value_of(found.best[0], found.name) or 0.0
    within = any((value_of(point, name) or 0.0) < least for point in left)
    said = [_recommendation(found, axes, step, within=within), *_what_differs(found, axes)]
    if left:
        where = f"With {step}, the" if step else "The"
        phrases = [f"{label_of(p, axes)}, which affects {with_bounds(p.metrics[name])} requests" for p in left]
        said.append(f"{where} SLO is not met with {'; nor with '.join(phrases[:MANY_POINTS])}.")
    elif len(some) > 1 and all(verdict(point, slo_terms) == NOT_MET for point in some):
        said.append(f"{f'With {step}, no' if step else 'No'} design meets the SLO.")
    return said


def _recommendation(found: Ranking, axes: Sequence[Axis], step: str, *, within: bool) -> str:
    """Return the designs with the least impact, and how much more the others have.

    :param within: whether designs that miss the SLO have less, so that they need to be excluded in words.
    """
    first, cause = found.best[0], cause_words((*found.best, *found.rest))
    beyond = " beyond the usual" if found.name == "harmed_excess" else ""
    where, per = f"with {step}, " if step else "", cause.removeprefix("the ").removesuffix("s")
    counts = [f"{with_bounds(p.metrics[found.name])} with {label_of(p, axes)}" for p in found.others[:MANY_POINTS]]
    more = f", against {', '.join(counts)}" if counts else ""
    own, hedge = with_bounds(first.metrics[found.name]), "" if found.certain else f" {_NO_INTERVAL}"
    if len(found.choice) == 1:
        said = f"Least impact{' within the SLO,' if within else ''} with {label_of(first, axes)}: "
        return f"{said}{where}{cause} affects {own} requests{beyond}{_in_brackets(composition(first))}{more}.{hedge}"
    few, many = (rounded(choose(value_of(p, found.name) or 0.0 for p in found.choice)) for choose in (min, max))
    between = f"{where}{few if few == many else f'{few} to {many}'} affected requests per {per}{beyond}"
    labels = [label_of(p, axes) for p in found.choice]
    if not found.others and few != many and len(first.metrics[found.name].parts) < _FEW:
        return f"Too few replications to rank {_listed(labels)}: {between}. Set run.replications to {_FEW} or more."
    if not found.others:
        return f"No clear difference between {_listed(labels)}: {between}."
    start = capital(_listed(labels, "or"))
    if len(found.others) < len(found.choice) and not within:
        start = f"Any but {_listed([label_of(p, axes) for p in found.others])}"
    worst = _in_brackets(composition(found.others[-1])) if len(found.others) == 1 else ""
    if found.choice == found.best:
        return f"{start}: {between}, without a clear difference{more}{worst}."
    least = f" Of these, least with {_listed([label_of(p, axes) for p in found.best])}." if found.certain else hedge
    return f"{start}: {between}{more}{worst}.{least}"


_NO_INTERVAL = "Small differences may be chance: set run.replications=4 for intervals."


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _what_differs(found: Ranking, axes: Sequence[Axis]) -> list[str]:
    """Return what only some of the designs to choose from do to requests."""
    telling = telling_kinds(found.choice) if len(found.choice) > 1 else []
    phrases = [
        f"{label_of(point, axes)} {_DOES[kind].format(n=f'about {max(1.0, count):,.0f}')}"
        for point, kind, count in telling
    ]
    return [f"{capital('; '.join(phrases))}."] if phrases and len(phrases) <= MANY_POINTS else []


def _compare_series(series: Sequence[FaultSeries], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> list[str]:
    """Return in which design the worst fault has the least impact, and the impact as the fault becomes worse."""
    name, others, worse = impact_name([p for each in series for p in each.points]), series[0].others, growing(axes)
    worst = [each.points[-1] for each in series]
    said = _recommend(worst, others, slo_terms, label_of(worst[0], worse)) if len(series) > 1 else []
    beyond = " beyond the usual" if name == "harmed_excess" else ""
    for each in series if len(series) <= MANY_POINTS else (series[0], series[-1]):
        counts = [with_bounds(p.metrics[name]) for p in each.points]
        steps = [label_of(p, worse) if i == 0 else _step(p, worse) for i, p in enumerate(each.points)]
        first, *more = [f"{count} with {step}" for count, step in zip(counts, steps, strict=True)]
        design = f"With {label_of(each.points[0], others)}, " if others else ""
        listed = ", ".join([first.replace(" with", f" requests{beyond} with", 1), *more])
        said.append(f"{capital(f'{design}{cause_words(worst)}')} affects {listed}.")
    return said


def _step(point: Point, worse: Sequence[Axis]) -> str:
    """Return how bad a fault is, without the key where there is only one."""
    return worse[0].point_label(point) if len(worse) == 1 else label_of(point, worse)


def _wrong_answers(points: Sequence[Point], axes: Sequence[Axis]) -> list[str]:
    """Return how many wrong answers went unnoticed at each point, and how many requests were late there."""
    if not any_value(points, "wrong_adapter_served"):
        return []
    if len(points) > MANY_POINTS:
        return extremes(points, axes, "wrong_adapter_served")
    phrases = [f"{rounded(value_of(p, 'wrong_adapter_served') or 0)} with {label_of(p, axes)}" for p in points]
    said = f"Unnoticed wrong answers: {', '.join(phrases)}"
    late = late_counts(points)
    if late is not None:
        said += f"; late: {', '.join(map(rounded, late))} (in the same order)"
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


def _listed(labels: Sequence[str], word: str = "and") -> str:
    """Return labels as a list in a sentence, cut where there are many.

    :param word: before the last one.
    """
    if len(labels) > MANY_POINTS:
        return f"{', '.join(labels[:MANY_POINTS])} and {len(labels) - MANY_POINTS} more"
    return f" {word} ".join(filter(None, [", ".join(labels[:-1]), labels[-1]]))
