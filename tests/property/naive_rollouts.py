"""A second look at a run with rollouts: which version lies where, and which computes which tokens, leap by leap.

It keeps its own copies of versions, told of loads and swaps as they happen, and looks at the whole batch after every
boundary. The simulator looks only at requests under way when a version changes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, NamedTuple

import pytest

from sim.results.records import Recording
from sim.traffic.request import FROM_STORAGE, Request
from sim.world.replica.host_fill import HostFill
from sim.world.replica.server import FixedServer, Server
from sim.world.replication import assemble
from sim.world.rollouts.active_rollouts import Rollouts
from sim.world.rollouts.versions import Versions
from sim.world.world import World


class Answer(NamedTuple):
    """Versions of the first and the last token, and tokens by others than the last version."""

    version: int
    last_version: int
    tokens_before: int


class Seen:
    """One replication, watched.

    :ivar recording: what it left behind.
    :ivar fleet, rollouts: as they are after the end.
    :ivar swaps: of every exchange of weights under the same name: when, replica, adapter, new version.
    :ivar asked: by request, the adapter that it last asked a replica for; ``routers``: the router it came through.
    """

    def __init__(self, world: World, replication: int = 0) -> None:
        self.swaps: list[tuple[float, int, int, int]] = []
        self.asked: dict[int, int] = {}
        self._leaps: dict[int, list[tuple[int, int]]] = defaultdict(list)  # by request, version and tokens so far
        self._preempted: dict[int, int] = {}
        self._next_token_s: dict[int, float] = {}  # by request that decodes in the leap under way; inf: it doesn't
        assert world.rollout_plan.rollouts, "nothing changes otherwise"
        self._born = world.rollout_plan.initial_versions
        assembly = assemble(world, replication, 1, self._watching)
        self.fleet, self.rollouts = assembly.fleet, assembly.rollouts
        assert isinstance(self.rollouts, Rollouts)
        self._gpu: list[dict[int, int]] = []
        for replica, versions in enumerate(self.rollouts._versions):
            self._gpu.append({})
            self._follow(replica, versions)
        with pytest.MonkeyPatch.context() as patch:
            serve, arrive = FixedServer._serve, Server.arrive

            def served(server: Any, request: Request) -> None:
                serve(server, request)
                self._leaps[request.index].append((self.version(server.index, request.adapter), 0))

            def arrived(server: Any, request: Request) -> None:
                self.asked[request.index] = request.adapter
                arrive(server, request)

            patch.setattr(FixedServer, "_serve", served)
            patch.setattr(Server, "arrive", arrived)
            self.recording: Recording = self.fleet.run(world.traffic.chunks(replication))

    def version(self, replica: int, adapter: int) -> int:
        """Return the version that is in GPU memory, or was there last."""
        return self._gpu[replica].get(adapter, self._born.get(adapter, 1))

    def answer(self, index: int) -> Answer:
        """Return by whom a request was answered that has its last token."""
        leaps = self._leaps[index]
        last = leaps[-1][0]
        before = next(tokens for version, tokens in leaps if version == last)
        return Answer(leaps[0][0], last, before if leaps[0][0] != last else 0)

    def answer_so_far(self, index: int, stopped_s: float) -> Answer:
        """Return by whom a request was answered that had some tokens, but not the last, when the run stopped."""
        leaps = self._leaps[index]
        starts = [tokens for _, tokens in leaps]
        final = starts[-1] + (self._next_token_s[index] <= stopped_s)
        for server in self.fleet.servers:  # one preempted with its token, and still waiting, ran in no later leap
            waiting = [r for r in server._queued_or_running() if r.index == index and r.last_step < 0]
            final = max([final, *(r.generated for r in waiting)])
        gave = [i for i, (start, end) in enumerate(zip(starts, [*starts[1:], final], strict=True)) if end > start]
        last = leaps[gave[-1]][0]
        before = next(tokens for version, tokens in leaps if version == last)
        return Answer(leaps[0][0], last, before if leaps[0][0] != last else 0)

    def _watching(self, kind: type[Any]) -> Any:
        seen = self

        class Watched(kind):  # type: ignore[misc]  # the class is only known when it runs
            def _next_leap(self, now: float) -> float:
                end: float = super()._next_leap(now)
                for request in self.scheduler.running if self._steps else ():
                    seen._runs(self, request)
                return end

        return Watched

    def _runs(self, server: Any, request: Request) -> None:
        index = request.index
        if request.preemptions != self._preempted.get(index, 0):
            self._preempted[index] = request.preemptions
            if not request.generated:  # begun anew, and nobody has seen a token
                self._leaps[index].clear()
        decoding = request.last_step >= 0
        tokens = (
            request.output_tokens - (request.last_step - server.scheduler.decode_steps)
            if decoding
            else request.generated
        )
        self._leaps[index].append((self.version(server.index, request.adapter), tokens))
        decodes = decoding and server.scheduler.decided.decoding
        self._next_token_s[index] = server._started_s + server._elapsed(1) if decodes else math.inf

    def _follow(self, replica: int, versions: Versions) -> None:
        """Keep our own versions of one replica, told of what happens to its copies but not of what that means."""
        gpu, born = self._gpu[replica], self._born
        host: dict[int, int] = {}
        reading: dict[int, int] = {}
        reads, came, put = versions.load_started, versions.load_ended, versions.put
        arriving: list[int] = []

        def we_read(adapter: int, tier: int) -> None:
            reads(adapter, tier)
            stored = versions.files.get(adapter, born.get(adapter, 1))
            reading[adapter] = stored if tier == FROM_STORAGE else copies().get(adapter, born.get(adapter, 1))

        def copies() -> dict[int, int]:
            fetches = isinstance(self.fleet.servers[replica].intake, HostFill)
            return versions.in_host if fetches else host  # we are not called when fetches fill it

        def we_came(adapter: int, tier: int) -> None:
            version = reading.pop(adapter)
            if tier == FROM_STORAGE:
                host[adapter] = version
            gpu[adapter] = max(version, gpu.get(adapter, 0))  # versions only rise
            arriving.append(adapter)
            came(adapter, tier)
            arriving.pop()

        def we_put(adapter: int, version: int) -> None:
            if not arriving:
                self.swaps.append((self.fleet.clock.now, replica, adapter, version))
                gpu[adapter] = max(version, gpu.get(adapter, 0))
                host[adapter] = version
            put(adapter, version)

        versions.load_started, versions.load_ended, versions.put = we_read, we_came, we_put  # type: ignore[method-assign]
