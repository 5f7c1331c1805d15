"""What a request finds in a prefix store when it joins the batch."""

from __future__ import annotations

from abc import abstractmethod

from sim.policies.kv.exact_count import ExactCount
from sim.policies.kv.extents import Extent, Run, Spans
from sim.policies.kv.free_queue import FreeQueue
from sim.policies.kv.known_blocks import NO_END, KnownBlocks
from sim.traffic.request import Request


class PrefixLookup(ExactCount):
    """Finds the cached blocks of a request; ``PrefixStore`` takes, fills and frees them."""

    caches = True

    def __init__(self, total: int, size: int, known: KnownBlocks, queue: FreeQueue) -> None:
        super().__init__(total, size)
        self._known = known
        self._queue = queue
        self._shares_base = False  # whether adapters share blocks with the base model
        # By key, the running request of a conversation whose prompt is scheduled. Only later turns can find more of its
        # blocks than it has found itself, so they are made known when one of these comes, or when it ends.
        self._unfilled: dict[int, Request] = {}
        self._found: Spans = []  # by the last lookup, if it found any blocks
        self._found_idle = 0  # those of its blocks that nobody uses

    def cached_tokens(self, request: Request) -> int:
        shared, text = request.shared, request.text_key
        if text in self._unfilled:
            self.settle()
            self._fill_text(text)
        if request.preemptions or self._shares_base or len(shared) > 1:
            return self._find(request) if shared or text >= 0 or request.preemptions else 0
        # The common case: one shared run at most. The rest does the same as _find.
        adapter, size, first = request.adapter, self.size, self._known.first
        limit = (request.to_prefill - 1) // size
        block = idle = 0
        if shared:
            tokens, run = shared[0]
            whole = tokens // size
            extent = first.get((adapter, run, 0))
            if extent is not None:
                if not extent.plain or extent.next is not None or extent.first:
                    return self._find(request)
                block = whole if whole < limit else limit
                if block > extent.cover:
                    block = self._queue.settle_until(extent, block, self._free)
                    idle = block - extent.cover
                if block:
                    self._found = [(extent, block)]
            if block < whole:
                text = -1  # its own text comes after what it shares
        if text >= 0:
            extent = first.get((adapter, text, 0))
            if extent is not None:
                if not extent.plain or extent.next is not None:
                    return self._find(request)
                if extent.first == block < limit:
                    end = limit
                    if end > extent.cover:
                        end = self._queue.settle_until(extent, end, self._free)
                        idle += end - extent.cover
                    if not block:
                        self._found = [(extent, end)]
                    elif end > block:
                        self._found.append((extent, end))
                    block = end
        self._found_idle = idle
        return block * size

    def _find(self, request: Request) -> int:
        self.settle()
        path = self._path(request, own=request.preemptions > 0)
        self._found = found = self._known.walk(request, path, (request.to_prefill - 1) // self.size)
        block = 0
        for place, (extent, end) in enumerate(found):
            if extent.first < block:
                found[place] = self._split(extent, block), end
            block = end
        self._found_idle = sum([end - extent.cover for extent, end in found if end > extent.cover])
        return found[-1][1] * self.size if found else 0

    def _path(self, request: Request, *, own: bool) -> tuple[Run, ...]:
        """Return all runs of a request.

        :param own: with the run that no other request has.
        """
        if request.text_key >= 0:
            return (*request.shared, (NO_END, request.text_key))
        if own:
            return (*request.shared, (NO_END, -1 - request.index))
        return request.shared

    @abstractmethod
    def _fill_text(self, text: int) -> None:
        """Make known the prompt of the running request of this conversation, if there is one."""

    @abstractmethod
    def _split(self, twin: Extent, block: int) -> Extent:
        """Cut a twin before a block, so that a request can use its other blocks only; return the extent of these."""

    def settle(self) -> None:
        """Evict what has been taken from the free queue since the last call."""
        self._queue.note_free(self._free)
        self._queue.evict()

    @property
    def evicted_blocks(self) -> int:
        return self._queue.evicted
