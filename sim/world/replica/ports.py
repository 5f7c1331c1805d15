"""What a replica and its surroundings know of each other. Replicas import no rollouts, faults or pools.

``LoadTiming`` and ``WeightVersions`` do nothing here, so that a replica without rollouts and faults takes them as they
are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from mypy_extensions import mypyc_attr

from sim.policies.host_tier import HostTier
from sim.results.recording.recorder import Recorder
from sim.traffic.request import Request
from sim.world.clock import Clock

ReplaceWeights = Callable[[float, float], None]
"""Puts new weights in the place of old ones; takes when their load began and ended to block the engine: at the same
time where it didn't."""
Action = Callable[[float], float]
"""Work between two steps: takes the time at which it starts, returns the seconds for which it blocks the engine."""


def without_delay(replace_weights: ReplaceWeights) -> Action:
    """Return work between two steps that does not block the engine."""

    def action(start_s: float) -> float:
        replace_weights(start_s, start_s)
        return 0.0

    return action


class ReplicaListener(ABC):
    """Is called when requests leave a replica.

    :ivar hears_ends: whether ``finished`` is called; otherwise that saves a call for every request.
    """

    hears_ends: bool

    @abstractmethod
    def finished(self, request: Request, replica: int, now: float) -> bool:
        """A request has its last token and is about to be recorded. Return True to take it over, to send it again."""

    @abstractmethod
    def lost(self, request: Request, replica: int) -> None:
        """A request has left unserved."""

    @abstractmethod
    def load_failed(self, request: Request, replica: int) -> None:
        """A request has left because its adapter could not be loaded."""


@dataclass(frozen=True, slots=True)
class Attempts:
    """How one load from storage goes.

    :ivar spans: start and end of each attempt; empty: nothing disturbed the load, which takes its own seconds.
    :ivar seconds: from the start of the first attempt to the end of the last; means nothing where ``spans`` is empty.
    :ivar succeeds: whether the last attempt succeeds.
    """

    spans: tuple[tuple[float, float], ...]
    seconds: float
    succeeds: bool


UNDISTURBED: Final = Attempts((), 0.0, True)
"""How a load goes that no fault delays."""


class LoadTiming:
    """How long loads from storage take on one replica. These take their own time; faults of storage change that.

    :cvar disturbs: whether ``attempts`` is called; otherwise every load takes its own seconds.
    """

    disturbs = False

    def attempts(self, start_s: float, seconds: float, adapter: int, index: int) -> Attempts:
        """Return how a load goes that starts at ``start_s``.

        :param seconds: load time of a healthy storage.
        :param index: of the request that started it; below 0: no request did.
        """
        return UNDISTURBED

    def seconds(self, start_s: float, seconds: float, adapter: int) -> float:
        """Return the seconds of a load without a request, whose attempts never fail."""
        return seconds


class WeightVersions:
    """Is called when loads start to read and when they end. Here adapters have one version, so nothing follows.

    :cvar hears_loads: whether it is called at all: not here.
    """

    hears_loads = False

    def load_started(self, adapter: int, tier: int) -> None:
        """A load from a tier starts to read."""

    def load_ended(self, adapter: int, tier: int) -> None:
        """A load has ended; one from storage leaves a copy in host memory, if there is any."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Replica(ABC):
    """The calls that an adapter mode may make on its replica."""

    __slots__ = ()

    @abstractmethod
    def enqueue(self, request: Request, may_join_now: bool) -> None:
        """Queue a request for the batch.

        :param may_join_now: whether it may still join at a step boundary of this very instant.
        """

    @abstractmethod
    def wake(self, key: int, may_join_now: bool) -> None:
        """Bring the next step boundary forward for a waiting request with this key, if it may join."""

    @abstractmethod
    def boundary_due(self) -> bool:
        """Return whether a step boundary of this very instant is still to come."""

    @abstractmethod
    def at_boundary(self, action: Action) -> None:
        """Call ``action`` when no step is under way: at the next boundary, or at once if the replica is idle."""

    @abstractmethod
    def fail(self, request: Request) -> None:
        """Let a request go whose adapter could not be loaded."""

    @abstractmethod
    def refuse(self, request: Request) -> None:
        """Let a request go that finds no place."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Intake(ABC):
    """Takes in requests, and loads what they need.

    :ivar host: copies in host memory, which a new version of an adapter must replace.
    :ivar replica: the replica that it works for.
    """

    def __init__(self, host: HostTier) -> None:
        self.host = host
        self.replica: Replica

    def attach(self, replica: Replica) -> None:
        """Begin to work for a replica, which is still empty."""
        self.replica = replica

    @abstractmethod
    def serve_base_model(self) -> int:
        """Also serve requests without an adapter; return the number that stands for one."""

    @abstractmethod
    def take_in(self, request: Request, may_join_now: bool) -> None:
        """Take in a request: pass it on, load its adapter first, or refuse it.

        :param may_join_now: whether it may still join at a step boundary of this very instant.
        """

    def waiting_for_loads(self) -> list[Request]:
        """Return the requests that wait for a load."""
        return []

    @abstractmethod
    def renew(self, adapter: int, seconds: float, replace_weights: ReplaceWeights) -> None:
        """Load an adapter from storage again, then call ``replace_weights`` between two steps.

        :param seconds: load time of a healthy storage.
        """

    def load_placed(self, adapter: int, seconds: tuple[float, float], then: Callable[[float], None]) -> None:
        """Load an adapter without a request; see ``AdapterCopies.load_placed``. By default its first request does."""

    def close(self, now: float) -> None:
        """Record the loads still under way when the simulation stops."""

    def event_owners(self) -> list[object]:
        """Return the objects whose events a crash takes off the clock."""
        return []

    @abstractmethod
    def check_integrity(self) -> None:
        """Assert that caches and queues agree with a count from scratch."""


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What every load on a replica needs to know.

    :ivar replica: index of the replica, for the records.
    """

    clock: Clock
    recorder: Recorder
    replica: int
    versions: WeightVersions = field(default_factory=WeightVersions)
    timing: LoadTiming = field(default_factory=LoadTiming)
