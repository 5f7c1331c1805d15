"""The eviction policies, routers and placements that a scenario may name, with the facts that checks and studies need.

A new policy of loraplan's own is a class in ``sim/policies`` and an entry here. Packages add theirs by entry points
(``loraplan.evictions``, ``loraplan.routers``), a call by ``evictions=`` and ``routers=``; see docs/own-policy.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sim.spec.registry import Entry, Registry


@dataclass(frozen=True, kw_only=True)
class EvictionEntry(Entry):
    """An eviction policy; its class is described in ``sim/policies/eviction/eviction_policy.py``.

    :ivar needs_batch: whether it decides by what runs in a batch, so that a replay without times can't have it.
    :ivar needs_future: whether it knows the requests to come, as no server can.
    :ivar in_what_if: whether a what-if tries it.
    """

    needs_batch: bool = False
    needs_future: bool = False
    in_what_if: bool = False

    @property
    def is_exchangeable(self) -> bool:
        """Whether a server that has it could have another one instead, with nothing else changed."""
        return not (self.needs_batch or self.needs_future)


EVICTIONS = Registry(
    "eviction policy",
    (
        EvictionEntry("lru", "the least recently used.", "sim.policies.eviction.ranked:Lru", in_what_if=True),
        EvictionEntry("fifo", "the first loaded.", "sim.policies.eviction.ranked:Fifo"),
        EvictionEntry(
            "clock",
            "the first loaded; one that was used lately is passed over once and goes to the end of the queue.",
            "sim.policies.eviction.second_chance:ClockEviction",
        ),
        EvictionEntry(
            "lfu", "the one with the fewest uses since its load.", "sim.policies.eviction.ranked:Lfu", in_what_if=True
        ),
        EvictionEntry("lfu-history", "the one with the fewest uses ever.", "sim.policies.eviction.ranked:LfuHistory"),
        EvictionEntry(
            "sieve",
            "the first loaded; one that was used lately is passed over once and keeps its place.",
            "sim.policies.eviction.second_chance:Sieve",
            in_what_if=True,
        ),
        EvictionEntry(
            "s3-fifo",
            "those used once leave soon, those used again late.",
            "sim.policies.eviction.second_chance:S3Fifo",
        ),
        EvictionEntry("gdsf", "by uses per byte, ageing.", "sim.policies.eviction.ranked:Gdsf", in_what_if=True),
        EvictionEntry("random", "any, equally likely.", "sim.policies.eviction.chosen:Random"),
        EvictionEntry(
            "refcount-score",
            "by uses, last use and size, as Chameleon does.",
            "sim.policies.eviction.chosen:RefcountScore",
        ),
        EvictionEntry(
            "belady",
            "the one whose next request arrives last: a reference that no server can have, since it knows the future.",
            "sim.policies.eviction.chosen:Belady",
            needs_future=True,
        ),
        EvictionEntry(
            "vllm-lru",
            "the one that steps touched least recently, in use or not, as vLLM does; it then also leaves when "
            "host memory drops it.",
            "sim.policies.vllm_lru:VllmLruCache",  # a whole cache: its order is that of the batch
            needs_batch=True,
        ),
        # These two empty the cache by rules of their own at step boundaries; where room is still short, LRU decides.
        EvictionEntry(
            "discard-when-idle",
            "all that are not in use, whenever a decode step ends a request.",
            "sim.policies.eviction.ranked:Lru",
            needs_batch=True,
        ),
        EvictionEntry(
            "cycle",
            "with ``admission: per-adapter``, those whose queue is empty, as others wait for a place, then the "
            "one that has been there longest, if longer than ``cycle``.",
            "sim.policies.eviction.ranked:Lru",
            needs_batch=True,
        ),
    ),
    "loraplan.evictions",
    lambda **entry: EvictionEntry(in_what_if=True, **entry),
)

CACHE_DEFAULTS = ("lru", "sieve", "lfu", "belady")
"""What ``loraplan cache`` replays where no policies are given."""


@dataclass(frozen=True, kw_only=True)
class RouterEntry(Entry):
    """A router; its class is described in ``sim/policies/routing/router_policy.py``.

    :ivar keys: which of ``bound``, ``placement``, ``copies`` and ``controller`` mean something to it.
    :ivar bound: the bound on a replica's requests over the mean that it has unless the scenario gives one.
    :ivar view_interval_s: how often its view is read unless the scenario says; 0: the view is always current.
    :ivar places_adapters: whether it places adapters on replicas, which must then be equal.
    :ivar splits_adapters: whether each replica gets a part of the adapters, so that their caches add up.
    :ivar reads_text: whether it goes by the text that requests share, so that some must.
    :ivar in_what_if: whether a what-if tries it.
    """

    keys: tuple[str, ...] = ()
    bound: float | None = None
    view_interval_s: float = 0.0
    places_adapters: bool = False
    splits_adapters: bool = False
    reads_text: bool = False
    in_what_if: bool = False


ROUTERS = Registry(
    "router policy",
    (
        RouterEntry("round-robin", "replicas in turn.", "sim.policies.routing.plain:RoundRobin", in_what_if=True),
        RouterEntry("random", "any, equally likely.", "sim.policies.routing.plain:Random"),
        RouterEntry(
            "least-loaded",
            "the fewest requests in the replica, lowest index first.",
            "sim.policies.routing.plain:LeastLoaded",
            in_what_if=True,
        ),
        RouterEntry(
            "power-of-two", "of two random ones, the one with fewer requests.", "sim.policies.routing.plain:PowerOfTwo"
        ),
        RouterEntry(
            "hash",
            "consistent hashing of the adapter, with bounded loads.",
            "sim.policies.routing.plain:Hash",
            keys=("bound",),
            bound=1.25,
            splits_adapters=True,
            in_what_if=True,
        ),
        RouterEntry(
            "affinity-residency",
            "where the adapter is in GPU memory; of several such replicas the least loaded, and if there is none "
            "the least loaded of all.",
            "sim.policies.routing.affinity:ByResidency",
            keys=("bound",),
            splits_adapters=True,
            in_what_if=True,
        ),
        RouterEntry(
            "affinity-activity",
            "where requests for the adapter run, else where there is room for one more adapter, as in the LoRA "
            "affinity scorer of llm-d and the Gateway API Inference Extension.",
            "sim.policies.routing.affinity:ByActivity",
            view_interval_s=0.05,  # Gateway API Inference Extension, pkg/epp/server: DefaultRefreshMetricsInterval
            splits_adapters=True,
        ),
        RouterEntry(
            "affinity-prefix",
            "where the last request of the same conversation went, or else the last one with the same beginning of the "
            "prompt; if that replica is full, or there is none, the least loaded.",
            "sim.policies.routing.affinity:ByPrefix",
            keys=("bound",),
            bound=1.5,
            splits_adapters=True,
            reads_text=True,
        ),
        RouterEntry(
            "service-per-adapter",
            "the replicas on which the adapter was placed, as in AIBrix.",
            "sim.policies.routing.placed:ServicePerAdapter",
            keys=("placement", "copies"),
            places_adapters=True,
            splits_adapters=True,
        ),
        RouterEntry(
            "placement",
            "the least loaded of the replicas on which a controller has placed the adapter (docs/placement.md).",
            "sim.policies.routing.placed:Placed",
            keys=("controller",),
            places_adapters=True,
            splits_adapters=True,
        ),
    ),
    "loraplan.routers",
    lambda **entry: RouterEntry(keys=("bound", "placement", "copies"), in_what_if=True, **entry),
)

PLACEMENTS = Registry(
    "placement",
    (
        Entry(
            "least-adapters",
            "on the replica with the fewest, one adapter after the other.",
            "sim.policies.routing.placed:least_adapters",
        ),
        Entry(
            "bin-pack", "a replica's slots are filled before the next one's.", "sim.policies.routing.placed:bin_pack"
        ),
        Entry(
            "popularity",
            "the hottest first, on the replica with the least expected load; one with more than a replica's fair "
            "share of the traffic gets as many copies as such shares.",
            "sim.policies.routing.placed:by_popularity",
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class PlacerEntry(Entry):
    """A policy of the placement controller; its class is described in ``sim/policies/placement.py``.

    :ivar moves: whether it decides again during the run.
    """

    moves: bool = True


PLACERS = Registry(
    "placement policy",
    (
        PlacerEntry(
            "static",
            "once, by the popularity at the start; nothing ever moves.",
            "sim.policies.placement:ByPopularity",
            moves=False,
        ),
        PlacerEntry(
            "popularity",
            "copies in proportion to demand, on the replicas with the least load; adapters stay where they are unless "
            "the load is uneven.",
            "sim.policies.placement:ByPopularity",
        ),
        PlacerEntry(
            "rank",
            "adapters of like rank together, with the same predicted load for each replica, after LoRAServe.",
            "sim.policies.placement:ByRank",
        ),
        PlacerEntry(
            "min-cost-flow",
            "copies in proportion to demand, with the fewest loads, after Dynamo.",
            "sim.policies.placement:MinCostFlow",
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Given:
    """Policies that a call brings along, by name; they travel with the scenario to worker processes.

    :ivar any_name: take every name: for reading what another process ran, whose policies may not be here.
    """

    evictions: Mapping[str, EvictionEntry] = field(default_factory=dict)
    routers: Mapping[str, RouterEntry] = field(default_factory=dict)
    any_name: bool = False

    @classmethod
    def of(cls, evictions: Mapping[str, type] | None, routers: Mapping[str, type] | None) -> Given:
        """Return the entries of classes.

        :raises InputError: for what is no class, and names that can't be used.
        """
        return cls(EVICTIONS.given(evictions, "evictions"), ROUTERS.given(routers, "routers"))

    def __or__(self, other: Given) -> Given:
        return Given({**self.evictions, **other.evictions}, {**self.routers, **other.routers}, self.any_name)


def given_in(context: Any) -> Given:
    """Return the policies from outside that a validation was given."""
    return context if isinstance(context, Given) else Given()
