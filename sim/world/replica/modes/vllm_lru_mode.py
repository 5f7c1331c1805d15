"""vLLM's way: every step touches the adapters of its batch, and any of them may have to be loaded again."""

from __future__ import annotations

from collections.abc import Callable

from sim.policies.admission import WaitingQueue
from sim.policies.host_tier import HostTier
from sim.policies.scheduler import Scheduler
from sim.policies.vllm_lru import VllmLruCache
from sim.traffic.request import DELAYED_HIT, FROM_HOST, FROM_STORAGE, MISS, Request
from sim.world.replica.modes.adapter_mode import AdapterMode
from sim.world.replica.ports import LoadContext


class VllmLru(AdapterMode):
    """Loads inside steps, from an LRU cache that does not protect adapters in use.

    A request that is admitted while its adapter is absent waits for all loads of its step. If a load fails for good,
    exactly the requests of the batch that use this adapter fail.

    :param queue: what ``vllm_queue`` returns for this cache.
    :param reload_s: seconds of a load that no request of this step starts, by adapter and tier.
    """

    def __init__(
        self, cache: VllmLruCache, queue: WaitingQueue, reload_s: Callable[[int, int], float], context: LoadContext
    ) -> None:
        super().__init__(cache, HostTier(), queue, context, loads_in_steps=True)  # its host tier is part of the cache
        self._slots = cache
        self._reload_s = reload_s

    def before_step(self, batch: Scheduler, start_s: float) -> float:
        if not batch.adapters_changed:
            return 0.0
        batch.adapters_changed = False
        unloaded, self.waiting.unloaded = self.waiting.unloaded, []
        first = _misses(unloaded)
        end_s = start_s
        tiers: dict[int, int] = {}
        lost: set[int] = set()
        for adapter, tier in self._slots.touch():
            tiers[adapter] = tier
            seconds, succeeds = self._load(adapter, tier, first.get(adapter), end_s)
            if not succeeds:
                lost.add(adapter)
            end_s += seconds
        for request in batch.decided.prefills if first else ():
            if request.adapter in first and request.preemptions == 0:
                request.tier, request.load_wait_s = tiers[request.adapter], end_s - start_s
        if lost:
            self.failed = [request for request in batch.running if request.adapter in lost]
            for adapter in lost:
                self._slots.lose(adapter)
        return end_s - start_s

    def load_idle(self, adapter: int, seconds: tuple[float, float], start_s: float) -> float:
        """Load an adapter between two steps, as ``/v1/load_lora_adapter`` does; not into a slot that the batch uses."""
        tier = self._slots.load_idle(adapter)
        if tier not in (FROM_STORAGE, FROM_HOST):
            return 0.0
        took_s, _ = self.load_in_step(adapter, tier, seconds[tier == FROM_HOST], start_s, -1)
        self.context.versions.load_started(adapter, tier)
        self.context.versions.load_ended(adapter, tier)
        return took_s

    def _load(self, adapter: int, tier: int, request: Request | None, start_s: float) -> tuple[float, bool]:
        """Perform one load of a step; return its seconds, and whether it succeeds.

        :param request: the request that starts it; None: the adapter was evicted while in use.
        """
        if request is None:
            index, seconds = -1, self._reload_s(adapter, tier)
        else:
            index, seconds = request.index, request.load_s if tier == FROM_STORAGE else request.host_load_s
        seconds, succeeds = self.load_in_step(adapter, tier, seconds, start_s, index)
        if succeeds:
            self.context.versions.load_started(adapter, tier)
            self.context.versions.load_ended(adapter, tier)
        return seconds, succeeds


def _misses(unloaded: list[Request]) -> dict[int, Request]:
    """Return, by absent adapter, the first request that needs it and so loads it. Sets outcomes of first admissions."""
    first: dict[int, Request] = {}
    for request in unloaded:
        if request.adapter not in first:
            first[request.adapter] = request
        if request.preemptions == 0:
            request.outcome = MISS if first[request.adapter] is request else DELAYED_HIT
    return first
