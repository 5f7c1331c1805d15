"""Requests that reach the wrong adapter, the detection of wrong answers, and retries.

A complete wrong answer is either served or detected. An incomplete one (its replica crashes, the run stops) is neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import inf

from sim.errors import ScenarioError
from sim.policies.changes import PopularityChoice, UniformChoice, exchanged
from sim.results.recording.recorder import Recorder
from sim.results.records import (
    MISROUTED,
    OLD_PREFIX,
    RETRIED,
    UNFINISHED,
    WRONG_DETECTED,
    WRONG_LOAD,
    WRONG_SERVED,
    Event,
)
from sim.rng import stream, stream_key, uniform_draw
from sim.spec.scenario import Scenario
from sim.spec.sections.changes import (
    BaseModelAnswers,
    Detector,
    Misrouting,
    NamedPrefixes,
    StaleMap,
    ends_s,
    never_happens,
)
from sim.spec.units import human_seconds
from sim.traffic.generate import Traffic
from sim.traffic.request import MISS, Request
from sim.world.clock import ARRIVAL, Call, Clock
from sim.world.dispatcher import Dispatcher, Extension
from sim.world.replica.server import Server
from sim.world.routing.router_state import RouterInstances
from sim.world.times import Retarget
from sim.world.world import World

# Prefix caches keyed by adapter name: requests of a new version find prefixes that the old one computed.


class StalePrefixes:
    """Prefixes of old versions on all replicas.

    Where replicas have a prefix cache, it says which requests found such a prefix. Elsewhere a request is taken to look
    up its prefix when it joins the batch; a replica that never answered with the old version has no prefix of it.

    :param faults: each with its number in the scenario; there may be none.
    :param concerned: adapters whose new versions keep the name.
    :ivar active: whether there are such faults.
    """

    def __init__(
        self, faults: list[tuple[int, NamedPrefixes]], concerned: Collection[int], seed: int, replication: int
    ) -> None:
        self.active = bool(faults)
        self._servers: list[Server] = []  # with a prefix cache
        self._faults = [
            (spec.share, spec.lifetime, stream_key(seed, replication, f"named-prefixes-{number}"))
            for number, spec in faults
            if spec.share is not None and spec.lifetime is not None
        ]
        self._concerned = concerned
        self._answered_s: dict[tuple[int, int], float] = {}  # by replica and adapter, time of the last answer
        # When each came, and the last answer before it.
        self._replacements: dict[tuple[int, int], list[tuple[float, float]]] = {}

    def start(self, fleet: Dispatcher) -> None:
        """Begin with the run of a fleet."""
        if self.active and not self._faults:
            self._servers = fleet.servers

    def replaced(self, replica: int, adapter: int, under_way: bool, now: float) -> bool:
        """Note that new weights answer from now on; return whether requests for them find cached prefixes of old ones.

        :param under_way: whether requests are in progress with the adapter.
        """
        last_s = now if under_way else self._answered_s.get((replica, adapter))
        if last_s is not None:
            self._replacements.setdefault((replica, adapter), []).append((now, last_s))
        return self.active

    def found(self, replica: int, request: Request, now: float) -> bool:
        """Return whether a request that finishes now used a prefix of an older version.

        A prefix ages from the old version's last answer on that replica, not from the update: the old copy may have
        been evicted long before the new version is loaded.
        """
        if request.adapter not in self._concerned:
            return False
        if self._servers:
            return self._servers[replica].found_outdated_prefix(request)
        where = replica, request.adapter
        self._answered_s[where] = now
        replacements = self._replacements.get(where, [])
        last = bisect_right(replacements, (request.admitted_s, inf)) - 1
        if last < 0:
            return False
        age_s = request.admitted_s - replacements[last][1]
        return any(
            age_s < lifetime and uniform_draw(key, request.index) < share for share, lifetime, key in self._faults
        )

    def forget(self, replica: int) -> None:
        """Forget the prefixes of a replica that has crashed."""
        self._answered_s = {where: time for where, time in self._answered_s.items() if where[0] != replica}
        self._replacements = {
            where: replacements for where, replacements in self._replacements.items() if where[0] != replica
        }


def check_stale_prefixes(scenario: Scenario, *, prefix_cache: bool) -> None:
    """Refuse faults that say what the prefix cache of the replicas knows better, or do not say what is not known.

    :raises ScenarioError: with the key.
    """
    for number, fault in enumerate(scenario.faults):
        if not isinstance(fault, NamedPrefixes):
            continue
        for key in ("share", "lifetime"):
            given = getattr(fault, key)
            if prefix_cache and given is not None:
                raise ScenarioError(
                    "the replicas have a prefix cache, which says which requests find old prefixes",
                    key=f"faults.{number}.{key}",
                    got=f"{given:g}",
                    hint=f"remove {key}",
                )
            if not prefix_cache and given is None:
                raise ScenarioError(
                    "the scenario must say how many requests find old prefixes, since no prefix cache is simulated",
                    key=f"faults.{number}.{key}",
                    hint="such as {share: 40%, lifetime: 2 min}; or give fleet.prefix_caching and workload.prefix",
                )


def make_stale_prefixes(world: World, replication: int) -> StalePrefixes:
    """Return the stale prefixes of one replication."""
    named = [(number, spec) for number, spec in enumerate(world.scenario.faults) if isinstance(spec, NamedPrefixes)]
    updated: set[int] = set()
    if named:
        for planned in world.rollout_plan.rollouts:
            if not planned.new_adapters:
                updated.update(planned.adapters)
    return StalePrefixes(named, updated, world.scenario.run.seed, replication)


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


@dataclass(frozen=True, slots=True)
class OriginalTarget:
    """The adapter that a misrouted request was for.

    :ivar name: its adapter; ``load_s``, ``host_load_s``: load times of that adapter.
    :ivar fault: the fault that misrouted it.
    """

    name: int
    load_s: float
    host_load_s: float
    fault: MisroutingFault

    def restore(self, request: Request) -> None:
        request.adapter, request.load_s, request.host_load_s = self.name, self.load_s, self.host_load_s


class MisroutedRequests(Extension):
    """Misrouting faults of one replication, and the requests that they concern.

    If several faults could misroute a request, the first one in the scenario does.

    :param prefixes: stale prefixes, which answer with an old version.
    :param base_model: number of the base model in replicas. A request to it names no adapter, so it is never misrouted.
    :ivar wrong: by index, misrouted requests inside.
    """

    def __init__(
        self,
        faults: Sequence[MisroutingFault],
        prefixes: StalePrefixes,
        clock: Clock,
        recorder: Recorder,
        retarget: Retarget,
        base_model: int,
    ) -> None:
        super().__init__()
        self.reorders = True
        self._faults = faults
        self._prefixes = prefixes
        self._clock = clock
        self._recorder = recorder
        self._retarget = retarget
        self._base_model = base_model
        self._active: list[MisroutingFault] = []
        self._until_s = -inf
        self.wrong: dict[int, OriginalTarget] = {}
        self._tries: dict[int, int] = {}  # by index, of requests that were sent again
        self._to_come: dict[int, Request] = {}

    def start(self, fleet: Dispatcher) -> None:
        super().start(fleet)
        self._prefixes.start(fleet)

    def receive(self, request: Request) -> bool:
        """Misroute a request, if a fault decides so."""
        if request.adapter == self._base_model:
            return True
        now, tried = self._clock.now, self._tries.get(request.index, 0)
        if now >= self._until_s:
            self._active = [fault for fault in self._faults if fault.begins_s <= now < fault.ends_s]
            edges = (time for fault in self._faults for time in (fault.begins_s, fault.ends_s))
            self._until_s = min((time for time in edges if time > now), default=inf)
        for fault in self._active:
            reached = fault.reaches(request, tried, now)
            if reached != request.adapter:
                self._misroute(request, reached, fault)
                break
        return True

    def _misroute(self, request: Request, reached: int, fault: MisroutingFault) -> None:
        self.wrong[request.index] = OriginalTarget(request.adapter, request.load_s, request.host_load_s, fault)
        self._recorder.mark_request(request.index, MISROUTED)
        if reached == self._base_model:
            request.adapter = reached
        else:
            self._retarget(request, reached)

    def routed_by(self, request: Request) -> int:
        """Return its own adapter for a request that its replica will answer with the base model."""
        if request.adapter != self._base_model or request.index not in self.wrong:
            return request.adapter
        return self.wrong[request.index].name

    def restore(self, request: Request) -> None:
        original = self.wrong.pop(request.index, None)
        if original is not None:
            original.restore(request)

    def ended(self, request: Request, replica: int, now: float) -> bool:
        """Check an answer; a wrong one may be detected, and its request sent again or failed."""
        original = self.wrong.pop(request.index, None)
        if original is None:
            if self._prefixes.found(replica, request, now):
                self._recorder.mark_request(request.index, OLD_PREFIX)
            if self._tries:
                self._tries.pop(request.index, None)
            return False
        index, tried = request.index, self._tries.pop(request.index, 0)
        marks = WRONG_LOAD if request.outcome == MISS else 0
        detector = original.fault.detected_by(request, tried)
        if detector is None:
            self._recorder.mark_request(index, marks | WRONG_SERVED)
            return False
        again = tried < detector.retries
        marks |= WRONG_DETECTED | (RETRIED if again else 0)
        self._recorder.mark_request(index, marks, tries=int(again), detected=1)
        if again:
            self._tries[index] = tried + 1
            fresh = request.fresh_copy()
            original.restore(fresh)
            self._to_come[index] = fresh
            self._clock.call_at(now + detector.delay, ARRIVAL, self._resend, index)
        else:
            self._fleet.fail(request, replica, 0)
        return True

    def _resend(self, event: Call) -> None:
        self._fleet.submit(self._to_come.pop(event.subject))

    def pending(self) -> bool:
        return bool(self._to_come)

    def failed(self, request: Request, replica: int, marks: int) -> None:
        self.wrong.pop(request.index, None)
        self._tries.pop(request.index, None)

    def replaced(self, replica: int) -> None:
        self._prefixes.forget(replica)

    def close(self) -> dict[str, float]:
        for request in self._to_come.values():
            self._recorder.record_unserved(request, -1, UNFINISHED)
        stopped, events = self._clock.now, self._recorder.events
        for fault in self._faults:
            if fault.never:
                continue
            key = f"faults.{fault.number}"
            events.append(Event(fault.begins_s, "fault", f"{key}: {fault.words}"))
            events.append(Event(fault.ends_s, "over", f"{key}: requests reach their own adapters again"))
        # Events on the clock would make a run of all requests longer.
        events[:] = sorted((event for event in events if event.time_s <= stopped), key=lambda event: event.time_s)
        return {}


def make_misrouting(
    world: World, replication: int, clock: Clock, recorder: Recorder, prefixes: StalePrefixes
) -> MisroutedRequests | None:
    """Return the misrouting faults of one replication, if there are any."""
    scenario, traffic, first = world.scenario, world.traffic, world.pools[0]
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
    if not faults and not prefixes.active:
        return None
    retarget = Retarget(first.scenario, first.profile, first.population)
    return MisroutedRequests(faults, prefixes, clock, recorder, retarget, world.base_model)
