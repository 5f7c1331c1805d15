"""The KV store of an engine that copies blocks to host memory: every block of the GPU is known by itself.

``PrefixStore`` only counts blocks that nobody else can find; here copies to the host may be under way from just these
when they are given to somebody else. A request costs as much as it has blocks.
"""

from __future__ import annotations

from collections import OrderedDict

from sim.policies.kv.known_blocks import NO_END
from sim.policies.kv.kv_store import KvStore, held_tokens
from sim.policies.kv.prefix_lookup import ExactCount
from sim.traffic.request import HOLDING, Request

Key = tuple[int, ...]
"""The content of a full block: its adapter, the key of its run, and its number in the request. The type leaves its
length open, since compiled code would unpack a tuple of three numbers, and pack it again for each look-up."""


class BlockStore(ExactCount):
    """Knows each block, what it contains, and its place in the free queue.

    :ivar handed: blocks given to requests since ``handed`` was last emptied, shared ones included.
    """

    caches = True

    def __init__(self, total: int, size: int) -> None:
        super().__init__(total, size)
        self.handed: set[int] = set()
        self._users = [0] * total
        self._content: list[Key | None] = [None] * total
        self._known: dict[Key, dict[int, None]] = {}  # blocks with this content, the oldest first
        self._queue: OrderedDict[int, None] = OrderedDict.fromkeys(range(total))
        self._blocks: dict[int, list[int]] = {}  # by request
        self._keys: dict[Request, list[Key]] = {}  # of the first blocks of requests
        self._found: list[int] = []
        self._evicted = 0
        self._admissions = 0

    def blocks_of(self, request: Request) -> list[int]:
        """Return the blocks of a request; the list is a live one, and stays as it is when they are given back."""
        return self._blocks[request.index]

    def keys_of(self, request: Request, count: int) -> list[Key]:
        """Return the keys of the first ``count`` full blocks of a request, or of more."""
        keys = self._keys.get(request)
        if keys is None:
            keys = self._keys[request] = []
        if len(keys) < count:
            own = (NO_END, request.text_key if request.text_key >= 0 else -1 - request.index)
            for position, run in (*request.shared, own):
                keys += [(request.adapter, run, block) for block in range(len(keys), min(count, position // self.size))]
        return keys

    def drop_keys(self, request: Request) -> None:
        """Forget the keys of a request that has left."""
        self._keys.pop(request, None)

    @property
    def evicted_blocks(self) -> int:
        return self._evicted

    # Take -----------------------------------------------------------------------------------------------------------

    def reserve_decodes(self) -> bool:
        self._assign()
        return self._free >= 0

    def _assign(self, tokens_ahead: int = 1) -> None:
        """Give decodes their blocks, in the order in which they needed them, while there are any.

        :param tokens_ahead: 0: for the tokens that they hold; 1: also for the next one.
        """
        if len(self._queue) == self._free:
            return  # all have theirs
        size, step = self.size, self._step - 1 + tokens_ahead
        due: list[tuple[int, int, Request]] = []
        for place, request in enumerate(self.running):
            if request.last_step >= 0:
                tokens, blocks = held_tokens(request, step), len(self._blocks[request.index])
                if tokens >= blocks * size:
                    due += [(block * size - tokens, place, request) for block in range(blocks, tokens // size + 1)]
        if len(due) > 1:
            due.sort(key=_when)
        for _, _, request in due:
            if not self._queue:
                break
            self._blocks[request.index].append(self._next_block())

    def _next_block(self) -> int:
        block, _ = self._queue.popitem(last=False)
        content = self._content[block]
        if content is not None:
            self._evicted += 1
            self._forget(block, content)
        self._users[block] = 1
        self.handed.add(block)
        return block

    def _forget(self, block: int, content: Key) -> None:
        self._content[block] = None
        same = self._known[content]
        del same[block]
        if not same:
            del self._known[content]

    def cached_tokens(self, request: Request) -> int:
        count = (request.to_prefill - 1) // self.size
        keys = self.keys_of(request, count)
        self._found = found = []
        for block in range(count):
            same = self._known.get(keys[block])
            if same is None:
                break
            found.append(next(iter(same)))
        return len(found) * self.size

    def take(self, request: Request, tokens: int, room_for: int, cached: int = 0) -> bool:
        if not self._give(request, tokens, room_for, cached):
            return False
        self._fill(request, (request.context + cached + tokens) // self.size)
        return True

    def _give(self, request: Request, tokens: int, room_for: int, cached: int) -> bool:
        """As ``take``, but nobody finds these tokens yet."""
        size, context = self.size, request.context
        found = self._found if cached else []
        idle = sum([not self._users[block] for block in found])
        left = -context % size
        taken = idle - (left - tokens) // size
        if max(taken, idle - (left - max(room_for, tokens)) // size) > max(self._free, 0):
            return False
        self._free -= taken
        if not context:
            self._share(request, found, idle, cached)
        blocks = self._blocks[request.index]
        while len(blocks) * size < context + cached + tokens:
            blocks.append(self._next_block())
        return True

    def _share(self, request: Request, found: list[int], idle: int, cached: int) -> None:
        """Let a request that joins use the blocks that it found, ``idle`` of which nobody uses."""
        self._admissions = request.place = self._admissions + 1
        if not request.preemptions:
            request.cached_tokens = cached
        self._blocks[request.index] = list(found)
        for block in found:
            if not self._users[block]:
                del self._queue[block]
            self._users[block] += 1
            self.handed.add(block)
        self._extra_users += len(found) - idle
        if len(found) > idle:
            self._found_in_use[request.index] = len(found) - idle

    def reserve(self, request: Request, tokens: int, room_for: int, cached: int) -> bool:
        return self._give(request, tokens, room_for, cached)

    def arrived(self, request: Request) -> None:
        self._fill(request, request.context // self.size)

    def take_up(self, request: Request) -> None:
        super().take_up(request)
        self._admissions = request.place = self._admissions + 1

    def _fill(self, request: Request, full: int) -> None:
        """Let others find the ``full`` first blocks of a request."""
        blocks = self._blocks[request.index]
        full = min(full, len(blocks))
        keys = self.keys_of(request, full)
        for number in range(full - 1, -1, -1):
            block = blocks[number]
            if self._content[block] is not None:
                return
            content = self._content[block] = keys[number]
            self._known.setdefault(content, {})[block] = None

    # Give back ------------------------------------------------------------------------------------------------------

    def before_preemption(self) -> KvStore:
        self._assign()
        return self

    def hold(self, requests: list[Request]) -> None:
        self._assign(0)
        super().hold(requests)

    def give_back(self, requests: list[Request], *, early: bool = False) -> None:
        self._assign(0)
        for request in sorted(requests, key=by_place):
            tokens, unknown = request.context, 0
            if request.last_step == HOLDING:
                self.aside -= tokens
                unknown = int(early and request.output_tokens > request.generated + 1)
            elif request.last_step >= 0:
                tokens = held_tokens(request, self._step)
                self.decoding -= 1
                self.tokens -= tokens
                self._phases[(self._step - tokens) % self.size] -= 1
                self._free += not tokens % self.size  # the one that it would take in the next step
                unknown = int(self.lags and tokens > request.context)
            self._fill(request, (tokens - unknown) // self.size)
            self._free_blocks(request, -(-tokens // self.size))

    def drop(self, request: Request, *, decided: bool) -> None:
        super().take_up(request)
        self._free_blocks(request, -(-request.context // self.size))

    def _free_blocks(self, request: Request, count: int) -> None:
        """Take back the blocks of a request, ``count`` of which it holds tokens in; its last one goes first."""
        self._found_in_use.pop(request.index, None)
        for number, block in reversed(list(enumerate(self._blocks.pop(request.index)))):
            self._users[block] -= 1
            if self._users[block]:
                self._extra_users -= 1
                continue
            self._queue[block] = None
            self._free += number < count
            if self._content[block] is None:
                self._queue.move_to_end(block, last=False)

    def note_peak(self, steps: int) -> None:
        self._count_peak(self.tokens + steps * self.decoding)

    def check_integrity(self) -> None:
        holders = [*self.running, *self.apart]
        held = {r.index: r.context if r.last_step < 0 else held_tokens(r, self._step) for r in holders}
        self._check_count(held)
        users = [0] * self.total
        for index, blocks in self._blocks.items():
            assert index in held
            for block in blocks:
                users[block] += 1
        assert users == self._users
        assert sorted(self._queue) == [block for block, count in enumerate(users) if not count]


def by_place(request: Request) -> int:
    """Return a request's place among all admissions, as a key to sort by."""
    return request.place


def _when(due: tuple[int, int, Request]) -> tuple[int, int]:
    return due[:2]
