"""Every row of the recorded cache counts: libCacheSim's, and the miss ratios of the traces."""

from __future__ import annotations

import csv
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from examples import PART

from sim.policies.replay.cache_replay import replay

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
