"""The step scheduler of a vLLM whose KV also comes from, or goes to, another place: a KV connector.

Source: vLLM 0.33 ``v1/core/sched/scheduler.py``. A request whose KV is on its way holds blocks outside the batch, where
it counts among neither the batch slots nor the adapters. Checked step by step against records of two connectors
(tests/property/test_records.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Final

from sim.policies.admission import WaitingQueue
from sim.policies.costs import StepCosts
from sim.policies.kv.kv_store import KvStore, held_tokens
from sim.policies.scheduler import Limits, Scheduler, Step
from sim.traffic.request import BY_ADAPTER_LIMIT, BY_BATCH_SLOTS, BY_KV, HOLDING, UNBLOCKED, Request

LATER: Final = -1
"""``KvSource.look_up``: whether there is anything to load is not known yet."""

_NO_ROOM: Final = -2  # for a request, where a number of tokens is asked

_LOADING: Final = 0
_ARRIVED: Final = 1  # no scan has looked at the request since
_FAILED: Final = 2  # the same
_READY: Final = 3  # all that was to come is there
_EMPTY: Final = 4  # nothing came, and its blocks were taken back


class KvSource(ABC):
    """Where a replica finds KV that its own GPU lacks.

    :ivar follows_steps: whether it has to know of each step, by ``begin`` and ``decided``.
    :ivar follows_answers: whether ``decided`` needs all decoding requests; otherwise those of ``refused`` alone.
    :ivar refused: requests that are to be told of their next step, in the order of the batch.
    """

    def __init__(self) -> None:
        self.follows_answers = False
        self.follows_steps = True
        self.refused: list[Request] = []

    @abstractmethod
    def look_up(self, request: Request, cached: int) -> int:
        """Return how many tokens after the ``cached`` ones a request can load, or ``LATER``."""

    @abstractmethod
    def order(self, request: Request, cached: int, tokens: int) -> None:
        """Load these tokens after the cached ones; the scheduler's ``arrived`` or ``failed`` follows."""

    def within_step(self, request: Request, cached: int, tokens: int) -> bool:
        """Return whether the step that a request joins waits for the load, which ``order`` then begins."""
        return False

    def begin(self) -> None:
        """Begin to decide a step."""

    def decided(
        self, scheduled: Iterable[tuple[Request, int]], preempted: Sequence[Request], ended: Sequence[Request]
    ) -> None:
        """Note what the step just decided computes: requests with the tokens that each will have.

        :param ended: those whose end was processed since the step before.
        """

    def watches(self) -> bool:
        """Return whether the next step may have to wait for a copy, depending on the blocks that it hands out."""
        return False

    def ending(self, request: Request) -> None:
        """Note that a request ends, just before its blocks are free."""


class PromptReads(KvSource):
    """The prompts that a replica can read from those that computed them.

    :ivar ready: requests whose prompt another replica has computed; ``ordered``: those whose read was ordered, with
        their tokens. Whoever starts the reads empties it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.follows_steps = False
        self.ready: set[Request] = set()
        self.ordered: list[tuple[Request, int]] = []

    def look_up(self, request: Request, cached: int) -> int:
        return request.to_prefill - cached if request in self.ready else 0

    def order(self, request: Request, cached: int, tokens: int) -> None:
        self.ready.discard(request)
        self.ordered.append((request, tokens))


class TransferScheduler(Scheduler):
    """Admits requests when their KV has come, and keeps that of others for whoever reads it.

    :param source: None: nothing is loaded.
    :param hands_over: whether requests that end keep their blocks until ``read``, as on a replica that prefills for
        another one.
    :ivar preempted_now: requests preempted by the step just decided.
    :ivar waiting_apart: requests of the queue that hold blocks, in the order in which they got them. They go first.
    """

    sets_apart = True

    def __init__(
        self,
        limits: Limits,
        kv: KvStore,
        waiting: WaitingQueue,
        ranks: list[int],
        costs: StepCosts,
        source: KvSource | None = None,
        *,
        hands_over: bool = False,
    ) -> None:
        super().__init__(limits, kv, waiting, ranks, costs)
        self._source = source
        self._hands_over = hands_over
        # Blocks that a load may fill must not be those that a step under way still writes.
        self._defers_frees = limits.asynchronous and source is not None
        self.waiting_apart: dict[Request, int] = {}
        self._loads = 0  # of these, requests whose KV is on its way
        self._turned_away: set[Request] = set()  # back in the queue, since their KV did not come
        self.given_up: set[Request] = set()  # taken back while their KV was on its way
        self._frees_later = False  # whether a step under way writes the blocks of the request that leaves now
        self._to_free: list[Request] = []  # after the step under way
        self._passed_last: list[Request] = []  # those that the last step passed by: nothing of theirs is under way
        self.preempted_now: list[Request] = []
        self.ended: list[Request] = []  # since the step before the one to be decided
        self._partial_idled = False  # whether it gave nothing to an unfinished prompt

    # What the connector reports -------------------------------------------------------------------------------------

    def arrived(self, request: Request) -> None:
        """Note that the KV that a request waits for is there."""
        self._report(request, _ARRIVED)

    def failed(self, request: Request) -> None:
        """Note that it won't come: the request computes its prompt."""
        self._report(request, _FAILED)

    def _report(self, request: Request, state: int) -> None:
        if request in self.given_up:
            self.given_up.remove(request)
            self.kv.drop(request, decided=False)
        else:
            self.waiting_apart[request] = state
            self._loads -= 1

    def read(self, request: Request) -> None:
        """Take back the blocks of a request that has ended, now that its KV was read."""
        del self.kv.apart[request]
        self.kv.give_back([request])

    def loading(self) -> list[Request]:
        """Return the requests whose KV is on its way, or has come since one looked at them last."""
        return [request for request, state in self.waiting_apart.items() if state in (_LOADING, _ARRIVED, _FAILED)]

    def take_back(self, request: Request) -> None:
        """Let a request leave that its client doesn't wait for any more; call it between two steps."""
        if request in self.running:
            self._frees_later = self._defers_frees and request not in self._passed_last
            self.expel(request)
            self._frees_later = False
            return
        if request not in self.waiting_apart:
            self._turned_away.discard(request)
            self.waiting.remove(request)
            return
        state = self.waiting_apart.pop(request)
        if state == _LOADING:
            self._loads -= 1
            self.given_up.add(request)
        elif state == _READY:
            self.kv.take_up(request)
            self.kv.give_back([request], early=True)
        elif state != _EMPTY:
            self.kv.drop(request, decided=False)

    # Decide the next step -------------------------------------------------------------------------------------------

    def compose(self, now: float) -> Step:
        self._partial_idled = self._partial_waits
        if self._partial is not None and self._partial_waits:
            self._partial_rejoins(self._partial)
        source = self._source
        self.preempted_now = []
        if source is None or not source.follows_steps:
            return super().compose(now)
        refused = source.refused
        source.begin()
        step = super().compose(now)
        decoding: Iterable[Request] = ()
        if step.decoding:
            decoding = self.running if source.follows_answers else [r for r in refused if r in self.running]
        # With asynchronous scheduling, a token that is still on its way fills no block yet.
        ahead, late = self._asynchronous, self.late
        tokens = [
            (r, held_tokens(r, self.decode_steps) + (not ahead or r in late)) for r in decoding if r.last_step >= 0
        ]
        tokens += [(r, r.context) for r in step.prefills]
        source.decided(tokens, self.preempted_now, self.ended)
        self.ended = []
        return step

    def _preempt(self, now: float) -> Request:
        request = super()._preempt(now)
        self.preempted_now.append(request)
        return request

    def _equal_steps(self) -> int:
        if self._passed_by or self._partial_waits or (self._source is not None and self._source.watches()):
            return 1
        return super()._equal_steps()

    def _any_waits(self) -> bool:
        return len(self.waiting_apart) > self._loads

    def _admit(self, budget: int, now: float) -> int:
        waiting = self.waiting
        apart, later, turned = list(self.waiting_apart), list[Request](), list[Request]()
        left, place, over_limit = budget, 0, False
        waiting.begin()
        while left and (place < len(apart) or waiting.ready or waiting.deferred):
            if len(self.running) >= self.limits.num_seqs:
                self.blocked = BY_BATCH_SLOTS
                break
            if place < len(apart):
                request = apart[place]
                place += 1
                state = self._look_at(request)
                if state == _LOADING:
                    continue
                if not waiting.may_join(request):
                    over_limit = True
                    if state == _EMPTY:
                        turned.append(request)
                    continue
            else:
                candidate = waiting.next_candidate()
                if candidate is None:
                    self._scanned = None
                    break
                request, state = candidate, _EMPTY
                self._scanned = request.key
                if not waiting.may_join(request):
                    if waiting.pass_over(request):
                        continue
                    break
            tokens = self._take_on(request, state, left, now)
            if tokens == _NO_ROOM:
                self.blocked, self._blocked_key = BY_KV, request.key
                break
            if tokens == LATER:
                waiting.put_aside(request)
                later.append(request)
            else:
                left -= tokens
        for request in later:
            waiting.push(request)
        for request in reversed(turned):
            del self.waiting_apart[request]
            self._turned_away.add(request)
            waiting.put_first(request)
        if left < budget:
            self._joined_step = self.decode_steps
        if self.blocked == UNBLOCKED and (over_limit or waiting.over_limit or (waiting.deferred and waiting.defers)):
            self.blocked = BY_ADAPTER_LIMIT
        return budget - left

    def _take_on(self, request: Request, state: int, left: int, now: float) -> int:
        """Let a request join, or order the load that it waits for; return how many of its tokens the step computes.

        It may be ``_NO_ROOM`` or ``LATER`` as well.
        """
        kv, source, waiting, whole = self.kv, self._source, self.waiting, self.limits.whole_prompt
        cached = again = loaded = 0
        if state == _READY:
            again = int(not request.to_prefill)  # the last token of a prompt that is there
        else:
            cached = kv.cached_tokens(request) if self._caches else 0
            loaded = source.look_up(request, cached) if source is not None else 0
            if loaded == LATER:
                return LATER
            if loaded and source is not None and not source.within_step(request, cached, loaded):
                return self._reserve(request, cached, loaded)
        prompt = request.to_prefill - cached - loaded + again
        chunk = min(prompt, left)
        if not again and not kv.take(request, loaded + chunk, loaded + (prompt if whole else chunk), cached):
            return _NO_ROOM
        if loaded and source is not None:
            source.order(request, cached, loaded)
            cached += loaded
        if request in self.waiting_apart:
            del self.waiting_apart[request]
            waiting.claim(request)
            if state == _READY:
                kv.take_up(request)
                cached = request.context - again
        else:
            waiting.take(request)
        self._turned_away.discard(request)
        self.running[request] = None
        self._count_in([request])
        if request.admitted_s < 0:
            request.admitted_s = now
        request.chunk = chunk
        request.context = cached + chunk
        request.to_prefill = prompt - chunk
        self.decided.prefills.append(request)
        return chunk

    def _look_at(self, request: Request) -> int:
        """Return the state of a request whose turn it is, after what follows from the end of its load."""
        state = self.waiting_apart[request]
        if state == _ARRIVED:
            self.kv.arrived(request)
            request.to_prefill -= request.context
            state = _READY
        elif state == _FAILED:
            self.kv.drop(request, decided=True)
            request.context = 0
            state = _EMPTY
        self.waiting_apart[request] = state
        return state

    def _reserve(self, request: Request, cached: int, tokens: int) -> int:
        """Order a load, and blocks for what it brings; return 0, or ``_NO_ROOM``."""
        source = self._source
        assert source is not None
        room_for = tokens + self._needed_by_others() * self.kv.size
        if self.limits.whole_prompt:
            room_for = max(room_for, request.to_prefill - cached)
        if not self.kv.reserve(request, tokens, room_for, cached):
            return _NO_ROOM
        request.context = cached + tokens
        self.kv.set_apart(request)
        if request not in self.waiting_apart:
            self.waiting.put_aside(request)
        self.waiting_apart[request] = _LOADING
        self._loads += 1
        source.order(request, cached, tokens)
        return 0

    def _needed_by_others(self) -> int:
        """Return how many blocks prompts that are computed or loaded in part still need."""
        size = self.kv.size
        needed = 0
        partial = self._partial
        if partial is not None:
            needed -= -(partial.context + partial.to_prefill) // size - -partial.context // size
        for request in self._turned_away:
            needed -= -request.to_prefill // size
        for request, state in self.waiting_apart.items():
            if state == _EMPTY:
                needed -= -request.to_prefill // size
            elif state != _FAILED:
                whole = request.to_prefill + (request.context if state == _READY else 0)
                needed -= -whole // size - -request.context // size
        return needed

    def _make_room(self, now: float) -> bool:
        """Preempt, or pass by those that find no block: with asynchronous scheduling, most can't be preempted yet."""
        if not self._defers_frees:
            return super()._make_room(now)
        while not self.kv.reserve_decodes():
            if self._can_free_newest():
                self._preempt(now)
                continue
            lacking = self._first_that_lacks()
            assert lacking is not None, "a decode lacks its block"
            order = list(self.running)
            self._pass_by([r for r in order[order.index(lacking) :] if r.last_step >= 0], now)
            self._let_partial_wait()
            return False
        return True

    def _can_free_newest(self) -> bool:
        """Return whether no step under way writes the blocks of the newest request."""
        newest = next(reversed(self.running))
        return newest in self._passed_last or (newest is self._partial and self._partial_idled)

    def _let_partial_wait(self) -> None:
        partial = self._partial
        if partial is not None:
            self._count_out([partial])
            self.waiting.pause(partial)
            self._partial_waits = True

    def _continue_prefill(self, request: Request, budget: int, now: float) -> int:
        if self._defers_frees:
            chunk = min(request.to_prefill, budget)
            while not self.kv.take(request, 0, chunk):
                if not self._can_free_newest():
                    self._let_partial_wait()
                    return 0
                self._preempt(now)
                if self._partial is None:
                    return 0
        return super()._continue_prefill(request, budget, now)

    # End the step ---------------------------------------------------------------------------------------------------

    def complete(self, steps: int, now: float) -> list[Request]:
        if self._passed_by or self._passed_last:
            self._passed_last = list(self._passed_by)
        finished = super().complete(steps, now)
        if self._to_free:
            for request in self._to_free:
                del self.kv.apart[request]
                self.kv.give_back([request], early=True)
            self._to_free = []
        if self._source is not None and self._source.follows_steps:
            self.ended += finished
        return finished

    def _complete_prefills(self, now: float, finished: list[Request]) -> None:
        waits = self._partial if self._partial_waits else None
        super()._complete_prefills(now, finished)
        if waits is not None:
            assert self._partial is None, "one prompt at a time is computed in part"
            self._partial = waits

    def _leave(self, requests: list[Request], *, early: bool = False) -> None:
        if self._frees_later:
            (request,) = requests
            del self.running[request]
            self._count_out(requests)
            if request.last_step >= 0:
                self._ends.remove(request)
                self.kv.hold(requests)
                self.kv.apart[request] = None
            elif request.last_step == HOLDING:
                self.kv.apart[request] = None
            else:
                self.kv.set_apart(request)
            self._to_free.append(request)
            return
        if self._source is not None and not early:
            for request in requests:
                self._source.ending(request)
        if early or not self._hands_over:
            super()._leave(requests, early=early)
            return
        decoding = [request for request in requests if request.last_step != HOLDING]
        if decoding:
            self._hold(decoding)
        for request in requests:
            del self.running[request]
            self.kv.apart[request] = None
