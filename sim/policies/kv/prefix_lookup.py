"""What a request finds in a prefix store when it joins the batch, and the exact count of free blocks below it."""

from __future__ import annotations

from abc import abstractmethod

from sim.policies.kv.free_queue import FreeQueue
from sim.policies.kv.known_blocks import NO_END, Extent, KnownBlocks, Run, Spans
from sim.policies.kv.kv_store import KvStore
from sim.traffic.request import Request


class ExactCount(KvStore):
    """Counts the blocks that are free, cached or not, whatever they contain. Subclass it to say what they contain.

    Decodes grow together, so a count of them by phase, ``(steps so far - tokens) % size``, tells how many need a block
    in each of the steps to come: in step ``n`` those of phase ``n % size``. What they need for the next step is
    never counted as free.

    What decodes hold at their peak counts blocks that they share once. A subclass says how many they share.
    """

    def __init__(self, total: int, size: int) -> None:
        super().__init__(total, size)
        self._free = total  # free blocks after each decode has taken its next one; negative if some lack
        self._phases = [0] * size  # decoding sequences by phase
        self._peak_tokens = 0
        self._extra_users = 0  # users of blocks in use, beyond one for each
        self._found_in_use = dict[int, int]()  # blocks that prefilling requests found in use, by index

    def reserve_decodes(self) -> bool:
        return self._free >= 0

    def _needed_next(self) -> int:
        """Return how many blocks decodes take in the next step."""
        return self._phases[self._step % self.size]

    def start_decodes(self, requests: list[Request]) -> None:
        size, step, phases, found = self.size, self._step, self._phases, self._found_in_use
        for request in requests:
            context = request.context
            self.tokens += context
            phases[(step - context) % size] += 1
            if not context % size:
                self._free -= 1
            if found:
                found.pop(request.index, None)
        self.decoding += len(requests)

    def free_blocks(self) -> int:
        return self._free + self._needed_next()

    def spare_blocks(self) -> int:
        """Return how many blocks are free after every decode has taken that for its next token."""
        return self._free

    def _hold(self, request: Request, tokens: int) -> None:
        super()._hold(request, tokens)
        self._phases[(self._step - tokens) % self.size] -= 1
        if not tokens % self.size:
            self._free += 1

    def grow(self, steps: int) -> None:
        step = self._step + steps
        if steps == 1:
            self._free -= self._phases[step % self.size]
        elif steps < self.size:  # as _needed, without a call
            last = step % self.size + 1
            if last >= steps:
                self._free -= sum(self._phases[last - steps : last])
            else:
                self._free -= self.decoding - sum(self._phases[last : last - steps + self.size])
        else:
            self._free -= self._needed(steps)
        self._step = step
        self.tokens = tokens = self.tokens + steps * self.decoding
        if tokens + self.aside > self._peak_tokens:
            self._count_peak(tokens)

    def _needed(self, steps: int) -> int:
        """Return how many blocks decodes take in the ``steps`` steps after the next one."""
        size, phases = self.size, self._phases
        rounds, steps = divmod(steps, size)
        last = (self._step + steps) % size + 1
        if last >= steps:
            return rounds * self.decoding + sum(phases[last - steps : last])
        return (rounds + 1) * self.decoding - sum(phases[last : last - steps + size])

    def steps_that_fit(self, steps: int) -> int:
        free = self._free  # after the first of them
        if (steps // self.size + 1) * self.decoding <= free or self._needed(steps - 1) <= free:
            return steps
        low, high = 1, steps  # the blocks in use never decrease, so bisection finds the last step that fits
        while high - low > 1:
            middle = (low + high) // 2
            if self._needed(middle - 1) <= free:
                low = middle
            else:
                high = middle
        return low

    def _count_peak(self, tokens: int) -> None:
        """Count for the peak what decodes hold, shared blocks once.

        What a prefilling request found in use does not count as shared among decodes. If decodes that shared it have
        left since, the peak is too high by that until the prompt is complete.
        """
        tokens += self.aside
        extra = self._extra_users - sum(self._found_in_use.values())
        if extra > 0:
            tokens -= extra * self.size
        if tokens > self._peak_tokens:
            self._peak_tokens = tokens

    def peak_share(self) -> float:
        return self._peak_tokens / (self.total * self.size)

    def _check_count(self, held: dict[int, int]) -> None:
        """Assert that the counts agree with those over the running sequences, which hold these tokens by index."""
        size = self.size
        decoding = [held[request.index] for request in self.running if request.last_step >= 0]
        assert (self.decoding, self.tokens) == (len(decoding), sum(decoding))
        phases = [(self._step - tokens) % size for tokens in decoding]
        assert self._phases == [phases.count(phase) for phase in range(size)]
        prefilling = {request.index for request in [*self.running, *self.apart] if request.last_step < 0}
        assert prefilling >= self._found_in_use.keys()
        free = self.total - sum(-(-tokens // size) for tokens in held.values()) + self._extra_users
        assert free >= 0, "no more blocks are in use than there are"
        assert self._free == free - sum(tokens % size == 0 for tokens in decoding)


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

    def known_tokens(self, request: Request) -> int:
        return self.cached_tokens(request)

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
