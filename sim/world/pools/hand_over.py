"""Prefill and decode on replicas of their own: a request's prompt is computed by one, its answer by another.

As vLLM does it with its NixlConnector in pull mode, behind a proxy that throws away the first replica's token: the
decode replica reads the KV blocks that its own prefix cache lacks, and the prefill replica holds them until then.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.policies.routing import Choosing
from sim.policies.transfer_scheduler import KvSource, TransferScheduler
from sim.results.recording.recorder import Recorder
from sim.spec.sections.serving import KvTransfer
from sim.traffic.request import Request
from sim.world.clock import LOAD_DONE, Call
from sim.world.dispatcher import Dispatcher, Extension
from sim.world.replica.copies import TransferServer
from sim.world.replica.modes.adapter_mode import AdapterMode
from sim.world.replica.server import ReplicaParts
from sim.world.world import Pool


class Stages:
    """When a request reached its stages, in seconds: admitted by the prefill replica, handed over, its read ordered,
    read. ``request``: as the prefill replica knows it."""

    def __init__(self, server: PrefillServer, request: Request, now: float) -> None:
        self.server = server
        self.request = request
        self.admitted_s = request.admitted_s
        self.handed_over_s = now
        self.ordered_s = self.read_s = -1.0


class PrefillServer(TransferServer):
    """A replica that computes prompts, and keeps their KV until it was read."""

    def was_read(self, request: Request) -> None:
        """Free the blocks of a request that has ended here."""
        self.report(lambda: self.transfers.read(request))


class Reads(KvSource):
    """The prompts that a decode replica can read.

    :ivar ready: requests whose prompt another replica has computed; ``ordered``: those whose read the step just decided
        orders, with their tokens.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ready: set[Request] = set()
        self.ordered: list[tuple[Request, int]] = []

    def look_up(self, request: Request, cached: int) -> int:
        return request.to_prefill - cached if request in self.ready else 0

    def order(self, request: Request, cached: int, tokens: int) -> None:
        self.ready.discard(request)
        self.ordered.append((request, tokens))


class DecodeServer(TransferServer):
    """A replica that reads the KV of prompts from the replicas that computed them, and answers.

    :param block_bytes: of a block on each GPU.
    :ivar stages: of the requests whose prompt was computed elsewhere, by index.
    :ivar tokens_read: tokens whose KV was read.
    """

    def __init__(
        self,
        parts: ReplicaParts,
        scheduler: TransferScheduler,
        mode: AdapterMode,
        reads: Reads,
        link: KvTransfer,
        block_bytes: float,
    ) -> None:
        super().__init__(parts, scheduler, mode)
        self.reads = reads
        self.stages: dict[int, Stages] = {}
        self.tokens_read = 0
        self._link, self._block_bytes = link, block_bytes
        self._streams = [0.0] * link.streams  # when each is free

    def expect(self, request: Request, stages: Stages) -> None:
        """Let a request that arrives next read its prompt."""
        self.reads.ready.add(request)
        self.stages[request.index] = stages

    def _start_copies(self, now: float) -> float:
        ordered, self.reads.ordered = self.reads.ordered, []
        for request, tokens in ordered:
            self.stages[request.index].ordered_s = now
            self.tokens_read += tokens
            size = -(-tokens // self.scheduler.kv.size) * self._block_bytes
            stream = min(range(len(self._streams)), key=self._streams.__getitem__)
            start = max(self._streams[stream], now)
            self._streams[stream] = end = start + self._link.latency + size / self._link.bandwidth
            self.clock.call_at(end, LOAD_DONE, self._read, request)
        return 0.0

    def _read(self, event: Call) -> None:
        request: Request = event.subject
        stages = self.stages[request.index]
        stages.read_s = self.clock.now
        stages.server.was_read(stages.request)
        self.report(lambda: self.transfers.arrived(request))


class HandOver(Extension):
    """Sends each request to a prefill replica, and then to a decode replica.

    :param router: chooses among the decode replicas.
    """

    def __init__(self, pools: Sequence[Pool], link: KvTransfer, router: Choosing, recorder: Recorder) -> None:
        super().__init__()
        self.reorders = True
        self._prefills = [pool.role == "prefill" for pool in pools for _ in pool.indices]
        self._link, self._router, self._recorder = link, router, recorder
        self._answers: dict[int, Request] = {}  # of requests on prefill replicas: as they arrived
        self._fleet: Dispatcher

    def start(self, fleet: Dispatcher) -> None:
        self._fleet = fleet

    def receive(self, request: Request) -> bool:
        if request.prompt_tokens >= self._link.min_prompt:
            return True
        self._send_to_decode(request, None)
        return False

    def accept(self, request: Request, replica: int) -> bool:
        if self._prefills[replica]:
            self._answers[request.index] = self._fleet.fresh_copy(request)
            request.output_tokens = request.max_tokens = 1
            request.stops = False
        return True

    def ended(self, request: Request, replica: int, now: float) -> bool:
        server = self._fleet.servers[replica]
        if isinstance(server, PrefillServer):
            self._send_to_decode(self._answers.pop(request.index), Stages(server, request, now))
            return True
        assert isinstance(server, DecodeServer), "a fleet whose replicas have roles"
        stages = server.stages.pop(request.index, None)
        if stages is not None:
            joined_s, before = request.admitted_s, stages.request
            request.admitted_s = stages.admitted_s
            request.load_wait_s += before.load_wait_s
            request.cached_tokens = before.cached_tokens
            if before.outcome > request.outcome:
                request.outcome, request.tier = before.outcome, before.tier
            times = (stages.handed_over_s, stages.ordered_s, stages.read_s, joined_s)
            self._recorder.hand_overs.append((request.index, *times))
        return False

    def _send_to_decode(self, request: Request, stages: Stages | None) -> None:
        fleet = self._fleet
        fleet.view.refresh()
        replica = self._router.choose(request.adapter, request.index)
        server = fleet.servers[replica]
        assert isinstance(server, DecodeServer), "a decode replica"
        if stages is not None:
            server.expect(request, stages)
        request.key = fleet.next_key()
        fleet.entered(request, replica)
        server.arrive(request)
