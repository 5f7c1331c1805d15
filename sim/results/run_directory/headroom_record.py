"""How much more traffic fits: what a headroom search leaves in the manifest of a run directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sim.results.model import from_plain
from sim.results.point import Point

QUEUES = "queues"
"""In place of an SLO term: queues grow without limit."""
BUCKETS = "buckets"
"""The same: the queue in front of a tenant's token bucket does."""
FOUND, NEVER, ALWAYS, CLOSED_LOOP = "found", "never", "always", "closed loop"
TOO_LONG, TOO_SHORT = "too long", "too short"
SCALING, EMPTY_CACHES = "autoscaling", "empty caches at the start"
"""In ``Headroom.without``: an autoscaler, in place of which the search runs all replicas that it may start; and caches
that a run of today's traffic finds empty, in place of full ones."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One short simulation of a multiple of the traffic.

    :ivar requests: measured ones.
    :ivar strain: of the worst term, value over target; above 1 the SLO fails.
    :ivar term: that term, by metric name, or ``queues`` or ``buckets``.
    """

    multiple: float
    requests: int
    strain: float
    term: str


@dataclass(frozen=True, slots=True)
class Headroom:
    """At what multiple of the scenario's traffic the SLO fails; without an SLO, where queues grow without limit.

    :ivar outcome: ``found``; ``never``: the SLO fails even with hardly any traffic; ``always``: nothing that was tried
        makes it fail; ``closed loop``: clients wait for answers, so without an SLO nothing can fail; ``too long``: the
        traffic changes so slowly that nothing was tried but the throughput of full batches; ``too short``: a trace
        has too few requests to fill the batches.
    :ivar multiple: where the worst term crosses its target; None unless found.
    :ivar lo, hi: of the probes around it: the last that holds, the first that fails.
    :ivar term: what fails first, by metric name, or ``queues`` or ``buckets``.
    :ivar saturation: the multiple at which the fleet's throughput ends, with batches as large as they get; None in a
        closed loop.
    :ivar period_s: how long the traffic takes to go through its phases, where short simulations can't cover that: at
        all, or beyond ``lo``.
    :ivar trace_requests, needed_requests: of a trace that is too short, how many it has and about how many it takes.
    :ivar without: parts of the scenario that happen at given times, so that the search leaves them out; and empty
        caches at the start, where without them the SLO clearly holds.
    :ivar probes: all simulations, in order.
    :ivar failing: the point at ``hi``, or the least traffic that was tried where the outcome is ``never``: what limits
        it is what limits the traffic.
    """

    outcome: str
    multiple: float | None = None
    lo: float | None = None
    hi: float | None = None
    term: str = ""
    saturation: float | None = None
    period_s: float | None = None
    trace_requests: int | None = None
    needed_requests: int | None = None
    without: tuple[str, ...] = ()
    probes: tuple[Probe, ...] = ()
    failing: Point | None = field(default=None, repr=False)

    @property
    def holds_today(self) -> bool:
        """Whether the search found that the SLO holds with today's traffic."""
        return self.outcome == ALWAYS or (self.multiple is not None and self.multiple >= 1)

    @property
    def fails_today(self) -> bool:
        """Whether the search found that the SLO fails with today's traffic; where nothing was searched, it found
        neither."""
        return self.outcome == NEVER or (self.multiple is not None and self.multiple < 1)

    @property
    def load(self) -> float | None:
        """The traffic as a share of what the fleet can serve with its largest batches."""
        return 1 / self.saturation if self.saturation else None

    def summary(self) -> dict[str, Any]:
        """Return the answer as plain data, for ``--json``."""
        names = ("outcome", "multiple", "lo", "hi", "term", "saturation", "load")
        found = {name: getattr(self, name) for name in names}
        known = ("period_s", "trace_requests", "needed_requests")
        return found | {name: getattr(self, name) for name in known if getattr(self, name) is not None}

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            **self.summary(),
            "without": list(self.without),
            "probes": [asdict(probe) for probe in self.probes],
            "failing": None if self.failing is None else self.failing.to_json(),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Headroom:
        """Return the headroom of a run directory."""
        failing = data.get("failing")
        point = Point.from_json(failing) if failing else None
        return replace(from_plain(Headroom, {**data, "failing": None}), failing=point)
