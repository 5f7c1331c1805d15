"""Recorded cache counts, row by row, and the curve of LRU in one pass against a replay of each size."""

from __future__ import annotations

import csv
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from examples import PART
from hypothesis import given
from hypothesis import strategies as st

from sim.policies.replay.cache_replay import lru, replay
from sim.policies.replay.lru_curve import LruCurve, lru_byte_curve, lru_curve

LIBCACHESIM = {
    "LRU": "lru",
    "FIFO": "fifo",
    "CLOCK": "clock",
    "SIEVE": "sieve",
    "LFU": "lfu",
    "Belady": "belady",
    "GDSF": "gdsf",
    "S3FIFO": "s3-fifo",
    "Random": "random",
}
"""Our name of each of libCacheSim's policies."""
TOLERANCE = {"GDSF": 0.01, "S3FIFO": 0.0, "Random": 0.05}
"""Relative difference of misses where the reference says that there are variants; of S3-FIFO, this is the same one."""
MEGABYTE = 10**6
COLUMNS = {"LRU": "lru", "FIFO": "fifo", "LFU_perfect_history": "lfu-history", "OPT": "belady"}


@cache
def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("theirs", LIBCACHESIM)
def test_misses_are_libcachesims_on_every_trace(theirs: str, shared: Path) -> None:
    rows = [row for row in rows_of(shared / "cache" / "references.csv") if row["policy"] == theirs]
    assert len(rows) == 26
    for row in rows if PART == 1 else rows[::3]:
        with np.load(shared / "cache" / f"{row['trace']}.npz") as stream:
            objects, sizes = stream["obj"], stream["size_mb"].astype(np.int64) * MEGABYTE
        replayed = replay(LIBCACHESIM[theirs], objects, sizes, int(row["cache_mb"]) * MEGABYTE)
        assert replayed.requests == int(row["requests"])
        misses = int(row["misses"])
        if row["compare"] == "exact":
            assert replayed.misses == misses, row["trace"]
            assert replayed.byte_miss_ratio == pytest.approx(float(row["byte_miss_ratio"]), abs=5.1e-7), row["trace"]
        else:
            assert replayed.misses == pytest.approx(misses, rel=TOLERANCE[theirs]), row["trace"]


@pytest.mark.parametrize("column", COLUMNS)
def test_miss_ratios_of_traces_are_met_to_the_digits_given(column: str, shared: Path) -> None:
    rows = rows_of(shared / "traces" / "reference_cache_miss.csv")
    assert len(rows) == 17
    for row in rows:
        objects = adapters_of(shared / "traces" / Path(row["file"]).name)
        count = int(objects.max()) + 1
        assert (len(objects), count) == (int(row["refs"]), int(row["ids"]))
        replayed = replay(COLUMNS[column], objects, np.ones(count, dtype=np.int64), int(row["slots"]))
        assert round(replayed.miss_ratio, 4) == float(row[column]), (row["file"], row["slots"])


@cache
def adapters_of(path: Path) -> np.ndarray:
    """The adapter of each request of a trace, numbered as they come."""
    numbers: defaultdict[str, int] = defaultdict(lambda: len(numbers))
    rows = rows_of(path)
    column = "adapter_id" if "adapter_id" in rows[0] else "tenant_id"
    return np.array([numbers[row[column]] for row in rows])


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
