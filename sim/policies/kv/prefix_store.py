"""The KV store that knows blocks by their content: prefix caching, as in vLLM.

Source: vLLM 0.32 ``vllm/v1/core/`` (``kv_cache_manager.py``, ``single_type_kv_cache_manager.py``, ``block_pool.py``,
``kv_cache_utils.py``). Checked step by step against records of vLLM (tests/property/test_prefix_records.py) and against
a naive twin with real blocks (tests/property/test_prefix_twin.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from itertools import pairwise

from sim.policies.kv.extents import Extent, Key, Run, Segment, Spans
from sim.policies.kv.kv_store import KvStore, held_tokens
from sim.traffic.request import Request

NO_END = 1 << 60
"""A position above all others."""


class PrefixStore(KvStore):
    """Tracks what full blocks contain, so that requests share blocks with the same tokens; the rest it only counts.

    A block is known by its adapter, by the run of tokens that its last token belongs to, and by its number within the
    request. Blocks of one run that were filled one after the other form an ``Extent``, so a request costs as much as it
    has runs, however many blocks these have. Blocks that no other request can ever find are only counted, except while
    their own request may look for them after a preemption.

    Which physical block holds what does not matter. A block without content always stands before all cached ones in the
    free queue, so only cached blocks without users are kept in order here: while there are more of them than free
    blocks, the first is evicted. That is put off until it matters: until a request is looked up, or blocks are given
    back. The number of free blocks is always exact. Decodes grow together, so a count of them by phase,
    ``(tokens - 1 - steps so far) % size``, tells how many need a block in each of the steps to come.

    Prompts can be found as soon as their last chunk is scheduled, since no request joins before that. Generated tokens
    can be found when their request leaves the batch: only a later turn of its conversation, or the request itself after
    a preemption, can look for them. For a turn that arrives before the last one has ended this is an approximation:
    vLLM finds generated tokens as they are scheduled.

    :param uncached_last: blocks without content that become free go to the end of the free queue (vLLM before 0.23);
        otherwise to its head.
    :param base_tokens: blocks within the first ``base_tokens`` tokens of a prompt are shared by all adapters and the
        base model (activated LoRA).
    :param base_model: number of the base model as an adapter, if it is served; it matters only with ``base_tokens``.
    :ivar evicted_blocks: cached blocks that were used for something else.
    :ivar again_tokens: tokens of requests as they came back after a preemption; ``again_cached_tokens``: those of them
        that they found cached. A request keeps the ``cached_tokens`` of its first admission.
    """

    caches = True

    def __init__(
        self, total: int, size: int, *, uncached_last: bool = False, base_tokens: int = 0, base_model: int = -1
    ) -> None:
        super().__init__(total, size)
        self.evicted_blocks = 0
        self.again_tokens = self.again_cached_tokens = 0
        self._uncached_last = uncached_last
        self._base_tokens = base_tokens
        self._base_model = base_model
        self._known: dict[Key, Extent] = {}
        self._twins: dict[tuple[int, int, int, int], list[Extent]] = {}  # by key and block, the oldest first
        self._held: dict[int, Spans] = {}  # by index, of requests that hold blocks which can be found
        self._lost: set[int] = set()  # requests of which no other can find what they compute from now on
        self._place: dict[int, int] = {}  # of each running request among all admissions, by index
        self._admissions = 0
        self._found: Spans = []  # by the last lookup, of this request:
        self._found_index = -1
        self._any_outdated = False
        self._outdated_hits = set[int]()  # requests inside that found outdated content, by index
        self._extra_users = 0  # users of blocks in use, beyond one for each
        self._prefills_share = dict[int, int]()  # blocks that prefilling requests found in use, by index
        self._peak_tokens = 0
        self._free = total  # free blocks; if ``_reserved``, decodes have taken theirs of the coming step already
        self._reserved = False
        self._step = 0  # decode steps so far
        self._phases = [0] * size  # decoding sequences by phase
        # Free blocks, the next to be taken first: cached ones, and with ``uncached_last`` all others too.
        self._queue: OrderedDict[Segment, None] = OrderedDict()
        self._queued = 0  # their number
        self._last = Segment(None, 0, 0, False)  # in the queue, or empty
        if uncached_last:
            self._append(Segment(None, 0, total, False))

    # Find -----------------------------------------------------------------------------------------------------------

    def cached_tokens(self, request: Request) -> int:
        if not request.shared and request.text_key < 0 and not request.preemptions:
            return 0
        if self._queued > self._free:
            self.settle()
        path = self._path(request, own=request.preemptions > 0)
        self._found = found = self._walk(request, path, (request.to_prefill - 1) // self.size)
        self._found_index = request.index
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

    def _base_blocks(self, request: Request) -> int:
        """Return how many of the first blocks of a request with an adapter are those of the base model."""
        if request.adapter == self._base_model:
            return 0
        return min(self._base_tokens, request.prompt_tokens) // self.size

    def _walk(self, request: Request, path: tuple[Run, ...], limit: int) -> Spans:
        """Return the known blocks of a path, no more than ``limit``."""
        size, count, base = self.size, len(path), self._base_blocks(request) if self._base_tokens else 0
        known = self._known
        spans: Spans = []
        block = at = 0
        while block < limit and at < count:
            end, key = path[at]
            if end < (block + 1) * size:
                at += 1
                continue
            extent = known.get(self._key(request, key, block, base) if base else (request.adapter, key, 0))
            while extent is not None and extent.first != block:
                extent = extent.next
            if extent is None:
                twins = self._twins.get((*self._key(request, key, block, base), block)) if self._twins else None
                if not twins:
                    break
                extent = twins[0]
            runs = extent.runs
            if len(runs) > 1 or runs[0] != path[at]:
                common = extent.runs_in_common(path, at)
                at += common - 1
                end = min(path[at][0], runs[common - 1][0])
            block = min(end // size, extent.end, base if block < base else limit, limit)
            spans.append((extent, block))
            while at and path[at - 1][0] // size > block:
                at -= 1  # the last blocks of the extent have been evicted
        return spans

    def _key(self, request: Request, run: int, block: int, base: int) -> Key:
        """Return the key of a block of a run, where the ``base`` first blocks are those of the base model."""
        return (self._base_model, run, 0) if block < base else (request.adapter, run, base)

    # Take -----------------------------------------------------------------------------------------------------------

    def reserve_decodes(self) -> bool:
        if not self._reserved:
            self._reserved = True
            self._free -= self._phases[(-1 - self._step) % self.size]
        return self._free >= 0

    def take(self, request: Request, tokens: int, room_for: int, cached: int = 0) -> bool:
        size, idle = self.size, 0
        if cached:
            assert request.index == self._found_index, "the request was looked up just before"
            for extent, end in self._found:
                if end > extent.cover:
                    idle += end - extent.cover
        left = -request.context % size  # tokens that still fit into its last block
        if room_for > left and idle - (left - room_for) // size > self._free:
            return False
        if not request.context:
            self._join(request, cached, idle)
        self._free -= idle + (-((left - tokens) // size) if tokens > left else 0)
        if tokens + cached == request.to_prefill and (request.shared or request.text_key >= 0):
            self._fill_prompt(request, (request.context + cached + tokens) // size)
        return True

    def _join(self, request: Request, cached: int, idle: int) -> None:
        """Count an admission, and share the cached blocks."""
        self._admissions = self._place[request.index] = self._admissions + 1
        if request.preemptions:
            self.again_tokens += request.to_prefill
            self.again_cached_tokens += cached
        else:
            request.cached_tokens = cached
            self._outdated_hits.discard(request.index)  # of an attempt that failed, and nobody asked for
        if cached:
            self._held[request.index] = self._found
            if self._any_outdated and any(extent.outdated for extent, _ in self._found):
                self._outdated_hits.add(request.index)
            if shared := cached // self.size - idle:
                self._extra_users += shared
                self._prefills_share[request.index] = shared
            for extent, end in self._found:
                if end > extent.cover:
                    self._take_out(extent, end)
                extent.use(end)

    def _take_out(self, extent: Extent, end: int) -> None:
        """Take the free blocks of an extent up to ``end`` out of the free queue."""
        segments = extent.segments
        while segments and segments[-1].first < end:
            segment = segments[-1]
            if segment.end > end:
                self._queued -= end - segment.first
                segment.first = end
                return
            self._queued -= segment.end - segment.first
            segments.pop()
            del self._queue[segment]

    def _fill_prompt(self, request: Request, full: int) -> None:
        """Make known the ``full`` blocks of a prompt, as far as other requests can find them."""
        if request.text_key < 0:
            full = min(full, request.shared[-1][0] // self.size)
        spans = self._held.get(request.index)
        if full > (spans[-1][1] if spans else 0):
            self.settle()
            self._fill(request, full, own=False)

    def _fill(self, request: Request, full: int, *, own: bool) -> None:
        """Make known the ``full`` first blocks of a request.

        :param own: with the run that no other request has.
        """
        if request.index in self._lost:
            return
        spans = self._held.setdefault(request.index, [])
        block = spans[-1][1] if spans else 0
        if block >= full or self._continue_text(request, spans, full):
            return
        path, base, size = self._path(request, own=own), self._base_blocks(request), self.size
        while block < full:
            at = bisect_left(path, ((block + 1) * size,))
            key = self._key(request, path[at][1], block, base)
            if spans and spans[-1][0].twin:
                known = self._walk(request, path, block + 1)[-1][1] > block
            else:
                known = self._follows(spans, key, block)
            if known:
                # The two equal blocks stay next to each other, and the older one is found.
                extent = Extent(key, (path[at],), block, block + 1, True)
                self._twins.setdefault((*key, block), []).append(extent)
                block += 1
                spans.append((extent, block))
                extent.use(block)
                continue
            end = base if block < base < full else full
            last = bisect_left(path, (end * size,))
            if spans and self._may_extend(spans[-1], key):
                extent, _ = spans.pop()
                extent.lengthen(block, end)
                extent.runs = path[bisect_left(path, ((extent.first + 1) * size,)) : last + 1]
            else:
                extent = Extent(key, path[at : last + 1], block, end)
                extent.next = self._known.get(key)
                extent.use(end)
                self._known[key] = extent
            spans.append((extent, end))
            block = end

    def _continue_text(self, request: Request, spans: Spans, full: int) -> bool:
        """Do the same the quick way for a conversation that goes on, which is the common case; else return False."""
        if not spans or request.text_key < 0 or self._base_tokens:
            return False
        extent, end = spans[-1]
        if extent.twin or (self._twins and (request.adapter, request.text_key, 0, end) in self._twins):
            return False
        shared = request.shared[-1][0] if request.shared else 0
        if extent.end != end or extent.runs[-1][1] != request.text_key or (end + 1) * self.size <= shared:
            return False
        other = self._known.get((request.adapter, request.text_key, 0))
        while other is not None:
            if other.first == end:
                return False  # a later turn, which came before this one ended, has filled the next block
            other = other.next
        extent.lengthen(end, full)
        spans[-1] = extent, full
        return True

    def _follows(self, spans: Spans, key: Key, block: int) -> bool:
        """Return whether a block is known that follows what a request holds."""
        if spans:
            last = spans[-1][0]
            if last.end > block and last.runs[bisect_left(last.runs, ((block + 1) * self.size,))][1] == key[1]:
                return True
        extent = self._known.get(key)
        while extent is not None and extent.first != block:
            extent = extent.next
        return extent is not None or (bool(self._twins) and (*key, block) in self._twins)

    def _may_extend(self, span: tuple[Extent, int], key: Key) -> bool:
        """Return whether the block after a span, which is not known, may be added to its extent."""
        extent, end = span
        return extent.end == end and not extent.twin and extent.key[0] == key[0] and extent.key[2] == key[2]

    # Give back ------------------------------------------------------------------------------------------------------

    def give_back(self, requests: list[Request]) -> None:
        if self._queued > self._free:
            self.settle()
        if len(requests) > 1 and self._held:
            requests = sorted(requests, key=self._place_of)
        for request in requests:
            self._release(request)

    def _place_of(self, request: Request) -> int:
        return self._place[request.index]

    def _release(self, request: Request) -> None:
        """Free the blocks of a request, the last one first."""
        index, size, last_step = request.index, self.size, request.last_step
        if last_step < 0:
            tokens = request.context
            self._prefills_share.pop(index, None)
        else:
            tokens = held_tokens(request, self._step)
            self.decoding -= 1
            self.tokens -= tokens
            self._phases[(tokens - 1 - self._step) % size] -= 1
            if self._reserved and tokens % size == 0:
                self._free += 1  # the block that it would have taken in the coming step
        full = tokens // size
        if request.text_key >= 0 or last_step != self._step:
            self._fill(request, full, own=True)
        if tokens % size:
            self._free += 1
            if self._uncached_last:
                self._append(Segment(None, 0, 1, False))
        spans = self._held.pop(index, None)
        known = spans[-1][1] if spans else 0
        if full > known:
            self._free += full - known
            self._append_unknown(full - known)
        if spans:
            self._leave(spans)
        del self._place[index]
        if self._lost:
            self._lost.discard(index)

    def _append_unknown(self, blocks: int) -> None:
        """Append cached blocks to the free queue that no request can find."""
        last = self._last
        if last.extent is None and last.cached and last.end:
            last.end += blocks
            self._queued += blocks
        else:
            self._append(Segment(None, 0, blocks, True))

    def _leave(self, spans: Spans) -> None:
        """Free those blocks of a request that can be found and have no other user."""
        shared = blocks = spans[-1][1]
        for extent, end in reversed(spans):
            cover = extent.leave(end)
            if cover < end:
                shared -= end - cover
                segment = Segment(extent, cover, end, True)
                extent.segments.append(segment)
                self._append(segment)
        self._extra_users -= shared
        self._free += blocks - shared

    def _tokens_of(self, request: Request) -> int:
        return request.context if request.last_step < 0 else held_tokens(request, self._step)

    def _append(self, segment: Segment) -> None:
        self._last = segment
        self._queue[segment] = None
        self._queued += segment.end - segment.first

    # Evict ----------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Evict what has been taken from the free queue since the last call."""
        if self._queued > self._free:
            self._evict(max(self._free, 0))

    def _evict(self, free: int) -> None:
        """Take blocks from the head of the free queue until ``free`` are left in it."""
        queue, gone = self._queue, self._queued - free
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

    def _extents_of(self, adapter: int) -> list[Extent]:
        """Return all extents of an adapter that can be found."""
        found = [extent for key, first in self._known.items() if key[0] == adapter for extent in first.chain()]
        return found + [twin for key, twins in self._twins.items() if key[0] == adapter for twin in twins]

    def _fill_all(self) -> None:
        """Make known all full blocks of running requests, those of unfinished prompts included."""
        self.settle()
        for request in self.running.values():
            self._fill(request, self._tokens_of(request) // self.size, own=True)

    def outdate(self, adapter: int) -> None:
        self._fill_all()
        for extent in self._extents_of(adapter):
            extent.outdated = self._any_outdated = True

    def found_outdated(self, index: int) -> bool:
        if index not in self._outdated_hits:
            return False
        self._outdated_hits.remove(index)
        return True

    def forget(self, adapter: int) -> None:
        """Let no request find what is cached of an adapter, whose weights have changed.

        The blocks keep their places. No request finds what running ones compute from now on, if they hold any of these.
        """
        self._fill_all()
        for extent in self._extents_of(adapter):
            extent.forgotten = True
            self._unlink(extent)
        for index, request in self.running.items():
            if request.adapter == adapter or any(extent.forgotten for extent, _ in self._held.get(index, ())):
                self._lost.add(index)

    # Report ---------------------------------------------------------------------------------------------------------

    def start_decodes(self, requests: list[Request]) -> None:
        size, step, phases, tokens = self.size, self._step, self._phases, 0
        for request in requests:
            tokens += request.context
            phases[(request.context - 1 - step) % size] += 1
            if self._prefills_share:
                self._prefills_share.pop(request.index, None)
        self.decoding += len(requests)
        self.tokens += tokens

    def grow(self, steps: int) -> None:
        if not self._reserved:
            self._free -= self._needed(0, steps)
        elif steps:
            self._free -= self._needed(1, steps)
        else:
            self._free += self._needed(0, 1)
        self._reserved = False
        self._step += steps
        self.tokens += steps * self.decoding
        self._count_peak(self.tokens)

    def _needed(self, begin: int, end: int) -> int:
        """Return how many blocks decodes take in the steps from ``begin`` to ``end`` (exclusive), counted from now."""
        size, phases, steps, needed = self.size, self._phases, end - begin, 0
        if steps >= size:
            needed, steps = steps // size * self.decoding, steps % size
        if steps:
            last = (-1 - self._step - begin) % size + 1
            first = last - steps
            needed += sum(phases[first:last]) if first >= 0 else sum(phases[:last]) + sum(phases[first:])
        return needed

    def steps_that_fit(self, steps: int) -> int:
        free = self._free  # after the first of them
        if (steps // self.size + 1) * self.decoding <= free or self._needed(1, steps) <= free:
            return steps
        low, high = 1, steps  # the blocks in use never decrease, so bisection finds the last step that fits
        while high - low > 1:
            middle = (low + high) // 2
            if self._needed(1, middle) <= free:
                low = middle
            else:
                high = middle
        return low

    def note_peak(self, steps: int) -> None:
        free = self._free - (self._needed(1, steps) if steps else 0)
        if self._queued > free:
            self._evict(free)
        self._count_peak(self.tokens + steps * self.decoding)

    def _count_peak(self, tokens: int) -> None:
        """Count for the peak what decodes hold, shared blocks once.

        What a prefilling request found in use does not count as shared among decodes. If decodes that shared it have
        left since, the peak is too high by that until the prompt is complete.
        """
        extra = self._extra_users
        if self._prefills_share:
            extra = max(extra - sum(self._prefills_share.values()), 0)
        once = tokens - extra * self.size
        if once > self._peak_tokens:
            self._peak_tokens = once

    def peak_share(self) -> float:
        return self._peak_tokens / (self.total * self.size)

    def check_integrity(self) -> None:
        size = self.size
        held = {request.index: self._tokens_of(request) for request in self.running.values()}
        decoding = [held[r.index] for r in self.running.values() if r.last_step >= 0]
        assert (self.decoding, self.tokens) == (len(decoding), sum(decoding))
        assert held.keys() == self._place.keys() >= self._held.keys()

        users: dict[Extent, list[int]] = {}
        for index, spans in self._held.items():
            block = 0
            for extent, end in spans:
                assert extent.first == block < end <= extent.end
                users.setdefault(extent, []).append(end)
                block = end
            assert block <= held[index] // size
        known = [extent for first in self._known.values() for extent in first.chain()]
        known += [twin for twins in self._twins.values() for twin in twins]
        assert len(known) == len(set(known))
        pieces = sorted(piece for extent in known if not extent.twin for piece in extent.pieces(size))
        for (key, _, end), (next_key, first, _) in pairwise(pieces):
            assert key != next_key or end <= first, "equal blocks, except the oldest, are twins"
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
        phases = [(tokens - 1 - self._step) % size for tokens in decoding]
        assert self._phases == [phases.count(phase) for phase in range(size)]
        if self._reserved:
            free -= sum(tokens % size == 0 for tokens in decoding)
        assert free == self._free >= 0, "no more blocks are in use than there are"
