"""What changes a fleet during a run: faults, and rollouts of new adapter versions."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from sim.spec.base import Errors, Strict, checks, located
from sim.spec.sections.laws import TimeLaw
from sim.spec.units import Bytes, Moment, Seconds, Share, format_seconds, format_share

if TYPE_CHECKING:
    from sim.arrays import Floats


# Faults during a run: replicas, storage, loads, and requests that reach the wrong adapter.


class Crash(Strict):
    """A replica dies and loses its caches, batch and queue. If it comes back, its GPU is empty."""

    kind: Literal["crash"]
    replica: NonNegativeInt
    """Which one; the first is 0."""
    at: Moment
    """When it dies."""
    down: Seconds | None = Field(default=None, gt=0)
    """How long until it serves again; unset: never."""
    detected: Seconds = Field(default=0.0, ge=0)
    """How long until the router notices and sends no more requests there."""
    requests: Literal["reroute", "lose"] = "reroute"
    """What happens to requests on the replica and to those sent there before the crash is detected. ``reroute``: they
    then restart on another replica. ``lose``: they fail."""


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
    """Adapters are on remote storage, which adds a delay to loads."""

    kind: Literal["network-delay"]
    delay: TimeLaw
    """The delay of a load."""
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
    """How often a request is sent again after a wrong answer; if the last answer is wrong too, it fails."""
    delay: Seconds = Field(default=0.0, ge=0)
    """Pause before it is sent again, to its own adapter and to the end of the queue."""


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
    """Which adapter it reaches: drawn by popularity, as if two requests were mixed up, or any other one."""


class StaleMap(IdentityFault):
    """Adapter names are reassigned and routers learn of it late; until then all requests for these names go wrong."""

    kind: Literal["stale-map"]
    share: Share = Field(gt=0)
    """Share of the adapters that swap names with each other."""
    propagation: TimeLaw
    """How long the new map takes to reach each of ``router.instances``, drawn for each."""


class BaseModelAnswers(IdentityFault):
    """The base model answers a request silently, without its adapter. The request is routed for its adapter, but served
    like one to the base model."""

    kind: Literal["base-model"]
    probability: Share
    """Probability for each request; 0: never."""


class NamedPrefixes(Strict):
    """A prefix cache keyed by adapter name: after a swap under the same name, requests hit prefixes of the old version.
    With ``fleet.prefix_caching`` and requests that share text the cache says itself which do; otherwise ``share`` and
    ``lifetime`` say how many."""

    kind: Literal["named-prefixes"]
    share: Share | None = Field(default=None, gt=0)
    """Without a prefix cache: share of requests that would hit it, on replicas that had answered with the old
    version."""
    lifetime: Seconds | None = Field(default=None, gt=0)
    """Without a prefix cache: how long prefixes would stay after the last answer of the old version."""


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
    crash, earlier = faults[i], [(j, each) for j, each in enumerate(faults[:i]) if isinstance(each, Crash)]
    if not isinstance(crash, Crash):
        return None
    same = ((j, each) for j, each in earlier if each.replica == crash.replica)
    return next((j for j, each in same if crash.at <= _back_s(each) and each.at <= _back_s(crash)), None)


def _back_s(crash: Crash) -> float:
    return inf if crash.down is None else crash.at + max(crash.down, crash.detected)


# Rollouts: new adapter versions that go out during a run.

STRATEGIES = ("new-name", "in-place", "unload-then-load", "drain-then-swap", "lazy-reread")
PROPAGATED = 0.999
"""Share of the propagation delays that count as finished, for laws without a maximum."""


def _one_adapter(value: Any) -> Any:
    """Refuse with one message what is neither number nor name: a choice of two types would give two messages."""
    if value is None or isinstance(value, str) or (type(value) is int and value >= 0):
        return value
    raise located("", "must be an adapter's number or name", got=value, allowed="0 and more, or text")


class Gate(Strict):
    """Limits that requests of the new version must meet; otherwise the rollout is rolled back. Checked at the end of
    each stage, over the requests of the new version that ended in it."""

    ttft_mean: Seconds | None = Field(default=None, gt=0)
    ttft_p99: Seconds | None = Field(default=None, gt=0)
    e2e_mean: Seconds | None = Field(default=None, gt=0)
    e2e_p99: Seconds | None = Field(default=None, gt=0)
    """Limit for requests of the new version, as of ``slo``."""
    miss_ratio: Share | None = None
    """Limit for requests of the new version, as of ``slo``."""
    min_requests: PositiveInt = 100
    """With fewer requests the stage goes on for another dwell."""

    @checks
    def _asks(self) -> Errors:
        if not self.terms():
            yield located("", "a gate needs at least one metric", hint="such as {e2e_p99: 12 s}")

    def terms(self) -> dict[str, float]:
        """Return the given limits by name: ``{"e2e_p99": 12.0}``."""
        names = ("ttft_mean", "ttft_p99", "e2e_mean", "e2e_p99", "miss_ratio")
        return {name: limit for name in names if (limit := getattr(self, name)) is not None}


class Rollout(Strict):
    """One rollout: which adapters, when, and how their new version takes over."""

    strategy: Literal["new-name", "in-place", "unload-then-load", "drain-then-swap", "lazy-reread"]
    """How the new version takes over. ``new-name``: it is an adapter of its own, to which routers shift requests.
    ``in-place``: every replica swaps the weights between two steps, so running responses mix versions.
    ``unload-then-load``: requests are refused until running ones have ended and the new weights are loaded.
    ``drain-then-swap``: they wait instead. ``lazy-reread``: the files are overwritten, and replicas keep their copies
    until they read them again."""
    at: Moment
    """When it begins."""
    adapter: Annotated[NonNegativeInt | str | None, BeforeValidator(_one_adapter)] = None
    """One adapter: its number (0 is the most popular under most laws), or its name where a file gives names. Without
    ``adapter``, ``share``, ``count`` and ``hottest``: all adapters at the start of the run."""
    share: Share | None = Field(default=None, gt=0, le=1)
    """A random share of all adapters. Several rollouts with a ``share`` or a ``count`` take different ones."""
    count: PositiveInt | None = Field(default=None, le=10_000_000)
    """Number of random adapters, in place of a share."""
    hottest: PositiveInt | None = Field(default=None, le=10_000_000)
    """Number of adapters, the most popular ones."""
    stages: tuple[Share, ...] = Field(default=(1.0,), min_length=1, max_length=100)
    """Stages, rising to 100%. ``new-name``: share of the requests that go to the new version: one stage is blue-green,
    several are a canary. The others: share of the replicas that have it."""
    dwell: Seconds = Field(default=300.0, gt=0)
    """How long a stage lasts."""
    gate: Gate | None = None
    """``new-name`` only: the limits for the next stage. If missed, all requests return to the old version."""
    spread: Seconds = Field(default=0.0, ge=0)
    """Time over which the adapters start one after the other, evenly; 0: all at once."""
    propagation: TimeLaw | None = None
    """How long a change takes to reach each router (``new-name``) or replica (the others); unset: no delay."""
    sticky: bool = True
    """``new-name`` only: a session moves to the new version once and stays there. If false, every request draws its
    version, as requests without a session always do."""
    keep_old: bool = False
    """``new-name`` only: leave old versions to eviction. If false, replicas drop an old version once it gets no
    requests and its last one has ended."""
    rank: PositiveInt | None = Field(default=None, le=4096)
    """``new-name`` only: rank of the new version; unset: that of the old one."""
    size: Bytes | None = None
    """``new-name`` only: bytes of the new version, instead of its rank's size."""
    weights: str | None = None
    """Folder of the new version as training left it: a PEFT adapter with its ``trainer_state.json``, or several.
    ``new-name`` takes ``rank`` and ``size`` from there unless given."""
    require: Literal["none", "vet"] = "none"
    """``vet``: before the run, ``weights`` are vetted as by ``loraplan vet``. A likely or certain finding, or a
    training that can't be judged, stops the rollout, and the report shows the avoided impact."""
    observe: Seconds | None = Field(default=None, gt=0)
    """How long after ``at`` counts as during the rollout; unset: to the end of the run."""

    @checks
    def _consistent(self) -> Errors:
        given = [key for key in ("adapter", "share", "count", "hottest") if getattr(self, key) is not None]
        if len(given) > 1:
            shown = {key: getattr(self, key) for key in given} | {"share": format_share(self.share or 0.0)}
            got = " and ".join(f"{key} {shown[key]}" for key in given)
            yield located(given[-1], "give one adapter, a share of all, a count, or the hottest", got=got)
        for before, after in zip((0.0, *self.stages), self.stages, strict=False):
            if not before < after <= 1:
                yield located("stages", "stages rise from above 0 % to 100 %", got=_percents(self.stages))
        if self.stages[-1] != 1:
            yield located("stages", "the last stage must reach 100 %", got=_percents(self.stages), hint="end with 100%")
        if self.require == "vet" and self.weights is None:
            yield located("weights", "a version that must be vetted needs its folder", hint="such as weights: sales-v2")
        if self.strategy != "new-name":
            for key, default in (("gate", None), ("rank", None), ("size", None), ("sticky", True), ("keep_old", False)):
                if getattr(self, key) != default:
                    article = "" if isinstance(default, bool) else "a "
                    yield located(key, f"only a new-name rollout has {article}{key}", got=f"strategy {self.strategy}")
        if self.strategy == "lazy-reread" and len(self.stages) > 1:
            yield located(
                "stages",
                "lazy-reread overwrites files for all replicas at once",
                got=_percents(self.stages),
                allowed="100%",
            )
        if self.gate is not None and len(self.stages) == 1:
            yield located("gate", "a gate stands between two stages", hint="such as stages: [5%, 100%]")
        if self.gate is not None and self.spread:
            hint = "remove spread, or write a rollout for each batch of adapters"
            got = f"spread {self.spread:g} s"
            yield located("gate", "a gate judges all adapters of a rollout together", got=got, hint=hint)

    @property
    def takes_all(self) -> bool:
        """Whether it rolls out all adapters."""
        return self.adapter is None and self.hottest is None and not self.drawn

    @property
    def drawn(self) -> bool:
        """Whether its adapters are drawn at random."""
        return self.share is not None or self.count is not None

    @property
    def planned_s(self) -> float:
        """Seconds from ``at`` until the last stage of the last adapter has propagated everywhere, if no gate prolongs
        it.

        For propagation delays without a maximum: until it has nearly everywhere.
        """
        known_after_s = 0.0
        if self.propagation is not None:
            import numpy as np

            bounded = self.propagation.law in ("fixed", "uniform")
            known_after_s = float(self.propagation.ppf(np.array([1.0 if bounded else PROPAGATED]))[0])
        return self.spread + self.dwell * (len(self.stages) - 1) + known_after_s

    def delays(self, uniform: Floats) -> Floats:
        """Return how many seconds a change takes to reach each router or replica, by uniform draws in [0, 1)."""
        import numpy as np

        return np.zeros_like(uniform) if self.propagation is None else self.propagation.ppf(uniform)


def exceeding_shares(rollouts: tuple[Rollout, ...], i: int) -> str:
    """Return all shares, as a file has them, if those up to this rollout are the first to exceed 100 %; else empty."""
    before, limit = sum(rollout.share or 0.0 for rollout in rollouts[:i]), 1 + 1e-12
    exceeds = before <= limit < before + (rollouts[i].share or 0.0)
    return _percents(tuple(each.share for each in rollouts if each.share is not None)) if exceeds else ""


def clash(rollouts: tuple[Rollout, ...], i: int) -> dict[str, str] | None:
    """Return problem, got and hint if a rollout overlaps with an earlier one of the same adapters, or of all."""
    rollout = rollouts[i]
    for j, other in enumerate(rollouts[:i]):
        everything = rollout.takes_all or other.takes_all
        same = everything or (rollout.adapter is not None and rollout.adapter == other.adapter)
        if same and overlap(rollout, other):
            named = next((r.adapter for r in (rollout, other) if r.adapter is not None), None)
            words = overlap_words(i, j, rollouts, "all adapters" if named is None else f"adapter {named}")
            return dict(zip(("problem", "got", "hint"), words, strict=True))
    return None


def overlap(one: Rollout, other: Rollout) -> bool:
    """Return whether two rollouts overlap in time, as planned."""
    first, second = sorted((one, other), key=lambda rollout: rollout.at)
    return second.at <= first.at + first.planned_s


def overlap_words(i: int, j: int, rollouts: tuple[Rollout, ...], who: str) -> tuple[str, str, str]:
    """Return problem, got and hint for rollouts ``i`` and ``j``, which overlap on the same adapters.

    :param who: these adapters, in words.
    """
    spans = []
    for k in (j, i):
        rollout = rollouts[k]
        ends = rollout.at + rollout.planned_s
        begins = format_seconds(rollout.at)
        when = f"from {begins} to {format_seconds(ends)}" if ends > rollout.at else f"at {begins}"
        spans.append(f"rollouts.{k} {when}{', propagation included' if rollout.propagation is not None else ''}")
    drawn = " (a share or a count is drawn by run.seed)" if any(rollouts[k].drawn for k in (i, j)) else ""
    return (
        f"rolls out {who} while another rollout does{drawn}",
        "; ".join(spans),
        "begin it after the other has ended",
    )


def _percents(shares: tuple[float, ...]) -> str:
    return ", ".join(format_share(share) for share in shares)
