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
    :ivar aside: tokens of sequences that only hold their blocks.
    :ivar lags: whether the scheduler is a step ahead of the tokens, so that the last one of a sequence that decodes is
        not known yet, and neither is what a block that it fills contains.
    """

    caches = False

    def __init__(self, total: int, size: int) -> None:
        self.total = total
        self.size = size
        self._step = 0  # decode steps so far
        self.running: dict[Request, None] = {}
        self.decoding = 0
        self.tokens = 0
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
