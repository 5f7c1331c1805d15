"""A rollout under a new name: routers shift requests to it stage by stage, and back if a gate fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from sim.policies.changes import NEVER_S, FailedTerm, Sample, failed_terms, failed_words
from sim.rng import stream_key, uniform_draw
from sim.spec.sections.changes import Gate
from sim.traffic.request import MISS, Request
from sim.world.clock import Call
from sim.world.dispatcher import Dispatcher
from sim.world.rollouts.rollout_plan import PlannedRollout
from sim.world.rollouts.rollout_progress import ActiveRollout, RolloutProgress
from sim.world.routing.router_state import RouterInstances


class TrafficShift(ActiveRollout):
    """One rollout of strategy ``new-name``. It is complete when the last request for an old version has left.

    :param retarget: sends a request to another adapter.
    :param routers: router instances; each learns of a stage after a delay of its own.
    """

    def __init__(
        self,
        planned: PlannedRollout,
        progress: RolloutProgress,
        seed: int,
        replication: int,
        retarget: Callable[[Request, int], None],
        routers: RouterInstances,
    ) -> None:
        super().__init__(planned, progress, seed, replication)
        self._retarget = retarget
        self._routers = routers
        self._session_key = stream_key(seed, replication, f"version-session-{planned.number}")
        self._request_key = stream_key(seed, replication, f"version-{planned.number}")
        self._place = {adapter: i for i, adapter in enumerate(planned.adapters)}
        self._stages: list[tuple[float, float, list[float]]] = []  # start of each, its share, and each router's delay
        self._inside: Counter[int] = Counter()  # requests inside for adapters that get no more requests
        self._open = len(planned.adapters)  # whose losing version still gets requests, or has some inside
        self._samples: list[Sample] = []
        self._fleet: Dispatcher

    def start(self, fleet: Dispatcher) -> None:
        """Begin with the run."""
        self._fleet = fleet
        self._clock.process(self._shift())

    def _shift(self) -> Iterator[Call]:
        """Shift requests stage by stage; with a gate, each stage follows the judgement of the one before."""
        clock, rollout, gate = self._clock, self.planned.rollout, self.planned.rollout.gate
        everything, known_s = range(len(self._offsets)), 0.0
        begins = [clock.until(rollout.at + n * rollout.dwell) for n in range(1 if gate else len(rollout.stages))]
        for number, share in enumerate(rollout.stages):
            if number < len(begins):
                yield begins[number]
            self._begin(number, share)
            known_s = self._announce(share)
            if gate is None or share == 1:
                continue
            self._samples = []
            yield from self._enough_samples(gate)
            if len(self._samples) < gate.min_requests:
                return  # the run is over
            failed = failed_terms(gate.terms(), self._samples)
            if failed:
                self.rolled_back = True
                self._note("rollback", f"back to the old version: {failed_words(failed)}", failed)
                yield clock.until(self._announce(0.0))
                self._settle(everything)
                return
        self._due_s = clock.now
        groups: list[Sequence[int]] = [(i,) for i in everything] if rollout.spread else [everything]
        known = [clock.until(known_s + self._offsets[group[0]]) for group in groups]
        for event, group in zip(known, groups, strict=True):
            yield event
            self._settle(group)

    def _enough_samples(self, gate: Gate) -> Iterator[Call]:
        """Wait until there are enough samples, for one or more times of a stage, or the run is over."""
        while True:
            self._progress.judging += 1
            yield self._clock.until(self._clock.now + self.planned.rollout.dwell)
            self._progress.judging -= 1
            if len(self._samples) >= gate.min_requests or self._clock.pending() <= self._progress.judging:
                return

    def _too_few_for_the_gate(self) -> tuple[FailedTerm, ...]:
        gate, count = self.planned.rollout.gate, len(self._samples)
        if gate is None or count >= gate.min_requests:
            return ()
        return (FailedTerm("min_requests", float(count), float(gate.min_requests)),)

    def _begin(self, number: int, share: float) -> None:
        self._begun = number + 1
        self._note("rollout" if number == 0 else "stage", f"{share:.0%} of the requests to the new version")
        if number == 0:
            self._progress.begins(self.planned)
            self._progress.shifting.update(dict.fromkeys(self.planned.adapters, self))

    def _announce(self, share: float) -> float:
        """Announce a share to the routers; return the time at which all of them know it, for the first adapter."""
        delays: list[float] = self.planned.rollout.delays(self._rng.random(self._routers.count)).tolist()
        self._stages.append((self._clock.now, share, delays))
        return self._clock.now + max(delays)

    def _settle(self, places: Sequence[int]) -> None:
        """Now that every router knows, start to count down the requests inside for the losing versions."""
        progress, planned = self._progress, self.planned
        losers = {}
        for i in places:
            old, new = planned.adapters[i], planned.new_adapters[i]
            progress.shifting.pop(old)
            if not self.rolled_back:
                progress.moved[old] = new
            losers[new if self.rolled_back else old] = self
        for server in self._fleet.servers:
            inside = server.all_requests() + self._fleet.held(server.index)
            self._inside.update(request.adapter for request in inside if request.adapter in losers)
        progress.draining.update(losers)
        for adapter in losers:
            if self._inside[adapter] == 0:
                self._over(adapter)

    def _over(self, adapter: int) -> None:
        """Drop the copies of an adapter whose last request has left; its pin moves to the new version."""
        del self._progress.draining[adapter]
        if not self.rolled_back:
            new = self.planned.new_adapters[self._place[adapter]]
            self._progress.pin_of[adapter] = new
            for server in self._fleet.servers:
                server.copies.pin_instead(adapter, new)
        if not self.planned.rollout.keep_old:
            for server in self._fleet.servers:
                server.copies.drop(adapter)
        self._open -= 1
        if self._open:
            return
        if self.rolled_back:
            self._progress.ends(self.planned, complete=False)
        else:
            self._complete("the old version has left")

    def moves(self, request: Request) -> bool:
        """Send a request to the new version if its router knows of it and its draw is in the share; return whether."""
        i = self._place[request.adapter]
        share = self._share(self._routers.of(request), i)
        if share > 0.0 and (share >= 1.0 or self._draw(request, i) < share):
            self._retarget(request, self.planned.new_adapters[i])
            return True
        return False

    def _share(self, router: int, i: int) -> float:
        """Return the share of requests that a router sends to the new version of the ``i``-th adapter now."""
        now = self._clock.now
        for began_s, share, delays in reversed(self._stages):
            if began_s + self._offsets[i] + delays[router] <= now:
                return share
        return 0.0

    def _draw(self, request: Request, i: int) -> float:
        if self.planned.rollout.sticky and request.session is not None:
            # A session may ask for several adapters: it moves with each of them alone.
            return uniform_draw(self._session_key, request.session * len(self._offsets) + i)
        return uniform_draw(self._request_key, request.index)

    def ended(self, request: Request, now: float) -> None:
        """Note an answer by the new version: a sample for the gate."""
        missed, arrival_s = request.outcome == MISS, request.arrival_s
        self._samples.append(Sample(request.first_token_s - arrival_s, now - arrival_s, missed))

    def failed(self, request: Request) -> None:
        """Note that a request for the new version failed: a sample for the gate."""
        self._samples.append(Sample(NEVER_S, NEVER_S, request.outcome == MISS))

    def left(self, adapter: int) -> None:
        """Note that a request for the losing version has left."""
        self._inside[adapter] -= 1
        if self._inside[adapter] == 0:
            self._over(adapter)
