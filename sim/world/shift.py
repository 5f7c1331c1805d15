"""A rollout under a new name: routers shift requests to it, stage by stage, and back if a gate says so."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sim.policies.gate import Sample, failed_terms
from sim.results.records import Event, Recorder
from sim.rng import luck, stream, stream_key
from sim.traffic.request import MISS, Request
from sim.world.clock import CONTROL, Call, Clock
from sim.world.lineage import Wave
from sim.world.server import Server
from sim.world.times import Readdress


class Shift:
    """One such rollout.

    :param routers: router instances; each learns of a stage in its own time.
    :ivar complete_s: when the last request of the last old version had left; nan before.
    """

    def __init__(
        self,
        wave: Wave,
        clock: Clock,
        recorder: Recorder,
        readdress: Readdress,
        routers: int,
        seed: int,
        replication: int,
    ) -> None:
        self.wave = wave
        self.complete_s = math.nan
        self.rolled_back = False
        self._clock = clock
        self._recorder = recorder
        self._readdress = readdress
        self._routers = routers
        self._rng = stream(seed, replication, "propagation", wave.number)
        self._session_key = stream_key(seed, replication, f"version-session-{wave.number}")
        self._request_key = stream_key(seed, replication, f"version-{wave.number}")
        self._router_key = stream_key(seed, replication, "router-instance")
        count = len(wave.adapters)
        self._offsets = [wave.rollout.spread * i / count for i in range(count)]
        self._place = {adapter: i for i, adapter in enumerate(wave.adapters)}
        self._place_of_copy = {copy: i for i, copy in enumerate(wave.copies)}
        self._place_of_name = {name: i for i, name in enumerate(wave.names)}
        self._inside_old, self._inside_new = [0] * count, [0] * count
        self._stages: list[tuple[float, float, list[float]]] = []  # when it began, its share, and each router's delay
        self._due_s = math.inf  # when the first adapter was to be new for everybody
        self._settled = [False] * count  # nothing is sent to the side that loses any more
        self._open = count  # adapters of which it still has requests inside, or gets some
        self._samples: list[Sample] = []
        self._servers: list[Server] = []

    def start(self, servers: list[Server]) -> None:
        """Put the stages on the clock; those behind a gate follow when it has judged."""
        self._servers = servers
        rollout = self.wave.rollout
        last = 1 if rollout.gate is not None else len(rollout.stages)
        for number in range(last):
            self._clock.call_at(rollout.at + number * rollout.dwell, CONTROL, self._begin_stage, number)

    def steer(self, request: Request) -> None:
        """Let a request ask for the new version, if its router has heard of it and its lot falls so."""
        i = self._place.get(request.adapter)
        if i is None:
            i = self._place_of_copy.get(request.adapter)
            if i is not None:  # it was there already, on a replica that died
                self._inside_new[i] += 1
            return
        share = self._share(self._router(request), i)
        if share > 0.0 and (share >= 1.0 or self._lot(request, i) < share):
            self._readdress(request, self.wave.copies[i])
            self._inside_new[i] += 1
        else:
            self._inside_old[i] += 1

    def ended(self, request: Request, now: float) -> None:
        """Note that a request has been answered."""
        if request.adapter in self._place_of_copy and self.wave.rollout.gate is not None:
            missed = request.outcome == MISS
            arrival_s = request.arrival_s
            self._samples.append(Sample(request.first_token_s - arrival_s, now - arrival_s, missed))
        self.left(request)

    def left(self, request: Request) -> None:
        """Note that a request is no longer inside."""
        i = self._place.get(request.adapter)
        if i is not None:
            self._inside_old[i] -= 1
            self._look(i)
            return
        i = self._place_of_copy.get(request.adapter)
        if i is not None:
            self._inside_new[i] -= 1
            self._look(i)

    def due(self, name: int, time: float) -> int:
        """Return the version that everybody was to have of an adapter at a time, by this rollout; 0: any."""
        i = self._place_of_name.get(name)
        if i is None or self.rolled_back or time < self._due_s + self._offsets[i]:
            return 0
        return self.wave.versions[i]

    def _router(self, request: Request) -> int:
        if self._routers == 1:
            return 0
        who = request.index if request.session is None else ~request.session
        return int(luck(self._router_key, who) * self._routers)

    def _lot(self, request: Request, i: int) -> float:
        if self.wave.rollout.sticky and request.session is not None:
            # A session may ask for several adapters: it moves with each of them alone.
            return luck(self._session_key, request.session * len(self._offsets) + i)
        return luck(self._request_key, request.index)

    def _share(self, router: int, i: int) -> float:
        """Return the share of requests that a router sends to the new version of the ``i``-th adapter now."""
        now = self._clock._now
        for began_s, share, delays in reversed(self._stages):
            if began_s + self._offsets[i] + delays[router] <= now:
                return share
        return 0.0

    def _begin_stage(self, event: Call) -> None:
        number: int = event.subject
        rollout = self.wave.rollout
        share = rollout.stages[number]
        self._note("rollout" if number == 0 else "stage", f"{share:.0%} of the requests to the new version")
        delays = self._announce(share)
        if share == 1:
            self._due_s = self._clock._now
            self._settle_after(delays)
        elif rollout.gate is not None:
            self._samples = []
            self._clock.call_at(self._clock._now + rollout.dwell, CONTROL, self._judge, number)

    def _announce(self, share: float) -> list[float]:
        law = self.wave.rollout.propagation
        drawn = self._rng.random(self._routers)
        delays = [0.0] * self._routers if law is None else law.ppf(drawn).tolist()
        self._stages.append((self._clock._now, share, delays))
        return delays

    def _judge(self, event: Call) -> None:
        gate, number = self.wave.rollout.gate, int(event.subject)
        assert gate is not None, "only a gate judges"
        if len(self._samples) < gate.min_requests:
            self._clock.call_at(self._clock._now + self.wave.rollout.dwell, CONTROL, self._judge, number)
            return
        failed = failed_terms(gate.terms(), self._samples)
        if not failed:
            self._begin_stage(Call(self._clock, self._begin_stage, number + 1))
            return
        self.rolled_back = True
        self._note("rollback", f"back to the old version: {failed}")
        self._settle_after(self._announce(0.0))

    def _settle_after(self, delays: Sequence[float]) -> None:
        """Look, when every router knows, whether the side that gets no more requests has any inside."""
        known_s = self._clock._now + max(delays)
        if self.wave.rollout.spread == 0 or self.rolled_back:
            self._clock.call_at(known_s + (self._offsets[-1] if self.rolled_back else 0.0), CONTROL, self._settle)
            return
        for i, offset in enumerate(self._offsets):
            self._clock.call_at(known_s + offset, CONTROL, self._settle, i)

    def _settle(self, event: Call) -> None:
        for i in range(len(self._settled)) if event.subject is None else (event.subject,):
            self._settled[i] = True
            self._look(i)

    def _look(self, i: int) -> None:
        """See whether the last request of the side that loses has left."""
        if not self._settled[i]:
            return
        inside, loser = (
            (self._inside_new, self.wave.copies) if self.rolled_back else (self._inside_old, self.wave.adapters)
        )
        if inside[i]:
            return
        self._settled[i] = False  # looked at for the last time
        if not self.wave.rollout.keep_old:
            for server in self._servers:
                server.drop(loser[i])
        self._open -= 1
        if self._open == 0 and not self.rolled_back:
            self.complete_s = self._clock._now
            self._note("complete", "the old version has left")

    def _note(self, kind: str, text: str) -> None:
        self._recorder.events.append(Event(self._clock._now, kind, f"rollouts.{self.wave.number}: {text}"))
