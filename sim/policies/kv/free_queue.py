"""The free KV blocks of a prefix store, in the order in which they are taken for other content."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from sim.policies.kv.known_blocks import Entry, Extent, KnownBlocks, Segment, Spans


class FreeQueue:
    """Free blocks, the next to be taken first: cached ones, and with ``uncached_last`` all others too.

    Which physical block holds what does not matter. Otherwise a block without content always stands before all cached
    ones, so that only cached blocks are kept here. While there are more of them than free blocks, the first are to be
    evicted. Whoever adds blocks, or looks for content, notes that first. They stay where they are until many are due,
    because many together are evicted at a lower cost; ``settle_until`` finds out whether that can matter.

    Nearly every request appends entries, takes some out and evicts some. Interpreted, calls for this take as long as
    the work itself, so ``give_back``, ``take`` and ``evict`` have it written out. The rest uses ``_insert`` and
    ``_remove``.

    :ivar blocks: number of blocks in the queue; ``due``: the first of them, which are to be evicted.
    """

    def __init__(self, known: KnownBlocks, total: int, *, uncached_last: bool) -> None:
        self.blocks = 0
        self.due = 0
        self._evicted = 0
        self._appended = 0  # blocks ever appended
        self._most_due = total // 16  # when more are due, ``give_back`` evicts them
        self._known = known
        # Its neighbours are the last entry and the first one; the blocks after it are at the head of the queue.
        self._end = end = Entry()
        end.after = 0
        end.previous = end.following = end
        if uncached_last:
            self._insert(Segment(None, 0, total), end)
            self.blocks = total

    def _insert(self, entry: Entry, following: Entry) -> None:
        previous = following.previous
        entry.previous = previous
        entry.following = following
        previous.following = following.previous = entry

    def _remove(self, entry: Entry) -> None:
        previous, following = entry.previous, entry.following
        previous.after += entry.after
        entry.after = 0
        previous.following = following
        following.previous = previous

    def give_back(self, spans: Spans) -> int:
        """Remove a user of these blocks. Append those that have no other user, the last one first; return how many.

        Evict what is due if that is much.

        :param spans: empty when they are given back.
        """
        queue_end, appended = self._end, self._appended
        while spans:
            extent, end = spans.pop()
            others = extent.others
            if not others:
                cover = extent.cover = extent.first
            elif end < extent.cover:
                del others[bisect_left(others, end)]
                continue
            else:
                cover = extent.cover = others.pop()
                if cover == end:
                    continue
            if end == extent.end:
                extent.appended = appended  # the rest is _insert
                last = queue_end.previous
                extent.previous = last
                extent.following = queue_end
                last.following = queue_end.previous = extent
            else:
                self._insert(extent.new_segment(cover, end), queue_end)
            appended += end - cover
        freed = appended - self._appended
        self._appended = appended
        self.blocks += freed
        if self.due > self._most_due:
            self.evict()
        return freed

    def append_uncached(self) -> None:
        """Append a block without content, where such blocks go to the end."""
        self._insert(Segment(None, 0, 1), self._end)
        self._appended += 1
        self.blocks += 1

    def append_unknown(self, blocks: int) -> None:
        """Append cached blocks that no request can find."""
        self._end.previous.after += blocks
        self._appended += blocks
        self.blocks += blocks

    def take(self, spans: Spans, idle: int) -> None:
        """Add a user of these blocks, and take those that are free, ``idle`` of them, out of the queue."""
        self.blocks -= idle
        for extent, end in spans:
            cover = extent.cover
            if end > cover:
                if extent.segments:
                    self._take_segments(extent, end)
                elif end == extent.end:  # as _remove
                    previous, following = extent.previous, extent.following
                    if extent.after:
                        previous.after += extent.after
                        extent.after = 0
                    previous.following = following
                    following.previous = previous
            if cover == extent.first:  # as Extent.use
                extent.cover = end
            elif end == cover and extent.others is not None:
                extent.others.append(end)
            else:
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
        segments, first = extent.segments or [], extent.first_queued()
        extent.segments = None
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
        due = self.blocks - free
        if due > self.due:
            self.due = due if free > 0 else self.blocks

    def settle_until(self, extent: Extent, end: int, free: int) -> int:
        """Evict what is due if that may reach an extent with free blocks; return its end then, ``end`` at most.

        It can't reach the extent if enough other blocks surely stand before those of the extent.

        :param free: how many blocks are free now.
        """
        from_here_on = self._appended - extent.appended  # no more blocks than these can stand there
        if from_here_on > free or from_here_on > self.blocks - self.due:
            self.note_free(free)
            self.evict()
        return end if end < extent.end else extent.end

    def evict(self) -> None:
        """Evict the blocks that are due."""
        due, self.due = self.due, 0
        self.blocks -= due
        self._evicted += due
        queue_end, known = self._end, self._known.first
        while due:
            if queue_end.after:
                unknown = min(due, queue_end.after)
                queue_end.after -= unknown
                due -= unknown
                continue
            entry = queue_end.following
            if not isinstance(entry, Extent):
                due -= self._evict_segment(entry, due)
                continue
            first = entry.segments[0].end if entry.segments else entry.cover
            blocks = entry.end - first
            if due < blocks:  # the last blocks of an entry go first
                entry.end -= due
                return
            due -= blocks
            entry.end = first
            following = entry.following  # as _remove
            if entry.after:
                queue_end.after, entry.after = entry.after, 0
            queue_end.following = following
            following.previous = queue_end
            entry.following = queue_end  # so that what is gone does not keep others in memory
            if first == entry.first and not entry.forgotten:
                found = known.pop(entry.key)
                if found is not entry or entry.next is not None:  # it is not the only one of its key
                    known[entry.key] = found
                    self._known.remove(entry)

    def _evict_segment(self, segment: Entry, due: int) -> int:
        """Evict the last blocks of a segment, ``due`` of them at most; return how many."""
        assert isinstance(segment, Segment)
        blocks, extent = min(due, segment.end - segment.first), segment.extent
        segment.end -= blocks
        if segment.end == segment.first:
            self._remove(segment)
        if extent is None:
            self._evicted -= blocks  # they were not cached
            return blocks
        extent.end = segment.end
        if segment.end == segment.first:
            assert extent.segments is not None
            extent.segments.pop(0)
            if segment.first == extent.first and not extent.forgotten:
                self._known.remove(extent)
        return blocks

    @property
    def evicted(self) -> int:
        """Cached blocks that were used for something else, those that are due included."""
        due, uncached = self.due - self._end.after, 0
        for entry in self._entries():
            if due <= 0:
                break
            blocks = entry.end - entry.first_queued()
            if isinstance(entry, Segment) and entry.extent is None:
                uncached += min(blocks, due)
            due -= blocks + entry.after
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
        blocks = sum(entry.after for entry in (*entries, self._end))
        blocks += sum(segment.end - segment.first for segment in segments)
        for extent in found:
            block = extent.first_queued()
            assert (block < extent.end) == (extent in queued)
            assert extent in queued or not extent.after
            blocks += extent.end - block
            own = [segment for segment in segments if segment.extent is extent]
            assert (extent.segments or []) == own
            for segment in own:
                assert segment.end == block > segment.first
                block = segment.first
            assert block == extent.cover
        assert self.blocks == blocks
        return found
