"""Load times and service times, by laws of the scenario or costs of the profile, prepared for many requests.

The random streams of a replica are here, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats
from sim.policies.costs import load_seconds, residual
from sim.rng import stream, stream_key
from sim.spec.profile import PCIE_4_BYTES_PER_S, Profile, TierCost
from sim.spec.scenario import Scenario
from sim.spec.sections.laws import TimeLaw
from sim.traffic.adapters import Population, base_shape, split_of
from sim.traffic.generate import Chunk
from sim.traffic.request import FROM_STORAGE, Request


@dataclass(frozen=True, slots=True)
class ReplicaDraws:
    """Where the random streams of one replica come from.

    :ivar place: number of this incarnation of the replica; a restarted one has another, and so other draws.
    """

    seed: int
    replication: int
    place: int

    def stream(self, purpose: str) -> np.random.Generator:
        """Return a new generator for a purpose; the same purpose gives the same numbers again."""
        return stream(self.seed, self.replication, purpose, self.place)

    def shared_key(self, purpose: str) -> int:
        """Return the key of draws that all replicas of a replication share."""
        return stream_key(self.seed, self.replication, purpose)


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
        self._storage, self._host = tier_times(scenario, profile, population)

    def __call__(self, request: Request, adapter: int) -> None:
        old, request.adapter = request.adapter, adapter
        request.load_s *= self._storage.ratio(adapter, old)
        request.host_load_s *= self._host.ratio(adapter, old)


class TierTimes:
    """Load times of one tier. From this one, no load ever comes."""

    def ratio(self, adapter: int, other: int) -> float:
        """Return how many times as long a load of ``adapter`` takes as one of ``other``, with the same draw."""
        return 1.0

    def mean_s(self, adapter: int) -> float:
        """Return the seconds of a load of an adapter, without what its draw adds."""
        raise AssertionError("loads have a law or a profile")

    def seconds(self, adapter: NDArray[np.int64], uniform: Floats) -> Floats:
        """Return load times in seconds, same shape.

        :param uniform: uniform draws in [0, 1).
        """
        raise AssertionError("loads have a law or a profile")

    def draws(self, rng: np.random.Generator) -> Callable[[int], float]:
        """Return a function that draws the seconds of the next load of an adapter."""
        raise AssertionError("loads have a law or a profile")


class LawTimes(TierTimes):
    """Load times by a law of the scenario, the same for every adapter."""

    def __init__(self, law: TimeLaw) -> None:
        self._law = law

    def mean_s(self, adapter: int) -> float:
        return self._law.mean()

    def seconds(self, adapter: NDArray[np.int64], uniform: Floats) -> Floats:
        return self._law.ppf(uniform)

    def draws(self, rng: np.random.Generator) -> Callable[[int], float]:
        drawn = _one_by_one(rng, self._law.ppf)
        return lambda adapter: next(drawn)


class AdapterTimes(TierTimes):
    """Load times by a profile: each adapter's own time times a residual."""

    def __init__(self, tier: TierCost, population: Population) -> None:
        self._tier = tier
        self._own = np.append(load_seconds(tier, population), 0.0)  # last the base model, which is never loaded

    def ratio(self, adapter: int, other: int) -> float:
        return self.mean_s(adapter) / self.mean_s(other) if self._own[other] > 0 else 1.0

    def mean_s(self, adapter: int) -> float:
        return float(self._own[adapter])

    def seconds(self, adapter: NDArray[np.int64], uniform: Floats) -> Floats:
        return np.asarray(self._own[adapter] * residual(self._tier, uniform))

    def draws(self, rng: np.random.Generator) -> Callable[[int], float]:
        factors = _one_by_one(rng, lambda uniform: residual(self._tier, uniform))
        return lambda adapter: self.mean_s(adapter) * next(factors)


def _one_by_one(rng: np.random.Generator, of_uniform: Callable[[Floats], Floats]) -> Iterator[float]:
    while True:
        yield from of_uniform(rng.random(_BLOCK)).tolist()


def tier_times(scenario: Scenario, profile: Profile | None, population: Population) -> tuple[TierTimes, TierTimes]:
    """Return the load times from storage and from host memory."""
    storage, from_storage, from_host = scenario.storage, TierTimes(), TierTimes()
    if profile is not None:
        from_storage = AdapterTimes(profile.load.storage, population)
        from_host = AdapterTimes(_to_gpus(scenario, profile), population)
    return _by_law(storage.load, from_storage), _by_law(storage.host_load, from_host)


def _to_gpus(scenario: Scenario, profile: Profile) -> TierCost:
    """Return the costs of copies to a replica's GPUs.

    In vLLM a process for each GPU reads the whole adapter into its host memory (``lora_model.py``:
    ``from_local_checkpoint``), and copies to its GPU what this holds, tensor by tensor (``set_lora``). All do so at the
    same time. So reading takes what it takes on one GPU, and so do calls; only bytes over the bandwidth get fewer.
    """
    host = profile.load.host
    if scenario.adapters.experts:
        # Profiles are of smaller adapters, whose copies take the time of their calls on any bus.
        host = host.model_copy(update={"bus_bytes_per_s": min(host.bus_bytes_per_s or math.inf, PCIE_4_BYTES_PER_S)})
    if profile.tensor_parallel == 1:
        return host
    share = split_of(scenario, profile).share(base_shape(profile))
    bus = None if host.bus_bytes_per_s is None else host.bus_bytes_per_s / share
    return host.model_copy(update={"bandwidth_bytes_per_s": host.bandwidth_bytes_per_s / share, "bus_bytes_per_s": bus})


def _by_law(law: TimeLaw | None, otherwise: TierTimes) -> TierTimes:
    return otherwise if law is None else LawTimes(law)


def request_times(scenario: Scenario, profile: Profile | None, population: Population) -> RequestTimes:
    """Return the functions that turn uniform draws into the seconds that requests carry."""
    from_storage, from_host = tier_times(scenario, profile, population)
    service = scenario.fleet.service

    def none(chunk: Chunk) -> Floats:
        return np.zeros(len(chunk))

    return RequestTimes(
        load=lambda chunk: from_storage.seconds(chunk.adapter, chunk.load_uniform),
        host_load=(lambda chunk: from_host.seconds(chunk.adapter, chunk.host_load_uniform))
        if scenario.has_host_tier
        else none,
        service=none if service is None else lambda chunk: service.ppf(chunk.service_uniform),
    )


def reload_times(tiers: tuple[TierTimes, TierTimes], draws: ReplicaDraws) -> Callable[[int, int], float]:
    """Return the function that draws the seconds of loads without a request (vLLM's cascades), by adapter and tier."""
    from_storage, from_host = tiers
    again_from_storage = from_storage.draws(draws.stream("reload"))
    again_from_host = from_host.draws(draws.stream("host-reload"))
    return lambda adapter, tier: again_from_storage(adapter) if tier == FROM_STORAGE else again_from_host(adapter)
