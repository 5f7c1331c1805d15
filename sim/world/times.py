"""Load times and service times, by laws of the scenario or costs of the profile, prepared for many requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.policies.costs import load_seconds, residual
from sim.spec.profile import Profile, TierCost
from sim.spec.scenario import Scenario
from sim.spec.sections.laws import TimeLaw
from sim.traffic.adapters import Population
from sim.traffic.generate import Chunk
from sim.traffic.request import FROM_STORAGE, Request
from sim.world.pools.full_model_layout import FullModelFleet
from sim.world.replica_draws import ReplicaDraws

Floats = NDArray[np.float64]
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """Turn the uniform draws of a chunk's requests into seconds; each function returns one value per request."""

    load: Callable[[Chunk], Floats]
    host_load: Callable[[Chunk], Floats]
    service: Callable[[Chunk], Floats]


class Retarget:
    """Send a request to another adapter, and scale its load times to that one's; its uniform draws stay the same."""

    def __init__(self, scenario: Scenario, profile: Profile | None, population: Population) -> None:
        self._bases = [tier.base() for tier in tier_times(scenario, profile, population)]

    def __call__(self, request: Request, adapter: int) -> None:
        storage, host = self._bases
        old, request.adapter = request.adapter, adapter
        if storage is not None and storage[old] > 0:
            request.load_s *= storage[adapter] / storage[old]
        if host is not None and host[old] > 0:
            request.host_load_s *= host[adapter] / host[old]


class TierTimes:
    """Load times of one tier: a law, or each adapter's own time times a residual."""

    def __init__(self, law: TimeLaw | None, tier: TierCost | None, population: Population) -> None:
        self.law = law
        self.tier = tier
        self._own = None if law is not None or tier is None else load_seconds(tier, population)

    def base(self) -> list[float] | None:
        """Return each adapter's own time in seconds; None if a law gives the times, or there is no such tier."""
        return None if self._own is None else self._own.tolist()

    def seconds(self, adapter: NDArray[np.int64], uniform: Floats) -> Floats:
        """Return load times in seconds, same shape.

        :param uniform: uniform draws in [0, 1).
        """
        if self.law is not None:
            return self.law.ppf(uniform)
        assert self.tier is not None, "loads have a law or a profile"
        assert self._own is not None, "without a law there are times by adapter"
        return np.asarray(self._own[adapter] * residual(self.tier, uniform))

    def draws(self, rng: np.random.Generator) -> Callable[[int], float]:
        """Return a function that draws the seconds of the next load of an adapter."""
        if self.law is not None:
            law = self.law
            drawn = _one_by_one(rng, law.ppf)
            return lambda adapter: next(drawn)
        tier = self.tier
        assert tier is not None, "loads have a law or a profile"
        base = self.base()
        assert base is not None, "without a law there are times by adapter"
        factors = _one_by_one(rng, lambda uniform: residual(tier, uniform))
        return lambda adapter: float(base[adapter]) * next(factors)


def _one_by_one(rng: np.random.Generator, of_uniform: Callable[[Floats], Floats]) -> Iterator[float]:
    while True:
        yield from of_uniform(rng.random(_BLOCK)).tolist()


def tier_times(scenario: Scenario, profile: Profile | None, population: Population) -> tuple[TierTimes, TierTimes]:
    """Return the load times from storage and from host memory."""
    storage = scenario.storage
    costs = (None, None) if profile is None else (profile.load.storage, profile.load.host)
    return TierTimes(storage.load, costs[0], population), TierTimes(storage.host_load, costs[1], population)


def has_host_tier(scenario: Scenario) -> bool:
    """Return whether adapters can come from host memory."""
    return scenario.cache.host is not None or scenario.cache.eviction == "vllm-lru"


def request_times(
    scenario: Scenario, profile: Profile | None, population: Population, full: FullModelFleet | None = None
) -> RequestTimes:
    """Return the functions that turn uniform draws into the seconds that requests carry."""
    from_storage, from_host = tier_times(scenario, profile, population)
    service = scenario.fleet.service

    def none(chunk: Chunk) -> Floats:
        return np.zeros(len(chunk))

    def load(chunk: Chunk) -> Floats:
        return from_storage.seconds(chunk.adapter, chunk.load_uniform)

    return RequestTimes(
        load=load if full is None else _with_whole_loads(load, full),
        host_load=(lambda chunk: from_host.seconds(chunk.adapter, chunk.host_load_uniform))
        if has_host_tier(scenario)
        else none,
        service=none if service is None else lambda chunk: service.ppf(chunk.service_uniform),
    )


def _with_whole_loads(load: Callable[[Chunk], Floats], full: FullModelFleet) -> Callable[[Chunk], Floats]:
    """Return load times for a mix of adapters and full models, whose loads are those of whole models."""
    is_full = np.asarray(full.full)

    def both(chunk: Chunk) -> Floats:
        whole = is_full[chunk.adapter]
        return (
            np.where(whole, full.load_seconds(chunk.load_uniform, chunk.adapter), load(chunk))
            if whole.any()
            else load(chunk)
        )

    return both


def reload_times(
    scenario: Scenario, profile: Profile | None, population: Population, draws: ReplicaDraws
) -> Callable[[int, int], float]:
    """Return the function that draws the seconds of loads without a request (vLLM's cascades), by adapter and tier."""
    from_storage, from_host = tier_times(scenario, profile, population)
    again_from_storage = from_storage.draws(draws.stream("reload"))
    again_from_host = from_host.draws(draws.stream("host-reload"))
    return lambda adapter, tier: again_from_storage(adapter) if tier == FROM_STORAGE else again_from_host(adapter)
