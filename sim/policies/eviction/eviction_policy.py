"""What an eviction policy is told, and what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

import numpy as np


def _no_future(adapter: int) -> float:
    return inf


@dataclass(frozen=True, slots=True)
class EvictionContext:
    """What policies may need to know of their cache; most need little of it.

    :ivar weights: what each adapter takes: bytes, or 1 where slots are counted.
    :ivar capacity: bytes or slots.
    :ivar rng: ``random`` only: where it takes its luck from.
    :ivar now: the time of last uses, in seconds.
    :ivar next_use: ``belady`` only: index, in order of arrival, of the next request that uses an adapter; infinite:
        never again. Asked only about adapters that are not in use; while one stays so, the answer changes only when
        that request goes elsewhere, and only to a higher one.
    :ivar come: ``belady`` only: how many requests have come. Those below come next in any case.
    """

    weights: Sequence[int]
    capacity: int
    rng: np.random.Generator | None = None
    now: Callable[[], float] = lambda: 0.0
    next_use: Callable[[int], float] = _no_future
    come: Callable[[], float] = lambda: 0.0


class Eviction(Protocol):
    """Decide which idle resident (resident and not in use) leaves next.

    ``loaded`` is called at the end of every load, before ``idle`` if nobody uses the adapter. ``idle`` is called when
    an adapter becomes resident unused or loses its last user, ``busy`` when an idle one is used again. ``victim`` takes
    the next one out, and returns None where none is left; those ``spared`` and those in use are never offered.

    ``remove`` takes an idle one out that leaves for another reason: it is no victim, so luck, hands and ages stay as
    they are, and no ghost remembers it.

    ``touched`` is called for every use but the one that caused the load, so also where the adapter is in use already:
    None where the policy makes no difference between one user and many. For what came before anybody asked (a warm
    start, a prefetch) the first use counts as the cause. It may name adapters that never leave.
    ``coming`` is called before victims are taken for a load: None where that makes no difference.
    """

    @property
    def idle(self) -> Callable[[int], None]: ...

    @property
    def busy(self) -> Callable[[int], None]: ...

    @property
    def touched(self) -> Callable[[int], None] | None: ...

    @property
    def coming(self) -> Callable[[int], None] | None: ...

    def loaded(self, adapter: int) -> None: ...

    def victim(self, spared: Collection[int] = ()) -> int | None: ...

    def remove(self, adapter: int) -> None: ...

    def __len__(self) -> int: ...
