"""What a cache-only replay found: plain values, as JSON and as CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class CachePoint:
    """One policy at one capacity.

    :ivar slots: the capacity where it was asked in slots, else None.
    :ivar capacity_bytes: the capacity in bytes; None where adapters have no known size. A slot is as large as the
        largest adapter.
    :ivar byte_miss_ratio: missed over requested bytes; None where it isn't known.
    """

    policy: str
    slots: int | None
    capacity_bytes: int | None
    requests: int
    misses: int
    miss_ratio: float
    byte_miss_ratio: float | None

    def as_json(self) -> dict[str, Any]:
        """Return what ``loraplan cache --json`` prints."""
        slots = {} if self.slots is None else {"slots": self.slots}
        return {
            "policy": self.policy,
            "capacity_bytes": self.capacity_bytes,
            **slots,
            "requests": self.requests,
            "misses": self.misses,
            "miss_ratio": self.miss_ratio,
            "byte_miss_ratio": self.byte_miss_ratio,
        }


@dataclass(frozen=True, slots=True)
class LruOrders:
    """Miss ratios of LRU at some capacities: in the real order, and in orders without locality.

    :ivar capacities: slots or bytes, ascending; all others have the same shape.
    :ivar real: the trace as it is; exact.
    :ivar shuffled: the same requests in random order, mean over some shuffles.
    :ivar independent: requests drawn independently with the trace's popularity: Che's approximation.
    """

    capacities: NDArray[np.int64]
    real: NDArray[np.float64]
    shuffled: NDArray[np.float64]
    independent: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CacheResult:
    """All that ``loraplan cache`` reports.

    :ivar adapters: how many the trace asks for.
    :ivar by_slots: whether capacities count slots; else they are bytes.
    :ivar footprint: capacity that holds every adapter.
    :ivar equal_sizes: whether all adapters take the same room, so that Belady's choice is the best there is.
    :ivar capacities: as asked, ascending.
    :ivar points: policies in the order asked, each at every capacity.
    :ivar at: LRU's orders at the capacities; ``at_bytes`` the same in missed over requested bytes, where sizes differ.
    :ivar curve: LRU's orders over all capacities.
    :ivar shuffles: how many random orders were averaged.
    """

    requests: int
    adapters: int
    by_slots: bool
    footprint: int
    equal_sizes: bool
    policies: tuple[str, ...]
    capacities: tuple[int, ...]
    points: tuple[CachePoint, ...]
    at: LruOrders
    at_bytes: LruOrders | None
    curve: LruOrders
    shuffles: int

    def row(self, policy: str) -> tuple[CachePoint, ...]:
        """Return a policy's points, by capacity."""
        return tuple(point for point in self.points if point.policy == policy)


def cache_csv(points: Sequence[CachePoint]) -> str:
    """Return ``cache.csv``: one row a policy and capacity."""
    head = ("policy", "slots", "capacity_bytes", "requests", "misses", "miss_ratio", "byte_miss_ratio")
    return _csv(head, [[getattr(point, name) for name in head] for point in points])


def curve_csv(result: CacheResult) -> str:
    """Return ``lru_curve.csv``: one row a capacity of the LRU curve."""
    curve = result.curve
    head = ("slots" if result.by_slots else "capacity_bytes", "lru", "lru_shuffled", "lru_independent_draws")
    columns = (curve.capacities, curve.real, curve.shuffled, curve.independent)
    return _csv(head, list(zip(*(column.tolist() for column in columns), strict=True)))


def _csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return out.getvalue()
