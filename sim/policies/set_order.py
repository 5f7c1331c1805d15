"""The order in which vLLM touches the adapters of a batch: the iteration order of a Python set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence


class TouchOrder(ABC):
    """The adapters of a batch, and the order in which they are touched.

    :param keys: what stands for each adapter; no two are equal.
    """

    def __init__(self, keys: Sequence[int]) -> None:
        self._all_keys = keys
        # Of adapters that were ever in the batch. Objects, because compiled code would make new numbers all the time.
        self._keys: dict[int, object] = {}
        self._batch: dict[object, int] = {}  # adapters by key, in the order in which they joined

    def join(self, adapter: int) -> None:
        """Add an adapter to the batch, which does not hold it."""
        key = self._keys.get(adapter)
        if key is None:
            fresh: object = self._all_keys[adapter]  # one object: compiled code makes one for each use of a number
            assert fresh not in self._batch, "two adapters have the same key"
            self._keys[adapter] = key = fresh
        self._batch[key] = adapter

    def leave(self, adapter: int) -> None:
        """Take an adapter out of the batch, if it is there."""
        self._batch.pop(self._keys.get(adapter), None)

    def batch(self) -> list[int]:
        """Return the adapters of the batch in the order in which they joined."""
        return list(self._batch.values())

    @abstractmethod
    def touched(self) -> list[int]:
        """Return the adapters of the batch in the order in which they are touched."""

    def subset(self, some: list[int]) -> list[int]:
        """Return some adapters of the batch in the order in which they are touched."""
        return [adapter for adapter in self.touched() if adapter in some]


class SetOrder(TouchOrder):
    """The iteration order of a Python set of the batch's keys, built as vLLM builds it.

    :param keys: hash of each adapter. vLLM hashes names, so its hashes differ from process to process.
    """

    def __init__(self, keys: Sequence[int]) -> None:
        super().__init__(keys)
        self._set: set[object] | None = None  # of the batch's keys; None: not built since the batch changed

    def join(self, adapter: int) -> None:
        super().join(adapter)
        self._set = None

    def leave(self, adapter: int) -> None:
        super().leave(adapter)
        self._set = None

    def touched(self) -> list[int]:
        batch = self._batch
        return [batch[key] for key in self._built()]

    def subset(self, some: list[int]) -> list[int]:
        if len(some) < 2:
            return some
        if len(some) == 2:
            first, second = self._keys[some[0]], self._keys[some[1]]
            for key in self._built():
                if key is first:
                    return some
                if key is second:
                    break
            return [some[1], some[0]]
        left = {self._keys[adapter]: adapter for adapter in some}
        ordered: list[int] = []
        for key in self._built():
            if key in left:
                ordered.append(left.pop(key))
                if len(left) == 1:
                    break  # where the last one stands does not matter
        return ordered + list(left.values())

    def _built(self) -> set[object]:
        """Return the set. Its keys are added one by one, because a set of a whole dict or set has another order."""
        if self._set is None:
            self._set = set(self._batch.keys())
        return self._set
