"""Where a run is cut: the warm-up and sections; and what leaps, loads and requests leave in each of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import stdtrit
from strategies import GRID, build, fixed_time, run, write_profile, write_trace

from sim.results.intervals import student
from sim.results.recording.leaps import Leaps, gap_bins
from sim.results.recording.recorder import Recorder
from sim.results.records import Recording
from sim.results.sample_data import _overlap
from sim.results.statistics import estimate
from sim.results.timeline import _passed
from sim.spec.scenario import Scenario
from sim.world.build import build_world
from sim.world.replication import simulate

BURSTY = [0.01 * i for i in range(90)] + [10.0 + i for i in range(10)]
"""Ninety requests within a second, then one a second."""


def sectioned(sections: int, warmup: float, workload: dict[str, Any]) -> Recording:
    scenario = build(
        workload=workload,
        adapters={"count": 1, "size": "1 MiB"},
        cache={"gpu": {"slots": 1}},
        storage={"load": fixed_time(GRID)},
        fleet={"engine": "fixed", "service": fixed_time(GRID)},
        run={"seed": 1, "warmup": warmup},
    )
    return simulate(build_world(scenario), 0, sections)


def trace(arrivals: list[float]) -> dict[str, Any]:
    return {"trace": {"file": write_trace([(arrival, 0, 1, 1) for arrival in arrivals])}}


def test_sections_have_equally_many_requests_however_they_are_spread_over_time() -> None:
    recording = sectioned(3, 0.1, trace(BURSTY))
    assert recording.bounds == pytest.approx([BURSTY[10], BURSTY[40], BURSTY[70], BURSTY[99]])
    assert np.bincount(recording.section_of + 1).tolist() == [10, 30, 30, 30], "the first ten are the warm-up"


def test_a_duration_cuts_a_trace_and_ends_its_last_section() -> None:
    recording = sectioned(3, 0.2, {**trace(BURSTY), "duration": "15 s"})
    assert recording.bounds == pytest.approx([BURSTY[19], BURSTY[44], BURSTY[69], 15.0])
    assert np.bincount(recording.section_of + 1).tolist() == [19, 25, 25, 26], "95 requests come before 15 s"


def test_where_only_the_time_is_known_warm_up_and_sections_are_shares_of_it() -> None:
    recording = sectioned(4, 0.2, {"duration": "15 s", "arrivals": {"process": "poisson", "rate": "20/s"}})
    assert recording.bounds == pytest.approx([3.0, 6.0, 9.0, 12.0, 15.0])
    arrival_s = recording.requests["arrival_s"]
    assert np.array_equal(recording.section_of, np.floor(arrival_s / 3.0) - 1)


def test_without_a_warm_up_every_request_is_measured() -> None:
    recording = sectioned(2, 0.0, trace(BURSTY))
    assert recording.bounds[0] == BURSTY[0]
    assert np.bincount(recording.section_of + 1).tolist() == [0, 50, 50]


def test_the_spread_of_five_replications_counts_where_it_is_wider() -> None:
    """Sections that agree say nothing of waves longer than a section; replications that differ do."""
    sections, replications = np.tile([0.99, 1.01], 10), np.array([0.5, 1.5, 0.5, 1.5, 1.0])
    wide = estimate(1.0, sections, replications, "s")
    assert wide.hi == pytest.approx(1.0 + student(4) * math.sqrt(1.0 / (5 * 4)))
    narrow = estimate(1.0, sections, replications[:4], "s")
    assert narrow.hi == pytest.approx(1.0 + student(19) * math.sqrt(float(np.sum((sections - 1.0) ** 2)) / (20 * 19)))


def test_students_t_is_what_scipy_computes() -> None:
    asked = [*range(1, 61), 1000]
    assert [student(degrees) for degrees in asked] == pytest.approx(stdtrit(asked, 0.975).tolist(), rel=1e-14)


# Leaps, loads and instants, from rows whose parts can be counted on paper


Leap = tuple[float, float, float, float, int, int, int, int, int]
"""Arguments of ``Recorder.record_leap``."""


def sections_of(*leaps: Leap, bounds: tuple[float, ...] = (10.0, 15.0, 20.0), replicas: int = 1) -> Recording:
    recorder = Recorder(len(bounds) - 1, replicas)
    for bound in bounds:
        recorder.mark(bound)
    for leap in leaps:
        recorder.record_leap(*leap)
    return recorder.close(30.0, 0.0)


def gaps(recording: Recording, section: int, *seconds: float) -> list[int]:
    return recording.gap_counts[section, gap_bins(np.array(seconds))].tolist()


def test_a_leap_from_the_warm_up_into_the_drain_counts_in_every_section_with_its_part() -> None:
    # 14 steps of 1 s, the first after a load of 0.25 s: they start at 7.5, then at 8.75, 9.75, ... and end at 21.75.
    recording = sections_of((7.5, 1.0, 0.0, 0.25, 14, 3, 4, 2, 1), replicas=2)
    assert recording.busy_s.tolist() == [5.0, 5.0]
    assert recording.busy_by_replica.tolist() == [0.0, 10.0]
    assert recording.blocked_s.tolist() == [[0, 0], [0, 0], [5.0, 5.0], [0, 0]]
    assert recording.running_area == 4 * 14.25, "of the whole run"
    # Starts from 10.75 to 14.75, and from 15.75 to 20.75, the last one in the drain; three tokens each.
    assert recording.gap_counts.sum(axis=1).tolist() == [15, 18]
    assert recording.gap_sum_s.tolist() == [15.0, 18.0]
    assert gaps(recording, 0, 1.0, 1.25) == [15, 0], "the step with the load started in the warm-up"


def test_the_steps_of_a_cut_leap_keep_their_length() -> None:
    # Steps of 1, 1.5, 2 and 2.5 s start at 12, 13, 14.5 and 16.5.
    recording = sections_of((12.0, 1.0, 0.5, 0.0, 4, 1, 1, 0, 0))
    assert recording.busy_s.tolist() == [3.0, 4.0]
    assert recording.gap_sum_s.tolist() == [4.5, 2.5]
    assert gaps(recording, 0, 1.0, 1.5, 2.0, 2.5) == [1, 1, 1, 0]
    assert gaps(recording, 1, 1.0, 1.5, 2.0, 2.5) == [0, 0, 0, 1]


def test_a_step_that_starts_at_a_bound_belongs_to_the_section_that_begins_there() -> None:
    recording = sections_of((8.0, 1.0, 0.0, 0.0, 8, 1, 1, 0, 0))
    assert recording.gap_counts.sum(axis=1).tolist() == [5, 1]
    assert recording.busy_s.tolist() == [5.0, 1.0]


@pytest.mark.parametrize("growth", [0.0, 1e-9, 0.003])
def test_steps_before_a_time_are_counted_exactly_where_rounding_is_not(growth: float) -> None:
    steps = np.arange(1.0, 400.0)
    same = np.ones(len(steps))
    leaps = Leaps(0.7 * same, 500 * same, 0.1 * same, growth * same, 0.3 * same, same)
    starts = leaps.start + leaps.seconds(steps)
    assert leaps.steps_before(starts).tolist() == steps.tolist()
    assert leaps.steps_before(np.nextafter(starts, np.inf)).tolist() == (steps + 1).tolist()


def test_only_the_first_step_of_a_leap_waits_for_its_loads() -> None:
    recording = sections_of((11.0, 0.5, 0.0, 2.0, 3, 1, 1, 0, 0))
    assert gaps(recording, 0, 2.5, 0.5) == [1, 2]
    assert recording.gap_sum_s.tolist() == [3.5, 0.0]


def test_what_lies_outside_the_measured_time_is_not_busy() -> None:
    before, after = (1.0, 1.0, 0.0, 0.0, 9, 1, 1, 0, 0), (20.0, 1.0, 0.0, 0.0, 2, 1, 1, 0, 0)
    recording = sections_of(before, after)
    assert recording.busy_s.tolist() == [0.0, 0.0]
    assert recording.gap_counts.sum(axis=1).tolist() == [0, 2], "tokens of the drain belong to measured requests"


def timed(arrivals: list[float], end_s: float, **sections: Any) -> Scenario:
    """Requests for one adapter that is there from the start; the first comes in the warm-up."""
    trace = write_trace([(arrival, 0, 2, 40) for arrival in arrivals])
    return build(
        workload={"trace": {"file": trace}, "duration": f"{end_s} s"},
        adapters={"count": 1, "size": "1 MiB"},
        cache={"gpu": {"slots": 1}, "warm": 1},
        run={"seed": 1, "warmup": 1.001 / len(arrivals)},
        **sections,
    )


def test_a_server_that_never_rests_is_busy_all_the_time() -> None:
    fleet = {"engine": "fixed", "service": fixed_time(3.0)}
    # Served from 0 to 3, from 3 to 6, and from 6 on.
    recording = run(timed([0.0, 2.0, 4.0, 6.0], 8.0, fleet=fleet), sections=3)
    assert recording.bounds.tolist() == [2.0, 4.0, 6.0, 8.0]
    assert recording.busy_s.tolist() == [2.0, 2.0, 2.0]
    assert recording.busy_by_replica.tolist() == [6.0]


def test_one_service_that_outlasts_the_run_is_all_of_it() -> None:
    fleet = {"engine": "fixed", "service": fixed_time(100.0)}
    recording = run(timed([0.0, 2.0, 5.0], 8.0, fleet=fleet), sections=2)
    assert recording.bounds.tolist() == [2.0, 5.0, 8.0]
    assert recording.busy_s.tolist() == [3.0, 3.0]
    assert recording.running_area == 8.0


@pytest.mark.parametrize(("ticks", "expected"), [(1, [4, 3]), (4, [1, 0])])
def test_a_step_under_way_at_the_end_keeps_the_gpu_busy(ticks: int, expected: list[int]) -> None:
    # One request decodes from the start on, and the batch has no place for the others.
    profile = write_profile({"fixed_s": ticks * GRID})
    fleet = {"profile": profile, "kv_tokens": 64, "block_size": 1, "max_num_seqs": 1}
    recording = run(timed([0.0, 4.25 * GRID, 8.5 * GRID], 12.75 * GRID, fleet=fleet), sections=2)
    assert (recording.bounds / GRID).tolist() == [4.25, 8.5, 12.75]
    assert (recording.busy_s / GRID).tolist() == [4.25, 4.25]
    assert recording.running_area == 12.75 * GRID
    # Tokens end the steps that start at 5 to 8 and at 9 to 11; of steps of four ticks, the one that starts at 8.
    assert recording.gap_counts.sum(axis=1).tolist() == expected


# Seconds that loads spend in each section


def test_loads_are_cut_at_the_bounds_of_sections() -> None:
    found = _overlap(np.array([0.5, 1.5]), np.array([2.5, 1.75]), np.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    assert found == pytest.approx([0.5, 1.25, 0.5, 0.0])


def test_a_section_without_loads_is_not_below_zero_by_rounding() -> None:
    rng = np.random.default_rng(1)
    start = rng.uniform(0, 100, 50)
    held = _overlap(start, start + 1e-3, np.linspace(0, 4000, 41))
    assert held.min() == 0.0
    assert held.sum() == pytest.approx(0.05, abs=1e-6)


def test_a_short_section_keeps_its_digits_late_in_a_long_run() -> None:
    # Arrivals in bursts leave sections of nanoseconds between others of hours.
    start = np.arange(0.1, 40000.0, 7.3)
    bounds = np.array([0.0, 30000.0, 30000.0 + 2e-9, 40000.0])
    held = _overlap(start, start + 7.0, bounds)
    assert held[1] == bounds[2] - bounds[1], "a load runs over all of it"


# What has come by each instant of a timeline


@given(st.data(), st.integers(1, 60), st.floats(1e-6, 1e9))
def test_what_has_come_by_each_instant(data: st.DataObject, parts: int, end: float) -> None:
    at = (np.arange(parts) + 0.5) * end / parts
    near = [float(x) for instant in at for x in (np.nextafter(instant, 0), instant, np.nextafter(instant, np.inf))]
    time = st.just(-1.0) | st.floats(0, end) | st.sampled_from([*near, end, end * 2, float("inf")])
    stamps = np.array(data.draw(st.lists(time, max_size=80)), dtype=np.float64)
    known = np.sort(stamps[stamps >= 0])
    assert _passed(stamps, at, end).tolist() == np.searchsorted(known, at, side="right").tolist()
