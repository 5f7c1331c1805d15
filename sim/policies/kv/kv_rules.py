"""KV memory that a request must find to join, in engines that reserve it so that no request is preempted.

The plain rules, room for the whole prompt or its first chunk, need only the blocks that are free now; the scheduler
applies them itself. The rules here look ahead to the ends of answers. A request's ``max_tokens`` is taken to be the
number of tokens that it produces. How much memory there is, after weights and slots, is here as well.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Protocol

from mypy_extensions import i64

from sim.spec.profile import Memory
from sim.traffic.request import Request


def kv_tokens_left(memory: Memory, adapter_bytes: int, utilization: float | None = None) -> int:
    """Return the KV cache in tokens: ``total x utilization - weights - adapters - overhead``; may be negative.

    :param adapter_bytes: bytes set aside for adapters: slots times padded slot size, or the cache's size.
    """
    usable = memory.total_bytes * (memory.utilization if utilization is None else utilization)
    left = usable - memory.weights_bytes - memory.overhead_bytes - adapter_bytes
    return int(left // memory.kv_bytes_per_token)


class KvRule(Protocol):
    """Decides which requests may join, and tracks those in the batch.

    :ivar total: number of blocks.
    :ivar need: most blocks that the batch may take until all its requests have ended.
    :ivar timed: whether a request that finds no room may find some at a later step although no request has left.
    """

    total: int
    need: int
    timed: bool

    def begin(self, running: Iterable[Request], step: int) -> None:
        """Begin a scan of waiting requests, given the batch and the decode counter."""
        ...

    def fits(self, request: Request) -> bool:
        """Return whether a request may join the batch, including requests that joined in this scan."""
        ...

    def joined(self, request: Request) -> None: ...

    def left(self, request: Request) -> None: ...


class WholeAnswer:
    """Reserves blocks for prompt and answer when a request joins.

    Source: TensorRT-LLM ``batch_manager/capacityScheduler.cpp``, GUARANTEED_NO_EVICT; LoRAX
    ``router/src/block_allocator.rs``, which reserves one token less.

    :param total: number of blocks; ``size``: tokens of each.
    :param adapter_blocks: blocks that each adapter of the batch takes; empty: none.
    """

    timed = False

    def __init__(self, total: int, size: int, adapter_blocks: Sequence[int] = ()) -> None:
        self.total = total
        self.size = size
        self.need = 0
        self._adapters = _AdaptersOfBatch(adapter_blocks)

    def begin(self, running: Iterable[Request], step: int) -> None:
        self._adapters.begin(running)

    def fits(self, request: Request) -> bool:
        return self.need + self._blocks(request) + self._adapters.with_adapter_of(request) <= self.total

    def joined(self, request: Request) -> None:
        self.need += self._blocks(request)
        self._adapters.add(request)

    def left(self, request: Request) -> None:
        self.need -= self._blocks(request)

    def _blocks(self, request: Request) -> int:
        return -(-(request.prompt_tokens + request.output_tokens) // self.size)


class PeakOfAnswers:
    """Admits a request if the batch's peak of tokens, until its last answer ends, fits.

    Source: S-LoRA ``slora/server/router/req_queue.py``, ``_can_add_new_req``. With requests sorted by tokens still to
    come, longest first, the i-th ends while i requests are alive, so the peak is
    ``max(left_i * i + tokens that the first i hold)``.

    :param total: number of tokens (blocks of one token).
    :param adapter_tokens: tokens that each adapter of the batch takes; empty: none.
    """

    timed = True

    def __init__(self, total: int, adapter_tokens: Sequence[int] = ()) -> None:
        self.total = total
        self.need = 0
        self._adapters = _AdaptersOfBatch(adapter_tokens)
        # Of the requests in the batch, those with the most tokens to come first: these tokens, negative, and those that
        # they hold. Lists of numbers, which compiled code adds up quickly.
        self._to_come: list[int] = []
        self._held: list[int] = []
        self._tried: tuple[int, list[int], list[int]] = (0, [], [])
        self._step = 0

    def begin(self, running: Iterable[Request], step: int) -> None:
        self._step = step
        alive = sorted([_left_and_held(request, step) for request in running])
        self._to_come = [left for left, _ in alive]
        self._held = [held for _, held in alive]
        self._adapters.begin(running)

    def fits(self, request: Request) -> bool:
        to_come, held = self._to_come.copy(), self._held.copy()
        own_left, own_tokens = _left_and_held(request, self._step)
        place = bisect_left(to_come, own_left)
        to_come.insert(place, own_left)
        held.insert(place, own_tokens)
        # Machine integers, if compiled: this loop takes a third of the time of an S-LoRA simulation.
        peak: i64 = 0
        total: i64 = 0
        count: i64 = 0
        for left in to_come:
            total += held[count]
            count += 1  # noqa: SIM113  # enumerate would count in objects
            if total - left * count > peak:
                peak = total - left * count
        self._tried = peak, to_come, held
        return peak < self.total - self._adapters.with_adapter_of(request)

    def joined(self, request: Request) -> None:
        self.need, self._to_come, self._held = self._tried
        self._adapters.add(request)

    def left(self, request: Request) -> None:
        """Keep the peak as a bound, since it counted this request."""


def _left_and_held(request: Request, step: int) -> tuple[int, int]:
    """Return a request's tokens still to come, as a negative number, and the tokens that it holds."""
    if request.last_step >= 0:
        left = request.last_step - step - 1
        return -left, request.prompt_tokens + request.output_tokens - 1 - left
    return 1 - request.output_tokens, request.prompt_tokens + 1


class _AdaptersOfBatch:
    """KV memory that the batch's adapters take.

    :param weights: of each adapter; empty: adapters take none.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        self._weights = weights
        self._members: set[int] = set()
        self._taken = 0

    def begin(self, running: Iterable[Request]) -> None:
        if self._weights:
            self._members = {request.adapter for request in running}
            self._taken = sum(self._weights[adapter] for adapter in self._members)

    def with_adapter_of(self, request: Request) -> int:
        """Return the memory of the batch's adapters, including the one of a request that would join."""
        adapter = request.adapter
        return self._taken + (self._weights[adapter] if self._weights and adapter not in self._members else 0)

    def add(self, request: Request) -> None:
        """Add the adapter of a request that joins."""
        if self._weights:
            self._taken = self.with_adapter_of(request)
            self._members.add(request.adapter)
