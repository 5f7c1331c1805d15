"""How much more traffic fits, in sentences."""

from __future__ import annotations

from reports.answers.bottleneck import BLOCKED_FOR_P99, blocked, limits
from reports.formatting import metric_words, percent
from reports.text.limit_text import limit_sentence
from reports.text.metric_text import capital
from sim.results.by_tenant.slo_terms import split_term
from sim.results.point import Point
from sim.results.run_directory.headroom_record import ALWAYS, CLOSED_LOOP, NEVER, QUEUES, Headroom


def headroom_sentences(found: Headroom | None) -> str:
    """Return at what multiple of the traffic the SLO fails and what limits there; empty where none was searched."""
    if found is None:
        return ""
    if found.outcome == CLOSED_LOOP:
        return "A closed loop has headroom only against an SLO: its clients wait for their answers. Add an slo."
    batches = found.failing is not None and found.failing.capacity.seats is not None
    load = (
        f"Today's traffic is {percent(found.load)} of what full batches could serve." if found.load and batches else ""
    )
    without = f"The search leaves out {' and '.join(found.without)}." if found.without else ""
    return " ".join(part for part in (_multiple(found), _limit(found), load, without) if part)


def headroom_words(found: Headroom | None) -> str:
    """Return the headroom in a few words: ``1.5 times the traffic``; empty where there is no number."""
    if found is None or found.outcome == CLOSED_LOOP:
        return ""
    if found.outcome == NEVER:
        return "None"
    multiple = found.lo if found.outcome == ALWAYS else found.multiple
    assert multiple is not None, "it was found"
    start = "more than " if found.outcome == ALWAYS else "none: up to " if multiple < 1 else "up to "
    return capital(f"{start}{times_words(multiple)} times the traffic")


def times_words(multiple: float) -> str:
    """Return a multiple with the digits that a search to within a few percent has; one more near 1."""
    return f"{multiple:.2f}" if 0.9 <= multiple < 1.15 else f"{multiple:.2g}" if multiple < 10 else f"{multiple:,.0f}"


def _multiple(found: Headroom) -> str:
    if found.outcome == ALWAYS:
        assert found.lo is not None, "something was tried"
        return f"The SLO is met up to {times_words(found.lo)} times the traffic, the most that was tried."
    misses = "queues grow without limit" if found.term == QUEUES else f"{metric_words(found.term)} misses its target"
    if found.outcome == NEVER:
        return f"The SLO is not met at any traffic: {misses} even with a fraction of it."
    assert found.multiple is not None, "it was found"
    times = times_words(found.multiple)
    if found.multiple < 1:
        return f"The SLO is met up to about {times} times the traffic. Beyond that, {misses}."
    return f"{capital(misses)} at about {times} times the traffic."


def _limit(found: Headroom) -> str:
    point = found.failing
    if point is None:
        return ""
    if split_term(found.term)[1] == "miss_ratio":
        return "What limits it there: the adapter cache. It holds too few of the requested adapters."
    limit = limits(point)[0]
    if limit.name == "none" and "p99" in (found.term or ""):
        limit = next(iter(blocked(point, BLOCKED_FOR_P99)), limit)
    why = limit_sentence(limit, point)
    if limit.name == "none":
        return f"No queue decides there: {_steps(point)}."
    return f"What limits it there: {limit.name}. {why}"


def _steps(point: Point) -> str:
    """Return why requests are slow where none waits."""
    blocks = point.capacity.seats is not None
    return "steps take longer the larger the batch" if blocks else "the service itself takes as long"
