"""The KV store that counts blocks, and does not know what they contain."""

from __future__ import annotations

from operator import mul

from sim.policies.kv.kv_store import KvStore, held_tokens
from sim.traffic.request import HOLDING, Request


class CountingStore(KvStore):
    """Counts the blocks of all sequences together, so that leaps are cheap.

    Decoding sequences all grow by one token a step, so no code walks over them. A sequence of t tokens holds
    ``ceil(t / size) = (t + size - 1 - r) / size`` blocks, where r is the remainder of ``t - 1`` against size. In the
    sum over n sequences only R, the sum of their remainders, is not known at once. It lies between 0 and n (size - 1),
    and most questions are answered with R = 0: that is what ``_room`` counts. R itself follows from a walk over the
    few sequences that prefill, and for decodes from a count by phase, ``(t - 1 - steps so far) % size``, which stays
    the same while they decode. Many runs never need it, so phases are counted from the first time that ``_room`` does
    not suffice.
    """

    def __init__(self, total: int, size: int) -> None:
        super().__init__(total, size)
        self._room = total * size + size - 1  # size times the free blocks, plus size - 1, less R
        self._phases: list[int] = []  # decoding sequences by phase; empty until they are needed
        self._peak_tokens = 0
        self._held_remainders = 0  # of sequences that only hold their blocks

    def reserve_decodes(self) -> bool:
        return self.decoding <= self._room or self._free_after(1) >= 0

    def take(self, request: Request, tokens: int, room_for: int, cached: int = 0) -> bool:
        size, context = self.size, request.context
        if room_for + size + self.decoding > self._room:
            asked = -(-(context + room_for) // size) + -context // size
            if asked > 0 and asked > self._free_after(1):
                return False
        self._room -= tokens if context else tokens + size - 1
        return True

    def start_decodes(self, requests: list[Request]) -> None:
        self.decoding += len(requests)
        for request in requests:
            self.tokens += request.context
        if self._phases:
            for request in requests:
                self._phases[(request.context - 1 - self._step) % self.size] += 1

    def free_blocks(self) -> int:
        return self._free_after(0)

    def _hold(self, request: Request, tokens: int) -> None:
        super()._hold(request, tokens)
        self._held_remainders += (tokens - 1) % self.size
        if self._phases:
            self._phases[(tokens - 1 - self._step) % self.size] -= 1

    def resume(self, requests: list[Request]) -> None:
        self._held_remainders -= sum([(request.context - 1) % self.size for request in requests])
        super().resume(requests)

    def grow(self, steps: int) -> None:
        grown = steps * self.decoding
        self._step += steps
        self._room -= grown
        self.tokens = tokens = self.tokens + grown
        if tokens + self.aside > self._peak_tokens:
            self._peak_tokens = tokens + self.aside

    def note_peak(self, steps: int) -> None:
        self._peak_tokens = max(self._peak_tokens, self.tokens + self.aside + steps * self.decoding)

    def steps_that_fit(self, steps: int) -> int:
        if steps * self.decoding <= self._room:
            return steps
        low, high = 0, steps + 1  # the blocks in use never decrease, so bisection finds the last step that fits
        while high - low > 1:
            middle = (low + high) // 2
            if self._free_after(middle) >= 0:
                low = middle
            else:
                high = middle
        return low

    def give_back(self, requests: list[Request], *, early: bool = False) -> None:
        size, step = self.size, self._step
        if requests[0].last_step < 0 or self.aside:
            for request in requests:
                if request.last_step < 0:
                    self._room += request.context + size - 1
                if request.last_step == HOLDING:
                    self.aside -= request.context
                    self._held_remainders -= (request.context - 1) % size
            requests = [request for request in requests if request.last_step >= 0]
            if not requests:
                return
        count = len(requests)
        held = count * (step - 1)
        for request in requests:  # as held_tokens; calls would cost 2 % of a short request if interpreted
            held += request.prompt_tokens + request.output_tokens - request.last_step
        self.decoding -= count
        self.tokens -= held
        self._room += held + count * (size - 1)
        if self._phases:
            for request in requests:
                self._phases[(held_tokens(request, step) - 1 - step) % size] -= 1

    def peak_share(self) -> float:
        return self._peak_tokens / (self.total * self.size)

    def _free_after(self, steps: int) -> int:
        """Return the free blocks after ``steps`` decode steps; negative if some lack.

        Sequences that prefill are the newest of the batch.
        """
        size = self.size
        if not self._phases:
            self._phases = [0] * size
            for request in self.running:
                if request.last_step >= 0:
                    self._phases[(held_tokens(request, self._step) - 1 - self._step) % size] += 1
        phases = self._phases
        at = (self._step + steps) % size
        # The sum of count * ((phase + at) % size), without a loop in Python.
        remainders: int = sum(map(mul, phases, range(size))) + at * self.decoding - size * sum(phases[size - at :])
        for request in reversed(self.running):
            if request.last_step != -1:
                break
            remainders += (request.context - 1) % size
        return (self._room - steps * self.decoding + remainders + self._held_remainders) // size

    def check_integrity(self) -> None:
        size, running = self.size, self.running
        tokens = [held_tokens(request, self._step) for request in running if request.last_step >= 0]
        prefill = [request.context for request in running if request.last_step < 0]
        free = self.total - sum(-(-held // size) for held in tokens + prefill)
        assert free >= 0, "no more blocks are in use than there are"
        assert (self.decoding, self.tokens) == (len(tokens), sum(tokens))
        assert self._room == size * free + size - 1 - sum((held - 1) % size for held in tokens + prefill)
        assert not self._phases or self._free_after(0) == free
