"""One replica that swaps whole models, written in the most obvious way: every step is computed, nothing leaps.

It knows no KV limit, no chunks and no preemption: scenarios for it leave room for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False)
class Job:
    index: int
    arrival_s: float
    model: int
    prompt: int
    output: int
    load_s: float
    admitted_s: float = -1.0
    first_token_s: float = -1.0
    finished_s: float = -1.0
    tokens: int = 0
    outcome: int = 0


@dataclass(eq=False)
class Swapping:
    """The replica.

    :ivar step_s: seconds of a step, from its tokens and the KV tokens that decodes attend to.
    :ivar held: models in memory, the one that was used least recently first.
    """

    jobs: list[Job]
    step_s: Callable[[int, int], float]
    places: int
    turn_s: float
    seats: int
    held: list[int] = field(default_factory=list)
    until: dict[int, float] = field(default_factory=dict)
    loads: int = 0

    def run(self) -> None:
        now, running, to_come = 0.0, list[Job](), list(self.jobs)
        waiting: list[Job] = []
        while to_come or waiting or running:
            if not (waiting or running):
                now = max(now, to_come[0].arrival_s)
            while to_come and to_come[0].arrival_s <= now:
                waiting.append(to_come.pop(0))
            joined = self.admit(waiting, running, now)
            load_s = self.load(joined, running, now)
            decodes = [job for job in running if job not in joined]
            tokens = len(decodes) + sum(job.prompt for job in joined)
            now += load_s + self.step_s(tokens, sum(job.prompt + job.tokens for job in decodes))
            for job in decodes + joined:
                job.tokens += 1
                if job.tokens == 1:
                    job.first_token_s = now
            ended = sorted((j for j in decodes if j.tokens == j.output), key=lambda j: j.index)
            ended += [job for job in joined if job.tokens == job.output]
            for job in ended:
                job.finished_s = now
                running.remove(job)
                if all(other.model != job.model for other in running):
                    self.held.remove(job.model)
                    self.held.append(job.model)

    def admit(self, waiting: list[Job], running: list[Job], now: float) -> list[Job]:
        joined: list[Job] = []
        while len(running) < self.seats:
            chosen = self.next_of(waiting, {job.model for job in running}, now)
            if chosen is None:
                break
            waiting.remove(chosen)
            running.append(chosen)
            joined.append(chosen)
            chosen.admitted_s = now
        return joined

    def next_of(self, waiting: list[Job], used: set[int], now: float) -> Job | None:
        passed = False
        for job in waiting:
            fits = job.model in used or len(used) < self.places
            if fits and (not passed or now < self.until.get(job.model, -1.0)):
                return job
            passed = True
        return None

    def load(self, joined: list[Job], running: list[Job], now: float) -> float:
        load_s, here = 0.0, set[int]()
        for job in joined:
            if job.model in self.held:
                job.outcome = 1 if job.model in here else 0
                continue
            used = {other.model for other in running}
            if len(self.held) == self.places:
                self.held.remove(next(model for model in self.held if model not in used))
            self.held.append(job.model)
            here.add(job.model)
            job.outcome = 2
            load_s += job.load_s
            self.loads += 1
            self.until[job.model] = now + load_s + self.turn_s
        return load_s
