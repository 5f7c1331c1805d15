"""What an eviction policy is told, and what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

import numpy as np


def _no_future(adapter: int) -> float:
    return inf


@dataclass(frozen=True, slots=True)
class Setting:
    """What policies may need to know of their cache; most need little of it.

    :ivar weights: what each adapter takes: bytes, or 1 where slots are counted.
    :ivar capacity: bytes or slots.
    :ivar rng: where ``random`` takes its luck from.
    :ivar next_use: ``belady`` only: when an adapter is used next after now; infinite: never again.
    :ivar now: the time, in seconds; that of ``next_use`` and of last uses.
    """

    weights: Sequence[int]
    capacity: int
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    next_use: Callable[[int], float] = _no_future
    now: Callable[[], float] = lambda: 0.0


class Eviction(Protocol):
    """Decide which idle resident (resident and not in use) leaves next.

    ``loaded`` is called at the end of every load, before ``idle`` if nobody uses the adapter. ``idle`` is called when
    an adapter becomes resident unused or loses its last user, ``busy`` when an idle one is used again. ``victim`` takes
    the next one out, and returns None where none is left; those ``spared`` and those in use are never offered.

    ``touched`` is called for every use but the one that caused the load, so also where the adapter is in use already:
    None where the policy makes no difference between one user and many. It may name adapters that never leave.
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

    def __len__(self) -> int: ...
