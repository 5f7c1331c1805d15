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
        self.segments: OrderedDict[Segment, None] = OrderedDict()
        self._known = known
        self._uncached_last = uncached_last
        self._gone = 0  # blocks at the head that are evicted, and still there
        self._last = Segment(None, 0, 0, False)  # in the queue, or empty
        if uncached_last:
            self._append(Segment(None, 0, total, False), total)

    def _append(self, segment: Segment, blocks: int) -> None:
        self._last = segment
        self.segments[segment] = None
        self.blocks += blocks

    def append_extent(self, extent: Extent, first: int, end: int) -> None:
        """Append the blocks of an extent from ``first`` to ``end`` (exclusive), which are its last ones in use."""
        segment = self._last = Segment(extent, first, end, True)
        extent.segments.append(segment)
        self.segments[segment] = None
        self.blocks += end - first

    def append_uncached(self) -> None:
        """Append a block without content, where such blocks go to the end."""
        self._append(Segment(None, 0, 1, False), 1)

    def append_unknown(self, blocks: int) -> None:
        """Append cached blocks that no request can find."""
        last = self._last
        if last.extent is None and last.cached and last.end:
            last.end += blocks
            self.blocks += blocks
        else:
            self._append(Segment(None, 0, blocks, True), blocks)

    def take_out(self, extent: Extent, end: int) -> None:
        """Take the free blocks of an extent up to ``end``, which are used again, out of the queue."""
        assert not self._gone, "the blocks have just been looked up"
        segments = extent.segments
        while segments and segments[-1].first < end:
            segment = segments[-1]
            if segment.end > end:
                self.blocks -= end - segment.first
                segment.first = end
                return
            self.blocks -= segment.end - segment.first
            segments.pop()
            del self.segments[segment]

    def leave(self, free: int) -> None:
        """Evict blocks from the head until no more than ``free`` are left."""
        gone = self.blocks - free if free > 0 else self.blocks
        if gone > 0:
            self.blocks -= gone
            self._gone += gone
            if self._uncached_last:
                self._drop()
            else:
                self.evicted += gone  # all of them are cached

    def settle(self) -> None:
        """Drop what is evicted, so that no request finds it."""
        if self._gone:
            self._drop()

    def _drop(self) -> None:
        segments, gone = self.segments, self._gone
        self._gone = 0
        while gone:
            segment = next(iter(segments))
            blocks = segment.end - segment.first
            if blocks > gone:
                blocks = gone
            else:
                del segments[segment]
            gone -= blocks
            segment.end -= blocks
            if self._uncached_last and segment.cached:
                self.evicted += blocks
            extent = segment.extent
            if extent is not None:
                extent.end = segment.end
                if segment.end == segment.first:
                    extent.segments.pop(0)
                    if extent.end == extent.first and not extent.forgotten:
                        self._known.remove(extent)

    def check_integrity(self, extents: set[Extent]) -> set[Extent]:
        """Assert that these extents have their free blocks here; return them and all others that have some.

        :param extents: those that are known or in use.
        """
        assert self.blocks + self._gone == sum(segment.end - segment.first for segment in self.segments)
        queued = [segment for segment in self.segments if segment.extent is not None]
        found = extents | {segment.extent for segment in queued if segment.extent is not None}
        for extent in found:
            assert extent.segments == [segment for segment in queued if segment.extent is extent]
            block = extent.end
            for segment in extent.segments:
                assert segment.end == block > segment.first
                block = segment.first
            assert block == extent.cover
        return found
