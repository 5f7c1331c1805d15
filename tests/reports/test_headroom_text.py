"""How much more traffic fits, in sentences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import samples

from reports.text.headroom_text import headroom_sentences, headroom_words, times_words, unused_sentence
from sim.results.model import BatchSlotUse, Capacity, SlotUse
from sim.results.point import LateShare, Metric, TenantResult
from sim.results.run_directory.headroom_record import (
    ALWAYS,
    CLOSED_LOOP,
    FOUND,
    NEVER,
    QUEUES,
    TOO_LONG,
    Headroom,
    Probe,
)

SHORT = replace(samples.make_point(), capacity=Capacity(slots=SlotUse(0.3), seats=BatchSlotUse(0.0)))
FOUND_ABOVE = Headroom(FOUND, 1.43, 1.4, 1.5, "ttft_p99_s", saturation=4.0, failing=SHORT)


def test_it_says_what_fails_where_and_why() -> None:
    assert headroom_sentences(FOUND_ABOVE) == (
        "p99 TTFT misses its target at about 1.4 times the traffic. What limits it there: slots. During 30 % of the "
        "time every slot was in use by a running request while others waited."
    )


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (replace(FOUND_ABOVE, multiple=0.7), "The SLO is met up to about 0.7 times the traffic. Beyond that, p99 TTFT"),
        (replace(FOUND_ABOVE, term=QUEUES), "Queues grow without limit at about 1.4 times the traffic."),
        (replace(FOUND_ABOVE, term="miss_ratio"), "What limits it there: the adapter cache."),
        (Headroom(NEVER, hi=0.01, term="e2e_p99_s"), "The SLO is not met at any traffic: p99 E2E misses its target"),
        (
            Headroom(NEVER, hi=0.01, term="e2e_p99_s", probes=(Probe(0.01, 2000, 1.05, "e2e_p99_s"),)),
            "No traffic is sure to meet the SLO: p99 E2E is within 10 % of its target even with a fraction of today's.",
        ),
        (Headroom(ALWAYS, lo=64.0), "The SLO is met up to 64 times the traffic, the most that was tried."),
        (
            Headroom(ALWAYS, lo=2.5, period_s=4800.0),
            "2.5 times the traffic, the most that was tried. With more, whole periods of 80 min are more requests than",
        ),
        (
            Headroom(TOO_LONG, period_s=86400.0),
            "Headroom: not searched. The traffic takes 24 h to go through its phases",
        ),
        (Headroom(CLOSED_LOOP), "A closed loop has headroom only against an SLO"),
        (replace(FOUND_ABOVE, without=("rollouts", "faults")), "The search leaves out rollouts and faults."),
    ],
)
def test_other_outcomes(found: Headroom, words: str) -> None:
    assert words in headroom_sentences(found)


@pytest.mark.parametrize(
    ("found", "start"),
    [
        (
            replace(FOUND_ABOVE, multiple=32.0, without=("autoscaling",)),
            "Headroom: none. With as many replicas all the time as the autoscaler may start, the SLO would be met up "
            "to about 32 times the traffic. What limits it there: slots.",
        ),
        (
            replace(FOUND_ABOVE, without=("faults", "autoscaling")),
            "Headroom: none. Without faults and with as many replicas all the time as the autoscaler may start, the",
        ),
        (
            Headroom(ALWAYS, lo=64.0, without=("rollouts", "faults")),
            "Headroom: none. Without rollouts and faults, the SLO would be met up to 64 times the traffic, the most",
        ),
        (FOUND_ABOVE, "Headroom: none. The SLO is missed with today's traffic."),
    ],
)
def test_there_is_none_where_the_slo_is_missed_today(found: Headroom, start: str) -> None:
    said = headroom_sentences(found, missed_today=True)
    assert said.startswith(start)
    assert "misses its target" not in said
    assert "leaves out" not in said
    assert headroom_words(found, missed_today=True) == "None"
    assert headroom_words(found) != "None"


def test_a_search_that_also_finds_it_missed_says_at_what_traffic() -> None:
    below = replace(FOUND_ABOVE, multiple=0.7, without=("faults",))
    assert headroom_sentences(below, missed_today=True) == headroom_sentences(below)
    assert headroom_words(below, missed_today=True) == headroom_words(below)


def test_capacity_is_unused_up_to_where_the_slo_fails() -> None:
    assert unused_sentence(FOUND_ABOVE, 1000.0).endswith("unused, up to 1.4 times as much, costs $301 a month.")
    assert "up to 64 times as much, costs $984 a month" in unused_sentence(Headroom(ALWAYS, lo=64.0), 1000.0)
    assert unused_sentence(FOUND_ABOVE, 1000.0, missed_today=True) == ""
    for found in (replace(FOUND_ABOVE, multiple=0.7), Headroom(TOO_LONG, saturation=4.0), None):
        assert unused_sentence(found, 1000.0) == ""


def test_requests_of_a_tenant_that_are_refused_limit_it() -> None:
    """They are few of the fleet's, and nothing waits, but 99 % of the tenant's must be served."""
    counts = {"completed": Metric(980, unit="requests"), "refused": Metric(20, unit="requests")}
    late = {"ttft_p99_s": LateShare(2.0, Metric(0.02, 0.018, 0.022))}
    chat = TenantResult("chat", {"ttft_p99_s": 2.0}, {**samples.make_point().metrics, **counts}, late)
    idle = replace(samples.make_point(fixed=False), tenants=[chat], capacity=Capacity(seats=BatchSlotUse(0.0)))
    said = headroom_sentences(replace(FOUND_ABOVE, term="tenants.chat.ttft_p99_s", failing=idle))
    assert (
        "What limits it there: refusals. 2 % of the requests of chat were refused, and a target for p99 TTFT allows "
        "1 %."
    ) in said
    served = replace(idle, tenants=[replace(chat, metrics=samples.make_point().metrics, late={})])
    said = headroom_sentences(replace(FOUND_ABOVE, term="tenants.chat.ttft_p99_s", failing=served))
    assert "refusals" not in said


def test_a_p99_is_limited_by_what_blocks_one_request_in_a_hundred() -> None:
    """A mean would not notice it, but a p99 is decided by it."""
    capacity = Capacity(slots=SlotUse(0.02), seats=BatchSlotUse(0.0))
    rarely = replace(SHORT, capacity=capacity, breakdown={"decode_s": 1.0})
    assert "What limits it there: slots. During 2 % of the time" in headroom_sentences(
        replace(FOUND_ABOVE, failing=rarely)
    )
    assert "No queue decides there" in headroom_sentences(replace(FOUND_ABOVE, failing=rarely, term="e2e_mean_s"))
    free = replace(rarely, capacity=Capacity())
    assert "One request in a hundred waits" in headroom_sentences(replace(FOUND_ABOVE, failing=free, term="ttft_p99_s"))


def test_nothing_is_said_where_nothing_was_searched() -> None:
    assert headroom_sentences(None) == ""
    assert headroom_words(Headroom(TOO_LONG, period_s=60.0)) == ""


@pytest.mark.parametrize(
    ("multiple", "words"),
    [(0.0421, "0.042"), (0.98, "0.98"), (1.046, "1.04"), (1.46, "1.4"), (2.3, "2.3"), (12.4, "12")],
)
def test_multiples_have_the_digits_that_are_known(multiple: float, words: str) -> None:
    assert times_words(multiple) == words
