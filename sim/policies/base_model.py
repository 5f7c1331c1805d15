"""Requests that the base model answers alone, on a replica whose other requests have adapters.

They use a number after those of all adapters. Caches treat it as an adapter of no weight that is always resident and in
use, and of which eviction policies never hear (``SlotForBaseModel`` gives it a slot). Batches count its requests, but
not as an adapter.
"""

from __future__ import annotations

from collections.abc import Iterator


class AdapterCounts(dict[int, int]):
    """Requests by adapter, and those without an adapter under ``base_model``.

    Length and iteration leave the base model out; lookups include it.

    :param base_model: number of the base model.
    """

    def __init__(self, base_model: int) -> None:
        super().__init__()
        self._base_model = base_model

    def __len__(self) -> int:
        return super().__len__() - (self._base_model in self)

    def __iter__(self) -> Iterator[int]:
        return (adapter for adapter in super().__iter__() if adapter != self._base_model)

    def copy(self) -> dict[int, int]:
        """Return the adapters and their requests, in a plain dict."""
        return {adapter: self[adapter] for adapter in self}
