"""The prefix store under a scheduler: the peak of what decodes hold, and content of weights that were replaced."""

from __future__ import annotations

import pytest

from sim.policies.admission import ReadyQueue
from sim.policies.costs import StepCosts
from sim.policies.kv.free_queue import FreeQueue
from sim.policies.kv.known_blocks import Extent, KnownBlocks
from sim.policies.kv.kv_store import KvStore
from sim.policies.kv.prefix_store import CountUntilPreemption, PrefixStore
from sim.policies.scheduler import Limits, Scheduler
from sim.spec.profile import StepCost
from sim.traffic.request import Request

SIZE, BLOCKS, BUDGET = 16, 1000, 64


class Replica:
    """A scheduler with a prefix store and one adapter; steps take a second."""

    def __init__(self, kv: KvStore | None = None) -> None:
        self.queue = ReadyQueue()
        self.kv = kv or PrefixStore(BLOCKS, SIZE)
        costs = StepCosts(StepCost(), 4, BUDGET)
        self.scheduler = Scheduler(Limits(8, BUDGET), self.kv, self.queue, [8], costs)
        self.now = 0.0

    def push(self, index: int, prompt: int, answer: int, shared: int = 0) -> Request:
        request = Request(index, self.now, 0, prompt, answer)
        request.shared = ((shared, 0),) if shared else ()
        self.queue.push(request)
        return request

    def compose(self) -> None:
        assert self.scheduler.compose(self.now).steps

    def complete(self) -> None:
        self.now += 1
        self.scheduler.complete(1, self.now)
        self.scheduler.check_integrity()

    def step(self) -> None:
        self.compose()
        self.complete()

    def run_until_empty(self) -> None:
        self.step()
        while self.scheduler.running:
            self.step()

    def peak_tokens(self) -> float:
        return self.kv.peak_share() * BLOCKS * SIZE


@pytest.mark.parametrize(("shared", "known"), [(8, 0), (32, 2)])
def test_a_text_shorter_than_a_block_is_not_known_once_it_was_read(shared: int, known: int) -> None:
    kv = PrefixStore(BLOCKS, SIZE)
    readers = [Request(index, 0.0, 0, 50, 5) for index in (0, 1)]
    for request in readers:
        request.shared = ((shared, 0),)
    first, second = readers
    assert kv.reserve(first, 50, 50, 0)
    first.context = 50
    kv.set_apart(first)
    kv.arrived(first)
    kv.check_integrity()
    assert kv.cached_tokens(second) == known * SIZE


@pytest.mark.parametrize("shared", [0, 160])
def test_a_prompt_that_shares_blocks_with_a_decode_does_not_lower_the_peak(shared: int) -> None:
    replica = Replica()
    first = replica.push(0, 160, 50, shared=160)
    while not replica.kv.decoding:
        replica.step()
    second = replica.push(1, 160 + 4000, 5, shared=shared)
    while first in replica.scheduler.running:
        replica.step()
    assert second.to_prefill > 0, "it is still being computed"
    assert second.cached_tokens == shared
    assert replica.peak_tokens() == 160 + 49


def test_blocks_that_decodes_share_count_once() -> None:
    replica = Replica()
    first = replica.push(0, 160, 50, shared=160)
    while not replica.kv.decoding:
        replica.step()
    second = replica.push(1, 160 + 20, 50, shared=160)
    replica.run_until_empty()
    assert (first.cached_tokens, second.cached_tokens) == (0, 160)
    # The second one's prompt is complete one step after the first one's: that holds 160 + 49 tokens before it ends,
    # and the other 20 + 48 beside the shared ones.
    assert replica.peak_tokens() == 160 + 49 + 20 + 48
    third = replica.push(2, 160 + 9, 50, shared=160)
    replica.run_until_empty()
    assert third.cached_tokens == 160
    assert replica.peak_tokens() == 160 + 49 + 20 + 48, "alone it holds less"


def test_a_prompt_half_computed_by_old_weights_is_outdated() -> None:
    replica = Replica()
    replica.push(0, 160, 2, shared=160)
    replica.step()
    replica.kv.outdate(0)
    replica.scheduler.check_integrity()
    replica.run_until_empty()
    later = replica.push(1, 170, 2, shared=160)
    replica.run_until_empty()
    assert later.cached_tokens == 160
    assert replica.kv.found_outdated(1)
    assert not replica.kv.found_outdated(1), "it is asked once"


@pytest.mark.parametrize("change", ["", "outdate", "forget"])
def test_a_preempted_request_finds_its_blocks_unless_its_weights_have_changed(change: str) -> None:
    replica = Replica(CountUntilPreemption(20, SIZE))
    both = [replica.push(0, 120, 60), replica.push(1, 120, 60)]
    while not replica.scheduler.preempted:
        if change and replica.kv.decoding == 2:
            getattr(replica.kv, change)(0)
        replica.step()
    assert isinstance(replica.scheduler.kv, PrefixStore)
    [again] = [request for request in both if request.preemptions]
    assert again.to_prefill > 120
    while again not in replica.scheduler.running:
        replica.compose()
        cached = again.context - replica.scheduler.scheduled().get(again.index, 0)
        replica.complete()
    assert (cached > 0) == (change != "forget")
    replica.run_until_empty()
    assert replica.scheduler.kv.found_outdated(again.index) == (change == "outdate")


def test_a_request_sent_again_counts_what_it_finds_then() -> None:
    replica = Replica()
    replica.push(0, 160, 2, shared=160)
    replica.run_until_empty()
    replica.kv.outdate(0)
    failed = replica.push(1, 170, 2, shared=160)
    replica.run_until_empty()
    assert failed.cached_tokens == 160
    replica.kv.forget(0)  # nobody asked for request 1, which failed
    again = replica.push(1, 170, 2, shared=160)
    replica.run_until_empty()
    assert again.cached_tokens == 0
    assert not replica.kv.found_outdated(1)


@pytest.mark.parametrize("shared", [0, 40, 320])
def test_a_turn_finds_the_prompt_of_the_turn_that_still_runs(shared: int) -> None:
    replica = Replica()
    first = replica.push(0, 165, 50)
    first.shared, first.text_key = (((min(shared, 165), 0),) if shared else ()), 7
    while not replica.kv.decoding:
        replica.step()
    later = replica.push(1, 165 + 50 + 30, 5)
    later.shared, later.text_key = first.shared, 7
    replica.step()
    assert first in replica.scheduler.running
    assert later.cached_tokens == 160
    replica.run_until_empty()
    last = replica.push(2, 245 + 5 + 20, 5)
    last.shared, last.text_key = first.shared, 7
    replica.run_until_empty()
    assert last.cached_tokens == 240, "of 249 tokens, all but those of the last block"


def blocks_left(users: tuple[int, ...], staying: tuple[int, ...], cut: int) -> list[list[int]]:
    """Evict block by block what users of an extent of ten blocks have left, with a block between; return those known.

    :param users: where the blocks of those end that leave, in this order; ``staying``: of those that stay.
    :param cut: cut the extent before this block; 0: leave it whole.
    """
    known = KnownBlocks(1, 0, -1)
    queue, extent = FreeQueue(known, 100, uncached_last=False), Extent((0, 0, 0), ((10, 0),), 0, 10, twin=True)
    known.add(extent)
    for end in users + staying:
        extent.use(end)
    for end in users:
        if queue.give_back([(extent, end)]):
            queue.append_unknown(1)
    if cut:
        known.add_rest(extent, queue.split(extent, cut))
    left = []
    while queue.blocks:
        queue.check_integrity(known.check_integrity())
        queue.note_free(queue.blocks - 1)
        queue.evict()
        left.append(sorted(block for one in known.extents() for block in range(one.first, one.end)))
    return left


@pytest.mark.parametrize("staying", [(), (3,), (8, 2), (10,)])
def test_blocks_keep_their_places_in_the_free_queue_when_their_extent_is_cut(staying: tuple[int, ...]) -> None:
    for users in ((10,), (10, 7, 4), (10, 9, 3)):
        whole = blocks_left(users, staying, 0)
        assert all(blocks_left(users, staying, cut) == whole for cut in range(1, 10))
