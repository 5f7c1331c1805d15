"""Memory of a replica: how many KV blocks are left beside weights and slots, and who holds them."""

from __future__ import annotations

from collections.abc import Iterable
from operator import mul

from sim.spec.profile import Memory


def kv_tokens_left(memory: Memory, adapter_bytes: int, utilization: float | None = None) -> int:
    """Return the KV cache in tokens: ``total x utilization - weights - adapters - overhead``; may be negative.

    :param adapter_bytes: bytes set aside for adapters: slots times padded slot size, or the cache's size.
    """
    usable = memory.total_bytes * (memory.utilization if utilization is None else utilization)
    left = usable - memory.weights_bytes - memory.overhead_bytes - adapter_bytes
    return int(left // memory.kv_bytes_per_token)


class KvBlocks:
    """KV blocks of one replica; a sequence of n tokens holds ceil(n / size) of them.

    Decoding sequences all grow by one token a step, so nobody walks over them: with n sequences of T tokens in all,
    ``sum ceil(t / size) = (T + n (size - 1) - R) / size``, where R sums the remainders of ``t - 1`` against size. R
    follows from a count of sequences by phase, and lies between 0 and n (size - 1): most questions are answered by
    that bound alone, and many runs never need the count. The scheduler, which starts and ends a decode for every
    request, keeps these sums itself.

    :param total: blocks there are.
    :ivar tokens: tokens of all decoding sequences; ``decoding``: how many there are.
    :ivar phases: how many decoding sequences there are by ``(tokens - 1 - step) % size``, which stays as it is while
        they decode: ``step`` counts decode steps. Empty until ``count_phases``; kept up from then on.
    :ivar prefill: blocks held by sequences that don't decode yet.
    :ivar peak_tokens: the most tokens that decoding sequences ever held.
    """

    def __init__(self, total: int, size: int) -> None:
        self.total = total
        self.size = size
        self.tokens = 0
        self.decoding = 0
        self.prefill = 0
        self.peak_tokens = 0
        self.phases: list[int] = []

    def blocks(self, tokens: int) -> int:
        """Return the blocks that ``tokens`` tokens take."""
        return -(-tokens // self.size)

    def spare_at_least(self, steps: int) -> int:
        """Return a number of blocks that is free for sure after ``steps`` more decode steps; quick."""
        size = self.size
        return self.total - self.prefill - (self.tokens + self.decoding * (steps + size - 1)) // size

    def count_phases(self, step: int, tokens: Iterable[int]) -> None:
        """Begin to count phases; ``tokens`` of every decoding sequence at counter value ``step``."""
        self.phases = [0] * self.size
        for held in tokens:
            self.phases[(held - 1 - step) % self.size] += 1

    def spare(self, step: int, steps: int) -> int:
        """Return the blocks free after ``steps`` decode steps from counter value ``step``; negative: lacking."""
        assert self.phases, "phases are counted"
        size, phases = self.size, self.phases
        at = (step + steps) % size
        # The sum of count * ((phase + at) % size), without a loop in Python.
        remainders: int = sum(map(mul, phases, range(size))) + at * self.decoding - size * sum(phases[size - at :])
        held = (self.tokens + self.decoding * (steps + size - 1) - remainders) // size
        return self.total - self.prefill - held

    def steps_that_fit(self, step: int, steps: int) -> int:
        """Return how many of the next ``steps`` decode steps find the blocks they need."""
        if self.spare_at_least(steps) >= 0:
            return steps
        low, high = 0, steps + 1  # what is held never falls from step to step, so bisection finds the last that fits
        while high - low > 1:
            middle = (low + high) // 2
            if self.spare(step, middle) >= 0:
                low = middle
            else:
                high = middle
        return low
