"""What takes in the requests of a replica: its adapter mode, or a stage in front of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from mypy_extensions import mypyc_attr

from sim.policies.host_tier import HostTier
from sim.traffic.request import Request
from sim.world.replica.ports import Replica


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
    def renew(self, adapter: int, seconds: float, replace_weights: Callable[[], None]) -> None:
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
