"""The naive twin of the engines that differ from vLLM: all rules of ``fleet``, ``cache`` and ``storage``, step by step.

As in ``naive``, everything is counted anew whenever it is asked.
"""

from __future__ import annotations

import math
from typing import Any

from naive import (
    BASE,
    COMPLETED,
    DELAYED_HIT,
    GPU,
    HOST,
    MISS,
    REFUSED,
    STORAGE,
    Batching,
    Job,
    Load,
    Replica,
    TwinFleet,
)


class Engine(Batching):
    def __init__(self, fleet: TwinFleet, index: int) -> None:
        self.need = 0
        self.base_resident = fleet.world.scenario.cache.gpu.base_model_slot
        self.fetched: set[int] = set()
        self.fetched_idle_since: dict[int, int] = {}
        super().__init__(fleet, index)
        self.prefill_only = False
        self.decode_steps = 0
        self.joined_at = 0

    # Memory ----------------------------------------------------------------------------------------------------------

    def taken(self, adapters: set[int]) -> int:
        return self.weight(adapters) + self.base_resident

    def placed(self) -> set[int]:
        return self.resident | {load.adapter for load in self.loading if load.tier != STORAGE or not self.fetches()}

    def base_uses(self) -> int:
        """Slots that jobs for the base model hold: with loads in steps, and a slot for it, one for all of them."""
        gpu, storage = self.scenario.cache.gpu, self.scenario.storage
        needed = gpu.base_model_slot and storage.mode == "blocking"
        return int(needed and any(job.uses and job.adapter == BASE for job in self.inside()))

    def fits(self, adapter: int) -> bool:
        gpu, storage = self.scenario.cache.gpu, self.scenario.storage
        if not gpu.base_model_slot or storage.mode != "blocking":
            return super().fits(adapter)
        if adapter == BASE:
            return self.base_uses() > 0 or self.weight(self.in_use()) + 1 <= self.world.capacity
        beside = self.weight(self.in_use() | {adapter}) + self.base_uses()
        return beside <= self.world.capacity or adapter in self.in_use()

    def use(self, job: Job) -> None:
        super().use(job)
        if job.adapter == BASE and self.base_uses() and not self.base_resident:
            while self.taken(self.placed()) + 1 > self.world.capacity:
                self.evict(self.eviction.choose(self.ready()))
            self.base_resident = True
        self.in_use_peak = max(self.in_use_peak, self.weight(self.in_use()) + self.base_uses())

    def take_room(self, adapter: int, spared: set[int] | None = None) -> bool:
        base_goes = self.base_resident and spared is None and not self.base_uses()
        least = self.taken(self.placed() - self.ready(spared)) + self.world.weights[adapter] - base_goes
        if least > self.world.capacity:
            return False
        self.eviction.coming(adapter)
        while not self.has_blocks(self.placed(), adapter):
            self.evict(self.eviction.choose(self.ready(spared)))
        while not self.has_room(self.placed(), adapter):
            if self.ready(spared):
                self.evict(self.eviction.choose(self.ready(spared)))
            else:
                self.base_resident = False
        return True

    def has_room(self, staying: set[int], adapter: int) -> bool:
        fits = self.taken(staying) + self.world.weights[adapter] <= self.world.capacity
        return fits and self.has_blocks(staying, adapter)

    def has_blocks(self, staying: set[int], adapter: int) -> bool:
        return not self.scenario.cache.gpu.unified or self.blocks_of(staying | {adapter}) <= self.pool() - self.need

    def pool(self) -> int:
        return self.world.kv_tokens // self.scenario.fleet.block_size

    def blocks_of(self, adapters: set[int]) -> int:
        return sum(self.world.adapter_blocks[adapter] for adapter in adapters if adapter != BASE)

    def shrink(self) -> None:
        """Where adapters share the KV cache: idle ones leave to the batch what it may take."""
        while self.blocks_of(self.resident) > self.pool() - self.need:
            self.evict(self.eviction.choose(self.ready()))

    def source(self, job: Job) -> tuple[int, float]:
        host = self.scenario.cache.host
        return (HOST, job.host_load_s) if host is not None and host.fill != "load" else super().source(job)

    def tier_of(self, job: Job) -> int:
        host = self.scenario.cache.host
        return HOST if host is not None and host.fill != "load" else super().tier_of(job)

    def keep_copy(self, adapter: int, tier: int) -> None:
        if self.scenario.cache.host is None or self.scenario.cache.host.fill == "load":
            super().keep_copy(adapter, tier)

    def fill(self) -> None:
        super().fill()
        if not self.fetches():
            return
        self.fetched = set(self.world.pinned)
        there = []
        for adapter in [adapter for adapter in self.world.warm if adapter in self.resident]:
            if not self.host_fits(self.fetched | {adapter}):
                break
            self.fetched.add(adapter)
            there.append(adapter)
        for adapter in reversed(there):
            self.fetched_idle_since[adapter] = self.fleet.count()

    def asked_for(self) -> list[Load]:
        return self.queues[HOST] if self.fetches() else super().asked_for()

    # Host memory that fills at arrival -------------------------------------------------------------------------------

    def fetches(self) -> bool:
        host = self.scenario.cache.host
        return host is not None and host.fill == "arrival"

    def held(self) -> set[int]:
        return {job.adapter for job in self.jobs if job.held} | set(self.world.pinned)

    def host_fits(self, adapters: set[int]) -> bool:
        host = self.scenario.cache.host
        if host.slots is not None:
            return len(adapters) <= host.slots
        sizes = self.world.population.size_bytes
        return host.size is None or sum(int(sizes[adapter]) for adapter in adapters) <= host.size

    def arrive(self, job: Job, now: float) -> None:
        if not self.fetches() or job.adapter == BASE:
            super().arrive(job, now)
            return
        job.replica, job.target, job.key = self.index, job.prompt, job.index
        if self.scenario.cache.host.full == "reject" and not self.host_fits(self.held() | {job.adapter}):
            job.status = REFUSED
            return
        self.jobs.append(job)
        job.held = True
        if job.adapter in self.fetched:
            self.jobs.remove(job)
            super().arrive(job, now)
            return
        job.asked_s, job.place = now, "fetching"
        for load in self.queues[STORAGE] + self.loading:
            if load.adapter == job.adapter and load.tier == STORAGE:
                load.jobs.append(job)
                job.fetch_outcome = DELAYED_HIT
                return
        job.fetch_outcome = MISS
        self.queues[STORAGE].append(Load(job.adapter, STORAGE, job.load_s, now, [job]))
        self.start_loads(now)

    def start_loads(self, now: float) -> None:
        if not self.fetches():
            super().start_loads(now)
            return
        self.start(HOST, self.scenario.storage.host_loaders, self.take_room, now)
        self.start(STORAGE, self.scenario.storage.loaders, self.take_host_room, now)

    def start(self, tier: int, loaders: int, take_room: Any, now: float) -> None:
        queue = self.queues[tier]
        while queue and sum(load.tier == tier for load in self.loading) < loaders and take_room(queue[0].adapter):
            load = queue.pop(0)
            load.started_s, load.made = now, self.fleet.count()
            self.loading.append(load)

    def take_host_room(self, adapter: int) -> bool:
        staying = self.fetched | {load.adapter for load in self.loading if load.tier == STORAGE} | {adapter}
        idle = sorted(self.fetched - self.held(), key=lambda a: self.fetched_idle_since[a])
        while not self.host_fits(staying):
            if not idle:
                return False
            staying.remove(idle.pop(0))
        self.fetched &= staying
        return True

    def end_load(self, load: Load, now: float) -> None:
        if not self.fetches() or load.tier == HOST:
            super().end_load(load, now)
            return
        self.loading.remove(load)
        self.fetched.add(load.adapter)
        self.fleet.loads.append((load.started_s, now, load.adapter, STORAGE, load.asked_s))
        for job in load.jobs:
            job.fetch_wait_s, job.fetch_queue_s = now - job.asked_s, max(0.0, load.started_s - job.asked_s)
            self.jobs.remove(job)
            super().arrive(job, now)
        self.start_loads(now)

    def leave(self, job: Job, now: float) -> None:
        super().leave(job, now)
        if job.held:
            job.held = False
            if job.fetch_outcome:
                job.outcome, job.tier = max(job.outcome, job.fetch_outcome), STORAGE
                job.load_wait_s += job.fetch_wait_s
                job.load_queue_s += job.fetch_queue_s
            if job.adapter not in self.held():
                self.fetched_idle_since[job.adapter] = self.fleet.count()
            self.start_loads(now)

    # Steps -----------------------------------------------------------------------------------------------------------

    def end_step(self, now: float) -> None:
        self.log_step(self.step_start_s, now)
        decodes = [] if self.prefill_only else [job for job in self.running if job.decoding]
        completed = [job for job in self.running if not job.decoding and job.prefilled == job.target]
        finished = []
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
        self.decode_steps += bool(decodes)
        for job in finished:
            self.running.remove(job)
        for job in finished:
            self.leave(job, now)
        if self.scenario.cache.eviction == "discard-when-idle" and finished and decodes:
            self.evictions += len(self.resident - self.in_use())
            self.resident &= self.in_use()

    def compose(self, now: float) -> None:
        fleet = self.scenario.fleet
        alone = fleet.batching == "prefill-first"
        preempted = False
        while self.free_blocks() < 0:
            self.preempt(self.running[-1])
            preempted = True
        budget = token_budget(self.world) - (0 if alone else sum(job.decoding for job in self.running))
        chunks: list[tuple[Job, int, int]] = []
        for job in [job for job in self.running if not job.decoding]:
            chunk = min(job.target - job.prefilled, budget)
            if self.blocks(job.prefilled + chunk) - self.blocks(job.prefilled) > self.free_blocks():
                self.preempt(job)
                preempted = True
            elif chunk:
                chunks.append((job, chunk, job.prefilled))
                job.prefilled += chunk
                budget -= chunk
        self.step_blocked = self.passed = 0
        fresh: list[Job] = []
        if not preempted and self.may_look():
            before = len(self.running)
            fresh = self.admit(budget, chunks, now)
            if len(self.running) > before:
                self.joined_at = self.decode_steps
        self.in_step = list(self.running)
        self.step_start_s, self.boundary = -1.0, None
        self.prefill_only = alone and bool(chunks)
        if self.running:
            if chunks and self.scenario.cache.gpu.unified:
                self.shrink()
            load_s = self.load_in_step(fresh, now)
            self.step_start_s = now
            if self.prefill_only:
                everybody, self.running = self.running, [job for job, _, _ in chunks]
                seconds = self.step_seconds(chunks)
                self.running = everybody
            else:
                seconds = self.step_seconds(chunks)
            self.boundary = now + load_s + seconds

    def may_look(self) -> bool:
        fleet = self.scenario.fleet
        steps = self.decode_steps - self.joined_at
        if fleet.admission_interval == 1 or not self.running or steps >= fleet.admission_interval:
            return True
        enough = len(self.waiting()) >= int(len(self.running) * fleet.waiting_ratio)
        return bool(fleet.waiting_ratio) and steps >= 1 and enough

    def waiting(self) -> list[Job]:
        return self.at("line") + self.at("aside")

    def admit(self, budget: int, chunks: list[tuple[Job, int, int]], now: float) -> list[Job]:
        fresh: list[Job] = []
        fleet, seen = self.scenario.fleet, -math.inf
        self.begin_pass(now)
        while budget > 0 and len(self.running) < fleet.max_num_seqs:
            job = self.next_in_line(now)
            seen = math.inf if job is None else job.key
            if job is None or (job.target > budget and not fleet.chunked_prefill) or not self.kv_fits(job, budget):
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
        self.passed = sum(job.key < seen for job in self.at("aside"))
        return fresh

    def begin_pass(self, now: float) -> None:
        """What happens before anybody is looked at."""

    def kv_fits(self, job: Job, budget: int) -> bool:
        check, adapters = self.scenario.fleet.kv_check, {other.adapter for other in [*self.running, job]}
        taken = self.blocks_of(adapters) if self.scenario.cache.gpu.unified else 0
        if check == "whole-answer":
            need = sum(self.blocks(other.prompt + other.output) for other in [*self.running, job])
            fits = need + taken <= self.pool()
        elif check == "peak":
            alive = [_left_and_held(other) for other in [*self.running, job]]
            need = max(sum(held + t for left, held in alive if left >= t) for t, _ in alive)
            fits = need < self.pool() - taken
        else:
            whole = check == "whole-prompt"
            return self.blocks(job.target if whole else min(job.target, budget)) <= self.free_blocks()
        if fits:
            self.need = need
        return fits


def _left_and_held(job: Job) -> tuple[int, int]:
    if job.decoding:
        return job.output - job.generated - 1, job.prompt + job.generated
    return job.output - 1, job.prompt + 1


def token_budget(world: Any) -> int:
    fleet = world.scenario.fleet
    if fleet.budget_kv_share * world.kv_tokens > fleet.max_num_batched_tokens:
        return int(fleet.budget_kv_share * world.kv_tokens)
    return int(fleet.max_num_batched_tokens)


class Queueing(Engine):
    """LoRAX: adapters are active, pending, or neither; ``aside`` are jobs in the queue of their adapter."""

    def __init__(self, fleet: TwinFleet, index: int) -> None:
        super().__init__(fleet, index)
        self.active: list[tuple[int, float]] = []
        self.pending: list[int] = []
        self.on_its_way: set[int] = set()
        self.served: set[int] = set()

    def waiting(self) -> list[Job]:
        return super().waiting() + [
            job
            for load in self.queues[HOST] + self.loading + self.queues[STORAGE]
            for job in load.jobs
            if job in self.jobs and job.handed
        ]

    def queue_of(self, adapter: int) -> list[Job]:
        return [job for job in self.at("aside") if job.adapter == adapter]

    def sort_in(self, now: float) -> None:
        for job in self.at("line"):
            if job.adapter in self.on_its_way:
                self.hand_over(job, now)
                continue
            job.place = "aside"
            if job.adapter not in [adapter for adapter, _ in self.active] + [*self.pending, BASE]:
                self.pending.append(job.adapter)

    def hand_over(self, job: Job, now: float) -> None:
        missed = job.outcome == MISS
        job.load_queue_s, job.handed = 0.0, True
        self.ask(job, now)
        job.uses = False
        if missed:
            job.outcome = MISS

    def use(self, job: Job) -> None:
        if job.place != "loading":
            super().use(job)

    def ask(self, job: Job, now: float) -> None:
        job.place = "loading"
        super().ask(job, now)

    def end_load(self, load: Load, now: float) -> None:
        if load.tier == HOST or not self.fetches():
            self.on_its_way.discard(load.adapter)
        super().end_load(load, now)

    def stand_in_line(self, job: Job, now: float) -> None:
        job.handed = False
        super().stand_in_line(job, now)

    def begin_pass(self, now: float) -> None:
        self.sort_in(now)
        if not self.pending:
            return
        may_go = [(a, t) for a, t in self.active if a not in self.in_use() and a not in self.on_its_way]
        for entry in self.idle_ones()[: len(self.pending)]:
            self.drop(entry)
        if self.active and self.active[0] in may_go and now > self.active[0][1] and self.active[0][0] in self.served:
            entry = self.active[0]
            self.drop(entry)
            if self.queue_of(entry[0]):
                self.pending.append(entry[0])
        while self.pending and self.weight({a for a, _ in self.active} | {self.pending[0]}) <= self.world.capacity:
            adapter = self.pending.pop(0)
            self.active.append((adapter, now + self.scenario.cache.cycle))
            self.on_its_way.add(adapter)
            self.served.discard(adapter)
            for job in self.queue_of(adapter):
                self.hand_over(job, now)

    def idle_ones(self) -> list[tuple[int, float]]:
        return [
            (a, t)
            for a, t in self.active
            if a not in self.in_use() and a not in self.on_its_way and not self.queue_of(a)
        ]

    def admit(self, budget: int, chunks: list[tuple[Job, int, int]], now: float) -> list[Job]:
        fresh = super().admit(budget, chunks, now)
        while not self.running and self.pending and self.idle_ones():  # they are in the way, and nobody else comes
            fresh = super().admit(budget, chunks, now)
        self.served |= {job.adapter for job in fresh}
        self.passed = 0  # queues of adapters are not scanned
        return fresh

    def drop(self, entry: tuple[int, float]) -> None:
        self.active.remove(entry)
        self.resident.remove(entry[0])
        self.evictions += 1

    def next_in_line(self, now: float) -> Job | None:
        self.sort_in(now)
        active = [*self.active, (BASE, math.inf)]  # the base model has a place of its own
        heads = [(now > until, job.key, job) for a, until in active for job in self.queue_of(a)[:1]]
        return min(heads, key=lambda head: head[:2])[2] if heads else None


class EngineFleet(TwinFleet):
    """Replicas by these rules; what can never run is refused."""

    def kind(self) -> type[Replica]:
        return Queueing if self.world.scenario.fleet.admission == "per-adapter" else Engine

    def arrivals(self, to_come: list[Job], now: float) -> None:
        fleet = self.world.scenario.fleet
        while to_come and to_come[0].arrival_s == now:
            job = to_come.pop(0)
            limit = self.world.kv_tokens - (fleet.kv_check == "peak")
            if job.adapter != BASE:
                limit -= fleet.block_size * max(self.world.adapter_blocks, default=0)
            job.held, job.handed, job.fetch_outcome = False, False, 0
            too_long = not fleet.chunked_prefill and job.prompt > token_budget(self.world)
            if job.prompt + job.output > limit or too_long:
                job.status = REFUSED
            else:
                self.arrive_at(self.route(), job, now)


__all__ = ["COMPLETED", "GPU", "EngineFleet"]
