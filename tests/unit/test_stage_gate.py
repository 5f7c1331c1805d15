"""The terms of a gate between stages, applied to the answers of a new version."""

from __future__ import annotations

import pytest

from sim.policies.changes import NEVER_S, Sample, failed_terms, failed_words

TEN = [Sample(ttft_s=i / 10, e2e_s=float(i), missed=i <= 3) for i in range(1, 11)]
"""First tokens after 0.1 to 1 s, ends after 1 to 10 s, three misses. 99 % lie 0.91 of a step below the last one."""


@pytest.mark.parametrize(
    ("name", "value"),
    [("ttft_mean", 0.55), ("ttft_p99", 0.991), ("e2e_mean", 5.5), ("e2e_p99", 9.91), ("miss_ratio", 0.3)],
)
def test_each_term_fails_above_its_limit_and_holds_at_it(name: str, value: float) -> None:
    assert failed_terms({name: value * (1 + 1e-9)}, TEN) == ()
    assert [term.name for term in failed_terms({name: value * (1 - 1e-9)}, TEN)] == [name]


def test_equal_is_allowed() -> None:
    samples = [Sample(0.25, 0.5, True), Sample(0.25, 0.5, False)]
    limits = {"ttft_mean": 0.25, "ttft_p99": 0.25, "e2e_mean": 0.5, "e2e_p99": 0.5, "miss_ratio": 0.5}
    assert failed_terms(limits, samples) == ()


def test_those_that_fail_are_told_in_words_and_the_others_not() -> None:
    failed = failed_terms({"ttft_p99": 0.5, "e2e_mean": 100.0, "miss_ratio": 0.1}, TEN)
    assert failed_words(failed) == "ttft_p99 0.991 s, allowed 0.5 s; miss_ratio 30.0%, allowed 10.0%"
    (failed_one,) = failed_terms({"e2e_mean": 1.0}, [*TEN, Sample(NEVER_S, NEVER_S, False)])
    assert failed_one == ("e2e_mean", None, 1.0)
    assert failed_words([failed_one]) == "e2e_mean without end, since requests failed, allowed 1 s"


def test_one_answer_is_enough() -> None:
    assert failed_terms({"e2e_p99": 1.0}, [Sample(0.1, 2.0, False)]) == (("e2e_p99", 2.0, 1.0),)
    assert failed_terms({"e2e_p99": 2.0}, [Sample(0.1, 2.0, False)]) == ()
