"""Prefix caching against a naive twin with real blocks, step by step, and against counts over token lists."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from naive_async import AheadBlocks
from naive_blocks import BASE, Job, NaiveEngine, Rules, Stepped
from prefix_traffic import Coming, Traffic

from sim.policies.admission import ClaimingQueue
from sim.policies.costs import StepCosts
from sim.policies.kv.kv_store import CountingStore, KvStore
from sim.policies.kv.prefix_store import CountUntilPreemption, PrefixStore
from sim.policies.scheduler import Limits, Scheduler
from sim.policies.vllm_lru import SetOrder, VllmLruCache
from sim.spec.profile import StepCost
from sim.traffic.request import HOLDING, Request

STEPS = 5_000


class Simulated:
    """The simulator's scheduler with a store, requests by index."""

    def __init__(self, rules: Rules, adapters: int, kv: KvStore, *, ahead: bool = False) -> None:
        host_slots = max(adapters, rules.max_loras)
        order = SetOrder(range(adapters))
        cache = VllmLruCache(adapters, rules.max_loras, host_slots, order, counts_running=ahead)
        waiting = ClaimingQueue(cache, None, stop=False, gives_up=True)
        costs = StepCosts(StepCost(), rules.max_loras, rules.max_tokens)
        limits = Limits(rules.max_seqs, rules.max_tokens, rules.whole_prompt, asynchronous=ahead)
        self.scheduler = Scheduler(limits, kv, waiting, [0] * adapters, costs)
        self.scheduler.admit_base_model(cache.serve_base_model())
        self.cache = cache
        self._pushed = 0

    def push(self, request: Request) -> None:
        self._pushed += 1
        request.key = self._pushed  # the end of the queue
        self.scheduler.waiting.push(request)

    def compose(self) -> tuple[dict[int, int], dict[int, int], list[int]]:
        """Decide a step; return tokens and cached tokens by request, and those preempted."""
        scheduler = self.scheduler
        before = [request.index for request in scheduler.running]
        scheduler.compose(0.0)
        scheduler.check_integrity()
        scheduled = scheduler.scheduled()
        scheduler.waiting.unloaded.clear()
        running = {request.index: request for request in scheduler.running}
        joined = [index for index in running if index not in before]
        cached = {index: running[index].context - scheduled[index] for index in joined}
        return scheduled, cached, [index for index in reversed(before) if index not in running]

    def complete(self, steps: int) -> list[int]:
        self.scheduler.deliver(0.0)
        finished = self.scheduler.complete(steps, 0.0)
        self.scheduler.check_integrity()
        for request in finished:
            release = self.cache.release_paused if request.last_step == HOLDING else self.cache.release
            release(request.adapter)
        return [request.index for request in finished]


def drawn(seed: int) -> tuple[Rules, Traffic, list[Coming]]:
    """Return random rules and traffic that fits them."""
    random = Random(seed)
    size = random.choice((1, 2, 3, 4, 8))
    adapters = random.randint(1, 4)
    longest = random.choice((3, 3 * size, 6 * size))
    traffic = Traffic(random, size, adapters, random.choice((0.0, 0.3, 1.0)), longest)
    coming = traffic.requests(random.randint(2, 12), random.choice((0, 10, 60)))
    most = max(len(one.job.prompt) + len(one.job.answer) for one in coming)
    seqs = random.randint(1, 6)
    rules = Rules(
        blocks=-(-most // size) + random.choice((0, 0, 1, 4, 30)),
        size=size,
        max_seqs=seqs,
        max_tokens=seqs + random.choice((0, 2, size, 10 * size, 1_000)),
        max_loras=random.randint(1, adapters),
        whole_prompt=random.random() < 0.5,
        uncached_last=random.random() < 0.4,
        invocation_tokens=random.choice((None, None, 1, random.randint(1, longest))),
    )
    return rules, traffic, coming


def prefix_store(rules: Rules, adapters: int) -> PrefixStore:
    return PrefixStore(
        rules.blocks,
        rules.size,
        uncached_last=rules.uncached_last,
        invocation_tokens=rules.invocation_tokens or 0,
        base_model=adapters,
    )


class Arrivals:
    """Requests that arrive before a step, and later turns that follow the end of others."""

    def __init__(self, coming: list[Coming]) -> None:
        self.timed = [(one.at_step, one) for one in coming if one.after is None]
        self._turns = {one.after: one for one in coming if one.after is not None}

    def due(self, step: int) -> list[Coming]:
        due = [one for at_step, one in self.timed if at_step <= step]
        self.timed = [(at_step, one) for at_step, one in self.timed if at_step > step]
        return due

    def ended(self, index: int, step: int) -> None:
        if index in self._turns:
            self.timed.append((step + self._turns[index].at_step, self._turns[index]))


def compare(seed: int, *, leaps: bool, forgets: bool = False, ahead: bool = False) -> list[Stepped]:
    """Run simulator and twin side by side to the end, and compare every step; return the twin's steps."""
    rules, traffic, coming = drawn(seed)
    store = prefix_store(rules, traffic.adapters)
    ours, twin = Simulated(rules, traffic.adapters, store, ahead=ahead), NaiveEngine(rules)
    if ahead:
        stops = {one.request.index for one in coming if Random(seed + one.request.index).random() < seed % 3 / 2}
        for one in coming:
            one.request.stops = one.request.index in stops
        twin = AheadBlocks(rules, stops)
    arrivals, step, overwritten, left, history = Arrivals(coming), 0, 0, len(coming), list[Stepped]()
    while left:
        assert step < STEPS, "the twin does not come to an end"
        for one in arrivals.due(step):
            ours.push(one.request)
            twin.waiting.append(one.job)
        if forgets and traffic.random.random() < 0.05:
            adapter = traffic.random.randint(0, traffic.adapters)
            store.forget(adapter)
            twin.forget(BASE if adapter == traffic.adapters else adapter)
        scheduled, cached, preempted = ours.compose()
        theirs = twin.step()
        history.append(theirs)
        overwritten += theirs.overwritten
        assert (scheduled, cached, preempted) == (theirs.scheduled, theirs.cached, theirs.preempted)
        store.settle()
        assert store.evicted_blocks == overwritten
        steps = 1
        if not ours.scheduler.decided.steps:
            ended = []
        else:
            if leaps:
                next_arrival = min((at_step for at_step, _ in arrivals.timed), default=STEPS)
                steps = min(ours.scheduler.decided.steps, max(next_arrival - step, 1))
            for _ in range(steps - 1):
                assert not theirs.ended
                theirs = twin.step()
                overwritten += theirs.overwritten
                assert (theirs.scheduled, theirs.cached, theirs.preempted) == (scheduled, {}, [])
            ended = ours.complete(steps)
        assert sorted(ended) == sorted(theirs.ended)
        step += steps
        left -= len(ended)
        for index in theirs.ended:
            arrivals.ended(index, step)
    joins = joins_of(history)
    first = dict(reversed(joins))
    assert [one.request.cached_tokens for one in coming] == [first[one.request.index] for one in coming]
    preemptions = Counter(index for step in history for index in step.preempted)
    assert {one.request.index: one.request.preemptions for one in coming if one.request.preemptions} == preemptions
    came_back = len(joins) > len(first)
    assert came_back == bool(preemptions) or (ahead and preemptions)  # some end while they wait
    return history


def joins_of(steps: list[Stepped]) -> list[tuple[int, int]]:
    """Return which requests joined the batch, in order, and how many tokens each found cached."""
    return [join for step in steps for join in step.cached.items()]


def test_the_scenarios_reach_the_corners() -> None:
    reached = Counter[str]()
    for seed in range(200):
        steps = compare(seed, leaps=False)
        joined = joins_of(steps)
        reached["found"] += any(tokens for _, tokens in joined)
        reached["evicted"] += any(step.overwritten for step in steps)
        reached["filled twice"] += any(step.twins for step in steps)
        reached["preempted"] += any(step.preempted for step in steps)
        reached["preempted with something to find"] += sum(tokens for _, tokens in joined) > sum(
            dict(reversed(joined)).values()
        )
        reached["chunked"] += any(
            tokens > 1 and index in before.scheduled and index not in step.cached
            for before, step in pairwise(steps)
            for index, tokens in step.scheduled.items()
        )
        reached["found in the step that computes it"] += any(
            tokens and 0 in list(step.cached.values())[:place]
            for step in steps
            for place, tokens in enumerate(step.cached.values())
        )
    assert min(reached.values()) >= 10, reached


@pytest.mark.parametrize("block", range(30))
def test_every_step_equals_that_of_the_twin(block: int) -> None:
    for seed in range(20 * block, 20 * block + 20):
        compare(seed, leaps=False)


@pytest.mark.parametrize("block", range(30))
def test_leaps_equal_the_steps_of_the_twin(block: int) -> None:
    for seed in range(20 * block, 20 * block + 20):
        compare(seed, leaps=True)


@pytest.mark.parametrize("block", range(10))
def test_what_is_forgotten_is_found_by_nobody(block: int) -> None:
    for seed in range(20 * block, 20 * block + 20):
        compare(seed, leaps=seed % 2 == 0, forgets=True)


@pytest.mark.parametrize("block", range(30))
def test_steps_scheduled_ahead_equal_those_of_the_twin(block: int) -> None:
    for seed in range(20 * block, 20 * block + 20):
        compare(seed, leaps=seed % 2 == 0, forgets=seed % 5 == 0, ahead=True)


def run(
    rules: Rules,
    adapters: int,
    coming: list[Coming],
    kv: KvStore,
    *,
    preempts: bool = False,
    simulated: type[Simulated] = Simulated,
) -> tuple[list[dict[int, int]], dict[int, int]]:
    """Simulate to the end, step by step; return the tokens of each step and what requests found cached, in order."""
    replica, arrivals, steps, found = simulated(rules, adapters, kv), Arrivals(coming), [], dict[int, int]()
    left = len(coming)
    while left:
        assert len(steps) < STEPS
        for one in arrivals.due(len(steps)):
            replica.push(one.request)
        scheduled, cached, preempted = replica.compose()
        assert preempts or not preempted
        steps.append(scheduled)
        found |= cached
        for index in replica.complete(1) if scheduled else ():
            left -= 1
            arrivals.ended(index, len(steps))
    return steps, found


@pytest.mark.parametrize("block", range(5))
def test_with_all_memory_every_prefix_that_was_ever_there_is_found(block: int) -> None:
    total = 0
    for seed in range(20 * block, 20 * block + 20):
        rules, traffic, coming = drawn(seed)
        rules = replace(rules, blocks=100_000, invocation_tokens=None, max_tokens=100_000)  # each prompt in one step
        store = prefix_store(rules, traffic.adapters)
        _, found = run(rules, traffic.adapters, coming, store)
        jobs, turn_of = {one.job.index: one.job for one in coming}, {one.job.index: one.after for one in coming}
        seen: list[Job] = []
        for index, tokens in found.items():  # in the order in which they joined
            job, longest = jobs[index], 0
            for other in seen:
                there = (
                    other.prompt + other.answer[:-1] if is_turn_before(other.index, index, turn_of) else other.prompt
                )
                if other.adapter == job.adapter:
                    longest = max(longest, common(there, job.prompt[:-1]))
            assert tokens == longest // rules.size * rules.size
            total += tokens
            seen.append(job)
        assert [one.request.cached_tokens for one in coming] == [found[one.request.index] for one in coming]
        assert store.evicted_blocks == 0
    assert total > 0


def is_turn_before(index: int, later: int, turn_of: dict[int, int | None]) -> bool:
    before = turn_of[later]
    while before is not None and before != index:
        before = turn_of[before]
    return before == index


def common(some: list[int], others: list[int]) -> int:
    """Return how many tokens two lists have in common from the start."""
    same = 0
    while same < min(len(some), len(others)) and some[same] == others[same]:
        same += 1
    return same


@pytest.mark.parametrize("block", range(5))
def test_where_nobody_shares_the_cache_changes_nothing(block: int) -> None:
    compared = 0
    for seed in range(40 * block, 40 * block + 40):
        rules, traffic, coming = drawn(seed)
        firsts = [one for one in coming if one.after is None]
        if sum(-(-(len(one.job.prompt) + len(one.job.answer)) // rules.size) for one in firsts) > rules.blocks:
            rules = replace(rules, max_seqs=1, max_tokens=max(rules.max_tokens, 2))  # nobody is ever preempted
        stores = (
            prefix_store(replace(rules, invocation_tokens=None), traffic.adapters),
            CountingStore(rules.blocks, rules.size),
        )
        results = []
        for store in stores:
            fresh = [replace(one, request=one.request.fresh_copy()) for one in firsts]
            for one in fresh:
                one.request.shared, one.request.text_key = (), -1
            steps, found = run(rules, traffic.adapters, fresh, store)
            assert not any(found.values())
            results.append((steps, store.peak_share(), store.decoding, store.tokens))
        assert results[0] == results[1]
        compared += stores[0].evicted_blocks > 0
    assert compared >= 5


@pytest.mark.parametrize("block", range(5))
def test_where_nobody_shares_only_preempted_requests_find_blocks(block: int) -> None:
    """The store that counts until then gives the steps of the one that knows all blocks from the start."""
    preempted = found_again = 0
    for seed in range(60 * block, 60 * block + 60):
        rules, traffic, coming = drawn(seed)
        firsts = [one for one in coming if one.after is None]
        longest = max(len(one.job.prompt) + len(one.job.answer) for one in firsts)
        rules = replace(rules, blocks=-(-longest // rules.size) + 1, max_seqs=4, max_tokens=max(rules.max_tokens, 4))
        stores = (
            prefix_store(replace(rules, invocation_tokens=None), traffic.adapters),
            CountUntilPreemption(rules.blocks, rules.size, uncached_last=rules.uncached_last),
        )
        results = []
        for store in stores:
            fresh = [replace(one, request=one.request.fresh_copy()) for one in firsts]
            for one in fresh:
                one.request.shared, one.request.text_key = (), -1
            steps, found = run(rules, traffic.adapters, fresh, store, preempts=True)
            assert not any(one.request.cached_tokens for one in fresh)
            results.append((steps, found, [one.request.preemptions for one in fresh]))
        assert results[0] == results[1]
        preempted += any(results[0][2])
        found_again += any(results[0][1].values())
    assert min(preempted, found_again) >= 10


# In the last four, a block that a turn has filled is the next one of the turn before, which found nothing there.
@pytest.mark.parametrize("seed", [*range(100), 881, 1293, 1384, 1951])
def test_turns_that_overlap_keep_the_store_whole(seed: int) -> None:
    """A turn may come before the answer that it contains has ended; equal blocks are then filled twice."""
    rules, traffic, coming = drawn(seed)
    at_step = dict[int | None, int]()
    for place, one in enumerate(coming):
        step = 0 if seed % 4 == 0 else one.at_step
        if one.after is not None and seed % 4:
            step = at_step[one.after] + traffic.random.choice((0, 1, 2, 3, 8, 20))
        at_step[one.request.index] = step
        coming[place] = replace(one, at_step=step, after=None)
    run(rules, traffic.adapters, coming, prefix_store(rules, traffic.adapters), preempts=True)


def overlapping_turns(random: Random) -> tuple[Rules, list[Coming]]:
    """Return turns of two conversations that often overlap, so that many blocks are filled twice."""
    size, longest = random.choice((1, 1, 2)), random.choice((8, 16, 32))
    prefix = random.choice((0, random.randint(1, longest)))
    coming, at_step = list[Coming](), 0
    for index in range(30):
        at_step += random.choice((0, 0, 1, 2, 3, 8))
        prompt, answer = prefix + random.randint(1, longest * size), random.randint(1, longest)
        request = Request(index, 0.0, 0, prompt, answer)
        request.shared, request.text_key = ((prefix, 0),) if prefix else (), random.choice((1, 1, 2))
        coming.append(Coming(request, Job(index, 0, [0] * prompt, [0] * answer), at_step))
    most = max(len(one.job.prompt) + len(one.job.answer) for one in coming)
    rules = Rules(
        blocks=-(-most // size) + random.choice((3, 10, 30)),
        size=size,
        max_seqs=random.choice((2, 4, 8)),
        max_tokens=1_000,
        max_loras=1,
        whole_prompt=True,
        uncached_last=random.random() < 0.3,
    )
    return rules, coming


class CutUp(Simulated):
    """Cuts twins of its store into single blocks now and then."""

    cuts = steps = 0

    def compose(self) -> tuple[dict[int, int], dict[int, int], list[int]]:
        store = self.scheduler.kv
        assert isinstance(store, PrefixStore)
        CutUp.steps += 1
        for extent in store._known.extents() if CutUp.steps % 8 == 0 else ():
            while extent.twin and extent.end - extent.first > 1:
                store._split(extent, extent.end - 1)
                CutUp.cuts += 1
        return super().compose()


def test_twins_in_one_extent_are_the_same_as_single_blocks() -> None:
    before = CutUp.cuts
    for seed in range(12):
        results = []
        for simulated in (Simulated, CutUp):
            rules, coming = overlapping_turns(Random(seed))
            store = prefix_store(rules, 1)
            ran = run(rules, 1, coming, store, preempts=True, simulated=simulated)
            results.append((ran, store.evicted_blocks, store.peak_share()))
        assert results[0] == results[1]
    assert CutUp.cuts - before > 300
