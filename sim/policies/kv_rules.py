"""How much of the KV cache a request must find to join, in engines that see to it that answers can end.

The plain rules, room for the whole prompt or its first chunk, need no more than the blocks that are free now; the
scheduler asks them itself. Those here look ahead, as far as the answers' lengths are known, and then nobody is ever
preempted. A request's ``max_tokens`` is taken to be what it does produce.
"""

from __future__ import annotations

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

    def fits(self, request: Request, adapters: Iterable[int], step: int, running: Iterable[Request]) -> bool:
        """Return whether a request may join those ``running`` at decode counter ``step``.

        :param adapters: distinct adapters of the batch.
        """
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
        self._adapter_blocks = adapter_blocks

    def fits(self, request: Request, adapters: Iterable[int], step: int, running: Iterable[Request]) -> bool:
        taken = _of_adapters(self._adapter_blocks, request, adapters)
        return self.need + self._blocks(request) + taken <= self.total

    def joined(self, request: Request) -> None:
        self.need += self._blocks(request)

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
        self._adapter_tokens = adapter_tokens
        self._tried = 0

    def fits(self, request: Request, adapters: Iterable[int], step: int, running: Iterable[Request]) -> bool:
        alive = [_left_and_held(other, step) for other in running]
        alive.append(_left_and_held(request, step))
        alive.sort(reverse=True)
        peak = held = 0
        for count, (left, tokens) in enumerate(alive, 1):
            held += tokens
            peak = max(peak, left * count + held)
        self._tried = peak
        return peak < self.total - _of_adapters(self._adapter_tokens, request, adapters)

    def joined(self, request: Request) -> None:
        self.need = self._tried

    def left(self, request: Request) -> None:
        """Keep the peak as a bound: who leaves was counted in it."""


def _left_and_held(request: Request, step: int) -> tuple[int, int]:
    """Return the tokens still to come of a request, and those it holds."""
    if request.last_step >= 0:
        left = request.last_step - step - 1
        return left, request.prompt_tokens + request.output_tokens - 1 - left
    return request.output_tokens - 1, request.prompt_tokens + 1


def _of_adapters(weights: Sequence[int], request: Request, adapters: Iterable[int]) -> int:
    """Return what the batch's adapters take with the one of a request that would join."""
    return sum(weights[adapter] for adapter in {*adapters, request.adapter}) if weights else 0
