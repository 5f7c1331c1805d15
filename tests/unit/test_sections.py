"""Where a run is cut: the warm-up, then sections with equally many requests, or of equal length where time ends it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.special import stdtrit
from strategies import GRID, build, fixed_time, write_trace

from sim.results.intervals import student
from sim.results.records import Recording
from sim.results.statistics import estimate
from sim.world.build import build_world
from sim.world.replication import simulate

BURSTY = [0.01 * i for i in range(90)] + [10.0 + i for i in range(10)]
"""Ninety requests within a second, then one a second."""


def run(sections: int, warmup: float, workload: dict[str, Any]) -> Recording:
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
    recording = run(3, 0.1, trace(BURSTY))
    assert recording.bounds == pytest.approx([BURSTY[10], BURSTY[40], BURSTY[70], BURSTY[99]])
    assert np.bincount(recording.section_of + 1).tolist() == [10, 30, 30, 30], "the first ten are the warm-up"


def test_a_duration_cuts_a_trace_and_ends_its_last_section() -> None:
    recording = run(3, 0.2, {**trace(BURSTY), "duration": "15 s"})
    assert recording.bounds == pytest.approx([BURSTY[19], BURSTY[44], BURSTY[69], 15.0])
    assert np.bincount(recording.section_of + 1).tolist() == [19, 25, 25, 26], "95 requests come before 15 s"


def test_where_only_the_time_is_known_warm_up_and_sections_are_shares_of_it() -> None:
    recording = run(4, 0.2, {"duration": "15 s", "arrivals": {"process": "poisson", "rate": "20/s"}})
    assert recording.bounds == pytest.approx([3.0, 6.0, 9.0, 12.0, 15.0])
    arrival_s = recording.requests["arrival_s"]
    assert np.array_equal(recording.section_of, np.floor(arrival_s / 3.0) - 1)


def test_without_a_warm_up_every_request_is_measured() -> None:
    recording = run(2, 0.0, trace(BURSTY))
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
