"""SGLang's way: every batch fetches its adapters just before it runs, in place of any that it does not need itself."""

from __future__ import annotations

from collections.abc import Callable

from sim.policies.admission import WaitingQueue
from sim.policies.batch_slots import NO_NUMBER, BatchSlots
from sim.policies.host_tier import HostTier
from sim.policies.scheduler import Scheduler
from sim.traffic.request import DELAYED_HIT, FROM_HOST, FROM_STORAGE, MISS, Request
from sim.world.replica.loader import LoadContext, Tiers
from sim.world.replica.modes.adapter_mode import AdapterMode


class BatchSlotsMode(AdapterMode):
    """Loads inside steps, into slots that protect the adapters of this step only.

    :param reload_s: seconds of a load that no request of this step starts, by adapter and tier.
    """

    def __init__(
        self,
        cache: BatchSlots,
        host: HostTier,
        queue: WaitingQueue,
        reload_s: Callable[[int, int], float],
        context: LoadContext,
    ) -> None:
        super().__init__(cache, host, queue, context, loads_in_steps=True)
        self._slots = cache
        self._tiers = Tiers(host, context.versions)
        self._reload_s = reload_s
        self._base_model = NO_NUMBER
        self._whole_batch = False  # whether the last step fetched the adapters of all running requests

    def take_in(self, request: Request, may_join_now: bool) -> None:
        self.replica.enqueue(request, may_join_now)

    def before_step(self, batch: Scheduler, start_s: float) -> float:
        step = batch.decided
        if self._whole_batch and not (batch.adapters_changed or step.prefills):
            return 0.0
        batch.adapters_changed = False
        decodes = step.decoding > 0 or bool(batch.overrunning)
        self._whole_batch = decodes and not batch.overrunning
        unloaded, self.waiting.unloaded = self.waiting.unloaded, []
        first: dict[int, Request] = {}
        for request in unloaded:
            if request.adapter == self._base_model:
                continue  # its slot of zeros takes no time
            starts = first.setdefault(request.adapter, request) is request
            if request.preemptions == 0:
                request.outcome = MISS if starts else DELAYED_HIT
        end_s = start_s
        tiers: dict[int, int] = {}
        lost: list[int] = []
        members = [*batch.running, *batch.overrunning] if decodes else step.prefills
        for adapter in self._slots.fetch({request.adapter for request in members}):
            if adapter == self._base_model:
                continue
            tiers[adapter], seconds, succeeds = self._load(adapter, first.get(adapter), end_s)
            end_s += seconds
            if not succeeds:
                lost.append(adapter)
        for request in unloaded:
            if request.adapter in tiers and request.preemptions == 0:
                request.tier, request.load_wait_s = tiers[request.adapter], end_s - start_s
        if lost:
            self.failed = [request for request in members if request.adapter in lost]
            for adapter in lost:
                self._slots.lose(adapter)
        return end_s - start_s

    def serve_base_model(self) -> int:
        self._base_model = super().serve_base_model()
        return self._base_model

    def load_placed(self, adapter: int, seconds: tuple[float, float], then: Callable[[float], None]) -> None:
        """Load an adapter between two steps, if one that no running request uses can make room."""

        def action(start_s: float) -> float:
            took_s = 0.0
            if self._slots.load_idle(adapter):
                tier = FROM_HOST if self._tiers.host.touch(adapter) else FROM_STORAGE
                took_s, _ = self.load_in_step(adapter, tier, seconds[tier == FROM_HOST], start_s, -1)
                self._tiers.load_started(adapter, tier)
                self._tiers.load_ended(adapter, tier)
            then(start_s + took_s)
            return took_s

        self.replica.at_boundary(action)

    def _load(self, adapter: int, request: Request | None, start_s: float) -> tuple[int, float, bool]:
        """Perform one load of a step; return its tier and seconds, and whether it succeeds.

        :param request: the request that starts it; None: the adapter was evicted while in use.
        """
        if request is None:
            tier = FROM_HOST if self._tiers.host.touch(adapter) else FROM_STORAGE
            index, seconds = -1, self._reload_s(adapter, tier)
        else:
            tier, seconds = self._tiers.source(request)
            index = request.index
        self._tiers.load_started(adapter, tier)
        seconds, succeeds = self.load_in_step(adapter, tier, seconds, start_s, index)
        if succeeds:
            self._tiers.load_ended(adapter, tier)
        return tier, seconds, succeeds
