"""What several versions of an adapter take in GPU memory beside the newest one."""

from __future__ import annotations

from collections.abc import Sequence


class DuplicateVersionBytes:
    """Bytes of all replicas' residents that have a newer version of the same adapter beside them.

    :param original: by number in the caches, that in the traffic: versions of an adapter share it. Later versions have
        higher numbers.
    :param concerned: the adapters, as the traffic numbers them, of which there will be several versions.
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
        """Note that an adapter takes its room on a replica."""
        name = self._original[adapter]
        if name in self._concerned:
            there = self._there.setdefault((replica, name), set())
            before = self._extra(there)
            there.add(adapter)
            self._bytes += self._extra(there) - before
            self.peak = max(self.peak, self._bytes)

    def left(self, adapter: int, replica: int) -> None:
        """Note that an adapter gives its room up."""
        there = self._there.get((replica, self._original[adapter]))
        if there is not None:
            before = self._extra(there)
            there.discard(adapter)
            self._bytes += self._extra(there) - before

    def forget(self, replica: int) -> None:
        """Note that a replica has lost everything."""
        for of_replica, name in list(self._there):
            if of_replica == replica:
                self._bytes -= self._extra(self._there.pop((of_replica, name)))

    def _extra(self, there: set[int]) -> int:
        return sum(self._sizes[adapter] for adapter in there) - self._sizes[max(there)] if len(there) > 1 else 0
