"""SGLang's way: every batch fetches its adapters just before it runs, in place of any that it does not need itself."""

from __future__ import annotations

from collections.abc import Callable

from sim.policies.admission import WaitingQueue
from sim.policies.batch_slots import NO_NUMBER, BatchSlots
from sim.policies.host_tier import HostTier
from sim.policies.queues.rejoining import LoadingAheadQueue
from sim.policies.scheduler import Scheduler
from sim.traffic.request import DELAYED_HIT, FROM_HOST, FROM_STORAGE, HIT, MISS, Request
from sim.world.clock import LOAD_DONE, Call
from sim.world.replica.loader import Tiers
from sim.world.replica.modes.adapter_mode import AdapterMode
from sim.world.replica.ports import LoadContext


class SlotLoad(Call):
    """A load that overlaps with steps, and the event of its end.

    :ivar asked_s: when it took its slot; it begins when the loads before it have ended.
    :ivar waiting: requests that have been passed because of it, by index.
    """

    def __init__(
        self, done: Callable[[SlotLoad], None], adapter: int, tier: int, begins_s: float, asked_s: float
    ) -> None:
        super().__init__(done)
        self.adapter, self.tier = adapter, tier
        self.begins_s, self.asked_s = begins_s, asked_s
        self.waiting: dict[int, Request] = {}


class BatchSlotsMode(AdapterMode):
    """Loads inside steps, into slots that protect the adapters of this step only; or loads that overlap with steps.

    :param queue: None: a ``LoadingAheadQueue`` is made, whose loads run one after the other while steps go on.
    :param reload_s: seconds of a load that no request of this step starts, by adapter and tier.
    :param drain_wait_s: for the queue that is made.
    """

    def __init__(
        self,
        cache: BatchSlots,
        host: HostTier,
        queue: WaitingQueue | None,
        reload_s: Callable[[int, int], float],
        context: LoadContext,
        drain_wait_s: float = 0.0,
    ) -> None:
        ahead = LoadingAheadQueue(cache, self._start_load, self._wait, drain_wait_s)
        super().__init__(cache, host, queue or ahead, context, loads_in_steps=queue is not None)
        self.prepares_steps = queue is not None
        self._slots = cache
        self._under_way: dict[int, SlotLoad] = {}
        self._free_s = 0.0  # until then, loads that were requested keep the copy engine busy
        self._tiers = Tiers(host, context.versions)
        self._reload_s = reload_s
        self._base_model = NO_NUMBER
        self._whole_batch = False  # whether the last step fetched the adapters of all running requests

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

    def _start_load(self, request: Request) -> bool:
        """Start the load of a request's adapter behind those under way; return whether it is resident at once."""
        adapter, now = request.adapter, self.context.clock.now
        if adapter == self._base_model:
            self._slots.arrived(adapter)
            return True
        tier, seconds = self._tiers.source(request)
        begins_s = max(now, self._free_s)
        self._free_s = begins_s + seconds
        self._under_way[adapter] = load = SlotLoad(self._load_done, adapter, tier, begins_s, now)
        self._tiers.load_started(adapter, tier)
        self.context.clock.schedule(self._free_s, LOAD_DONE, load)
        self._wait(request)
        if not request.preemptions:
            request.outcome = MISS
        return False

    def _wait(self, request: Request) -> None:
        waiting = self._under_way[request.adapter].waiting
        if request.index in waiting:
            return
        waiting[request.index] = request
        if not request.preemptions and request.outcome == HIT:
            request.outcome, request.asked_s = DELAYED_HIT, self.context.clock.now

    def _load_done(self, load: SlotLoad) -> None:
        now, adapter = self.context.clock.now, load.adapter
        del self._under_way[adapter]
        self._record(load, now)
        self._tiers.load_ended(adapter, load.tier)
        self._slots.arrived(adapter)
        for request in load.waiting.values():
            if not request.preemptions:
                request.tier, request.load_wait_s = load.tier, now - request.asked_s
                request.load_queue_s = max(0.0, load.begins_s - request.asked_s)
        for request in load.waiting.values():
            self.replica.wake(request.key, load.begins_s < now)

    def _record(self, load: SlotLoad, now: float) -> None:
        context = self.context
        context.recorder.record_load(load.begins_s, now, load.asked_s, load.adapter, load.tier, context.replica)

    def close(self, now: float) -> None:
        for load in self._under_way.values():
            if load.begins_s < now:
                self._record(load, now)

    def event_owners(self) -> list[object]:
        return [self]

    def reads_host_copy(self, adapter: int) -> bool:
        load = self._under_way.get(adapter)
        return load is not None and load.tier == FROM_HOST

    def load_idle(self, adapter: int, seconds: tuple[float, float], start_s: float) -> float:
        if not self._slots.load_idle(adapter):
            return 0.0
        tier = FROM_HOST if self._tiers.host.touch(adapter) else FROM_STORAGE
        took_s, _ = self.load_in_step(adapter, tier, seconds[tier == FROM_HOST], start_s, -1)
        self._tiers.load_started(adapter, tier)
        self._tiers.load_ended(adapter, tier)
        return took_s

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
