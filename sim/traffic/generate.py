"""Put traffic together: chunks of requests as numpy arrays, the same for every design that is compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.errors import ScenarioError
from sim.rng import stream
from sim.spec.scenario import Scenario
from sim.traffic.adapters import Population, populate
from sim.traffic.arrivals import gaps
from sim.traffic.lengths import Lengths, draw_pair
from sim.traffic.popularity import Chooser, read_weights
from sim.traffic.traces import TraceData, read_trace

BLOCK = 1 << 16
"""Requests made at a time. Part of the random streams' key: changing it changes all traffic."""

UNNAMED_ADAPTERS = 100
"""Adapters of a trace that names none, where the scenario gives no count."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive requests; every array has shape (n,).

    :ivar first: index of the first request.
    :ivar load_luck, host_load_luck, service_luck: uniform in [0, 1); decide the time of the load or
        service that the request brings about, whatever the design.
    """

    first: int
    arrival_s: Floats
    adapter: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    load_luck: Floats
    host_load_luck: Floats
    service_luck: Floats

    def __len__(self) -> int:
        return len(self.arrival_s)


class Traffic:
    """The requests of a scenario.

    :ivar population: every adapter's size and rank.
    :ivar names: adapter names where a trace or weights file gives them, else ().
    :ivar total: how many requests will come, or None while only the duration is known.
    :ivar end_s: no request comes after this time, where a duration is given.
    :ivar notes: sentences for the user.
    :raises TraceError, ScenarioError: where a file or a count can't be used.
    """

    def __init__(self, scenario: Scenario, base_model: str) -> None:
        workload = scenario.workload
        self._seed = scenario.run.seed
        self._workload = workload
        self._trace: TraceData | None = None
        self.names: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()
        if workload.trace is not None:
            self._trace = read_trace(workload.trace.file, workload.trace.format, workload.requests)
            self.names, self.notes = self._trace.names, self._trace.notes
        elif workload.popularity.law == "weights":
            self.names = read_weights(workload.popularity.file)[0]
        count = _adapter_count(scenario, self.names)
        if scenario.adapters.count is None and not self.names:
            self.notes += (
                f"the trace names no adapters and adapters.count is not set: its requests ask for {count} adapters, "
                f"drawn from workload.popularity ({workload.popularity.law})",
            )
        self.population = _with_trace_sizes(populate(scenario.adapters, base_model, count), self._trace)
        self.end_s = workload.duration
        self.total = self._count_total()
        named = self._trace is not None and self._trace.adapter is not None
        self._chooser = None if named else Chooser(workload.popularity, count)
        self._prompt, self._output = Lengths(workload.tokens.prompt), Lengths(workload.tokens.output)

    @property
    def replayed(self) -> bool:
        """Whether arrivals come from a trace, so that every replication sees the same ones."""
        return self._trace is not None

    @property
    def rate(self) -> float:
        """Mean requests per second."""
        if self._trace is not None:
            times = self._trace.arrival_s
            return len(times) / float(times[-1]) if times[-1] > 0 else float("inf")
        assert self._workload.arrivals is not None, "checked by Workload"
        return self._workload.arrivals.rate

    def chunks(self, replication: int) -> Iterator[Chunk]:
        """Yield the requests of one replication in order, in chunks of at most ``BLOCK``."""
        first, clock = 0, 0.0
        while self.total is None or first < self.total:
            block = first // BLOCK
            wanted = BLOCK if self.total is None else min(BLOCK, self.total - first)
            arrival = self._arrivals(replication, block, wanted, clock)
            if self.end_s is not None:
                arrival = arrival[: int(np.searchsorted(arrival, self.end_s, side="left"))]
            if len(arrival):
                yield self._chunk(replication, block, first, arrival)
            if len(arrival) < wanted:
                return
            first, clock = first + len(arrival), float(arrival[-1])

    def _count_total(self) -> int | None:
        if self._trace is not None:
            times = self._trace.arrival_s
            return len(times) if self.end_s is None else int(np.searchsorted(times, self.end_s, side="left"))
        return self._workload.requests

    def _arrivals(self, replication: int, block: int, count: int, clock: float) -> Floats:
        if self._trace is not None:
            return self._trace.arrival_s[block * BLOCK : block * BLOCK + count]
        assert self._workload.arrivals is not None, "checked by Workload"
        rng = stream(self._seed, replication, "arrivals", block)
        times = gaps(self._workload.arrivals, rng, count)
        times[0] += clock
        return np.cumsum(times)

    def _chunk(self, replication: int, block: int, first: int, arrival: Floats) -> Chunk:
        count = len(arrival)

        def rng(purpose: str) -> np.random.Generator:
            return stream(self._seed, replication, purpose, block)

        span = slice(first, first + count)
        trace = self._trace
        if trace is not None and trace.adapter is not None:
            adapter = trace.adapter[span]
        else:
            assert self._chooser is not None, "made where the trace names no adapter"
            adapter = self._chooser.choose(rng("popularity"), first, count)
        if trace is not None:
            prompt, output = trace.prompt_tokens[span], trace.output_tokens[span]
        else:
            correlation = self._workload.tokens.correlation
            prompt, output = draw_pair(self._prompt, self._output, correlation, (rng("prompt"), rng("output")), count)
        return Chunk(
            first=first,
            arrival_s=arrival,
            adapter=adapter,
            prompt_tokens=prompt,
            output_tokens=output,
            load_luck=rng("load").random(count),
            host_load_luck=rng("host-load").random(count),
            service_luck=rng("service").random(count),
        )


def _adapter_count(scenario: Scenario, names: tuple[str, ...]) -> int:
    given = scenario.adapters.count
    if not names:
        return UNNAMED_ADAPTERS if given is None else given
    if given is not None and given < len(names):
        raise ScenarioError(
            "fewer adapters than the file names", key="adapters.count", got=given, allowed=f"{len(names)} or more",
            hint="or leave it out",
        )  # fmt: skip
    weights = scenario.workload.popularity.law == "weights" and scenario.workload.trace is None
    return len(names) if given is None or weights else given


def _with_trace_sizes(population: Population, trace: TraceData | None) -> Population:
    if trace is None or trace.adapter_bytes is None:
        return population
    sizes = population.size_bytes.copy()
    sizes[: len(trace.adapter_bytes)] = trace.adapter_bytes
    return Population(
        size_bytes=sizes,
        rank=population.rank,
        tensors=population.tensors,
        kind=np.zeros_like(population.kind),
        kind_names=("sizes from the trace",),
        slot_bytes=max(population.slot_bytes, int(sizes.max())),
    )
