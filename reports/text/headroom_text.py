"""How much more traffic fits, in sentences."""

from __future__ import annotations

import math

from reports.answers.limits import NO_LIMIT, Evidence, Limit, limits, queue_decides
from reports.formatting import listed, metric_words, money, percent
from reports.text.limit_text import MORE_SLOTS, by_size, in_keys_of_scenario, limit_sentence, limit_words, remedy_words
from reports.text.metric_text import capital, unserved_words
from sim.results.catalogue import CATALOGUE
from sim.results.model import BucketUse
from sim.results.point import Point
from sim.results.run_directory.headroom_record import (
    ALWAYS,
    BUCKETS,
    CLOSED_LOOP,
    NEVER,
    QUEUES,
    SCALING,
    TOO_LONG,
    TOO_SHORT,
    Headroom,
)
from sim.results.slo_terms import is_gap, is_tail, judged, split_term
from sim.results.verdict import allowed, lacks_answers, unserved
from sim.spec.units import human_seconds


def headroom_sentences(found: Headroom | None, *, missed_today: bool = False) -> str:
    """Return at what multiple of the traffic the SLO fails and what limits there; empty where none was searched.

    :param missed_today: whether the SLO is missed with today's traffic.
    """
    if found is None:
        return ""
    if found.outcome == CLOSED_LOOP:
        return "A closed loop has headroom only against an SLO: its clients wait for their answers. Add an slo."
    if found.outcome == TOO_LONG:
        return f"Headroom: not searched. {_too_long(found)}"
    if found.outcome == TOO_SHORT:
        return (
            f"Headroom: not searched. The traffic has {found.trace_requests:,} requests, too few to fill the batches; "
            f"headroom needs about {found.needed_requests:,}."
        )
    missed_today = missed_today and found.holds_today
    if missed_today and not found.without:
        return "Headroom: none. The SLO is missed with today's traffic."
    without = f"The search leaves out {listed(found.without)}." if found.without and not missed_today else ""
    multiple = _otherwise(found) if missed_today else _multiple(found)
    return " ".join(part for part in (multiple, _limit(found), without) if part)


def first_limit(found: Headroom | None, otherwise: str, *, missed_today: bool = False, whose: str = "today's") -> str:
    """Return what breaks first, at which multiple of the traffic, and what to do then.

    :param otherwise: what limits the fleet today, where no search says more; ``missed_today``: whether it misses its
        SLO; ``whose``: the traffic of which this is a multiple.
    """
    if found is None or found.outcome in (*_NO_SEARCH, NEVER):
        return otherwise
    if missed_today and found.holds_today:
        changes = [each for each in found.without if each != SCALING]
        return f"{capital(listed(changes))}: without them, {_met_up_to(found)}" if changes else otherwise
    if found.outcome == ALWAYS:
        assert found.lo is not None, "something was tried"
        return (
            f"Nothing{_left_out(found)}, up to {times_words(found.lo)} times {whose} traffic, the most that was tried."
        )
    assert found.multiple is not None, "it was found"
    if found.failing is None:
        return otherwise
    what, remedy = failing_limit(found)
    then = f"; then {remedy}" if remedy else ""
    times = times_words(found.multiple)
    what += _left_out(found)
    if found.multiple < 1 and found.term not in _GROWS:
        return f"{capital(what)}: the SLO holds only up to {times} times {whose} traffic{then}."
    return f"{capital(what)}, at {times} times {whose} traffic{then}."


def _left_out(found: Headroom) -> str:
    """Return what the search leaves out, to follow what it found."""
    some = [each for each in found.without if each != SCALING]
    parts = [f", without {listed(some)}"] if some else []
    return "".join([*parts, *([", with every replica up"] if SCALING in found.without else [])])


def failing_limit(found: Headroom | None) -> tuple[str, str]:
    """Return what limits the traffic at which the SLO fails, and what to do then; empty where that is not known."""
    if found is None or found.failing is None:
        return "", ""
    if split_term(found.term)[1] == "miss_ratio":
        return "adapter cache", in_keys_of_scenario(MORE_SLOTS, found.failing)
    if _unserved(found.failing, found.term):
        return "requests that are refused or fail", ""
    limit = _failing(found.failing, found.term)
    return by_size(limit_words(limit, "compute"), found.failing), remedy_words(limit, found.failing)


_NO_SEARCH = (CLOSED_LOOP, TOO_LONG, TOO_SHORT)


def _too_long(found: Headroom) -> str:
    """Return why traffic that changes slowly can't be searched in short runs, and what answers instead."""
    assert found.period_s is not None, "it is too slow"
    return (
        f"The traffic takes {human_seconds(found.period_s)} to go through its phases, which is longer than this run or "
        "than a short run can be. Simulate whole periods, and let loraplan plan --maximize workload.arrivals.rate find "
        "the highest rate."
    )


def _otherwise(found: Headroom) -> str:
    """Return at what multiple the SLO fails without the parts that the search leaves out, where these make it fail."""
    left_out = [part for part in found.without if part != SCALING]
    parts = [f"without {listed(left_out)}"] if left_out else []
    parts += ["with as many replicas all the time as the autoscaler may start"] if SCALING in found.without else []
    return f"Headroom: none. {capital(' and '.join(parts))}, {_met_up_to(found)}"


def _met_up_to(found: Headroom) -> str:
    if found.outcome == ALWAYS:
        assert found.lo is not None, "something was tried"
        return f"the SLO would be met up to {times_words(found.lo)} times the traffic, the most that was tried."
    assert found.multiple is not None, "it was found"
    return f"the SLO would be met up to about {times_words(found.multiple)} times the traffic."


def headroom_words(found: Headroom | None, *, missed_today: bool = False) -> str:
    """Return the headroom in a few words: ``1.5 times the traffic``; empty where there is no number.

    :param missed_today: as of ``headroom_sentences``.
    """
    if found is None or found.outcome in _NO_SEARCH:
        return ""
    if found.outcome == NEVER or (missed_today and found.holds_today):
        return "None"
    multiple = found.lo if found.outcome == ALWAYS else found.multiple
    assert multiple is not None, "it was found"
    start = "more than " if found.outcome == ALWAYS else "none: up to " if multiple < 1 else "up to "
    return capital(f"{start}{times_words(multiple)} times the traffic")


def unused_sentence(found: Headroom | None, month: float, *, missed_today: bool = False) -> str:
    """Return what a month of the capacity costs that today's traffic leaves unused; empty where it leaves none.

    :param month: the cost of the fleet in USD; ``missed_today``: as of ``headroom_sentences``.
    """
    multiple = None if found is None or missed_today else found.lo if found.outcome == ALWAYS else found.multiple
    if multiple is None or multiple <= 1:
        return ""
    spare = money((1 - 1 / multiple) * month)
    return (
        f"Capacity that this traffic leaves unused, up to {times_words(multiple)} times as much, costs {spare} a month."
    )


def times_words(multiple: float) -> str:
    """Return a multiple with the digits that a search to within a few percent has, one more near 1; rounded down,
    not to promise more."""
    near = 0.9 <= multiple < 1.2
    places = 2 if near else 0 if multiple >= 10 else 1 - math.floor(math.log10(multiple))
    down = math.floor(multiple * 10**places + 1e-6) / 10**places
    return f"{down:.2f}" if near else f"{down:.2g}" if multiple < 10 else f"{down:,.0f}"


def _multiple(found: Headroom) -> str:
    if found.outcome == ALWAYS:
        assert found.lo is not None, "something was tried"
        longer = (
            f" With more, whole periods of {human_seconds(found.period_s)} are more requests than a short run can have."
            if found.period_s
            else ""
        )
        return f"The SLO is met up to {times_words(found.lo)} times the traffic, the most that was tried.{longer}"
    misses = _GROWS.get(found.term) or f"{metric_words(found.term)} misses its target"
    if found.outcome == NEVER:
        if min((probe.strain for probe in found.probes), default=math.inf) <= _NEARLY:
            near = f"{metric_words(found.term)} is within 10 % of its target even with a fraction of today's"
            return f"No traffic is sure to meet the SLO: {near}."
        return f"The SLO is not met at any traffic: {misses} even with a fraction of it."
    assert found.multiple is not None, "it was found"
    times = times_words(found.multiple)
    if found.multiple < 1 and found.term not in _GROWS:
        return f"The SLO is met up to about {times} times the traffic. Beyond that, {misses}."
    return f"{capital(misses)} at about {times} times the traffic."


_NEARLY = 1.1
"""A value over its target up to which short simulations can't tell whether it is missed."""
_GROWS = {
    QUEUES: "queues grow without limit",
    BUCKETS: "the queue in front of a token bucket grows without limit",
}


def _limit(found: Headroom) -> str:
    point = found.failing
    if point is None:
        return ""
    if split_term(found.term)[1] == "miss_ratio":
        return "What limits it there: the adapter cache. It holds too few of the requested adapters."
    if unserved := _unserved(point, found.term):
        return unserved
    limit = _failing(point, found.term)
    if limit.name == "router" and found.outcome == NEVER:
        return ""  # a fraction of the traffic queues nowhere
    if limit.name == "none":
        if is_tail(found.term) and not is_gap(found.term) and queue_decides(point):
            return f"One request in a hundred waits {human_seconds(point.value('queue_p99_s') or 0.0)} or longer there."
        if found.term in _GROWS:
            return ""
        batches = point.capacity.seats is not None
        why = "steps take longer the larger the batch" if batches else "the service itself takes as long"
        return f"No queue decides there: {why}."
    return f"What limits it there: {limit.name}. {limit_sentence(limit, point)}"


def _failing(point: Point, term: str) -> Limit:
    """Return what limits the point at which a term fails."""
    bucket = _bucket(point, term)
    if bucket is not None:
        return Limit("token bucket", Evidence.BUCKET, bucket.limited, bucket=bucket)
    return next((limit for limit in limits(point, [term]) if _concerns(limit, term)), NO_LIMIT)


def _bucket(point: Point, term: str) -> BucketUse | None:
    """Return the token bucket because of which a term fails: a little more than it admits is enough for that."""
    if term == BUCKETS:
        return max(point.capacity.buckets, key=lambda bucket: bucket.asked / bucket.rate, default=None)
    tenant, metric = split_term(term)
    if term == QUEUES or metric not in CATALOGUE:
        return None
    lost, total = unserved(judged(point, term)[0])
    refusing = [bucket for bucket in point.capacity.buckets if tenant in ("", bucket.tenant)]
    most = max(refusing, key=lambda bucket: bucket.refused, default=None)
    decides = most is not None and 2 * most.refused >= lost > allowed(metric) / 2 * total
    return most if decides else None


def _concerns(limit: Limit, term: str) -> bool:
    """Return whether a limit can be why a term fails: what a token bucket holds is its own tenant's."""
    if term == BUCKETS or limit.bucket is None:
        return (limit.bucket is None) == (term != BUCKETS)
    return term != QUEUES and split_term(term)[0] in ("", limit.bucket.tenant)


def _unserved(point: Point, term: str) -> str:
    """Return that a tenant's requests go unserved, where that decides; those of a whole fleet are one of its limits."""
    tenant, metric = split_term(term)
    target = next((each.slo.get(metric) for each in point.tenants if each.name == tenant), None)
    if target is None or not lacks_answers(point, term, target):
        return ""
    own, _ = judged(point, term)
    lost, _ = unserved(own)
    name = "refusals" if (own.metrics["refused"].value or 0.0) >= lost / 2 else "failures"
    said = capital(unserved_words(own, f"the requests of {tenant}"))
    share = percent(allowed(metric))
    return f"What limits it there: {name}. {said}, and a target for {metric_words(metric)} allows {share}."
