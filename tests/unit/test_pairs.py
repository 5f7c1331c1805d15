"""Differences of two points: by hand, and of real runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from sim.results.catalogue import CATALOGUE, UNITS
from sim.results.metric_state import Cause, State
from sim.results.pairs import (
    BETTER,
    LESS,
    MORE,
    NOT_COMPARABLE,
    UNCLEAR,
    WORSE,
    difference_of,
    same_draws,
    same_requests,
)
from sim.results.point import Metric, Point
from sim.results.statistics import kept
from sim.spec.scenario_file import load_scenario
from sim.studies.evaluate import evaluate_scenario


def simulated(*settings: str, scenario: str = "cache-thrash") -> Point:
    loaded = load_scenario(scenario, ["workload.requests=4000", *settings], None)
    return evaluate_scenario(loaded.scenario).point


@pytest.fixture(scope="module")
def slots_200() -> Point:
    return simulated("cache.gpu.slots=200")


@pytest.fixture(scope="module")
def slots_210() -> Point:
    return simulated("cache.gpu.slots=210")


def point(name: str, value: float | None, parts: list[float | None], traffic: str = "a", **more: object) -> Point:
    metric = Metric(value, unit=UNITS[name], parts=parts, **more)  # type: ignore[arg-type]
    return Point({}, {name: metric}, traffic_ids={"requests": traffic, "draws": traffic} if traffic else {})


def test_every_metric_has_a_direction() -> None:
    assert CATALOGUE["e2e_p99_s"].better == "lower"
    assert CATALOGUE["slo_attainment"].better == "higher"
    assert CATALOGUE["evictions"].better == CATALOGUE["completed"].better == "neither"


def test_parts_are_paired_around_the_change_of_the_whole() -> None:
    found = difference_of(
        point("e2e_p99_s", 2.0, [1.0, 2.0, 3.0], lo=0.0, hi=4.0),
        point("e2e_p99_s", 3.25, [2.0, 3.0, 4.5], lo=1.0, hi=5.5),
        "e2e_p99_s",
    )
    # Changes 1, 1, 1.5 around 1.25: squares add up to 3/16, standard error sqrt(3/16 / 6); t with 2 degrees 4.302653.
    half = 4.302652729911275 * math.sqrt(3 / 16 / 6)
    assert (found.change, found.relative, found.paired) == (1.25, 0.625, True)
    assert (found.lo, found.hi) == (pytest.approx(1.25 - half), pytest.approx(1.25 + half))
    assert found.word == WORSE


def test_totals_are_sums_of_their_parts() -> None:
    found = difference_of(point("evictions", 6, [1.0, 2.0, 3.0]), point("evictions", 12, [3.0, 4.0, 5.0]), "evictions")
    assert (found.change, found.lo, found.hi, found.word) == (6, 6, 6, MORE)
    wider = difference_of(point("evictions", 6, [1.0, 2.0, 3.0]), point("evictions", 12, [2.0, 4.0, 6.0]), "evictions")
    assert wider.hi == pytest.approx(6 + 3 * 4.302652729911275 / math.sqrt(3))


def test_counts_of_a_change_are_means_of_their_parts() -> None:
    found = difference_of(point("harmed", 2, [1.0, 2.0, 3.0]), point("harmed", 4, [2.0, 4.0, 6.0]), "harmed")
    assert (found.change, found.hi) == (2, pytest.approx(2 + 4.302652729911275 / math.sqrt(3)))


def test_other_traffic_or_other_parts_are_independent() -> None:
    one = point("miss_ratio", 0.5, [0.4, 0.5, 0.6], lo=0.2, hi=0.8)
    for other in (
        point("miss_ratio", 0.1, [0.1, 0.1], lo=0.0, hi=0.5),
        point("miss_ratio", 0.1, [0.1, 0.1, 0.1], "b", lo=0.0, hi=0.5),
        point("miss_ratio", 0.1, [0.1, 0.1, 0.1], "", lo=0.0, hi=0.5),
    ):
        found = difference_of(one, other, "miss_ratio")
        assert not found.paired
        # 0.1 (0 to 0.5) was cut at 0: its half-width is 0.4
        assert found.hi == pytest.approx(-0.4 + math.hypot(0.3, 0.4))
        assert found.word == UNCLEAR
    unknown = point("miss_ratio", 0.1, [], "")
    assert not same_draws(unknown, unknown)


def test_words_follow_the_direction() -> None:
    def word(name: str, one: float, other: float) -> str:
        values = (one, other)
        each: list[list[float | None]] = [[value - 0.01, value, value + 0.01] for value in values]
        total = 3 if name == "evictions" else 1
        points = [point(name, total * value, parts) for value, parts in zip(values, each, strict=True)]
        found = difference_of(*points, name)  # type: ignore[misc]
        return found.word

    assert word("e2e_p99_s", 1.0, 0.5) == word("slo_attainment", 0.5, 1.0) == BETTER
    assert word("e2e_p99_s", 0.5, 1.0) == word("slo_attainment", 1.0, 0.5) == WORSE
    assert word("evictions", 10.0, 20.0) == MORE
    assert word("evictions", 20.0, 10.0) == LESS
    assert word("e2e_p99_s", 1.0, 1.0 + 1e-9) == UNCLEAR


def test_an_unsettled_value_doubles_the_interval() -> None:
    one: list[float | None] = [1.0, 1.0, 1.2, 1.1]
    other: list[float | None] = [1.1, 1.2, 1.25, 1.3]
    plain = difference_of(point("e2e_p99_s", 1.1, one), point("e2e_p99_s", 1.2, other), "e2e_p99_s")
    hazy = difference_of(
        point("e2e_p99_s", 1.1, one),
        point("e2e_p99_s", 1.2, other, state=State(Cause.OVERLOADED)),
        "e2e_p99_s",
    )
    assert hazy.hi == pytest.approx(0.1 + 2 * (plain.hi - 0.1))
    assert "interval doubled: more requests arrive than are served" in hazy.note


def test_missing_values_are_not_comparable_and_foreign_ones_not_told() -> None:
    nothing = point("e2e_p99_s", None, [], state=State(Cause.NO_REQUESTS))
    found = difference_of(point("e2e_p99_s", 1.0, [1.0, 1.0]), nothing, "e2e_p99_s")
    assert (found.word, found.change, found.note) == (NOT_COMPARABLE, None, "not enough data")
    lost = point("lost", None, [], state=State(Cause.NO_FAULT))
    assert difference_of(lost, lost, "lost") is None
    assert difference_of(lost, lost, "no_such_metric") is None
    alone = difference_of(point("lost", 3, []), point("lost", 5, []), "lost")
    assert (alone.word, alone.lo, alone.note) == (UNCLEAR, None, "too few parts for an interval")


def test_the_interval_of_a_known_difference_holds() -> None:
    """Parts share most of their chance, and some is each design's own: the change of the means is 0.3."""
    rng, runs, covered, narrower = np.random.default_rng(5), 2000, 0, 0
    for _ in range(runs):
        shared, own = rng.normal(10, 2, 20), rng.normal(0, 0.3, (2, 20))
        points = []
        for values in (shared + own[0], shared + own[1] + 0.3):
            mean, half = float(values.mean()), 2.093 * float(values.std(ddof=1)) / math.sqrt(20)
            points.append(point("e2e_mean_s", mean, kept(values), lo=mean - half, hi=mean + half))
        found = difference_of(*points, "e2e_mean_s")  # type: ignore[misc]
        apart = difference_of(points[0], replace(points[1], traffic_ids={}), "e2e_mean_s")
        covered += found.lo <= 0.3 <= found.hi
        narrower += found.hi < apart.hi
    # 95 % of 2,000: standard deviation 0.49 points, three of them to each side.
    assert 0.935 <= covered / runs <= 0.965
    assert narrower == runs


def test_identical_runs_do_not_differ(slots_200: Point) -> None:
    again = Point.from_json(json.loads(json.dumps(simulated("cache.gpu.slots=200").to_json())))
    assert same_requests(slots_200, again)
    for name in UNITS:
        found = difference_of(slots_200, again, name)
        if found is not None and found.word != NOT_COMPARABLE:
            assert (found.change, found.lo, found.hi, found.word, found.paired) == (0, 0, 0, UNCLEAR, True), name


def test_pairing_is_narrower_than_two_intervals(slots_200: Point, slots_210: Point) -> None:
    paired = difference_of(slots_200, slots_210, "miss_ratio")
    apart = difference_of(slots_200, replace(slots_210, traffic_ids={}), "miss_ratio")
    assert (paired.paired, apart.paired, paired.change) == (True, False, apart.change)
    assert paired.hi - paired.change < 0.5 * (apart.hi - paired.change)
    assert paired.word == BETTER


def test_traffic_is_the_same_where_its_draws_are(slots_200: Point, slots_210: Point) -> None:
    assert same_requests(slots_200, slots_210)
    faster = simulated("workload.arrivals.rate=40/s")
    assert (same_requests(slots_200, faster), same_draws(slots_200, faster)) == (False, True)
    for setting in ("run.seed=2", "run.replications=4", "workload.requests=5000", "run.warmup=10%"):
        assert not same_draws(slots_200, simulated(setting)), setting


def test_parts_are_replications_from_five_on_else_sections(slots_200: Point) -> None:
    assert len(slots_200.metrics["miss_ratio"].parts) == len(slots_200.metrics["completed"].parts) == 5
    three = simulated("run.replications=3")
    assert len(three.metrics["miss_ratio"].parts) == len(three.metrics["refused"].parts) == 21
    assert sum(part or 0 for part in three.metrics["completed"].parts) == three.metrics["completed"].value
    whole = three.metrics["miss_ratio"].value
    assert whole is not None
    assert np.mean(np.array(three.metrics["miss_ratio"].parts, dtype=float)) == pytest.approx(whole, rel=0.01)


def test_parts_are_kept_with_the_point_and_not_in_tables(slots_200: Point) -> None:
    data = slots_200.to_json()
    assert "parts" not in data["metrics"]["miss_ratio"]
    assert data["parts"]["miss_ratio"] == slots_200.metrics["miss_ratio"].parts
    assert all(part == float(f"{part:.7g}") for part in data["parts"]["e2e_mean_s"])
    assert Point.from_json(json.loads(json.dumps(data))) == slots_200
