"""Che's approximation and shuffled orders, compared with references computed elsewhere and with replays of draws."""

from __future__ import annotations

import csv
import itertools
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sim.policies.replay.cache_replay import fifo, lru
from sim.policies.replay.lru_curve import (
    LruCurve,
    characteristic_time,
    che_byte_miss_ratios,
    che_miss_ratios,
    lru_curve,
)

SHUFFLES = 30


@cache
def adapters_of(file: Path) -> NDArray[np.int32]:
    with file.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    numbers: dict[str, int] = {}
    names = (row["adapter_id"] if "adapter_id" in row else row["tenant_id"] for row in rows)
    return np.asarray([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int32)


@cache
def shuffled_curves(file: Path) -> list[LruCurve]:
    rng = np.random.default_rng(7)
    return [lru_curve(rng.permutation(adapters_of(file))) for _ in range(SHUFFLES)]


def references(shared: Path) -> list[tuple[Path, int, dict[str, str]]]:
    with (shared / "traces" / "reference_cache_miss.csv").open(encoding="utf-8") as lines:
        return [(shared / "traces" / Path(row["file"]).name, int(row["slots"]), row) for row in csv.DictReader(lines)]


def test_every_reference_of_lru_fifo_and_che_is_met_to_its_four_digits(shared: Path) -> None:
    rows = references(shared)
    assert len(rows) == 17
    for file, slots, row in rows:
        stream = adapters_of(file)
        counts = np.bincount(stream)
        assert (len(stream), len(counts)) == (int(row["refs"]), int(row["ids"]))
        fifo_misses, _ = fifo(stream, np.ones(len(counts), dtype=np.int64), slots)
        found = {
            "LRU": lru_curve(stream).miss_ratios([slots])[0],
            "FIFO": fifo_misses / len(stream),
            "Che_IRM": che_miss_ratios(counts.astype(float), [slots])[0],
        }
        for name, value in found.items():
            assert abs(value - float(row[name])) <= 0.5e-4 + 1e-9, (row["file"], slots, name, value)


def test_shuffled_references_lie_where_shuffles_lie(shared: Path) -> None:
    # The reference is one shuffle of an unknown seed. Ours estimate mean and deviation of a shuffle; the difference
    # between a further shuffle and the mean of n is Student's t with n - 1 degrees, sqrt(1 + 1/n) deviations wide.
    # Bonferroni over 17 rows at one false alarm in a thousand: t(29) beyond 1 - 0.001 / 17 / 2 is 4.7.
    # References have four digits: half of the last is added.
    rows = references(shared)
    for file, slots, row in rows:
        ratios = np.asarray([curve.miss_ratios([slots])[0] for curve in shuffled_curves(file)])
        width = 4.7 * float(ratios.std(ddof=1)) * math.sqrt(1 + 1 / SHUFFLES) + 0.5e-4
        assert abs(float(row["LRU_shuffled"]) - float(ratios.mean())) < width, (row["file"], slots)
        # The test could tell a wrong order from a shuffled one wherever locality matters.
        if float(row["LRU_shuffled"]) - float(row["LRU"]) > 0.05:
            assert abs(float(row["LRU"]) - float(ratios.mean())) > width


def test_uniform_popularity_misses_what_does_not_fit() -> None:
    # Of 1,000 equal adapters 200 are resident, whichever they are.
    assert che_miss_ratios(np.ones(1000), [200])[0] == pytest.approx(0.8, abs=1e-12)
    assert characteristic_time(np.full(1000, 1e-3), np.ones(1000), 200) == pytest.approx(-1000 * math.log(0.8))


def test_nothing_misses_where_all_fit_and_all_where_nothing_does() -> None:
    counts, sizes = np.asarray([5.0, 3.0, 1.0]), np.asarray([10, 10, 10])
    assert che_miss_ratios(counts, [3, 4, 0]).tolist() == [0.0, 0.0, 1.0]
    assert che_byte_miss_ratios(counts, [30, 29, 9], sizes).tolist() == pytest.approx(
        [0.0, che_miss_ratios(counts, [2])[0], 1.0]
    )


def test_an_adapter_larger_than_the_cache_always_misses_and_takes_no_room() -> None:
    counts, sizes = np.asarray([6.0, 4.0]), np.asarray([10, 100])
    assert che_miss_ratios(counts, [50], sizes)[0] == pytest.approx(0.4)
    assert che_byte_miss_ratios(counts, [50], sizes)[0] == pytest.approx(400 / 460)


def test_draws_of_mixed_sizes_miss_as_che_says() -> None:
    # Sections of one long replay give the interval: 20 sections after a warm-up, t(19) at 0.9999 two-sided is 4.9.
    # Che's own error for 300 adapters is of the order of 1e-3 (Fricker et al.), added to it.
    rng = np.random.default_rng(3)
    shares = np.arange(1, 301) ** -0.8
    shares /= shares.sum()
    sizes = rng.choice([20, 40, 80, 160], 300)
    stream = rng.choice(300, 210_000, p=shares).astype(np.int32)
    for capacity in (2_000, 8_000):
        ends = [lru(stream[:end], sizes, capacity)[0] for end in range(10_000, 210_001, 10_000)]
        sections = np.asarray([after - before for before, after in itertools.pairwise(ends)]) / 10_000
        width = 4.9 * float(sections.std(ddof=1)) / math.sqrt(len(sections)) + 1e-3
        assert abs(sections.mean() - che_miss_ratios(shares, [capacity], sizes)[0]) < width
