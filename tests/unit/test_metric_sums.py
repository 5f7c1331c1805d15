"""From recordings to metrics, by hand: which bin, which group, which part of a time."""

from __future__ import annotations

import numpy as np
import pytest
from librt.strings import BytesWriter
from test_change_metrics import COUNT, WARM, facts, recording

from sim.results.metrics import measure
from sim.results.point_summary import summarise
from sim.results.recording.leaps import GAP_BINS, GAP_STEP, gap_bin_edges, gap_bins
from sim.results.recording.recorder import _LOAD_ROW, _MARK_ROW, LEAP_ROW, REQUEST_COLUMNS, Recorder
from sim.results.records import COMPLETED, MIXED, STALE
from sim.results.statistics import histogram_quantile
from sim.traffic.request import FROM_STORAGE, Request

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
