"""Which adapter leaves a full cache. A policy is a class in here and a row in ``sim/spec/policies.toml``.

Names and rules are libCacheSim's where it has the policy. Adapters in use never leave; each class says what its queue
or hand does with them.
"""

from __future__ import annotations

import numpy as np

from sim.policies.eviction.eviction_policy import Eviction, EvictionContext, WatchedEviction
from sim.spec.policies import EVICTIONS, EvictionEntry

__all__ = ["Eviction", "EvictionContext", "check_eviction", "make_eviction"]

_METHODS, _OPTIONAL = ("idle", "busy", "loaded", "victim", "remove", "__len__"), ("touched", "coming")


def make_eviction(policy: str | EvictionEntry, context: EvictionContext) -> Eviction:
    """Return a policy for one cache.

    :param policy: an entry, or a name of loraplan's own.
    :raises InputError: if it comes from outside and can't be used.
    """
    entry = EVICTIONS[policy] if isinstance(policy, str) else policy
    if entry.origin:
        return WatchedEviction(entry, entry.made(context, _METHODS, _OPTIONAL))
    eviction: Eviction = entry.load()(context)
    return eviction


def check_eviction(entry: EvictionEntry) -> None:
    """Try a policy from outside before anything is simulated.

    :raises InputError: if it can't be imported or made, or lacks a method.
    """
    if entry.origin:
        make_eviction(entry, EvictionContext([1], 1, np.random.default_rng(0)))
