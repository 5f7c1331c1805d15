"""LoRAX's way: every adapter has a queue, and as many queues are active as there is room."""

from __future__ import annotations

from sim.policies.queues.adapter_queues import AdapterQueues
from sim.world.replica.modes.adapter_mode import ModeParts
from sim.world.replica.modes.protected import OverlappedQueue


class PerAdapterQueues(OverlappedQueue):
    """Loads begin when an adapter's queue becomes active.

    :param cycle_s: seconds after which an active adapter gives its place to one that waits for it.
    """

    def __init__(self, parts: ModeParts, cycle_s: float) -> None:
        clock = parts.context.clock
        self._queues = AdapterQueues(parts.cache, self.request_load, lambda: clock.now, cycle_s)
        super().__init__(parts, self._queues, self._queues)

    def serve_base_model(self) -> int:
        number = super().serve_base_model()
        self._queues.admit_base_model(number)
        return number

    def nothing_runs(self) -> bool:
        return self._queues.may_go_on()  # each pass frees a few places, and no event would start another one

    def next_change_s(self) -> float:
        return self._queues.next_change_s()

    def discard(self, adapter: int) -> None:
        self._queues.discard(adapter)
        self.loader.room_appeared()
