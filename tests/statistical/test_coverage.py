"""How often intervals hold is counted as it should be (``bench_coverage``), and what is marked is what can't hold."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from known_queues import md1, mm1
from queue_paths import QUEUES, path
from scipy.signal import lfilter

from sim.results.effective_size import autocorrelation, effective_size, initial_transient
from sim.results.metric_state import Cause, Kind, State
from sim.results.point import Metric
from sim.results.statistics import (
    CAUTION,
    CAUTIOUS_UNTIL,
    ENOUGH,
    ENOUGH_FOR_P99,
    ENOUGH_FOR_SHARE,
    MOST_SKEWED,
    NARROW,
    WINDOWS,
    Sampled,
    by_size,
    estimate,
    share_by_size,
    skewed,
)
from sim.results.verdict import SURE, metric_probability
from sim.spec.scenario_file import load_scenario
from sim.studies.evaluate import doubled, evaluate_scenario, is_too_short
from validation.benches.bench_coverage import (
    FIRST_REFERENCE,
    Task,
    cell,
    key,
    lines,
    rows,
    scenario_of,
    simulate,
    simulated,
    tasks,
)

RUNS = 6


def test_closed_forms_are_those_of_the_oracles(shared: Path) -> None:
    path = shared / "oracles" / "oracles.json"
    if not path.exists():
        pytest.skip(f"no oracles at {path}")
    oracles = json.loads(path.read_text(encoding="utf-8"))
    for table, queue in (("mm1_wait_ms_mean_p50_p95_p99", mm1), ("md1_wait_ms_mean_p50_p95_p99", md1)):
        for load, mean, p50, _, p99 in oracles[table]:
            found = queue(load, 10.0)
            names = ("queue_mean_s", "queue_p50_s", "queue_p99_s")
            assert [found[name] for name in names] == pytest.approx([mean, p50, p99], rel=1e-9, abs=1e-9)


def test_a_few_runs_of_the_table(tmp_path: Path) -> None:
    """At half load means are covered; at .9 one would be narrow only by chance, and none is settled."""
    wanted = tasks(["M/M/1"], [0.5, 0.9], [4_000], range(1, RUNS + 1), 0, 0)
    simulate(wanted[:5], tmp_path / "runs.jsonl", jobs=1)
    with (tmp_path / "runs.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"code": "cut sho')
    simulate(wanted, tmp_path / "runs.jsonl", jobs=1)
    found = list(lines(tmp_path / "runs.jsonl"))
    assert [key(line) for line in found] == wanted, "what was there is not simulated again"
    table = rows(found)
    half, busy = table["M/M/1", 0.5, 4_000], table["M/M/1", 0.9, 4_000]
    assert half["e2e_p50_s"].settled == RUNS
    assert half["e2e_p50_s"].held[0] >= RUNS - 1
    assert {name: c.settled for name, c in busy.items()} == dict.fromkeys(busy, 0)
    assert {c.marked + c.settled for c in half.values()} == {RUNS}


def test_near_saturation_no_time_is_settled() -> None:
    line = simulated(Task("cache-thrash", 0.97, 3_000, seed=1))
    times = [settled for name, (_, lo, _, settled, _) in line["metrics"].items() if name != "miss_ratio" and lo]
    assert times == [False] * len(times)
    assert times


def test_near_saturation_unsettled_intervals_hold_and_verdicts_are_careful() -> None:
    """Three replications hold few spells of long queues: intervals of sections alone hold in 53 %."""
    runs, load, held, met = 100, 0.95, {"mean": 0, "p99": 0}, 0
    truth = {"mean": 1 / (1 - load), "p99": math.log(100) / (1 - load)}
    for seed in range(runs):
        _, e2e = path(QUEUES["M/M/1"], load, (3, 20_000), np.random.default_rng([seed, 95]))
        section = np.concatenate([np.arange(19_000) * 7 // 19_000 + 7 * part for part in range(3)])
        sample = Sampled(e2e[:, 1_000:].ravel(), section, sections=7, replications=3)
        found = {"mean": sample.mean("s"), "p99": sample.quantile(0.99, "s")}
        assert not any(metric.settled for metric in found.values())
        for name, metric in found.items():
            held[name] += metric.lo <= truth[name] <= metric.hi
        met += metric_probability(found["p99"], 0.95 * truth["p99"]) >= SURE
    # Of intervals that hold in 85 % of all runs, at least 74 do in 99.8 of 100 such tests (binomial).
    assert min(held.values()) >= 74, held
    assert met <= 6, "2 % of 1,000 runs say so, and 14 % with the intervals of sections"


def test_what_changes_by_design_does_not_widen_an_interval() -> None:
    waves = 10 + np.sin(np.arange(20_000) / 1_000) + np.random.default_rng(1).exponential(size=20_000)
    section = np.arange(20_000) // 1_000
    chance, design = (Sampled(waves, section, 20, 1, steady=steady).quantile(0.99, "s") for steady in (True, False))
    assert not chance.settled
    assert chance.hi - chance.lo > design.hi - design.lo


def test_what_a_reference_leaves_open_is_in_the_limits() -> None:
    printed = (
        [(1.0, 0.9, 1.1, True)] * 8 + [(1.2, 1.05, 1.35, True)] * 2 + [(1.0, 0.5, 1.5, False), (None,) * 3 + (False,)]
    )
    found = cell(printed, truth=1.0, error=0.06)
    assert (found.settled, found.marked, found.withheld, found.marked_held) == (10, 1, 1, 1)
    assert found.held == (8, 8, 10)
    assert found.limits[0] == pytest.approx(0.4439, abs=1e-4)  # 8 of 10, Clopper and Pearson
    assert found.limits[1] == 1.0
    assert str(found) == "80.0 of 10"


def test_references_are_spread_over_the_runs() -> None:
    wanted = tasks(["cache-thrash"], [0.5], [100], range(1, 21), 4, 1_000)
    assert [task.seed - FIRST_REFERENCE for task in wanted if task.reference] == [0, 1, 2, 3]
    assert len(wanted) == len(set(wanted)) == 24


def sampled(values: np.ndarray) -> Sampled:
    count = len(values)
    return Sampled(values, np.arange(count) * 20 // count, sections=4, replications=5)


def autoregressive(coefficient: float, shape: tuple[int, int], seed: int = 1) -> np.ndarray:
    """Return values of which n say as much of their mean, 10, as n (1 - c) / (1 + c) independent ones."""
    noise = np.random.default_rng(seed).normal(size=shape) * math.sqrt(1 - coefficient**2)
    noise[:, 0] /= math.sqrt(1 - coefficient**2)
    return 10 + lfilter([1.0], [1.0, -coefficient], noise, axis=1)


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.9, 0.99])
def test_the_effective_size_of_autoregressive_values_is_known(coefficient: float) -> None:
    values = autoregressive(coefficient, (5, 40_000))
    assert effective_size(values) == pytest.approx(200_000 * (1 - coefficient) / (1 + coefficient), rel=0.12)


def test_the_effective_size_predicts_how_much_means_vary() -> None:
    """Of waits in M/M/1, whose variance and mean are estimated from one run, and whose means vary from run to run."""
    waits, _ = path(QUEUES["M/M/1"], 0.7, (200, 6_000), np.random.default_rng(1))
    waits = waits[:, 1_000:]
    sizes = [effective_size(waits[i : i + 5]) for i in range(0, 200, 5)]
    assert np.median(sizes) == pytest.approx(5 * waits.var() / waits.mean(axis=1).var(), rel=0.25)


def test_equal_values_and_single_ones_have_an_effective_size() -> None:
    assert effective_size([np.ones(100)]) == 100
    assert effective_size([np.array([1.0]), np.array([])]) == 1
    assert effective_size([np.tile([0.0, 1.0], 500)]) == 1_000, "what alternates is no better than independent"


def test_short_runs_are_made_longer_until_their_sample_is_large_enough() -> None:
    """A half-width of 10 % is reached sooner, by chance."""
    scenario = scenario_of(Task("cache-thrash", 0.5, 1_000, seed=1))
    asked = scenario.model_copy(update={"run": scenario.run.model_copy(update={"half_width": 0.1})})
    point = evaluate_scenario(scenario).point
    for metric, requests in (
        (Metric(0.15, 0.14, 0.16, "s", state=State(Cause.FEW_EFFECTIVE, 2590, 6000)), 2_000),
        (Metric(0.15, 0.14, 0.16, "s"), None),
        (Metric(0.15, 0.14, 0.16, "s", state=State(Cause.LOADER_BUSY, share=0.97)), None),
    ):
        point.metrics["e2e_p99_s"] = metric
        longer = doubled(asked) if is_too_short(asked, point) else None
        assert (None if longer is None else longer.workload.requests) == requests


def test_few_but_independent_requests_of_little_spread_are_enough() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        sample = sampled(rng.uniform(size=4_000))
        assert sample.mean("s").settled
        assert sample.quantile(0.99, "s").settled


def test_a_narrow_interval_of_a_slow_queue_is_not_enough() -> None:
    """Each value sixteen times: as narrow as before, but with stretches of requests that go together."""
    slow = 1 + np.repeat(np.random.default_rng(1).exponential(size=4_800), 16)
    metric = sampled(slow).quantile(0.99, "s")
    assert metric.value is not None
    assert metric.hi < 1.1 * metric.value, "the half-width alone would pass"
    assert metric.state.kind is Kind.RUN_TOO_SHORT
    assert metric.state.found == pytest.approx(4_800, rel=0.3)
    assert metric.state.times_longer == pytest.approx(ENOUGH_FOR_P99 / metric.state.found, rel=1e-3)
    longer = sampled(np.repeat(np.random.default_rng(1).exponential(size=20_000), 16))
    assert longer.quantile(0.99, "s").settled


def test_a_run_that_is_as_many_times_longer_is_long_enough() -> None:
    """Both where a half-width is too wide and where the effective sample size is too small."""
    draws = np.random.default_rng(2).exponential(size=(4_000, 16))
    for first in (150, 1_000):
        state = sampled(np.repeat(draws.ravel()[:first], 16)).mean("s").state
        assert state.times_longer is not None
        longer = round(1.3 * first * state.times_longer)
        assert sampled(np.repeat(draws.ravel()[:longer], 16)).mean("s").settled
        shorter = round(0.7 * first * state.times_longer)
        assert not sampled(np.repeat(draws.ravel()[:shorter], 16)).mean("s").settled


def test_a_heavy_tail_needs_more() -> None:
    """A mean of values whose standard deviation is twice the mean needs four times as many."""
    rng = np.random.default_rng(1)
    spread = math.sqrt(math.log(5))
    heavy, light = rng.lognormal(0, spread, 6_000), rng.exponential(size=6_000)
    assert sampled(light).mean("s").settled
    assert sampled(heavy).mean("s").state.times_longer == pytest.approx(4 * ENOUGH / 6_000, rel=0.4)


def test_narrow_half_widths_need_fewer_in_proportion() -> None:
    values = autoregressive(0.0, (1, 500))
    for half, settled in ((NARROW / 8, True), (NARROW / 1.5, False)):
        sections = 1 + half * np.tile([-1.0, 1.0], 10) * 2.0828
        metric = estimate(1.0, sections, np.array([1.0]), "s")
        assert metric.hi == pytest.approx(1 + half, rel=1e-3)
        found = by_size(metric, sections, np.array([1.0]), list(values), ENOUGH)
        assert found.settled == settled
        if settled:  # a quarter of the effective sample size is not enough, so the interval is as wide as it gets
            assert found.hi == pytest.approx(skewed(1.0, CAUTION * half)[1], rel=1e-3)
        else:
            needed = ENOUGH / 2 * CAUTION / 1.5 * math.sqrt(500 / ENOUGH) * 2
            assert found.state.needed == pytest.approx(needed, rel=0.02)


def test_intervals_are_wider_where_the_sample_is_just_large_enough() -> None:
    sections, values = 1 + 0.04 * np.tile([-1.0, 1.0], 10), [np.random.default_rng(1).exponential(size=30_000)]
    metric = estimate(1.0, sections, np.array([1.0]), "s")
    widths = []
    for times in (1.0, 1.25, CAUTIOUS_UNTIL, 3.0):
        found = by_size(metric, sections, np.array([1.0]), values, effective_size(values) / times, is_share=True)
        assert found.settled
        assert found.lo is not None
        widths.append(1 - found.lo)
    plain = 1 - (metric.lo or 0.0)
    assert widths == pytest.approx([plain * by for by in (CAUTION, (1 + CAUTION) / 2, 1.0, 1.0)], rel=1e-6)


def test_an_interval_of_a_time_reaches_as_far_up_as_the_error_there() -> None:
    """Of the true values at both ends, the standard error is that of the value times their square."""
    for half in (0.01, 0.1, 0.2):
        low, high = skewed(2.0, 2 * half)
        assert 2.0 - low == pytest.approx(2 * half * (low / 2) ** 2)
        assert high - 2.0 == pytest.approx(2 * half * (high / 2) ** 2)
        assert high - 2.0 > 2.0 - low
    assert skewed(0.0, 0.0) == (0.0, 0.0)
    for half in (MOST_SKEWED, 0.5):
        with pytest.raises(AssertionError, match="no upper end"):
            skewed(1.0, half)


@pytest.mark.parametrize("half", [0.2, 0.2499, 0.25, 0.5])
def test_an_interval_too_wide_for_a_skewed_one_is_unsettled_and_keeps_its_ends(half: float) -> None:
    sections, values = 1 + half * np.tile([-1.0, 1.0], 10) * 2.0828, [np.random.default_rng(1).exponential(size=30_000)]
    metric = estimate(1.0, sections, np.array([1.0]), "s")
    found = by_size(metric, sections, np.array([1.0]), values, effective_size(values) / 4)
    assert not found.settled
    assert (found.lo, found.hi) == (metric.lo, metric.hi)


def test_a_slow_part_behind_much_noise_is_not_enough() -> None:
    """A few long spells decide the error of such a mean: its effective sample size is large, and hardly known."""
    slow, noise = 0.1 * (autoregressive(0.999, (5, 20_000)) - 10), np.random.default_rng(2).normal(size=(5, 20_000))
    found = autocorrelation(10 + slow + noise)
    assert found.size > ENOUGH
    assert found.windows < WINDOWS
    assert autocorrelation(10 + noise).windows > WINDOWS
    sections = 10 + 1.2 * np.tile([-1.0, 1.0], 10)
    metric = estimate(10.0, sections, np.array([10.0]), "s")
    assert metric.settled, "the half-width alone would pass"
    state = by_size(metric, sections, np.array([10.0]), list(10 + slow + noise), ENOUGH).state
    assert state.cause is Cause.FEW_EFFECTIVE
    assert state.times_longer == pytest.approx(WINDOWS / found.windows, rel=0.25)


def wrong_of_settled(metrics: list[Metric], truth: float) -> tuple[int, int]:
    """Return how many intervals without the true value are given out as settled, of how many settled ones."""
    settled = [metric for metric in metrics if metric.settled]
    return sum(not (metric.lo or 0.0) <= truth <= (metric.hi or 0.0) for metric in settled), len(settled)


def test_the_p99_of_a_queue_is_settled_only_where_its_interval_holds() -> None:
    """Short runs whose half-width is narrow by chance are those that missed the long queues."""
    queue, wrong, found = QUEUES["M/M/1"], [], []
    for load, requests in ((0.7, 4_000), (0.3, 10_000)):
        waits, _ = path(queue, load, (500, 500 + requests), np.random.default_rng(3))
        metrics = [sampled(waits[i : i + 5, 500:].ravel()).quantile(0.99, "s") for i in range(0, 500, 5)]
        few, settled = wrong_of_settled(metrics, queue.known(load)["queue_p99_s"])
        wrong.append(few / max(1, settled))
        found.append(settled)
    assert found[1] > 50, "longer runs with less load are settled"
    assert max(wrong) < 0.1


def test_a_share_that_changes_slowly_is_settled_only_where_its_interval_holds() -> None:
    """Sections that depend on each other look alike, so their interval is too narrow."""
    rng, wrong, found = np.random.default_rng(5), [], []
    for swing in (0.08, 0.0):
        metrics = []
        for seed in range(100):
            likely = 0.5 + swing * (autoregressive(math.exp(-1 / 500), (5, 4_000), seed) - 10)
            hits = (rng.uniform(size=likely.shape) < likely).astype(np.float64)
            counts, total = hits.reshape(20, -1).sum(axis=1), np.full(20, 1_000.0)
            metrics.append(share_by_size(counts, total, 4, list(hits), ENOUGH_FOR_SHARE))
        few, settled = wrong_of_settled(metrics, 0.5)
        wrong.append(few)
        found.append(settled)
    assert found[1] == 100, "independent requests are enough"
    assert max(wrong) < 10


def test_a_start_is_seen_where_every_replication_has_it() -> None:
    values = autoregressive(0.9, (5, 4_000))
    assert initial_transient(values) is None
    start = values + 5 * np.exp(-np.arange(4_000) / 400)
    found = initial_transient(start)
    assert 0.1 < found < 0.4
    start[0] = 20 - start[0]
    assert initial_transient(start) is None, "a start is the same in every replication"


def test_no_start_is_seen_in_queues_that_have_none() -> None:
    """Of 60 samples of busy queues in equilibrium at most five: a rate of 5 % gives more in 3 of 100 such tests."""
    seen = 0
    for load in (0.8, 0.9, 0.95):
        _, e2e = path(QUEUES["M/M/1"], load, (100, 12_000), np.random.default_rng(3))
        seen += sum(initial_transient(e2e[i : i + 5, 8_000:]) is not None for i in range(0, 100, 5))
    assert seen <= 6


@pytest.mark.parametrize("name", ["M/H2/1", "E2/M/1", "H2/M/1", "batches/M/1", "M/M/4", "M/M/3", "D/M/1"])
def test_sample_paths_of_other_queues_are_those_of_their_closed_forms(name: str) -> None:
    """Five standard errors of what eighty long replications say; at half load these are small."""
    queue, load = QUEUES[name], 0.5
    waits, e2e = (part[:, 500:] for part in path(queue, load, (80, 5_000), np.random.default_rng(1)))
    known = queue.known(load)
    for kind, values in (("queue", waits), ("e2e", e2e)):
        for metric, each in (
            (f"{kind}_mean_s", values.mean(axis=1)),
            (f"{kind}_p99_s", np.quantile(values, 0.99, axis=1)),
        ):
            error = each.std(ddof=1) / math.sqrt(len(each))
            assert abs(each.mean() - known[metric]) < 5 * error, metric
            assert error < 0.03 * known[metric], "few enough errors that a wrong form is seen"


def test_a_run_whose_start_outlasts_its_warm_up_says_which_warm_up_it_needs() -> None:
    """The cache is empty at first, so more requests wait for loads."""
    for warmup, warned in (("5%", True), ("40%", False)):
        sets = ["workload.requests=1500", "workload.arrivals.rate=18/s", "cache.gpu.size=20 GB", f"run.warmup={warmup}"]
        warnings = evaluate_scenario(load_scenario("cache-thrash", sets, seed=1).scenario).point.warnings
        text = "latencies settle only after the warm-up, so the start of the run is in the results: set run.warmup=30%"
        assert any(warning.startswith(text) for warning in warnings) == warned
