"""Cached blocks in groups: blocks of one run of tokens that follow each other, and those of them that are free."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

Run = tuple[int, int]
"""Tokens of a request from the end of the run before to a position: (position, key), as in ``Request.shared``."""
Key = tuple[int, int, int]
"""What a block is computed for, apart from its number: the adapter, the key of its run, and the number of blocks of the
base model before those of the adapter, which is 0 except with activated LoRA."""


class Entry:
    """An entry of the free queue: blocks that stand next to each other.

    :ivar end: the end (exclusive) of its blocks.
    :ivar after: blocks just after it that no request can find; 0 outside the queue.
    :ivar previous, following: its neighbours in the queue.
    """

    __slots__ = ("after", "end", "following", "previous")
    end: int
    after: int
    previous: Entry
    following: Entry

    def first_queued(self) -> int:
        """Return the first of its blocks; ``end`` if there are none."""
        return self.end


class Extent(Entry):
    """Cached blocks ``first`` to ``end`` (exclusive) of a path of runs; those up to ``cover`` are in use.

    All users hold its first blocks, up to different ends. So what is free is at the end, and the last blocks became
    free first, and are evicted first. In the free queue, the extent itself stands for those that became free first, and
    a segment for the blocks before them that became free later.

    :ivar key: of its first block; its other blocks have the same adapter.
    :ivar runs: the runs of its blocks, from that of the first on; the last ones may have been evicted.
    :ivar twin: whether its blocks were filled while equal ones were known; it then has a single run.
    :ivar plain: whether it has a single run and is no twin.
    :ivar others: where the blocks of its users end, in order, without the one up to ``cover``. Most extents have one
        user at a time, and many never have another, so they make no list.
    :ivar appended: blocks that had ever been appended to the free queue before the first of its free ones were.
    :ivar segments: free blocks before those that the extent stands for, in the order of the free queue; None: there
        have been none.
    :ivar next: another extent with this key; the two have no block in common.
    :ivar forgotten: whether its content can no longer be found.
    :ivar outdated: whether weights that have been replaced since computed it, or its first blocks.
    """

    __slots__ = (
        "appended",
        "cover",
        "first",
        "forgotten",
        "key",
        "next",
        "others",
        "outdated",
        "plain",
        "runs",
        "segments",
        "twin",
    )

    def __init__(self, key: Key, runs: tuple[Run, ...], first: int, end: int, twin: bool = False) -> None:
        self.key = key
        self.runs = runs
        self.first = self.cover = first
        self.end = end
        self.twin = twin
        self.plain = len(runs) == 1 and not twin
        self.after = self.appended = 0
        self.others: list[int] | None = None
        self.segments: list[Segment] | None = None
        self.next: Extent | None = None
        self.forgotten = False
        self.outdated = False

    def use(self, end: int) -> None:
        """Add a user of the blocks up to ``end``."""
        cover = self.cover
        if cover == self.first:
            self.cover = end
            return
        if self.others is None:
            self.others = []
        if end < cover:
            insort(self.others, end)
        else:
            self.others.append(cover)
            self.cover = end

    def lengthen(self, end: int) -> None:
        """Add blocks up to ``end`` for a user of all blocks so far."""
        self.end = self.cover = end

    def set_runs(self, runs: tuple[Run, ...]) -> None:
        """Set the runs of its blocks; it is no twin."""
        self.runs = runs
        self.plain = len(runs) == 1

    def ends(self) -> list[int]:
        """Return where the blocks of each user end, in order."""
        return [*(self.others or ()), self.cover] if self.cover > self.first else []

    def split(self, block: int) -> Extent:
        """Cut a twin before a block, and return the rest of it. Its entries in the free queue stay as they are."""
        rest = Extent(self.key, self.runs, block, self.end, self.twin)
        rest.outdated, rest.appended = self.outdated, self.appended
        ends = self.ends()
        self.end, self.cover, self.others = block, self.first, None
        for end in ends:
            self.use(min(end, block))
            if end > block:
                rest.use(end)
        return rest

    def first_queued(self) -> int:
        """Return the first of the blocks that the extent itself stands for in the free queue; ``end`` if none."""
        return self.segments[0].end if self.segments else self.cover

    def new_segment(self, first: int, end: int) -> Segment:
        """Return a segment for free blocks before all others of this extent."""
        segment = Segment(self, first, end)
        if self.segments is None:
            self.segments = []
        self.segments.append(segment)
        return segment

    def holds(self, run: int, block: int, size: int) -> bool:
        """Return whether it goes on to this block, and the block belongs to this run.

        :param size: tokens of a block.
        """
        return self.end > block and self._run_of(block, size)[1] == run

    def end_of_run(self, block: int, size: int) -> int:
        """Return where its blocks end (exclusive) that belong to the run of this one.

        :param size: tokens of a block.
        """
        return min(self.end, self._run_of(block, size)[0] // size)

    def _run_of(self, block: int, size: int) -> Run:
        runs = self.runs
        return runs[bisect_left(runs, ((block + 1) * size,)) if len(runs) > 1 else 0]

    def runs_in_common(self, path: tuple[Run, ...], at: int) -> int:
        """Return how many runs a path has from ``at`` on in common with this extent, which has the first one.

        A key stands for all tokens before it, so the first runs have equal keys, and no later ones.
        """
        runs = self.runs
        if path[at : at + len(runs)] == runs:
            return len(runs)
        low, high = 1, min(len(runs), len(path) - at) + 1
        while high - low > 1:
            middle = (low + high) // 2
            if path[at + middle - 1][1] == runs[middle - 1][1]:
                low = middle
            else:
                high = middle
        return low

    def pieces(self, size: int) -> Iterator[tuple[Key, int, int]]:
        """Yield its blocks run by run: what they are computed for, the first of them, and their end (exclusive).

        :param size: tokens of a block.
        """
        adapter, _, base = self.key
        block = self.first
        for position, run in self.runs:
            end = min(position // size, self.end)
            if end > block:
                yield (adapter, run, base), block, end
                block = end

    def chain(self) -> Iterator[Extent]:
        """Yield this extent and those linked after it."""
        extent: Extent | None = self
        while extent is not None:
            yield extent
            extent = extent.next


Spans = list[tuple[Extent, int]]
"""Blocks that a request holds, or would hold, and that others may find: extents in the order of its tokens, with the
end of its blocks in each."""


class Segment(Entry):
    """Blocks ``first`` to ``end`` (exclusive) that stand next to each other in the free queue, the last one first.

    :ivar extent: their extent, if they have content; it stands for others itself.
    """

    __slots__ = ("extent", "first")

    def __init__(self, extent: Extent | None, first: int, end: int) -> None:
        self.extent = extent
        self.first = first
        self.end = end
        self.after = 0

    def first_queued(self) -> int:
        return self.first
