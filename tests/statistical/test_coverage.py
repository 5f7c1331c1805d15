"""How often intervals hold is counted as it should be (``bench_coverage``), and what is marked is what can't hold."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from bench_coverage import FIRST_REFERENCE, Task, cell, key, lines, rows, scenario_of, simulate, simulated, tasks
from known_queues import md1, mm1
from queue_paths import QUEUES, path

from sim.results.metric_state import Cause, Kind, State
from sim.results.point import Metric
from sim.results.statistics import (
    CYCLES,
    CYCLES_P99,
    INDEPENDENT,
    NARROW,
    STRIDES,
    QueueCycles,
    Sampled,
    cycles_of,
    needs_longer_run,
)
from sim.studies.evaluate import doubled, evaluate_scenario

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
    assert half["e2e_mean_s"].settled == RUNS
    assert half["e2e_mean_s"].held[0] >= RUNS - 1
    assert {name: c.settled for name, c in busy.items()} == dict.fromkeys(busy, 0)
    assert {c.marked + c.settled for c in half.values()} == {RUNS}


def test_near_saturation_no_time_is_settled() -> None:
    line = simulated(Task("M/D/1", 0.97, 5_000, seed=1))
    times = [settled for name, (_, lo, _, settled, _) in line["metrics"].items() if name != "miss_ratio" and lo]
    assert times == [False] * len(times)
    assert times


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


def test_cycles_are_counted_from_the_lowest_quarter_to_the_highest() -> None:
    values = np.array([0.0, 3, 2, 3, 1, 0, 1, 3, 3, 0, 2, 0, 2, 0, 3, 1, 1, 2, 2, 1])
    assert np.quantile(values, [0.25, 0.75]).tolist() == [0.75, 2.25]
    # Five are in the lowest quarter and five in the highest: of ten pairs, a quarter is low and then high.
    assert cycles_of(values) == QueueCycles(count=3, independent=5 * 5 / 10, values=20)


def test_equal_values_are_told_apart_from_independent_ones() -> None:
    """Half of the waits are 0: a cycle takes six values where they don't depend on each other, not eight."""
    rng = np.random.default_rng(1)
    waits = np.where(rng.uniform(size=40_000) < 0.5, 0.0, rng.exponential(size=40_000))
    found = cycles_of(waits)
    assert found.independent == pytest.approx(40_000 / 6, rel=0.02)
    assert found.count == pytest.approx(found.independent, rel=0.05)
    busy = cycles_of(np.maximum.accumulate(waits.reshape(-1, 4), axis=1).ravel())
    assert busy.independent > 1.5 * busy.count


def test_a_few_stretches_are_few_where_many_share_the_highest_value() -> None:
    rng = np.random.default_rng(1)
    slow = np.repeat(np.where(rng.uniform(size=100) < 0.5, 1.0, 1.3), 400)
    assert cycles_of(slow).independent > 9_000
    metric = sampled(slow).mean("s")
    assert metric.hi is not None
    assert metric.hi < 1.1 * slow.mean()
    assert needs_longer_run(metric)
    assert cycles_of(np.ones(1_000)).count == 0


def test_many_short_runs_are_made_longer_until_there_are_enough_cycles() -> None:
    """A half-width of 10 % is reached sooner, by chance."""
    scenario = scenario_of(Task("M/M/1", 0.7, 1_000, seed=1))
    asked = scenario.model_copy(update={"run": scenario.run.model_copy(update={"half_width": 0.1})})
    point = evaluate_scenario(asked).point
    for metric, requests in (
        (Metric(0.15, 0.14, 0.16, "s", state=State(Cause.FEW_CYCLES, 259, 3500)), 2_000),
        (Metric(0.15, 0.14, 0.16, "s"), None),
        (Metric(0.15, 0.14, 0.16, "s", state=State(Cause.LOADER_BUSY, share=0.97)), None),
    ):
        point.metrics["e2e_p99_s"] = metric
        longer = doubled(asked, point)
        assert (None if longer is None else longer.workload.requests) == requests


def test_independent_requests_need_no_cycles() -> None:
    """A p99 of few but independent requests is settled by its half-width alone."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        sample = sampled(rng.uniform(size=4_000))
        assert sample.cycles[0].count < CYCLES
        assert sample.mean("s").settled
        assert sample.quantile(0.99, "s").settled


def test_hits_that_pass_a_queue_are_no_cycles() -> None:
    """A fifth of the requests waits for nothing; the others wait as long as the queue is, which changes slowly."""
    rng = np.random.default_rng(1)
    queue = 1 + np.repeat(rng.uniform(size=100), 200)
    single, mean = sampled(np.where(rng.uniform(size=20_000) < 0.3, 0.0, queue)).cycles
    assert single.count > 1_000
    assert mean.count < 150


def test_a_narrow_interval_of_a_slow_queue_is_luck() -> None:
    """Each value sixteen times: as narrow as before, but with stretches of requests that go together."""
    slow = np.repeat(np.random.default_rng(1).exponential(size=8_000), 16)
    metric = sampled(slow).quantile(0.99, "s")
    assert metric.value is not None
    assert metric.hi is not None
    assert metric.hi < 1.1 * metric.value, "the half-width alone would pass"
    assert not metric.settled
    assert (metric.state.kind, metric.state.needed) == (Kind.RUN_TOO_SHORT, CYCLES_P99)
    assert metric.note.startswith("the run is too short for a reliable value; use about ")
    longer = sampled(np.repeat(np.random.default_rng(1).exponential(size=40_000), 16))
    assert longer.quantile(0.99, "s").settled


def test_what_hardly_changes_needs_few_cycles() -> None:
    slow = 100 + np.repeat(np.random.default_rng(1).exponential(size=500), 16)
    assert sampled(slow).mean("s").settled


def test_a_dozen_stretches_are_too_few_for_a_narrow_interval_too() -> None:
    """A half-width of 2 % needs a quarter of the cycles, not none."""
    metric = sampled(20 + np.repeat(np.random.default_rng(1).exponential(size=100), 160)).mean("s")
    assert metric.value is not None
    assert metric.hi is not None
    half = metric.hi / metric.value - 1
    assert 0.015 < half < 0.03
    needed = round(CYCLES * (half / NARROW) ** 2)
    assert (metric.state.cause, metric.state.needed) == (Cause.FEW_CYCLES, needed)
    assert 10 <= metric.state.found < 20


def test_weak_dependence_needs_fewer_cycles() -> None:
    """Each value depends a little on the one before: a cycle takes 10 to 11 values instead of 8."""
    noise = np.random.default_rng(1).exponential(size=(3, 8_001))
    values = noise[:, 1:] + 0.35 * noise[:, :-1]
    short, long = sampled(values[0]), sampled(values.ravel())
    cycles = long.cycles[0]
    assert INDEPENDENT < cycles.independent / cycles.count < STRIDES[1][1]
    assert cycles.count < CYCLES_P99
    assert long.quantile(0.99, "s").settled
    assert short.quantile(0.99, "s").state.kind is Kind.RUN_TOO_SHORT


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
