"""A second simulator, written in the most obvious way, to hold the fast one against.

No SimPy, no heaps, no running sums, no leaps: every step of every replica is an event, the next event is the least of a
list, and everything (who is in use, how many blocks are held, what a step costs) is counted anew whenever it is asked.
It shares with the simulator the traffic, the laws that turn luck into seconds (those of loads that no request begins
too), the order in which a set is walked, and nothing of what happens then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from naive_eviction import NAIVE

from sim.policies.costs import load_seconds, residual
from sim.rng import stream, stream_key, uniform_draw
from sim.world.times import ReplicaDraws, reload_times, tier_times
from sim.world.world import World

HIT, DELAYED_HIT, MISS = 0, 1, 2
GPU, HOST, STORAGE = 0, 1, 2
COMPLETED, UNFINISHED, REFUSED = 0, 1, 2
LOAD_END, BOUNDARY, ARRIVAL = 1, 2, 3
BASE = -1
"""The adapter of a job for the base model: it needs none, so nothing is loaded, held or counted for it."""


@dataclass(eq=False)
class Job:
    """A request; ``place`` is one of to-come, line, aside, loading, running, gone."""

    index: int
    arrival_s: float
    adapter: int
    prompt: int
    output: int
    load_s: float
    host_load_s: float
    service_s: float
    place: str = "to-come"
    key: int = 0
    uses: bool = False  # its adapter may not be evicted on its account
    decoding: bool = False
    target: int = 0  # tokens to prefill, now
    prefilled: int = 0
    generated: int = 0
    asked_s: float = -1.0
    last_token_s: float = -1.0
    outcome: int = HIT
    tier: int = GPU
    replica: int = -1
    preemptions: int = 0
    load_queue_s: float = 0.0
    load_wait_s: float = 0.0
    admitted_s: float = -1.0
    first_token_s: float = -1.0
    finished_s: float = -1.0
    status: int = UNFINISHED


@dataclass(eq=False)
class Load:
    adapter: int
    tier: int
    seconds: float
    asked_s: float
    jobs: list[Job]
    started_s: float = -1.0
    made: int = -1


@dataclass
class Result:
    """What a run left; ``loads`` holds (start, end, adapter, tier, asked)."""

    jobs: list[Job]
    stopped_s: float
    loads: list[tuple[float, float, int, int, float]]
    evictions: int
    in_use_peak: int
    running_area: float
    inside_area: float
    gaps: list[tuple[float, float]]  # (start of the step that ends it, seconds)
    steps: list[tuple[float, float, int]] = field(default_factory=list)  # (start, end, why nobody else joined)


class Replica:
    """What every engine has: a cache, a host tier, two channels of loaders."""

    def __init__(self, fleet: TwinFleet, index: int) -> None:
        self.fleet = fleet
        self.world = fleet.world
        self.scenario = fleet.world.scenario
        self.index = index
        self.jobs: list[Job] = []  # everybody who ever came
        self.uses_since_load = dict.fromkeys(range(len(self.world.weights)), 0)
        self.resident: set[int] = set()
        self.host: list[int] = []  # least recently used first
        self.eviction = self.make_eviction()
        self.queues: dict[int, list[Load]] = {HOST: [], STORAGE: []}
        self.loading: list[Load] = []
        self.boundary: float | None = None
        self.step_start_s = -1.0
        self.step_blocked = 0
        self.in_step: list[Job] = []
        self.evictions = 0
        self.in_use_peak = self.weight(set(self.world.pinned))
        self.fill()

    def make_eviction(self) -> Any:
        world = self.world
        weights, capacity = world.weights, world.capacity
        if self.scenario.cache.gpu.unified:
            weights, capacity = world.adapter_blocks, world.kv_tokens // self.scenario.fleet.block_size
        luck = stream(self.scenario.run.seed, self.fleet.replication, "eviction", self.index).random
        name = self.scenario.cache.eviction
        return NAIVE[name](weights, capacity, luck, self.next_use, lambda: self.fleet.now)

    def next_use(self, adapter: int) -> float:
        """Index of the next job that will use an adapter: one that waits here and has not, or one still to come."""
        waiting = [job for job in self.inside() if not job.uses]
        to_come = [job for job in self.fleet.jobs if job.replica < 0 and job.status != REFUSED]
        return min((job.index for job in waiting + to_come if job.adapter == adapter), default=math.inf)

    def fill(self) -> None:
        """Bring in who is there from the start, the most popular last."""
        self.resident = set(self.world.pinned)
        there = []
        for adapter in self.world.warm:
            if not self.has_room(self.resident, adapter):
                break
            self.resident.add(adapter)
            there.append(adapter)
        for adapter in reversed(there):
            self.eviction.loaded(adapter)
            self.eviction.idle(adapter)
        for adapter in reversed([*self.world.pinned, *there]):
            self.keep_copy(adapter, STORAGE)

    def has_room(self, staying: set[int], adapter: int) -> bool:
        return self.weight(staying | {adapter}) <= self.world.capacity

    # Counting -----------------------------------------------------------------------------------------------------

    def inside(self) -> list[Job]:
        return [job for job in self.jobs if job.place != "gone"]

    def at(self, place: str) -> list[Job]:
        return sorted((job for job in self.jobs if job.place == place), key=lambda job: job.key)

    def in_use(self) -> set[int]:
        return {job.adapter for job in self.inside() if job.uses and job.adapter != BASE} | set(self.world.pinned)

    def there(self, adapter: int) -> bool:
        """Whether nothing has to be loaded for it."""
        return adapter in self.resident or adapter == BASE

    def weight(self, adapters: set[int]) -> int:
        return sum(self.world.weights[adapter] for adapter in adapters)

    def fits(self, adapter: int) -> bool:
        """Whether an adapter may be claimed beside all that are in use or asked for."""
        if adapter == BASE:
            return True
        return self.weight(self.in_use() | {adapter}) <= self.world.capacity or adapter in self.in_use()

    def use(self, job: Job) -> None:
        """What counts beside the load is every use but the first, which is what the load was for."""
        job.uses = True
        if job.adapter in self.resident:
            self.uses_since_load[job.adapter] += 1
            if self.uses_since_load[job.adapter] > 1:
                self.eviction.touched(job.adapter)
        self.in_use_peak = max(self.in_use_peak, self.weight(self.in_use()))

    # Loads --------------------------------------------------------------------------------------------------------

    def placed(self) -> set[int]:
        return self.resident | {load.adapter for load in self.loading}

    def take_room(self, adapter: int, spared: set[int] | None = None) -> bool:
        """Evict what must go for ``adapter``, but not those spared; False, and nothing, where that can't help."""
        if not self.has_room(self.placed() - self.ready(spared), adapter):
            return False
        self.eviction.coming(adapter)
        while not self.has_room(self.placed(), adapter):
            self.evict(self.eviction.choose(self.ready(spared)))
        return True

    def ready(self, spared: set[int] | None = None) -> set[int]:
        """Who may leave."""
        return self.resident - self.in_use() - (spared or set())

    def evict(self, adapter: int) -> None:
        self.resident.remove(adapter)
        self.evictions += 1

    def came(self, adapter: int) -> None:
        """A load has ended; those who joined it use the adapter beside the one for whom it was made."""
        self.resident.add(adapter)
        self.eviction.loaded(adapter)
        users = [job for job in self.inside() if job.uses and job.adapter == adapter]
        self.uses_since_load[adapter] = len(users)
        for _ in users[1:]:
            self.eviction.touched(adapter)
        if adapter not in self.in_use():
            self.eviction.idle(adapter)

    def host_weight(self, adapter: int) -> int:
        return 1 if self.scenario.cache.host.slots is not None else int(self.world.population.size_bytes[adapter])

    def source(self, job: Job) -> tuple[int, float]:
        if job.adapter in self.host:
            self.host.remove(job.adapter)
            self.host.append(job.adapter)
            return HOST, job.host_load_s
        return STORAGE, job.load_s

    def keep_copy(self, adapter: int, tier: int) -> None:
        spec = self.scenario.cache.host
        if spec is None or tier == HOST:
            return
        capacity = spec.slots if spec.slots is not None else spec.size
        if self.host_weight(adapter) > capacity:
            return
        while sum(self.host_weight(a) for a in self.host) + self.host_weight(adapter) > capacity:
            self.host.pop(0)
        self.host.append(adapter)

    def ask(self, job: Job, now: float) -> None:
        """Queue the load of a job's adapter, or join the one under way."""
        self.use(job)
        job.asked_s, job.place = now, "loading"
        for load in self.queues[HOST] + self.queues[STORAGE] + self.loading:
            if load.adapter == job.adapter:
                load.jobs.append(job)
                job.outcome, job.tier = DELAYED_HIT, load.tier
                return
        job.outcome = MISS
        job.tier, seconds = self.source(job)
        self.queues[job.tier].append(Load(job.adapter, job.tier, seconds, now, [job]))
        self.start_loads(now)

    def start_loads(self, now: float) -> None:
        for tier, loaders in ((HOST, self.scenario.storage.host_loaders), (STORAGE, self.scenario.storage.loaders)):
            queue = self.queues[tier]
            while queue and sum(load.tier == tier for load in self.loading) < loaders:
                if not self.take_room(queue[0].adapter):
                    break
                load = queue.pop(0)
                load.started_s, load.made = now, self.fleet.count()
                self.loading.append(load)

    def end_load(self, load: Load, now: float) -> None:
        self.loading.remove(load)
        self.came(load.adapter)
        self.keep_copy(load.adapter, load.tier)
        self.fleet.loads.append((load.started_s, now, load.adapter, load.tier, load.asked_s))
        for job in load.jobs:
            job.load_wait_s = now - job.asked_s
            job.load_queue_s = max(0.0, load.started_s - job.asked_s)
            self.stand_in_line(job, now)
        if not load.jobs and self.boundary is None and self.at("line"):
            self.boundary = now
        self.start_loads(now)

    def load_ahead(self, now: float) -> None:
        """Begin the loads that may begin for those in the queue; a boundary of this instant comes first."""
        if self.scenario.cache.prefetch == "queued" and self.boundary != now:
            while not self.asked_for() and self.load_one_ahead(now):
                pass

    def asked_for(self) -> list[Load]:
        """Loads that wait for a loader or for room."""
        return self.queues[HOST] + self.queues[STORAGE]

    def load_one_ahead(self, now: float) -> bool:
        queued = sorted(self.at("line") + self.at("aside"), key=lambda job: job.key)
        loaders = {HOST: self.scenario.storage.host_loaders, STORAGE: self.scenario.storage.loaders}
        for job in queued:
            tier = self.tier_of(job)
            if job.adapter in self.placed() | self.in_use() | {BASE} or self.loaders_busy(tier) == loaders[tier]:
                continue
            if not self.take_room(job.adapter, {other.adapter for other in queued}):
                return False
            tier, seconds = self.source(job)
            load = Load(job.adapter, tier, seconds, now, [])
            load.started_s, load.made = now, self.fleet.count()
            self.loading.append(load)
            return True
        return False

    def tier_of(self, job: Job) -> int:
        return HOST if job.adapter in self.host else STORAGE

    def loaders_busy(self, tier: int) -> int:
        return sum(load.tier == tier for load in self.loading)

    # Life of a job ------------------------------------------------------------------------------------------------

    def arrive(self, job: Job, now: float) -> None:
        job.replica, job.target, job.key = self.index, job.prompt, job.index
        self.jobs.append(job)
        if self.scenario.load_at == "arrival" or self.scenario.fleet.engine == "fixed":
            if not self.there(job.adapter):
                self.ask(job, now)
                return
            self.use(job)
        self.stand_in_line(job, now)

    def stand_in_line(self, job: Job, now: float) -> None:
        job.place = "line"
        if self.boundary is None:
            self.boundary = now

    def leave(self, job: Job, now: float) -> None:
        job.place, job.finished_s, job.status, job.uses = "gone", now, COMPLETED, False
        if job.adapter in self.resident and job.adapter not in self.in_use():
            self.eviction.idle(job.adapter)
        self.start_loads(now)

    def at_boundary(self, now: float) -> None:
        if self.step_start_s >= 0:
            self.end_step(now)
        self.compose(now)

    def log_step(self, start: float, end: float) -> None:
        self.fleet.running_area += len(self.in_step) * (end - start)
        self.fleet.steps.append((start, end, self.step_blocked))

    def end_step(self, now: float) -> None:
        raise NotImplementedError

    def compose(self, now: float) -> None:
        raise NotImplementedError


class OneByOne(Replica):
    """Engine ``fixed``: first ready, first served."""

    def stand_in_line(self, job: Job, now: float) -> None:
        job.key = self.fleet.count()
        super().stand_in_line(job, now)

    def end_step(self, now: float) -> None:
        self.log_step(self.step_start_s, now)
        (job,) = self.in_step
        job.first_token_s = now
        self.leave(job, now)

    def compose(self, now: float) -> None:
        line = self.at("line")
        self.in_step, self.step_start_s, self.boundary = line[:1], -1.0, None
        for job in self.in_step:
            job.place, job.admitted_s, self.step_start_s = "running", now, now
            self.boundary = now + job.service_s


class Batching(Replica):
    """Engine ``continuous``, step by step. ``running`` is in order of admission."""

    def __init__(self, fleet: TwinFleet, index: int) -> None:
        super().__init__(fleet, index)
        self.running: list[Job] = []
        self.front = 0
        self.passed = 0  # waiting jobs that this step's scan of the queue left behind for want of room

    def blocks(self, tokens: int) -> int:
        return math.ceil(tokens / self.scenario.fleet.block_size)

    def pool(self) -> int:
        """All KV blocks."""
        return self.world.kv_tokens // self.scenario.fleet.block_size

    def free_blocks(self) -> int:
        """Blocks that are free when every decode has those of its next token."""
        free = self.pool()
        for job in self.running:
            free -= self.blocks(job.prompt + job.generated) if job.decoding else self.blocks(job.prefilled)
        return free

    def end_step(self, now: float) -> None:
        self.log_step(self.step_start_s, now)
        finished = []
        decodes = [job for job in self.running if job.decoding]
        completed = [job for job in self.running if not job.decoding and job.prefilled == job.target]
        for job in sorted(decodes, key=lambda job: job.index) + completed:
            job.generated += 1
            job.decoding = True
            if job.first_token_s < 0:
                job.first_token_s = now
            else:
                self.fleet.gaps.append((self.step_start_s, now - job.last_token_s))
            job.last_token_s = now
            if job.generated == job.output:
                finished.append(job)
        for job in finished:
            self.running.remove(job)
        for job in finished:
            self.leave(job, now)

    def preempt(self, job: Job) -> None:
        self.running.remove(job)
        self.front -= 1
        job.place, job.key, job.decoding = "line", self.front, False
        job.target, job.prefilled = job.prompt + job.generated, 0
        job.preemptions += 1

    def compose(self, now: float) -> None:
        preempted = False
        while self.free_blocks() < 0:
            self.preempt(self.victim())
            preempted = True
        budget = self.scenario.fleet.max_num_batched_tokens - sum(job.decoding for job in self.running)
        chunks: list[tuple[Job, int, int]] = []
        for job in [job for job in self.running if not job.decoding]:
            chunk = min(job.target - job.prefilled, budget)
            need = self.blocks(job.prefilled + chunk) - self.blocks(job.prefilled)
            while job in self.running and need > self.free_blocks():
                self.preempt(self.victim())
                preempted = True
            if job in self.running:
                chunks.append((job, chunk, job.prefilled))
                job.prefilled += chunk
                budget -= chunk
        self.step_blocked = self.passed = 0
        fresh = [] if preempted else self.admit(budget, chunks, now)
        self.in_step = list(self.running)
        self.step_start_s, self.boundary = -1.0, None
        if self.running:
            load_s = self.load_in_step(fresh, now)
            self.step_start_s = now
            self.boundary = now + load_s + self.step_seconds(chunks)

    def admit(self, budget: int, chunks: list[tuple[Job, int, int]], now: float) -> list[Job]:
        """Let jobs join; return those who did not use their adapter before."""
        fresh: list[Job] = []
        seen = -math.inf  # the scan has come to this key
        while budget > 0:
            if len(self.running) == self.scenario.fleet.max_num_seqs:
                self.step_blocked = 1 if self.at("line") or self.at("aside") else 0
                break
            job = self.next_in_line(now)
            seen = math.inf if job is None else job.key
            if job is None:
                break
            whole = self.scenario.fleet.kv_check == "whole-prompt"
            if self.blocks(job.target if whole else min(job.target, budget)) > self.free_blocks():
                self.step_blocked = 2
                break
            if not job.uses:
                self.use(job)
                fresh.append(job)
            job.place = "running"
            if job.admitted_s < 0:
                job.admitted_s = now
            job.prefilled = min(job.target, budget)
            budget -= job.prefilled
            chunks.append((job, job.prefilled, 0))
            self.running.append(job)
            self.joins(job)
        self.passed = sum(job.key < seen for job in self.at("aside"))
        return fresh

    def victim(self) -> Job:
        """Return the request that is preempted when KV blocks run out."""
        return self.running[-1]

    def joins(self, job: Job) -> None:
        """A job has joined the batch."""

    def load_in_step(self, fresh: list[Job], now: float) -> float:
        """Perform, one after the other, the loads of a blocking step (others admit only what is resident).

        A job that comes in while its adapter is absent waits for all of them.
        """
        load_s = 0.0
        loaded: dict[int, int] = {}  # the tier of each
        for job in fresh:
            if job.adapter in loaded:
                job.outcome = DELAYED_HIT
            elif not self.there(job.adapter):
                job.outcome = MISS
                tier, seconds = self.source(job)
                assert self.take_room(job.adapter), "a claimed adapter finds room"
                self.came(job.adapter)
                loaded[job.adapter] = tier
                self.keep_copy(job.adapter, tier)
                start = now + load_s
                self.fleet.loads.append((start, start + seconds, job.adapter, tier, start))
                load_s += seconds
        for job in fresh:
            if job.adapter in loaded:
                job.tier, job.load_wait_s = loaded[job.adapter], load_s
        return load_s

    def next_in_line(self, now: float) -> Job | None:
        """Who would be admitted next; asks for loads, and sets those aside that are over the limit, on the way."""
        stop = self.scenario.fleet.admission == "stop"
        blocking = self.scenario.storage.mode == "blocking"
        while True:
            if stop and self.at("loading"):
                return None
            line, aside = self.at("line"), self.at("aside")
            if aside and (not line or aside[0].key < line[0].key) and self.fits(aside[0].adapter):
                self.bring_back(aside[0].adapter)
                continue
            if not line:
                return None
            job = line[0]
            cold = job.adapter in {other.adapter for other in aside}
            if job.uses:
                return job
            if cold and self.fits(job.adapter):
                self.bring_back(job.adapter)  # older ones of its adapter go first
            elif self.there(job.adapter) and (not blocking or self.fits(job.adapter)):
                return job
            elif not self.fits(job.adapter):
                if stop:  # whoever has been chosen before, and was loaded for, goes first
                    chosen = [other for other in line if other.uses]
                    if not chosen:
                        return None
                    self.front -= 1
                    chosen[0].key = self.front
                    continue
                job.place = "aside"
            elif blocking:
                return job
            else:
                self.ask(job, now)

    def bring_back(self, adapter: int) -> None:
        for job in self.at("aside"):
            if job.adapter == adapter:
                job.place = "line"

    def step_seconds(self, chunks: list[tuple[Job, int, int]]) -> float:
        """The formula of model.md 4, term by term."""
        cost, ranks = self.world.profile.step, self.world.ranks
        decodes = [job for job in self.running if job.decoding]
        tokens = [(job, 1) for job in decodes] + [(job, chunk) for job, chunk, _ in chunks]
        adapters = {job.adapter for job in self.running} - {BASE}
        gpu = self.scenario.cache.gpu
        slots = 0 if gpu.unified else gpu.slots
        if slots is None:
            slots = max(1, int(gpu.size / float(self.world.population.size_bytes.mean())))
        lora = 0.0
        if adapters:  # a step for the base model alone runs without it
            lora = (
                cost.lora.fixed_s
                + cost.lora.per_slot_s * slots
                + cost.lora.per_slot_token_s * slots * sum(count for _, count in tokens)
                + cost.lora.per_slot_prefill_token_s * slots * sum(count for _, count, _ in chunks)
                + cost.lora.per_adapter_s * len(adapters)
                + cost.lora.per_adapter_max_rank_s * max(ranks) * len(adapters)
                + cost.lora.per_adapter_rank_s * sum(ranks[adapter] for adapter in adapters)
                + cost.lora.per_token_rank_s
                * sum(count * ranks[job.adapter] for job, count in tokens if job.adapter != BASE)
                + cost.lora.per_sequence_max_rank_s * max(ranks) * len(self.running)
            )
        return (
            cost.fixed_s
            + _interpolated(cost.tokens, sum(count for _, count in tokens))
            + cost.per_sequence_s * len(self.running)
            + cost.per_kv_token_s * sum(job.prompt + job.generated for job in decodes)
            + cost.per_attended_token_s * sum(sum(range(a + 1, a + n + 1)) for _, n, a in chunks)
            + (cost.prefill_step_s if chunks else 0)
            + (cost.decode_step_s if decodes else 0)
            + cost.per_passed_s * self.passed
            + lora
        )


class Touching(Batching):
    """vLLM: before every step, every adapter of the batch is touched in both tiers, in the order of a set."""

    def __init__(self, fleet: TwinFleet, index: int) -> None:
        super().__init__(fleet, index)
        world, replication = self.world, fleet.replication
        rng = stream(self.scenario.run.seed, replication, "set-order", index)
        self.keys = rng.integers(2**61 - 1, size=len(world.population)).tolist()
        self.reload_s = reload_times(
            tier_times(self.scenario, world.profile, world.population),
            ReplicaDraws(self.scenario.run.seed, replication, index),
        )
        self.slots: list[int] = list(reversed(world.warm[: world.capacity]))  # least recently touched first
        self.host = list(self.slots)  # the same
        self.batch: list[int] = []  # adapters in use, in the order in which they came in

    def order(self) -> list[int]:
        """Return the batch as a Python set of its adapters' hashes is walked."""
        adapters = {self.keys[adapter]: adapter for adapter in self.batch}
        return [adapters[key] for key in set([self.keys[adapter] for adapter in self.batch])]  # noqa: C403

    def fill(self) -> None:
        self.resident = set(self.world.warm[: self.world.capacity])

    def pool(self) -> int:
        fleet = self.scenario.fleet
        return fleet.kv_tokens // fleet.block_size - fleet.reserved_kv_blocks

    def use(self, job: Job) -> None:
        super().use(job)
        if job.adapter not in [*self.batch, BASE]:
            self.batch.append(job.adapter)

    def leave(self, job: Job, now: float) -> None:
        super().leave(job, now)
        self.batch = [adapter for adapter in self.batch if adapter in self.in_use()]

    def preempt(self, job: Job) -> None:
        super().preempt(job)
        job.uses = False
        self.batch = [adapter for adapter in self.batch if adapter in self.in_use()]

    def load_in_step(self, fresh: list[Job], now: float) -> float:
        """Touch the batch. A job that comes in while its adapter is absent waits for all loads of its step."""
        missing = [job for job in fresh if job.adapter not in [*self.slots, BASE]]
        bringers = {job.adapter: job for job in reversed(missing)}
        time, tiers = now, {}
        for adapter in self.order():
            tier = self.touch_host(adapter)
            if adapter in self.slots:
                self.slots.remove(adapter)
                self.slots.append(adapter)
                continue
            if len(self.slots) == self.world.capacity:
                self.slots.pop(0)
                self.evictions += 1
            self.slots.append(adapter)
            tiers[adapter] = tier
            if adapter in bringers:
                seconds = bringers[adapter].load_s if tier == STORAGE else bringers[adapter].host_load_s
            else:
                seconds = self.reload_s(adapter, tier)
            self.fleet.loads.append((time, time + seconds, adapter, tier, time))
            time += seconds
        for job in missing:
            if job.preemptions == 0:
                job.outcome = MISS if job is bringers[job.adapter] else DELAYED_HIT
                job.tier, job.load_wait_s = tiers[job.adapter], time - now
        self.resident = set(self.slots)
        return time - now

    def touch_host(self, adapter: int) -> int:
        """Make sure of a copy in host memory; return where a load would come from."""
        if adapter in self.host:
            self.host.remove(adapter)
            self.host.append(adapter)
            return HOST
        spec = self.scenario.cache.host
        if len(self.host) == (self.world.capacity if spec is None else spec.slots):
            dropped = self.host.pop(0)
            if dropped in self.slots:
                self.slots.remove(dropped)
                self.evictions += 1
        self.host.append(adapter)
        return STORAGE


class Requeueing(Touching):
    """vLLM 0.9.2 to 0.13 and 0.18 to 0.30: its queues as lists, every step as its scheduler writes it."""

    def __init__(self, fleet: TwinFleet, index: int) -> None:
        super().__init__(fleet, index)
        self.main: list[Job] = []
        self.skipped: list[Job] = []  # the queue of their own

    def stand_in_line(self, job: Job, now: float) -> None:
        super().stand_in_line(job, now)
        self.main.append(job)

    def preempt(self, job: Job) -> None:
        super().preempt(job)
        self.main.insert(0, job)

    def admit(self, budget: int, chunks: list[tuple[Job, int, int]], now: float) -> list[Job]:
        fleet = self.scenario.fleet
        joined: list[Job] = []
        skipped: list[Job] = []  # in this step
        while budget > 0 and (self.main or self.skipped):
            if len(self.running) == fleet.max_num_seqs:
                self.step_blocked = 1
                break
            queue = self.skipped or self.main
            job = queue[0]
            if not self.fits(job.adapter):
                skipped.insert(0, queue.pop(0))
                continue
            whole = fleet.kv_check == "whole-prompt"
            if self.blocks(job.target if whole else min(job.target, budget)) > self.free_blocks():
                self.step_blocked = 2
                break
            queue.pop(0)
            self.use(job)
            joined.append(job)
            job.place = "running"
            if job.admitted_s < 0:
                job.admitted_s = now
            job.prefilled = min(job.target, budget)
            budget -= job.prefilled
            chunks.append((job, job.prefilled, 0))
            self.running.append(job)
        if fleet.passed_requests == "own-queue":
            self.skipped = [*reversed(skipped), *self.skipped]
        else:
            self.main = skipped + self.main
        self.passed = len(skipped)
        return joined


def _interpolated(table: Any, x: float) -> float:
    """Linear between the points, along the last two beyond, level before the first."""
    if x <= table[0][0]:
        return float(table[0][1])
    for (x0, y0), (x1, y1) in pairwise(table):
        if x <= x1 or (x1, y1) == tuple(table[-1]):
            return float(y0 + (y1 - y0) * (x - x0) / (x1 - x0))
    raise AssertionError("a table has two points")


class TwinFleet:
    """Replicas and a router; ``run`` returns what happened."""

    def __init__(self, world: World, replication: int = 0) -> None:
        (self.world,) = world.pools
        self.replication = replication
        self.now = 0.0
        self.jobs: list[Job] = []
        self.loads: list[tuple[float, float, int, int, float]] = []
        self.steps: list[tuple[float, float, int]] = []
        self.running_area = 0.0
        self.gaps: list[tuple[float, float]] = []
        self._counter = 0
        self._turn = 0
        make = self.kind()
        self.replicas = [make(self, index) for index in range(world.scenario.fleet.replicas)]

    def kind(self) -> type[Replica]:
        if self.world.scenario.cache.eviction == "vllm-lru":
            return Touching if self.world.scenario.fleet.passed_requests == "keep-order" else Requeueing
        return OneByOne if self.world.scenario.fleet.engine == "fixed" else Batching

    def count(self) -> int:
        """A number that grows: what was made first has the lower one."""
        self._counter += 1
        return self._counter

    def run(self) -> Result:
        world = self.world
        jobs = [job for chunk in world.traffic.chunks(self.replication) for job in _jobs(world, chunk)]
        end_s = world.scenario.workload.duration
        if end_s is not None:
            jobs = [job for job in jobs if job.arrival_s < end_s]  # the end comes before all else of its instant
        clients = None if world.traffic.closed_loop is None else TwinClients(world, self.replication, jobs)
        to_come, self.jobs = list(jobs), jobs
        now = 0.0
        while True:
            events: list[tuple[float, int, int, Any]] = []
            if clients is not None:
                if to_come and clients.due:
                    events.append((min(clients.due), ARRIVAL, 0, lambda now: self.send(clients, to_come, now)))
            elif to_come:
                events.append((to_come[0].arrival_s, ARRIVAL, 0, lambda now: self.arrivals(to_come, now)))
            for replica in self.replicas:
                if replica.boundary is not None:
                    events.append((replica.boundary, BOUNDARY, replica.index, replica.at_boundary))
                for load in replica.loading:
                    at = load.started_s + load.seconds
                    events.append((at, LOAD_END, load.made, lambda now, r=replica, load=load: r.end_load(load, now)))
            if not events:
                break
            time, _, _, happen = min(events, key=lambda event: event[:3])
            if end_s is not None and time >= end_s:
                now = end_s
                break
            now = self.now = time
            happen(now)
            for replica in self.replicas:
                replica.load_ahead(now)
            if clients is not None:
                clients.go_on(now)
        jobs = [job for job in jobs if job.arrival_s >= 0]  # in a closed loop, some are never sent
        now = end_s if end_s is not None else now
        for replica in self.replicas:
            if 0 <= replica.step_start_s < now:
                replica.log_step(replica.step_start_s, now)  # it is under way, and gives nobody a token
        for load in [load for replica in self.replicas for load in replica.loading]:
            self.loads.append((load.started_s, now, load.adapter, load.tier, load.asked_s))
        served = [job for job in jobs if job.status != REFUSED]
        sojourns = [(job.finished_s if job.status == COMPLETED else now) - job.arrival_s for job in served]
        return Result(
            jobs=jobs,
            stopped_s=now,
            loads=self.loads,
            evictions=sum(replica.evictions for replica in self.replicas),
            in_use_peak=max(replica.in_use_peak for replica in self.replicas),
            running_area=self.running_area,
            inside_area=sum(sojourns),
            gaps=self.gaps,
            steps=self.steps,
        )

    def send(self, clients: TwinClients, to_come: list[Job], now: float) -> None:
        """Let one client send the next job."""
        clients.due.remove(now)
        to_come[0].arrival_s = now
        self.arrivals(to_come, now)

    def arrivals(self, to_come: list[Job], now: float) -> None:
        """Let in everybody of this instant."""
        while to_come and to_come[0].arrival_s == now:
            job = to_come.pop(0)
            limit = self.world.kv_tokens
            if limit is not None and job.prompt + job.output > limit:
                job.status = REFUSED
            else:
                self.arrive_at(self.route(), job, now)

    def arrive_at(self, replica: Replica, job: Job, now: float) -> None:
        replica.arrive(job, now)
        replica.load_ahead(now)

    def route(self) -> Replica:
        if self.world.scenario.router.policy == "least-loaded":
            return min(self.replicas, key=lambda replica: (len(replica.inside()), replica.index))
        chosen = self.replicas[self._turn % len(self.replicas)]
        self._turn += 1
        return chosen


class TwinClients:
    """The clients of a closed loop: when each sends its next job, and whose answers they have seen."""

    def __init__(self, world: World, replication: int, jobs: list[Job]) -> None:
        loop, seed = world.traffic.closed_loop, world.scenario.run.seed
        first = stream_key(seed, replication, "first-think")
        self.key = stream_key(seed, replication, "think")
        self.loop = loop
        self.jobs = jobs
        self.seen: set[int] = set()
        self.due = [self.think(first, client) for client in range(loop.concurrency)]

    def think(self, key: int, number: int) -> float:
        return float(self.loop.think.ppf(np.array([uniform_draw(key, number)]))[0])

    def go_on(self, now: float) -> None:
        for job in self.jobs:
            if job.index in self.seen or job.status not in (COMPLETED, REFUSED):
                continue
            self.seen.add(job.index)
            seconds = self.think(self.key, job.index)
            self.due.append(now + (max(0.125, seconds) if job.status == REFUSED else seconds))


def _jobs(world: World, chunk: Any) -> list[Job]:
    scenario, profile = world.scenario, world.profile
    adapters = chunk.adapter

    def seconds(law: Any, tier: Any, luck: Any) -> Any:
        if law is not None:
            return law.ppf(luck)
        if tier is None:
            return np.zeros(len(luck))
        return load_seconds(tier, world.population)[adapters] * residual(tier, luck)

    tiers = profile.load if profile is not None else None
    load = seconds(scenario.storage.load, tiers and tiers.storage, chunk.load_uniform)
    host_load = seconds(scenario.storage.host_load, tiers and tiers.host, chunk.host_load_uniform)
    service = seconds(scenario.fleet.service, None, chunk.service_uniform)
    return [
        Job(
            chunk.first + i,
            float(chunk.arrival_s[i]),
            int(adapters[i]),
            int(chunk.prompt_tokens[i]),
            int(chunk.output_tokens[i]),
            float(load[i]),
            float(host_load[i]),
            float(service[i]),
        )
        for i in range(len(chunk))
    ]
