"""KV memory of a replica: the blocks left by weights and slots, and the sequences that hold them."""

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

    Decoding sequences all grow by one token a step, so no code walks over them: with n sequences of T tokens in all,
    ``sum ceil(t / size) = (T + n (size - 1) - R) / size``, where R sums the remainders of ``t - 1`` against size. R
    follows from a count of sequences by phase, and lies between 0 and n (size - 1): most questions are answered by
    that bound alone, and many runs never need the count. The scheduler starts and ends decodes, and updates these
    sums itself.

    :param total: number of blocks.
    :ivar tokens: tokens of all decoding sequences; ``decoding``: number of them.
    :ivar phases: number of decoding sequences by ``(tokens - 1 - step) % size``, which is constant while they decode;
        ``step`` counts decode steps. Empty until ``count_phases``, up to date from then on.
    :ivar prefill: blocks of sequences that do not decode yet.
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
        """Return a quick lower bound on the free blocks after ``steps`` more decode steps."""
        size = self.size
        return self.total - self.prefill - (self.tokens + self.decoding * (steps + size - 1)) // size

    def count_phases(self, step: int, tokens: Iterable[int]) -> None:
        """Start to count phases.

        :param tokens: tokens of every decoding sequence at counter value ``step``.
        """
        self.phases = [0] * self.size
        for held in tokens:
            self.phases[(held - 1 - step) % self.size] += 1

    def spare(self, step: int, steps: int) -> int:
        """Return the free blocks after ``steps`` decode steps from counter value ``step``; negative if some lack."""
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
        low, high = 0, steps + 1  # the blocks in use never decrease, so bisection finds the last step that fits
        while high - low > 1:
            middle = (low + high) // 2
            if self.spare(step, middle) >= 0:
                low = middle
            else:
                high = middle
        return low
