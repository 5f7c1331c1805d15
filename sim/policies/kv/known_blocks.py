"""The full KV blocks that requests can find, by their content."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from sim.policies.kv.extents import Extent, Key, Run, Spans
from sim.traffic.request import Request

NO_END: Final = 1 << 60
"""A position above all others."""


class KnownBlocks:
    """The extents that can be found.

    :ivar first: the first extent of each key; others are linked to it. Twins, which were filled while equal blocks were
        known, come last, the oldest of them first. An extent that is no twin has only blocks that were not known, so
        none begins within a twin.
    :param size: tokens of a block.
    :param invocation_tokens, base_model: as in ``PrefixStore``.
    """

    def __init__(self, size: int, invocation_tokens: int, base_model: int) -> None:
        self.first: dict[Key, Extent] = {}
        self._size = size
        self._invocation_tokens = invocation_tokens
        self._base_model = base_model

    def base_blocks(self, request: Request) -> int:
        """Return how many of the first blocks of a request with an adapter are those of the base model."""
        if not self._invocation_tokens or request.adapter == self._base_model:
            return 0
        return max(request.prompt_tokens - self._invocation_tokens, 0) // self._size

    def key(self, request: Request, run: int, block: int, base: int) -> Key:
        """Return the key of a block of a run, where the ``base`` first blocks are those of the base model."""
        return (self._base_model, run, 0) if block < base else (request.adapter, run, base)

    def walk(self, request: Request, path: tuple[Run, ...], limit: int) -> Spans:
        """Return the known blocks of a path, no more than ``limit``."""
        size, count = self._size, len(path)
        base = self.base_blocks(request) if self._invocation_tokens else 0
        spans: Spans = []
        block = at = 0
        while block < limit and at < count:
            end, key = path[at]
            if end < (block + 1) * size:
                at += 1
                continue
            extent = self.find(self.key(request, key, block, base) if base else (request.adapter, key, 0), block)
            if extent is None:
                break
            runs = extent.runs
            first = at
            if len(runs) > 1 or runs[0] != path[at]:
                common = extent.runs_in_common(path, at)
                at += common - 1
                end = min(path[at][0], runs[common - 1][0])
            most = base if block < base < limit else limit
            block = end // size
            if block > most:
                block = most
            if block > extent.end:
                block = extent.end
            if extent.twin:
                block = min(block, self._oldest_until(extent, spans[-1][1] if spans else 0))
            spans.append((extent, block))
            while at > first and path[at - 1][0] // size > block:
                at -= 1  # the last blocks of the extent have been evicted
        return spans

    def find(self, key: Key, block: int) -> Extent | None:
        """Return the known extent that begins with this block, or else the oldest twin that has it."""
        extent = self.first.get(key)
        while extent is not None and extent.first != block:
            if extent.twin and extent.first < block < extent.end:
                break
            extent = extent.next
        return extent

    def _oldest_until(self, twin: Extent, block: int) -> int:
        """Return where the blocks of a twin end (exclusive) that are the oldest, as this one of them is."""
        end = twin.end
        for other in self.first[twin.key].chain():
            if other is twin:
                break
            if other.twin and block < other.first < end:
                end = other.first
        return end

    def add(self, extent: Extent) -> None:
        """Let an extent be found."""
        first = self.first.get(extent.key)
        if extent.twin and first is not None:
            *_, last = first.chain()
            last.next = extent
        else:
            extent.next = first
            self.first[extent.key] = extent

    def remove(self, extent: Extent) -> None:
        """Let an extent no longer be found."""
        key = extent.key
        before = self.first[key]
        if before is not extent:
            while before.next is not extent:
                assert before.next is not None
                before = before.next
            before.next = extent.next
        elif extent.next is None:
            del self.first[key]
        else:
            self.first[key] = extent.next

    def add_rest(self, twin: Extent, rest: Extent) -> None:
        """Let the rest of a twin that has been cut be found."""
        rest.next = twin.next
        twin.next = rest

    def extents(self) -> list[Extent]:
        return [extent for first in self.first.values() for extent in first.chain()]

    def check_integrity(self) -> set[Extent]:
        """Assert that equal blocks, except the oldest, are twins; return all extents."""
        known = self.extents()
        assert len(known) == len(set(known))
        assert not any(extent.forgotten for extent in known)
        assert all(extent.key == key for key, first in self.first.items() for extent in first.chain())
        assert not any(extent.twin and extent.next is not None and not extent.next.twin for extent in known)
        assert all(extent.plain == (len(extent.runs) == 1 and not extent.twin) for extent in known)
        pieces = sorted(piece for extent in known if not extent.twin for piece in extent.pieces(self._size))
        for (key, _, end), (next_key, first, _) in pairwise(pieces):
            assert key != next_key or end <= first, "equal blocks, except the oldest, are twins"
        return set(known)
