"""A rollout under a new name: routers shift requests to it stage by stage, and back if a gate fails."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from sim.policies.stage_gate import NEVER_S, Sample, failed_terms
from sim.rng import stream, stream_key, uniform_draw
from sim.traffic.request import MISS, Request
from sim.world.clock import CONTROL, Call
from sim.world.dispatcher import Dispatcher
from sim.world.rollouts.held_requests import HeldRequests
from sim.world.rollouts.rollout_plan import PlannedRollout, note_missing_stages
from sim.world.rollouts.rollout_progress import RolloutContext
from sim.world.routing.router_instances import RouterInstances


class TrafficShift:
    """One rollout of strategy ``new-name``.

    :param retarget: sends a request to another adapter.
    :param routers: router instances; each learns of a stage after a delay of its own.
    :param held: requests that other rollouts hold back.
    :ivar complete_s: time at which the last request for an old version had left; nan before.
    """

    def __init__(
        self,
        planned: PlannedRollout,
        context: RolloutContext,
        retarget: Callable[[Request, int], None],
        routers: RouterInstances,
        held: HeldRequests,
    ) -> None:
        seed, replication = context.seed, context.replication
        self.planned = planned
        self.complete_s = math.nan
        self.rolled_back = False
        self._context = context
        self._clock = context.clock
        self._progress = context.progress
        self._retarget = retarget
        self._routers = routers
        self._held = held
        self._rng = stream(seed, replication, "propagation", planned.number)
        self._session_key = stream_key(seed, replication, f"version-session-{planned.number}")
        self._request_key = stream_key(seed, replication, f"version-{planned.number}")
        count = len(planned.adapters)
        self._offsets = [planned.rollout.spread * i / count for i in range(count)]
        self._place = {adapter: i for i, adapter in enumerate(planned.adapters)}
        self._place_of_name = {name: i for i, name in enumerate(planned.names)}
        self._stages: list[tuple[float, float, list[float]]] = []  # start of each, its share, and each router's delay
        self._due_s = math.inf  # time at which all requests of the first adapter should go to its new version
        self._begun = 0  # stages
        self._inside: Counter[int] = Counter()  # requests inside for adapters that get no more requests
        self._open = count  # adapters whose losing version still gets requests, or has some inside
        self._samples: list[Sample] = []
        self._fleet: Dispatcher

    def start(self, fleet: Dispatcher) -> None:
        """Put the stages on the clock; with a gate, each stage follows the judgement of the one before."""
        self._fleet = fleet
        rollout = self.planned.rollout
        last = 1 if rollout.gate else len(rollout.stages)
        for number in range(last):
            self._clock.call_at(rollout.at + number * rollout.dwell, CONTROL, self._begin_stage, number)

    def moves(self, request: Request) -> bool:
        """Send a request to the new version if its router knows of it and its draw is in the share; return whether."""
        i = self._place[request.adapter]
        share = self._share(self._routers.of(request), i)
        if share > 0.0 and (share >= 1.0 or self._draw(request, i) < share):
            self._retarget(request, self.planned.new_adapters[i])
            return True
        return False

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

    def due(self, name: int, time: float) -> int:
        """Return the version that all requests for an adapter should get at a time, by this rollout; 0: any."""
        i = self._place_of_name.get(name)
        if i is None or self.rolled_back or time < self._due_s + self._offsets[i]:
            return 0
        return self.planned.versions[i]

    def close(self) -> None:
        """When the run has stopped, note stages that were planned and never began."""
        if self._begun and not self.rolled_back:
            note_missing_stages(self.planned, self._begun, self._note)

    def _draw(self, request: Request, i: int) -> float:
        if self.planned.rollout.sticky and request.session is not None:
            # A session may ask for several adapters: it moves with each of them alone.
            return uniform_draw(self._session_key, request.session * len(self._offsets) + i)
        return uniform_draw(self._request_key, request.index)

    def _share(self, router: int, i: int) -> float:
        """Return the share of requests that a router sends to the new version of the ``i``-th adapter now."""
        now = self._clock.now
        for began_s, share, delays in reversed(self._stages):
            if began_s + self._offsets[i] + delays[router] <= now:
                return share
        return 0.0

    def _begin_stage(self, event: Call) -> None:
        number: int = event.subject
        rollout, progress = self.planned.rollout, self._progress
        share = rollout.stages[number]
        self._begun = number + 1
        self._note("rollout" if number == 0 else "stage", f"{share:.0%} of the requests to the new version")
        if number == 0:
            progress.begins(self.planned)
            progress.shifting.update(dict.fromkeys(self.planned.adapters, self))
        known_s = self._announce(share)
        if share == 1:
            self._due_s = self._clock.now
            if rollout.spread == 0:
                self._clock.call_at(known_s, CONTROL, self._settle, range(len(self._offsets)))
            else:
                for i, offset in enumerate(self._offsets):
                    self._clock.call_at(known_s + offset, CONTROL, self._settle, (i,))
        elif rollout.gate:
            self._samples = []
            self._judge_later(number)

    def _announce(self, share: float) -> float:
        """Announce a share to the routers; return the time at which all of them know it, for the first adapter."""
        delays: list[float] = self.planned.rollout.delays(self._rng.random(self._routers.count)).tolist()
        self._stages.append((self._clock.now, share, delays))
        return self._clock.now + max(delays)

    def _judge_later(self, number: int) -> None:
        self._progress.judging += 1
        self._clock.call_at(self._clock.now + self.planned.rollout.dwell, CONTROL, self._judge, number)

    def _judge(self, event: Call) -> None:
        gate, number = self.planned.rollout.gate, int(event.subject)
        assert gate is not None, "only a gate judges"
        self._progress.judging -= 1
        if len(self._samples) < gate.min_requests:
            if self._clock.pending() > self._progress.judging:  # otherwise the run is over
                self._judge_later(number)
            return
        failed = failed_terms(gate.terms(), self._samples)
        if not failed:
            self._begin_stage(Call(self._begin_stage, number + 1))
            return
        self.rolled_back = True
        self._note("rollback", f"back to the old version: {failed}")
        self._clock.call_at(self._announce(0.0), CONTROL, self._settle, range(len(self._offsets)))

    def _settle(self, event: Call) -> None:
        """Now that every router knows, start to count down the requests inside for the losing versions."""
        progress, planned = self._progress, self.planned
        losers = {}
        for i in event.subject:
            old, new = planned.adapters[i], planned.new_adapters[i]
            progress.shifting.pop(old)
            if not self.rolled_back:
                progress.moved[old] = new
            losers[new if self.rolled_back else old] = self
        for server in self._fleet.servers:
            inside = server.all_requests() + self._held.of(server.index)
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
        self._progress.ends(self.planned, complete=not self.rolled_back)
        if not self.rolled_back:
            self.complete_s = self._clock.now
            self._note("complete", "the old version has left")

    def _note(self, kind: str, text: str) -> None:
        self._context.note(self.planned, kind, text)
