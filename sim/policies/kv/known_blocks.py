"""The full KV blocks that requests can find, by their content."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from sim.traffic.request import Request

# Cached blocks in groups: blocks of one run of tokens that follow each other, and those of them that are free.

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
        """Return all extents that can be found."""
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
