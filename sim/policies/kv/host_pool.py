"""vLLM's KV offload to host memory: what is stored there, found again, and evicted.

Source: vLLM 0.33 ``distributed/kv_transfer/kv_connector/v1/offloading/`` and ``v1/kv_offload/cpu/``, for one group of
full attention layers and one block per chunk. Checked step by step against records (tests/property/test_records.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from operator import itemgetter

from sim.policies.kv.block_store import BlockStore, Key
from sim.policies.transfer_scheduler import LATER, KvSource
from sim.traffic.request import Request

_MOST_COUNTED = 64_000  # blocks whose offers are counted
_PENDING = -1


class Job:
    """A copy of blocks between GPU and host.

    :ivar keys: what is copied; ``blocks``: of the GPU, from which a store reads.
    """

    def __init__(self, request: Request, keys: list[Key], blocks: list[int], *, stores: bool) -> None:
        self.request = request
        self.keys = keys
        self.blocks = blocks
        self.stores = stores


class _Offers:
    """What the pool knows of a request inside.

    :ivar next_block: the first of its blocks that it has not offered yet; ``blocks``: those of the GPU.
    :ivar refused_at: the state of the pool in which it was refused.
    :ivar used: blocks that it stored, loaded or offered; ``stored``, ``reused``: those that it stored, or found there.
    """

    def __init__(self) -> None:
        self.next_block = 0
        self.blocks: list[int] = []
        self.jobs: dict[Job, None] = {}
        self.used: dict[Key, None] = {}
        self.stored: set[Key] = set()
        self.reused: set[Key] = set()
        self.missed: set[Key] = set()
        self.group: _Group | None = None
        self.ended = False
        self.refused_at = -1


class PoolOrder(ABC):
    """Which block leaves a full pool. ``users`` are the pool's, by block: idle ones have 0."""

    def __init__(self, capacity: int, users: dict[Key, int]) -> None:
        self.capacity = capacity
        self.users = users

    @abstractmethod
    def insert(self, key: Key, offers: _Offers) -> None:
        """Add a block that a request stores."""

    def accessed(self, keys: Sequence[Key], offers: _Offers) -> None:
        """Note that a running request uses blocks for the first time: some that are there, or that it will store."""

    def missed(self, keys: Sequence[Key]) -> None:
        """Note that a request will store these blocks, which it has not tried before."""

    @abstractmethod
    def ended(self, offers: _Offers) -> None:
        """Note that the end of a request was processed."""

    @abstractmethod
    def evict(self, count: int, kept: set[Key]) -> list[Key] | None:
        """Remove and return so many idle blocks, none of those to be kept; if it can't, remove nothing, return None."""


class _Group:
    """Blocks that one request used last.

    :ivar rank: its place in time; ``blocks``: by their numbers in the request; ``grows``: whether more may come.
    """

    def __init__(self, *, grows: bool) -> None:
        self.rank = 0
        self.grows = grows
        self.blocks: dict[int, Key] = {}


class LruOrder(PoolOrder):
    """The least recently used first; of one request, the last block.

    :param by_request: a running request has one place in time for all of its blocks (vLLM from 0.33 on); otherwise each
        block has that of its store, and its use counts at the end of the request.
    """

    def __init__(self, capacity: int, users: dict[Key, int], *, by_request: bool = True) -> None:
        super().__init__(capacity, users)
        self._by_request = by_request
        self._group_of: dict[Key, _Group] = {}
        self._groups: OrderedDict[_Group, None] = OrderedDict()  # in the order of their ranks
        self._rank = 0

    def _move_last(self, group: _Group) -> _Group:
        self._rank += 1
        group.rank = self._rank
        self._groups[group] = None
        self._groups.move_to_end(group)
        return group

    def _group(self, offers: _Offers) -> _Group:
        """Return where the blocks go that a running request uses now."""
        if offers.group is None or not self._by_request:
            offers.group = self._move_last(_Group(grows=self._by_request))
        return offers.group

    def _put(self, key: Key, group: _Group) -> None:
        before = self._group_of.get(key)
        if before is not group:
            if before is not None:
                self._take(key, before)
            self._group_of[key] = group
            group.blocks[key[2]] = key

    def _take(self, key: Key, group: _Group) -> None:
        del group.blocks[key[2]]
        if not group.blocks and not group.grows:
            del self._groups[group]

    def insert(self, key: Key, offers: _Offers) -> None:
        self._put(key, self._group(offers))

    def accessed(self, keys: Sequence[Key], offers: _Offers) -> None:
        if not self._by_request or not keys:
            return
        mine = self._group(offers)  # its place in time, even if its blocks find no room
        for key in keys:
            group = self._group_of.get(key)
            if group is not None and group.rank < mine.rank:
                self._put(key, mine)

    def ended(self, offers: _Offers) -> None:
        group = self._move_last(self._group(offers))
        for key in offers.used:
            if key in self._group_of:
                self._put(key, group)
        group.grows = False
        if not group.blocks:
            del self._groups[group]

    def evict(self, count: int, kept: set[Key]) -> list[Key] | None:
        users = self.users
        taken: list[Key] = []
        for group in self._groups:
            for number in sorted(group.blocks, reverse=True):
                key = group.blocks[number]
                if not users[key] and key not in kept:
                    taken.append(key)
                    if len(taken) == count:
                        break
            if len(taken) == count:
                break
        if len(taken) < count:
            return None
        for key in taken:
            self._take(key, self._group_of.pop(key))
        return taken


class ArcOrder(PoolOrder):
    """Adaptive replacement: blocks used by one request, and by several, share the pool as misses suggest."""

    def __init__(self, capacity: int, users: dict[Key, int]) -> None:
        super().__init__(capacity, users)
        self._once: OrderedDict[Key, None] = OrderedDict()
        self._often: OrderedDict[Key, None] = OrderedDict()
        self._was_once: OrderedDict[Key, None] = OrderedDict()
        self._was_often: OrderedDict[Key, None] = OrderedDict()
        self._target = 0.0  # blocks for those that were used once

    def insert(self, key: Key, offers: _Offers) -> None:
        self._once[key] = None
        self._was_once.pop(key, None)
        self._was_often.pop(key, None)

    def missed(self, keys: Sequence[Key]) -> None:
        once, often = self._was_once, self._was_often
        for key in reversed(keys):
            if key in once:
                self._target = min(self._target + max(1.0, len(often) / len(once)), self.capacity)
                once.move_to_end(key)
            elif key in often:
                self._target = max(self._target - max(1.0, len(once) / len(often)), 0.0)
                often.move_to_end(key)

    def ended(self, offers: _Offers) -> None:
        for key in sorted(offers.used, key=itemgetter(2), reverse=True):  # the last block first
            only_stored = key in offers.stored and key not in offers.reused
            if key in self._once and key in offers.reused:
                del self._once[key]
                self._often[key] = None
            elif key in self._once and only_stored:
                self._once.move_to_end(key)
            elif key in self._often and (only_stored or key in offers.reused):
                self._often.move_to_end(key)

    def evict(self, count: int, kept: set[Key]) -> list[Key] | None:
        users = self.users
        once = (key for key in self._once if not users[key] and key not in kept)
        often = (key for key in self._often if not users[key] and key not in kept)
        taken: list[tuple[Key, bool]] = []
        left = len(self._once)
        for _ in range(count):
            key = next(once, None) if left >= int(self._target) else None
            from_once = key is not None
            if key is None:
                key = next(often, None)
            if key is None:
                key = next(once, None)
                from_once = True
            if key is None:
                return None
            left -= from_once
            taken.append((key, from_once))
        for key, from_once in taken:
            del (self._once if from_once else self._often)[key]
            (self._was_once if from_once else self._was_often)[key] = None
        for ghosts in (self._was_once, self._was_often):
            while len(ghosts) > self.capacity:
                ghosts.popitem(last=False)
        return [key for key, _ in taken]


class HostPool(KvSource):
    """Blocks in host memory: prompts are written through as they are computed, and loaded where the GPU lacks them.

    The replica takes the jobs of each step from ``loads``, ``stores`` and ``flushed``, lets them take their time, and
    calls ``done``.

    :param total: blocks that fit.
    :param arc: whether blocks leave by ``ArcOrder``; otherwise by ``LruOrder``.
    :param answers: whether generated blocks are stored as well.
    :param store_from: a block is stored when it is offered for this time, if that is 2 or more.
    :param within_step_blocks: so many blocks a step may be loaded while it waits.
    :param by_request: as in ``LruOrder``; a preempted request then offers its blocks anew as well.
    :ivar loads, stores: jobs ordered with the step just decided; ``flushed``: those that must end before it begins.
    :ivar refused: requests whose blocks found no room in this step; ``evicted``: by store, what left the pool for it.
    """

    def __init__(
        self,
        kv: BlockStore,
        total: int,
        *,
        arc: bool = False,
        answers: bool = False,
        store_from: int = 0,
        within_step_blocks: int = 0,
        by_request: bool = True,
    ) -> None:
        super().__init__()
        self._kv = kv
        self._total = total
        self._users: dict[Key, int] = {}  # of blocks in the pool: copies from there under way, or _PENDING
        self._order = ArcOrder(total, self._users) if arc else LruOrder(total, self._users, by_request=by_request)
        self.follows_answers = answers
        self._store_from, self._offers_again = store_from, by_request
        self._within_step, self._within_left = within_step_blocks, within_step_blocks
        self._counts: OrderedDict[Key, int] = OrderedDict()
        self._offers: dict[Request, _Offers] = {}
        self._loading: set[Key] = set()
        self._idle_blocks = 0
        self._changes = 0  # of what is in the pool, and in use there
        self._fenced: dict[int, dict[Job, None]] = {}  # by block of the GPU: stores from there of requests that ended
        self.loads: list[Job] = []
        self.stores: list[Job] = []
        self.evicted: dict[Job, list[Key]] = {}
        self.flushed: dict[Job, None] = {}

    def blocks(self) -> int:
        """Return how many blocks are in the pool, those on their way included."""
        return len(self._users)

    def share(self) -> float:
        """Return how full the pool is."""
        return len(self._users) / self._total if self._total else 1.0

    def _state(self, request: Request) -> _Offers:
        offers = self._offers.get(request)
        if offers is None:
            offers = self._offers[request] = _Offers()
        return offers

    # Load -----------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin to decide a step."""
        self.loads, self.stores, self.refused, self.evicted, self.flushed = [], [], [], {}, {}
        self._within_left = self._within_step
        self._kv.handed.clear()

    def look_up(self, request: Request, cached: int) -> int:
        if self._state(request).jobs:
            return LATER
        size = self._kv.size
        found, waits, end = 0, False, request.to_prefill // size
        for key in self._kv.keys_of(request, end)[cached // size : end]:
            users = self._users.get(key)
            if users is None:
                break
            waits |= users == _PENDING or key in self._loading
            found += 1
        return LATER if waits else found * size

    def within_step(self, request: Request, cached: int, tokens: int) -> bool:
        blocks = tokens // self._kv.size
        if blocks > self._within_left or cached + tokens >= request.to_prefill:
            return False
        self._within_left -= blocks
        return True

    def order(self, request: Request, cached: int, tokens: int) -> None:
        size, offers = self._kv.size, self._state(request)
        first, end = cached // size, (cached + tokens) // size
        keys = self._kv.keys_of(request, end)[first:end]
        for key in keys:
            self._idle_blocks -= not self._users[key]
            self._users[key] += 1
        self._use(keys, offers)
        offers.reused.update(key for key in keys if key not in offers.stored)
        self._loading.update(keys)
        offers.next_block = end
        job = Job(request, keys, [], stores=False)
        offers.jobs[job] = None
        self.loads.append(job)

    # Store ----------------------------------------------------------------------------------------------------------

    def decided(
        self, scheduled: Iterable[tuple[Request, int]], preempted: Sequence[Request], ended: Sequence[Request]
    ) -> None:
        """Store what the step just decided completes, and find the copies that it has to wait for.

        :param scheduled: its requests, with the tokens that each will have; ``ended``: those whose end was processed
            since the step before, in the order in which the pool hears of them.
        """
        for request in preempted:
            offers = self._state(request)
            self.flushed.update(offers.jobs)
            if self._offers_again:
                offers.next_block = 0
        for block in self._kv.handed & self._fenced.keys():
            self.flushed.update(self._fenced[block])
        for request, tokens in scheduled:
            self._state(request).blocks = self._kv.blocks_of(request)
            self._offer(request, tokens)
        for request in ended:
            tokens = max(request.prompt_tokens, request.prompt_tokens + request.output_tokens - 1)
            job = self._offer(request, tokens)
            if job is not None:
                self._fence(job)
                if not self._kv.handed.isdisjoint(job.blocks):
                    self.flushed[job] = None
        for request in ended:
            offers = self._state(request)
            offers.ended = True
            self._order.ended(offers)
            if not offers.jobs:
                self._forget(request)

    def watches(self) -> bool:
        return len(self._fenced) > 0

    def ending(self, request: Request) -> None:
        """Note that a request ends: its blocks of the GPU may be handed out while they are copied."""
        for job in self._state(request).jobs:
            self._fence(job)

    def _fence(self, job: Job) -> None:
        for block in job.blocks:
            self._fenced.setdefault(block, {})[job] = None

    def _offer(self, request: Request, tokens: int) -> Job | None:
        """Offer the full blocks of a request that it has not offered yet."""
        offers, size = self._state(request), self._kv.size
        if not self.follows_answers:
            tokens = min(tokens, request.prompt_tokens)
        first, end = offers.next_block, min(tokens // size, len(offers.blocks))
        if end <= first:
            return None
        if offers.refused_at == self._changes and self._store_from < 2:
            self.refused.append(request)  # nothing has changed since
            return None
        keys = self._kv.keys_of(request, end)[first:end]
        if self._store_from > 1:
            self._count(keys)
        there = [key for key in keys if self._users.get(key, _PENDING) != _PENDING]
        wanted = [key for key in keys if key not in self._users]
        if self._store_from > 1:
            wanted = [key for key in wanted if self._counts.get(key, 0) >= self._store_from]
        self._order.missed([key for key in wanted if key not in offers.missed])
        offers.missed.update(wanted)
        self._use([*wanted, *there], offers)
        offers.reused.update(key for key in there if key not in offers.stored)
        if not wanted:
            offers.next_block = end
            return None
        lacking = len(wanted) + len(self._users) - self._total
        evicted: list[Key] | None = []
        if lacking > 0:
            evicted = self._order.evict(lacking, set(keys)) if lacking <= self._idle_blocks else None
        if evicted is None:
            self.refused.append(request)
            offers.refused_at = self._changes
            return None
        self._changes += 1
        self._idle_blocks -= len(evicted)
        for key in evicted:
            del self._users[key]
        for key in wanted:
            self._users[key] = _PENDING
            self._order.insert(key, offers)
        offers.stored.update(wanted)
        offers.next_block = end
        job = Job(request, wanted, [offers.blocks[key[2]] for key in wanted], stores=True)
        offers.jobs[job] = None
        self.stores.append(job)
        self.evicted[job] = evicted
        return job

    def _use(self, keys: Sequence[Key], offers: _Offers) -> None:
        """Note that a request stores, loads or finds these blocks."""
        new = [key for key in keys if key not in offers.used]
        offers.used.update(dict.fromkeys(new))
        self._order.accessed(new, offers)

    def _count(self, keys: Iterable[Key]) -> None:
        """Count an offer, for blocks that are stored only when they are offered again."""
        counts, known = self._counts, {key for key in keys if key in self._counts}
        for key in known:
            counts[key] += 1
        for key in keys:
            if key in known:
                counts.move_to_end(key)
        others = len(counts) - len(known)
        for key in keys:
            if key in counts:
                continue
            if len(counts) >= _MOST_COUNTED:
                if not others:
                    continue
                counts.popitem(last=False)
                others -= 1
            counts[key] = 1

    def done(self, job: Job) -> None:
        """Note that a copy has ended."""
        self._changes += 1
        for key in job.keys:
            self._users[key] = 0 if job.stores else self._users[key] - 1
            if not self._users[key]:
                self._idle_blocks += 1
        self._loading.difference_update(job.keys if not job.stores else ())
        for block in job.blocks:
            fenced = self._fenced.get(block)
            if fenced is not None:
                fenced.pop(job, None)
                if not fenced:
                    del self._fenced[block]
        offers = self._offers[job.request]
        del offers.jobs[job]
        if offers.ended and not offers.jobs:
            self._forget(job.request)

    def _forget(self, request: Request) -> None:
        del self._offers[request]
        self._kv.drop_keys(request)
