"""The part of a KV store that counts its free blocks exactly at every step."""

from __future__ import annotations

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
        prefilling = {request.index for request in self.running if request.last_step < 0}
        assert prefilling >= self._found_in_use.keys()
        free = self.total - sum(-(-tokens // size) for tokens in held.values()) + self._extra_users
        assert free >= 0, "no more blocks are in use than there are"
        assert self._free == free - sum(tokens % size == 0 for tokens in decoding)
