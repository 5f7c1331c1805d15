"""The free KV blocks of a prefix store, in the order in which they are taken for other content."""

from __future__ import annotations

from collections import OrderedDict

from sim.policies.kv.extents import Extent, Segment
from sim.policies.kv.known_blocks import KnownBlocks


class FreeQueue:
    """Free blocks, the next to be taken first: cached ones, and with ``uncached_last`` all others too.

    Which physical block holds what does not matter. Otherwise a block without content always stands before all cached
    ones, so that only cached blocks are kept here. While there are more of them than free blocks, the first has been
    evicted. Blocks are only added at the end, so ``leave`` counts what is evicted from the head, and ``settle`` drops
    it later, before a request looks for content.

    :ivar blocks: number of blocks in the queue.
    :ivar evicted: cached blocks that were used for something else.
    """

    def __init__(self, known: KnownBlocks, total: int, *, uncached_last: bool) -> None:
        self.blocks = 0
        self.evicted = 0
        self.entries: OrderedDict[Extent | Segment, None] = OrderedDict()
        self._known = known
        self._uncached_last = uncached_last
        self._gone = 0  # blocks at the head that are evicted, and still there
        self._last: Segment | None = None  # the last entry, if it is no extent's; in the queue, or empty
        if uncached_last:
            self._append(Segment(None, 0, total, False), total)

    def _append(self, segment: Segment, blocks: int) -> None:
        self._last = segment
        self.entries[segment] = None
        self.blocks += blocks

    def append_extent(self, extent: Extent, end: int) -> None:
        """Append the blocks of an extent from its ``cover`` to ``end`` (exclusive), which were its last ones in use."""
        first = extent.cover
        if end == extent.end:
            self.entries[extent] = None
        else:
            segment = Segment(extent, first, end, True)
            extent.segments.append(segment)
            self.entries[segment] = None
        self._last = None
        self.blocks += end - first

    def append_uncached(self) -> None:
        """Append a block without content, where such blocks go to the end."""
        self._append(Segment(None, 0, 1, False), 1)

    def append_unknown(self, blocks: int) -> None:
        """Append cached blocks that no request can find."""
        last = self._last
        if last is not None and last.cached and last.end:
            last.end += blocks
            self.blocks += blocks
        else:
            self._append(Segment(None, 0, blocks, True), blocks)

    def take_out(self, extent: Extent, end: int) -> None:
        """Take the free blocks of an extent up to ``end``, which are used again, out of the queue."""
        assert not self._gone, "the blocks have just been looked up"
        self.blocks -= end - extent.cover
        segments = extent.segments
        while segments:
            segment = segments[-1]
            if segment.end > end:
                segment.first = end
                return
            segments.pop()
            del self.entries[segment]
            if segment.end == end:
                return
        if end == extent.end:
            del self.entries[extent]

    def leave(self, free: int) -> None:
        """Evict blocks from the head until no more than ``free`` are left."""
        gone = self.blocks - free if free > 0 else self.blocks
        if gone > 0:
            self.blocks -= gone
            self._gone += gone
            if self._uncached_last:
                self.settle()
            else:
                self.evicted += gone  # all of them are cached

    def settle(self) -> None:
        """Drop what is evicted, so that no request finds it."""
        entries, gone = self.entries, self._gone
        self._gone = 0
        while gone:
            entry = next(iter(entries))
            if isinstance(entry, Extent):
                extent: Extent | None = entry
                first, cached = entry.first_queued(), True
            else:
                extent, first, cached = entry.extent, entry.first, entry.cached
            blocks = entry.end - first
            if blocks > gone:
                blocks = gone
            else:
                del entries[entry]
            gone -= blocks
            entry.end -= blocks
            if self._uncached_last and cached:
                self.evicted += blocks
            if extent is None:
                continue
            if entry is not extent:
                extent.end = entry.end
                if entry.end == first:
                    extent.segments.pop(0)
            if extent.end == extent.first and not extent.forgotten:
                self._known.remove(extent)

    def check_integrity(self, extents: set[Extent]) -> set[Extent]:
        """Assert that these extents have their free blocks here; return them and all others that have some.

        :param extents: those that are known or in use.
        """
        queued = [entry for entry in self.entries if isinstance(entry, Extent)]
        segments = [entry for entry in self.entries if isinstance(entry, Segment)]
        found = extents.union(queued, [segment.extent for segment in segments if segment.extent is not None])
        blocks = sum(segment.end - segment.first for segment in segments)
        for extent in found:
            block = extent.first_queued()
            assert (block < extent.end) == (extent in self.entries)
            blocks += extent.end - block
            assert extent.segments == [segment for segment in segments if segment.extent is extent]
            for segment in extent.segments:
                assert segment.end == block > segment.first
                block = segment.first
            assert block == extent.cover
        assert self.blocks + self._gone == blocks
        return found
