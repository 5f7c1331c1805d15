"""What every router is made from, what it decides, and how one from outside is watched."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mypy_extensions import trait

from sim.spec.policies import ROUTERS
from sim.spec.registry import Entry
from sim.spec.sections.control_plane import Router as RouterSpec
from sim.traffic.request import Request


class Running(Protocol):
    """Which replicas run an adapter; a list is one."""

    def __getitem__(self, adapter: int, /) -> int: ...


def _nothing(replica: int, request: Request) -> int:
    return 0


@dataclass(slots=True)
class View:
    """What a router knows of the replicas. The lists are shared with the world, or copies of some age.

    :ivar loads: by replica, requests inside: waiting or running.
    :ivar up: indices of the replicas that the router believes to be up, ascending; never empty at a choice.
    :ivar resident: by adapter, a bit mask of the replicas where it is in GPU memory or on its way there.
    :ivar running: by adapter, a bit mask of the replicas in whose batch it is.
    :ivar inside: by replica, requests inside by adapter; where the view is a copy, an empty dict may stand for any with
        fewer adapters than ``slots``.
    :ivar texts: keys of the texts that the request at hand shares with others, the longest first: its conversation,
        then the runs of its prompt (``Request.shared``), the last one first.
    :ivar cached: returns how many tokens of a request a replica would find cached; -1 where its engine can't tell.
    :ivar slots: adapters that one replica can run at a time.
    :ivar waiting, batch, kv: by replica, requests that wait, requests that run, and the share of the KV cache in use.
    :ivar listed: by replica, requests inside by adapter, all of them.
    :ivar held: by replica, how many adapters are in GPU memory or on their way there.
    :ivar copies: by adapter, a bit mask of the replicas with a copy, in host memory or on the GPU; always current.
    :ivar in_flight: as ``loads``, but always current: what a router knows that has sent all requests itself.
    :ivar request: the request at hand.
    :ivar reading: another number after every change, where what is here changes at readings only; 0 where it is live.
    """

    loads: list[int] = field(default_factory=list)
    up: list[int] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    running: Running = field(default_factory=list[int])
    inside: list[dict[int, int]] = field(default_factory=list)
    texts: Sequence[int] = ()
    cached: Callable[[int, Request], int] = _nothing
    slots: int = 1
    reading: int = 0
    waiting: list[int] = field(default_factory=list)
    batch: list[int] = field(default_factory=list)
    kv: list[float] = field(default_factory=list)
    listed: list[dict[int, int]] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    copies: Running = field(default_factory=list[int])
    in_flight: list[int] = field(default_factory=list)
    request: Request | None = None

    def goes_down(self, replica: int) -> None:
        """Exclude a replica from routing."""
        self.up.remove(replica)
        self.reading += self.reading > 0

    def comes_up(self, replica: int) -> None:
        """Include a replica in routing again."""
        insort(self.up, replica)
        self.reading += self.reading > 0


@dataclass(frozen=True, slots=True)
class RouterContext:
    """What a router is made from.

    :ivar view: what it sees of the replicas, kept current or read at intervals (``router.staleness``).
    :ivar replicas: how many there are, up or down.
    :ivar key: of its random numbers and hashes, see ``sim.rng.stream_key``.
    :ivar adapters: how many there are at the start; a request may name a later one.
    :ivar weights: share of the traffic by adapter, in any unit; None: not known, taken as equal.
    :ivar bound: most requests in a replica over the mean, above 1; None: no bound.
    :ivar placement: a name in ``PLACEMENTS``; ``copies``: replicas on which each adapter is placed.
    :ivar homes: by adapter, the replicas on which a controller has placed it at the start; None: there is none.
    :ivar spec: the section of the scenario, for routers with a section of their own.
    :ivar tenants: whether there are tenants; otherwise that of every request is 0.
    :ivar lists_twice: whether the metrics of the replicas list every adapter in flight as running and as waiting.
    :ivar block_tokens: tokens of a block of the router's prefix index; ``index_blocks``: by replica, how many it keeps;
        empty: no two requests share text.
    :ivar base_model: the adapter of requests to the base model, a number above those of all adapters. Every replica can
        answer them, so a router by adapters should spread them. No view lists the base model.
    """

    view: View
    replicas: int
    key: int
    adapters: int
    weights: Sequence[float] | None = None
    bound: float | None = None
    placement: str = "least-adapters"
    copies: int = 1
    homes: dict[int, tuple[int, ...]] | None = None
    base_model: int = -1
    spec: RouterSpec = field(default_factory=RouterSpec)
    tenants: bool = False
    lists_twice: bool = False
    block_tokens: int = 64
    index_blocks: Sequence[int] = ()


class Choosing(Protocol):
    """Choose a replica for each request."""

    def choose(self, adapter: int, number: int) -> int:
        """Return the index of a replica that is up.

        :param adapter: the adapter asked for, or ``RouterContext.base_model``.
        :param number: the request's own number, which keys its random draw: it is the same in every design.
        """
        ...


VIEW_FIELDS = frozenset(
    ("loads", "resident", "running", "inside", "texts", "request", "cached", "in_flight", "waiting", "batch", "kv")
).union(("listed", "held", "copies"))
"""What a view holds only for routers that say they read it."""


class Router(Choosing, Protocol):
    """Choose a replica for each request of a fleet; a scenario names it as ``router.policy``.

    To write one, make a class that takes a ``RouterContext`` and has ``reads`` and ``choose``. It needs no base class.
    Name it with ``routers={"mine": Mine}`` in Python, or with an entry point of the group ``loraplan.routers``
    (docs/own-policy.md)::

        class FirstUp:
            reads = frozenset()  # it looks at nothing but which replicas are up

            def __init__(self, context):
                self._view = context.view

            def choose(self, adapter, number):
                return self._view.up[0]

    The simulator makes one router for each replication. It calls ``choose`` once for each request, in order of arrival,
    and again when a request is sent again. ``choose`` returns an index in ``view.up`` and changes nothing but the
    router's own state: the lists of the view belong to the simulator and may be its own. A router that draws takes its
    number from ``sim.rng.uniform_draw(context.key, number)``, so that a request draws the same number in every design.

    :ivar reads: the fields of the view that it reads. ``up`` and ``slots`` are always there; a view holds nothing in
        the other fields.
    """

    @property
    def reads(self) -> frozenset[str]: ...


@trait
class Following:
    """A router that keeps count of the requests that entered its replicas, and of what becomes of them."""

    def entered(self, request: Request, replica: int) -> None:
        """A request has entered a replica."""

    def ended(self, request: Request, replica: int, now: float) -> None:
        """A request has its last token; ``left`` follows."""

    def left(self, request: Request, replica: int) -> None:
        """A request has left a replica, served or not."""


def settings_of(policy: str, context: RouterContext) -> Mapping[str, float]:
    """Return the numbers of a policy of loraplan's own, as ``router.settings`` changes them."""
    return {**ROUTERS[policy].settings, **(context.spec.settings or {})}


def is_up(replica: int, up: Sequence[int]) -> bool:
    """Return whether a replica is in an ascending list."""
    place = bisect_left(up, replica)
    return place < len(up) and up[place] == replica


def load_limit(bound: float, loads: Sequence[int], up: Sequence[int]) -> float:
    """Return what a replica's requests must stay below to get one more: ``bound`` times the mean with that one.

    A replica then holds at most ``ceil(bound * (total + 1) / replicas)`` requests, as in Mirrokni, Thorup and
    Zadimoghaddam, "Consistent Hashing with Bounded Loads" (SODA 2018). The least loaded of ``up`` always is below.
    """
    total = sum(loads) if len(up) == len(loads) else sum(loads[replica] for replica in up)
    return bound * (total + 1) / len(up)


class WatchedRouter:
    """A router from outside whose choices are checked: a replica that is up."""

    def __init__(self, entry: Entry, router: Choosing, reads: frozenset[str], view: View) -> None:
        self._entry = entry
        self._router = router
        self._view = view
        self.reads = reads

    def choose(self, adapter: int, number: int) -> int:
        chosen = self._router.choose(adapter, number)
        if chosen not in self._view.up:
            up = ", ".join(map(str, self._view.up[:8]))
            raise self._entry.unusable(f"choose() returned {chosen!r}, but the replicas that are up are: {up}")
        return chosen
