"""Every rate and ratio of a handful of requests that are written out, against numbers worked out on paper.

Two requests come in the warm-up, before 2 s; four are measured, the last at 10 s, where the measured time ends.
"""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
from made_recordings import recording_of, scenario_facts

from sim.results.metrics import measure
from sim.results.point_summary import summarise
from sim.results.recording.leaps import GAP_BINS, gap_bins
from sim.results.records import Recording
from sim.traffic.request import DELAYED_HIT, FROM_GPU, FROM_HOST, FROM_STORAGE, HIT, MISS

REQUESTS = {
    "arrival_s": [0.0, 1.0, 2.0, 4.0, 6.0, 10.0],
    "admitted_s": [0.5, 1.0, 2.5, 4.5, 6.0, 10.0],
    "first_token_s": [1.0, 1.5, 3.0, 5.0, 6.5, 11.0],
    "finished_s": [3.0, 1.75, 5.0, 9.0, 6.5, 12.0],
    "output_tokens": [5, 2, 5, 3, 1, 3],
    "adapter": [0, 0, 1, 1, 0, 2],
    "outcome": [MISS, HIT, MISS, DELAYED_HIT, HIT, MISS],
    "tier": [FROM_STORAGE, FROM_GPU, FROM_STORAGE, FROM_STORAGE, FROM_GPU, FROM_STORAGE],
    "load_queue_s": [0.0, 0.0, 0.25, 0.0, 0.0, 0.0],
    "load_wait_s": [0.5, 0.0, 0.5, 0.25, 0.0, 0.0],
}
LOADS = {
    "started_s": [1.5, 3.0, 5.0, 9.5],
    "ended_s": [2.5, 4.0, 6.0, 11.0],
    "asked_s": [1.5, 3.0, 5.0, 9.5],
    "adapter": [0, 1, 1, 2],
    "tier": [FROM_STORAGE, FROM_STORAGE, FROM_HOST, FROM_STORAGE],
    "replica": [0, 0, 0, 0],
}
REPLICATIONS = 25
"""All the same: a miss ratio needs 100 requests."""


def recording() -> Recording:
    gap_counts = np.zeros((2, GAP_BINS), dtype=np.int64)
    # Of 100 gaps 96 take 10 ms, three 100 ms, one a second.
    np.add.at(gap_counts, (np.array([0, 1, 1, 0]), gap_bins(np.array([0.01, 0.01, 0.1, 1.0]))), [50, 46, 3, 1])
    return recording_of(
        {name: np.array(values) for name, values in REQUESTS.items()},
        np.array([2.0, 6.0, 10.0]),
        12.0,
        loads={name: np.array(values, dtype=np.float64) for name, values in LOADS.items()},
        section_of=np.array([-1, -1, 0, 0, 1, 1], dtype=np.int32),
        gap_counts=gap_counts,
        gap_sum_s=np.array([1.5, 0.76]),
        busy_s=np.array([3.0, 1.0]),
        blocked_s=np.array([[1.0, 0], [1.0, 0], [0.5, 1.0], [0.5, 0]]),
        room_short_s=0.5,
        busy_by_replica=np.array([3.0, 1.0]),
    )


FACTS = scenario_facts({"e2e_p99_s": 3.0}, replicas=2, loaders=2, size_bytes=np.array([10, 30, 60]))
ASKED = replace(FACTS, slo={**FACTS.slo, "itl_p95_s": 1.0, "itl_p90_s": 1.0})
POINT = summarise([recording() for _ in range(REPLICATIONS)], ASKED, {}, [])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("miss_ratio", 2 / 4),
        ("delayed_hit_ratio", 1 / 4),
        ("hit_ratio", 1 / 4),
        ("byte_miss_ratio", (30 + 60) / (30 + 30 + 10 + 60)),
        ("loads_per_request", 3 / 4),  # the first load began in the warm-up
        # Half a second of the first load, all of the second, half a second of the last, of 2 loaders of 2 replicas.
        ("loader_utilization", (0.5 + 1.0 + 0.5) / (8 * 2 * 2)),
        ("gpu_utilization", (3 + 1) / (8 * 2)),
        ("queue_mean_s", (0.5 + 0.5 + 0 + 0) / 4),
        ("load_wait_mean_s", (0.5 + 0.25) / 4),
        ("ttft_mean_s", (1 + 1 + 0.5 + 1) / 4),
        ("e2e_mean_s", (3 + 5 + 0.5 + 2) / 4),
        ("tpot_mean_s", (2 / 4 + 4 / 2 + 1 / 2) / 3),  # the request of one token has none
        ("itl_mean_s", (1.5 + 0.76) / 100),
        ("throughput_rps", 4 / 8),  # the first ends in the measured time, the last after it
        ("output_tokens_per_s", (5 + 5 + 3 + 1) / 8),
        ("goodput_rps", 2 / 8),  # not the first, which came in the warm-up, nor the fourth, which took 5 s
        ("slo_attainment", 3 / 4),
    ],
)
def test_a_metric_is_what_paper_says(name: str, expected: float) -> None:
    assert POINT.metrics[name].value == pytest.approx(expected, rel=1e-12)


def test_the_p99_of_gaps_leaves_one_in_a_hundred_above_and_others_are_there_if_asked_for() -> None:
    found = {name: metric.value for name, metric in POINT.metrics.items() if name.startswith("itl_p")}
    assert found == pytest.approx({"itl_p90_s": 0.01, "itl_p95_s": 0.01, "itl_p99_s": 0.1}, rel=1e-3)


def test_counts_are_sums_over_replications() -> None:
    assert POINT.metrics["completed"].value == 4 * REPLICATIONS


def test_the_breakdown_takes_loads_out_of_the_wait_for_admission() -> None:
    stages = {"loader_queue_s": 0.25, "load_s": 0.5, "queue_s": 0.25, "prefill_s": 2.5, "decode_s": 7.0}
    assert POINT.breakdown == pytest.approx({name: seconds / 4 for name, seconds in stages.items()})


def test_the_load_offered_to_loaders_is_that_of_misses() -> None:
    # Two misses, and the mean load holds its loader for 3.5 / 3 s; who joined the load of another needs none.
    assert POINT.capacity.loader.offered_load == pytest.approx(2 * (1 + 1 + 1.5) / 3 / (8 * 2 * 2))


def test_shares_of_time_in_which_something_lacked_are_of_all_replicas() -> None:
    capacity = POINT.capacity.to_json()
    assert capacity["seats"]["blocked_share"] == pytest.approx(1.0 / 16)
    assert capacity["kv"]["blocked_share"] == pytest.approx(1.5 / 16)
    assert capacity["slots"]["blocked_share"] == pytest.approx((0.5 + 0.5) / 16)


def test_a_miss_ratio_of_few_requests_is_withheld() -> None:
    metrics = summarise([recording() for _ in range(REPLICATIONS - 1)], FACTS, {}, []).metrics
    for name in ("miss_ratio", "delayed_hit_ratio", "hit_ratio", "byte_miss_ratio", "loads_per_request"):
        assert metrics[name].value is None
        assert metrics[name].note == "not enough data: 96 requests were measured, 100 are needed"
    assert metrics["throughput_rps"].value is not None


def test_columns_are_freed_without_the_collector() -> None:
    _, measured = measure([recording()] * REPLICATIONS, FACTS)
    known = weakref.ref(measured)
    gc.disable()
    try:
        del measured
        assert known() is None, "a reference cycle keeps all columns of a run in memory"
    finally:
        gc.enable()
