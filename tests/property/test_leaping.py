"""The simulator leaps over equal steps; a naive twin takes every step. They must tell the same story."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given, note
from hypothesis import strategies as st
from naive import Job, Result, TwinFleet
from strategies import GRID, VLLM, build, fixed_time, run, scenarios, write_profile, write_trace

from sim.results.recording.leaps import GAP_BINS, GAP_STEP, gap_bin_edges
from sim.results.records import Recording
from sim.spec.scenario import Scenario
from sim.world.build import build_world

EXACT = {
    "index": "index",
    "adapter": "adapter",
    "prompt_tokens": "prompt",
    "output_tokens": "output",
    "outcome": "outcome",
    "tier": "tier",
    "replica": "replica",
    "preemptions": "preemptions",
    "status": "status",
    "arrival_s": "arrival_s",
}
SECTIONS, WARMUP = 3, 0.2
CLOSE = ("arrival_s", "load_queue_s", "load_wait_s", "admitted_s", "first_token_s", "finished_s")


def assert_near(what: str, ours: float, twins: float) -> None:
    near = math.isclose(ours, twins, rel_tol=1e-9, abs_tol=1e-12)
    assert near, f"{what}: {ours!r}, step by step {twins!r}"


def compare_requests(recording: Recording, jobs: list[Job], *, exact_arrivals: bool) -> None:
    columns = {name: column.tolist() for name, column in recording.requests.items()}
    assert len(columns["index"]) == len(jobs)
    exact = {column: name for column, name in EXACT.items() if exact_arrivals or column != "arrival_s"}
    for row, job in enumerate(jobs):
        for column, name in exact.items():
            assert columns[column][row] == getattr(job, name), f"request {job.index}: {column}"
        for column in CLOSE:
            assert_near(f"request {job.index}: {column}", columns[column][row], getattr(job, column))


def compare_loads(recording: Recording, loads: list[tuple[float, float, int, int, float]]) -> None:
    names = ("started_s", "ended_s", "adapter", "tier", "asked_s")
    rows = sorted(zip(*(recording.loads[name].tolist() for name in names), strict=True), key=_by_adapter)
    assert len(rows) == len(loads)
    for ours, twins in zip(rows, sorted(loads, key=_by_adapter), strict=True):
        assert ours[2:4] == twins[2:4]
        for index, name in ((0, "started"), (1, "ended"), (4, "asked")):
            assert_near(f"load of adapter {twins[2]}: {name}", ours[index], twins[index])


def _by_adapter(row: tuple[float, ...]) -> tuple[float, ...]:
    return row[2], row[0], row[1], row[4]


def compare_sections(recording: Recording, twin: Result, *, closed: bool) -> None:
    """Sums by section: a step is busy in every section that it touches, its gaps belong to the one where it starts."""
    bounds = recording.bounds.tolist()
    if closed:  # sections begin at boundaries, whose times are not the same to the last bit
        total = len(twin.jobs)
        first = int(total * WARMUP)
        starts = [first + (total - first) * i // SECTIONS for i in range(SECTIONS)]
        own = [twin.jobs[job].arrival_s for job in (*starts, total - 1)]
        assert bounds == pytest.approx(own, rel=1e-9, abs=1e-12)
        bounds = own
    seconds = np.array(twin.gaps).reshape(-1, 2)
    section = np.minimum(np.searchsorted(bounds, seconds[:, 0], side="right") - 1, SECTIONS - 1)
    for i, (low, high) in enumerate(itertools.pairwise(bounds)):
        busy_s = math.fsum(max(0.0, min(end, high) - max(start, low)) for start, end, _ in twin.steps)
        assert_near(f"busy in section {i}", float(recording.busy_s[i]), busy_s)
        assert_near(f"busy in section {i}, by reason", float(recording.blocked_s[:, i].sum()), busy_s)
        gaps = np.sort(seconds[section == i, 1])
        assert_near(f"gaps in section {i}", float(recording.gap_sum_s[i]), math.fsum(gaps))
        counts = recording.gap_counts[i]
        assert int(counts.sum()) == len(gaps)
        edges = gap_bin_edges()[np.repeat(np.arange(GAP_BINS), counts)]
        assert np.all(np.abs(np.log(edges / gaps)) < 2 * math.log(GAP_STEP)), f"gaps in section {i}"
    assert_near("busy by replica", float(recording.busy_by_replica.sum()), float(recording.busy_s.sum()))


def compare(scenario: Scenario, twins: type[TwinFleet] = TwinFleet) -> None:
    """Run both; requests, loads and every sum over steps must agree."""
    scenario = scenario.model_copy(update={"run": scenario.run.model_copy(update={"warmup": WARMUP})})
    world = build_world(scenario)
    closed = world.traffic.closed_loop is not None
    recording, twin = run(world, sections=SECTIONS), twins(world).run()
    compare_requests(recording, twin.jobs, exact_arrivals=not closed)
    compare_loads(recording, twin.loads)
    assert recording.evictions == twin.evictions
    assert recording.in_use_peak == twin.in_use_peak
    for name, ours, theirs in (
        ("stopped_s", recording.stopped_s, twin.stopped_s),
        ("running_area", recording.running_area, twin.running_area),
        ("inside_area", recording.inside_area, twin.inside_area),
    ):
        assert_near(name, ours, theirs)
    compare_sections(recording, twin, closed=closed)


def tell(scenario: Scenario) -> None:
    """Print what a failing example is, profile and trace included."""
    trace = scenario.workload.trace
    for file in (scenario.fleet.profile, trace.file if trace else None):
        if file is not None:
            with open(file, encoding="utf-8") as text:
                note(text.read())
    note(json.dumps(scenario.model_dump(mode="json", by_alias=True, exclude_defaults=True)))


def tell_and_compare(scenario: Scenario, twins: type[TwinFleet] = TwinFleet) -> None:
    tell(scenario)
    compare(scenario, twins)


@examples(500)
@given(scenarios(engine="continuous", grid=False))
def test_leaps_equal_steps(scenario: Scenario) -> None:
    tell_and_compare(scenario)


@examples(300)
@given(scenarios(engine="continuous", grid=True))
def test_leaps_equal_steps_where_much_happens_at_one_instant(scenario: Scenario) -> None:
    tell_and_compare(scenario)


@examples(400)
@given(scenarios(engine="continuous", prefetch=True))
def test_leaps_equal_steps_where_loads_come_ahead_of_time(scenario: Scenario) -> None:
    tell_and_compare(scenario)


@pytest.mark.parametrize("engine", VLLM)
@examples(300)
@given(data=st.data())
def test_leaps_equal_steps_of_vllm(engine: str, data: st.DataObject) -> None:
    scenario = data.draw(scenarios(engine=engine))
    tell_and_compare(scenario)


@examples(150)
@given(scenarios(engine="fixed"))
def test_the_engine_without_batches_agrees_with_its_twin(scenario: Scenario) -> None:
    tell_and_compare(scenario)


# Corners that random scenarios meet seldom: steps of one tick, two adapters, loads of six ticks.


def ticking(rows: list[tuple[int, int, int, int]], mode: str = "overlap", slots: int = 4, **fleet: Any) -> Scenario:
    trace = write_trace([(ticks * GRID, adapter, prompt, output) for ticks, adapter, prompt, output in rows])
    profile = write_profile({"fixed_s": GRID})
    fleet = {"profile": profile, "block_size": 1, "kv_tokens": 40, "max_num_batched_tokens": 256, **fleet}
    return build(
        workload={"trace": {"file": trace}},
        adapters={"count": 2, "size": "1 MiB"},
        cache={"gpu": {"slots": slots}},
        storage={"load": fixed_time(6 * GRID), "mode": mode},
        fleet=fleet,
    )


def test_a_leap_is_cut_for_an_older_request_than_the_one_that_lacks_kv_blocks() -> None:
    # Request 0 leaps over 24 decode steps; 2 is ready and lacks blocks; 1 becomes ready, is older, and fits.
    compare(ticking([(0, 0, 10, 25), (3, 1, 2, 2), (4, 0, 35, 1)]))


def test_a_load_that_ends_on_a_boundary_is_there_for_it() -> None:
    scenario = ticking([(0, 0, 10, 25), (1, 1, 2, 2)], kv_tokens=400)
    compare(scenario)
    admitted_s = run(scenario).requests["admitted_s"]
    assert admitted_s.tolist() == [6 * GRID, 12 * GRID], "the loads end at 6 and 12 ticks, both of them boundaries"


def test_a_step_that_loads_admits_no_more_adapters_than_fit() -> None:
    # One slot: adapter 0 is resident and idle when 1 and 0 are asked for at once; 1 claims the slot, 0 has to wait.
    for admission in ("skip", "stop"):
        compare(ticking([(0, 0, 2, 1), (20, 1, 2, 3), (20, 0, 2, 3)], mode="blocking", slots=1, admission=admission))


def test_a_preempted_request_goes_first_and_computes_its_tokens_again() -> None:
    # 40 blocks of one token: two of 10 + 30 tokens can't both go to the end.
    scenario = ticking([(0, 0, 10, 30), (0, 0, 10, 30), (1, 0, 1, 1)])
    compare(scenario)
    requests = run(scenario).requests
    assert requests["preemptions"].tolist() == [0, 1, 0]


def test_nothing_of_the_last_instant_happens() -> None:
    # The end is a control event: it comes before the arrival, the load end and the boundary of its instant.
    scenario = ticking([(0, 0, 2, 2), (8, 0, 2, 2)])
    workload = scenario.workload.model_copy(update={"duration": 8 * GRID})
    requests = run(scenario.model_copy(update={"workload": workload})).requests
    assert requests["index"].tolist() == [0]
    assert requests["first_token_s"].tolist() == [7 * GRID]
    assert requests["finished_s"].tolist() == [-1.0], "its last token would come at the end itself"
