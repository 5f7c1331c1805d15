"""One pass gives LRU's misses at every size: equal to a replay of each."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.policies.replay.cache_replay import lru
from sim.policies.replay.lru_curve import LruCurve, lru_byte_curve, lru_curve

streams = st.lists(st.integers(0, 12), max_size=150).map(lambda values: np.asarray(values, dtype=np.int32))


@given(stream=streams, chunk=st.integers(1, 160))
def test_the_curve_is_a_replay_at_every_number_of_slots(stream: np.ndarray, chunk: int) -> None:
    curve = lru_curve(stream, chunk)
    ones = np.ones(13, dtype=np.int64)
    assert curve.requests == len(stream)
    assert curve.misses(range(15)).tolist() == [lru(stream, ones, slots)[0] for slots in range(15)]


@given(
    stream=streams,
    sizes=st.lists(st.integers(1, 20), min_size=13, max_size=13),
    capacities=st.lists(st.integers(0, 270), min_size=1, max_size=12),
    chunk=st.integers(1, 160),
)
def test_the_byte_curve_is_a_replay_at_every_capacity(
    stream: np.ndarray, sizes: list[int], capacities: list[int], chunk: int
) -> None:
    room = np.asarray(sizes, dtype=np.int64)
    misses, missed = lru_byte_curve(stream, room, capacities, chunk)
    assert list(zip(misses.tolist(), missed.tolist(), strict=True)) == [lru(stream, room, c) for c in capacities]


def test_adapters_beyond_sixteen_bits_are_told_apart() -> None:
    stream = np.asarray([0, 1 << 16, 0, 1 << 16], dtype=np.int32)
    assert lru_curve(stream).misses([1, 2]).tolist() == [4, 2]


def test_ratios_are_misses_over_requests() -> None:
    curve = LruCurve(np.asarray([0, 3, 1]), first=2)
    assert curve.miss_ratios([0, 1, 2, 9]).tolist() == [1.0, 0.5, 2 / 6, 2 / 6]


def test_the_byte_curve_meets_libcachesim(shared: Path) -> None:
    rows = [
        row
        for row in csv.DictReader((shared / "cache" / "references.csv").read_text(encoding="utf-8").splitlines())
        if row["policy"] == "LRU"
    ]
    assert len(rows) == 26
    for row in rows:
        with np.load(shared / "cache" / f"{row['trace']}.npz") as stream:
            recorded = dict(stream)
        misses, _ = lru_byte_curve(recorded["obj"], recorded["size_mb"].astype(np.int64), [int(row["cache_mb"])])
        assert misses.tolist() == [int(row["misses"])], row


@pytest.mark.slow
def test_a_long_trace_needs_the_room_of_a_chunk_only() -> None:
    import tracemalloc

    stream = np.random.default_rng(1).integers(0, 500, 1 << 20).astype(np.int32)
    peaks = []
    for length in (1 << 18, 1 << 20):
        tracemalloc.start()
        lru_curve(stream[:length], chunk=1 << 16)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
