"""How long a new replica takes until it serves."""

from __future__ import annotations

import numpy as np

from sim.rng import stream
from sim.spec.sections.autoscaling import ColdStart
from sim.spec.sections.laws import FixedTime, TimeLaw
from sim.world.times import tier_times
from sim.world.world import World

ENGINE_START_S = 34.0
"""From loaded weights to a ready engine, where the scenario gives no law: vLLM's issue 20264."""


class ColdStarts:
    """The cold starts of one replication. The n-th replica that starts has the same draws in every design."""

    def __init__(self, spec: ColdStart, world: World, replication: int) -> None:
        self._laws = cold_start_laws(spec, world)
        self._warm_up = _WarmUp(world)
        self._seed, self._replication = world.scenario.run.seed, replication
        self._count = 0

    def next_s(self) -> float:
        """Return the seconds of the next cold start."""
        rng = stream(self._seed, self._replication, "cold-start", self._count)
        self._count += 1
        uniform = rng.random(len(self._laws))
        seconds = sum(float(law.ppf(uniform[i : i + 1])[0]) for i, law in enumerate(self._laws))
        return seconds + self._warm_up.seconds(rng)


def mean_cold_start_s(spec: ColdStart, world: World) -> float:
    """Return the mean seconds of a cold start, the loads of the adapters on the warm-up list included."""
    return sum(law.mean() for law in cold_start_laws(spec, world)) + _WarmUp(world).seconds(None)


def cold_start_laws(spec: ColdStart, world: World) -> list[TimeLaw]:
    """Return the laws of the parts of a cold start: provisioning, image, weights, engine."""
    profile, fixed = world.profile, world.scenario.fleet.engine == "fixed"
    read_s = 0.0 if fixed or profile is None else profile.memory.weights_bytes / spec.weights_per_s
    return [
        spec.provision or _always(0.0),
        spec.image or _always(0.0),
        spec.weights or _always(read_s),
        spec.engine or _always(0.0 if fixed else ENGINE_START_S),
    ]


def _always(seconds: float) -> TimeLaw:
    return FixedTime.model_construct(law="fixed", value=seconds)


class _WarmUp:
    """The loads of pinned adapters and of the warm-up list, before a new replica serves."""

    def __init__(self, world: World) -> None:
        scenario, host = world.scenario, world.scenario.cache.host
        tiers = tier_times(scenario, world.profile, world.population)
        in_host = host is not None and host.fill == "start"
        self._times = tiers[1] if in_host else tiers[0]
        self._loaders = scenario.storage.host_loaders if in_host else scenario.storage.loaders
        self._adapters = np.array([*world.pinned, *world.warmed_up], dtype=np.int64)

    def seconds(self, rng: np.random.Generator | None) -> float:
        """Return how long they take; without a generator, about their mean."""
        count = len(self._adapters)
        if count == 0:
            return 0.0
        uniform = np.full(count, 0.5) if rng is None else rng.random(count)
        return float(self._times.seconds(self._adapters, uniform).sum()) / min(self._loaders, count)
