"""Prefill and decode on replicas of their own: a request's prompt is computed by one, its answer by another.

As vLLM does it with its NixlConnector in pull mode, behind a proxy that throws away the first replica's token: the
decode replica reads the KV blocks that its own prefix cache lacks, and the prefill replica holds them until then.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.policies.routing import Choosing
from sim.results.recording.recorder import Recorder
from sim.results.records import REFUSED
from sim.spec.sections.serving import KvTransfer
from sim.traffic.request import Request
from sim.world.dispatcher import Extension
from sim.world.pools.pool_times import PoolTimes
from sim.world.replica.prefill_decode import DecodeServer, PrefillServer, Stages
from sim.world.world import Pool


class HandOver(Extension):
    """Sends each request to a prefill replica, and then to a decode replica.

    :param router: chooses among the decode replicas.
    """

    def __init__(
        self, pools: Sequence[Pool], link: KvTransfer, router: Choosing, times: PoolTimes, recorder: Recorder
    ) -> None:
        super().__init__()
        self.reorders = True
        self._pool_of = [number for number, pool in enumerate(pools) for _ in pool.indices]
        self._decodes = [pool.role == "decode" for pool in pools]
        self._min_prompt, self._router, self._times, self._recorder = link.min_prompt, router, times, recorder
        self._answers: dict[int, Request] = {}  # of requests on prefill replicas: as they arrived

    def receive(self, request: Request) -> bool:
        handed_over = request.prompt_tokens >= self._min_prompt
        if not all(self._fits(request, number, handed_over=handed_over) for number in range(len(self._decodes))):
            self._recorder.record_unserved(request, -1, REFUSED)
            return False
        if not handed_over:
            self._send_to_decode(request, None)
        return handed_over

    def _fits(self, request: Request, number: int, *, handed_over: bool) -> bool:
        if self._decodes[number]:
            return self._times.fits(request, number, request.output_tokens)
        return not handed_over or self._times.fits(request, number, 1)

    def accept(self, request: Request, replica: int) -> bool:
        pool = self._pool_of[replica]
        self._times.set_for(request, pool)
        if not self._decodes[pool]:
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
            joined_s, load_s, before = request.admitted_s, request.load_wait_s, stages.request
            request.admitted_s = stages.admitted_s
            request.load_wait_s = before.load_wait_s + load_s
            request.cached_tokens = before.cached_tokens
            if before.outcome > request.outcome:
                request.outcome, request.tier = before.outcome, before.tier
            times = (stages.handed_over_s, stages.ordered_s, stages.read_s, joined_s, load_s)
            self._recorder.hand_overs.append((request.index, *times))
        return False

    def _send_to_decode(self, request: Request, stages: Stages | None) -> None:
        fleet = self._fleet
        fleet.view.refresh()
        if fleet.view.of_request:
            fleet.view.show(request)
        replica = self._router.choose(request.adapter, request.index)
        server = fleet.servers[replica]
        assert isinstance(server, DecodeServer), "a decode replica"
        if stages is not None:
            server.expect(request, stages)
        request.key = fleet.next_key()
        self._times.set_for(request, self._pool_of[replica])
        fleet.entered(request, replica)
        server.arrive(request)
