"""How much of the KV cache a request must find to join, in engines that see to it that answers can end.

The plain rules, room for the whole prompt or its first chunk, need no more than the blocks that are free now; the
scheduler asks them itself. Those here look ahead, as far as the answers' lengths are known, and then nobody is ever
preempted. A request's ``max_tokens`` is taken to be what it does produce.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from typing import Protocol

from sim.traffic.request import Request


class KvRule(Protocol):
    """Decide who joins, and keep account of those who did.

    :ivar total: blocks there are.
    :ivar need: blocks that those in the batch may take, at most, before they have all ended.
    :ivar timed: whether a request that finds no room may find some at a later step without anybody having left.
    """

    total: int
    need: int
    timed: bool

    def begin(self, running: Iterable[Request], adapters: Iterable[int], step: int) -> None:
        """Begin a look at the waiting requests: these run at decode counter ``step``, with these distinct adapters."""
        ...

    def fits(self, request: Request) -> bool:
        """Return whether a request may join those who run, and those who have joined since the look began."""
        ...

    def joined(self, request: Request) -> None: ...

    def left(self, request: Request) -> None: ...


class WholeAnswer:
    """Blocks for prompt and answer are set aside when a request joins.

    LoRAX ``router/src/block_allocator.rs`` (input + max_new_tokens - 1); TensorRT-LLM ``batch_manager/
    capacityScheduler.cpp``, GUARANTEED_NO_EVICT.

    :param total: blocks there are; ``size``: tokens of one.
    :param adapter_blocks: what each adapter of the batch takes of them; empty: nothing.
    """

    timed = False

    def __init__(self, total: int, size: int, adapter_blocks: Sequence[int] = ()) -> None:
        self.total = total
        self.size = size
        self.need = 0
        self._adapters = _AdaptersOfBatch(adapter_blocks)

    def begin(self, running: Iterable[Request], adapters: Iterable[int], step: int) -> None:
        self._adapters.begin(adapters)

    def fits(self, request: Request) -> bool:
        return self.need + self._blocks(request) + self._adapters.with_that_of(request) <= self.total

    def joined(self, request: Request) -> None:
        self.need += self._blocks(request)
        self._adapters.add(request)

    def left(self, request: Request) -> None:
        self.need -= self._blocks(request)

    def _blocks(self, request: Request) -> int:
        return -(-(request.prompt_tokens + request.output_tokens) // self.size)


class PeakOfAnswers:
    """The most tokens that the batch will hold before its last answer ends must fit.

    S-LoRA ``slora/server/router/req_queue.py``, ``_can_add_new_req``: requests sorted by tokens still to come, the
    i-th of them ends with i requests alive, so the peak is ``max(left_i * i + sum of what the first i hold)``.

    :param total: tokens there are; blocks of one token.
    :param adapter_tokens: what each adapter of the batch takes of them; empty: nothing.
    """

    timed = True

    def __init__(self, total: int, adapter_tokens: Sequence[int] = ()) -> None:
        self.total = total
        self.need = 0
        self._adapters = _AdaptersOfBatch(adapter_tokens)
        self._alive: list[tuple[int, int]] = []  # (tokens still to come, negative; tokens held), the longest first
        self._tried: tuple[int, list[tuple[int, int]]] = (0, [])
        self._step = 0

    def begin(self, running: Iterable[Request], adapters: Iterable[int], step: int) -> None:
        self._step = step
        self._alive = sorted(_left_and_held(request, step) for request in running)
        self._adapters.begin(adapters)

    def fits(self, request: Request) -> bool:
        alive = self._alive.copy()
        insort(alive, _left_and_held(request, self._step))
        peak = held = 0
        for count, (left, tokens) in enumerate(alive, 1):
            held += tokens
            if held - left * count > peak:
                peak = held - left * count
        self._tried = peak, alive
        return peak < self.total - self._adapters.with_that_of(request)

    def joined(self, request: Request) -> None:
        self.need, self._alive = self._tried
        self._adapters.add(request)

    def left(self, request: Request) -> None:
        """Keep the peak as a bound: who leaves was counted in it."""


def _left_and_held(request: Request, step: int) -> tuple[int, int]:
    """Return the tokens still to come of a request, negative, and those it holds."""
    if request.last_step >= 0:
        left = request.last_step - step - 1
        return -left, request.prompt_tokens + request.output_tokens - 1 - left
    return 1 - request.output_tokens, request.prompt_tokens + 1


class _AdaptersOfBatch:
    """What the batch's adapters take of the KV cache.

    :param weights: of each adapter; empty: they take nothing.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        self._weights = weights
        self._members: set[int] = set()
        self._taken = 0

    def begin(self, adapters: Iterable[int]) -> None:
        if self._weights:
            self._members = set(adapters)
            self._taken = sum(self._weights[adapter] for adapter in self._members)

    def with_that_of(self, request: Request) -> int:
        """Return what they take with the adapter of a request that would join."""
        adapter = request.adapter
        return self._taken + (self._weights[adapter] if self._weights and adapter not in self._members else 0)

    def add(self, request: Request) -> None:
        """Count in the adapter of a request that joins."""
        if self._weights:
            self._taken = self.with_that_of(request)
            self._members.add(request.adapter)
