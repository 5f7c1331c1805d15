"""Reports of a thousand points stay small and quick, and show all of them."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import samples

from sim.results.point import Point

SLO = {"ttft_p99": "1 s", "e2e_p99": "1 s", "miss_ratio": "50%"}
MOST_BYTES = 2_000_000
MOST_S = 15.0
"""Processor time of this process, so that busy neighbours count little."""


def one_axis() -> Iterator[dict[str, Any]]:
    return ({"adapters.count": 10 + 10 * i} for i in range(1000))


def two_axes() -> Iterator[dict[str, Any]]:
    return ({"cache.gpu.slots": 8 + 8 * i, "adapters.count": 50 + 50 * j} for i in range(40) for j in range(25))


def three_axes() -> Iterator[dict[str, Any]]:
    return (
        {"cache.gpu.slots": 8 + 8 * i, "adapters.count": 50 + 50 * j, "workload.arrivals.rate": f"{k + 1}/s"}
        for i in range(10)
        for j in range(10)
        for k in range(10)
    )


def names() -> Iterator[dict[str, Any]]:
    return ({"router.policy": f"policy-{i}"} for i in range(1000))


def vary(swept: dict[str, Any], place: float, luck: random.Random) -> Point:
    """A point with numbers of its own, unsettled now and then, with calibration intervals."""
    point = samples.make_point(
        swept,
        p99=0.1 + 1.5 * place**2 * luck.uniform(1, 1.05),
        mean=0.06 + 0.3 * place * luck.uniform(1, 1.05),
        miss=max(0.01, 1 - 0.9 * place * luck.uniform(0.97, 1)),
        busy=min(0.97, 0.2 + 0.75 * place),
        rate=20 + 10 * place,
        fixed=False,
        half=luck.uniform(0.01, 0.04),
        settled=luck.random() > 0.1,
    )
    return samples.with_draws(point, luck.uniform(0.05, 0.2))


@pytest.mark.parametrize(("make", "charts"), [(one_axis, 5), (two_axes, 4), (three_axes, 9), (names, 5)])
def test_a_thousand_points_stay_small_and_quick(make: Any, charts: int) -> None:
    luck = random.Random(1)
    points = [vary(swept, i / 1000, luck) for i, swept in enumerate(make())]
    run = samples.RunData(Path("x"), samples.manifest(kind="sweep"), points)
    run.manifest["scenario"]["slo"] = SLO
    start = time.process_time()
    text = samples.build_report(run)
    assert time.process_time() - start < MOST_S
    assert len(text.encode()) < MOST_BYTES
    assert text.count("<figure") == charts
    whole = text[text.index('<section id="metrics"') : text.index('<section id="method"')]
    assert whole.count("<tr>") > len(points)
