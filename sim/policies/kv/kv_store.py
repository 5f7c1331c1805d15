"""What the step scheduler asks of a replica's KV cache: which sequences fit, and how far they may grow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from sim.traffic.request import Request


def held_tokens(request: Request, step: int) -> int:
    """Return the KV tokens of a decoding sequence: all its tokens except the last, minus those to come.

    :param step: decode steps so far.
    """
    return request.prompt_tokens + request.output_tokens - 1 - (request.last_step - step)


class KvStore(ABC):
    """The KV blocks of one replica. A sequence of n tokens holds ``ceil(n / size)`` of them.

    A sequence *prefills* from the first ``take`` until ``start_decodes``. Then it *decodes*, and gets one token in every
    decode step, until ``give_back``. The scheduler calls the store in this order:

    1. At the start of a step, ``reserve_decodes`` sets a block aside for every decode that needs one. While it returns
       False, the scheduler preempts the newest sequence (``give_back``) and calls it again.
    2. A prompt that is partly computed, and then each request that may join: ``cached_tokens`` (only for one that
       joins), ``has_room``, ``take``. The scheduler adds the tokens to ``request.context`` itself, after ``take``.
    3. ``steps_that_fit`` says how many equal steps may follow each other without another look.
    4. After these steps: ``grow``, then ``start_decodes`` for prompts that are complete, then ``give_back`` for requests
       that have ended.

    A request is known by its ``index``. ``cached_tokens``, ``has_room`` and ``steps_that_fit`` change nothing that a
    caller can see.

    ``CountingStore`` only counts blocks, so it costs the same for a batch of any size. A store that knows blocks by
    their content (prefix caching) also keeps a table of blocks by request. Its ``cached_tokens`` returns the longest
    run of full blocks that it finds, at most the prompt without its last token. Its ``has_room`` counts cached blocks
    without a user as free, except those that the request would use. Its ``take`` first shares the cached blocks, then
    takes new ones from the head of the free queue, which evicts what was cached there. ``give_back`` gets all sequences
    that end in one step at once, so that they can be freed in the order in which they joined. Blocks that
    ``reserve_decodes`` or ``take`` fill may be found by the next request of the same step.

    :ivar total: number of blocks; ``size``: tokens of each.
    :ivar running: the sequences of the batch by index, in the order in which they joined. It is the scheduler's; a store
        only reads it.
    :ivar decoding: number of decoding sequences; ``tokens``: tokens that they hold in all, shared ones counted once for
        each.
    """

    def __init__(self, total: int, size: int) -> None:
        self.total = total
        self.size = size
        self.running: dict[int, Request] = {}
        self.decoding = 0
        self.tokens = 0

    @abstractmethod
    def reserve_decodes(self) -> bool:
        """Set aside the block that each decode may need for its next token; return whether there are enough."""

    @abstractmethod
    def cached_tokens(self, request: Request) -> int:
        """Return how many tokens of a request that would join are cached, so that no step has to compute them."""

    @abstractmethod
    def take(self, request: Request, tokens: int, room_for: int, cached: int = 0) -> bool:
        """Give a request blocks for ``tokens`` more tokens of its prompt; return False, and give none, if they lack.

        They follow ``request.context`` tokens that the request holds, and ``cached`` ones that it finds as it joins.

        :param room_for: tokens that must fit next to what decodes need in this step; 0: the caller knows that they fit.
        """

    @abstractmethod
    def start_decodes(self, requests: Sequence[Request]) -> None:
        """Let sequences decode. Each holds the ``request.context`` tokens of its prompt, and grows from now on."""

    @abstractmethod
    def grow(self, steps: int) -> None:
        """Add ``steps`` tokens to every decoding sequence."""

    @abstractmethod
    def steps_that_fit(self, steps: int) -> int:
        """Return how many of the next ``steps`` decode steps find the blocks they need."""

    @abstractmethod
    def give_back(self, requests: Sequence[Request]) -> None:
        """Take the blocks of sequences that have ended or were preempted; they may decode or prefill."""

    @abstractmethod
    def peak_share(self) -> float:
        """Return the largest share of the store that decoding sequences ever held."""

    @abstractmethod
    def check_integrity(self) -> None:
        """Assert that the store agrees with a count over the running sequences."""
