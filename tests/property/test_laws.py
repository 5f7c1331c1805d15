"""Laws of every run: nothing is lost, nothing happens before its cause, and a seed is one run, byte for byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from recordings import assert_sums_agree_at_every_boundary, ends_of, tables
from strategies import engine_scenarios, run, scenarios

from sim.results.point_summary import summarise
from sim.results.records import COMPLETED, REFUSED
from sim.spec.scenario import Scenario
from sim.studies.evaluate import facts_of
from sim.world.build import build_world

pytestmark = pytest.mark.twice

anything = st.one_of(scenarios(), scenarios(), engine_scenarios())


def with_(scenario: Scenario, section: str, **values: Any) -> Scenario:
    sections = scenario.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return Scenario.model_validate(sections | {section: sections.get(section, {}) | values})


def traffic_of(scenario: Scenario, replication: int = 0) -> dict[str, np.ndarray]:
    names = (
        "arrival_s",
        "adapter",
        "prompt_tokens",
        "output_tokens",
        "load_uniform",
        "host_load_uniform",
        "service_uniform",
    )
    chunks = list(build_world(scenario).traffic.chunks(replication))
    return {name: np.concatenate([getattr(chunk, name) for chunk in chunks] or [np.empty(0)]) for name in names}


def assert_same_traffic(ours: dict[str, np.ndarray], other: dict[str, np.ndarray], count: int | None = None) -> None:
    for name, column in ours.items():
        assert column[:count].tolist() == other[name][:count].tolist(), name


@examples(100)
@given(anything)
def test_no_request_is_lost_or_counted_twice(scenario: Scenario) -> None:
    recording = run(scenario)
    ends = ends_of(scenario, recording)
    assert ends["failed"] == 0
    if scenario.workload.duration is None:
        assert ends["unfinished"] == 0, "a run without an end of its own goes on to the last token"
    status, admitted = recording.requests["status"], recording.requests["admitted_s"] >= 0
    assert np.all(admitted[status == COMPLETED])
    assert not np.any(admitted[status == REFUSED])


@examples(100)
@given(anything)
def test_every_admitted_request_is_a_hit_a_delayed_hit_or_a_miss_with_its_load(scenario: Scenario) -> None:
    recording = run(scenario)
    requests, loads = recording.requests, recording.loads
    hit, delayed, miss = (requests["outcome"] == kind for kind in range(3))
    assert np.all(hit | delayed | miss)
    assert np.all(requests["load_wait_s"][hit] == 0)
    assert np.all(requests["tier"][hit] == 0)
    assert np.all(requests["tier"][miss] > 0)
    # A load that was asked for but had not begun when the run stopped leaves no row.
    asked, loaded = int(np.sum(miss)), len(loads["adapter"])
    host, eviction = scenario.cache.host, scenario.cache.eviction
    ahead = scenario.cache.prefetch != "none"
    if eviction in ("vllm-lru", "cycle") or ahead or (host is not None and host.fill == "arrival"):
        # And those of a cascade, of adapters that lost their turn, to host memory before those to the GPU, and those
        # that came before anybody asked.
        assert loaded >= asked or scenario.workload.duration is not None
    else:
        assert loaded == asked if scenario.workload.duration is None else loaded <= asked
    assert np.all(loads["asked_s"] <= loads["started_s"])
    assert np.all(loads["started_s"] <= loads["ended_s"])


@examples(100)
@given(anything)
def test_nothing_happens_before_its_cause(scenario: Scenario) -> None:
    requests = run(scenario).requests
    done = requests["status"] == COMPLETED
    arrival, admitted, first, finished = (
        requests[name][done] for name in ("arrival_s", "admitted_s", "first_token_s", "finished_s")
    )
    wait, queue = requests["load_wait_s"][done], requests["load_queue_s"][done]
    assert np.all((queue >= 0) & (queue <= wait))
    # Blocking loads happen inside the step that admits; others between the arrival and the admission.
    from_, to = (admitted, first) if scenario.storage.mode == "blocking" else (arrival, admitted)
    if scenario.cache.host is not None and scenario.cache.host.fill == "arrival":  # some of it before, some within
        from_, to = arrival, first
    assert np.all(to - from_ >= wait - 1e-9 * np.maximum(to, 1))
    assert np.all(arrival <= admitted)
    assert np.all(admitted < first)
    assert np.all(first <= finished)
    assert np.all((first < finished) == (requests["output_tokens"][done] > 1)) or scenario.fleet.engine == "fixed"


@examples(100)
@given(st.one_of(anything, engine_scenarios(engine="tensorrt-llm")), st.floats(0, 0.5))
def test_the_breakdown_adds_up(scenario: Scenario, warmup: float) -> None:
    world = build_world(with_(scenario, "run", warmup=warmup))
    recording = run(world, sections=2)
    point = summarise([recording], facts_of(world), {}, [])
    assume(point.breakdown)
    done = (recording.section_of >= 0) & (recording.requests["status"] == COMPLETED)
    e2e_s = float(np.mean((recording.requests["finished_s"] - recording.requests["arrival_s"])[done]))
    assert sum(point.breakdown.values()) == pytest.approx(e2e_s, rel=1e-9)
    assert min(point.breakdown.values()) >= 0
    assert (point.breakdown["prefill_s"] > 0) == (scenario.fleet.engine != "fixed"), "steps take time besides loads"


@examples(100)
@given(anything)
def test_littles_law_two_ways(scenario: Scenario) -> None:
    recording = run(scenario)
    requests = recording.requests
    came = requests["status"] != REFUSED
    left = np.where(requests["finished_s"] < 0, recording.stopped_s, requests["finished_s"])
    assert recording.inside_area == pytest.approx(float(np.sum((left - requests["arrival_s"])[came])), rel=1e-9)
    if scenario.workload.duration is None and not np.any(requests["preemptions"]):
        running = float(np.sum((requests["finished_s"] - requests["admitted_s"])[came]))
        assert recording.running_area == pytest.approx(running, rel=1e-9)


@examples(100)
@given(anything)
def test_tokens_and_gaps_are_conserved(scenario: Scenario) -> None:
    assume(scenario.workload.duration is None and scenario.fleet.engine != "fixed")
    recording = run(scenario)
    requests = recording.requests
    done = requests["status"] == COMPLETED
    assert int(recording.gap_counts.sum()) == int(np.sum(requests["output_tokens"][done] - 1))
    span = float(np.sum((requests["finished_s"] - requests["first_token_s"])[done]))
    assert float(recording.gap_sum_s.sum()) == pytest.approx(span, rel=1e-9)


@examples(100)
@given(anything)
def test_running_sums_agree_with_counts_at_every_boundary(scenario: Scenario) -> None:
    assert_sums_agree_at_every_boundary(scenario)


@examples(100)
@given(scenarios(), st.integers(1, 5), st.integers(1, 9))
def test_the_design_leaves_the_traffic_as_it_is(scenario: Scenario, replicas: int, slots: int) -> None:
    ours = traffic_of(scenario)
    other = with_(scenario, "fleet", replicas=replicas)
    other = with_(other, "cache", gpu={"slots": slots}, host={"slots": max(slots, 3)}, pinned=0)
    other = with_(other, "router", policy="least-loaded")
    assert_same_traffic(ours, traffic_of(other))
    before, after = run(scenario).requests, run(other).requests
    for name in ("index", "arrival_s", "adapter", "prompt_tokens", "output_tokens"):
        assert before[name].tobytes() == after[name].tobytes(), name


@examples(100)
@given(anything)
def test_a_seed_repeats_byte_for_byte_and_another_differs(scenario: Scenario) -> None:
    assert tables(run(scenario)) == tables(run(scenario))
    assume(scenario.workload.trace is None)
    arrivals = traffic_of(scenario)["arrival_s"]
    assume(np.any(arrivals > 0))  # very bursty ones may all come at once, at the start
    for other in (traffic_of(with_(scenario, "run", seed=scenario.run.seed + 1)), traffic_of(scenario, replication=1)):
        assert len(other["arrival_s"]) != len(arrivals) or np.any(other["arrival_s"] != arrivals)


@examples(100)
@given(scenarios(), st.integers(1, 200))
def test_a_longer_run_begins_with_the_shorter_one(scenario: Scenario, more: int) -> None:
    assume(scenario.workload.requests is not None)
    count = scenario.workload.requests
    assert_same_traffic(traffic_of(scenario), traffic_of(with_(scenario, "workload", requests=count + more)), count)
