"""What breaks while traffic flows: replicas, storage, loads, and who reaches which adapter."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from sim.spec.base import Strict, located
from sim.spec.sections.laws import TimeLaw
from sim.spec.units import Seconds, Share


class Crash(Strict):
    """A replica dies; its caches, batch and queue are gone. Where it comes back, it begins with an empty GPU."""

    kind: Literal["crash"]
    replica: NonNegativeInt
    """Which one; the first is 0."""
    at: Seconds
    """When it dies."""
    down: Seconds | None = Field(default=None, gt=0)
    """How long until it takes requests again; unset: it stays away."""
    detected: Seconds = Field(default=0.0, ge=0)
    """How long until the router notices. Until then it goes on sending requests there."""
    requests: Literal["reroute", "lose"] = "reroute"
    """What becomes of the requests inside, and of those sent there before it is detected. ``reroute``: once it is
    detected, they begin anew on another replica. ``lose``: they fail."""


class SlowStorage(Strict):
    """Loads from storage take longer for a while; those under way are slowed down from this moment on."""

    kind: Literal["slow-storage"]
    at: Seconds
    """When it begins."""
    lasts: Seconds = Field(ge=0)
    """How long; 0: it never happens, which is the point of a sweep to compare with."""
    factor: float = Field(gt=1, le=1e6)
    """How many times as long a load takes."""
    replica: NonNegativeInt | None = None
    """Only this replica's; unset: that of all replicas."""


class StorageStall(Strict):
    """Nothing comes from storage for a while; loads under way stand still and then go on."""

    kind: Literal["storage-stall"]
    at: Seconds
    """When it begins."""
    lasts: Seconds = Field(ge=0)
    """How long; 0: it never happens, which is the point of a sweep to compare with."""
    replica: NonNegativeInt | None = None
    """Only this replica's; unset: that of all replicas."""


class FailingLoads(Strict):
    """Loads from storage fail at their end, and are tried again after a pause that doubles each time."""

    kind: Literal["failing-loads"]
    probability: Share
    """How likely each attempt is to fail; 0: none does."""
    at: Seconds = Field(default=0.0, ge=0)
    """When it begins."""
    lasts: Seconds | None = Field(default=None, ge=0)
    """How long; 0: it never happens; unset: to the end."""
    retries: NonNegativeInt = Field(default=3, le=100)
    """Attempts after the first one; if the last one fails, so do the requests that wait for it."""
    backoff: Seconds = Field(default=1.0, ge=0)
    """Pause before the first retry; it doubles before each further one."""
    replica: NonNegativeInt | None = None
    """Only this replica's; unset: those of all replicas."""


class NetworkDelay(Strict):
    """Adapters lie on the far side of a network: loads from storage take longer by this."""

    kind: Literal["network-delay"]
    delay: TimeLaw
    """What a load takes beside its own time."""
    at: Seconds = Field(default=0.0, ge=0)
    """When it begins; it counts for loads that start from then on."""
    lasts: Seconds | None = Field(default=None, ge=0)
    """How long; 0: it never happens; unset: to the end."""
    share: Share = Field(default=1.0, gt=0)
    """Share of the adapters that are remote."""
    replica: NonNegativeInt | None = None
    """Only this replica's; unset: those of all replicas."""


class Detector(Strict):
    """The answer names the adapter that made it, and a client looks at that now and then."""

    checks: Share = 1.0
    """Share of the answers that are checked."""
    retries: NonNegativeInt = Field(default=1, le=100)
    """How often a request is sent again after a wrong answer; a wrong answer to the last try is reported to nobody
    else, and counts as detected and failed."""
    delay: Seconds = Field(default=0.0, ge=0)
    """Pause before it is sent again. It then asks for its own adapter, and stands behind all that wait by then."""


class IdentityFault(Strict):
    """What the faults have in common by which a request reaches the wrong adapter.

    Where several could lead the same request astray, the first one listed does.
    """

    at: Seconds = Field(default=0.0, ge=0)
    """When it begins."""
    lasts: Seconds | None = Field(default=None, ge=0)
    """How long; 0: it never happens; unset: to the end."""
    detector: Detector | None = None
    """Who notices; unset: nobody."""


class Misrouting(IdentityFault):
    """A request reaches another adapter by chance."""

    kind: Literal["misrouting"]
    probability: Share
    """How likely that is for each request; 0: it never happens."""
    to: Literal["popular", "any"] = "popular"
    """Which adapter it reaches: drawn by popularity, as if two requests were mixed up, or any other one; of those that
    are there at the start, and by their popularity then."""


class StaleMap(IdentityFault):
    """Names are given to other adapters, and routers learn of it late: until then all requests for them go wrong."""

    kind: Literal["stale-map"]
    share: Share = Field(gt=0)
    """Share of the adapters that change their place in the map. They change it among each other."""
    propagation: TimeLaw
    """How long the new map takes to reach each of ``router.instances``, drawn anew for each."""


class BaseModelAnswers(IdentityFault):
    """A request is answered by the base model, without its adapter, and nobody says so.

    It is routed like any other for its adapter, but needs no load and no slot, not even that of
    ``cache.gpu.base_model_slot``, and makes a step no dearer than a sequence does.
    """

    kind: Literal["base-model"]
    probability: Share
    """How likely that is for each request; 0: it never happens."""


class NamedPrefixes(Strict):
    """A prefix cache that knows adapters by name: after a swap under the same name, requests find the prefixes that the
    old version computed. No time is saved here: loraplan has no prefix cache otherwise."""

    kind: Literal["named-prefixes"]
    share: Share = Field(gt=0)
    """Share of the requests that find their prefix in the cache, on replicas that had answered with the old version."""
    lifetime: Seconds = Field(gt=0)
    """How long after the last answer by the old version on a replica its prefixes are still found there."""


StorageFault = SlowStorage | StorageStall | FailingLoads | NetworkDelay
Misidentity = Misrouting | StaleMap | BaseModelAnswers
Fault = Annotated[
    Crash
    | SlowStorage
    | StorageStall
    | FailingLoads
    | NetworkDelay
    | Misrouting
    | StaleMap
    | BaseModelAnswers
    | NamedPrefixes,
    Field(discriminator="kind"),
]


def never_happens(fault: Fault) -> bool:
    """Return whether a fault lasts no time, or has no probability: the healthy point of a sweep."""
    return getattr(fault, "lasts", None) == 0 or getattr(fault, "probability", None) == 0


def check_faults(faults: tuple[Fault, ...], replicas: int) -> None:
    """Check faults against the fleet and each other.

    :raises PydanticCustomError: for a replica that isn't there, or one that is to crash while it is down.
    """
    down: dict[int, list[tuple[float, float, int]]] = {}
    for i, fault in enumerate(faults):
        replica = getattr(fault, "replica", None)
        if replica is not None and replica >= replicas:
            raise located(
                f"faults.{i}.replica",
                "there is no such replica",
                got=replica,
                allowed=f"0 to {replicas - 1} (fleet.replicas {replicas})",
            )
        if isinstance(fault, Crash):
            end = float("inf") if fault.down is None else fault.at + max(fault.down, fault.detected)
            for begin, until, j in down.get(fault.replica, []):
                if fault.at <= until and begin <= end:
                    raise located(
                        f"faults.{i}.at", f"replica {fault.replica} is down already (faults.{j})", got=f"{fault.at:g} s"
                    )
            down.setdefault(fault.replica, []).append((fault.at, end, i))
