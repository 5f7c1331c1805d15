"""S-LoRA's unified paging: adapters take their memory from the KV cache, and load inside the step that needs them."""

from __future__ import annotations

from sim.policies.admission import WaitingQueue
from sim.policies.scheduler import Scheduler
from sim.policies.unified_cache import UnifiedCache
from sim.world.replica.modes.adapter_mode import ModeParts
from sim.world.replica.modes.protected import LoadsInSteps


class Unified(LoadsInSteps):
    """Idle adapters make room for admitted requests before others are loaded."""

    def __init__(self, parts: ModeParts, cache: UnifiedCache, waiting: WaitingQueue, *, discards: bool) -> None:
        super().__init__(parts, waiting, discards=discards)
        self._unified = cache

    def before_step(self, batch: Scheduler, start_s: float) -> float:
        if batch.decided.prefills:
            self._unified.shrink()
        return super().before_step(batch, start_s)
