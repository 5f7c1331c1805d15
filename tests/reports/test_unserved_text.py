"""Sentences on points that refuse or fail requests: why, and what to do about it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import samples

from reports.answers.limits import limits
from reports.formatting import interval
from reports.tables.metric_tables import make_tiles
from reports.text.limit_text import limit_sentence
from reports.text.metric_text import term_sentence, unserved_words
from sim.results.metric_state import Cause, State
from sim.results.model import Impact
from sim.results.pairs import NOT_COMPARABLE, difference_of
from sim.results.point import LateShare, Metric, Point
from sim.studies.run.answer import answer
from sim.studies.run.findings import sweep_answer, sweep_focus

TERMS = {"e2e_p99_s": 1.0}


def lacking(refused: int = 0, failed: int = 0, share: float | None = None, **unserved: int) -> Point:
    point = samples.make_point(fixed=False)
    total = 100_000
    counts = {"completed": total - refused - failed, "refused": refused, "failed": failed}
    for name, count in counts.items():
        point.metrics[name] = Metric(count, unit="requests")
    value = (refused + failed) / total if share is None else share
    late = {"e2e_p99_s": LateShare(1.0, Metric(value, 0.97 * value, 1.03 * value))}
    return replace(point, late=late, unserved=unserved)


TOO_LONG = {"too_long": 5000, "longest_tokens": 9000, "limit_tokens": 8192}
TOO_LONG_WORDS = (
    "5 % of the requests were refused: the longest has 9,000 tokens, and fleet.max_model_len allows 8,192. Raise it"
)
BEYOND_KV = {"too_long": 5000, "longest_tokens": 300_000, "limit_tokens": 262_144}
BEYOND_KV_WORDS = "the longest has 300,000 tokens, and the KV cache of a replica holds 262,144. Enlarge it:"


@pytest.mark.parametrize(
    ("point", "harm", "name", "words"),
    [
        (lacking(5000, **TOO_LONG), {}, "refusals", TOO_LONG_WORDS),
        (lacking(5000, **BEYOND_KV), {}, "refusals", BEYOND_KV_WORDS),
        (lacking(5000), {"refused_by_rollout": 4000}, "refusals", "while their adapter was being replaced. Strategies"),
        (lacking(5000), {}, "refusals", "5 % of the requests were refused. The notes of this run list"),
        (lacking(0, 5000), {"failed_loads": 4000, "lost": 1000}, "failures", "could not be loaded. Allow more retries"),
        (lacking(0, 5000), {"lost": 4000}, "failures", "lost with their replica. Send such requests to another"),
        (lacking(0, 5000), {"wrong_detected": 5000}, "failures", "a wrong answer was noticed, and no retry was left."),
        (lacking(2000, 6000), {"lost": 6000}, "failures", "2 % of the requests were refused and 6 % failed: they were"),
    ],
)
def test_the_larger_part_says_why(point: Point, harm: dict[str, int], name: str, words: str) -> None:
    first = limits(replace(point, impact=replace(point.impact or Impact(), **harm)))[0]
    assert first.name == name
    assert words in limit_sentence(first, point)


def test_one_percent_may_go_unserved() -> None:
    assert limits(lacking(1000))[0].name != "refusals"
    assert limits(lacking(1001))[0].name == "refusals"


def test_a_small_share_is_mentioned_where_the_slo_is_met() -> None:
    said = answer(lacking(300, share=0.003), TERMS)
    assert said.headline.startswith("The SLO is met: p99 E2E is 300 ms")
    assert "0.3 % of the requests were refused." in said.details
    assert unserved_words(samples.make_point()) == ""


def test_how_many_were_refused_is_said_once() -> None:
    said = answer(lacking(5000), {})
    assert [s for s in [said.binding_sentence, *said.details] if "of the requests were refused" in s] == [
        "5 % of the requests were refused. The notes of this run list the possible reasons."
    ]


def test_late_requests_are_mentioned_next_to_refused_ones() -> None:
    point = lacking(300, share=0.014)
    said = answer(point, TERMS)
    assert said.headline == (
        "The SLO is not met: 1.4 % (1.36 to 1.44) of the requests had no answer within 1 s, more than the 1 % that a "
        "target for p99 E2E allows; p99 E2E of the completed ones is 300 ms (296 to 304)."
    )
    assert said.verdict == "not met"
    close = lacking(990, share=0.0099)
    assert "0.99 % of the requests were refused, perhaps more than the 1 % that" in answer(close, TERMS).headline
    assert answer(close, TERMS).verdict == "unclear"


def test_unserved_requests_that_are_too_many_only_with_late_ones_are_said_to_be_a_part() -> None:
    assert answer(lacking(0, 671, share=0.0111), TERMS).headline == (
        "The SLO is not met: 1.11 % (1.08 to 1.14) of the requests had no answer within 1 s (0.671 % of them failed), "
        "more than the 1 % that a target for p99 E2E allows; p99 E2E of the completed ones is 300 ms (296 to 304)."
    )


def test_a_policy_that_refuses_requests_is_not_recommended_for_being_fast() -> None:
    fast = replace(lacking(38_000, share=0.0), set={"fleet.scheduling": "fcfs"})
    slow = replace(lacking(0, share=0.0), set={"fleet.scheduling": "priority"})
    fast.metrics["e2e_p99_s"] = replace(fast.metrics["e2e_p99_s"], value=0.1, lo=0.09, hi=0.11)
    assert sweep_focus([fast, slow], TERMS) is slow


def test_a_value_beyond_the_target_speaks_for_itself() -> None:
    point = lacking(300, share=0.03)
    point.metrics["e2e_p99_s"] = Metric(1.5, 1.4, 1.6, "s")
    assert term_sentence(point, "e2e_p99_s", 1.0) == "p99 E2E is 1.5 s (1.40 to 1.60), above the 1 s target"


def test_trust_and_tiles_follow() -> None:
    point = lacking(49_000, **TOO_LONG)
    point.metrics["e2e_p99_s"] = replace(point.metrics["e2e_p99_s"], state=State(Cause.WIDE))
    said = answer(point, TERMS)
    assert said.headline.startswith("The SLO is not met: 49 % of the requests were refused")
    assert said.trust.choice == "The verdict is sure: clearly more requests go unserved or late than the SLO allows."
    assert make_tiles(point, TERMS)[0].mark == "not met"


def test_a_sweep_says_at_how_many_points_requests_go_unserved() -> None:
    points = [
        replace(lacking(refused=refused), set={"cache.gpu.slots": slots})
        for slots, refused in ((8, 90_000), (16, 50_000), (32, 0))
    ]
    for point in points:
        if point.set["cache.gpu.slots"] < 32:
            point.metrics["e2e_p99_s"] = Metric(None, unit="s")
    told = sweep_answer(points, TERMS)
    assert told.details[0] == "At 2 of 3 points more than 1 % of the requests go unserved."
    assert not any("at every point" in sentence for sentence in told.details)
    assert "At 3 of 3 points" not in " ".join(told.details)


def test_counts_of_runs_of_different_length_are_not_compared() -> None:
    one, other = lacking(refused=50_000), lacking(refused=50_000)
    other.metrics["completed"] = Metric(0, unit="requests")  # half as many requests, all of them refused
    found = difference_of(one, other, "refused")
    assert (found.word, found.change) == (NOT_COMPARABLE, None)
    same = difference_of(one, lacking(refused=60_000), "refused")
    assert same.change == 10_000


@pytest.mark.parametrize(
    ("low", "text"),
    [
        (0.99823, "99.8 to 100"),
        (0.99983, "99.98 to 100"),
        (0.999997, "99.9997 to 100"),
        (0.9, "90 to 100"),
        (1.0 - 1e-16, "100 to 100"),
        (1.0, ""),
    ],
)
def test_an_interval_that_ends_at_100_percent_keeps_its_lower_end(low: float, text: str) -> None:
    assert interval("slo_attainment", Metric(1.0, low, 1.0, "1")) == text


def test_the_prefix_hit_ratio_is_a_key_number_where_there_is_one() -> None:
    point = samples.make_point()
    assert "prefix hit ratio" not in [tile.words for tile in make_tiles(point, TERMS)]
    point.metrics["prefix_hit_ratio"] = Metric(0.62, 0.6, 0.64, "1")
    tile = next(tile for tile in make_tiles(point, TERMS) if tile.words == "prefix hit ratio")
    assert tile.value == "62 %"
