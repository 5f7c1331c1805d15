"""The KV store that knows blocks by their content: prefix caching, as in vLLM.

Source: vLLM 0.32 ``vllm/v1/core/`` (``kv_cache_manager.py``, ``single_type_kv_cache_manager.py``, ``block_pool.py``,
``kv_cache_utils.py``). Checked step by step against records of vLLM (tests/property/test_prefix_records.py) and against
a naive twin with real blocks (tests/property/test_prefix_twin.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from sim.policies.kv.counting_store import CountingStore
from sim.policies.kv.extents import Extent, Holding, Key, Segment
from sim.policies.kv.kv_store import held_tokens
from sim.traffic.request import Request

NO_END = 1 << 60
"""A block number above all others."""

_NOTHING = Holding(-1, 0, [])


class PrefixStore(CountingStore):
    """Counts blocks, and tracks what the full ones contain, so that requests share blocks with the same tokens.

    A block is known by its adapter, by the run of tokens that its last token belongs to, and by its number within the
    request. Blocks of one run that were filled one after the other form an ``Extent``, so a request costs as much as it
    has runs, however many blocks these have.

    Which physical block holds what does not matter. A block without content always stands before all cached ones in the
    free queue, so only cached blocks without users are kept in order here: as long as there are more of them than free
    blocks, the first is evicted. Decodes take blocks while a leap lasts, but no request is looked up in the meantime;
    so blocks are evicted at the next boundary.

    Prompts can be found as soon as they are scheduled, generated tokens when their request leaves the batch: only a
    later turn of its conversation, or itself after a preemption, can ask for them.

    :param uncached_last: blocks without content that become free go to the end of the free queue (vLLM before 0.23);
        otherwise to its head.
    :param base_tokens: blocks within the first ``base_tokens`` tokens of a prompt are shared by all adapters and the
        base model (activated LoRA).
    :param base_model: number of the base model as an adapter, if it is served; it matters only with ``base_tokens``.
    :ivar lookups: admissions, each with a lookup; ``asked_tokens``: their tokens, and ``found_tokens`` those that were
        cached; requests that come back after a preemption included.
    :ivar first_asked_tokens, first_found_tokens: the same without requests that come back.
    :ivar evicted_blocks: cached blocks that were used for something else.
    """

    caches = True

    def __init__(
        self, total: int, size: int, *, uncached_last: bool = False, base_tokens: int = 0, base_model: int = -1
    ) -> None:
        super().__init__(total, size)
        self.base_model = base_model
        self.lookups = 0
        self.asked_tokens = self.found_tokens = 0
        self.first_asked_tokens = self.first_found_tokens = 0
        self.evicted_blocks = 0
        self._uncached_last = uncached_last
        self._base_tokens = base_tokens
        self._known: dict[Key, Extent] = {}
        self._twins: dict[tuple[int, int, int, int], list[Extent]] = {}  # by key and block, the oldest first
        self._held: dict[int, Holding] = {}  # by request index
        self._joined = 0  # admissions so far
        self._extra_users = 0  # users of blocks in use, beyond one for each
        self._found = _NOTHING  # by the last lookup
        self._any_outdated = False
        self._outdated_hits = set[int]()  # requests inside that found outdated content, by index
        self._peak_tokens_once = 0
        # Free blocks, the next to be taken first: cached ones, and with ``uncached_last`` all others too.
        self._queue: OrderedDict[Segment, None] = OrderedDict()
        self._queued = 0  # their number
        if uncached_last:
            self._append(Segment(None, 0, total))

    # Find -----------------------------------------------------------------------------------------------------------

    def cached_tokens(self, request: Request) -> int:
        self._found = self._find(request)
        return self._found.blocks * self.size

    def _path(self, request: Request) -> list[tuple[Key, int]]:
        """Return the runs of a request with the number of the block after their last."""
        adapter, size, path = request.adapter, self.size, list[tuple[Key, int]]()
        for end, key in request.shared:
            path.append(((adapter, key, 0), end // size))
        text = request.text
        path.append(((adapter, text if text >= 0 else -1 - request.index, 0), NO_END))
        if self._base_tokens and adapter != self.base_model:
            return self._with_base(path, min(self._base_tokens, request.prompt_tokens) // size)
        return path

    def _with_base(self, path: list[tuple[Key, int]], blocks: int) -> list[tuple[Key, int]]:
        """Return a path whose first ``blocks`` blocks are those of the base model."""
        base, split = self.base_model, list[tuple[Key, int]]()
        for (adapter, key, _), end in path:
            split.append(((base, key, 0), min(end, blocks)))
            split.append(((adapter, key, blocks), end))
        return split

    def _find(self, request: Request) -> Holding:
        """Return the longest run of known blocks of a request that would join; it leaves a token to compute."""
        known = self._known
        found = Holding(request.index, 0, self._path(request))
        limit, block = (request.to_prefill - 1) // self.size, 0
        for key, last in found.path:
            end = last if last < limit else limit
            while block < end:
                extent = known.get(key)
                while extent is not None and extent.first != block:
                    extent = extent.next
                if extent is None:
                    twins = self._twins.get((*key, block)) if self._twins else None
                    if not twins:
                        return found
                    extent = twins[0]
                block = extent.end if extent.end < end else end
                found.add(extent, block)
            if block == limit:
                break
        return found

    # Take -----------------------------------------------------------------------------------------------------------

    def reserve_decodes(self) -> bool:
        if self._queued * self.size + self.decoding <= self._room:
            return True
        free = self._free_after(1)
        self._evict(free)
        return free >= 0

    def take(self, request: Request, tokens: int, room_for: int, cached: int = 0) -> bool:
        size = self.size
        held = self._held.get(request.index)
        joins = held is None
        if held is None:
            held, self._found = self._found, _NOTHING
            if held.index != request.index:
                held = Holding(request.index, 0, self._path(request))
            assert held.blocks * size == cached, "the request was looked up just before"
        idle = held.idle_blocks() if cached else 0
        left = -request.context % size  # tokens that still fit into its last block
        if room_for:
            asked = idle - (left - room_for) // size if room_for > left else idle
            if asked * size + self.decoding > self._room and asked > self._free_after(1):
                return False
        if joins:
            self._joined += 1
            held.joined = self._joined
            self._held[request.index] = held
            self._count(request, cached)
            if self._any_outdated and any(extent.outdated for extent in held.extents):
                self._outdated_hits.add(request.index)
            if cached:
                self._share(held)
                self._extra_users += held.blocks - idle
        self._room += (left - tokens) // size * size - idle * size
        if self._queued * size + self.decoding > self._room:
            self._evict(self._free_after(1))
        full = (request.context + cached + tokens) // size
        if full > held.blocks:
            self._fill(held, full)
        return True

    def _count(self, request: Request, cached: int) -> None:
        tokens = request.to_prefill
        self.lookups += 1
        self.asked_tokens += tokens
        self.found_tokens += cached
        if not request.preemptions:
            request.cached_tokens = cached
            self.first_asked_tokens += tokens
            self.first_found_tokens += cached

    def _share(self, held: Holding) -> None:
        """Take the blocks of a request that joins out of the free queue, and count it as their user."""
        for extent, end in zip(held.extents, held.ends, strict=True):
            while end > extent.cover and extent.segments:
                segment = extent.segments[-1]
                if segment.first >= end:
                    break
                if segment.end <= end:
                    self._queued -= segment.end - segment.first
                    extent.segments.pop()
                    del self._queue[segment]
                else:
                    self._queued -= end - segment.first
                    segment.first = end
            extent.use(end)

    def _fill(self, held: Holding, full: int) -> None:
        """Make known the blocks of a request that have become full; from now on it holds ``full`` of them."""
        if held.forgotten:
            return
        block = held.blocks
        for key, end in held.path:
            if block < end:
                block = self._fill_run(held, key, block, min(end, full))
                if block == full:
                    break

    def _fill_run(self, held: Holding, key: Key, block: int, end: int) -> int:
        """Make known the blocks from ``block`` to ``end`` of one run; return ``end``."""
        while block < end and self._is_known(key, block):
            # The two equal blocks stay next to each other, and the older one is found.
            twin = Extent(key, block, block + 1, twin=True)
            self._twins.setdefault((*key, block), []).append(twin)
            block += 1
            held.add(twin, block)
            twin.use(block)
        if block == end:
            return end
        last = held.extents[-1] if held.extents else None
        if last is not None and last.key == key and last.end == block and not last.twin:
            last.leave(block)
            last.end = held.ends[-1] = held.blocks = end
            last.use(end)
            return end
        fresh = Extent(key, block, end)
        fresh.next = self._known.get(key)
        self._known[key] = fresh
        held.add(fresh, end)
        fresh.use(end)
        return end

    def _is_known(self, key: Key, block: int) -> bool:
        extent = self._known.get(key)
        while extent is not None:
            if extent.first <= block < extent.end:
                return True
            extent = extent.next
        return bool(self._twins) and (*key, block) in self._twins

    # Give back ------------------------------------------------------------------------------------------------------

    def give_back(self, requests: Sequence[Request]) -> None:
        if self._queued * self.size > self._room:
            self._evict(self._free_after(0))  # decodes have taken their blocks before these become free
        super().give_back(requests)
        leaving = [(self._held.pop(request.index), request) for request in requests]
        if len(leaving) > 1:
            leaving.sort(key=_by_admission)
        for held, request in leaving:
            self._release(held, self._tokens_of(request))

    def _tokens_of(self, request: Request) -> int:
        return request.context if request.last_step < 0 else held_tokens(request, self._step)

    def _release(self, held: Holding, tokens: int) -> None:
        """Free the blocks of a request, the last one first."""
        size = self.size
        full = tokens // size
        if full > held.blocks:
            self._fill(held, full)
        if self._uncached_last:
            uncached = -(-tokens // size) - held.blocks
            if uncached:
                self._append(Segment(None, 0, uncached))
        freed = 0
        for place in range(len(held.extents) - 1, -1, -1):
            extent, end = held.extents[place], held.ends[place]
            cover = extent.leave(end)
            if cover < end:
                freed += end - cover
                self._free(extent, cover, end)
        shared = held.blocks - freed
        self._extra_users -= shared
        self._room -= shared * size

    def _free(self, extent: Extent, first: int, end: int) -> None:
        """Append blocks that have lost their last user to the free queue."""
        if not extent.forgotten:
            segment = Segment(extent, first, end)
            extent.segments.append(segment)
            self._append(segment)
        elif self._uncached_last:
            self._append(Segment(None, first, end))

    def _append(self, segment: Segment) -> None:
        self._queue[segment] = None
        self._queued += segment.end - segment.first

    # Evict ----------------------------------------------------------------------------------------------------------

    def _evict(self, free: int) -> None:
        """Take blocks from the head of the free queue until no more than ``free`` are left in it."""
        gone = self._queued - max(free, 0)
        if gone <= 0:
            return
        self._queued -= gone
        queue = self._queue
        while gone:
            segment = next(iter(queue))
            blocks = segment.end - segment.first
            if blocks > gone:
                blocks = gone
            else:
                del queue[segment]
            gone -= blocks
            segment.end -= blocks
            extent = segment.extent
            if extent is not None:
                self.evicted_blocks += blocks
                self._shorten(extent, segment)

    def _shorten(self, extent: Extent, segment: Segment) -> None:
        """Drop the last blocks of an extent, which its first free segment has lost."""
        extent.end = segment.end
        if segment.end == segment.first:
            extent.segments.pop(0)
            if extent.end == extent.first:
                self._unlink(extent)

    def _unlink(self, extent: Extent) -> None:
        """Remove an extent from those that can be found."""
        key = extent.key
        if extent.twin:
            twins = self._twins[*key, extent.first]
            twins.remove(extent)
            if not twins:
                del self._twins[*key, extent.first]
            return
        before = self._known[key]
        if before is not extent:
            while before.next is not extent:
                assert before.next is not None
                before = before.next
            before.next = extent.next
        elif extent.next is None:
            del self._known[key]
        else:
            self._known[key] = extent.next

    def _extents_of(self, adapter: int) -> list[Extent]:
        """Return all extents of an adapter that can be found."""
        found = [extent for key, first in self._known.items() if key[0] == adapter for extent in first.chain()]
        return found + [twin for key, twins in self._twins.items() if key[0] == adapter for twin in twins]

    def outdate(self, adapter: int) -> None:
        for extent in self._extents_of(adapter):
            extent.outdated = self._any_outdated = True

    def found_outdated(self, index: int) -> bool:
        if index not in self._outdated_hits:
            return False
        self._outdated_hits.remove(index)
        return True

    def forget(self, adapter: int) -> None:
        """Drop everything cached of an adapter, whose weights have changed; running requests keep their blocks.

        No other request finds what these compute from now on.
        """
        self._evict(self._free_after(0))
        for request in self.running.values():
            held, full = self._held[request.index], self._tokens_of(request) // self.size
            if full > held.blocks:
                self._fill(held, full)  # blocks of other adapters stay known
        for extent in self._extents_of(adapter):
            for segment in extent.segments:
                if self._uncached_last:
                    segment.extent = None  # it keeps its place in the free queue
                else:
                    del self._queue[segment]
                    self._queued -= segment.end - segment.first
            extent.segments = []
            extent.forgotten = True
            self._unlink(extent)
        for held in self._held.values():
            if any(extent.forgotten for extent in held.extents) or self.running[held.index].adapter == adapter:
                held.forgotten = True

    # Report ---------------------------------------------------------------------------------------------------------

    def grow(self, steps: int) -> None:
        super().grow(steps)
        self._note_tokens(self.tokens)

    def note_peak(self, steps: int) -> None:
        self._note_tokens(self.tokens + steps * self.decoding)

    def _note_tokens(self, tokens: int) -> None:
        once = tokens - self._extra_users * self.size
        if once > self._peak_tokens_once:
            self._peak_tokens_once = once

    def peak_share(self) -> float:
        return self._peak_tokens_once / (self.total * self.size)

    def check_integrity(self) -> None:
        size = self.size
        held = {request.index: self._tokens_of(request) for request in self.running.values()}
        assert held.keys() == self._held.keys()
        decoding = [held[r.index] for r in self.running.values() if r.last_step >= 0]
        assert (self.decoding, self.tokens) == (len(decoding), sum(decoding))

        used: dict[Extent, list[int]] = {}
        for index, holding in self._held.items():
            assert holding.index == index
            assert held[index] // size >= holding.blocks == (holding.ends[-1] if holding.ends else 0)
            block = 0
            for extent, end in zip(holding.extents, holding.ends, strict=True):
                assert extent.first == block < end <= extent.end
                used.setdefault(extent, []).append(end)
                block = end
        known = [extent for first in self._known.values() for extent in first.chain()]
        known += [twin for twins in self._twins.values() for twin in twins]
        assert all(extent.forgotten for extent in used.keys() - set(known))
        for extent in {*known, *used}:
            ends = used.get(extent, [])
            assert extent.users == {end: ends.count(end) for end in ends}
            assert extent.cover == max(ends, default=extent.first)
            block = extent.end
            for segment in extent.segments:
                assert (segment.end, segment.extent) == (block, extent)
                block = segment.first
            assert block == extent.cover or extent.forgotten
        cached = [segment for segment in self._queue if segment.extent is not None]
        assert set(cached) == {segment for extent in known for segment in extent.segments}
        for extent in known:
            assert extent.segments == [segment for segment in cached if segment.extent is extent]
        assert self._queued == sum(segment.end - segment.first for segment in self._queue)

        self._check_room(list(held.values()), decoding, used)

    def _check_room(self, held: list[int], decoding: list[int], used: dict[Extent, list[int]]) -> None:
        size = self.size
        extra = sum(
            sum(ends) - extent.first * len(ends) - (extent.cover - extent.first) for extent, ends in used.items()
        )
        assert self._extra_users == extra
        free = self.total - sum(-(-tokens // size) for tokens in held) + extra
        assert free >= 0, "no more blocks are in use than there are"
        assert self._room == size * free + size - 1 - sum((tokens - 1) % size for tokens in decoding)
        assert not self._phases or self._free_after(0) == free


def _by_admission(leaving: tuple[Holding, Request]) -> int:
    return leaving[0].joined
