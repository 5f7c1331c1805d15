"""How much more traffic fits, in sentences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import samples

from reports.text.headroom_text import headroom_sentences, times_words
from sim.results.model import BatchSlotUse, Capacity, SlotUse
from sim.results.run_directory.headroom_record import ALWAYS, CLOSED_LOOP, FOUND, NEVER, QUEUES, Headroom

SHORT = replace(samples.make_point(), capacity=Capacity(slots=SlotUse(0.3), seats=BatchSlotUse(0.0)))
FOUND_ABOVE = Headroom(FOUND, 1.43, 1.4, 1.5, "ttft_p99_s", saturation=4.0, failing=SHORT)


def test_it_says_what_fails_where_and_why() -> None:
    assert headroom_sentences(FOUND_ABOVE) == (
        "p99 TTFT misses its target at about 1.4 times the traffic. What limits it there: slots. During 30 % of the "
        "time every slot was in use by a running request while others waited. Today's traffic is 25 % of what full "
        "batches could serve."
    )


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (replace(FOUND_ABOVE, multiple=0.7), "The SLO is met up to about 0.7 times the traffic. Beyond that, p99 TTFT"),
        (replace(FOUND_ABOVE, term=QUEUES), "Queues grow without limit at about 1.4 times the traffic."),
        (replace(FOUND_ABOVE, term="miss_ratio"), "What limits it there: the adapter cache."),
        (Headroom(NEVER, hi=0.01, term="e2e_p99_s"), "The SLO is not met at any traffic: p99 E2E misses its target"),
        (Headroom(ALWAYS, lo=64.0), "The SLO is met up to 64 times the traffic, the most that was tried."),
        (Headroom(CLOSED_LOOP), "A closed loop has headroom only against an SLO"),
        (replace(FOUND_ABOVE, without=("rollouts", "faults")), "The search leaves out rollouts and faults."),
    ],
)
def test_other_outcomes(found: Headroom, words: str) -> None:
    assert words in headroom_sentences(found)


def test_a_p99_is_limited_by_what_blocks_one_request_in_a_hundred() -> None:
    """A mean would not notice it, but a p99 is decided by it."""
    capacity = Capacity(slots=SlotUse(0.02), seats=BatchSlotUse(0.0))
    rarely = replace(SHORT, capacity=capacity, breakdown={"decode_s": 1.0})
    assert "What limits it there: slots. During 2 % of the time" in headroom_sentences(
        replace(FOUND_ABOVE, failing=rarely)
    )
    assert "No queue decides there" in headroom_sentences(replace(FOUND_ABOVE, failing=rarely, term="e2e_mean_s"))


def test_nothing_is_said_where_nothing_was_searched() -> None:
    assert headroom_sentences(None) == ""


@pytest.mark.parametrize(
    ("multiple", "words"), [(0.0421, "0.042"), (0.98, "0.98"), (1.046, "1.05"), (1.46, "1.5"), (12.4, "12")]
)
def test_multiples_have_the_digits_that_are_known(multiple: float, words: str) -> None:
    assert times_words(multiple) == words
