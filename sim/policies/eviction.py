"""Who leaves a full cache. A policy is one class here and one line in ``EVICTIONS``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol


class Eviction(Protocol):
    """Keep the idle residents (resident and not in use) in an order of leaving.

    ``idle`` is called when an adapter becomes resident unused or loses its last user, ``busy`` when an
    idle one is used again, ``victim`` to take the next one out. In-use adapters are never offered.
    """

    @property
    def idle(self) -> Callable[[int], None]: ...

    @property
    def busy(self) -> Callable[[int], None]: ...

    def victim(self) -> int | None: ...

    def __len__(self) -> int: ...


class Lru:
    """Least recently used leaves first; an adapter counts as used until its last request ends."""

    def __init__(self) -> None:
        self._order: OrderedDict[int, None] = OrderedDict()
        # The two that every request calls are the dictionary's own C methods.
        self.idle: Callable[[int], None] = self._order.setdefault
        self.busy: Callable[[int], None] = self._order.__delitem__

    def victim(self) -> int | None:
        return self._order.popitem(False)[0] if self._order else None

    def __len__(self) -> int:
        return len(self._order)


EVICTIONS: dict[str, type[Eviction]] = {"lru": Lru}
