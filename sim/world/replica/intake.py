"""What a request passes between its arrival at a replica and the replica's adapter mode."""

from __future__ import annotations

from collections.abc import Callable

from sim.policies.adapter_cache import HostTier
from sim.traffic.request import Request
from sim.world.replica.modes.adapter_mode import AdapterMode
from sim.world.replica.ports import Replica


class Intake:
    """Lets every request through at once. ``HostFill`` first brings its adapter to host memory.

    :ivar host: copies in host memory, which a new version of an adapter must replace.
    """

    def __init__(self, mode: AdapterMode, host: HostTier) -> None:
        self._mode = mode
        self.host = host

    def attach(self, replica: Replica) -> None:
        """Begin to work for a replica, which is still empty."""

    def serve_base_model(self) -> None:
        """Also let requests without an adapter through."""

    def arrive(self, request: Request) -> None:
        """Pass on a request to the mode, let it wait, or refuse it."""
        self._mode.take_in(request, False)

    def leave(self, request: Request) -> float:
        """Note that a request leaves; return the seconds for which it waited here."""
        return 0.0

    def waiting(self) -> list[Request]:
        """Return the requests that wait here."""
        return []

    def renew(self, adapter: int, seconds: float, replace_weights: Callable[[], None]) -> None:
        """Load an adapter from storage again, then call ``replace_weights`` between two steps.

        :param seconds: load time of a healthy storage.
        """
        self._mode.renew(adapter, seconds, replace_weights)

    def close(self, now: float) -> None:
        """Record what is under way when the simulation stops."""

    def event_owners(self) -> list[object]:
        """Return the objects whose events a crash takes off the clock."""
        return []

    def check_integrity(self) -> None:
        """Assert that caches agree with a count from scratch."""
