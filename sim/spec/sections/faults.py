"""Faults during a run: replicas, storage, loads, and requests that reach the wrong adapter."""

from __future__ import annotations

from math import inf
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from sim.spec.base import Strict
from sim.spec.sections.laws import TimeLaw
from sim.spec.units import Moment, Seconds, Share


class Crash(Strict):
    """A replica dies; its caches, batch and queue are lost. If it comes back, it starts with an empty GPU."""

    kind: Literal["crash"]
    replica: NonNegativeInt
    """Which one; the first is 0."""
    at: Moment
    """When it dies."""
    down: Seconds | None = Field(default=None, gt=0)
    """How long until it serves again; unset: never."""
    detected: Seconds = Field(default=0.0, ge=0)
    """How long until the router notices. Until then it keeps sending requests there."""
    requests: Literal["reroute", "lose"] = "reroute"
    """What happens to requests on the replica and to those sent there before the crash is detected. ``reroute``: they
    restart on another replica once it is detected. ``lose``: they fail."""


class SlowStorage(Strict):
    """Loads from storage take longer for a while, including loads in flight."""

    kind: Literal["slow-storage"]
    at: Moment
    """When it begins."""
    lasts: Seconds = Field(ge=0)
    """How long; 0: never, as the baseline of a sweep."""
    factor: float = Field(gt=1, le=1e6)
    """How many times as long a load takes."""
    replica: NonNegativeInt | None = None
    """Only on this replica; unset: on all."""


class StorageStall(Strict):
    """Storage delivers nothing for a while; loads in flight pause and then continue."""

    kind: Literal["storage-stall"]
    at: Moment
    """When it begins."""
    lasts: Seconds = Field(ge=0)
    """How long; 0: never, as the baseline of a sweep."""
    replica: NonNegativeInt | None = None
    """Only on this replica; unset: on all."""


class FailingLoads(Strict):
    """Loads from storage fail at their end and are retried after a pause that doubles each time."""

    kind: Literal["failing-loads"]
    probability: Share
    """Probability that an attempt fails; 0: none does."""
    at: Moment = Field(default=0.0, ge=0)
    """When it begins."""
    lasts: Seconds | None = Field(default=None, ge=0)
    """How long; 0: never; unset: to the end."""
    retries: NonNegativeInt = Field(default=3, le=100)
    """Attempts after the first one; if the last one fails, the requests that wait for it fail too."""
    backoff: Seconds = Field(default=1.0, ge=0)
    """Pause before the first retry; it doubles before each further one."""
    replica: NonNegativeInt | None = None
    """Only on this replica; unset: on all."""


class NetworkDelay(Strict):
    """Adapters are on remote storage: a network delay is added to loads from storage."""

    kind: Literal["network-delay"]
    delay: TimeLaw
    """The delay that is added to a load."""
    at: Moment = Field(default=0.0, ge=0)
    """When it begins, for loads that start from then on."""
    lasts: Seconds | None = Field(default=None, ge=0)
    """How long; 0: never; unset: to the end."""
    share: Share = Field(default=1.0, gt=0)
    """Share of the adapters that are remote."""
    replica: NonNegativeInt | None = None
    """Only on this replica; unset: on all."""


class Detector(Strict):
    """A client check: each answer names the adapter that made it, and the client compares a share of them."""

    checks: Share = 1.0
    """Share of the answers that are checked."""
    retries: NonNegativeInt = Field(default=1, le=100)
    """How often a request is sent again after a wrong answer; a wrong answer to the last retry counts as detected and
    failed."""
    delay: Seconds = Field(default=0.0, ge=0)
    """Pause before it is sent again. It then goes to its own adapter, at the end of the queue."""


class IdentityFault(Strict):
    """Fields shared by faults that send a request to the wrong adapter.

    If several apply to a request, the first one listed decides.
    """

    at: Moment = Field(default=0.0, ge=0)
    """When it begins."""
    lasts: Seconds | None = Field(default=None, ge=0)
    """How long; 0: never; unset: to the end."""
    detector: Detector | None = None
    """How wrong answers are detected; unset: they are not."""


class Misrouting(IdentityFault):
    """A request reaches another adapter by chance."""

    kind: Literal["misrouting"]
    probability: Share
    """Probability for each request; 0: never."""
    to: Literal["popular", "any"] = "popular"
    """Which adapter it reaches: drawn by popularity, as if two requests were mixed up, or any other one; among the
    adapters at the start of the run, by their popularity then."""


class StaleMap(IdentityFault):
    """Adapter names are reassigned and routers learn of it late; until then all requests for these names go wrong."""

    kind: Literal["stale-map"]
    share: Share = Field(gt=0)
    """Share of the adapters that swap names with each other."""
    propagation: TimeLaw
    """How long the new map takes to reach each of ``router.instances``, drawn for each."""


class BaseModelAnswers(IdentityFault):
    """The base model answers a request silently, without its adapter.

    The request is routed like any other for its adapter, but is served like a request to the base model: it needs no
    load and no slot (with ``cache.gpu.base_model_slot`` and ``storage.mode: blocking`` that of the base model), and a
    step whose batch has no adapter runs without LoRA.
    """

    kind: Literal["base-model"]
    probability: Share
    """Probability for each request; 0: never."""


class NamedPrefixes(Strict):
    """A prefix cache keyed by adapter name: after a swap under the same name, requests hit prefixes that the old
    version computed. With ``fleet.prefix_caching`` and requests that share text, the cache itself says which do;
    otherwise ``share`` and ``lifetime`` say how many."""

    kind: Literal["named-prefixes"]
    share: Share | None = Field(default=None, gt=0)
    """Without a prefix cache: share of requests that would hit it, on replicas that had answered with the old
    version. These hits save no time."""
    lifetime: Seconds | None = Field(default=None, gt=0)
    """Without a prefix cache: how long prefixes would stay in the cache of a replica after the last answer of the old
    version there."""


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


def ends_s(fault: StorageFault | Misidentity) -> float:
    """Return when a fault ends; infinite where it lasts to the end of the run."""
    return inf if fault.lasts is None else fault.at + fault.lasts


def never_happens(fault: Fault) -> bool:
    """Return whether a fault has no duration or no probability: the baseline of a sweep."""
    return getattr(fault, "lasts", None) == 0 or getattr(fault, "probability", None) == 0


def already_down(faults: tuple[Fault, ...], i: int) -> int | None:
    """Return the place of an earlier crash after which the replica that crashes at place ``i`` is still down."""
    crash = faults[i]
    for j, other in enumerate(faults[:i]):
        if isinstance(crash, Crash) and isinstance(other, Crash) and _meet(crash, other):
            return j
    return None


def _meet(one: Crash, other: Crash) -> bool:
    return one.replica == other.replica and one.at <= _back_s(other) and other.at <= _back_s(one)


def _back_s(crash: Crash) -> float:
    return inf if crash.down is None else crash.at + max(crash.down, crash.detected)
