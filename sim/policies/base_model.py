"""Requests that the base model answers alone, in a replica whose other requests have adapters.

They go by a number behind those of all adapters. In the caches it is an adapter of no weight that is always there and
in use, and that eviction policies never hear of; in the batch its requests are counted, but it is not one of the
adapters.
"""

from __future__ import annotations

from collections.abc import Iterator


class AdapterCounts(dict[int, int]):
    """Requests by adapter; those without an adapter stand under ``base_model``, which is not one of the keys counted.

    Length and iteration are those of the adapters alone. Looking a number up finds either.

    :param base_model: the number of the base model.
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
