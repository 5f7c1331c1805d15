"""The naive twin of prefill and decode on two replicas, each with slots of its own: one step at a time, and every list
walked from its start. KV memory is ample, nothing is cached, and no step is scheduled ahead.
"""

from __future__ import annotations

import math
from dataclasses import replace as copied
from typing import Any

from naive import HOST, Job, Load, Touching, TwinFleet

from sim.world.world import World


class Prompting(Touching):
    """Computes prompts; what it answers is thrown away, and the request goes to the other replica."""

    fleet: PairFleet

    def arrive(self, job: Job, now: float) -> None:
        self.fleet.answers[job.index] = copied(job)
        job.output = 1
        super().arrive(job, now)

    def leave(self, job: Job, now: float) -> None:
        super().leave(job, now)
        self.fleet.replicas[1].arrive(self.fleet.answers[job.index], now)


class Answering(Touching):
    """Reads prompts while their requests have no place, and computes the last token of each again.

    :ivar apart: requests whose prompt is read or being read, in the order of the reads.
    """

    fleet: PairFleet

    def __init__(self, fleet: TwinFleet, index: int) -> None:
        super().__init__(fleet, index)
        self.apart: list[Job] = []
        self.free_s = [0.0] * self.fleet.link.streams

    def arrive(self, job: Job, now: float) -> None:
        super().arrive(job, now)
        job.key = self.fleet.count()

    def admit(self, budget: int, chunks: list[tuple[Job, int, int]], now: float) -> list[Job]:
        fresh = []
        for job in [*self.apart, *self.at("line")]:
            if not budget or len(self.running) == self.scenario.fleet.max_num_seqs:
                break
            if job.place == "reading" or not self.fits(job.adapter):
                continue
            if job.place == "line":
                self.read(job, now)
                continue
            self.apart.remove(job)
            self.use(job)
            fresh.append(job)
            job.place, job.admitted_s, job.prefilled = "running", now, job.target
            chunks.append((job, 1, job.target - 1))
            self.running.append(job)
            budget -= 1
        return fresh

    def read(self, job: Job, now: float) -> None:
        link, size = self.fleet.link, self.scenario.fleet.block_size
        seconds = math.ceil(job.prompt / size) * size * self.world.profile.memory.kv_bytes_per_token / link.bandwidth
        begins = max(now, min(self.free_s))
        self.free_s.remove(min(self.free_s))
        self.free_s.append(begins + link.latency + seconds)
        job.place = "reading"
        self.apart.append(job)
        self.loading.append(Load(job.adapter, HOST, link.latency + seconds, now, [job], begins, self.fleet.count()))

    def end_load(self, load: Load, now: float) -> None:
        self.loading.remove(load)
        (job,) = load.jobs
        job.place = "read"
        self.fleet.reads[job.index] = (load.asked_s, now)
        if self.boundary is None:
            self.boundary = now


class PairFleet(TwinFleet):
    """A prefill replica and a decode replica.

    :ivar answers: by index, requests as the decode replica knows them; ``reads``: when each read was ordered and ended.
    """

    def __init__(self, world: World) -> None:
        self.answers: dict[int, Job] = {}
        self.reads: dict[int, tuple[float, float]] = {}
        self.link: Any = world.scenario.fleet.kv_transfer
        super().__init__(copied(world, pools=world.pools[:1]))
        first, self.world = self.world, world.pools[1]
        self.replicas.append(Answering(self, 1))
        self.world = first

    def kind(self) -> type[Prompting]:
        return Prompting

    def route(self) -> Prompting:
        return self.replicas[0]
