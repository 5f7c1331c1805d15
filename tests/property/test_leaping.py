"""The simulator leaps over equal steps; a naive twin takes every step. They must tell the same story."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, note, settings
from naive import Job, TwinFleet
from strategies import scenarios

from sim.results.records import Recording
from sim.spec.scenario import Scenario
from sim.world.build import build_world, simulate

EXACT = {
    "index": "index", "adapter": "adapter", "prompt_tokens": "prompt", "output_tokens": "output", "outcome": "outcome",
    "tier": "tier", "replica": "replica", "preemptions": "preemptions", "status": "status", "arrival_s": "arrival_s",
}  # fmt: skip
CLOSE = ("load_queue_s", "load_wait_s", "admitted_s", "first_token_s", "finished_s")


def near(ours: float, twins: float) -> bool:
    return math.isclose(ours, twins, rel_tol=1e-9, abs_tol=1e-12)


def assert_near(what: str, ours: float, twins: float) -> None:
    assert near(ours, twins), f"{what}: {ours!r}, step by step {twins!r}"


def compare_requests(recording: Recording, jobs: list[Job]) -> None:
    columns = {name: column.tolist() for name, column in recording.requests.items()}
    assert len(columns["index"]) == len(jobs)
    for row, job in enumerate(jobs):
        for column, name in EXACT.items():
            assert columns[column][row] == getattr(job, name), f"request {job.index}: {column}"
        for column in CLOSE:
            assert_near(f"request {job.index}: {column}", columns[column][row], getattr(job, column))


def compare(scenario: Scenario) -> None:
    note(json.dumps(scenario.model_dump(mode="json", by_alias=True, exclude_defaults=True)))
    world = build_world(scenario)
    recording = simulate(world, 0, 1)
    twin = TwinFleet(world).run()
    compare_requests(recording, twin.jobs)
    rows = sorted(zip(*(column.tolist() for column in recording.loads.values()), strict=True), key=_by_adapter)
    assert len(rows) == len(twin.loads)
    for ours, twins in zip(rows, sorted(twin.loads, key=_by_adapter), strict=True):
        assert ours[2:4] == twins[2:4]
        for index, name in ((0, "started"), (1, "ended"), (4, "asked")):
            assert_near(f"load of adapter {twins[2]}: {name}", ours[index], twins[index])
    assert recording.evictions == twin.evictions
    assert recording.in_use_peak == twin.in_use_peak
    assert_near("stopped_s", recording.stopped_s, twin.stopped_s)
    assert_near("running_area", recording.running_area, twin.running_area)
    assert_near("inside_area", recording.inside_area, twin.inside_area)
    assert int(recording.gap_counts.sum()) == twin.gap_count
    assert_near("gap_sum_s", float(recording.gap_sum_s.sum()), twin.gap_sum_s)
    low, high = recording.bounds.tolist()
    spans = [
        (max(0.0, min(end, high) - max(start, low)), blocked) for start, end, blocked in twin.steps if start < high
    ]
    assert_near("busy_s", float(recording.busy_s[0]), sum(span for span, _ in spans))


def _by_adapter(row: tuple[float, float, float, float, float]) -> tuple[float, ...]:
    return (row[2], row[0], row[1], row[3])


@settings(max_examples=400)
@given(scenarios(engine="continuous", grid=False))
def test_leaps_equal_steps(scenario: Scenario) -> None:
    compare(scenario)


@settings(max_examples=200)
@given(scenarios(engine="continuous", grid=True))
def test_leaps_equal_steps_where_much_happens_at_one_instant(scenario: Scenario) -> None:
    compare(scenario)


@settings(max_examples=100)
@given(scenarios(engine="fixed"))
def test_the_engine_without_batches_agrees_with_its_twin(scenario: Scenario) -> None:
    compare(scenario)
