"""The KV store that knows blocks by their content: prefix caching, as in vLLM.

Source: vLLM 0.32 ``vllm/v1/core/`` (``kv_cache_manager.py``, ``single_type_kv_cache_manager.py``, ``block_pool.py``,
``kv_cache_utils.py``). Checked step by step against records of vLLM (tests/property/test_records.py) and against
a naive twin with real blocks (tests/property/test_prefix_twin.py).
"""

from __future__ import annotations

from bisect import bisect_left

from sim.policies.kv.block_store import by_place
from sim.policies.kv.free_queue import FreeQueue
from sim.policies.kv.known_blocks import NO_END, Extent, Key, KnownBlocks, Spans
from sim.policies.kv.kv_store import CountingStore, KvStore, held_tokens
from sim.policies.kv.prefix_lookup import PrefixLookup
from sim.traffic.request import HOLDING, Request


class PrefixStore(PrefixLookup):
    """Tracks what full blocks contain, so that requests share blocks with the same tokens; the rest it only counts.

    A block is known by its adapter, by the run of tokens that its last token belongs to, and by its number within the
    request. Blocks of one run that were filled one after the other form an ``Extent``, so a request costs as much as it
    has runs, however many blocks these have. Blocks that no other request can ever find are only counted, except while
    their own request may look for them after a preemption.

    Prompts can be found as soon as their last chunk is scheduled, since no request joins before that. Generated tokens
    can be found when their request leaves the batch: only a later turn of its conversation, or the request itself after
    a preemption, can look for them. For a turn that arrives before the last one has ended this is an approximation:
    vLLM finds generated tokens as they are scheduled.

    :param uncached_last: blocks without content that become free go to the end of the free queue (vLLM before 0.23);
        otherwise to its head.
    :param invocation_tokens: for activated LoRA, the last tokens of each prompt, from which on the adapter takes part:
        all adapters and the base model share the blocks before them. 0: adapters compute whole prompts.
    :param base_model: number of the base model as an adapter; it matters only with ``invocation_tokens``.

    A request that comes back after a preemption keeps the ``cached_tokens`` of its first admission.
    """

    def __init__(
        self, total: int, size: int, *, uncached_last: bool = False, invocation_tokens: int = 0, base_model: int = -1
    ) -> None:
        known = KnownBlocks(size, invocation_tokens, base_model)
        super().__init__(total, size, known, FreeQueue(known, total, uncached_last=uncached_last))
        self._shares_base = invocation_tokens > 0
        self._uncached_last = uncached_last
        self._held: dict[int, Spans] = {}  # by index, of requests that hold blocks which can be found
        self._lost: set[int] = set()  # requests of which no other can find what they compute from now on
        self._admissions = 0
        self._any_outdated = False
        self._outdated_hits = set[int]()  # requests inside that found outdated content, by index

    def take_over(self, running: dict[Request, None], step: int, free: int, peak_tokens: int) -> None:
        """Go on with a batch whose blocks another store has counted, and of which nothing is cached.

        :param step: decode steps so far; ``free``: free blocks, of which decodes have not taken those of the next step.
        :param peak_tokens: the most tokens that decodes have held.
        """
        self.running = running
        self._step, self._free, self._peak_tokens = step, free, peak_tokens
        self._queue = FreeQueue(self._known, free, uncached_last=self._uncached_last)
        for request in running:
            self._admissions = request.place = self._admissions + 1
            if request.last_step >= 0:
                tokens = held_tokens(request, step)
                self.decoding += 1
                self.tokens += tokens
                self._phases[(step - tokens) % self.size] += 1
            elif request.last_step == HOLDING:
                self.aside += request.context
        self.aside += sum(request.context for request in self.apart)
        self._free -= self._needed_next()
        self._queue.note_free(self._free)

    def lose(self, indices: set[int]) -> None:
        """Let no request find what these running ones hold, or compute from now on."""
        self._lost |= indices.intersection(request.index for request in self.running)

    def outdate_held(self, indices: set[int]) -> None:
        """Note that weights which have been replaced since computed the first blocks of these running requests."""
        if indices:
            self._fill_all()
        for index in indices:
            for extent, _ in self._held.get(index, ()):
                extent.outdated = self._any_outdated = True

    # Take -----------------------------------------------------------------------------------------------------------

    def take(self, request: Request, tokens: int, room_for: int, cached: int = 0) -> bool:
        size, context = self.size, request.context
        idle = self._found_idle if cached else 0
        left = -context % size  # tokens that still fit into its last block
        taken = idle - (left - tokens) // size
        if room_for != tokens or taken > self._free:
            needed = idle - (left - room_for) // size
            if room_for > left and needed > self._free:
                return False
        self._free -= taken
        if not context:
            self._admissions = request.place = self._admissions + 1
            if not request.preemptions:
                request.cached_tokens = cached
            if self._any_outdated:
                self._note_outdated(request, cached)
            if cached:
                found = self._held[request.index] = self._found
                in_use = cached // size - idle
                if in_use:
                    self._extra_users += in_use
                    self._found_in_use[request.index] = in_use
                self._queue.take(found, idle)
        if tokens + cached == request.to_prefill:
            shared, text = request.shared, request.text_key
            if shared and cached + size <= shared[-1][0]:
                self._fill_shared(request, (context + cached + tokens) // size)
            if text >= 0:
                self._unfilled[text] = request
        return True

    def reserve(self, request: Request, tokens: int, room_for: int, cached: int) -> bool:
        whole, request.to_prefill = request.to_prefill, -1  # no chunk is the last one of its prompt
        fits = self.take(request, tokens, room_for, cached)
        request.to_prefill = whole
        return fits

    def arrived(self, request: Request) -> None:
        size, shared = self.size, request.shared
        if shared and size <= shared[-1][0]:
            self._fill_shared(request, request.context // size)
        if request.text_key >= 0:
            self._unfilled[request.text_key] = request

    def take_up(self, request: Request) -> None:
        super().take_up(request)
        self._admissions = request.place = self._admissions + 1

    def drop(self, request: Request, *, decided: bool) -> None:
        super().take_up(request)
        self._queue.note_free(self._free if decided else self._free + self._needed_next())
        spans = self._held.pop(request.index, [])
        known = spans[-1][1] if spans else 0
        idle = self._queue.give_back(spans)
        self._extra_users -= known - idle
        self._found_in_use.pop(request.index, None)
        self._free += -(-request.context // self.size) - known + idle

    def _note_outdated(self, request: Request, cached: int) -> None:
        """Note whether a request finds outdated content as it joins."""
        if not request.preemptions:
            self._outdated_hits.discard(request.index)  # of an attempt that failed
        if cached and any(extent.outdated for extent, _ in self._found):
            self._outdated_hits.add(request.index)

    def _split(self, twin: Extent, block: int) -> Extent:
        rest = self._queue.split(twin, block)
        self._known.add_rest(twin, rest)
        for spans in self._held.values():
            for place, (extent, end) in enumerate(spans):
                if extent is twin and end > block:
                    spans[place : place + 1] = [(twin, block), (rest, end)]
                    break
        return rest

    def _fill_text(self, text: int) -> None:
        request = self._unfilled.pop(text, None)
        if request is not None:
            self._fill_prompt(request)

    def _fill_prompt(self, request: Request) -> None:
        self._fill(request, request.context // self.size, own=False)

    def _fill_shared(self, request: Request, full: int) -> None:
        """Make known what others may share of the ``full`` first blocks of a request, whose prompt is scheduled."""
        index, shared, known = request.index, request.shared, self._known
        end = shared[-1][0] // self.size
        if full > end:
            full = end
        spans = self._held.get(index)
        if spans is None and len(shared) == 1 and not (self._shares_base or index in self._lost):
            key = (request.adapter, shared[0][1], 0)
            if key not in known.first:  # the common case: the rest does the same as _fill
                extent = known.first[key] = Extent(key, shared, 0, full)
                extent.cover = full  # its only user
                self._held[index] = [(extent, full)]
                return
        if (spans[-1][1] if spans else 0) < full:
            self.settle()
            self._fill(request, full, own=False)

    def _fill(self, request: Request, full: int, *, own: bool) -> None:
        """Make known the ``full`` first blocks of a request.

        :param own: with the run that no other request has.
        """
        spans = self._held.get(request.index)
        block = spans[-1][1] if spans else 0
        if block >= full or request.index in self._lost:
            return
        self._queue.evict()
        if spans is None:
            spans = self._held[request.index] = []
        known, size = self._known, self.size
        path, base = self._path(request, own=own), known.base_blocks(request)
        shared = request.shared[-1][0] // size if request.shared else 0
        equal = spans[-1][0] if spans else None  # the known extent that may hold an equal of the next block
        if equal is not None and equal.twin:
            equal = known.walk(request, path, block + 1)[-1][0]
        while block < full:
            at = bisect_left(path, ((block + 1) * size,))
            run = path[at][1]
            key = known.key(request, run, block, base)
            if equal is None or not equal.holds(run, block, size):
                equal = known.find(key, block)
            if equal is not None:
                # Equal blocks stay next to each other, and the older one is found.
                end = min(base if block < base < full else full, path[at][0] // size, equal.end_of_run(block, size))
                extent = Extent(key, (path[at],), block, end, True)
                extent.use(end)
                known.add(extent)
                spans.append((extent, end))
                block = end
                continue
            end = base if block < base < full else full
            if block < shared < end:
                end = shared  # what only turns of a conversation share has extents of its own
            last = bisect_left(path, (end * size,))
            if spans and block != shared and self._may_extend(spans[-1], key):
                extent, _ = spans.pop()
                extent.lengthen(end)
                extent.set_runs(path[bisect_left(path, ((extent.first + 1) * size,)) : last + 1])
            else:
                extent = Extent(key, path[at : last + 1], block, end)
                extent.use(end)
                known.add(extent)
            spans.append((extent, end))
            block = end

    def _may_extend(self, span: tuple[Extent, int], key: Key) -> bool:
        """Return whether the block after a span, which is not known, may be added to its extent."""
        extent, end = span
        return extent.end == end and not extent.twin and extent.key[0] == key[0] and extent.key[2] == key[2]

    # Give back ------------------------------------------------------------------------------------------------------

    def before_preemption(self) -> KvStore:
        self._queue.note_free(self._free)  # decodes take their blocks before the request frees its own
        return self

    def give_back(self, requests: list[Request], *, early: bool = False) -> None:
        size, step, queue = self.size, self._step, self._queue
        due = queue.blocks - self._free - self._phases[step % size]  # as note_free: never negative, decodes have theirs
        if due > queue.due:
            queue.due = due
        if len(requests) > 1 and (self._held or self._unfilled or self.lags):
            requests = sorted(requests, key=by_place)
        for request in requests:  # mostly a single one; its last block is freed first
            index, last_step = request.index, request.last_step
            unknown = 0  # of its tokens
            if last_step < 0:
                tokens = request.context
                self._found_in_use.pop(index, None)
                freed = int(tokens % size > 0)
                if last_step == HOLDING:
                    self.aside -= tokens
                    unknown = int(early and request.output_tokens > request.generated + 1)
            else:
                empty_step = last_step - request.output_tokens - request.prompt_tokens + 1  # when it would hold none
                tokens = step - empty_step  # as held_tokens, without a call
                self.decoding -= 1
                self.tokens -= tokens
                self._phases[empty_step % size] -= 1
                freed = 1  # its last block, or the one that it would have taken in the next step
                unknown = int(self.lags and tokens > request.context)
            full = (tokens - unknown) // size
            if unknown and not tokens % size:
                freed += 1  # a full block, of which it is not known yet what it contains
            if self._uncached_last and tokens > full * size:
                queue.append_uncached()
            spans = self._held.pop(index, None)
            if request.text_key >= 0:
                spans = self._fill_turn(request, spans, full)
            elif early:
                spans = self._fill_rest(request, spans, full)
            known = spans[-1][1] if spans else 0
            if full > known:
                queue.append_unknown(full - known)
                freed += full - known
            if spans:
                idle = queue.give_back(spans)
                freed += idle
                if idle < known:
                    self._extra_users -= known - idle
            self._free += freed
            if self._lost:
                self._lost.discard(index)

    def _fill_rest(self, request: Request, spans: Spans | None, full: int) -> Spans | None:
        """Make known all ``full`` blocks of a request that leaves; return those that it then holds.

        :param spans: those that it held.
        """
        if spans is not None:
            self._held[request.index] = spans
        self._fill(request, full, own=True)
        return self._held.pop(request.index, None)

    def _fill_turn(self, request: Request, spans: Spans | None, full: int) -> Spans | None:
        """Do the same as ``_fill_rest`` for a turn of a conversation, in the common case the quick way."""
        text = request.text_key
        latest_turn = self._unfilled.pop(text, request)
        if latest_turn is not request:
            self._fill_prompt(latest_turn)
        if self._shares_base or self._lost:
            return self._fill_rest(request, spans, full)
        first, end = self._known.first, 0
        if spans:
            extent, end = spans[-1]
            key = extent.key
            if key[1] == text:
                # A later turn, which came before this one ended, may have filled the next block.
                if extent.end != end or extent.twin or extent.next is not None or first[key] is not extent:
                    return self._fill_rest(request, spans, full)
                extent.end = extent.cover = full  # it is a user of all blocks so far
                spans[-1] = (extent, full)
                return spans
        key, shared = (request.adapter, text, 0), request.shared
        if full <= end or end != (shared[-1][0] // self.size if shared else 0):
            return self._fill_rest(request, spans, full)
        extent = Extent(key, ((NO_END, text),), end, full)
        if first.setdefault(key, extent) is not extent:  # another one is known
            return self._fill_rest(request, spans, full)
        extent.cover = full  # its only user
        if spans is None:
            return [(extent, full)]
        spans.append((extent, full))
        return spans

    # Evict, outdate and forget --------------------------------------------------------------------------------------

    def note_peak(self, steps: int) -> None:
        self._queue.note_free(self._free - self._needed(steps - 1))
        self._count_peak(self.tokens + steps * self.decoding)

    def _extents_of(self, adapter: int) -> list[Extent]:
        """Return all extents of an adapter that can be found."""
        return [extent for extent in self._known.extents() if extent.key[0] == adapter]

    def _fill_all(self) -> None:
        """Make known all full blocks of running requests, those of unfinished prompts included."""
        self.settle()
        self._unfilled = {}
        for request in self.running:
            tokens = self._tokens_of(request)
            if self.lags and tokens > request.context:
                tokens -= 1  # not known yet
            self._fill(request, tokens // self.size, own=True)

    def _tokens_of(self, request: Request) -> int:
        return request.context if request.last_step < 0 else held_tokens(request, self._step)

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
            self._known.remove(extent)
        for request in self.running:
            index = request.index
            if request.adapter == adapter or any(extent.forgotten for extent, _ in self._held.get(index, ())):
                self._lost.add(index)

    def check_integrity(self) -> None:
        held = {request.index: self._tokens_of(request) for request in [*self.running, *self.apart]}
        assert held.keys() >= self._held.keys()
        assert all(request in self.running or request in self.apart for request in self._unfilled.values())
        users: dict[Extent, list[int]] = {}
        for index, spans in self._held.items():
            block = 0
            for extent, end in spans:
                assert extent.first == block < end <= extent.end
                users.setdefault(extent, []).append(end)
                block = end
            assert block <= held[index] // self.size
        extra = sum(end - extent.first for extent, ends in users.items() for end in ends)
        extra -= sum(extent.cover - extent.first for extent in users)
        assert self._extra_users == extra
        self._check_count(held)
        known = self._known.check_integrity()
        for extent in self._queue.check_integrity(known.union(users)):
            assert extent in known or extent.forgotten
            ends = users.get(extent, [])
            assert extent.ends() == sorted(ends)
            assert extent.cover == max(ends, default=extent.first)


# The KV store of an engine with prefix caching where no two requests share text.


class CountUntilPreemption(CountingStore):
    """Counts blocks until a request is preempted. Only such a request can find blocks, its own, when it comes back.

    A request is preempted when fewer blocks are free than are needed. These are taken before the ones that it gives
    back, whatever they contain, so nothing that happened before matters.

    :param uncached_last: as in ``PrefixStore``.
    """

    def __init__(self, total: int, size: int, *, uncached_last: bool = False) -> None:
        super().__init__(total, size)
        self._uncached_last = uncached_last
        # Running requests, by index, whose weights have changed under way: what they hold is lost, or outdated.
        self._lost = set[int]()
        self._outdated = set[int]()

    def forget(self, adapter: int) -> None:
        self._lost = self._with_running(self._lost, adapter)

    def outdate(self, adapter: int) -> None:
        self._outdated = self._with_running(self._outdated, adapter)

    def _with_running(self, noted: set[int], adapter: int) -> set[int]:
        """Return those noted that still run, and the running requests of an adapter."""
        return {request.index for request in self.running if request.adapter == adapter or request.index in noted}

    def before_preemption(self) -> KvStore:
        store = PrefixStore(self.total, self.size, uncached_last=self._uncached_last)
        store.lags = self.lags
        store.apart = self.apart
        store.take_over(self.running, self._step, self._free_after(0), self._peak_tokens)
        store.lose(self._lost)
        store.outdate_held(self._outdated)
        return store
