"""What the step scheduler asks of a replica's KV cache: which sequences fit, and how far they may grow."""

from __future__ import annotations

from abc import ABC, abstractmethod

from mypy_extensions import mypyc_attr

from sim.traffic.request import HOLDING, Request


def held_tokens(request: Request, step: int) -> int:
    """Return the KV tokens of a decoding sequence: all its tokens except the last, minus those to come.

    :param step: decode steps so far.
    """
    return request.prompt_tokens + request.output_tokens - 1 - (request.last_step - step)


@mypyc_attr(allow_interpreted_subclasses=True)
class KvStore(ABC):
    """The KV blocks of one replica, as the step scheduler sees them. Subclass it to manage blocks in another way.

    A sequence *prefills* from the first ``take`` until ``start_decodes``. Then it *decodes*: it gets one token in
    every decode step, until ``give_back``. In between it may *hold* its blocks without getting tokens, from ``hold`` to
    ``resume`` or ``give_back``. The scheduler calls the store in this order:

    1. At the start of a step, ``reserve_decodes`` makes sure that every decode has a block for its next token. While
       it returns False, the scheduler preempts the newest sequence (``give_back``) and calls it again.
    2. ``take`` for the next chunk of an unfinished prompt. Then, for each request that may join, ``cached_tokens`` and
       ``take``. The scheduler updates ``request.context`` after ``take``.
    3. ``steps_that_fit`` says how many equal steps may follow each other before a decode lacks a block.
    4. When they have ended: ``grow``, then ``start_decodes`` for prompts that are complete, then ``give_back`` for
       requests that have ended.

    ``CountingStore`` only counts blocks, so that a boundary costs the same for a batch of any size. ``PrefixStore``
    knows full blocks by their content as well (prefix caching), ``CountUntilPreemption`` those of requests that have
    been preempted. A store that knows content works like this:

    - ``cached_tokens`` finds the longest run of full blocks with the request's content, without its last token: one
      token at least is computed. It takes nothing, so the request may still be turned away.
    - ``take`` counts blocks without a user as free, cached or not, except those that the request shares. It shares
      the cached blocks first and takes new ones from the head of the free queue, which evicts their content. Blocks
      that it fills can be found by the next request of the same step.
    - ``give_back`` gets all sequences that end in one step, and may free them in the order of ``running``.

    :cvar caches: whether ``cached_tokens`` may return anything but 0; otherwise the scheduler does not call it.
    :ivar total: number of blocks; ``size``: tokens of each.
    :ivar running: the batch, in the order in which its sequences joined: a dict used as an ordered set. The scheduler
        fills it; a store only reads it.
    :ivar decoding: number of decoding sequences; ``tokens``: tokens that they hold, shared ones counted for each.
    :ivar drafted: tokens that the step verifies besides the one of each decoding sequence (speculative decoding).
    :ivar padding: tokens that the request of the last ``take`` computes without using them.
    :ivar aside: tokens of sequences that only hold their blocks, those in ``apart`` included.
    :ivar apart: requests outside the batch that hold blocks, from ``set_apart`` on: their KV is on its way, to or from
        another place.
    :ivar lags: whether the scheduler is a step ahead of the tokens, so that the last one of a sequence that decodes is
        not known yet, and neither is what a block that it fills contains.
    """

    caches = False

    def __init__(self, total: int, size: int) -> None:
        self.total = total
        self.size = size
        self._step = 0  # decode steps so far
        self.running: dict[Request, None] = {}
        self.apart: dict[Request, None] = {}
        self.decoding = 0
        self.tokens = 0
        self.drafted = self.padding = 0
        self.aside = 0
        self.lags = False

    @property
    def evicted_blocks(self) -> int:
        """Cached blocks that were used for something else."""
        return 0

    @abstractmethod
    def reserve_decodes(self) -> bool:
        """Return whether every decoding sequence has a block for its next token."""

    def cached_tokens(self, request: Request) -> int:
        """Return how many tokens of a request that would join need no computing, because blocks hold them."""
        return 0

    def known_tokens(self, request: Request) -> int:
        """Return the same for somebody who only looks; -1 where looking would change what is evicted next."""
        return 0

    @abstractmethod
    def take(self, request: Request, tokens: int, room_for: int, cached: int = 0) -> bool:
        """Give a request blocks for the next ``tokens`` tokens of its prompt; return whether there were enough.

        They follow the ``request.context`` tokens that it holds, and the ``cached`` ones that it finds as it joins.

        :param room_for: tokens for which blocks must be free after every decode has taken its next one: ``tokens`` or
            more, such as the whole prompt. 0 skips the check.
        """

    @abstractmethod
    def start_decodes(self, requests: list[Request]) -> None:
        """Let sequences decode that hold the ``request.context`` tokens of their prompts; ``last_step`` is set."""

    @abstractmethod
    def free_blocks(self) -> int:
        """Return how many blocks are free, cached or not, before decodes take those for their next tokens."""

    def hold(self, requests: list[Request]) -> None:
        """Let decoding sequences get no more tokens; ``context`` says what they hold from now on."""
        for request in requests:
            self._hold(request, held_tokens(request, self._step))
            self.aside += request.context

    def _hold(self, request: Request, tokens: int) -> None:
        """Take a sequence out of the counts of those that decode."""
        request.context = tokens
        request.last_step = HOLDING
        self.decoding -= 1
        self.tokens -= tokens

    def resume(self, requests: list[Request]) -> None:
        """Let sequences decode again that only held their blocks; ``last_step`` is set."""
        for request in requests:
            self.aside -= request.context
        self.start_decodes(requests)

    @abstractmethod
    def grow(self, steps: int) -> None:
        """Add ``steps`` tokens to every decoding sequence."""

    @abstractmethod
    def steps_that_fit(self, steps: int) -> int:
        """Return how many of the next ``steps`` decode steps find the blocks they need."""

    def reserve(self, request: Request, tokens: int, room_for: int, cached: int) -> bool:
        """As ``take``, for tokens that come from another place: none of them can be found before ``arrived``."""
        return self.take(request, tokens, room_for, cached)

    def arrived(self, request: Request) -> None:
        """Let others find the ``context`` tokens of a request that is set apart, all of which are there."""

    def set_apart(self, request: Request) -> None:
        """Keep a request's blocks, for ``context`` tokens, while it is outside the batch."""
        request.last_step = HOLDING
        self.aside += request.context
        self.apart[request] = None

    def take_up(self, request: Request) -> None:
        """Let a request that was set apart prefill the rest; ``context`` is still what it held."""
        request.last_step = -1
        self.aside -= request.context
        del self.apart[request]

    def drop(self, request: Request, *, decided: bool) -> None:
        """Take back the blocks of a request that was set apart, whose tokens have not come.

        :param decided: whether decodes have taken the blocks of their next tokens.
        """
        self.take_up(request)
        self.give_back([request], early=True)

    def before_preemption(self) -> KvStore:
        """Return the store with which the scheduler goes on, before it preempts a request of this one."""
        return self

    @abstractmethod
    def give_back(self, requests: list[Request], *, early: bool = False) -> None:
        """Take back the blocks of sequences that leave the batch.

        They all decode or hold their blocks, or it is a single one that prefills.

        :param early: they leave before they have all their tokens.
        """

    def forget(self, adapter: int) -> None:
        """Drop what is cached of an adapter; running requests keep their blocks."""

    def outdate(self, adapter: int) -> None:
        """Note that what is cached of an adapter comes from weights that have just been replaced."""

    def found_outdated(self, index: int) -> bool:
        """Return whether a request that leaves, by its index, found content of weights that had been replaced."""
        return False

    @abstractmethod
    def note_peak(self, steps: int) -> None:
        """Count, for the peak, what decodes hold after ``steps`` steps of a leap in which the run stops."""

    @abstractmethod
    def peak_share(self) -> float:
        """Return the largest share of the store that decoding sequences ever held."""

    @abstractmethod
    def check_integrity(self) -> None:
        """Assert that the store agrees with a count over the running sequences."""


# The KV store that counts blocks, and does not know what they contain.


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

    def set_apart(self, request: Request) -> None:
        super().set_apart(request)
        self._held_remainders += (request.context - 1) % self.size

    def take_up(self, request: Request) -> None:
        super().take_up(request)
        self._held_remainders -= (request.context - 1) % self.size

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
        remainders, place = self._held_remainders, (self._step + steps) % size
        for count in self._phases:  # sequences that hold place + 1 tokens in their last block
            remainders += count * place
            place = place + 1 if place + 1 < size else 0
        for request in reversed(self.running):
            if request.last_step != -1:
                break
            remainders += (request.context - 1) % size
        return (self._room - steps * self.decoding + remainders) // size

    def check_integrity(self) -> None:
        size, running = self.size, self.running
        tokens = [held_tokens(request, self._step) for request in running if request.last_step >= 0]
        prefill = [request.context for request in [*running, *self.apart] if request.last_step < 0]
        free = self.total - sum(-(-held // size) for held in tokens + prefill)
        assert free >= 0, "no more blocks are in use than there are"
        assert (self.decoding, self.tokens) == (len(tokens), sum(tokens))
        assert self._room == size * free + size - 1 - sum((held - 1) % size for held in tokens + prefill)
        assert not self._phases or self._free_after(0) == free
