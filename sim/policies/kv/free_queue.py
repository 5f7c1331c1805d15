"""The free KV blocks of a prefix store, in the order in which they are taken for other content."""

from __future__ import annotations

from collections.abc import Iterator

from sim.policies.kv.extents import Entry, Extent, Segment, Spans
from sim.policies.kv.known_blocks import KnownBlocks


class FreeQueue:
    """Free blocks, the next to be taken first: cached ones, and with ``uncached_last`` all others too.

    Which physical block holds what does not matter. Otherwise a block without content always stands before all cached
    ones, so that only cached blocks are kept here. While there are more of them than free blocks, the first are to be
    evicted. ``note_free`` says so before blocks are added, and before a request looks for content. It leaves them where
    they are, because many together are evicted at a lower cost; ``has`` finds out whether that can matter.

    :ivar blocks: number of blocks in the queue; ``due``: the first of them, which are to be evicted.
    """

    def __init__(self, known: KnownBlocks, total: int, *, uncached_last: bool) -> None:
        self.blocks = 0
        self.due = 0
        self._evicted = 0
        self._appended = 0  # blocks ever appended
        self._most_due = total // 16
        self._known = known
        self._end = end = Entry()  # its neighbours are the last entry and the first one
        end.before = 0
        end.previous = end.following = end
        if uncached_last:
            self._insert(Segment(None, 0, total), end)
            self.blocks = total

    def _insert(self, entry: Entry, following: Entry) -> None:
        previous = following.previous
        entry.before = following.before
        entry.previous = previous
        entry.following = following
        previous.following = following.previous = entry
        following.before = 0

    def _remove(self, entry: Entry) -> None:
        previous, following = entry.previous, entry.following
        following.before += entry.before
        previous.following = following
        following.previous = previous

    def append(self, extent: Extent, end: int) -> int:
        """Append the blocks of an extent from its ``cover`` to ``end`` (exclusive), which were its last ones in use.

        Return how many they are.
        """
        blocks = end - extent.cover
        if end == extent.end:
            extent.appended = self._appended
            self._insert(extent, self._end)
        else:
            self._insert(extent.new_segment(extent.cover, end), self._end)
        self._appended += blocks
        self.blocks += blocks
        return blocks

    def give_back(self, spans: Spans) -> int:
        """Remove a user of these blocks. Append those that have no other user, the last one first; return how many."""
        appended = 0
        for extent, end in reversed(spans):
            if extent.leave(end) < end:
                appended += self.append(extent, end)
        return appended

    def append_uncached(self) -> None:
        """Append a block without content, where such blocks go to the end."""
        self._insert(Segment(None, 0, 1), self._end)
        self._appended += 1
        self.blocks += 1

    def append_unknown(self, blocks: int) -> None:
        """Append cached blocks that no request can find."""
        self._end.before += blocks
        self._appended += blocks
        self.blocks += blocks

    def take(self, spans: Spans) -> None:
        """Add a user of these blocks, and take those that are free out of the queue."""
        for extent, end in spans:
            if end > extent.cover:
                self.blocks -= end - extent.cover
                if extent.segments:
                    self._take_segments(extent, end)
                elif end == extent.end:
                    self._remove(extent)
            extent.use(end)

    def _take_segments(self, extent: Extent, end: int) -> None:
        """Take the free blocks of an extent up to ``end`` out of its segments."""
        segments = extent.segments
        while segments:
            segment = segments[-1]
            if segment.end > end:
                segment.first = end
                return
            segments.pop()
            self._remove(segment)
            if segment.end == end:
                return
        if end == extent.end:
            self._remove(extent)

    def split(self, extent: Extent, block: int) -> Extent:
        """Cut an extent before a block, and return the rest of it; free blocks keep their places."""
        segments, first = extent.segments, extent.first_queued()
        extent.segments = []
        if first < extent.end:
            own = Segment(extent, first, extent.end)
            self._insert(own, extent)
            self._remove(extent)
            segments = [own, *segments]
        rest = extent.split(block)
        for segment in segments:
            for part in (rest, extent):
                first, end = max(segment.first, part.first), min(segment.end, part.end)
                if first < end:
                    self._insert(part if end == part.end else part.new_segment(first, end), segment)
            self._remove(segment)
        return rest

    def note_free(self, free: int) -> None:
        """Note that no more than ``free`` blocks are free, so that those before them are to be evicted."""
        due = self.blocks - free if free > 0 else self.blocks
        if due > self.due:
            self.due = due
            if due > self._most_due:
                self.evict()

    def has(self, extent: Extent, free: int) -> bool:
        """Return whether an extent surely keeps all its free blocks, because enough others stand before them.

        :param free: how many blocks are free now.
        """
        from_here_on = self._appended - extent.appended  # no more blocks than these can stand there
        return from_here_on <= free and from_here_on <= self.blocks - self.due

    def evict(self) -> None:
        """Evict the blocks that are due."""
        due, self.due = self.due, 0
        self.blocks -= due
        self._evicted += due
        while due:
            entry = self._end.following
            if entry.before:
                if due <= entry.before:
                    entry.before -= due
                    return
                due -= entry.before
                entry.before = 0
            first, end = entry.first_queued(), entry.end - due  # the last blocks of an entry go first
            if end < first:
                end = first
            blocks = entry.end - end
            due -= blocks
            entry.end = end
            if end == first:
                self._remove(entry)
                entry.following = self._end  # so that what is gone does not keep others in memory
            extent = entry if isinstance(entry, Extent) else self._cut_segment(entry, end, blocks)
            if extent is not None and end == extent.first and not extent.forgotten:
                self._known.remove(extent)

    def _cut_segment(self, entry: Entry, end: int, blocks: int) -> Extent | None:
        """Note that a segment now ends at ``end``, so many blocks earlier; return its extent, if it has one."""
        assert isinstance(entry, Segment)
        extent = entry.extent
        if extent is None:
            self._evicted -= blocks  # they were not cached
        else:
            extent.end = end
            if end == entry.first:
                extent.segments.pop(0)
        return extent

    @property
    def evicted(self) -> int:
        """Cached blocks that were used for something else, those that are due included."""
        due, uncached = self.due, 0
        for entry in self._entries():
            due -= entry.before
            if due <= 0:
                break
            blocks = entry.end - entry.first_queued()
            if isinstance(entry, Segment) and entry.extent is None:
                uncached += min(blocks, due)
            due -= blocks
        return self._evicted + self.due - uncached

    def _entries(self) -> Iterator[Entry]:
        entry = self._end.following
        while entry is not self._end:
            yield entry
            entry = entry.following

    def check_integrity(self, extents: set[Extent]) -> set[Extent]:
        """Assert that these extents have their free blocks here; return them and all others that have some.

        :param extents: those that are known or in use.
        """
        entries = list(self._entries())
        queued = {entry for entry in entries if isinstance(entry, Extent)}
        segments = [entry for entry in entries if isinstance(entry, Segment)]
        found = extents.union(queued, [segment.extent for segment in segments if segment.extent is not None])
        blocks = sum(entry.before for entry in (*entries, self._end))
        blocks += sum(segment.end - segment.first for segment in segments)
        for extent in found:
            block = extent.first_queued()
            assert (block < extent.end) == (extent in queued)
            blocks += extent.end - block
            assert extent.segments == [segment for segment in segments if segment.extent is extent]
            for segment in extent.segments:
                assert segment.end == block > segment.first
                block = segment.first
            assert block == extent.cover
        assert self.blocks == blocks
        return found
