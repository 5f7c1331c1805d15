"""What an autoscaler reads of one replica: the gauges that engines export, from the simulated server itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sim.policies.adapter_cache import RESIDENT
from sim.results.recording.recorder import Recorder
from sim.traffic.request import Request
from sim.world.clock import Clock
from sim.world.replica.server import Server
from sim.world.world import World

Gauge = Callable[[Server], float]
Reader = Callable[[Sequence[Server], Sequence[int]], list[float]]
"""Returns the metric of the servers with some indices."""


def in_flight(server: Server) -> float:
    """Return the requests inside: ``vllm:num_requests_running`` and ``vllm:num_requests_waiting`` together."""
    return float(len(server.all_requests()))


def waiting(server: Server) -> float:
    """Return the requests that are not in the batch: ``vllm:num_requests_waiting``."""
    return float(len(server.all_requests()) - len(server.running()))


def adapter_waiting(server: Server) -> float:
    """Return the waiting requests whose adapter is not in GPU memory."""
    state = server.cache.state
    running = {request.index for request in server.running()}

    def lacks(request: Request) -> bool:
        base = request.adapter >= len(state)
        return not base and request.index not in running and state[request.adapter] != RESIDENT

    return float(sum(map(lacks, server.all_requests())))


def kv_usage(kv_tokens: int) -> Gauge:
    """Return a gauge of the share of the KV cache that running requests hold; shared blocks count for each of them.

    :param kv_tokens: of one replica.
    """

    def gauge(server: Server) -> float:
        tokens = 0
        for request in server.running():
            decoding = request.last_step >= 0
            tokens += request.prompt_tokens + server.tokens_out(request) if decoding else request.context
        return min(1.0, tokens / kv_tokens)

    return gauge


class GpuLoad:
    """The share of the time since the last reading in which steps ran. Read it of all replicas at the same times."""

    def __init__(self, clock: Clock, recorder: Recorder, replicas: int) -> None:
        self._clock = clock
        self._recorder = recorder
        self._read_s = 0.0
        self._busy_s = [0.0] * replicas  # up to the last reading

    def read(self, servers: Sequence[Server], indices: Sequence[int]) -> list[float]:
        """Return the load of the replicas with these indices.

        One that was ready only for a part of the time has the load of that part, spread over all of it.
        """
        now, ended = self._clock.now, self._recorder.busy_so_far()
        busy_s = [float(ended[server.index]) + server.busy_s() for server in servers[: len(self._busy_s)]]
        span_s = now - self._read_s
        loads = [min(1.0, (busy_s[index] - self._busy_s[index]) / span_s) for index in indices]
        self._read_s, self._busy_s = now, busy_s
        return loads


_GAUGES: dict[str, Gauge] = {"in_flight": in_flight, "waiting": waiting, "adapter_waiting": adapter_waiting}


def make_reader(metric: str, world: World, clock: Clock, recorder: Recorder) -> Reader:
    """Return the reader of the metric that the autoscaler of a world goes by."""
    if metric == "gpu_load":
        return GpuLoad(clock, recorder, world.scenario.fleet.places).read
    gauge = kv_usage(world.kv_tokens or 1) if metric == "kv_usage" else _GAUGES[metric]
    return lambda servers, indices: [gauge(servers[index]) for index in indices]
