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


class PrefixStore(CountingStore):
    """Counts blocks, and tracks what the full ones contain, so that requests share blocks with the same tokens.

    A block is known by its adapter, by the run of tokens that its last token belongs to, and by its number within the
    request. Blocks of one run that were filled one after the other form an ``Extent``, so a request costs as much as it
    has runs, however many blocks these have. Blocks that no other request can ever find are only counted, except while
    their own request may look for them after a preemption.

    Which physical block holds what does not matter. A block without content always stands before all cached ones in the
    free queue, so only cached blocks without users are kept in order here: while there are more of them than free
    blocks, the first is evicted. That is put off until it matters: until a request is looked up, or blocks are given
    back.

    Prompts can be found as soon as they are scheduled, generated tokens when their request leaves the batch: only a
    later turn of its conversation, or itself after a preemption, can look for them.

    :param uncached_last: blocks without content that become free go to the end of the free queue (vLLM before 0.23);
        otherwise to its head.
    :param base_tokens: blocks within the first ``base_tokens`` tokens of a prompt are shared by all adapters and the
        base model (activated LoRA).
    :param base_model: number of the base model as an adapter, if it is served; it matters only with ``base_tokens``.
    :ivar asked_tokens: tokens of all requests that were admitted; ``found_tokens``: those of them that were cached.
    :ivar again_asked_tokens, again_found_tokens: the part of requests that came back after a preemption.
    :ivar evicted_blocks: cached blocks that were used for something else.
    """

    caches = True

    def __init__(
        self, total: int, size: int, *, uncached_last: bool = False, base_tokens: int = 0, base_model: int = -1
    ) -> None:
        super().__init__(total, size)
        self.asked_tokens = self.found_tokens = 0
        self.again_asked_tokens = self.again_found_tokens = 0
        self.evicted_blocks = 0
        self._uncached_last = uncached_last
        self._base_tokens = base_tokens
        self._base_model = base_model
        self._known: dict[Key, Extent] = {}
        self._twins: dict[tuple[int, int, int, int], list[Extent]] = {}  # by key and block, the oldest first
        self._held: dict[int, Holding] = {}  # by index, for requests that hold blocks which can be found
        self._place: dict[int, int] = {}  # of each running request among all admissions, by index
        self._admissions = 0
        self._found = Holding(-1)  # by the last lookup
        self._extra_users = 0  # users of blocks in use, beyond one for each
        self._peak_once = 0
        self._ahead = 0  # 1 if decodes have reserved the blocks of the coming step, else 0
        # Free blocks, the next to be taken first: cached ones, and with ``uncached_last`` all others too.
        self._queue: OrderedDict[Segment, None] = OrderedDict()
        self._queued = 0  # their number
        self._last = Segment(None, 0, 0, cached=False)  # in the queue, or empty
        if uncached_last:
            self._append(Segment(None, 0, total, cached=False))

    # Find -----------------------------------------------------------------------------------------------------------

    def cached_tokens(self, request: Request) -> int:
        if not request.shared and request.text < 0 and not request.preemptions:
            return 0
        self.settle()
        self._found = self._find(request)
        return self._found.blocks * self.size

    def _path(self, request: Request, *, own: bool) -> list[tuple[Key, int]]:
        """Return the runs of a request with the number of the block after their last one.

        :param own: with the run that no other request has.
        """
        adapter, size, text = request.adapter, self.size, request.text
        path = [((adapter, key, 0), end // size) for end, key in request.shared]
        if text >= 0:
            path.append(((adapter, text, 0), NO_END))
        elif own:
            path.append(((adapter, -1 - request.index, 0), NO_END))
        if self._base_tokens and adapter != self._base_model:
            return self._with_base(path, min(self._base_tokens, request.prompt_tokens) // size)
        return path

    def _with_base(self, path: list[tuple[Key, int]], blocks: int) -> list[tuple[Key, int]]:
        """Return a path whose first ``blocks`` blocks are those of the base model."""
        base, split = self._base_model, list[tuple[Key, int]]()
        for (adapter, key, _), end in path:
            split.append(((base, key, 0), min(end, blocks)))
            split.append(((adapter, key, blocks), end))
        return split

    def _find(self, request: Request) -> Holding:
        """Return the longest run of known blocks of a request that would join; it leaves a token to compute."""
        found, known = Holding(request.index), self._known
        limit, block = (request.to_prefill - 1) // self.size, 0
        for key, last in self._path(request, own=request.preemptions > 0):
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
        self._ahead = 1
        return self.decoding <= self._room or self._free_after(1) >= 0

    def take(self, request: Request, tokens: int, room_for: int, cached: int = 0) -> bool:
        size, found = self.size, self._found
        joins = not request.context
        assert not cached or (joins and found.index == request.index), "the request was looked up just before"
        idle = found.idle_blocks() if cached else 0
        left = -request.context % size  # tokens that still fit into its last block
        if room_for:
            asked = idle - (left - room_for) // size if room_for > left else idle
            if asked * size + self.decoding > self._room and asked > self._free_after(1):
                return False
        if joins:
            self._join(request, cached)
        if cached:
            self._share(found)
            self._held[request.index] = found
            self._extra_users += found.blocks - idle
        self._room += (left - tokens) // size * size - idle * size
        if request.shared or request.text >= 0:
            self._fill_prompt(request, request.context + cached + tokens)
        return True

    def _join(self, request: Request, cached: int) -> None:
        """Count an admission."""
        self._admissions = self._place[request.index] = self._admissions + 1
        self.asked_tokens += request.to_prefill
        self.found_tokens += cached
        if request.preemptions:
            self.again_asked_tokens += request.to_prefill
            self.again_found_tokens += cached
        else:
            request.cached_tokens = cached

    def _share(self, found: Holding) -> None:
        """Take the blocks of a request that joins out of the free queue, and count it as their user."""
        for extent, end in zip(found.extents, found.ends, strict=True):
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

    def _fill_prompt(self, request: Request, tokens: int) -> None:
        """Make known the full blocks of a prompt of which ``tokens`` are scheduled, so far as others can find them."""
        full, held = tokens // self.size, self._held.get(request.index)
        if request.text < 0:
            full = min(full, request.shared[-1][0] // self.size)
        if held is None:
            held = self._held[request.index] = Holding(request.index)
        if full > held.blocks:
            self.settle()
            self._fill(held, full, self._path(request, own=False))

    def _fill(self, held: Holding, full: int, path: list[tuple[Key, int]]) -> None:
        """Make known the blocks of a request that have become full, the last of which is number ``full - 1``."""
        if held.forgotten:
            return
        block = held.blocks
        for key, end in path:
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
        self.settle()
        super().give_back(requests)
        if len(requests) > 1 and self._held:
            requests = sorted(requests, key=self._place_of)
        for request in requests:
            del self._place[request.index]
            self._release(request)

    def _place_of(self, request: Request) -> int:
        return self._place[request.index]

    def _release(self, request: Request) -> None:
        """Free the blocks of a request, the last one first."""
        tokens, held = self._tokens_of(request), self._held.pop(request.index, None)
        full = tokens // self.size
        ends = request.last_step == self._step
        if held is None and not ends:
            held = Holding(request.index)
        if held is not None and (request.text >= 0 or not ends) and full > held.blocks:
            self._fill(held, full, self._path(request, own=True))
        if self._uncached_last and tokens % self.size:
            self._append(Segment(None, 0, 1, cached=False))
        anonymous = full if held is None else full - held.blocks
        if anonymous:
            last = self._last
            if last.extent is None and last.cached and last.end:
                last.end += anonymous
                self._queued += anonymous
            else:
                self._append(Segment(None, 0, anonymous, cached=True))
        if held is not None and held.blocks:
            self._leave(held)

    def _leave(self, held: Holding) -> None:
        """Free those blocks of a request that can be found and have no other user."""
        freed = 0
        for place in range(len(held.extents) - 1, -1, -1):
            extent, end = held.extents[place], held.ends[place]
            cover = extent.leave(end)
            if cover < end:
                freed += end - cover
                segment = Segment(extent, cover, end, cached=True)
                extent.segments.append(segment)
                self._append(segment)
        shared = held.blocks - freed
        self._extra_users -= shared
        self._room -= shared * self.size

    def _tokens_of(self, request: Request) -> int:
        return request.context if request.last_step < 0 else held_tokens(request, self._step)

    def _append(self, segment: Segment) -> None:
        self._last = segment
        self._queue[segment] = None
        self._queued += segment.end - segment.first

    # Evict ----------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Evict what has been taken from the free queue since the last call."""
        if self._queued * self.size + self._ahead * self.decoding > self._room:
            self._evict(max(self._free_after(self._ahead), 0))

    def _evict(self, free: int) -> None:
        """Take blocks from the head of the free queue until no more than ``free`` are left in it."""
        gone, queue = self._queued - free, self._queue
        if gone <= 0:
            return
        self._queued = free
        while gone:
            segment = next(iter(queue))
            blocks = segment.end - segment.first
            if blocks > gone:
                blocks = gone
            else:
                del queue[segment]
            gone -= blocks
            segment.end -= blocks
            if segment.cached:
                self.evicted_blocks += blocks
                if segment.extent is not None:
                    self._shorten(segment.extent, segment)

    def _shorten(self, extent: Extent, segment: Segment) -> None:
        """Drop the last blocks of an extent, which its first free segment has lost."""
        extent.end = segment.end
        if segment.end == segment.first:
            extent.segments.pop(0)
            if extent.end == extent.first and not extent.forgotten:
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

    def forget(self, adapter: int) -> None:
        """Let no request find what is cached of an adapter, whose weights have changed.

        The blocks keep their places. No request finds what running ones compute from now on, if they hold any of these.
        """
        self.settle()
        for request in self.running.values():
            held = self._held.setdefault(request.index, Holding(request.index))
            full = self._tokens_of(request) // self.size
            if full > held.blocks:
                self._fill(held, full, self._path(request, own=True))
        gone = [extent for key, first in self._known.items() if key[0] == adapter for extent in first.chain()]
        gone += [twin for key, twins in self._twins.items() if key[0] == adapter for twin in twins]
        for extent in gone:
            extent.forgotten = True
            self._unlink(extent)
        for held in self._held.values():
            if self.running[held.index].adapter == adapter or any(extent.forgotten for extent in held.extents):
                held.forgotten = True

    # Report ---------------------------------------------------------------------------------------------------------

    def grow(self, steps: int) -> None:
        super().grow(steps)
        self._ahead = 0
        self._count_once(self.tokens)

    def note_peak(self, steps: int) -> None:
        self._evict(max(self._free_after(steps), 0))
        self._count_once(self.tokens + steps * self.decoding)

    def _count_once(self, tokens: int) -> None:
        """Count for the peak what decodes hold, shared blocks once."""
        once = tokens - self._extra_users * self.size
        if once > self._peak_once:
            self._peak_once = once

    def peak_share(self) -> float:
        return self._peak_once / (self.total * self.size)

    def check_integrity(self) -> None:
        size = self.size
        held = {request.index: self._tokens_of(request) for request in self.running.values()}
        decoding = [held[r.index] for r in self.running.values() if r.last_step >= 0]
        assert (self.decoding, self.tokens) == (len(decoding), sum(decoding))
        assert held.keys() == self._place.keys() >= self._held.keys()

        users: dict[Extent, list[int]] = {}
        for index, holding in self._held.items():
            assert holding.index == index
            assert held[index] // size >= holding.blocks == (holding.ends[-1] if holding.ends else 0)
            block = 0
            for extent, end in zip(holding.extents, holding.ends, strict=True):
                assert extent.first == block < end <= extent.end
                users.setdefault(extent, []).append(end)
                block = end
        known = [extent for first in self._known.values() for extent in first.chain()]
        known += [twin for twins in self._twins.values() for twin in twins]
        assert len(known) == len(set(known))
        queued = [segment for segment in self._queue if segment.extent is not None]
        extents = {*known, *users, *(segment.extent for segment in queued if segment.extent is not None)}
        assert all(extent.forgotten for extent in extents - set(known))
        for extent in extents:
            ends = users.get(extent, [])
            assert extent.users == {end: ends.count(end) for end in ends}
            assert extent.cover == max(ends, default=extent.first)
            assert extent.segments == [segment for segment in queued if segment.extent is extent]
            block = extent.end
            for segment in extent.segments:
                assert segment.end == block > segment.first
                block = segment.first
            assert block == extent.cover
        assert self._queued == sum(segment.end - segment.first for segment in self._queue)

        extra = sum(end - extent.first for extent, ends in users.items() for end in ends)
        extra -= sum(extent.cover - extent.first for extent in users)
        assert self._extra_users == extra
        free = self.total - sum(-(-tokens // size) for tokens in held.values()) + extra
        assert free >= 0, "no more blocks are in use than there are"
        assert self._room == size * free + size - 1 - sum((tokens - 1) % size for tokens in decoding)
        assert not self._phases or self._free_after(0) == free
