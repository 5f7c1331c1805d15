"""How requests are assigned to replicas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator

from sim.spec.base import Errors, Strict, checks, located
from sim.spec.policies import PLACEMENTS, PLACERS, ROUTERS, RouterEntry, given_in
from sim.spec.units import Seconds, Share, format_seconds

OWN_KEYS = ("bound", "placement", "copies", "controller")
"""Keys that mean something to some policies only; ``RouterEntry.keys`` says to which."""
_SHORTEST_S = 0.001


class PlacementController(Strict):
    """Which adapters live on which replicas, and when they move. The router sends a request only to a replica on which
    its adapter is placed (docs/routers.md)."""

    policy: str = Field(default="popularity", description=PLACERS.described("How adapters are placed."))
    period: Seconds = Field(default=60.0, gt=0)
    """Time between two decisions. Means nothing to ``static``, as ``history`` and ``move``."""
    history: Seconds = Field(default=300.0, gt=0)
    """How much of the past counts as demand: the requests for each adapter in this time, in whole periods."""
    copies: PositiveInt = Field(default=1, le=4096)
    """Replicas on which each adapter is placed, at least, as far as there is room. A hot adapter gets more."""
    slots: PositiveInt | None = None
    """Adapters that are placed on one replica, at most; unset: as many as it can run at a time. Fewer leave room for
    adapters that are placed nowhere."""
    tolerance: Share = 0.1
    """``popularity`` and ``rank``: adapters move for balance while the busiest replica has more than the mean load plus
    this share of it."""
    move: Literal["lazy", "eager"] = "lazy"
    """How an adapter is loaded on its new replica. ``lazy``: by its first request there. ``eager``: by the controller,
    at once, one adapter after the other on each replica."""

    @field_validator("policy")
    @classmethod
    def _policy(cls, value: str) -> str:
        return PLACERS.check(value)

    @checks
    def _meaningful(self) -> Errors:
        if PLACERS[self.policy].moves and self.history < self.period:
            got, least = format_seconds(self.history), format_seconds(self.period)
            yield located("history", "shorter than the period", got=got, allowed=f"at least {least}")


class Router(Strict):
    """How requests are assigned to replicas."""

    policy: str = Field(
        default="round-robin", description=ROUTERS.described("Where a request goes. Your own: docs/own-policy.md.")
    )
    staleness: Seconds | None = None
    """How often the router reads the state of the replicas (requests, resident and running adapters); 0: it is always
    current. Unset: 0, and 50 ms with ``affinity-activity``. Irrelevant for policies that use no such state."""
    bound: float | None = Field(default=None, gt=1, le=1_000_000)
    """``hash``, ``affinity-residency`` and ``affinity-prefix`` only: a replica is skipped if the request would give it
    more than this many times the mean number of requests per replica, rounded up. Unset: 1.25 with ``hash``, 1.5 with
    ``affinity-prefix``, no bound with ``affinity-residency``."""
    placement: str = Field(
        default="least-adapters",
        description=PLACEMENTS.described(
            "``service-per-adapter`` only: on which replicas adapters are placed before the run."
        ),
    )
    copies: PositiveInt = Field(default=1, le=4096)
    """``service-per-adapter`` only: replicas on which each adapter is placed, at least."""
    controller: PlacementController | None = None
    """``placement`` only: the controller that places adapters and moves them; unset: one with its defaults."""
    pools: Literal["together", "weight"] = "together"
    """With ``fleet.pools``, how a pool is chosen. ``together``: the replicas of all pools that take a request are
    candidates, and ``policy`` chooses among them. ``weight``: first a pool is drawn by its ``weight``, then ``policy``
    chooses among its replicas."""
    spill: PositiveInt | Literal["full"] | None = None
    """With ``pools: weight``: when a pool passes requests on to the next one in the list that takes them. ``full``:
    once each of its replicas has ``max_num_seqs`` requests or more; a number: that many. If no pool has room, the
    request stays in the pool that was drawn. Unset: never."""
    instances: PositiveInt = Field(default=1, le=256)
    """Router processes. The requests of a session always go to the same one, others to any. Matters for changes that
    reach routers one by one, such as a rollout."""

    @field_validator("policy")
    @classmethod
    def _policy(cls, value: str, info: ValidationInfo) -> str:
        given = given_in(info.context)
        return value if given.any_name else ROUTERS.check(value, given.routers)

    @field_validator("staleness")
    @classmethod
    def _staleness(cls, value: float | None) -> float | None:
        if value is not None and 0 < value < _SHORTEST_S:
            raise located(
                "",
                "so frequent readings would cost more than the traffic",
                got=format_seconds(value),
                allowed="0 (always current), or 1 ms and more",
            )
        return value

    @field_validator("placement", mode="before")
    @classmethod
    def _is_a_name(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            raise located(
                "",
                "a name, for policy service-per-adapter",
                got=", ".join(map(str, value)),
                allowed=", ".join(PLACEMENTS.names),
                hint="the keys of policy placement belong in router.controller",
            )
        return value

    @field_validator("placement")
    @classmethod
    def _placement(cls, value: str) -> str:
        return PLACEMENTS.check(value)

    @checks
    def _meaningful(self) -> Errors:
        for key in OWN_KEYS:
            given = getattr(self, key)
            if key in self.model_fields_set and key not in self._facts.keys and given is not None:
                policies = " or ".join(entry.name for entry in ROUTERS if key in entry.keys)
                yield located(
                    key,
                    f"policy {self.policy} has no {key}",
                    got="a section" if isinstance(given, Strict) else given,
                    allowed=f"only with policy {policies}",
                    hint=f"remove it (--set router.{key}=null), or choose such a policy",
                )

    @property
    def _facts(self) -> RouterEntry:
        """The facts of the policy; of one from outside, that every key means something to it."""
        return ROUTERS[self.policy] if self.policy in ROUTERS else RouterEntry(name=self.policy, keys=OWN_KEYS)

    @property
    def without_own_keys(self) -> dict[str, None]:
        """Values by dotted key that unset what means something to some policies only, so that any other can follow."""
        return {f"router.{key}": None for key in OWN_KEYS if key in self.model_fields_set}

    @property
    def placing(self) -> PlacementController | None:
        """The controller that places adapters, with the default resolved; None with other policies."""
        if "controller" not in self._facts.keys or self.policy not in ROUTERS:
            return None
        return self.controller or PlacementController()

    @property
    def view_interval(self) -> float:
        """Seconds between two readings of the router's view, with the default resolved; 0: always current."""
        if self.staleness is not None:
            return self.staleness
        return self._facts.view_interval_s

    @property
    def load_bound(self) -> float | None:
        """The bound on a replica's requests over the mean, with the default resolved; None: no bound."""
        return self._facts.bound if self.bound is None else self.bound
