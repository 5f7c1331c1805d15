"""Barriers that keep new requests from an adapter while a replica updates it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Barrier:
    """Keeps new requests from an adapter on one replica while its weights are replaced.

    :ivar refuses: new requests are refused; otherwise they wait.
    :ivar left: requests still inside that came before it closed.
    :ivar on_drained: called when the last of them has left.
    :ivar on_open: called when it is open again; for rollouts that found it closed.
    """

    refuses: bool
    left: int
    on_drained: Callable[[], None]
    on_open: list[Callable[[], None]] = field(default_factory=list)


class Barriers:
    """Closed barriers of all replicas, by adapter.

    :ivar count: number of closed barriers.
    """

    def __init__(self, replicas: int) -> None:
        self._barriers: list[dict[int, Barrier]] = [{} for _ in range(replicas)]
        self.count = 0

    def closed(self, replica: int, adapter: int) -> Barrier | None:
        """Return the closed barrier of an adapter, or None."""
        return self._barriers[replica].get(adapter) if self.count else None

    def close(self, replica: int, adapter: int, barrier: Barrier) -> None:
        """Close a barrier; ``on_drained`` is called at once if no request is inside."""
        self._barriers[replica][adapter] = barrier
        self.count += 1
        if barrier.left == 0:
            barrier.on_drained()

    def open(self, replica: int, adapter: int) -> Barrier:
        """Open a barrier again and return it."""
        self.count -= 1
        return self._barriers[replica].pop(adapter)

    def left(self, replica: int, adapter: int) -> None:
        """Note that a request for an adapter has left a replica."""
        barrier = self.closed(replica, adapter)
        if barrier is not None and barrier.left:
            barrier.left -= 1
            if barrier.left == 0:
                barrier.on_drained()

    def forget(self, replica: int) -> None:
        """Open all barriers of a replica that has crashed, with no request inside."""
        self.count -= len(self._barriers[replica])
        self._barriers[replica] = {}
