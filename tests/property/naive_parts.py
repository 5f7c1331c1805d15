"""Rows of a run, and the parts of it over which metrics are taken: docs/metrics.md, "Over what".

Plain loops, written from the documents alone; see ``naive_metrics``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MIN_REQUESTS_P99 = 1000
"""Completed requests below which a p99 is withheld."""


@dataclass(frozen=True)
class Request:
    """A row of ``requests.parquet``. None: a stamp that never came; of the base model, adapter, outcome and tier."""

    index: int
    arrival_s: float
    adapter: int | None
    adapter_bytes: float
    output_tokens: int
    outcome: str | None
    tier: str | None
    replica: int
    preemptions: int
    load_queue_s: float
    load_wait_s: float
    admitted_s: float | None
    first_token_s: float | None
    finished_s: float | None
    status: str
    session: int | None = None
    marks: tuple[str, ...] = ()
    version: int | None = None
    last_version: int | None = None


@dataclass(frozen=True)
class Load:
    """A load that began: from ``storage`` or ``host``, of an adapter or of a whole model."""

    start_s: float
    end_s: float
    tier: str
    whole_model: bool
    replica: int


@dataclass(frozen=True)
class Step:
    """A step of a replica (engine ``fixed``: the service of a request), and what requests waited for meanwhile."""

    start_s: float
    end_s: float
    replica: int
    waiting_for: str


@dataclass(frozen=True)
class Span:
    """A time in which something was so: a loader's pause before another attempt, a load without room."""

    start_s: float
    end_s: float


@dataclass(frozen=True)
class Gap:
    """The time between two consecutive tokens of one request, and when the step began that ends it."""

    step_start_s: float
    gap_s: float


@dataclass(frozen=True)
class Replication:
    """One replication, warm-up and drain included.

    ``pauses``: in which a loader is held between two attempts at a load; ``retries``: how many loads are such a second
    or later attempt.
    """

    requests: list[Request]
    loads: list[Load]
    pauses: list[Span]
    retries: int
    short_of_room: list[Span]
    steps: list[Step]
    gaps: list[Gap]
    evictions: int
    extra_resident_bytes_peak: float = 0.0
    rollout_standstill_s: float = 0.0
    rollout_duration_s: float | None = None


@dataclass(frozen=True)
class Broken:
    """A time in which a replica is down or storage is slow, and the share of the replicas that it concerns."""

    kind: str
    begin_s: float
    end_s: float
    share: float


@dataclass(frozen=True)
class Facts:
    """What of the scenario the metrics depend on.

    ``targets``: those for single requests, by stage; ``terms``: all of latencies.
    """

    warmup: float
    duration_s: float | None
    loaders: int
    base_replicas: int
    all_replicas: int
    fixed_engine: bool
    targets: dict[str, float] = field(default_factory=dict)
    terms: dict[str, float] = field(default_factory=dict)
    rollout_begins: list[float] = field(default_factory=list)
    rollout_ends: list[float | None] = field(default_factory=list)
    fault_begins: list[float] = field(default_factory=list)
    faults: tuple[str, ...] = ()
    broken: tuple[Broken, ...] = ()
    sessions: bool = False
    blocking: bool = False
    fetched_at_arrival: bool = False
    cycles: float = 0.0  # of the rate, in the measured time of a replication
    mostly_copies: bool = False  # of the loads in the whole measured time, by their seconds

    def occupies_loaders(self, tier: str | None) -> bool:
        """Whether a load from this tier counts as one of the loaders; steps that load copies as well are one."""
        return tier == "storage" or (tier == "host" and self.blocking and not self.fetched_at_arrival)


@dataclass(frozen=True)
class Part:
    """A whole replication or one of its sections: what arrived in it, and what happened in its time."""

    facts: Facts
    begin_s: float
    end_s: float
    last: bool
    measured: list[Request]
    measured_indices: set[int]
    busiest_replica: int
    ended: list[Request]
    loads: list[Load]
    pauses: list[Span]
    steps: list[Step]
    gaps: list[Gap]

    @property
    def seconds(self) -> float:
        return self.end_s - self.begin_s


# --- Over what ------------------------------------------------------------------------------------------------------


def measured_requests(replication: Replication, facts: Facts) -> list[Request]:
    """Requests that arrive from the end of the warm-up on, which is a share of the requests or of the time."""
    warmup_ends_s, _ = measured_time(replication, facts)
    return [request for request in replication.requests if request.arrival_s >= warmup_ends_s]


def measured_time(replication: Replication, facts: Facts) -> tuple[float, float]:
    """From the first arrival after the warm-up to the last; with a duration from the warm-up's end to the run's."""
    if facts.duration_s is not None:
        return facts.warmup * facts.duration_s, facts.duration_s
    arrivals = [request.arrival_s for request in replication.requests]
    return arrivals[math.floor(facts.warmup * len(arrivals))], arrivals[-1]


def overlap_s(start_s: float, end_s: float, begin_s: float, stop_s: float) -> float:
    """Seconds of [start, end] that lie in [begin, stop]."""
    return max(0.0, min(end_s, stop_s) - max(start_s, begin_s))


def is_in(time_s: float, begin_s: float, end_s: float) -> bool:
    """Whether it happens in a part; what happens on a border belongs to the part that begins there."""
    return begin_s <= time_s < end_s


def make_part(
    replication: Replication, facts: Facts, begin_s: float, end_s: float, last: bool, measured: list[Request]
) -> Part:
    """The part from begin to end of a replication; the last one has the drain's gaps, too."""
    ended = []
    for request in replication.requests:
        if request.status == "completed" and is_in(request.finished_s, begin_s, end_s):
            ended.append(request)
    loads = []
    for load in replication.loads:
        if overlap_s(load.start_s, load.end_s, begin_s, end_s) > 0 or is_in(load.start_s, begin_s, end_s):
            loads.append(load)
    steps = [step for step in replication.steps if overlap_s(step.start_s, step.end_s, begin_s, end_s) > 0]
    pauses = [pause for pause in replication.pauses if overlap_s(pause.start_s, pause.end_s, begin_s, end_s) > 0]
    gaps = []
    for gap in replication.gaps:
        if begin_s <= gap.step_start_s and (last or gap.step_start_s < end_s):
            gaps.append(gap)
    all_measured = measured_requests(replication, facts)
    return Part(
        facts,
        begin_s,
        end_s,
        last,
        measured,
        {request.index for request in all_measured},
        busiest_replica(all_measured, facts),
        ended,
        loads,
        pauses,
        steps,
        gaps,
    )


def busiest_replica(measured: list[Request], facts: Facts) -> int:
    """The replica of the base model with the most measured requests; of several the first."""
    counts = [0] * facts.base_replicas
    for request in measured:
        if 0 <= request.replica < facts.base_replicas:
            counts[request.replica] += 1
    return counts.index(max(counts))


def whole(replication: Replication, facts: Facts) -> Part:
    """All of a replication that is measured."""
    begin_s, end_s = measured_time(replication, facts)
    return make_part(replication, facts, begin_s, end_s, True, measured_requests(replication, facts))


def section_begins(replication: Replication, facts: Facts, how_many: int) -> list[float]:
    """When each section begins: at every n-th measured request; with a duration, after equal times."""
    begin_s, end_s = measured_time(replication, facts)
    if facts.duration_s is not None:
        return [begin_s + (end_s - begin_s) * place / how_many for place in range(how_many)]
    arrivals = [request.arrival_s for request in replication.requests]
    after_warmup = arrivals[math.floor(facts.warmup * len(arrivals)) :]
    return [after_warmup[len(after_warmup) * place // how_many] for place in range(how_many)]


def sections(replication: Replication, facts: Facts, how_many: int) -> list[Part]:
    """Sections of equally many measured requests; with a duration, of equal times."""
    measured = measured_requests(replication, facts)
    begins = section_begins(replication, facts, how_many)
    _, measured_end_s = measured_time(replication, facts)
    parts = []
    for place, begin_s in enumerate(begins):
        last = place == how_many - 1
        end_s = measured_end_s if last else begins[place + 1]
        mine = [r for r in measured if r.arrival_s >= begin_s and (last or r.arrival_s < end_s)]
        parts.append(make_part(replication, facts, begin_s, end_s, last, mine))
    return parts


def admitted(parts: list[Part]) -> list[Request]:
    """Measured requests for adapters that were admitted at least once."""
    measured = [request for part in parts for request in part.measured if request.adapter is not None]
    return [request for request in measured if request.admitted_s is not None]


def completed(parts: list[Part]) -> list[Request]:
    """Measured requests that got their last token."""
    return [request for part in parts for request in part.measured if request.status == "completed"]


# --- Sums and quantiles ---------------------------------------------------------------------------------------------


def mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def quantile(values: list[float], share: float) -> float | None:
    """The value below which a share of them lies, with straight lines between neighbours."""
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    if below + 1 >= len(ordered):
        return ordered[-1]
    return ordered[below] + (place - below) * (ordered[below + 1] - ordered[below])


# --- Times of single requests ---------------------------------------------------------------------------------------


def queue_s(request: Request) -> float:
    return request.admitted_s - request.arrival_s


def ttft_s(request: Request) -> float:
    return request.first_token_s - request.arrival_s


def e2e_s(request: Request) -> float:
    return request.finished_s - request.arrival_s


def tpot_s(request: Request) -> float | None:
    """(last token − first token) / (output tokens − 1); with one output token there is none."""
    if request.output_tokens == 1:
        return None
    return (request.finished_s - request.first_token_s) / (request.output_tokens - 1)


def is_late(request: Request, facts: Facts) -> bool:
    """Beyond one of the targets for single requests; what hasn't happened is taken to happen when the run stops."""
    if request.status == "completed":
        admitted_s, first_s, last_s = request.admitted_s, request.first_token_s, request.finished_s
    elif request.status == "unfinished" and facts.duration_s is not None:
        stop_s = facts.duration_s
        admitted_s = stop_s if request.admitted_s is None else request.admitted_s
        first_s = stop_s if request.first_token_s is None else request.first_token_s
        last_s = stop_s
    else:
        return False
    for stage, target_s in facts.targets.items():
        if stage == "ttft" and first_s - request.arrival_s > target_s:
            return True
        if stage == "e2e" and last_s - request.arrival_s > target_s:
            return True
        if stage == "queue" and admitted_s - request.arrival_s > target_s:
            return True
        if stage == "tpot" and not facts.fixed_engine and request.output_tokens > 1:
            if (last_s - first_s) / (request.output_tokens - 1) > target_s:
                return True
    return False


def has_targets(facts: Facts) -> bool:
    """Whether the SLO has a target for single requests."""
    return any(stage != "tpot" or not facts.fixed_engine for stage in facts.targets)
