"""Scheduling between tenants, in the most obvious way: priorities as vLLM has them, and counters of what was served."""

from __future__ import annotations

from typing import Any

from naive import BASE, Batching, Job, Replica, Touching, TwinFleet
from naive_engines import Engine, EngineFleet

BIG = 1 << 44


def tenant_of(world: Any, job: Job) -> int:
    return int(world.traffic.tenant_of[-1 if job.adapter == BASE else job.adapter])


class _ByPriority(Batching):
    """The waiting job with the lowest priority goes first, then the one that came first; the last is preempted."""

    def place_of(self, job: Job) -> int:
        return self.scenario.tenants[tenant_of(self.world, job)].priority * BIG + job.index

    def arrive(self, job: Job, now: float) -> None:
        super().arrive(job, now)
        job.key = self.place_of(job)

    def preempt(self, job: Job) -> None:
        super().preempt(job)
        job.key = self.place_of(job)

    def victim(self) -> Job:
        return max(self.running, key=self.place_of)


class PriorityBatching(_ByPriority):
    """Engine ``continuous``."""


class PriorityTouching(_ByPriority, Touching):
    """vLLM: whatever the version does with jobs over the adapter limit, they go back to their places."""

    left_out: tuple[Job, ...] = ()  # behind a job that preempts itself, up to 0.32: they get no token in this step

    def first_that_lacks(self) -> Job | None:
        """The first decoding job, in the order of the batch, for whose next token no block is free."""
        free = self.pool() - sum(
            self.blocks(job.prompt + job.generated - 1 if job.decoding else job.prefilled) for job in self.running
        )
        for job in [job for job in self.running if job.decoding]:
            free -= self.blocks(job.prompt + job.generated) - self.blocks(job.prompt + job.generated - 1)
            if free < 0:
                return job
        return None

    def preempt(self, job: Job) -> None:
        ends_scan = self.scenario.fleet.self_preemption == "ends-scan" and job is self.first_that_lacks()
        behind = self.running[self.running.index(job) + 1 :]
        super().preempt(job)
        if ends_scan:
            self.in_order = list(self.running)
            self.left_out = tuple(behind)
            self.running = [other for other in self.running if other not in behind]
            for other in behind:
                other.uses = False
            self.batch = [adapter for adapter in self.batch if adapter in self.in_use()]

    def free_blocks(self) -> int:
        held = [job.prompt + job.generated - 1 if job.decoding else job.prefilled for job in self.left_out]
        return super().free_blocks() - sum(map(self.blocks, held))

    def compose(self, now: float) -> None:
        super().compose(now)
        self.in_step += self.left_out
        if self.left_out and not self.running:  # nothing is computed, and the next step begins at once
            self.step_start_s = self.boundary = now

    def end_step(self, now: float) -> None:
        super().end_step(now)
        if self.left_out:
            self.running = [job for job in self.in_order if job in self.running or job in self.left_out]
            for job in self.left_out:
                self.use(job)
            self.left_out = ()


class Fair(Batching):
    """The virtual token counter: the tenant with the lowest counter among those that wait goes first."""

    def __init__(self, fleet: TwinFleet, index: int) -> None:
        super().__init__(fleet, index)
        self.counters = [0.0 for _ in self.scenario.tenants]
        self.last: int | None = None

    def waiting_tenants(self) -> set[int]:
        return {tenant_of(self.world, job) for job in self.at("line")}

    def lift(self, job: Job) -> None:
        """A tenant that had nothing in the queue starts from the least of those that have."""
        own, others = tenant_of(self.world, job), self.waiting_tenants()
        if own in others or self.scenario.fleet.scheduling == "lcf":
            return
        if others:
            least = min(self.counters[other] for other in others)
            self.counters[own] = max(self.counters[own], least)
        elif self.last is not None:
            self.counters[own] = max(self.counters[own], self.counters[self.last])

    def stand_in_line(self, job: Job, now: float) -> None:
        self.lift(job)
        super().stand_in_line(job, now)

    def preempt(self, job: Job) -> None:
        self.lift(job)
        super().preempt(job)

    def charge(self, job: Job, tokens: float) -> None:
        own = tenant_of(self.world, job)
        self.counters[own] += tokens / self.scenario.tenants[own].weight

    def joins(self, job: Job) -> None:
        if not job.preemptions:
            self.charge(job, job.prompt)
        if not self.at("line"):
            self.last = tenant_of(self.world, job)

    def next_in_line(self, now: float) -> Job | None:
        if not self.at("line"):
            return None
        least = min(self.waiting_tenants(), key=lambda tenant: (self.counters[tenant], tenant))
        first = next(job for job in self.at("line") if tenant_of(self.world, job) == least)
        return first if first.uses or self.fits(first.adapter) else None

    def end_step(self, now: float) -> None:
        before = [(job, job.generated) for job in self.running]
        super().end_step(now)
        for job, generated in before:
            self.charge(job, 2 * (job.generated - generated))


class FairInCode(Fair, Engine):
    """The same as the paper's code has it, in S-LoRA's loop: every call of ``update_counter`` at its own place."""

    def lift(self, job: Job) -> None:
        if self.waiting_tenants():
            super().lift(job)

    def use(self, job: Job) -> None:
        super().use(job)
        self.charge(job, job.prompt)

    def compose(self, now: float) -> None:
        super().compose(now)
        if not self.prefill_only:
            self.update_counter(self.running)

    def update_counter(self, batch: list[Job]) -> None:
        for job in batch:
            self.charge(job, 2)

    def end_step(self, now: float) -> None:
        batch = [job for job in self.running if job.decoding != self.prefill_only]
        Engine.end_step(self, now)
        if any(job.generated == job.output for job in batch):
            self.update_counter(batch)


class CodeFleet(EngineFleet):
    def kind(self) -> type[Replica]:
        return FairInCode


class TenantFleet(TwinFleet):
    def kind(self) -> type[Replica]:
        fleet = self.world.scenario.fleet
        if fleet.scheduling in ("vtc", "lcf"):
            return Fair
        return PriorityTouching if self.world.scenario.cache.eviction == "vllm-lru" else PriorityBatching
