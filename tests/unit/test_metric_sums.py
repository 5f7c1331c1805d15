"""From recordings to metrics, by hand: which bin, which group, which part of a time, what is asked of the loaders."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from librt.strings import BytesWriter
from strategies import build
from test_change_metrics import COUNT, WARM, facts, recording

from sim.results.metrics import measure
from sim.results.point import Point
from sim.results.point_summary import summarise
from sim.results.recording.leaps import GAP_BINS, GAP_STEP, gap_bin_edges, gap_bins
from sim.results.recording.recorder import _LOAD_ROW, _MARK_ROW, LEAP_ROW, REQUEST_COLUMNS, Recorder
from sim.results.records import COMPLETED, MIXED, STALE, Recording
from sim.results.sample_data import ScenarioFacts
from sim.results.statistics import Sampled, histogram_quantile, mean_of, quantile_of, quantiles_of_windows
from sim.studies.evaluate import evaluate_scenario, facts_of
from sim.traffic.request import DELAYED_HIT, FROM_HOST, FROM_STORAGE, MISS, Request
from sim.world.build import build_world

MEASURED = COUNT - WARM


@pytest.mark.parametrize("seconds", [2e-6, 0.0123, 0.5, 77.0])
def test_a_quantile_of_gaps_is_the_upper_edge_of_its_bin(seconds: float) -> None:
    counts = np.bincount(gap_bins(np.array([seconds])), minlength=GAP_BINS)
    found = histogram_quantile(counts, gap_bin_edges(), 0.99)
    assert seconds <= found <= seconds * GAP_STEP * (1 + 1e-9)


def test_the_hottest_adapters_are_those_asked_for_most() -> None:
    adapter = np.where(np.arange(COUNT) % 3 == 0, np.arange(COUNT) % 20, 7)
    many = facts(size_bytes=np.full(20, 10), kind=np.zeros(20, dtype=int))
    groups = summarise([recording(adapter=adapter)], many, {}, []).groups
    hottest, following, rest = (group.facts["requests"] for group in groups)
    assert hottest == int((adapter[WARM:] == 7).sum())
    assert hottest > following
    assert hottest + following + rest == MEASURED


def test_only_the_measured_part_of_a_lack_of_room_counts() -> None:
    recorder = Recorder(1)
    recorder.mark(10.0)
    recorder.mark(20.0)
    for start_s, end_s in ((1.0, 2.0), (5.0, 12.0), (18.0, 30.0)):
        recorder.short_of_room(start_s, end_s)
    assert recorder.close(30.0, 0.0).room_short_s == 4.0


@pytest.mark.parametrize(("target_s", "attained"), [(0.25, 1.0), (0.2, 0.0)])
def test_the_target_of_a_token_is_for_each_gap(target_s: float, attained: float) -> None:
    # Three tokens with half a second between the first and the last: two gaps of 0.25 s.
    found, _ = measure([recording()], facts(slo={"tpot_mean_s": target_s}))
    assert found["slo_attainment"].value == attained


def test_a_loader_is_held_in_the_pauses_between_attempts() -> None:
    one = recording()
    one.backoffs = np.array([[4.0, 13.0, 1.0, 0.0]])
    found, _ = measure([one], facts(replicas=2, loaders=1))
    assert found["loader_utilization"].value == pytest.approx(9 / (2 * MEASURED))


def test_everything_that_happened_to_a_request_is_kept() -> None:
    recorder = Recorder(1)
    recorder.mark_request(1, MIXED)
    recorder.mark_request(1, STALE)
    for _ in range(2):
        recorder.mark_request(0, 0, tries=1)
    found = recorder._marks(
        {
            "index": np.arange(2),
            "status": np.full(2, COMPLETED),
            "first_token_s": np.ones(2),
            "finished_s": np.ones(2),
            "adapter": np.zeros(2, dtype=int),
        }
    )
    assert found["marks"].tolist() == [0, MIXED | STALE]
    assert found["tries"].tolist() == [2, 0]


def test_rows_hold_what_was_written_under_its_own_name() -> None:
    recorder = Recorder(1, prefix_cache=True)
    wanted = {"load_queue_s": 1.5, "load_wait_s": 2.5, "admitted_s": 3.5, "first_token_s": 4.5}
    wanted |= {"index": 5, "outcome": 1, "tier": 2, "preemptions": 8, "cached_tokens": 90_000}
    request = Request(5, 0.5, 3, 10, 20)
    for name, value in wanted.items():
        setattr(request, name, value)
    recorder.record_completed([request], 7, 6.5)
    recorder.flush()
    wanted |= {"replica": 7, "finished_s": 6.5, "status": COMPLETED}
    assert {name: np.frombuffer(recorder._columns[name], REQUEST_COLUMNS[name]).tolist() for name in wanted} == {
        name: [value] for name, value in wanted.items()
    }
    recorder.record_leap(0.5, 1.5, 2.5, 3.5, 4, 5, 6, 2, 8)
    assert row_of(recorder.leap_rows, LEAP_ROW) == {
        "start": 0.5,
        "first": 1.5,
        "growth": 2.5,
        "load_s": 3.5,
        "steps": 4,
        "decoding": 5,
        "running": 6,
        "blocked": 2,
        "replica": 8,
    }
    recorder.record_load(0.5, 1.5, 0.25, 3, FROM_STORAGE, 4)
    loads = {"started_s": 0.5, "ended_s": 1.5, "asked_s": 0.25, "adapter": 3, "tier": FROM_STORAGE, "replica": 4}
    assert row_of(recorder._load_rows, _LOAD_ROW) == loads
    recorder.mark_request(5, MIXED, (1, 2), 300, 4, 6)
    marks = {"marks": MIXED, "version": 1, "last_version": 2, "tokens_before": 300, "tries": 4, "detected": 6}
    assert row_of(recorder._mark_rows, _MARK_ROW) == {"index": 5} | marks


def row_of(written: BytesWriter, layout: np.dtype[np.void]) -> dict[str, float]:
    """The only row that was written, by name."""
    (row,) = np.frombuffer(written.getvalue(), layout).tolist()
    return dict(zip(layout.names or (), row, strict=True))


def test_a_crash_ends_the_loads_of_its_own_replica_alone() -> None:
    recorder = Recorder(1, replicas=2)
    recorder.mark(0.0)
    for replica in (0, 1):
        for started_s, ended_s in ((1.0, 9.0), (6.0, 8.0)):  # noted when they were decided: one is to begin after now
            recorder.record_load(started_s, ended_s, 1.0, 0, FROM_STORAGE, replica)
    recorder.cut_loads(0, 5.0)
    loads = recorder.close(10.0, 0.0).loads
    rows = zip(loads["replica"].tolist(), loads["started_s"].tolist(), loads["ended_s"].tolist(), strict=True)
    assert list(rows) == [(0, 1.0, 5.0), (1, 1.0, 9.0), (1, 6.0, 8.0)]


def test_what_ends_at_the_instant_of_a_cutover_is_by_the_new_version() -> None:
    recorder = Recorder(1)
    recorder.settled = [(5.0, np.array([0]), np.array([2]))]
    finished_s = np.array([4.0, 5.0, 6.0])
    found = recorder._marks(
        {
            "index": np.arange(3),
            "status": np.full(3, COMPLETED),
            "first_token_s": finished_s,
            "finished_s": finished_s,
            "adapter": np.zeros(3, dtype=int),
        }
    )
    assert found["version"].tolist() == [1, 2, 2]


# What is asked of the loaders, over what they can do: the number behind headroom


MEASURED_S = 36.0


def with_loads(count: int, seconds: float, misses: int, delayed_hits: int, tier: int = FROM_STORAGE) -> Recording:
    """Return forty requests of which the first measured ones miss or join a load; loads follow each other."""
    places = range(4, 4 + misses + delayed_hits)
    outcomes = dict(zip(places, [MISS] * misses + [DELAYED_HIT] * delayed_hits, strict=True))
    loads = [(4.0 + i * seconds, 0) for i in range(count)]
    one = recording(outcome=outcomes, tier=dict.fromkeys(places, tier), loads=loads, replica=np.zeros(40, dtype=int))
    one.loads["ended_s"] = one.loads["started_s"] + seconds
    one.loads["tier"] = np.full(count, float(tier))
    return one


def offered(*recordings: Recording, loaders: int = 1, replicas: int = 1) -> float | None:
    point = summarise(list(recordings), facts(loaders=loaders, replicas=replicas, strategies=()), {}, [])
    return point.capacity.loader.offered_load


def test_what_is_asked_is_the_seconds_of_loads_over_those_of_the_loaders() -> None:
    ten = with_loads(10, 0.5, misses=10, delayed_hits=20)
    assert offered(ten) == pytest.approx(10 * 0.5 / MEASURED_S), "delayed hits ask for none"
    assert offered(ten, ten) == pytest.approx(offered(ten)), "two equal replications offer what one does"
    assert offered(ten, loaders=3, replicas=2) == pytest.approx(10 * 0.5 / (3 * 2 * MEASURED_S))
    assert offered(with_loads(10, 0.5, misses=10, delayed_hits=0, tier=FROM_HOST)) == 0.0
    # Four loads of 9 s keep the loader busy for all of 36 s: without its queue, delayed hits would be misses, too.
    assert offered(with_loads(4, 9.0, misses=4, delayed_hits=20)) == pytest.approx(24 * 9 / MEASURED_S)


def shared_loads(rate: str, adapters: int, requests: int) -> Point:
    return evaluate_scenario(
        build(
            workload={"requests": requests, "arrivals": {"process": "poisson", "rate": rate}},
            adapters={"count": adapters, "size": "1 MB"},
            fleet={"engine": "fixed", "service": "1 ms"},
            cache={"gpu": {"slots": 4}},
            storage={"load": {"law": "fixed", "value": "200 ms"}},
        )
    ).point


def test_a_full_loader_whose_loads_serve_many_is_not_overloaded() -> None:
    """Twenty adapters, at most one load of each in the queue: no request waits longer than 20 loads take, about 4 s."""
    bounded = shared_loads("20/s", 20, 8_000)
    assert bounded.capacity.loader.utilization > 0.98
    assert bounded.capacity.loader.offered_load == pytest.approx(0.98)
    assert bounded.value("ttft_p99_s") < 4.0
    endless = shared_loads("20/s", 100_000, 8_000)
    assert endless.capacity.loader.offered_load == pytest.approx(4.0, rel=0.1), "20/s of 200 ms on one loader"


def facts_of_eight_adapters(engine: str, **cache: dict[str, int]) -> ScenarioFacts:
    return facts_of(
        build_world(
            build(
                workload={"requests": 40, "arrivals": {"process": "poisson", "rate": "1/s"}},
                adapters={"count": 8},
                cache={"gpu": {"slots": 4}, **cache},
                fleet={"engine": engine},
            )
        )
    )


@pytest.mark.parametrize(
    ("engine", "blocks"),
    [("vllm", True), ("continuous", False), ("sglang", True), ("tensorrt-llm", True), ("lorax", False)],
)
def test_a_point_says_whether_its_loads_from_storage_block_steps(engine: str, blocks: bool) -> None:
    """TensorRT-LLM's loads block steps too, but only those from host memory, which is filled at arrival."""
    loads = with_loads(10, 0.5, misses=10, delayed_hits=0)
    point = summarise([loads], facts_of_eight_adapters(engine), {}, [])
    assert point.capacity.loader.blocks_steps == blocks
    assert point.capacity.to_json()["loader"]["blocks_steps"] == blocks


def test_a_point_says_whether_host_memory_has_room_for_all_adapters() -> None:
    assert not facts_of_eight_adapters("vllm").host_holds_all
    assert not facts_of_eight_adapters("vllm", host={"slots": 7}).host_holds_all
    assert facts_of_eight_adapters("vllm", host={"slots": 8}).host_holds_all


# Quantiles are NumPy's, to the last bit


SECONDS = st.floats(0, 1e6, allow_subnormal=False) | st.integers(0, 3).map(float)


@given(
    st.lists(SECONDS, min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99]) | st.floats(0, 1, exclude_max=True)
)
def test_a_quantile_is_that_of_numpy(values: list[float], q: float) -> None:
    array = np.array(values)
    assert quantile_of(array, q) == float(np.quantile(array, q))
    assert list(array) == values, "they stay in their order"


@given(
    st.lists(SECONDS, min_size=40, max_size=300),
    st.lists(st.sampled_from([0.0, 0.5, 0.99, 1.0]) | st.floats(0, 1), min_size=1),
    st.integers(1, 3),
)
def test_quantiles_of_a_sample_are_those_of_numpy(values: list[float], q: list[float], replications: int) -> None:
    array = np.array(values)
    section = np.arange(len(values)) * 4 * replications // len(values)
    sample = Sampled(array, section, sections=4, replications=replications)
    assert sample.quantiles(q) == [float(x) for x in np.quantile(array, q)]
    assert sample.quantile(0.5, "s").value == float(np.quantile(array, 0.5))
    assert list(array) == values, "they stay in their order"


@given(st.lists(SECONDS, min_size=1, max_size=300))
def test_a_mean_is_that_of_numpy(values: list[float]) -> None:
    assert mean_of(np.array(values)) == float(np.mean(values))


@given(
    st.lists(SECONDS, min_size=1, max_size=300),
    st.lists(st.tuples(st.integers(0, 299), st.integers(0, 299)), min_size=1, max_size=30),
    st.sampled_from([0.5, 0.9, 0.99]),
)
def test_windows_that_overlap_have_the_quantiles_of_each_alone(
    values: list[float], windows: list[tuple[int, int]], q: float
) -> None:
    array, count = np.array(values), len(values)
    first = np.array([begin % count for begin, _ in windows])
    last = np.array([begin + 1 + more % (count - begin) for begin, (_, more) in zip(first, windows, strict=True)])
    expected = [quantile_of(array[a:b], q) for a, b in zip(first, last, strict=True)]
    assert quantiles_of_windows(array, first, last, q).tolist() == expected
    assert list(array) == values, "they stay in their order"
