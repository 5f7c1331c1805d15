"""Replay records of engines whose KV also comes from host memory, or from another engine.

Besides what ``step_replay`` takes from a record: the order of requests that end in one step, and of those whose reads
do, which is that of Python sets.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

from sim.policies.costs import StepCosts
from sim.policies.kv.block_store import BlockStore
from sim.policies.kv.host_pool import HostPool, Job
from sim.policies.kv.kv_store import KvStore
from sim.policies.kv.prefix_lookup import ExactCount
from sim.policies.scheduler import Limits, Scheduler
from sim.policies.transfer_scheduler import PromptReads, TransferScheduler
from sim.spec.engines import preset_value
from sim.studies.fidelity.step_record import OffloadConfig, PairConfig, PairRecord, RecordedStep, StepRecord
from sim.studies.fidelity.step_replay import EngineReplay, Replay
from sim.traffic.request import HOLDING, Request


def _in_recorded_order(ours: list[int], recorded: tuple[int, ...]) -> list[int]:
    return list(recorded) if sorted(ours) == sorted(recorded) else ours


def _spare(kv: KvStore) -> int:
    assert isinstance(kv, ExactCount), "these records have the prefix cache"
    return kv.spare_blocks()


class _Asked(HostPool):
    """Keeps what requests were told."""

    asked: list[tuple[int, int, int | None]]

    def look_up(self, request: Request, cached: int) -> int:
        tokens = super().look_up(request, cached)
        self.asked.append((request.index, cached, None if tokens < 0 else tokens))
        return tokens


class OffloadReplay(EngineReplay):
    """Replays a record of an engine with KV offload."""

    pool: _Asked
    transfers: TransferScheduler

    def __init__(self, record: StepRecord) -> None:
        super().__init__(record)
        assert record.config.offload is not None, "checked by the caller"
        self._offload: OffloadConfig = record.config.offload
        self._jobs: dict[Job, int] = {}
        self._due: dict[int, list[Job]] = defaultdict(list)  # by step with whose output they are done
        self._reported: list[list[Job]] = []  # by outputs that have not been processed yet

    def _store(self, blocks: int) -> KvStore:
        return BlockStore(blocks, self.record.config.block_size)

    def _scheduler(self, limits: Limits, costs: StepCosts) -> Scheduler:
        config, offload = self.record.config, self.record.config.offload
        assert offload is not None, "checked by the caller"
        assert isinstance(self.kv, BlockStore), "made by _store"
        self.pool = _Asked(
            self.kv,
            offload.host_blocks,
            arc=offload.policy == "arc",
            answers=offload.answers,
            store_from=offload.store_from,
            within_step_blocks=offload.sync_load_blocks,
            by_request=preset_value(self.record.preset, "fleet.adapter_limit") == "running",
        )
        self.transfers = TransferScheduler(limits, self.kv, self.waiting, [0] * config.adapters, costs, self.pool)
        return self.transfers

    def step(self, number: int, step: RecordedStep, result: Replay) -> list[Request]:
        self.pool.asked = []
        ended = _in_recorded_order([request.index for request in self.transfers.ended], step.finished)
        self.transfers.ended = [self.requests[index] for index in ended]
        finished = super().step(number, step, result)
        if len(self._reported) > int(self.record.asynchronous):
            for job in self._reported.pop(0):
                self.pool.done(job)
                if not job.stores:
                    self.transfers.arrived(job.request)
        return finished

    def _more(self, number: int, step: RecordedStep) -> list[tuple[str, object, object]]:
        pool, jobs, offload = self.pool, self._jobs, self._offload
        for job in (*pool.loads, *pool.stores):
            jobs[job] = len(jobs)
            self._due[number + (offload.store_steps + 1 if job.stores else offload.load_steps)].append(job)
        ends = self._due.pop(number, [])
        for job in pool.flushed:
            if job not in ends and not any(job in reported for reported in self._reported):
                next(due for due in self._due.values() if job in due).remove(job)
                ends.append(job)
        self._reported.append(ends)
        # With asynchronous scheduling, the engine has stopped before the output of its last step is processed.
        unheard = self.record.asynchronous and number == len(self.record.steps) - 1
        stores = [(job.request.index, len(job.keys), len(pool.evicted[job])) for job in pool.stores]
        refused = [request.index for request in pool.refused]
        loads = [(job.request.index, len(job.keys)) for job in pool.loads]
        return [
            ("looked up", pool.asked, [asked[:3] for asked in step.asked]),
            ("loading", [request.index for request in self.transfers.loading()], list(step.loading)),
            ("loads of KV", loads, [(index, len(blocks)) for index, blocks in step.load]),
            ("stores", stores, [(i, len(kept), len(gone)) for i, kept, gone in step.store if kept is not None]),
            ("stores refused", refused, [index for index, kept, _ in step.store if kept is None]),
            ("copies waited for", sorted(jobs[job] for job in pool.flushed), sorted(step.flush)),
            ("copies done", [] if unheard else sorted(jobs[job] for job in ends), sorted(step.done)),
            ("blocks on the host", pool.blocks(), step.host),
            ("free blocks", _spare(self.kv), step.free),
        ]


class _Side(EngineReplay):
    """One of the two engines.

    :ivar due: by step, the reads that are done with its output; ``to_send``: by tick, requests that were read.
    :ivar steps: by tick.
    """

    transfers: TransferScheduler

    def __init__(self, record: PairRecord, name: Literal["p", "d"]) -> None:
        self.name = name
        self.reads = PromptReads()
        super().__init__(record.side(name))
        self.pair: PairConfig = record.config
        self.due: dict[int, list[Request]] = defaultdict(list)
        self.to_send: dict[int, list[int]] = defaultdict(list)
        self.result = Replay.of(self.record.steps)
        self.steps = {step.tick: (number, step) for number, step in enumerate(self.record.steps)}
        self._to_come = []
        self._taken_back = {request.id for request in record.requests if request.abort is not None}
        self._reported: list[tuple[list[int], list[int], list[int]]] = []

    def _scheduler(self, limits: Limits, costs: StepCosts) -> Scheduler:
        ranks, decodes = [0] * self.record.config.adapters, self.name == "d"
        self.transfers = TransferScheduler(
            limits, self.kv, self.waiting, ranks, costs, self.reads if decodes else None, hands_over=not decodes
        )
        return self.transfers

    def take_back(self, index: int) -> bool:
        """Let a request leave; return whether it could have been read, but nobody has ordered that."""
        request, scheduler = self.requests[index], self.transfers
        if self.name == "p" and request in self.kv.apart:
            return False
        unread = request in self.reads.ready
        self.reads.ready.discard(request)
        runs, holds = request in scheduler.running, request.last_step == HOLDING
        scheduler.take_back(request)
        if runs:
            (self.cache.release_paused if holds else self.cache.release)(request.adapter)
        self._finished = [*self._finished, index]
        return unread

    def in_tick(self, tick: int) -> list[int]:
        """Take the step of this tick, if there is one; return the requests that end with it."""
        if tick not in self.steps:
            return []
        self._tick = tick
        finished = self.step(*self.steps[tick], self.result)
        if len(self._reported) > int(self.record.asynchronous):
            received, failed, sent = self._reported.pop(0)
            for index in received:
                report = self.transfers.failed if index in failed else self.transfers.arrived
                report(self.requests[index])
                if index in failed and self.pair.failure == "fail":
                    self.take_back(index)
            for index in sent:
                self.transfers.read(self.requests[index])
        return [request.index for request in finished]

    def _processed(self, number: int) -> int:
        steps = self.record.steps
        paused = number > 0 and steps[number - 1].tick + 1 < steps[number].tick
        return number if paused else super()._processed(number)

    def fails(self, request: Request) -> bool:
        every = self.pair.fail_every
        return every > 0 and request.index % every == every - 1

    def _more(self, number: int, step: RecordedStep) -> list[tuple[str, object, object]]:
        config, size = self.pair, self.record.config.block_size
        ordered, self.reads.ordered = self.reads.ordered, []
        for request, tokens in ordered:
            longer = -(-tokens // size // config.transfer_rate) if config.transfer_rate else 0
            self.due[number + config.transfer_steps + longer].append(request)
        self.ends = self.due.pop(number, [])
        received, failed = [r.index for r in self.ends], [r.index for r in self.ends if self.fails(r)]
        sent = [index for tick in sorted(self.to_send) if tick <= self._tick for index in self.to_send.pop(tick)]
        reported = _in_recorded_order(received, step.received), failed, _in_recorded_order(sent, step.sent)
        self._reported.append(reported)
        held = self.kv.apart if self.name == "p" else self.transfers.given_up
        return [
            ("loading", [request.index for request in self.transfers.loading()], list(step.loading)),
            ("held", sorted(request.index for request in held), sorted(step.held)),
            ("received", sorted(received), sorted(step.received)),
            ("failed", sorted(failed), sorted(step.failed)),
            ("sent", sorted(sent), sorted(step.sent)),
            ("running in order", [request.index for request in self.transfers.running], list(step.running)),
            ("free blocks", _spare(self.kv), step.free),
        ]


class PairReplay:
    """Replays a record of a prefill engine and a decode engine; steps and loads of both are counted together."""

    def __init__(self, record: PairRecord) -> None:
        self.record = record
        self.p, self.d = _Side(record, "p"), _Side(record, "d")

    def run(self) -> Replay:
        p, d, config = self.p, self.d, self.record.config
        coming: dict[int, list[int]] = defaultdict(list)
        taken_back: dict[int, list[tuple[Literal["p", "d"], int]]] = defaultdict(list)
        for request in self.record.requests:
            coming[request.tick].append(request.id)
            if request.abort is not None:
                side, tick = request.abort
                taken_back[tick].append((side, request.id))
        handed_over: list[int] = []
        for tick in range(config.ticks + 1):
            for where, index in taken_back[tick]:
                if (p if where == "p" else d).take_back(index):
                    p.to_send[tick + 1].append(index)
            for index in coming[tick]:
                p.push(p.requests[index])
            for index in handed_over:
                d.reads.ready.add(d.requests[index])
                d.push(d.requests[index])
            handed_over = p.in_tick(tick)
            d.ends = []
            d.in_tick(tick)
            for read in d.ends:
                p.to_send[tick + (config.lease_ticks if d.fails(read) else 1)].append(read.index)
        return _together(p.result, d.result)


def _together(p: Replay, d: Replay) -> Replay:
    first = p.first_difference and f"prefill engine, {p.first_difference}"
    return Replay(
        p.steps + d.steps,
        p.equal_steps + d.equal_steps,
        p.loads + d.loads,
        p.predicted_loads + d.predicted_loads,
        p.equal_loads + d.equal_loads,
        p.cached_tokens + d.cached_tokens,
        p.predicted_cached_tokens + d.predicted_cached_tokens,
        first or (d.first_difference and f"decode engine, {d.first_difference}"),
    )
