"""What every way of serving adapters has to do for its replica."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from mypy_extensions import mypyc_attr

from sim.policies.adapter_cache import AdapterCache, GpuCache
from sim.policies.admission import WaitingQueue
from sim.policies.host_tier import HostTier
from sim.policies.scheduler import Scheduler
from sim.traffic.request import FROM_STORAGE, Request
from sim.world.replica.ports import Intake, LoadContext, ReplaceWeights


@dataclass(frozen=True, slots=True)
class ModeParts:
    """What modes with a protected cache are made of.

    :ivar loaders: number of loaders from storage, and from host memory.
    """

    cache: GpuCache
    host: HostTier
    loaders: tuple[int, int]
    context: LoadContext


@mypyc_attr(allow_interpreted_subclasses=True)
class AdapterMode(Intake):
    """A way of serving adapters: the adapter cache, the waiting queue, and the loads of one replica.

    The replica calls ``take_in`` once for each request. When one that had its adapter leaves, the replica releases the
    adapter from the cache, and calls ``room_appeared`` if no other request uses it. At every step boundary it calls
    ``batch_shrank`` if requests have ended, and then ``before_step``, or ``nothing_runs`` if the batch is empty. A mode
    puts requests into the batch's queue by ``replica.enqueue``, and brings the next boundary forward by
    ``replica.wake``.

    :param context: what every load needs to know.
    :ivar waiting: the queue from which the scheduler admits.
    :ivar host: copies in host memory, besides those that the cache counts as its own.
    :ivar loads_in_steps: whether loads block the step that needs them; otherwise they overlap with steps.
    :ivar prepares_steps: whether ``before_step`` does anything; otherwise the replica saves the call.
    :ivar discards: whether ``batch_shrank`` does anything.
    :ivar copy_s: returns the seconds for which a load of an adapter keeps the GPU busy; the host reads for the rest.
    :ivar shares_bus: returns by how many seconds copies of KV delay the load of an adapter that starts now.
    :ivar read_s: seconds that the host has read for loads in steps, since the replica last set it to 0.
    :ivar failed: requests of the step under way whose adapter could not be loaded. At the end of the step, the replica
        empties the list and takes them out of the batch.
    """

    def __init__(
        self,
        cache: AdapterCache,
        host: HostTier,
        waiting: WaitingQueue,
        context: LoadContext,
        *,
        loads_in_steps: bool,
    ) -> None:
        super().__init__(host)
        self.cache = cache
        self.waiting = waiting
        self.context = context
        self.loads_in_steps = loads_in_steps
        self.prepares_steps = True
        self.discards = False
        self.failed: list[Request] = []
        self.copy_s: Callable[[int], float] = _no_copy
        self.shares_bus: Callable[[int, float], float] | None = None
        self.read_s = 0.0

    def serve_base_model(self) -> int:
        return self.cache.serve_base_model()

    def take_in(self, request: Request, may_join_now: bool) -> None:
        self.replica.enqueue(request, may_join_now)

    def room_appeared(self) -> None:
        """Note that the last request that used an adapter has left, so that the adapter may be evicted."""

    @abstractmethod
    def before_step(self, batch: Scheduler, start_s: float) -> float:
        """Load what the step just decided needs, record it, and return the seconds by which that delays the step.

        :param start_s: when the first load may start: now, or after what already delays the step.
        """

    def load_in_step(self, adapter: int, tier: int, seconds: float, start_s: float, index: int) -> tuple[float, bool]:
        """Record a load that delays the step; return its seconds with all attempts, and whether it succeeds.

        :param seconds: load time without faults.
        :param index: of the request that it is for; -1: none.
        """
        context = self.context
        if self.shares_bus is not None:
            seconds += self.shares_bus(adapter, start_s)
        if tier == FROM_STORAGE:
            attempts = context.timing.attempts(start_s, seconds, adapter, index)
            took_s = attempts.seconds if attempts.spans else seconds
            self.read_s += max(0.0, took_s - self.copy_s(adapter))
            if attempts.spans:
                context.recorder.load_attempts(attempts.spans, start_s, adapter, context.replica)
                return attempts.seconds, attempts.succeeds
        context.recorder.record_load(start_s, start_s + seconds, start_s, adapter, tier, context.replica)
        return seconds, True

    def batch_shrank(self, decoding: int) -> None:
        """Note that requests have left the batch at the end of a step, in which ``decoding`` sequences decoded."""

    def nothing_runs(self) -> bool:
        """The batch is empty at this boundary. Return True to scan the queue again."""
        return False

    def next_change_s(self) -> float:
        """Return the time after which other requests may be admitted although none has arrived or left.

        The replica asks only where adapters of ``waiting`` take turns.
        """
        return inf

    def reads_host_copy(self, adapter: int) -> bool:
        """Return whether a load that will read, or reads, an adapter's copy in host memory has been requested."""
        return False

    def discard(self, adapter: int) -> None:
        """Drop an adapter that is not in use, and will not be requested again, from GPU memory."""
        self.cache.discard(adapter)

    def load_placed(self, adapter: int, seconds: tuple[float, float], then: Callable[[float], None]) -> None:
        def action(start_s: float) -> float:
            took_s = self.load_idle(adapter, seconds, start_s)
            then(start_s + took_s)
            return took_s

        self.replica.at_boundary(action)

    def load_idle(self, adapter: int, seconds: tuple[float, float], start_s: float) -> float:
        """Load an adapter between two steps, if it is absent and an idle one can make room; return the seconds."""
        return 0.0

    def renew(self, adapter: int, seconds: float, replace_weights: ReplaceWeights) -> None:
        """Load an adapter again; here the load blocks the next step."""
        context = self.context

        def in_step(start_s: float) -> float:
            took_s = context.timing.seconds(start_s, seconds, adapter)
            context.recorder.record_load(
                start_s, start_s + took_s, context.clock.now, adapter, FROM_STORAGE, context.replica
            )
            replace_weights(start_s, start_s + took_s)
            return took_s

        self.replica.at_boundary(in_step)

    def check_integrity(self) -> None:
        self.cache.check_integrity()
        self.host.check_integrity()


def _no_copy(adapter: int) -> float:
    return 0.0
