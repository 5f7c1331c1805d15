"""The eviction policies, routers and placements that a scenario may name, with the facts that checks and studies need.

A new policy of loraplan's own is a class in ``sim/policies`` and a row in ``policies.toml``. Packages add theirs by
entry points (``loraplan.evictions``, ``loraplan.routers``), a call by ``evictions=`` and ``routers=``; see
docs/own-policy.md.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sim.spec.registry import Entry, Registry

E = TypeVar("E", bound=Entry)
_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def _entries(table: str, make: type[E]) -> tuple[E, ...]:
    """Return the entries of a table in ``policies.toml``."""
    found = []
    for name, row in _TABLES[table].items():
        facts: dict[str, Any] = {key: tuple(each) if isinstance(each, list) else each for key, each in row.items()}
        found.append(make(name=name, about=facts.pop("about"), target=facts.pop("class", ""), **facts))
    return tuple(found)


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
    _entries("evictions", EvictionEntry),
    "loraplan.evictions",
    lambda **entry: EvictionEntry(in_what_if=True, **entry),
)
CACHE_DEFAULTS = ("lru", "sieve", "lfu", "belady")
"""What ``loraplan cache`` replays where no policies are given."""


@dataclass(frozen=True, kw_only=True)
class RouterEntry(Entry):
    """A router; its class is described in ``sim/policies/routing/router_policy.py``.

    :ivar settings: numbers of its own that ``router.settings`` may change, with their defaults.
    :ivar keys: which keys of the section mean something to it, of those that do to some policies only.
    :ivar bound: the bound on a replica's requests over the mean that it has unless the scenario gives one.
    :ivar view_interval_s: how often its view is read unless the scenario says; 0: the view is always current.
    :ivar places_adapters: whether it places adapters on replicas, which must then be equal.
    :ivar splits_adapters: whether each replica gets a part of the adapters, so that their caches add up.
    :ivar evenly: whether it sends every replica as many requests, however long these take there.
    :ivar reads_text: whether it goes by the text that requests share, so that some must.
    :ivar in_what_if: whether a what-if tries it.
    """

    settings: Mapping[str, float] = field(default_factory=dict, hash=False)
    keys: tuple[str, ...] = ()
    bound: float | None = None
    view_interval_s: float = 0.0
    places_adapters: bool = False
    splits_adapters: bool = False
    evenly: bool = False
    reads_text: bool = False
    in_what_if: bool = False


ROUTERS = Registry(
    "router policy",
    _entries("routers", RouterEntry),
    "loraplan.routers",
    lambda **entry: RouterEntry(keys=("bound", "placement", "copies"), in_what_if=True, **entry),
)
PLACEMENTS = Registry("placement", _entries("placements", Entry))


@dataclass(frozen=True, kw_only=True)
class PluginEntry(Entry):
    """A scorer or filter of the router ``scorers``.

    :ivar plugin: what an EndpointPickerConfig calls it; ``keys``: the parameters that mean something to it.
    :ivar reads: the fields of the router's view that it reads.
    """

    plugin: str
    reads: tuple[str, ...]
    keys: tuple[str, ...] = ()


SCORERS = Registry("scorer", _entries("scorers", PluginEntry))
FILTERS = Registry("filter", _entries("filters", PluginEntry))


@dataclass(frozen=True, kw_only=True)
class PlacerEntry(Entry):
    """A policy of the placement controller; its class is described in ``sim/policies/placement.py``.

    :ivar moves: whether it decides again during the run.
    :ivar foresees: whether it knows the popularity of the start, as an operator may.
    :ivar period, history: those of its controller unless the scenario says, as it would.
    """

    moves: bool = True
    foresees: bool = True
    period: str = ""
    history: str = ""


PLACERS = Registry("placement policy", _entries("placers", PlacerEntry))


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
