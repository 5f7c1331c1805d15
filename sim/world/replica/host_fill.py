"""Host memory that is filled when requests arrive, before anything is loaded to the GPU.

SGLang (an adapter that ``max_loaded_loras`` drove out), LoRAX (download at the first request) and TensorRT-LLM (host
cache) work this way. The host tier is then a protected cache of its own: an adapter with requests inside keeps its
place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sim.policies.adapter_cache import GpuCache
from sim.policies.host_tier import HostTier
from sim.results.recording.recorder import Recorder
from sim.traffic.request import DELAYED_HIT, FROM_GPU, FROM_STORAGE, MISS, Request
from sim.world.replica.loader import Loader, LoadOwner
from sim.world.replica.modes.adapter_mode import AdapterMode
from sim.world.replica.ports import Intake, LoadContext, ReplaceWeights, ReplicaListener, without_delay


class HostFill(Intake, LoadOwner):
    """Host memory of one replica, filled at arrival.

    :param copies: adapters in host memory.
    :param loaders: fetches at a time.
    :param reject: refuse a request that would have to wait for a place.
    :ivar loader: the loaders from storage.
    """

    def __init__(
        self, mode: AdapterMode, copies: GpuCache, loaders: int, context: LoadContext, *, reject: bool
    ) -> None:
        self.loader = Loader(context, copies, HostTier(), (loaders, 1), self)
        super().__init__(FetchedCopies(copies, self.loader))
        self._clock = context.clock
        self._mode = mode
        self._copies = copies
        self._reject = reject
        self._waits: dict[int, tuple[int, float, float]] = {}

    def serve_base_model(self) -> int:
        return self._copies.serve_base_model()

    def take_in(self, request: Request, may_join_now: bool) -> None:
        """Reserve a place for the request's adapter, and pass the request on once the adapter is there."""
        if self._reject and not self._copies.can_claim(request.adapter):
            self.replica.refuse(request)
        elif self._copies.acquire(request.adapter):
            self._mode.take_in(request, may_join_now)
        else:
            joined = self.loader.request_load(request)
            request.tier = FROM_GPU  # until it leaves: what happens at the GPU comes between
            self._waits[request.index] = (DELAYED_HIT if joined else MISS, 0.0, 0.0)

    def leave(self, request: Request) -> float:
        """Release the adapter of a request that leaves, and add its wait for host memory to its wait for the GPU.

        :returns: seconds that it waited for host memory, all of them before its admission.
        """
        wait_s = 0.0
        waited = self._waits.pop(request.index, None)
        if waited is not None:
            outcome, queue_s, wait_s = waited
            request.tier = FROM_STORAGE
            request.load_queue_s += queue_s
            request.load_wait_s += wait_s
            request.outcome = max(request.outcome, outcome)  # a miss counts before a delayed hit
        if self._copies.release(request.adapter):
            self.loader.room_appeared()
        return wait_s

    def renew(self, adapter: int, seconds: float, replace_weights: ReplaceWeights) -> None:
        if self._mode.loads_in_steps:
            self._mode.renew(adapter, seconds, replace_weights)
            return
        self.loader.renew(adapter, seconds, partial(self.replica.at_boundary, without_delay(replace_weights)))

    def load_placed(self, adapter: int, seconds: tuple[float, float], then: Callable[[float], None]) -> None:
        """Fetch an adapter to host memory, from where its first request loads it."""
        self.loader.load_placed(adapter, seconds)
        then(self._clock.now)

    def close(self, now: float) -> None:
        self.loader.close(now)

    def waiting_for_loads(self) -> list[Request]:
        return self.loader.waiting()

    def event_owners(self) -> list[object]:
        return [self.loader]

    def loaded(self, requests: list[Request], may_join_now: bool) -> None:
        for request in requests:
            outcome, _, _ = self._waits[request.index]
            self._waits[request.index] = (outcome, request.load_queue_s, request.load_wait_s)
            request.load_queue_s = request.load_wait_s = 0.0
            self._mode.take_in(request, may_join_now)

    def load_failed(self, requests: list[Request], may_join_now: bool) -> None:
        for request in requests:
            self.replica.fail(request)

    def after_load(self) -> None:
        """Nothing is fetched ahead."""

    def check_integrity(self) -> None:
        self._copies.check_integrity()


class FetchListener(ReplicaListener):
    """Lets requests leave ``HostFill`` as they leave the replica, and passes on all calls.

    :param listener: the one that others have put there.
    """

    def __init__(self, fill: HostFill, recorder: Recorder, listener: ReplicaListener) -> None:
        self.hears_ends = True
        self._fill = fill
        self._recorder = recorder
        self._listener = listener

    def finished(self, request: Request, replica: int, now: float) -> bool:
        waited_s = self._fill.leave(request)
        taken = self._listener.finished(request, replica, now)
        if waited_s and not taken:
            self._recorder.record_host_fill(request.index, waited_s)
        return taken

    def lost(self, request: Request, replica: int) -> None:
        self._listener.lost(request, replica)

    def load_failed(self, request: Request, replica: int) -> None:
        self._fill.leave(request)
        self._listener.load_failed(request, replica)


class FetchedCopies(HostTier):
    """The copies that ``HostFill`` has fetched, for rollouts that replace them. No load to the GPU goes through it."""

    present = True

    def __init__(self, copies: GpuCache, loader: Loader) -> None:
        self._copies = copies
        self._loader = loader

    def holds(self, adapter: int) -> bool:
        return self._copies.holds(adapter)

    def discard(self, adapter: int) -> None:
        self._copies.discard(adapter)
        self._loader.room_appeared()

    def pin_instead(self, old: int, new: int) -> None:
        self._copies.pin_instead(old, new)
