"""The answer at one point in words: does it meet the SLO, what limits it, how sure is that.

No HTML and no heavy import: the terminal's table prints the same words as the report.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, auto

from reports.answers.limits import LOADING, NO_LIMIT, Evidence, Limit, busy_buckets, limits
from reports.answers.points import has_rollout
from reports.answers.verdicts import deciding_term, main_metric
from reports.formatting import listed, metric_words, percent, show
from reports.text.headroom_text import failing_limit, first_limit, headroom_sentences
from reports.text.limit_text import (
    MORE_COPIES,
    MORE_SLOTS,
    buckets_sentence,
    in_keys_of_scenario,
    limit_line,
    limit_sentence,
    limit_words,
    overload_words,
    remedy_words,
)
from reports.text.metric_text import capital, says_unserved, term_sentence, unserved_words, with_interval
from reports.text.setup_text import bill, cost_sentences
from reports.text.verdict_text import Trust, find_trust, more_of, other_tenants_sentences, verdict_opening, whose_slo
from sim.results.model import Impact
from sim.results.point import Point
from sim.results.run_directory.headroom_record import EMPTY_CACHES, NEVER, Headroom
from sim.results.slo_terms import is_gap, judged, metric_of, split_term, with_tenants
from sim.results.verdict import (
    MET,
    NO_SLO,
    NOT_MET,
    PROBABLY_NOT,
    UNCLEAR,
    graded_verdict,
    is_overloaded,
    open_by_costs,
    strained,
    term_verdict,
    verdict,
)
from sim.studies.changes.findings import (
    cause_of,
    change_sentences,
    has_wrong_answers,
    held_back_sentences,
    impact_headline,
    is_rolled_back,
    missed_by_gates,
    placement_sentences,
    scaling_sentences,
    setback,
    starved_gate,
)


@dataclass(frozen=True)
class Answer:
    """What a reader wants to know first.

    :ivar headline: one sentence with value, unit and interval.
    :ivar details: further sentences, the most useful first.
    :ivar verdict: ``met``, ``not met``, ``unclear`` or ``no SLO``.
    :ivar binding: name of what limits it: see ``Limit.name``.
    :ivar binding_sentence: why, with numbers.
    :ivar headroom: at what multiple of the traffic the SLO fails; empty where that was not simulated.
    :ivar trust: how sure it is, and how well its numbers are known.
    :ivar setting: what to set; ``first_limit``: what breaks first, and when; ``bill``: what it takes.
    """

    headline: str
    details: list[str]
    verdict: str
    binding: str
    binding_sentence: str
    headroom: str
    trust: Trust
    setting: str
    first_limit: str
    bill: str

    def short(self) -> list[tuple[str, str]]:
        """Return what follows the headline in the short answer: label and sentences."""
        said = [("Set", self.setting), ("First limit", self.first_limit), ("Bill", self.bill)]
        return [line for line in (*said, ("Trust", self.trust.sentence)) if line[1]]

    def to_json(self) -> dict[str, str]:
        """Return the verdict and the lines of the short answer, as scripts get them."""
        return {
            "verdict": self.verdict,
            "headline": self.headline,
            "set": self.setting,
            "first_limit": self.first_limit,
            "bill": self.bill,
            "trust": self.trust.sentence,
        }


class Rank(IntEnum):
    """The order of what an answer says: its first statement is the headline."""

    HELD_BACK = auto()
    CHANGE = auto()
    VERDICT = auto()
    EFFECT = auto()
    UNSERVED = auto()
    TENANTS = auto()
    BOUNDARY = auto()
    CLIFF = auto()
    RANGE = auto()
    MEASURED = auto()
    LIMIT = auto()
    UNSETTLED = auto()
    FLEET = auto()
    COST = auto()
    ROUTER = auto()


def by_rank(statements: Mapping[Rank, Sequence[str]]) -> list[str]:
    """Return what there is to say, the headline first."""
    return [sentence for rank in sorted(statements) for sentence in statements[rank] if sentence]


_NAMED = 3
"""How many missed terms a headline names, at most."""


def _verdict(point: Point, slo_terms: Mapping[str, float], found: str, start: str) -> tuple[str, str | None]:
    """Return whether the SLO is met, after a ``start``, and the term or the metric whose sentence says so."""
    if found == NO_SLO:
        name = main_metric([point], slo_terms)
        metric = point.metrics.get(name)
        if metric is None or metric.value is None:
            return f"{start}There is not enough data for {metric_words(name)}.", None
        hedge = "" if metric.settled else ", unsettled"
        return f"{start}{capital(metric_words(name))} is {with_interval(name, metric)}{hedge}.", name
    deciding = deciding_term(point, slo_terms, found)
    target = with_tenants(slo_terms, point)[deciding]
    alone = len(whose_slo(point, slo_terms, deciding)) == 1  # the opening names the tenant
    said = [term_sentence(point, deciding, target, its=alone, bounds=found == UNCLEAR)]
    if found == NOT_MET:
        said += [
            term_sentence(point, n, slo_terms[n], bounds=False) for n in _missed(point, slo_terms) if n != deciding
        ]
    also = _other_tenants(point, slo_terms, deciding) if found == NOT_MET else ""
    return f"{start}{verdict_opening(point, slo_terms, deciding)}: {'; '.join(said[:_NAMED])}.{also}", deciding


def _other_tenants(point: Point, slo_terms: Mapping[str, float], deciding: str) -> str:
    """Return which tenants besides the one of the headline certainly miss their SLO."""
    terms = with_tenants({}, point)
    missed = dict.fromkeys(split_term(n)[0] for n, target in terms.items() if term_verdict(point, n, target) == NOT_MET)
    others = [name for name in missed if name not in whose_slo(point, slo_terms, deciding)]
    named = listed(others) if len(others) <= _NAMED else f"{len(others)} other tenants"
    return f" Nor is that of {named}." if others else ""


def _missed(point: Point, slo_terms: Mapping[str, float]) -> list[str]:
    """Return the terms of the fleet's SLO that a point certainly misses."""
    return [name for name, target in slo_terms.items() if term_verdict(point, name, target) == NOT_MET]


def _measured(point: Point, slo_terms: Mapping[str, float], shown: str | None) -> list[str]:
    """Return what was measured besides the metric that is ``shown`` already."""
    found = [f"{capital(term_sentence(point, name, target))}." for name, target in slo_terms.items() if name != shown]
    found += other_tenants_sentences(point, shown)
    lost = unserved_words(point)
    unserved_limit = any(limit.name in ("refusals", "failures") for limit in limits(point))  # it says how many
    if lost and not unserved_limit and not any(says_unserved(point, n, target) for n, target in slo_terms.items()):
        found.append(f"{capital(lost)}.")
    for name in ("ttft_p99_s", "e2e_p99_s"):
        metric = point.metrics.get(name)
        words = metric_words(name)
        if metric is not None and metric.value is not None and name not in slo_terms and name != shown:
            found.append(f"{capital(words)} is {with_interval(name, metric)}{'' if metric.settled else ', unsettled'}.")
    miss, late = point.metrics.get("miss_ratio"), point.metrics.get("delayed_hit_ratio")
    if miss is not None and miss.value is not None and "miss_ratio" not in slo_terms:
        joined = ""
        if late is not None and late.value is not None:
            joined = f"; {show('delayed_hit_ratio', late.value)} join a load in flight"
        some = "requests for adapters" if point.traffic.get("base_share") else "requests"
        found.append(f"{show('miss_ratio', miss.value)} of {some} miss and start a load{joined}.")
    cached = point.metrics.get("prefix_hit_ratio")
    if cached is not None and cached.value is not None:
        said = f"{show('prefix_hit_ratio', cached.value)} of all prompt tokens are found in the prefix cache"
        host = point.value("host_prefix_hit_ratio")
        found.append(f"{said}{'' if host is None else f', {percent(host)} more in host memory'}.")
    return found


_APART = 1.5
"""The worst time of the cycle over the best, from which an answer names both."""


def _by_time(point: Point, shown: str | None) -> list[str]:
    """Return when a latency is worst and when best in the cycle that the rate repeats, if these are far apart.

    :param shown: the term of the verdict, whose latency it is if times have it.
    """
    for name in (split_term(shown or "")[1], "ttft_p99_s", "e2e_p99_s"):
        values = [(one.metrics[name], one.name) for one in point.times if name in one.metrics]
        known = sorted((m.value, time, m.settled) for m, time in values if m.value is not None)
        if known:
            ends = (known[-1], known[0])
            at = " and ".join(f"{show(name, value)} from {time}" for value, time, _ in ends)
            sure = "" if all(settled for _, _, settled in ends) else ", unsettled"
            apart = known[-1][0] > _APART * known[0][0]
            return [f"{capital(metric_words(name))} depends on the time: {at}{sure}."] if apart else []
    return []


_BY_RUN = "Nothing yet; simulate more {} first."
_BY_COSTS = "Nothing yet; only a better profile can decide (loraplan profiles adjust --anchor)."
_BY_BOTH = "Nothing yet; deciding takes a better profile (loraplan profiles adjust --anchor) and more {}."
_FULL = 0.5
"""Share of the time in which running requests use every slot, from which empty slots at the start are not why."""
_EMPTY = "Caches start empty, and requests pile up while they fill."
_FILLING = "Caches fill during the run, so the numbers depend on how long it is."
_START_FULL = "Nothing in the fleet; start with full caches (cache.warm: steady)."
COLD_FIRST = "Start with full caches first (cache.warm: steady): empty ones may be why."
_COMPARE = "compare strategies (sweep --over rollouts.N.strategy=new-name,in-place,drain-then-swap)"
_SLOWER = f"Roll out more slowly (rollouts.N.spread), or {_COMPARE}."
_FEWER_WRONG = f"Nothing for the SLO; for fewer wrong answers, {_COMPARE}."
_CUT_OFF = "Nothing yet; simulate a longer run (workload.duration), to the last stage."
_STARVED = (
    "Let the gate wait for fewer requests (rollouts.N.gate.min_requests), or begin with a larger stage "
    "(rollouts.N.stages)."
)
_LARGER_STAGE = (
    "Begin with a larger stage (rollouts.N.stages), or let the gate allow more (rollouts.N.gate): a version that gets "
    "few requests misses more often."
)
_FEWER_MISSES = "For fewer misses, add GPU slots (cache.gpu.slots) or route by adapter (router.policy)."


def may_be_cold(point: Point, slo_terms: Mapping[str, float]) -> bool:
    """Return whether empty caches at the start may be why the SLO is missed: not where running requests fill them,
    unless loads from storage keep replicas busy although host memory holds what was loaded once."""
    full, loader = point.capacity.slots.blocked_share or 0.0, point.capacity.loader
    filling = loader.host_holds_all and (loader.storage or 0.0) >= LOADING
    loads = bool(point.value("miss_ratio")) and (filling or (full < _FULL and not is_overloaded(point)))
    return loads and point.impact is None and verdict(point, slo_terms) == NOT_MET


_COUNTED = re.compile(r"\badd (GPU slots|replicas)|keep more copies")
_OF_STORAGE = frozenset({"failing-loads", "slow-storage", "storage-stall"})


def _for_the_crash(point: Point) -> str:
    """Return what to set where a crash makes the SLO fail."""
    impact, memory = point.impact or Impact(), None if point.setup is None else point.setup.memory
    alone = memory is not None and memory.replicas == 1 and not point.pools  # nothing takes over
    if not alone and 2 * impact.lost >= (impact.slow or 0) and impact.lost:
        return "Send requests of a dead replica to others (faults.N.requests: reroute)."
    first = {event["kind"]: event["t_s"] for event in reversed(point.events)}
    late = not alone and first.get("detected", 0.0) > first.get("crash", math.inf)
    late = late and 2 * (impact.rerouted + impact.lost) >= (impact.slow or 0)  # else those that survive are too few
    sooner = "Detect crashes sooner (faults.N.detected), or add" if late else "Add"
    return in_keys_of_scenario(f"{sooner} replicas (fleet.replicas) that take over.", point)


def _for_the_change(point: Point, headroom: Headroom | None) -> str:
    """Return what to set where a rollout or fault makes the SLO fail; empty where the fleet fails without it, too."""
    if headroom is not None and headroom.fails_today:
        return ""
    if has_rollout([point]):
        return _SLOWER
    if "crash" in point.capacity.faults:
        return _for_the_crash(point)
    if not _OF_STORAGE.isdisjoint(point.capacity.faults) and not point.capacity.loader.host_holds_all:
        return in_keys_of_scenario(f"{capital(MORE_COPIES)}, which need no storage.", point)
    cause = cause_of([point]).words
    return "" if headroom is None else f"Nothing in the fleet: without {cause}, it would meet the SLO."


def _serve_first(point: Point, over: Sequence[str]) -> str:
    """Return whom to serve first where tenants miss their SLO and others have none; it costs no GPU."""
    held = {each.bucket.tenant for each in busy_buckets(point) if each.bucket is not None}  # in front of the fleet
    waits = [split_term(term) for term in over if not is_gap(term)]
    late = dict.fromkeys(tenant for tenant, _ in waits if tenant and tenant not in held)
    if not late or point.setup is None or not point.setup.in_order:
        return ""
    how = "fleet.scheduling: priority, and tenants.N.priority: 1 for those without an SLO"
    return f"serve {listed([*late])} first ({how})"


def _mean_misses(point: Point, term: str, target: float) -> bool:
    """Return whether the mean of what a term is about, gaps between tokens, is above its target, too."""
    whole, name = judged(point, term)
    return is_gap(name) and (whole.value(f"{name.split('_')[0]}_mean_s") or 0.0) > target


def _without_a_wait(point: Point, over: Sequence[str], headroom: Headroom | None) -> str:
    """Return what to do about a target that is missed although no request waits long; empty: more replicas help.

    :param over: the targets that are missed, the one that decides first.
    """
    if over and split_term(over[0])[1] == "miss_ratio":
        return in_keys_of_scenario(MORE_SLOTS, point)
    if headroom is None or headroom.outcome != NEVER or headroom.term not in over:
        return ""
    name = split_term(headroom.term)[1]
    shorter = ["shorten prompts"] if name.startswith("ttft") else ["shorten answers"] if name.startswith("e2e") else []
    faster = [] if point.setup is None or point.setup.engine == "fixed" else ["use faster GPUs"]
    said = f"relax the target of {metric_words(headroom.term)} (missed even with a fraction of the traffic)"
    return ", or ".join([said, *shorter, *faster])


def _for_the_rollout(point: Point, remedy: str) -> str:
    """Return what would let a rollout through that was rolled back, or that the run cut off; empty for any other.

    :param remedy: of what limits the fleet.
    """
    if not is_rolled_back(point):
        return "" if not setback(point) else _STARVED if starved_gate(point) else _CUT_OFF
    why = ""
    for name, value, limit in missed_by_gates(point):
        known = point.value(f"before_{name}")  # during the rollout, the new version's requests count, too
        usual = (point.value(name) or 0.0) if known is None else known
        if value is None:
            return "First keep requests of the new version from failing."
        whose = "all requests" if known is None else "the time before"
        shown = f"{metric_words(name)} of {whose}, {show(name, usual)},"
        if usual > limit:  # the old version would not pass either
            if name == "miss_ratio":
                remedy = in_keys_of_scenario(_FEWER_MISSES, point).removesuffix(".")
            said = f"{capital(remedy)}, or let" if remedy else "Let"
            return f"{said} the gate allow more (rollouts.N.gate): {shown} is above its limit, too."
        if name == "miss_ratio":
            return _LARGER_STAGE
        why = why or f": {shown} is within its limit, but a new version has to be loaded first"
    return f"Let the gate allow more (rollouts.N.gate){why}."


def _numbered(said: str, point: Point) -> str:
    """Return what to set for a rollout with its number, if it is known which one did not come to its end."""
    events = [(event["kind"], event["rollout"]) for event in point.events if "rollout" in event]
    every = list({number for _, number in events})
    held = [number for wanted in ("rollback", "end") for kind, number in events if kind == wanted]
    which = held or (every if len(every) == 1 else [])
    return said.replace("rollouts.N", f"rollouts.{which[0]}") if which else said


def _to_decide(point: Point, slo_terms: Mapping[str, float], shown: str | None) -> str:
    """Return what would decide an open verdict: a longer run, a better profile, or both.

    :param shown: the term that the headline is about.
    """
    terms, deciding = with_tenants(slo_terms, point), None if shown is None else metric_of(point, shown)
    by_run = verdict(point.without_calibration(), slo_terms) == UNCLEAR
    by_costs = open_by_costs(point, terms)
    both = by_run and by_costs and deciding is not None and not deciding.settled
    return (_BY_BOTH if both else _BY_COSTS if by_costs else _BY_RUN).format(more_of(point, terms))


def _to_meet_it(point: Point, over: Sequence[str], remedy: str, headroom: Headroom | None) -> str:
    """Return what to set where the SLO is missed; empty where nothing is known to help.

    :param over: the targets that are missed; ``remedy``: of what limits the fleet.
    """
    ways = [way for way in (_serve_first(point, over), remedy) if way]
    gaps = [is_gap(term) for term in over]  # whose remedy is not that of waits
    said = (", and " if len({*gaps}) > 1 else ", or ").join(reversed(ways) if gaps and gaps[0] else ways)
    how_many = "; loraplan plan finds how many" if _COUNTED.search(remedy) else ""
    setting = f"{capital(said)}{how_many}." if remedy else ""
    faults = point.capacity.faults
    broken = "crash" in faults or not (is_overloaded(point) or _OF_STORAGE.isdisjoint(faults))
    breaks = broken or (headroom is not None and has_rollout([point]))
    if point.impact is not None and (breaks or not remedy):  # what is short may be short because of that
        return _for_the_change(point, headroom) or setting
    return setting


def _first_limit(
    point: Point, over: Sequence[str], binding: Limit, headroom: Headroom | None, *, missed_today: bool
) -> str:
    """Return what breaks first: what today's run shows where the search leaves that out, else what this finds."""
    today = limit_line(point, over, searched=headroom is not None)
    if over and binding.evidence is Evidence.COLD_STARTS:
        return today
    alone = binding.evidence is Evidence.NOTHING and not (headroom is not None and headroom.fails_today)
    if point.impact is not None and over and alone:
        today = f"{capital(cause_of([point]).words)}; nothing else stands out."
    return first_limit(headroom, today, missed_today=missed_today)


def answer(
    point: Point,
    slo_terms: Mapping[str, float],
    *,
    assumed: bool = False,
    cold: bool = False,
    headroom: Headroom | None = None,
) -> Answer:
    """Return the answer of one point.

    :param slo_terms: targets by metric name, as ``Slo.terms()`` or ``read_terms`` give them.
    :param assumed: whether the costs come from a profile that was not measured.
    :param cold: whether its caches started empty.
    :param headroom: how much more traffic fits, where that was simulated.
    """
    found, terms = verdict(point, slo_terms), with_tenants(slo_terms, point)
    graded = graded_verdict(point, slo_terms)
    missed_today = graded in (NOT_MET, PROBABLY_NOT)
    over = strained(point, terms)
    binding, *others = limits(point, over)
    changed = point.impact is not None
    cold = cold and may_be_cold(point, slo_terms) and binding.evidence is not Evidence.COLD_STARTS
    empty = headroom is not None and EMPTY_CACHES in headroom.without
    if headroom is not None:
        cold = cold and not headroom.fails_today and not empty  # else full caches don't help, or are named for sure
    fills = empty and is_overloaded(point)
    start = f"{_EMPTY} " if fills else f"{overload_words(point)}. " if is_overloaded(point) else ""
    opening, shown = _verdict(point, slo_terms, found, start)
    told = changed and found == NOT_MET and not is_overloaded(point)  # by the headline, whole
    short = opening if told else verdict_opening(point, slo_terms, shown)
    held = held_back_sentences([point])
    if held and not told:
        held[0], told = f"{opening} {held[0]}", True
    headline, *details = by_rank(
        {
            Rank.HELD_BACK: held,
            Rank.CHANGE: [impact_headline(point, graded, short)] if changed else [],
            Rank.VERDICT: [] if told else [opening],
            Rank.EFFECT: change_sentences(point, slo_terms),
            Rank.MEASURED: _by_time(point, shown) + _measured(point, slo_terms, shown),
            Rank.LIMIT: [f"Also near its limit: {each.name}. {limit_sentence(each, point)}" for each in others],
            Rank.FLEET: scaling_sentences(point) + placement_sentences(point),
            Rank.COST: cost_sentences(point, headroom, missed_today=missed_today),
        }
    )
    # Fewer prompts in a step don't shorten the mean of the gaps, only the longest.
    in_vain = binding.evidence is Evidence.LONG_STEPS and any(_mean_misses(point, name, terms[name]) for name in over)
    words = remedy_words(NO_LIMIT if in_vain else binding, point)
    remedy = words
    fails_without = changed and headroom is not None and headroom.fails_today
    if fails_without and binding.evidence in (Evidence.FAULT, Evidence.NOTHING):  # then the search says what is short
        remedy = _without_a_wait(point, over, headroom) or failing_limit(headroom)[1] or words
    elif in_vain or binding.evidence is Evidence.NOTHING:
        remedy = "" if changed else _without_a_wait(point, over, headroom) or words
    rollout = _for_the_rollout(point, words)
    decidable = found == UNCLEAR and not is_overloaded(point)  # a longer run would only show longer queues
    open_ = _to_decide(point, slo_terms, shown) if decidable else None
    if not rollout and has_rollout([point]) and has_wrong_answers(point):
        rollout = _FEWER_WRONG
    setting = {NO_SLO: rollout, MET: rollout or "No change.", UNCLEAR: open_}.get(found)
    if found == UNCLEAR and is_rolled_back(point):  # which no longer run and no better profile undoes
        setting = rollout
    if setting is None or graded == PROBABLY_NOT:
        setting = _to_meet_it(point, over, remedy, headroom)
    if found == NOT_MET and shown != "miss_ratio" and "miss_ratio" in _missed(point, slo_terms):
        setting = f"{in_keys_of_scenario(_FEWER_MISSES, point)} {setting}"
    if empty:
        setting = _START_FULL
    return Answer(
        " ".join(filter(None, (headline, buckets_sentence(point)))),
        details,
        found,
        limit_words(binding),
        _EMPTY if fills else limit_sentence(binding, point),
        headroom_sentences(headroom, missed_today=missed_today),
        find_trust(point, terms, assumed=assumed, choice=_FILLING if fills else None, about=shown),
        " ".join(filter(None, (COLD_FIRST if cold else "", _numbered(setting, point)))),
        _first_limit(point, over, binding, headroom, missed_today=missed_today),
        bill(point),
    )
