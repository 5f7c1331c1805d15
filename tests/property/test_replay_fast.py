"""The fast replays count what plain ones count, on any stream; and what libCacheSim counts."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sim.policies.replay import cache_replay
from sim.policies.replay.cache_replay import KERNELS, replay_stepwise


class Queue:
    """A cache as a list, oldest first; the policies below say what a hit does and who leaves."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.marked: set[int] = set()
        self.hand: int | None = None  # the adapter that sieve looks at next

    def touch(self, adapter: int) -> None: ...

    def leave(self) -> int:
        return self.order.pop(0)


class PlainLru(Queue):
    def touch(self, adapter: int) -> None:
        self.order.remove(adapter)
        self.order.append(adapter)


class PlainClock(Queue):
    def touch(self, adapter: int) -> None:
        self.marked.add(adapter)

    def leave(self) -> int:
        while self.order[0] in self.marked:
            self.marked.remove(self.order[0])
            self.order.append(self.order.pop(0))
        return self.order.pop(0)


class PlainSieve(PlainClock):
    def leave(self) -> int:
        at = 0 if self.hand is None else self.order.index(self.hand)
        while self.order[at] in self.marked:
            self.marked.remove(self.order[at])
            at = (at + 1) % len(self.order)
        self.hand = self.order[at + 1] if at + 1 < len(self.order) else None
        return self.order.pop(at)


PLAIN: dict[str, Callable[[], Queue]] = {"lru": PlainLru, "fifo": Queue, "clock": PlainClock, "sieve": PlainSieve}


def plain(policy: str, stream: list[int], sizes: list[int], capacity: int) -> tuple[int, int]:
    cache, misses, missed = PLAIN[policy](), 0, 0
    for adapter in stream:
        if adapter in cache.order:
            cache.touch(adapter)
            continue
        misses, missed = misses + 1, missed + sizes[adapter]
        if sizes[adapter] > capacity:
            continue
        while sum(sizes[resident] for resident in cache.order) + sizes[adapter] > capacity:
            cache.leave()
        cache.order.append(adapter)
    return misses, missed


@st.composite
def workloads(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """Streams over a few adapters, of equal size or not, and a capacity from too small for any to enough for all."""
    sizes = draw(
        st.one_of(
            st.lists(st.integers(1, 12), min_size=1, max_size=9),
            st.builds(lambda size, count: [size] * count, st.integers(1, 5), st.integers(1, 9)),
        )
    )
    stream = draw(st.lists(st.integers(0, len(sizes) - 1), max_size=120))
    return stream, sizes, draw(st.integers(0, sum(sizes) + 1))


def arrays(stream: list[int], sizes: list[int]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    return np.asarray(stream, dtype=np.int32), np.asarray(sizes, dtype=np.int64)


@pytest.mark.parametrize("policy", KERNELS)
@given(workload=workloads(), chunk=st.integers(1, 130))
def test_a_kernel_counts_what_a_plain_list_counts(
    policy: str, workload: tuple[list[int], list[int], int], chunk: int
) -> None:
    stream, sizes, capacity = workload
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_replay, "CHUNK", chunk)
        assert KERNELS[policy](*arrays(stream, sizes), capacity) == plain(policy, stream, sizes, capacity)


@pytest.mark.parametrize("policy", KERNELS)
@given(workload=workloads())
def test_a_kernel_counts_what_the_simulators_own_policy_counts(
    policy: str, workload: tuple[list[int], list[int], int]
) -> None:
    stream, sizes, capacity = workload
    stepped = replay_stepwise(policy, *arrays(stream, sizes), capacity)
    assert KERNELS[policy](*arrays(stream, sizes), capacity) == (stepped.misses, stepped.missed_bytes)


@pytest.mark.parametrize("policy", KERNELS)
def test_a_kernel_meets_libcachesim(policy: str, shared: Path) -> None:
    rows = [
        row
        for row in csv.DictReader((shared / "cache" / "references.csv").read_text(encoding="utf-8").splitlines())
        if row["policy"].lower() == policy
    ]
    assert len(rows) == 26
    assert {row["compare"] for row in rows} == {"exact"}
    for row in rows:
        with np.load(shared / "cache" / f"{row['trace']}.npz") as stream:
            recorded = dict(stream)
        objects, sizes = recorded["obj"], recorded["size_mb"].astype(np.int64) * 10**6
        misses, missed = KERNELS[policy](objects, sizes, int(row["cache_mb"]) * 10**6)
        assert misses == int(row["misses"]), row
        assert f"{missed / sizes[objects].sum():.6f}" == row["byte_miss_ratio"], row
