"""The page of a cache replay: its words follow from the numbers, and it stands alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from one_script import without_script

from reports.render.html import page
from sim.spec.policies import EVICTIONS
from sim.studies.cache.charts import orders_chart, policies_chart
from sim.studies.cache.findings import headline, sentences
from sim.studies.cache.report import cache_report, miss_table
from sim.studies.cache.study import CacheResult, CacheSizes, study_cache

SIZES = np.full(40, 50_000_000)


def sessions(seed: int = 1) -> NDArray[np.int32]:
    """Requests in runs of ten for one of forty adapters: much locality."""
    return np.repeat(np.random.default_rng(seed).integers(0, 40, 200), 10).astype(np.int32)


def draws() -> NDArray[np.int32]:
    """Forty adapters, each equally often, in random order."""
    return np.random.default_rng(2).permutation(np.arange(20_000) % 40).astype(np.int32)


def study(
    stream: NDArray[np.int32], policies: Sequence[str], capacities: Sequence[int], sizes: NDArray[np.int64] = SIZES
) -> CacheResult:
    return study_cache(stream, sizes, policies, CacheSizes(capacities, by_slots=False))


def test_belady_is_a_bound_only_where_sizes_are_equal() -> None:
    sizes = np.asarray([50_000_000, 100_000_000] * 20)
    result = study(sessions(), ("lru", "belady"), (500_000_000,), sizes)
    assert "no policy" not in headline(result)
    assert "no policy" not in policies_chart(result, of_bytes=False).caption


def test_locality_is_told_from_the_lack_of_it() -> None:
    ordered = " ".join(sentences(study(sessions(), ("lru",), (500_000_000,))))
    assert "The order of requests matters: LRU misses" in ordered
    # Shuffling what is shuffled changes nothing but luck.
    unordered = " ".join(sentences(study(draws(), ("lru",), (1_000_000_000,))))
    assert "The order of requests matters little" in unordered
    # A scan comes back just after LRU dropped it.
    scan = np.tile(np.arange(40, dtype=np.int32), 20)
    assert "The order of requests hurts" in " ".join(sentences(study(scan, ("lru",), (1_000_000_000,))))


def test_the_table_shows_shuffled_and_independent_orders_below_the_policies() -> None:
    result = study(draws(), ("lru", "sieve"), (500_000_000, 1_000_000_000))
    table = miss_table(result)
    assert table.head == ["policy", "500 MB", "1 GB"]
    assert [row[0] for row in table.rows] == ["lru", "sieve", "lru, requests shuffled", "lru, independent draws*"]
    assert table.rows[3][1:] == ["75 %", "50 %"]  # ten and twenty of forty equal adapters are resident


def test_bytes_stand_in_brackets_where_sizes_differ() -> None:
    sizes = np.asarray([50_000_000, 100_000_000] * 20)
    result = study(draws(), ("lru", "fifo"), (500_000_000,), sizes)
    cell = miss_table(result).rows[0][1]
    point = result.row("lru")[0]
    assert cell == f"{point.miss_ratio * 100:.3g} % ({point.byte_miss_ratio * 100:.3g} %)"
    assert result.at_bytes.real[0] == pytest.approx(point.byte_miss_ratio)


def test_charts_describe_themselves_and_all_policies_are_told_apart() -> None:
    replayable = [entry.name for entry in EVICTIONS if not entry.needs_batch]
    result = study(sessions(), replayable, (200_000_000, 1_000_000_000))
    chart = policies_chart(result, of_bytes=False)
    for policy in replayable:
        assert f">{policy}</text>" in chart.svg
        assert policy in chart.desc
    orders = orders_chart(result)
    assert "shuffled" in orders.desc
    assert orders.svg.count("aria-label=") == 1


@pytest.mark.parametrize("capacities", [(500_000_000,), (200_000_000, 500_000_000)])
def test_names_stay_text_and_one_capacity_needs_no_chart_of_policies(capacities: tuple[int, ...]) -> None:
    result = study(sessions(), ("lru", "sieve"), capacities)
    text = without_script(page(cache_report(result, "<b>.csv", "t", ["a note"], "loraplan cache '<b>.csv'")))
    assert "<script" not in text
    assert "<b>.csv" not in text
    assert "&lt;b&gt;.csv" in text
    assert text.count("<svg") == len(capacities)
