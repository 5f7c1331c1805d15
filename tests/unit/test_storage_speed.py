"""The end of a load through slow and stalled storage, in closed form, against an integration in small steps."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sim.world.faults.storage_faults import Attempts, Delay, Failures, StorageFaults, StorageSpeed, Window

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
