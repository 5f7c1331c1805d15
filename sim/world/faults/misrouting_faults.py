"""Faults by which requests reach the wrong adapter, or none: by chance, by a stale map, or to the base model."""

from __future__ import annotations

from abc import ABC, abstractmethod

from sim.errors import ScenarioError
from sim.policies.wrong_adapter import PopularityChoice, UniformChoice, exchanged
from sim.rng import stream, stream_key, uniform_draw
from sim.spec.scenario import Scenario
from sim.spec.sections.faults import BaseModelAnswers, Detector, Misrouting, StaleMap, ends_s, never_happens
from sim.spec.units import human_seconds
from sim.traffic.generate import Traffic
from sim.traffic.request import Request
from sim.world.routing.router_instances import RouterInstances
from sim.world.world import World

_MOST_TRIES = 128
"""More tries than any request has, so that each try has a number of its own."""


class MisroutingFault(ABC):
    """One fault by which requests reach the wrong adapter.

    :param number: its place in the scenario.
    :ivar begins_s, ends_s: requests sent from ``begins_s`` on and before ``ends_s`` may be misrouted.
    :ivar words: description for the timeline; ``never``: whether the fault can never happen.
    """

    def __init__(
        self, number: int, spec: Misrouting | StaleMap | BaseModelAnswers, seed: int, replication: int
    ) -> None:
        self.number = number
        self._detector = spec.detector
        self.begins_s = spec.at
        self.ends_s = ends_s(spec)
        self.words, self.never = "", never_happens(spec)
        self._check_key = stream_key(seed, replication, f"answer-check-{number}")

    @abstractmethod
    def reaches(self, request: Request, tried: int, now: float) -> int:
        """Return the adapter that a request reaches now, mostly its own; a wrong one is numbered as in the traffic.

        :param tried: how many times the request was sent again.
        :param now: from ``begins_s`` on and before ``ends_s``.
        """

    def detected_by(self, request: Request, tried: int) -> Detector | None:
        """Return the detector that checks the wrong answer to this try of a request; None: it goes unnoticed."""
        detector = self._detector
        if detector is None or uniform_draw(self._check_key, _number(request, tried)) >= detector.checks:
            return None
        return detector


def _number(request: Request, tried: int) -> int:
    """Return the number of this try of a request in the draws of a fault."""
    return request.index * _MOST_TRIES + tried


class RandomMisrouting(MisroutingFault):
    """Each request reaches another adapter with a probability."""

    def __init__(self, number: int, spec: Misrouting, traffic: Traffic, seed: int, replication: int) -> None:
        super().__init__(number, spec, seed, replication)
        self._probability = spec.probability
        self._others = (
            PopularityChoice(traffic.shares().tolist()) if spec.to == "popular" else UniformChoice(traffic.places)
        )
        self._key = stream_key(seed, replication, f"misrouting-{number}")
        self._to_key = stream_key(seed, replication, f"misrouting-to-{number}")
        self.words = f"{100 * spec.probability:.3g} % of the requests reach another adapter"

    def reaches(self, request: Request, tried: int, now: float) -> int:
        number = _number(request, tried)
        if uniform_draw(self._key, number) >= self._probability:
            return request.adapter
        return self._others.choose(request.adapter, uniform_draw(self._to_key, number))


class StaleMapMisrouting(MisroutingFault):
    """Some adapters have swapped addresses; requests are misrouted until their router has the new map."""

    def __init__(
        self, number: int, spec: StaleMap, traffic: Traffic, routers: RouterInstances, seed: int, replication: int
    ) -> None:
        super().__init__(number, spec, seed, replication)
        self._reached = exchanged(traffic.places, spec.share, _exchange_key(seed, number))
        self._routers = routers
        drawn = stream(seed, replication, "map-propagation", number).random(routers.count)
        self._known_s = [min(spec.at + delay, self.ends_s) for delay in spec.propagation.ppf(drawn).tolist()]
        self.ends_s = max(self._known_s)
        self.words = (
            f"{len(self._reached)} adapters have swapped places; routers learn of it within "
            f"{human_seconds(self.ends_s - spec.at)}"
        )

    def reaches(self, request: Request, tried: int, now: float) -> int:
        known = now >= self._known_s[self._routers.of(request)]
        return request.adapter if known else self._reached.get(request.adapter, request.adapter)


class BaseModelMisrouting(MisroutingFault):
    """Each request is answered by the base model alone with a probability.

    :param base_model: number of the base model in replicas.
    """

    def __init__(self, number: int, spec: BaseModelAnswers, base_model: int, seed: int, replication: int) -> None:
        super().__init__(number, spec, seed, replication)
        self._probability = spec.probability
        self._base_model = base_model
        self._key = stream_key(seed, replication, f"base-model-{number}")
        self.words = f"{100 * spec.probability:.3g} % of the requests are answered by the base model"

    def reaches(self, request: Request, tried: int, now: float) -> int:
        drawn = uniform_draw(self._key, _number(request, tried))
        return self._base_model if drawn < self._probability else request.adapter


def make_misrouting_faults(world: World, replication: int) -> list[MisroutingFault]:
    """Return the misrouting faults of a scenario, in its order."""
    scenario, traffic = world.scenario, world.traffic
    seed = scenario.run.seed
    faults: list[MisroutingFault] = []
    for number, spec in enumerate(scenario.faults):
        if isinstance(spec, Misrouting):
            faults.append(RandomMisrouting(number, spec, traffic, seed, replication))
        elif isinstance(spec, StaleMap):
            routers = RouterInstances(scenario.router.instances, seed, replication)
            faults.append(StaleMapMisrouting(number, spec, traffic, routers, seed, replication))
        elif isinstance(spec, BaseModelAnswers):
            faults.append(BaseModelMisrouting(number, spec, world.base_model, seed, replication))
    return faults


def check_misrouting_faults(scenario: Scenario, traffic: Traffic) -> None:
    """Refuse misrouting faults for which there are too few adapters.

    :raises ScenarioError: if no other adapter could be reached.
    """
    for number, spec in enumerate(scenario.faults):
        if isinstance(spec, Misrouting) and traffic.places < 2:
            raise ScenarioError(
                "there is no other adapter that a request could reach",
                key=f"faults.{number}",
                got=traffic.places,
                allowed="two adapters or more",
                hint="raise adapters.count",
            )
        if isinstance(spec, StaleMap) and not exchanged(
            traffic.places, spec.share, _exchange_key(scenario.run.seed, number)
        ):
            raise ScenarioError(
                "swapping places needs at least two adapters",
                key=f"faults.{number}.share",
                got=f"{spec.share:.3g} of {traffic.places}",
                allowed=f"at least {2 / traffic.places:.2%}" if traffic.places > 1 else "two adapters or more",
            )


def _exchange_key(seed: int, number: int) -> int:
    return stream_key(seed, 0, f"stale-map-{number}")  # the same adapters in every replication
