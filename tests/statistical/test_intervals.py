"""Printed intervals hold: M/D/1, whose waits are known, simulated again and again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import loraplan as api
from sim.results.calibration import bounds
from sim.results.pairs import difference_of
from sim.results.point import Metric
from sim.results.statistics import Sampled, ratio, sections_of_cycles, sections_per_replication
from sim.spec.scenario import Scenario
from sim.studies.evaluate import evaluate_scenario

MEAN_WAIT_S, P99_WAIT_S = 0.005, 0.033362559570022064  # M/D/1, 10 ms, load .5 (oracles.json)


FASTER_MEAN_WAIT_S = 0.45 * 0.009 / (2 * 0.55)
"""The same arrivals at a server that takes 9 ms: Pollaczek and Khinchine."""


def queue(seed: int, replications: int, requests: int, service: str = "10 ms") -> Scenario:
    return Scenario.model_validate(
        {
            "schema_version": 1,
            "name": "md1",
            "workload": {"requests": requests, "arrivals": {"process": "poisson", "rate": "50/s"}},
            "adapters": {"count": 1, "size": "1 MB"},
            "fleet": {"engine": "fixed", "service": {"law": "fixed", "value": service}},
            "cache": {"gpu": {"slots": 1}},
            "storage": {"load": {"law": "fixed", "value": "1 ms"}},
            "run": {"seed": seed, "replications": replications},
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("replications", [1, 5])
def test_intervals_of_means_tails_and_known_differences_hold(replications: int) -> None:
    # One test, for all three read the same simulations.
    runs, held_mean, held_p99, too_wide, held_difference, paired, apart = 40, 0, 0, 0, 0, 0.0, 0.0
    for seed in range(runs):
        slow, fast = (
            evaluate_scenario(queue(seed, replications, 20_000 // replications, service)).point
            for service in ("10 ms", "9 ms")
        )
        mean, p99 = slow.metrics["queue_mean_s"], slow.metrics["queue_p99_s"]
        held_mean += mean.lo <= MEAN_WAIT_S <= mean.hi
        held_p99 += p99.lo <= P99_WAIT_S <= p99.hi
        too_wide += p99.hi - p99.lo > 0.5 * P99_WAIT_S
        found = difference_of(slow, fast, "queue_mean_s")
        independent = difference_of(slow, replace(fast, traffic_ids={}), "queue_mean_s")
        assert independent.lo is not None
        assert found.paired
        held_difference += found.lo <= FASTER_MEAN_WAIT_S - MEAN_WAIT_S <= found.hi
        paired, apart = paired + found.hi - found.lo, apart + independent.hi - independent.lo
    # Of 40 intervals that hold 95 % of the time, 34 or more do in 99 of 100 such tests (binomial); intervals that
    # treat requests as independent hold in 6 to 33 %.
    assert held_mean >= 34
    assert held_p99 >= 34
    assert held_difference >= 34
    assert too_wide == 0, "an interval may hold by saying nothing"
    assert paired < 0.5 * apart, "most of the chance is that of the arrivals, which both meet"


def test_too_few_requests_have_no_p99() -> None:
    metrics = evaluate_scenario(queue(1, 1, 900)).point.metrics
    assert metrics["queue_p99_s"].value is None
    assert metrics["queue_p99_s"].note == "not enough data: 855 requests were measured, 1,000 are needed"
    assert metrics["queue_p50_s"].value is not None


def test_there_are_twenty_sections_or_more() -> None:
    assert [r * sections_per_replication(r) >= 20 for r in range(1, 50)] == [True] * 49
    assert sections_per_replication(20) == sections_per_replication(500) == 1


@pytest.mark.parametrize(
    ("replications", "cycles", "sections"),
    [
        (5, 1.0, 1),
        (5, 1.01, 1),
        (5, 6.0, 3),
        (5, 8.1, 4),
        (5, 40.0, 4),
        (5, 1.5, 4),
        (5, 0.4, 4),
        (4, 1.0, 5),
        (9, 7, 1),
    ],
)
def test_sections_of_a_rate_that_repeats_a_cycle_have_whole_ones(
    replications: int, cycles: float, sections: int
) -> None:
    assert sections_of_cycles(replications, cycles) == sections


def test_day_and_night_widen_no_interval() -> None:
    """Poisson traffic of five days, at rates that differ sevenfold: the count of a day varies by 1 / sqrt(n)."""
    steps = [{"time": "400 s", "level": "2/s"}, {"time": "200 s", "level": "14/s"}]
    day = {"workload.arrivals": {"process": "piecewise", "steps": steps}, "workload.requests": None}
    values = {**day, "fleet.engine": "continuous", "workload.duration": f"{600 / 0.95} s", "slo": None}
    rate = api.run("quickstart", values, headroom=False).point.metrics["throughput_rps"]
    assert rate.value is not None
    assert rate.hi is not None
    assert rate.settled
    assert rate.value == pytest.approx(6, rel=0.02)
    assert rate.hi - rate.value < 4 * rate.value / math.sqrt(6 * 600 * 5)


def test_an_interval_is_students_t_over_sections() -> None:
    values = np.repeat([1.0, 2.0, 3.0, 4.0], 25)
    metric = Sampled(values, np.repeat(np.arange(4), 25), sections=4, replications=1).mean("s")
    # Standard error of four section means 1, 2, 3, 4 is sqrt(5/3)/2; Student's t for 3 degrees of freedom 3.182446.
    half = 3.182446305284263 * np.sqrt(5 / 3) / 2
    assert metric.value == 2.5
    assert metric.hi == pytest.approx(2.5 + half)
    assert metric.lo == pytest.approx(max(0.0, 2.5 - half))
    assert not metric.settled


@pytest.mark.parametrize("replications", [2, 5])
def test_replications_that_differ_by_more_than_their_sections_widen_intervals(replications: int) -> None:
    sections, each = sections_per_replication(replications), 40_000 // replications
    section = np.arange(replications * each) * sections // each
    random, asked = np.random.default_rng(7), 200

    def held(spread: float) -> tuple[int, int]:
        """How often the interval of the mean holds 10, and how often more replications are asked for."""
        times = more = 0
        for _ in range(asked):
            shift = np.repeat(random.normal(0, spread, replications), each)
            metric = Sampled(10 + shift + random.normal(0, 1, len(section)), section, sections, replications).mean("s")
            times += metric.lo <= 10 <= metric.hi
            more += metric.state.once
        return times, more

    alike, asked_for_nothing = held(0.0)
    assert asked_for_nothing <= 2, "one in a thousand differs by chance"
    apart, more = held(4.0)
    # 95 % of 200 are 190; 99.9 % of such counts are 180 and more. Sections alone would hold in 50 to 70 %.
    assert min(alike, apart) >= 180
    assert more > 190 if replications > 2 else more > 170


def test_a_metric_that_differs_between_replications_asks_for_more_of_them() -> None:
    section = np.repeat(np.arange(20), 2000)
    values = np.where(section < 10, 1.0, 3.0) + np.random.default_rng(1).normal(0, 0.1, len(section))
    metric = Sampled(values, section, sections=10, replications=2).mean("s")
    assert metric.note == "the 95 % interval is wider than ±10 %; run many more replications"


def test_a_ratio_weighs_sections_by_their_size() -> None:
    metric = ratio(np.array([1.0, 9.0]), np.array([10.0, 10.0]), 2, "1", highest=1)
    assert metric.value == 0.5
    assert metric.lo == 0.0
    assert metric.hi == 1.0


Result = Callable[[np.ndarray], np.ndarray]

RUNS = 2000


# Calibration intervals: a cost is fitted with an error, and the draws spread around the fit as the fit spreads around
# the truth, which is what the bootstrap promises. Counted is how often the interval of the fit holds the true result.


def proportional(cost: np.ndarray) -> np.ndarray:
    return cost


def queueing(cost: np.ndarray) -> np.ndarray:
    """Service, and a wait as in M/M/1 at 80 % load."""
    return cost / (1 - np.minimum(0.8 * cost, 0.995))


def share(result: Result, spread: float, draws: int) -> float:
    rng = np.random.default_rng(7)
    fitted = 1 + rng.normal(0, spread, RUNS)
    drawn = fitted[:, None] + rng.normal(0, spread, (RUNS, draws))
    true = float(result(np.array([1.0]))[0])
    values, results = result(fitted), result(drawn)
    found = [
        bounds("e2e_p99_s", Metric(float(v), unit="s"), [(float(v), float(r)) for r in row])
        for v, row in zip(values, results, strict=True)
    ]
    return sum(low <= true <= high for low, high in found) / RUNS


@pytest.mark.parametrize("draws", [2, 4, 8])
@pytest.mark.parametrize(
    ("result", "spread"),
    [(proportional, 0.02), (proportional, 0.1), (queueing, 0.02), (queueing, 0.05), (queueing, 0.1)],
)
def test_intervals_hold_in_95_of_100_cases(result: Result, spread: float, draws: int) -> None:
    # Three standard errors of a share of .95 over 2,000 runs are .015.
    assert share(result, spread, draws) == pytest.approx(0.95, abs=0.015)
