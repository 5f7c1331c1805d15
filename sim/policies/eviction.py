"""Who leaves a full cache. A policy is one class here and one line in ``EVICTIONS``."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol


class Eviction(Protocol):
    """Keep the idle residents (resident and not in use) in an order of leaving.

    ``idle`` is called when an adapter becomes resident unused or loses its last user, ``busy`` when an
    idle one is used again, ``victim`` to take the next one out. In-use adapters are never offered.
    """

    def idle(self, adapter: int) -> None: ...

    def busy(self, adapter: int) -> None: ...

    def victim(self) -> int | None: ...

    def __len__(self) -> int: ...


class Lru:
    """Least recently used leaves first; an adapter counts as used until its last request ends."""

    def __init__(self) -> None:
        self._order: OrderedDict[int, None] = OrderedDict()

    def idle(self, adapter: int) -> None:
        self._order[adapter] = None

    def busy(self, adapter: int) -> None:
        del self._order[adapter]

    def victim(self) -> int | None:
        return self._order.popitem(last=False)[0] if self._order else None

    def __len__(self) -> int:
        return len(self._order)


EVICTIONS: dict[str, type[Eviction]] = {"lru": Lru}
