"""Calibration intervals in a report: verdicts, and how well the numbers are known, take them into account."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import samples

from reports.tables.metric_tables import make_tiles
from sim.results.model import Setup
from sim.results.point import Metric, Point
from sim.results.verdict import open_by_costs, verdict
from sim.studies.run.answer import answer

TERMS = {"e2e_p99_s": 1.0}


def drawn(width: float, *, p99: float = 0.3, half: float = 0.01, overloaded: int = 0) -> Point:
    return samples.with_draws(samples.make_point(p99=p99, half=half), width, overloaded=overloaded)


@pytest.mark.parametrize(
    ("width", "known", "why"),
    [
        (0.01, "±1 %", "."),
        (0.10, "±10 %", ", because the profile's own measurements vary"),
        (0.40, "±40 %", ", because the profile's own measurements vary"),
        (1.50, "within a factor of 2.5", ", because the profile's own measurements vary"),
    ],
)
def test_a_calibration_interval_says_how_well_a_number_is_known(width: float, known: str, why: str) -> None:
    said = answer(drawn(width), TERMS)
    assert said.verdict == "met"
    assert said.trust.choice == "The verdict is sure."
    assert said.trust.number.startswith(f"p99 E2E is known to {known}{why}")


@pytest.mark.parametrize(
    ("setup", "known"),
    [
        (Setup("vllm", status="derived"), "±4 %."),
        (
            Setup("vllm", status="derived", costs_of="vLLM 0.8.5, not 0.33"),
            "at best, because this GPU's costs are derived for",
        ),
        (
            Setup("vllm", status="measured", costs_of="vLLM 0.8.5, not 0.33"),
            "costs were measured under vLLM 0.8.5, not 0.33",
        ),
        (Setup("vllm", status="derived", anchored=True), "±4 %."),
        (Setup("vllm", status="measured", beyond="rank 64"), "at best, because this GPU's costs are extrapolated to"),
    ],
)
def test_a_narrow_number_of_another_version_is_known_so_well_at_best(setup: Setup, known: str) -> None:
    assert known in answer(replace(drawn(0.04), setup=setup), TERMS).trust.number


def test_trust_is_about_the_pool_whose_costs_are_known_least() -> None:
    anchored = Setup("vllm", status="derived", anchored=True)
    foreign = Setup("vllm", status="derived", costs_of="vLLM 0.8.5, not 0.33", beyond="rank 64")
    for pools in ((anchored, foreign), (foreign, anchored)):
        number = answer(replace(drawn(0.04), setup=replace(pools[0], pools=pools)), TERMS).trust.number
        assert "derived for vLLM 0.8.5, not 0.33, and are extrapolated to rank 64; a benchmark of your" in number
    beyond = replace(anchored, beyond="rank 64")
    said = answer(replace(drawn(0.04), setup=beyond), TERMS).trust.number
    assert "at best, because this GPU's costs are derived, and corrected by measurements of your server, and" in said


def test_a_wide_number_of_an_anchored_profile_asks_for_another_benchmark() -> None:
    setup = Setup("vllm", status="derived", anchored=True)
    number = answer(replace(drawn(0.4), setup=setup), TERMS).trust.number
    assert "derived, and corrected by measurements of your server; a benchmark" in number


@pytest.mark.parametrize(
    ("p99", "side"),
    [
        (0.7, "within the 1 s target"),
        (0.88, "probably within the 1 s target"),
        (1.0, "too uncertain to compare with the 1 s target"),
        (1.14, "probably above the 1 s target"),
        (1.6, "above the 1 s target"),
    ],
)
def test_a_sentence_says_on_which_side_of_its_target_a_value_probably_is(p99: float, side: str) -> None:
    assert f", {side}" in answer(drawn(0.2, p99=p99), TERMS).headline


def test_only_more_measurements_decide_what_only_the_draws_leave_open() -> None:
    said = answer(drawn(0.2, p99=0.9), TERMS)
    assert said.verdict == "unclear"
    assert "a longer run does not help" in said.trust.choice
    assert "known to ±20 %" in said.trust.number
    assert said.setting == "Nothing yet; only a better profile can decide (loraplan profiles adjust --anchor)."


def test_a_longer_run_decides_what_both_errors_together_leave_open() -> None:
    made = drawn(0.1, p99=0.88, half=0.09)
    said = answer(made, TERMS)
    assert verdict(made.without_calibration(), TERMS) == "met"
    assert [open_by_costs(drawn(0.1, p99=p99, half=0.09), TERMS) for p99 in (0.88, 0.95, 1.05, 1.2)] == [
        False,
        True,
        True,
        False,
    ]
    assert said.verdict == "unclear"
    unknown = drawn(0.1)
    unknown.metrics["e2e_p99_s"] = Metric(None)
    assert not open_by_costs(unknown, TERMS)
    assert said.setting == "Nothing yet; simulate more requests first."
    assert said.trust.choice.endswith("its two intervals together include the target; run more requests.")


def test_draws_in_overload_leave_nothing_met() -> None:
    made = drawn(0.01, overloaded=2)
    said = answer(made, TERMS)
    assert said.verdict == "unclear"
    assert said.trust.number == "With 2 of 8 draws of the profile's costs more requests arrive than can be served."
    assert not said.headline.startswith("Overloaded"), "it is not, with the profile's own costs"
    assert next(tile.mark for tile in make_tiles(made, TERMS) if tile.words == "p99 E2E") == "unclear"


def test_a_metric_without_an_interval_is_not_sure() -> None:
    made = drawn(0.01)
    made.metrics["e2e_p99_s"] = replace(made.metrics["e2e_p99_s"], calibration_lo=None, calibration_hi=None)
    said = answer(made, TERMS)
    assert said.trust.number == "p99 E2E has no calibration interval: a single replication is too short for one."


def test_intervals_that_leave_a_chart_end_in_an_arrow_and_leave_its_lines_their_room() -> None:
    cut = "Arrows: an interval ends outside the chart."
    assert cut not in samples.build_report(samples.rates())
    text = samples.build_report(samples.drawn_rates())  # up to fifty times the value
    assert "Thin bars: calibration intervals." in text
    assert cut in text
    chart = text[text.index('id="latency"') : text.index("</figure>", text.index('id="latency"'))]
    ticks = re.findall(r">([\d.,]+) (ms|s)</text>", chart)
    assert ticks
    assert max(float(size.replace(",", "")) * {"ms": 1e-3, "s": 1.0}[unit] for size, unit in ticks) < 20
