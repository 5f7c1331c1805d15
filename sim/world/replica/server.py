"""One replica: requests arrive, find or wait for their adapter, are served, and leave.

``Server`` holds what both kinds share; ``FixedServer`` serves one request at a time, ``BatchServer``
(``continuous.py``) batches continuously. Both leave adapters to an ``AdapterMode``, and decisions to ``sim.policies``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mypy_extensions import mypyc_attr

from sim.policies.adapter_cache import ABSENT, GpuCache
from sim.policies.host_tier import HostTier
from sim.policies.scheduler import Scheduler
from sim.results.recording.recorder import Recorder
from sim.results.records import REFUSED
from sim.traffic.request import HOLDING, Request
from sim.world.clock import BOUNDARY, Call, Clock
from sim.world.replica.modes.adapter_mode import AdapterMode
from sim.world.replica.ports import Action, Intake, ReplaceWeights, Replica, ReplicaListener


class AdapterCopies:
    """Copies in GPU and host memory: are there any, drop them, load them again.

    :ivar standing_in: whether the replica only stands in for a crashed one: it reads its first copies when it is up
        again.
    """

    def __init__(self, mode: AdapterMode, intake: Intake, *, standing_in: bool) -> None:
        self._mode = mode
        self.intake = intake
        self.standing_in = standing_in

    def exist(self, adapter: int) -> bool:
        """Return whether GPU or host memory has a copy of an adapter, or is loading one."""
        if self.standing_in:
            return False
        return self._mode.cache.holds(adapter) or self.intake.host.holds(adapter)

    @property
    def only_on_gpu(self) -> bool:
        """Whether a copy can be nowhere else, and counts from the beginning of its load."""
        return type(self._mode.cache) is GpuCache and type(self.intake.host) is HostTier

    def drop(self, adapter: int) -> None:
        """Drop all copies of an adapter that is not in use and will not be requested again."""
        self._mode.discard(adapter)
        self.intake.host.discard(adapter)

    def drop_unless_read(self, adapter: int) -> bool:
        """Drop the copy in host memory if it is the only one and no load will read it; return whether none is left."""
        if self._mode.reads_host_copy(adapter):
            return False
        if self._mode.cache.state[adapter] == ABSENT:
            self._mode.cache.discard(adapter)  # a cache may have a host tier of its own
            self._mode.host.discard(adapter)
        return not self.exist(adapter)

    def pin_instead(self, old: int, new: int) -> None:
        """Move the pin of an adapter, if it has one, to its new version."""
        self._mode.cache.pin_instead(old, new)
        self.intake.host.pin_instead(old, new)

    def load_placed(self, adapter: int, seconds: tuple[float, float], then: Callable[[float], None]) -> None:
        """Load an adapter that no request waits for, because it has been placed here.

        Nothing happens if it is there or on its way, or if the replica only stands in for a crashed one.

        :param seconds: load time from a healthy storage, and from host memory.
        :param then: is called with the time at which the next one may be loaded.
        """
        if not self.standing_in:
            self.intake.load_placed(adapter, seconds, then)

    def renew(self, adapter: int, seconds: float, replace_weights: ReplaceWeights) -> None:
        """Load an adapter from storage again, then call ``replace_weights`` between two steps.

        :param seconds: load time of a healthy storage. If loads block steps, this one blocks the next step.
        """
        assert not self.standing_in, "a crashed replica has no copy to renew"
        self.intake.renew(adapter, seconds, replace_weights)


@dataclass(frozen=True, slots=True)
class ReplicaParts:
    """What a replica is made of, besides its mode and, if it batches, its scheduler.

    :ivar index: the replica's number.
    :ivar inside: requests inside each replica, waiting or running; shared with the router, each replica keeps its own
        entry.
    :ivar standing_in: whether it only stands in for a crashed replica, and serves nothing.
    """

    clock: Clock
    recorder: Recorder
    index: int
    inside: list[int]
    intake: Intake
    listener: ReplicaListener
    standing_in: bool = False


@dataclass(slots=True)
class ReplicaTotals:
    """What a replica counts over its life, for the facts of a recording.

    :ivar inside_area: request-seconds spent inside.
    :ivar in_use_peak: most slots or bytes that adapters in use ever took.
    :ivar kv_peak_share: most of the KV cache that decoding sequences ever held.
    :ivar prefix_blocks_evicted: cached KV blocks that were taken for other content.
    :ivar kv_loaded, kv_stored: tokens whose KV was copied from and to host memory; ``kv_host_share``: how full its pool
        there is at the end.
    :ivar merged_gaps: gaps between tokens that clients did not see, behind a front end.
    :ivar verified, drafted, accepted: drafts of one sequence in one step, their tokens, and those that were accepted.
    """

    inside_area: float = 0.0
    evictions: int = 0
    in_use_peak: int = 0
    kv_peak_share: float = 0.0
    prefix_blocks_evicted: int = 0
    merged_gaps: float = 0.0
    kv_loaded: int = 0
    kv_stored: int = 0
    kv_host_share: float = 0.0
    verified: int = 0
    drafted: int = 0
    accepted: int = 0

    def add(self, other: ReplicaTotals) -> None:
        """Add the totals of another replica."""
        self.inside_area += other.inside_area
        self.evictions += other.evictions
        self.in_use_peak = max(self.in_use_peak, other.in_use_peak)
        self.kv_peak_share = max(self.kv_peak_share, other.kv_peak_share)
        self.prefix_blocks_evicted += other.prefix_blocks_evicted
        self.merged_gaps += other.merged_gaps
        self.kv_loaded += other.kv_loaded
        self.kv_stored += other.kv_stored
        self.kv_host_share = max(self.kv_host_share, other.kv_host_share)
        self.verified += other.verified
        self.drafted += other.drafted
        self.accepted += other.accepted


@mypyc_attr(allow_interpreted_subclasses=True)
class Server(Replica):
    """What every replica has: an adapter mode, and a count of the requests inside.

    :ivar intake: what requests pass before they reach the mode.
    :ivar copies: copies of adapters, for those who replace weights.
    :ivar inside_area: request-seconds spent inside, once closed; before that, departure times minus arrival times.
        Counted at arrivals and departures, independently of the requests' own records, so that tests can compare the
        two by Little's law.
    """

    # Without slots, objects with more than 30 attributes are slow to read (CPython 3.11 to 3.13).
    __slots__ = (
        "_inside", "_listener", "_stages", "cache", "clock", "copies", "index", "inside_area", "intake",
        "mode", "recorder",
    )  # fmt: skip  # names in a paragraph, not one a line

    def __init__(self, parts: ReplicaParts, mode: AdapterMode) -> None:
        self.clock = parts.clock
        self.recorder = parts.recorder
        self.index = parts.index
        self.mode = mode
        self.cache = mode.cache
        self.copies = AdapterCopies(mode, parts.intake, standing_in=parts.standing_in)
        self.intake = parts.intake
        self._listener = parts.listener
        self._inside = parts.inside
        self.inside_area = 0.0
        self._stages: tuple[Intake, ...] = (mode,) if parts.intake is mode else (mode, parts.intake)
        for stage in self._stages:
            stage.attach(self)

    def serve_base_model(self) -> int:
        """Also serve requests without an adapter, while still empty; return the number that stands for an adapter.

        Such requests need no load, and no slot unless the cache is a ``SlotForBaseModel``. They cost a step what any
        sequence does; a step for them alone runs without LoRA.
        """
        if self.intake is not self.mode:
            self.intake.serve_base_model()
        return self.mode.serve_base_model()

    def arrive(self, request: Request) -> None:
        """Take in a request."""
        self._inside[self.index] += 1
        self.inside_area -= self.clock.now
        self.intake.take_in(request, False)

    def cached_tokens(self, request: Request) -> int:
        """Return how many tokens of a request are in the KV cache; -1 if that isn't known."""
        return 0

    def _goes(self) -> None:
        self._inside[self.index] -= 1
        self.inside_area += self.clock.now

    def refuse(self, request: Request) -> None:
        self._goes()
        self._listener.lost(request, self.index)
        self.recorder.record_unserved(request, self.index, REFUSED)

    def fail(self, request: Request) -> None:
        self._goes()
        self._listener.load_failed(request, self.index)

    def _leave(self, requests: list[Request], now: float) -> None:
        inside, index, cache, listener = self._inside, self.index, self.cache, self._listener
        hears_ends = listener.hears_ends
        taken_over: list[Request] = []
        for request in requests:
            inside[index] -= 1
            self.inside_area += now
            holding = request.last_step == HOLDING
            if cache.release_paused(request.adapter) if holding else cache.release(request.adapter):
                self.mode.room_appeared()
            if hears_ends and listener.finished(request, index, now):
                taken_over.append(request)
        self._record([r for r in requests if r not in taken_over] if taken_over else requests, now)

    def _record(self, requests: list[Request], now: float) -> None:
        self.recorder.record_completed(requests, self.index, now)

    def close(self) -> list[Request]:
        """Record what is under way when the simulation stops; return the requests still inside."""
        now = self.clock.now
        self.inside_area += self._inside[self.index] * now
        for stage in self._stages:
            stage.close(now)
        return self.all_requests()

    def die(self) -> list[Request]:
        """Crash: record what was under way, cancel all events, and return the requests that were inside."""
        inside = self.close()
        self.clock.forget([self, *(owner for stage in self._stages for owner in stage.event_owners())])
        return inside

    def weights_replaced(self, adapter: int, keep_prefixes: bool) -> None:
        """Note that other weights answer for an adapter from now on.

        :param keep_prefixes: whether requests still find what the old ones computed; otherwise it is dropped.
        """

    def found_outdated_prefix(self, request: Request) -> bool:
        """Return whether a request that leaves found a prefix that weights of before such a replacement computed."""
        return False

    def totals(self) -> ReplicaTotals:
        """Return what this replica has counted."""
        return ReplicaTotals(self.inside_area, self.cache.evictions, self.cache.in_use_peak)

    def follow_batch(self, follow: Callable[[int, Scheduler], None]) -> bool:
        """Call ``follow`` with this replica's index and scheduler, if it has one; return whether it has."""
        return False

    def all_requests(self) -> list[Request]:
        """Return all requests inside, in no particular order."""
        return [request for stage in self._stages for request in stage.waiting_for_loads()] + self._queued_or_running()

    def state_in_words(self) -> str:
        """Describe this replica, for the message of an internal error."""
        loads, cache = len(self.mode.waiting_for_loads()), self.cache
        others = len(self._queued_or_running())
        return (
            f"replica {self.index} has {self._inside[self.index]} inside ({others} queued or running, "
            f"{loads} waiting for loads), {cache.in_use} of {cache.capacity} in use"
        )

    def running(self) -> list[Request]:
        """Return the requests that are being served, in no particular order; the others inside wait."""
        return []

    def batch_size(self) -> int:
        """Return how many requests are being served."""
        return len(self.running())

    def kv_usage(self) -> float:
        """Return the share of the KV cache that running requests hold: ``vllm:kv_cache_usage_perc``."""
        return 0.0

    def busy_s(self) -> float:
        """Return for how long the step under way, or the leap of steps, has been running."""
        return 0.0

    @abstractmethod
    def tokens_out(self, request: Request) -> int:
        """Return how many tokens a request inside has received so far."""

    @abstractmethod
    def in_progress(self, adapter: int) -> list[tuple[Request, int]]:
        """Return the requests for which this adapter has computed something, each with its tokens so far.

        Call it at a step boundary only.
        """

    @abstractmethod
    def _queued_or_running(self) -> list[Request]:
        """Return the requests inside that do not wait for a load."""

    def check_integrity(self) -> None:
        """Assert that the caches agree with a count from scratch."""
        for stage in self._stages:
            stage.check_integrity()


# A replica of engine ``fixed``: one request at a time, with a service time of its own.


class FixedServer(Server):
    """Engine ``fixed``: one request at a time, first ready first served.

    :param mode: loads at arrival.
    """

    def __init__(self, parts: ReplicaParts, mode: AdapterMode) -> None:
        super().__init__(parts, mode)
        self._queue: deque[Request] = deque()
        self._serving: list[Request] = []  # one at most
        self._event = Call(self._served)
        self._actions: list[Action] = []
        self._leaving = False  # the request being served has its answer, and keeps its place for this instant

    def enqueue(self, request: Request, may_join_now: bool) -> None:
        if self._serving:
            self._queue.append(request)
        else:
            self._serve(request)

    def _serve(self, request: Request) -> None:
        now = self.clock.now
        self._serving.append(request)
        request.admitted_s = now
        self.clock.schedule(now + request.service_s, BOUNDARY, self._event)

    def _served(self, event: Call) -> None:
        now, request = self.clock.now, self._serving[0]
        request.first_token_s = now
        self.recorder.record_leap(request.admitted_s, request.service_s, 0.0, 0.0, 1, 0, 1, 0, self.index)
        self._leaving = True
        self._leave([request], now)  # by the weights that were resident until now
        while self._actions:
            self._act()
        self._leaving = False
        self._serving.clear()  # only now: requests that an action releases queue behind those that wait
        if self._queue:
            self._serve(self._queue.popleft())

    def wake(self, key: int, may_join_now: bool) -> None:
        """Requests are served as they become ready."""

    def boundary_due(self) -> bool:
        return False  # nothing is loaded ahead

    def at_boundary(self, action: Action) -> None:
        self._actions.append(action)
        if not self._serving:
            self._act()

    def _act(self) -> None:
        actions, self._actions = self._actions, []
        for action in actions:
            blocked_s = action(self.clock.now)
            assert blocked_s == 0.0, "loads overlap with service"

    def in_progress(self, adapter: int) -> list[tuple[Request, int]]:
        return []  # an answer is one piece of work

    def tokens_out(self, request: Request) -> int:
        return request.output_tokens if request.first_token_s >= 0 else 0

    def close(self) -> list[Request]:
        """Record the service under way; return the requests still inside."""
        worked_s = self.busy_s()
        for request in self._serving if worked_s > 0 else ():
            self.recorder.record_leap(request.admitted_s, worked_s, 0.0, 0.0, 1, 0, 1, 0, self.index)
        return super().close()

    def running(self) -> list[Request]:
        return [] if self._leaving else list(self._serving)

    def busy_s(self) -> float:
        return sum(self.clock.now - request.admitted_s for request in self._serving)

    def _queued_or_running(self) -> list[Request]:
        return self.running() + list(self._queue)
