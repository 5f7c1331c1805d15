"""The KV store of an engine that speculates: sequences grow by as many tokens as are accepted.

Source: vLLM 0.33 ``v1/core/kv_cache_manager.py``, ``allocate_slots``.
"""

from __future__ import annotations

from sim.policies.kv.block_store import BlockStore, by_place
from sim.policies.kv.kv_store import KvStore, held_tokens
from sim.traffic.request import HOLDING, Request


class DraftingStore(BlockStore):
    """Gives each decoding sequence blocks for the tokens that a step verifies, and for those that its draft computes.

    What was rejected is written over by the next step, in blocks that its request keeps. Each sequence is looked at in
    every step, so there are no leaps.

    With asynchronous scheduling (``lags``) a step is decided before it is known what the step ahead rejects. So a
    sequence gets blocks, and drafts, as if all of that were accepted: ``_rejected`` says by how many tokens this is too
    much. Others find blocks of generated tokens when their tokens are known.

    :param tokens: drafted for each sequence in a step.
    :param ahead: tokens for which the draft itself has KV, beyond those that are verified (vLLM's
        ``num_lookahead_tokens``).
    :param longest: tokens of the longest request; nothing is drafted beyond.
    :param budget: the most tokens in a step.
    :param finds: whether requests find what others have computed (prefix caching).
    :ivar pads: whether a request that joins with a single token to compute gets as many as one with drafts, so that all
        compute equally many; none of them is accepted.
    :ivar padded: requests that do so in this step, by index.
    """

    def __init__(
        self, total: int, size: int, tokens: int, ahead: int, longest: int, budget: int, *, finds: bool
    ) -> None:
        super().__init__(total, size)
        self.caches = finds
        self._budget, self._left = budget, 0
        self._tokens, self._ahead, self._longest = tokens, ahead, longest
        self.pads = False
        self.padded: set[int] = set()
        # Of decoding requests by index: tokens that others may find, and those that the step ahead rejects.
        self._known_tokens: dict[int, int] = {}
        self._rejected: dict[int, int] = {}

    def drafts(self, request: Request) -> int:
        """Return how many tokens are drafted for a decoding sequence in this step."""
        return max(0, min(self._tokens, self._longest - self._reach(request) - 2))

    def is_full(self, request: Request) -> bool:
        """Return whether a decoding sequence would reach the longest context without a further step."""
        return self._reach(request) >= self._longest - 1

    def settle(self, request: Request, known: int, rejected: int) -> None:
        """Note, with ``lags``, what a sequence is until the step ends that is decided next.

        :param known: its first tokens, of which others may find the blocks; ``rejected``: drafts, by its last step.
        """
        self._known_tokens[request.index] = known
        self._rejected[request.index] = rejected

    def _reach(self, request: Request) -> int:
        """Return the KV tokens of a decoding sequence, if all drafts of the step ahead are accepted."""
        return held_tokens(request, self._step) + self._rejected.get(request.index, 0)

    def _blocks_for(self, tokens: int) -> int:
        """Return the blocks of a sequence whose step computes up to this many tokens."""
        return -(-min(tokens + self._ahead, self._longest) // self.size)

    def reserve_decodes(self) -> bool:
        self.drafted = 0
        self.padded.clear()
        for request in self.running:
            if request.last_step < 0:
                continue
            drafts, known = self.drafts(request), self._reach(request) + 1
            blocks = self._blocks[request.index]
            lacking = self._blocks_for(known + drafts) - len(blocks)
            if lacking > len(self._queue):
                return False
            for _ in range(lacking):
                blocks.append(self._next_block())
            if not self.lags:
                self._known_tokens[request.index] = known
            self.drafted += drafts
        self._left = self._budget - self.decoding - self.drafted
        return True

    def free_blocks(self) -> int:
        return len(self._queue)

    def spare_blocks(self) -> int:
        return len(self._queue)

    def cached_tokens(self, request: Request) -> int:
        return super().cached_tokens(request) if self.caches else 0

    def known_tokens(self, request: Request) -> int:
        known = self.cached_tokens(request)
        self.drop_keys(request)  # it may never come here
        return known

    def take(self, request: Request, tokens: int, room_for: int, cached: int = 0) -> bool:
        single = request.to_prefill - cached == 1
        pads = single and not request.context and self.pads and (self.decoding > 0 or cached > 0)
        padding = self._tokens if pads and cached + self._tokens + 2 <= self._longest else 0
        if tokens + padding > self._left or not self._give(request, tokens + padding, room_for, cached):
            return False
        self.padding = padding
        self._left -= tokens + padding
        if padding:
            self.padded.add(request.index)
        self._fill(request, (request.context + cached + tokens) // self.size)
        return True

    def _give(self, request: Request, tokens: int, room_for: int, cached: int) -> bool:
        context = request.context
        found = self._found if cached else []
        idle = sum([not self._users[block] for block in found])
        there = len(self._blocks[request.index]) if context else len(found)
        whole = -(-(context + cached + max(room_for, tokens)) // self.size)
        needed = self._blocks_for(context + cached + tokens)
        if max(whole, needed) - there + idle > len(self._queue):
            return False
        if not context:
            self._share(request, found, idle, cached)
        blocks = self._blocks[request.index]
        while len(blocks) < needed:
            blocks.append(self._next_block())
        return True

    def _fill(self, request: Request, full: int) -> None:
        if self.caches:
            super()._fill(request, full)

    def start_decodes(self, requests: list[Request]) -> None:
        for request in requests:
            self.tokens += request.context
            self._found_in_use.pop(request.index, None)
            if self.lags and request.index in self.padded:
                self._rejected[request.index] = self._tokens
        self.decoding += len(requests)

    def accept(self, tokens: int) -> None:
        """Add accepted drafts, whose requests end that much earlier, to the tokens of decoding sequences."""
        self.tokens += tokens

    def grow(self, steps: int) -> None:
        self._step += steps
        self.tokens += steps * self.decoding
        if self.tokens + self.aside > self._peak_tokens:
            self._count_peak(self.tokens)

    def hold(self, requests: list[Request]) -> None:
        for request in requests:
            request.context = held = held_tokens(request, self._step)
            request.last_step = HOLDING
            self.decoding -= 1
            self.tokens -= held
            self.aside += held

    def before_preemption(self) -> KvStore:
        return self

    def give_back(self, requests: list[Request], *, early: bool = False) -> None:
        for request in sorted(requests, key=by_place):
            known, held = self._known_tokens.pop(request.index, request.context), request.context
            if request.last_step == HOLDING:
                self.aside -= held
            elif request.last_step >= 0:
                held = held_tokens(request, self._step)
                self.decoding -= 1
                self.tokens -= held
                held -= 1  # with ``lags``, it has ended before the step that it was in
            if self.lags and not early:
                known = held
            self._rejected.pop(request.index, None)
            self._fill(request, known // self.size)
            self.drop_keys(request)
            self._free_blocks(request, 0)

    def check_integrity(self) -> None:
        users = [0] * self.total
        assert self._blocks.keys() == {request.index for request in self.running}
        for blocks in self._blocks.values():
            for block in blocks:
                users[block] += 1
        assert users == self._users
        assert sorted(self._queue) == [block for block, count in enumerate(users) if not count]
        decoding = [request for request in self.running if request.last_step >= 0]
        held = [held_tokens(request, self._step) for request in decoding]
        assert (self.decoding, self.tokens) == (len(decoding), sum(held))
        for request, tokens in zip(decoding, held, strict=True):
            assert len(self._blocks[request.index]) * self.size >= tokens
