"""Loads: those that block steps or that no request started, and the end of those through slow or stalled storage."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import GRID, build, fixed_time, write_profile, write_trace

from sim.results.records import Recording
from sim.spec.scenario import Scenario
from sim.studies.evaluate import EvaluationOptions, evaluate_scenario
from sim.traffic.request import DELAYED_HIT, FROM_GPU, FROM_HOST, FROM_STORAGE, HIT, MISS
from sim.world.build import build_world
from sim.world.faults.storage_faults import Attempts, Delay, Failures, StorageFaults, StorageSpeed, Window
from sim.world.replication import simulate
from sim.world.rollouts.versions import DuplicateVersionBytes
from sim.world.times import ReplicaDraws, reload_times, tier_times

D = GRID
"""Seconds of every step, whatever it does. A load takes three of them."""


def scenario_of(rows: list[tuple[float, int, int, int]], **sections: Any) -> Scenario:
    """One replica with two adapters; rows give arrivals in steps, adapters, prompt and output tokens."""
    scenario: Scenario = build(
        workload={"trace": {"file": write_trace([(at * D, *rest) for at, *rest in rows])}},
        adapters={"count": 2, "size": "1 MiB"},
        fleet={
            "profile": write_profile({"fixed_s": D, "tokens": [[0, 0.0], [64, 0.0]]}),
            "max_num_seqs": 8,
            "max_num_batched_tokens": 64,
            "block_size": 16,
            "kv_tokens": 16384,
            **sections.pop("fleet", {}),
        },
        storage={"load": fixed_time(3 * D), **sections.pop("storage", {})},
        **sections,
    )
    return scenario


def run(rows: list[tuple[float, int, int, int]], **sections: Any) -> Recording:
    return simulate(build_world(scenario_of(rows, **sections)), 0, 1)


@pytest.mark.parametrize("eviction", ["lru", "vllm-lru"])
def test_requests_without_their_adapter_wait_for_all_loads_of_their_step(eviction: str) -> None:
    # Two requests for adapter 0 and one for adapter 1 join at once; one for adapter 0 joins later and finds it.
    rows = [(0.0, 0, 8, 20), (0.0, 0, 8, 20), (0.0, 1, 8, 20), (12.5, 0, 8, 1)]
    cache = {"gpu": {"slots": 2}, "eviction": eviction}
    recording = run(rows, storage={"mode": "blocking"}, cache=cache, fleet={"load_at": "admission"})
    requests = recording.requests
    assert requests["outcome"].tolist() == [MISS, DELAYED_HIT, MISS, HIT]
    assert requests["tier"].tolist() == [FROM_STORAGE] * 3 + [FROM_GPU]
    assert (requests["load_wait_s"] / D).tolist() == [6, 6, 6, 0]
    assert (requests["load_queue_s"] / D).tolist() == [0, 0, 0, 0]
    assert (requests["first_token_s"] / D).tolist() == [7, 7, 7, 14]


@pytest.mark.parametrize(("storage", "seconds"), [({"mode": "blocking"}, 3 + 3 + 5 * 2), ({"mode": "overlap"}, 3 + 3)])
def test_copies_from_host_memory_count_as_loading_where_they_block_steps(storage: dict[str, Any], seconds: int) -> None:
    """Adapters take turns in one slot: two loads from storage, then copies of two steps each, one every ten steps."""
    scenario = scenario_of(
        [(10.0 * place, place % 2, 8, 1) for place in range(8)],
        storage={"host_load": fixed_time(2 * D), **storage},
        cache={"gpu": {"slots": 1}, "host": {"slots": 2}},
        fleet={"load_at": "admission"},
    )
    point = evaluate_scenario(scenario, EvaluationOptions()).point
    assert point.metrics["loader_utilization"].value == pytest.approx(seconds / 70)  # up to the last arrival
    assert point.capacity.loader.storage == pytest.approx(6 / 70), "only this would more host memory save"
    assert point.capacity.loader.offered_load == pytest.approx(seconds / 70, rel=0.3), "the last load begins later"


def test_where_host_memory_fills_ahead_the_busier_of_loaders_and_steps_counts() -> None:
    rows = [(10.0 * place, place % 2, 8, 1) for place in range(8)]
    sections: dict[str, Any] = {
        "cache": {"gpu": {"slots": 1}, "host": {"slots": 2, "fill": "arrival"}},
        "fleet": {"load_at": "admission"},
    }
    for host_load, seconds in ((2, 7 * 2), (0.5, 2 * 3)):
        storage = {"mode": "blocking", "host_load": fixed_time(host_load * D)}
        point = evaluate_scenario(scenario_of(rows, storage=storage, **sections), EvaluationOptions()).point
        assert point.metrics["loader_utilization"].value == pytest.approx(seconds / 70)


# Loads that no request started, and the memory of several versions of one adapter


def test_a_reload_takes_the_time_of_its_tier() -> None:
    scenario = build(
        workload={"requests": 10, "arrivals": {"process": "poisson", "rate": "1/s"}},
        adapters={"count": 8, "rank": 8},
        cache={"eviction": "vllm-lru", "gpu": {"slots": 4}, "host": {"slots": 6}},
        storage={"mode": "blocking", "load": fixed_time(0.125), "host_load": fixed_time(0.005)},
        fleet={"engine": "vllm-0.32"},
        run={"seed": 1},
    )
    world = build_world(scenario)
    seconds = reload_times(
        tier_times(scenario, world.pools[0].profile, world.pools[0].population), ReplicaDraws(1, 0, 0)
    )
    assert [seconds(adapter, tier) for adapter in (0, 7) for tier in (FROM_STORAGE, FROM_HOST)] == [0.125, 0.005] * 2


def test_a_slower_disk_takes_longer_for_every_byte() -> None:
    sections = {
        "workload": {"requests": 10, "arrivals": {"process": "poisson", "rate": "1/s"}},
        "adapters": {"count": 2, "size": "100 MB"},
        "fleet": {"profile": "h100-64gb/llama-3.1-8b/vllm-0.8.5"},
    }
    slow, slower = (build(**sections, storage={"bandwidth": rate}) for rate in ("200 MB/s", "100 MB/s"))
    pools = [build_world(scenario).pools[0] for scenario in (slow, slower)]
    storage, host = zip(*(tier_times(pool.scenario, pool.profile, pool.population) for pool in pools), strict=True)
    assert storage[1].mean_s(0) - storage[0].mean_s(0) == pytest.approx(0.5)
    assert host[0].mean_s(0) == host[1].mean_s(0)
    profile = pools[0].profile
    assert profile is not None
    assert {draw.load.storage.bandwidth_bytes_per_s for draw in profile.draws} == {200e6}


def test_the_newest_version_is_the_one_that_counts_as_needed() -> None:
    """Adapter 0 of 10 bytes is replaced by version 2 of 30 bytes, which has number 2 in the caches."""
    extra = DuplicateVersionBytes(original=[0, 1, 0], size_bytes=[10, 500, 30], concerned={0})
    for adapter in (0, 1, 2):
        extra.placed(adapter, replica=0)
    assert extra.peak == 10
    extra.left(0, replica=0)
    extra.placed(0, replica=1)
    assert extra.peak == 10, "one version on each replica"


STEP = 2.0**-10
windows = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 30), st.sampled_from((2.0, 4.0, 8.0, math.inf))).map(
        lambda w: (w[0] / 4, (w[0] + w[1]) / 4, w[2])
    ),
    max_size=4,
)


def naive(windows: list[Window], start_s: float, work_s: float) -> float:
    """Let time pass in steps of ``STEP``, each with the speed at its begin; everything is a multiple of it."""
    now = start_s
    while work_s > 0:
        speed = 1.0
        for begin_s, end_s, factor in windows:
            if begin_s <= now < end_s:
                speed /= factor
        work_s -= STEP * speed
        now += STEP
    return now


@given(windows, st.integers(0, 60), st.integers(1, 60))
def test_closed_form_meets_an_integration_in_small_steps(windows: list[Window], start: int, work: int) -> None:
    ended_s = StorageSpeed(windows).finish(start / 4, work / 16)
    stepped_s = naive(windows, start / 4, work / 16)
    assert stepped_s - STEP < ended_s <= stepped_s


@given(windows, st.floats(0, 20), st.floats(0, 20), st.floats(0, 20))
def test_who_starts_later_or_has_more_to_do_ends_no_earlier(
    windows: list[Window], start_s: float, work_s: float, more_s: float
) -> None:
    speed = StorageSpeed(windows)
    ended_s = speed.finish(start_s, work_s)
    assert ended_s >= start_s + work_s - 1e-9
    assert speed.finish(start_s, work_s + more_s) >= ended_s - 1e-9
    assert speed.finish(start_s + more_s, work_s) >= ended_s - 1e-9


@given(windows, st.floats(0, 20), st.floats(0.01, 20), st.floats(0, 1))
def test_a_load_in_two_parts_ends_when_the_whole_does(
    windows: list[Window], start_s: float, work_s: float, part: float
) -> None:
    speed = StorageSpeed(windows)
    between_s = speed.finish(start_s, part * work_s)
    assert speed.finish(between_s, (1 - part) * work_s) == pytest.approx(speed.finish(start_s, work_s), abs=1e-9)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_at_full_speed_a_load_takes_its_seconds_to_the_last_bit(start_s: float, work_s: float) -> None:
    windows = [(1.0, 2.0, 3.0)]
    assume(start_s + work_s <= 1.0 or start_s >= 2.0)
    speed = StorageSpeed(windows)
    assert speed.seconds(start_s, work_s) == work_s
    assert speed.finish(start_s, work_s) == start_s + work_s


@given(st.integers(0, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 200))
def test_a_stall_delays_a_load_under_way_by_its_length(start: int, before: int, work: int, length: int) -> None:
    assume(before < work)
    begin_s = (start + before) / 8
    speed = StorageSpeed([(begin_s, begin_s + length / 8, math.inf)])
    assert speed.finish(start / 8, work / 8) == (start + work + length) / 8


def test_factors_of_overlapping_windows_multiply() -> None:
    speed = StorageSpeed([(0.0, 10.0, 2.0), (4.0, 10.0, 4.0)])
    assert speed.seconds(4.0, 0.5) == 4.0
    assert speed.seconds(2.0, 1.5) == 2.0 + 4.0


def test_what_takes_no_time_takes_none_but_in_a_stall() -> None:
    speed = StorageSpeed([(1.0, 2.0, 3.0), (2.0, 5.0, math.inf)])
    assert [speed.seconds(start_s, 0.0) for start_s in (0.0, 1.5, 3.0, 5.0)] == [0.0, 0.0, 2.0, 0.0]


def failing(probability: float, **fields: float) -> StorageFaults:
    values = {"begin_s": 0.0, "end_s": math.inf, "retries": 3, "backoff_s": 1.0} | fields
    keys = tuple(range(101))
    return StorageFaults(StorageSpeed([]), [], [Failures(probability=probability, keys=keys, **values)])  # type: ignore[arg-type]


def test_pauses_double_and_the_last_attempt_fails_for_good() -> None:
    spans = ((10.0, 10.5), (11.5, 12.0), (14.0, 14.5), (18.5, 19.0))
    assert failing(1.0).attempts(10.0, 0.5, 0, 7) == Attempts(spans, 9.0, succeeds=False)


def test_attempts_beyond_the_end_of_the_fault_succeed() -> None:
    two = ((10.0, 10.5), (11.5, 12.0))
    assert failing(1.0, end_s=12.0).attempts(10.0, 0.5, 0, 7) == Attempts(two, 2.0, succeeds=True)
    assert failing(1.0, begin_s=11.0).attempts(10.0, 0.5, 0, 7) == Attempts(((10.0, 10.5),), 0.5, succeeds=True)


def test_attempts_fail_as_often_as_is_said() -> None:
    faults, loads = failing(0.3), 20_000
    ends = [faults.attempts(0.0, 1.0, 0, number) for number in range(loads)]
    first = sum(len(end.spans) > 1 for end in ends) / loads
    assert abs(first - 0.3) < 4 * math.sqrt(0.3 * 0.7 / loads)
    lost, p = sum(not end.succeeds for end in ends) / loads, 0.3**4
    assert abs(lost - p) < 4 * math.sqrt(p * (1 - p) / loads)


def test_a_network_delays_loads_of_its_share_of_adapters_while_it_is_there() -> None:
    faults = StorageFaults(StorageSpeed([]), [Delay(1.0, 2.0, lambda drawn: 5.0 + drawn, 0.4, 11, 22)], [])
    delayed = [faults.attempts(1.5, 0.25, adapter, 3).seconds > 0.25 for adapter in range(5000)]
    assert abs(sum(delayed) / 5000 - 0.4) < 4 * math.sqrt(0.4 * 0.6 / 5000)
    remote = delayed.index(True)
    for outside_s in (0.99, 2.0):
        assert faults.attempts(outside_s, 0.25, remote, 3).seconds == faults.seconds(outside_s, 0.25, remote) == 0.25
    seconds = [faults.attempts(1.0, 0.25, remote, number).seconds for number in range(100)]
    seconds += [faults.seconds(1.0, 0.25, remote) for _ in range(100)]
    assert len(set(seconds)) == 200, "each load has a draw of its own"
    assert all(5.25 <= each < 6.25 for each in seconds)


def test_versions_of_an_adapter_lie_in_the_same_place() -> None:
    names = [0, 1, 2, 3, 0, 1, 2, 3]
    faults = StorageFaults(StorageSpeed([]), [Delay(0.0, 9.0, lambda drawn: 1.0, 0.5, 4, 5)], [], names)
    delays = [faults.attempts(0.0, 0.0, adapter, 3).seconds for adapter in range(8)]
    assert delays[:4] == delays[4:]
    assert 0.0 < sum(delays) < 8.0
