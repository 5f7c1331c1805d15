"""A replica of engine ``fixed``: one request at a time, with a service time of its own."""

from __future__ import annotations

from collections import deque

from sim.traffic.request import Request
from sim.world.clock import BOUNDARY, Call
from sim.world.replica.modes.adapter_mode import AdapterMode
from sim.world.replica.ports import Action
from sim.world.replica.server import ReplicaParts, Server


class FixedServer(Server):
    """Engine ``fixed``: one request at a time, first ready first served.

    :param mode: loads at arrival.
    """

    def __init__(self, parts: ReplicaParts, mode: AdapterMode) -> None:
        super().__init__(parts, mode)
        self._queue: deque[Request] = deque()
        self._serving: list[Request] = []  # one at most
        self._event = Call(self._served)
        self._actions: list[Action] = []
        self._leaving = False  # the request being served has its answer, and keeps its place for this instant

    def enqueue(self, request: Request, may_join_now: bool) -> None:
        if self._serving:
            self._queue.append(request)
        else:
            self._serve(request)

    def _serve(self, request: Request) -> None:
        now = self.clock.now
        self._serving.append(request)
        request.admitted_s = now
        self.clock.schedule(now + request.service_s, BOUNDARY, self._event)

    def _served(self, event: Call) -> None:
        now, request = self.clock.now, self._serving[0]
        request.first_token_s = now
        self.recorder.record_leap(request.admitted_s, request.service_s, 0.0, 0.0, 1, 0, 1, 0, self.index)
        self._leaving = True
        self._leave([request], now)  # by the weights that were resident until now
        while self._actions:
            self._act()
        self._leaving = False
        self._serving.clear()  # only now: requests that an action releases queue behind those that wait
        if self._queue:
            self._serve(self._queue.popleft())

    def wake(self, key: int, may_join_now: bool) -> None:
        """Requests are served as they become ready."""

    def boundary_due(self) -> bool:
        return False  # nothing is loaded ahead

    def at_boundary(self, action: Action) -> None:
        self._actions.append(action)
        if not self._serving:
            self._act()

    def _act(self) -> None:
        actions, self._actions = self._actions, []
        for action in actions:
            blocked_s = action(self.clock.now)
            assert blocked_s == 0.0, "loads overlap with service"

    def in_progress(self, adapter: int) -> list[tuple[Request, int]]:
        return []  # an answer is one piece of work

    def tokens_out(self, request: Request) -> int:
        return request.output_tokens if request.first_token_s >= 0 else 0

    def close(self) -> list[Request]:
        """Record the service under way; return the requests still inside."""
        worked_s = self.busy_s()
        for request in self._serving if worked_s > 0 else ():
            self.recorder.record_leap(request.admitted_s, worked_s, 0.0, 0.0, 1, 0, 1, 0, self.index)
        return super().close()

    def running(self) -> list[Request]:
        return [] if self._leaving else list(self._serving)

    def busy_s(self) -> float:
        return sum(self.clock.now - request.admitted_s for request in self._serving)

    def _queued_or_running(self) -> list[Request]:
        return self.running() + list(self._queue)
