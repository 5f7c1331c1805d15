"""GPU memory taken by old versions of an adapter while a newer one is resident too."""

from __future__ import annotations

from collections.abc import Sequence


class DuplicateVersionBytes:
    """Bytes of residents, over all replicas, whose replica also holds a newer version of the same adapter.

    :param original: by number in the caches, the number in the traffic, which all versions of an adapter share. Later
        versions have higher numbers.
    :param concerned: adapters, as numbered in the traffic, that will have several versions.
    :ivar peak: most bytes so far.
    """

    def __init__(self, original: Sequence[int], size_bytes: Sequence[int], concerned: set[int]) -> None:
        self._original = original
        self._sizes = size_bytes
        self._concerned = concerned
        self._there: dict[tuple[int, int], set[int]] = {}
        self._bytes = 0
        self.peak = 0

    def placed(self, adapter: int, replica: int) -> None:
        """Note that an adapter has taken its room on a replica."""
        name = self._original[adapter]
        if name in self._concerned:
            there = self._there.setdefault((replica, name), set())
            before = self._extra(there)
            there.add(adapter)
            self._bytes += self._extra(there) - before
            self.peak = max(self.peak, self._bytes)

    def left(self, adapter: int, replica: int) -> None:
        """Note that an adapter has left a replica."""
        there = self._there.get((replica, self._original[adapter]))
        if there is not None:
            before = self._extra(there)
            there.discard(adapter)
            self._bytes += self._extra(there) - before

    def forget(self, replica: int) -> None:
        """Forget all adapters of a replica that has crashed."""
        for of_replica, name in list(self._there):
            if of_replica == replica:
                self._bytes -= self._extra(self._there.pop((of_replica, name)))

    def _extra(self, there: set[int]) -> int:
        return sum(self._sizes[adapter] for adapter in there) - self._sizes[max(there)] if len(there) > 1 else 0
