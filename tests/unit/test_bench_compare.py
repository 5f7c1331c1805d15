"""The comparison of speed with another commit: what is measured, and when it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from validation.benches import bench, bench_compare
from validation.benches.bench_compare import ratios, verdict

BEFORE, NOW = Path("before"), Path("now")


def test_a_row_is_the_ratio_of_the_least_times_of_both_trees() -> None:
    times = {BEFORE: iter([3.0, 2.0, 9.0]), NOW: iter([2.5, 8.0, 2.2])}
    assert ratios(["plain"], (BEFORE, NOW), 3, lambda tree, row: next(times[tree])) == {"plain": 1.1}


@pytest.mark.parametrize(
    ("found", "slow"),
    [
        ({"a": 1.04, "b": 1.04}, []),
        ({"a": 1.0, "b": 1.12}, ["all rows together take 1.06 times as long (at most 1.05)"]),
        ({"a": 0.9, "b": 1.16}, ["b takes 1.16 times as long"]),
    ],
)
def test_it_fails_on_the_mean_and_on_single_rows(found: dict[str, float], slow: list[str]) -> None:
    assert verdict(found) == slow


def test_rows_are_rows_of_the_benchmark() -> None:
    assert set(bench_compare.ROWS) <= {*bench.rows(True), *bench.saturated(True), *bench.fleets(True)}
