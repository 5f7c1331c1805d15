"""Replicas that compute prompts only, and those that read the KV of prompts and answer (vLLM's NixlConnector)."""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from sim.policies.transfer_scheduler import PromptReads, TransferScheduler
from sim.results.records import FAILED
from sim.rng import uniform_draw
from sim.spec.sections.serving import KvTransfer
from sim.traffic.request import BY_BATCH_SLOTS, Request
from sim.world.clock import CONTROL, LOAD_DONE, Call
from sim.world.replica.copies import TransferServer
from sim.world.replica.modes.adapter_mode import AdapterMode
from sim.world.replica.server import ReplicaParts


class Stages:
    """When a request reached its stages, in seconds: admitted by the prefill replica, handed over, its read ordered,
    read. ``request``: as the prefill replica knows it."""

    def __init__(self, server: PrefillServer, request: Request, now: float) -> None:
        self.server = server
        self.request = request
        self.admitted_s = request.admitted_s
        self.handed_over_s = now
        self.ordered_s = self.read_s = -1.0


@mypyc_attr(allow_interpreted_subclasses=True)
class PrefillServer(TransferServer):
    """A replica that computes prompts, and keeps their KV until it has been read."""

    def was_read(self, request: Request) -> None:
        """Free the blocks of a request that has ended here."""
        self.report(lambda: self.transfers.read(request))


@mypyc_attr(allow_interpreted_subclasses=True)
class DecodeServer(TransferServer):
    """A replica that reads the KV of prompts from the replicas that computed them, and answers.

    :param block_bytes: of a block on each GPU; ``reads_key``: of the draws that decide which reads fail.
    :ivar stages: of the requests whose prompt was computed elsewhere, by index.
    """

    def __init__(
        self,
        parts: ReplicaParts,
        scheduler: TransferScheduler,
        mode: AdapterMode,
        reads: PromptReads,
        link: KvTransfer,
        block_bytes: float,
        reads_key: int,
    ) -> None:
        super().__init__(parts, scheduler, mode)
        self.reads = reads
        self.stages: dict[int, Stages] = {}
        self._reading_s = 0.0
        self._latency_s, self._bytes_per_s, self._block_bytes = float(link.latency), float(link.bandwidth), block_bytes
        self._streams = [0.0] * link.streams  # when each is free
        self._failures, self._reads_key = link.failures, reads_key

    def link_s(self) -> float:
        """Return for how long the link that KV comes over was busy, on average over its streams."""
        return self._reading_s / len(self._streams)

    def expect(self, request: Request, stages: Stages) -> None:
        """Let a request that arrives next read its prompt."""
        self.reads.ready.add(request)
        self.stages[request.index] = stages

    def _start_copies(self, now: float) -> float:
        ordered, streams = self.reads.ordered, self._streams
        if not ordered:
            return 0.0
        self.reads.ordered = []
        for request, tokens in ordered:
            self.stages[request.index].ordered_s = now
            size = -(-tokens // self.scheduler.kv.size) * self._block_bytes
            seconds = self._latency_s + size / self._bytes_per_s
            free_s = min(streams)
            self._reading_s += seconds
            streams[streams.index(free_s)] = end = max(free_s, now) + seconds
            self.clock.call_at(end, LOAD_DONE, self._read, request)
        return 0.0

    def _read(self, event: Call) -> None:
        request: Request = event.subject
        stages = self.stages[request.index]
        stages.read_s = now = self.clock.now
        # A request that finds no batch slot can't join before a boundary at which another one ends.
        matters = self.scheduler.blocked != BY_BATCH_SLOTS
        failures = self._failures
        if failures is None or uniform_draw(self._reads_key, request.index) >= failures.share:
            stages.server.was_read(stages.request)
            self.report(lambda: self.transfers.arrived(request), matters=matters)
            return
        self.clock.call_at(now + failures.lease, CONTROL, lambda event: stages.server.was_read(stages.request))
        ends = failures.policy == "fail"
        self.report(lambda: self._read_failed(request, ends), matters=matters)

    def _read_failed(self, request: Request, ends: bool) -> None:
        self.transfers.failed(request)
        if ends:
            self.transfers.take_back(request)
            del self.stages[request.index]
            self._goes()
            self._listener.lost(request, self.index)
            self.recorder.record_unserved(request, self.index, FAILED)
