"""The order in which vLLM touches the adapters of a batch: the iteration order of a Python set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence


class TouchOrder(ABC):
    """Puts a batch's adapters, given in order of admission, into the order in which they are touched."""

    @abstractmethod
    def __call__(self, batch: list[int]) -> list[int]: ...

    def subset(self, some: Collection[int], batch: list[int]) -> list[int]:
        """Return some of a batch's adapters in the order in which the batch is touched."""
        return [adapter for adapter in self(batch) if adapter in some]


class SetOrder(TouchOrder):
    """The iteration order of a Python set of the batch's adapters, built as vLLM builds it.

    :param keys: hash of each adapter. vLLM hashes names, so its hashes differ from process to process.
    """

    def __init__(self, keys: Sequence[int]) -> None:
        adapter_of = {key: adapter for adapter, key in enumerate(keys)}
        assert len(adapter_of) == len(keys), "two adapters share a hash"
        self._key_of, self._adapter_of = keys.__getitem__, adapter_of.__getitem__
        self._last: tuple[list[int], set[int]] = ([], set())

    def __call__(self, batch: list[int]) -> list[int]:
        return list(map(self._adapter_of, self._keys(batch)))

    def subset(self, some: Collection[int], batch: list[int]) -> list[int]:
        if len(some) < 2:
            return list(some)
        wanted = set(map(self._key_of, some))
        return list(map(self._adapter_of, filter(wanted.__contains__, self._keys(batch))))

    def _keys(self, batch: list[int]) -> set[int]:
        """Return the set of a batch's keys, cached for the last batch.

        Batches are compared by identity, so a list must not be changed between calls.
        """
        if self._last[0] is not batch:
            self._last = batch, set(map(self._key_of, batch))
        return self._last[1]
