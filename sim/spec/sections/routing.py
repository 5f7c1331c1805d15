"""How requests are assigned to replicas."""

from __future__ import annotations

from pydantic import Field, PositiveInt, field_validator, model_validator

from sim.errors import did_you_mean
from sim.spec.base import Strict, located
from sim.spec.units import Seconds, format_seconds

ROUTERS = (
    "round-robin", "random", "least-loaded", "power-of-two", "hash", "affinity-residency", "affinity-activity",
    "service-per-adapter",
)  # fmt: skip
PLACEMENTS = ("least-adapters", "bin-pack", "popularity")

_OWN_KEYS = {
    "bound": ("hash", "affinity-residency"),
    "placement": ("service-per-adapter",),
    "copies": ("service-per-adapter",),
}
"""Keys that mean something to some policies only, and which these are."""
_SCRAPE_S = 0.05  # Gateway API Inference Extension, pkg/epp/server: DefaultRefreshMetricsInterval
_SHORTEST_S = 0.001
_HASH_BOUND = 1.25


def _known(value: str, known: tuple[str, ...], what: str) -> str:
    if value in known:
        return value
    raise located("", f"unknown {what}", got=value, allowed=", ".join(known), hint=did_you_mean(value, known) or "")


class Router(Strict):
    """How requests are assigned to replicas."""

    policy: str = "round-robin"
    """``round-robin``: replicas in turn. ``random``: any. ``least-loaded``: fewest requests in the replica, lowest
    index first. ``power-of-two``: of two random ones, the one with fewer requests. ``hash``: consistent hashing of the
    adapter, with bounded loads. ``affinity-residency``: where the adapter is in GPU memory; of several such replicas
    the least loaded, and if there is none the least loaded of all. ``affinity-activity``: where requests for the
    adapter run, else where there is room for one more adapter, as the LoRA affinity scorer of llm-d and the Gateway
    API Inference Extension has it. ``service-per-adapter``: the replicas on which the adapter was placed, as
    AIBrix does."""
    staleness: Seconds | None = None
    """How often the router reads the state of the replicas (requests, resident and running adapters); 0: it is always
    current. Unset: 0, and 50 ms with ``affinity-activity``. Irrelevant for policies that use no such state."""
    bound: float | None = Field(default=None, gt=1, le=1_000_000)
    """``hash`` and ``affinity-residency`` only: a replica is skipped if the request would give it more than this many
    times the mean number of requests per replica, rounded up. Unset: 1.25 with ``hash``, no bound with
    ``affinity-residency``."""
    placement: str = "least-adapters"
    """``service-per-adapter`` only: where adapters are placed before the run. ``least-adapters``: on the replica with
    the fewest, one adapter after the other. ``bin-pack``: a replica's slots are filled before the next one's.
    ``popularity``: the hottest first, on the replica with the least expected load; one with more than a replica's fair
    share of the traffic gets as many copies as such shares."""
    copies: PositiveInt = Field(default=1, le=4096)
    """``service-per-adapter`` only: replicas on which each adapter is placed, at least."""
    instances: PositiveInt = Field(default=1, le=256)
    """Router processes. The requests of a session always go to the same one, others to any. Matters for changes that
    reach routers one by one, such as a rollout."""

    @field_validator("policy")
    @classmethod
    def _policy(cls, value: str) -> str:
        return _known(value, ROUTERS, "router policy")

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

    @field_validator("placement")
    @classmethod
    def _placement(cls, value: str) -> str:
        return _known(value, PLACEMENTS, "placement")

    @model_validator(mode="after")
    def _meaningful(self) -> Router:
        for key, policies in _OWN_KEYS.items():
            if key in self.model_fields_set and self.policy not in policies and getattr(self, key) is not None:
                raise located(
                    key, f"policy {self.policy} has no {key}", got=getattr(self, key),
                    allowed=f"only with policy {' or '.join(policies)}", hint=f"remove {key}, or choose such a policy",
                )  # fmt: skip
        return self

    @property
    def view_interval(self) -> float:
        """Seconds between two readings of the router's view, with the default resolved; 0: always current."""
        if self.staleness is not None:
            return self.staleness
        return _SCRAPE_S if self.policy == "affinity-activity" else 0.0

    @property
    def load_bound(self) -> float | None:
        """The bound on a replica's requests over the mean, with the default resolved; None: no bound."""
        return _HASH_BOUND if self.bound is None and self.policy == "hash" else self.bound

    def check_copies(self, replicas: int) -> None:
        """Refuse more copies of an adapter than there are replicas; for the check of the whole scenario."""
        if self.copies > replicas:
            raise located(
                "router.copies",
                "there are fewer replicas",
                got=self.copies,
                allowed=f"at most {replicas}",
                hint="raise fleet.replicas, or place fewer copies",
            )
