"""The order in which vLLM touches the adapters of a batch: the iteration order of a Python set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence


class TouchOrder(ABC):
    """Puts a batch's adapters, given in order of admission, into the order in which they are touched."""

    @abstractmethod
    def __call__(self, batch: list[int]) -> list[int]: ...

    def subset(self, some: list[int], batch: list[int]) -> list[int]:
        """Return some adapters, all of this batch, in the order in which the batch is touched."""
        return [adapter for adapter in self(batch) if adapter in some]


class SetOrder(TouchOrder):
    """The iteration order of a Python set of the batch's adapters, built as vLLM builds it.

    :param keys: hash of each adapter. vLLM hashes names, so its hashes differ from process to process.
    """

    def __init__(self, keys: Sequence[int]) -> None:
        # Objects, because compiled code would make new numbers of them all the time.
        self._key_of: list[object] = list(keys)
        self._adapter_of: dict[object, int] = {key: adapter for adapter, key in enumerate(keys)}
        assert len(self._adapter_of) == len(keys), "two adapters share a hash"
        self._last: tuple[list[int], set[object]] = ([], set())

    def __call__(self, batch: list[int]) -> list[int]:
        adapter_of = self._adapter_of
        return [adapter_of[key] for key in self._keys(batch)]

    def subset(self, some: list[int], batch: list[int]) -> list[int]:
        if len(some) < 2:
            return some
        if len(some) == 2:
            first, second = self._key_of[some[0]], self._key_of[some[1]]
            for key in self._keys(batch):
                if key is first:
                    return some
                if key is second:
                    break
            return [some[1], some[0]]
        left = {self._key_of[adapter]: adapter for adapter in some}
        ordered: list[int] = []
        for key in self._keys(batch):
            if key in left:
                ordered.append(left.pop(key))
                if len(left) == 1:
                    break  # where the last one stands does not matter
        return ordered + list(left.values())

    def _keys(self, batch: list[int]) -> set[object]:
        """Return the set of a batch's keys, cached for the last batch.

        Batches are compared by identity, so a list must not be changed between calls.
        """
        if self._last[0] is not batch:
            self._last = batch, {self._key_of[adapter] for adapter in batch}
        return self._last[1]
