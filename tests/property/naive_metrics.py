"""Every metric of docs/metrics.md a second time, in plain loops.

Written from the documents alone (docs/metrics.md, run-directory.md, statistics.md, rollouts.md, faults.md,
full-models.md), so that it can be checked against them line by line. It knows nothing of ``sim.results`` and must
stay that way: no vectors, no shared helpers, no shortcuts.

What it counts from is a :class:`Replication`: the rows of ``requests.parquet``, one row a load, one row a step and one
row a gap between two tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from scipy.stats import t as student_t


@dataclass(frozen=True)
class Request:
    """A row of ``requests.parquet``. Stamps that never came are None."""

    index: int
    arrival_s: float
    adapter: int
    adapter_bytes: float
    output_tokens: int
    outcome: str
    tier: str
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
    """What of the scenario the metrics depend on."""

    warmup: float
    duration_s: float | None
    loaders: int
    base_replicas: int
    all_replicas: int
    fixed_engine: bool
    targets: dict[str, float] = field(default_factory=dict)
    rollout_begins: list[float] = field(default_factory=list)
    rollout_ends: list[float | None] = field(default_factory=list)
    fault_begins: list[float] = field(default_factory=list)
    faults: tuple[str, ...] = ()
    broken: tuple[Broken, ...] = ()
    sessions: bool = False


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
    """Measured requests that were admitted at least once."""
    return [request for part in parts for request in part.measured if request.admitted_s is not None]


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
    for term, target_s in facts.targets.items():
        if term == "ttft_p99" and first_s - request.arrival_s > target_s:
            return True
        if term == "e2e_p99" and last_s - request.arrival_s > target_s:
            return True
        if term == "queue_p99" and admitted_s - request.arrival_s > target_s:
            return True
        if term == "tpot_mean" and not facts.fixed_engine and request.output_tokens > 1:
            if (last_s - first_s) / (request.output_tokens - 1) > target_s:
                return True
    return False


def has_targets(facts: Facts) -> bool:
    """Whether the SLO has a target for single requests."""
    for term in facts.targets:
        if term in ("ttft_p99", "e2e_p99", "queue_p99") or (term == "tpot_mean" and not facts.fixed_engine):
            return True
    return False


# --- The metrics, in the order of the table -------------------------------------------------------------------------


def miss_ratio(parts: list[Part]) -> float | None:
    return share_of_outcome(parts, "miss")


def delayed_hit_ratio(parts: list[Part]) -> float | None:
    return share_of_outcome(parts, "delayed_hit")


def hit_ratio(parts: list[Part]) -> float | None:
    return share_of_outcome(parts, "hit")


def share_of_outcome(parts: list[Part], outcome: str) -> float | None:
    those = [request for request in admitted(parts) if request.outcome == outcome]
    return ratio(len(those), len(admitted(parts)))


def byte_miss_ratio(parts: list[Part]) -> float | None:
    missed_bytes = math.fsum(request.adapter_bytes for request in admitted(parts) if request.outcome == "miss")
    return ratio(missed_bytes, math.fsum(request.adapter_bytes for request in admitted(parts)))


def loads_per_request(parts: list[Part]) -> float | None:
    begun = 0
    for part in parts:
        for load in part.loads:
            if is_in(load.start_s, part.begin_s, part.end_s):
                begun += 1
    return ratio(begun, len(admitted(parts)))


def loader_utilization(parts: list[Part]) -> float | None:
    busy_s = []
    there_s = []
    for part in parts:
        there_s.append(part.seconds * part.facts.loaders * part.facts.base_replicas)
        for load in part.loads:
            if load.tier == "storage" and not load.whole_model:
                busy_s.append(overlap_s(load.start_s, load.end_s, part.begin_s, part.end_s))
        for pause in part.pauses:
            busy_s.append(overlap_s(pause.start_s, pause.end_s, part.begin_s, part.end_s))
    return ratio(math.fsum(busy_s), math.fsum(there_s))


def gpu_utilization(parts: list[Part]) -> float | None:
    busy_s = []
    there_s = []
    for part in parts:
        there_s.append(part.seconds * part.facts.all_replicas)
        for step in part.steps:
            busy_s.append(overlap_s(step.start_s, step.end_s, part.begin_s, part.end_s))
    return ratio(math.fsum(busy_s), math.fsum(there_s))


def queue_mean_s(parts: list[Part]) -> float | None:
    return mean([queue_s(request) for request in completed(parts)])


def queue_p50_s(parts: list[Part]) -> float | None:
    return quantile([queue_s(request) for request in completed(parts)], 0.5)


def queue_p99_s(parts: list[Part]) -> float | None:
    return quantile([queue_s(request) for request in completed(parts)], 0.99)


def load_wait_mean_s(parts: list[Part]) -> float | None:
    return mean([request.load_wait_s for request in completed(parts)])


def ttft_mean_s(parts: list[Part]) -> float | None:
    return mean([ttft_s(request) for request in completed(parts)])


def ttft_p50_s(parts: list[Part]) -> float | None:
    return quantile([ttft_s(request) for request in completed(parts)], 0.5)


def ttft_p99_s(parts: list[Part]) -> float | None:
    return quantile([ttft_s(request) for request in completed(parts)], 0.99)


def tpots(parts: list[Part]) -> list[float]:
    return [tpot_s(request) for request in completed(parts) if tpot_s(request) is not None]


def tpot_mean_s(parts: list[Part]) -> float | None:
    return mean(tpots(parts))


def gaps(parts: list[Part]) -> list[float]:
    return [gap.gap_s for part in parts for gap in part.gaps]


def itl_mean_s(parts: list[Part]) -> float | None:
    return mean(gaps(parts))


def itl_p99_s(parts: list[Part]) -> float | None:
    """The gap that 99 % of the gaps don't exceed; the metric is the upper edge of its bin, up to 0.1 % more."""
    ordered = sorted(gaps(parts))
    if not ordered:
        return None
    return ordered[math.ceil(0.99 * len(ordered)) - 1]


def e2e_mean_s(parts: list[Part]) -> float | None:
    return mean([e2e_s(request) for request in completed(parts)])


def e2e_p50_s(parts: list[Part]) -> float | None:
    return quantile([e2e_s(request) for request in completed(parts)], 0.5)


def e2e_p99_s(parts: list[Part]) -> float | None:
    return quantile([e2e_s(request) for request in completed(parts)], 0.99)


def all_seconds(parts: list[Part]) -> float:
    return math.fsum(part.seconds for part in parts)


def throughput_rps(parts: list[Part]) -> float | None:
    return ratio(sum(len(part.ended) for part in parts), all_seconds(parts))


def output_tokens_per_s(parts: list[Part]) -> float | None:
    tokens = 0
    for part in parts:
        for request in part.ended:
            tokens += request.output_tokens
    return ratio(tokens, all_seconds(parts))


def goodput_rps(parts: list[Part]) -> float | None:
    good = 0
    for part in parts:
        for request in part.ended:
            if request.index in part.measured_indices and not is_late(request, part.facts):
                good += 1
    return ratio(good, all_seconds(parts))


def slo_attainment(parts: list[Part]) -> float | None:
    good = 0
    judged = 0
    for part in parts:
        for request in part.measured:
            late = is_late(request, part.facts)
            if request.status == "completed" and not late:
                good += 1
            if request.status in ("completed", "refused", "failed") or late:
                judged += 1
    return ratio(good, judged)


def count_status(parts: list[Part], status: str) -> int:
    return len([request for part in parts for request in part.measured if request.status == status])


def count_mark(parts: list[Part], mark: str) -> int:
    return len([request for part in parts for request in part.measured if mark in request.marks])


def preemptions(parts: list[Part]) -> int:
    return sum(request.preemptions for part in parts for request in part.measured)


def replica_load_skew(parts: list[Part]) -> float | None:
    """Requests of each replication's busiest replica over the mean per replica of the base model."""
    of_busiest = 0
    means = []
    for part in parts:
        own = [request for request in part.measured if 0 <= request.replica < part.facts.base_replicas]
        of_busiest += len([request for request in own if request.replica == part.busiest_replica])
        means.append(len(own) / part.facts.base_replicas)
    return ratio(of_busiest, math.fsum(means))


HARMS = ("mixed", "stale", "wrong-served", "old-prefix", "gated")


def is_harmed(request: Request, facts: Facts) -> bool:
    for harm in HARMS:
        if harm in request.marks:
            return True
    return request.status == "failed" or is_late(request, facts)


def harmed(parts: list[Part]) -> int:
    return len([request for part in parts for request in part.measured if is_harmed(request, part.facts)])


def first_event_s(facts: Facts) -> float:
    """When the first rollout or fault begins; a fault from the start belongs to how things are."""
    later_faults = [begins_s for begins_s in facts.fault_begins if begins_s > 0]
    return min(facts.rollout_begins + later_faults, default=0.0)


def harmed_excess(parts: list[Part]) -> float | None:
    """Harmed from the first rollout or fault on, less as large a share as was late before, summed over replications."""
    total = 0.0
    for part in parts:
        began_s = first_event_s(part.facts)
        before = [request for request in part.measured if request.arrival_s < began_s]
        after = [request for request in part.measured if request.arrival_s >= began_s]
        if not before:
            return None
        late_before = len([request for request in before if is_late(request, part.facts)])
        harmed_after = len([request for request in after if is_harmed(request, part.facts)])
        total += harmed_after - late_before / len(before) * len(after)
    return total


def versions_of_sessions(part: Part) -> dict[tuple[int, int], list[Request]]:
    """The completed requests of each session for each adapter, in order of arrival."""
    answers: dict[tuple[int, int], list[Request]] = {}
    for request in part.measured:
        if request.status != "completed" or request.session is None or not request.version:
            continue
        answers.setdefault((request.session, request.adapter), []).append(request)
    return answers


def sessions_saw_both(parts: list[Part]) -> int:
    sessions_with_both = 0
    for part in parts:
        for answers in versions_of_sessions(part).values():
            seen = set()
            for request in answers:
                seen.add(request.version)
                seen.add(request.last_version)
            if len(seen) > 1:
                sessions_with_both += 1
    return sessions_with_both


def sessions_went_back(parts: list[Part]) -> int:
    went_back = 0
    for part in parts:
        for answers in versions_of_sessions(part).values():
            newest = 0
            back = False
            for request in answers:
                if request.version < newest:
                    back = True
                newest = max(newest, request.last_version)
            if back:
                went_back += 1
    return went_back


def window_during(facts: Facts) -> tuple[float, float]:
    """From the first rollout to the end of the last observation."""
    ends = [math.inf if end_s is None else end_s for end_s in facts.rollout_ends]
    return min(facts.rollout_begins), max(ends)


def only_arrived(part: Part, begin_s: float, end_s: float) -> Part:
    """The part with the requests that arrived in a window alone."""
    mine = [request for request in part.measured if begin_s <= request.arrival_s < end_s]
    return replace(part, measured=mine)


def arrived_during(parts: list[Part]) -> list[Part]:
    return [only_arrived(part, *window_during(part.facts)) for part in parts]


def arrived_before(parts: list[Part]) -> list[Part]:
    return [only_arrived(part, -math.inf, min(part.facts.rollout_begins)) for part in parts]


def span_during(part: Part) -> tuple[float, float]:
    """The part of the window that lies in the measured time."""
    begin_s, end_s = window_during(part.facts)
    begin_s = max(begin_s, part.begin_s)
    return begin_s, max(begin_s, min(end_s, part.end_s))


def span_before(part: Part) -> tuple[float, float]:
    """The measured time before the first rollout."""
    return part.begin_s, max(part.begin_s, min(min(part.facts.rollout_begins), part.end_s))


def loads_begun(part: Part, span: tuple[float, float]) -> list[float]:
    return sorted(load.start_s for load in part.loads if is_in(load.start_s, *span))


def rollout_loads(parts: list[Part]) -> int:
    return sum(len(loads_begun(part, span_during(part))) for part in parts)


def peak_loads_per_s(part: Part, span: tuple[float, float]) -> float | None:
    """The highest number of loads that begin within any 10 s of a span, or in all of a shorter one, per second."""
    begins = loads_begun(part, span)
    window_s = min(10.0, span[1] - span[0])
    if window_s <= 0:
        return None
    most = 0
    for first in range(len(begins)):
        within = 0
        for other in begins[first:]:
            if other < begins[first] + window_s:
                within += 1
        most = max(most, within)
    return most / window_s


def rollout_peak_loads_per_s(part: Part) -> float | None:
    return peak_loads_per_s(part, span_during(part))


def before_peak_loads_per_s(part: Part) -> float | None:
    return peak_loads_per_s(part, span_before(part))


def rerouted_e2e_mean_s(parts: list[Part]) -> float | None:
    return mean([e2e_s(request) for request in completed(parts) if "rerouted" in request.marks])


# --- Values, parts, intervals ---------------------------------------------------------------------------------------

SECTIONS_IN_ALL = 20
MIN_REQUESTS_MEAN = 20
MIN_REQUESTS_P99 = 1000
MIN_REPLICATIONS_AS_SECTIONS = 5
MOST_BUSY = 0.95
WIDE = 0.1
NARROW_SHARE = 0.005

Statistic = Callable[[list[Part]], float | None]

MEANS: dict[str, Statistic] = {
    "queue_mean_s": queue_mean_s,
    "load_wait_mean_s": load_wait_mean_s,
    "ttft_mean_s": ttft_mean_s,
    "tpot_mean_s": tpot_mean_s,
    "e2e_mean_s": e2e_mean_s,
}
MEDIANS: dict[str, Statistic] = {
    "queue_p50_s": queue_p50_s,
    "ttft_p50_s": ttft_p50_s,
    "e2e_p50_s": e2e_p50_s,
}
P99S: dict[str, Statistic] = {
    "queue_p99_s": queue_p99_s,
    "ttft_p99_s": ttft_p99_s,
    "e2e_p99_s": e2e_p99_s,
}
RATIOS: dict[str, Statistic] = {
    "miss_ratio": miss_ratio,
    "delayed_hit_ratio": delayed_hit_ratio,
    "hit_ratio": hit_ratio,
    "byte_miss_ratio": byte_miss_ratio,
    "loads_per_request": loads_per_request,
    "loader_utilization": loader_utilization,
    "gpu_utilization": gpu_utilization,
    "itl_mean_s": itl_mean_s,
    "throughput_rps": throughput_rps,
    "output_tokens_per_s": output_tokens_per_s,
    "goodput_rps": goodput_rps,
    "slo_attainment": slo_attainment,
    "replica_load_skew": replica_load_skew,
}
HISTOGRAMS: dict[str, Statistic] = {"itl_p99_s": itl_p99_s}
OF_TOKENS = ("tpot_mean_s", "itl_mean_s", "itl_p99_s", "output_tokens_per_s")
"""Engine ``fixed`` has no tokens."""
SHARES = (
    "miss_ratio",
    "delayed_hit_ratio",
    "hit_ratio",
    "byte_miss_ratio",
    "loader_utilization",
    "gpu_utilization",
    "slo_attainment",
    "rollout_miss_ratio",
    "before_miss_ratio",
)


@dataclass(frozen=True)
class Counted:
    """A metric: its value, in every section and replication, its interval, and the parts that a point keeps.

    None: withheld.
    """

    value: float | None
    in_sections: list[float | None]
    in_replications: list[float | None]
    low: float | None = None
    high: float | None = None
    settled: bool = True

    @property
    def parts(self) -> list[float | None]:
        """One value a replication from five replications on, else one a section; counts of events one a replication."""
        if not self.in_sections or len(self.in_replications) >= MIN_REPLICATIONS_AS_SECTIONS:
            return self.in_replications
        return self.in_sections


def half_width(values: list[float], value: float) -> float | None:
    """Of the mean of values that scatter around the whole-sample value; None for fewer than two."""
    n = len(values)
    if n < 2:
        return None
    spread = math.sqrt(math.fsum((x - value) ** 2 for x in values) / (n * (n - 1)))
    return float(student_t.ppf(0.975, n - 1)) * spread


def limits(name: str, value: float, half: float | None) -> tuple[float | None, float | None]:
    """The interval, not below 0, nor above 1 for shares."""
    if half is None:
        return None, None
    low, high = value - half, value + half
    if name in SHARES:
        high = min(high, 1.0)
    return max(low, 0.0), high


def is_narrow(name: str, half: float | None, value: float) -> bool:
    """Whether a half-width is at most 10 % of the value; shares are spared up to 0.005."""
    if half is None:
        return False
    return half <= WIDE * abs(value) or (name in SHARES and half <= NARROW_SHARE)


def values_of(name: str, section: Part) -> list[float]:
    """The values that a mean or quantile of requests is taken of."""
    return tpots([section]) if name == "tpot_mean_s" else [e2e_s(request) for request in completed([section])]


class SecondCount:
    """All metrics of one point, from its replications."""

    def __init__(self, replications: list[Replication], facts: Facts) -> None:
        self.facts = facts
        self.replications = replications
        self.wholes = [whole(replication, facts) for replication in replications]
        how_many = math.ceil(SECTIONS_IN_ALL / len(replications))
        self.sections = [part for replication in replications for part in sections(replication, facts, how_many)]

    def of_sections(self, name: str, statistic: Statistic, enough: bool) -> Counted:
        """Kinds mean, quantile, p99, ratio: the spread of the sections, from five replications on also of these."""
        in_sections = [statistic([section]) for section in self.sections]
        in_replications = [statistic([replication]) for replication in self.wholes]
        value = statistic(self.wholes) if enough else None
        if value is None:
            return Counted(None, in_sections, in_replications, settled=False)
        half = half_width([x for x in in_sections if x is not None], value)
        if len(self.wholes) >= MIN_REPLICATIONS_AS_SECTIONS:
            other = half_width([x for x in in_replications if x is not None], value)
            if other is not None:
                half = other if half is None else max(half, other)
        low, high = limits(name, value, half)
        if name == "replica_load_skew" and low is not None:
            low, high = max(1.0, low), min(float(self.facts.base_replicas), high)
        settled = is_narrow(name, half, value) and not self.is_saturated(name)
        for section in self.sections:
            least = 100 if name in P99S else 1
            if name in (MEANS | MEDIANS | P99S) and len(values_of(name, section)) < least:
                settled = False
        return Counted(value, in_sections, in_replications, low, high, settled)

    def is_saturated(self, name: str) -> bool:
        """Whether a time can't be trusted, since loaders or the fixed server are full, or more arrives than is served."""
        if not name.endswith("_s") or name == "output_tokens_per_s" or name.endswith("_loads_per_s"):
            return False
        if name != "rollout_duration_s":
            if loader_utilization(self.wholes) > MOST_BUSY:
                return True
            if self.facts.fixed_engine and gpu_utilization(self.wholes) > MOST_BUSY:
                return True
        offered = (offered_to_loaders(self.replications, self.wholes), overload(self.replications, self.wholes))
        return any(load is not None and load >= 1 for load in offered)

    def of_replications(self, name: str, value: float | None, in_replications: list[float | None]) -> Counted:
        """Kinds replications and p99 of replications: the spread of the replications."""
        if value is None:
            return Counted(None, [], in_replications, settled=False)
        half = half_width([x for x in in_replications if x is not None], value)
        settled = half is not None and half <= WIDE * abs(value) and not self.is_saturated(name)
        return Counted(value, [], in_replications, *limits(name, value, half), settled)

    def of_count(self, value: float | None, in_replications: list[float | None], negative: bool = False) -> Counted:
        """Kind count: a sum, whose interval is as many times that of the mean as there are replications."""
        if value is None:
            return Counted(None, [], in_replications)
        known = [x for x in in_replications if x is not None]
        half = half_width(known, value / len(known))
        if half is None:
            return Counted(value, [], in_replications)
        half *= len(known)
        low = value - half if negative else max(0.0, value - half)
        return Counted(value, [], in_replications, low, value + half)

    def metrics(self) -> dict[str, Counted]:
        """Every metric that the scenario has."""
        counted = self.usual()
        counted.update(self.counts())
        if self.facts.rollout_begins:
            counted.update(self.rollouts())
        if self.facts.rollout_begins or self.facts.fault_begins:
            counted.update(self.harms())
        if self.facts.faults:
            counted.update(self.faults())
        return counted

    def usual(self) -> dict[str, Counted]:
        """What is not a count, nor of rollouts and faults."""
        here = len(completed(self.wholes))
        counted = {}
        for name, statistic in MEANS.items():
            if self.facts.fixed_engine and name in OF_TOKENS:
                continue
            values = len(tpots(self.wholes)) if name == "tpot_mean_s" else here
            counted[name] = self.of_sections(name, statistic, values >= MIN_REQUESTS_MEAN)
        for name, statistic in MEDIANS.items():
            counted[name] = self.of_sections(name, statistic, here >= MIN_REQUESTS_MEAN)
        for name, statistic in P99S.items():
            counted[name] = self.of_sections(name, statistic, here >= MIN_REQUESTS_P99)
        for name, statistic in (RATIOS | HISTOGRAMS).items():
            if self.facts.fixed_engine and name in OF_TOKENS:
                continue
            if name in ("goodput_rps", "slo_attainment") and not has_targets(self.facts):
                continue
            if name == "replica_load_skew" and self.facts.base_replicas == 1:
                continue
            counted[name] = self.of_sections(name, statistic, True)
        return counted

    def counts(self) -> dict[str, Counted]:
        """Counts of every scenario."""
        counted = {}
        for name in ("completed", "unfinished"):
            counted[name] = self.without_interval(lambda parts, status=name: count_status(parts, status))
        counted["preemptions"] = self.without_interval(preemptions)
        evictions = [replication.evictions for replication in self.replications]
        counted["evictions"] = Counted(sum(evictions), [], evictions)
        for name in ("refused", "failed"):
            metric = self.summed(lambda parts, status=name: count_status(parts, status))
            if not self.facts.rollout_begins and not self.facts.faults:  # then it comes in a stream, like any other
                metric = replace(metric, in_sections=[count_status([part], name) for part in self.sections])
            counted[name] = metric
        return counted

    def without_interval(self, statistic: Statistic) -> Counted:
        in_sections = [statistic([section]) for section in self.sections]
        return Counted(statistic(self.wholes), in_sections, [statistic([part]) for part in self.wholes])

    def summed(self, statistic: Statistic) -> Counted:
        return self.of_count(statistic(self.wholes), [statistic([part]) for part in self.wholes])

    def harms(self) -> dict[str, Counted]:
        """What rollouts and faults did to requests."""
        excess = self.of_count(
            harmed_excess(self.wholes), [harmed_excess([part]) for part in self.wholes], negative=True
        )
        return {"harmed": self.summed(harmed), "harmed_excess": excess}

    def rollouts(self) -> dict[str, Counted]:
        """Of scenarios with rollouts."""
        counted = {
            "mixed_version_responses": self.summed(lambda parts: count_mark(parts, "mixed")),
            "stale_after_cutover": self.summed(lambda parts: count_mark(parts, "stale")),
            "rollout_loads": self.summed(rollout_loads),
        }
        if self.facts.sessions:
            counted["sessions_saw_both"] = self.summed(sessions_saw_both)
            counted["sessions_went_back"] = self.summed(sessions_went_back)
        peaks = [replication.extra_resident_bytes_peak for replication in self.replications]
        counted["extra_resident_bytes_peak"] = self.of_replications("extra_resident_bytes_peak", mean(peaks), peaks)
        times = [replication.rollout_duration_s for replication in self.replications]
        complete = None not in times
        counted["rollout_duration_s"] = self.of_replications(
            "rollout_duration_s", mean(times) if complete else None, times if complete else []
        )
        during, before = arrived_during(self.wholes), arrived_before(self.wholes)
        begins = {"rollout": rollout_peak_loads_per_s, "before": before_peak_loads_per_s}
        for when, parts in (("rollout", during), ("before", before)):
            name = f"{when}_peak_loads_per_s"
            peaks = [begins[when](part) for part in self.wholes]
            counted[name] = self.of_replications(name, None if None in peaks else mean(peaks), peaks)
            for what, statistic in (("ttft_p99_s", ttft_p99_s), ("e2e_p99_s", e2e_p99_s)):
                name = f"{when}_{what}"
                enough = len(completed(parts)) >= MIN_REQUESTS_P99
                each = [statistic([part]) for part in parts]
                counted[name] = self.of_replications(name, statistic(parts) if enough else None, each)
            name = f"{when}_miss_ratio"
            counted[name] = self.of_replications(name, miss_ratio(parts), [miss_ratio([part]) for part in parts])
        return counted

    def faults(self) -> dict[str, Counted]:
        """Of scenarios with the fault that a metric belongs to."""
        counted = {}
        kinds = set(self.facts.faults)
        if kinds & {"misrouting", "stale-map", "base-model"}:
            counted["misrouted"] = self.summed(lambda parts: count_mark(parts, "misrouted"))
            counted["wrong_adapter_served"] = self.summed(lambda parts: count_mark(parts, "wrong-served"))
            counted["wrong_adapter_detected"] = self.summed(lambda parts: count_mark(parts, "wrong-detected"))
            counted["retried"] = self.summed(lambda parts: count_mark(parts, "retried"))
        if "named-prefixes" in kinds:
            counted["old_prefix_served"] = self.summed(lambda parts: count_mark(parts, "old-prefix"))
        if "crash" in kinds:
            counted["rerouted"] = self.summed(lambda parts: count_mark(parts, "rerouted"))
            counted["lost"] = self.summed(lambda parts: count_mark(parts, "lost"))
            counted["rerouted_e2e_mean_s"] = self.of_replications(
                "rerouted_e2e_mean_s",
                rerouted_e2e_mean_s(self.wholes),
                [rerouted_e2e_mean_s([part]) for part in self.wholes],
            )
        return counted


# --- What a point holds beside its metrics ----------------------------------------------------------------------------

FULL_LOADERS = 0.98
BACKLOG_EACH = 50
BACKLOG_SHARE = 0.02
QUARTERS = 4
MIN_REQUESTS_P99_REPLICA = 100
COUNTED_MARKS = {
    "mixed": "mixed",
    "stale": "stale",
    "refused_by_rollout": "gated",
    "wrong_served": "wrong-served",
    "wrong_detected": "wrong-detected",
    "retried": "retried",
    "lost": "lost",
    "failed_loads": "load-failed",
    "rerouted": "rerouted",
    "old_prefix": "old-prefix",
}


def loader_seconds(replications: list[Replication]) -> float:
    """Seconds for which loads hold the loaders from storage, pauses included, in the whole run."""
    held_s = []
    for replication in replications:
        for load in replication.loads:
            if load.tier == "storage" and not load.whole_model:
                held_s.append(load.end_s - load.start_s)
        for pause in replication.pauses:
            held_s.append(pause.end_s - pause.start_s)
    return math.fsum(held_s)


def loaders_are_full(replications: list[Replication], parts: list[Part]) -> bool:
    """Whether their seconds are more than 98 % of measured time × loaders × replicas."""
    facts = parts[0].facts
    return loader_seconds(replications) > FULL_LOADERS * all_seconds(parts) * facts.loaders * facts.base_replicas


def offered_to_loaders(replications: list[Replication], parts: list[Part]) -> float | None:
    """Loads that measured requests ask storage for, times the mean time that a load holds its loader, over the time.

    Delayed hits ask for none, unless the loaders are full: then they would be misses if there were no queue.
    """
    facts = parts[0].facts
    loads = 0
    for replication in replications:
        loads += len([load for load in replication.loads if load.tier == "storage" and not load.whole_model])
        loads -= replication.retries
    if loads <= 0:
        return 0.0
    full = loaders_are_full(replications, parts)
    asked = 0
    for part in parts:
        for request in part.measured:
            if request.tier == "storage" and request.replica < facts.base_replicas:
                if request.outcome == "miss" or (full and request.outcome == "delayed_hit"):
                    asked += 1
    there_s = all_seconds(parts) * facts.loaders * facts.base_replicas
    return ratio(asked * loader_seconds(replications) / loads, there_s)


def queue_length(requests: list[Request], time_s: float) -> int:
    """Requests that have arrived by a time and were not admitted by then."""
    waiting = 0
    for request in requests:
        if request.arrival_s <= time_s:
            waiting += 1
        if request.admitted_s is not None and request.admitted_s <= time_s:
            waiting -= 1
    return waiting


def overload(replications: list[Replication], parts: list[Part]) -> float | None:
    """Arrivals over completions where the queue grew over both halves of the measured time; None where it didn't."""
    grown = served = came = 0
    for replication, part in zip(replications, parts, strict=True):
        taken_in = [request for request in replication.requests if request.status not in ("refused", "failed")]
        middle_s = part.begin_s + (part.end_s - part.begin_s) * 2 / QUARTERS
        first, middle, last = (queue_length(taken_in, time_s) for time_s in (part.begin_s, middle_s, part.end_s))
        if last > middle > first:
            grown += last - first
        for request in taken_in:
            if request.finished_s is not None and part.begin_s < request.finished_s <= part.end_s:
                served += 1
            if part.begin_s < request.arrival_s <= part.end_s:
                came += 1
    if grown > max(BACKLOG_EACH * len(parts), BACKLOG_SHARE * came):
        return max(1.0, came / max(served, 1))
    return None


def blocked_share(parts: list[Part], reason: str, replicas: int) -> float:
    """Seconds of the first replicas in which a step ran while requests waited for something, over their time."""
    blocked_s = []
    for part in parts:
        for step in part.steps:
            if step.waiting_for == reason and step.replica < replicas:
                blocked_s.append(overlap_s(step.start_s, step.end_s, part.begin_s, part.end_s))
    return math.fsum(blocked_s) / max(all_seconds(parts) * replicas, 1e-12)


def slots_blocked_share(replications: list[Replication], parts: list[Part]) -> float:
    """As ``blocked_share``, and the time in which the first load in a queue found no room; at most 1."""
    short_s = []
    for replication, part in zip(replications, parts, strict=True):
        for short in replication.short_of_room:
            short_s.append(overlap_s(short.start_s, short.end_s, part.begin_s, part.end_s))
    replicas = parts[0].facts.base_replicas
    queued = math.fsum(short_s) / max(all_seconds(parts) * replicas, 1e-12)
    return min(1.0, queued + blocked_share(parts, "slots", replicas))


def full_models_utilization(parts: list[Part]) -> float:
    facts = parts[0].facts
    busy_s = []
    for part in parts:
        for load in part.loads:
            if load.whole_model:
                busy_s.append(overlap_s(load.start_s, load.end_s, part.begin_s, part.end_s))
    return math.fsum(busy_s) / max(all_seconds(parts) * (facts.all_replicas - facts.base_replicas), 1e-12)


def broken_shares(parts: list[Part]) -> dict[str, float]:
    """Share of the measured time, times that of the replicas, in which each kind of fault was there."""
    shares: dict[str, float] = {}
    for fault in parts[0].facts.broken:
        there_s = [overlap_s(fault.begin_s, fault.end_s, part.begin_s, part.end_s) for part in parts]
        share = math.fsum(there_s) / max(all_seconds(parts), 1e-12)
        shares[fault.kind] = shares.get(fault.kind, 0.0) + share * fault.share
    return shares


def breakdown(parts: list[Part]) -> dict[str, float]:
    """Mean seconds of each stage that rows alone can tell; ``queue_and_prefill_s`` is what is left of mean E2E."""
    facts = parts[0].facts
    done = completed(parts)
    if not done:
        return {}
    decode = []
    for request in done:
        decode.append(request.finished_s - (request.admitted_s if facts.fixed_engine else request.first_token_s))
    waits_s = mean([request.load_wait_s for request in done])
    queues_s = mean([request.load_queue_s for request in done])
    return {
        "loader_queue_s": queues_s,
        "load_s": waits_s - queues_s,
        "decode_s": mean(decode),
        "queue_and_prefill_s": e2e_mean_s(parts) - waits_s - mean(decode),
        "until_admission_s": queue_mean_s(parts),
    }


def replica_rows(replication: Replication, part: Part) -> list[dict[str, float | None]]:
    """One row a replica, of the measured requests and time of one replication."""
    rows = []
    for replica in range(part.facts.all_replicas):
        here = [request for request in part.measured if request.replica == replica]
        let_in = [request for request in here if request.admitted_s is not None]
        done = [request for request in here if request.status == "completed"]
        loads = [load for load in part.loads if load.replica == replica]
        busy_s = [
            overlap_s(step.start_s, step.end_s, part.begin_s, part.end_s)
            for step in part.steps
            if step.replica == replica
        ]
        enough = len(done) >= MIN_REQUESTS_P99_REPLICA
        rows.append(
            {
                "replica": replica,
                "requests": len(here),
                "completed": len(done),
                "miss_ratio": ratio(len([request for request in let_in if request.outcome == "miss"]), len(let_in)),
                "loads": len([load for load in loads if is_in(load.start_s, part.begin_s, part.end_s)]),
                "busy_share": ratio(math.fsum(busy_s), part.seconds),
                "e2e_p99_s": quantile([e2e_s(request) for request in done], 0.99) if enough else None,
            }
        )
    return rows


def group_row(parts: list[Part], adapters: list[int], adapter_bytes: list[float]) -> dict[str, float | None]:
    """A row of the table of groups: what was measured of some adapters."""
    asked = [request for part in parts for request in part.measured if request.adapter in adapters]
    let_in = [request for request in asked if request.admitted_s is not None]
    done = [request for request in asked if request.status == "completed"]
    enough = len(done) >= MIN_REQUESTS_P99
    ttft = [ttft_s(request) for request in done]
    return {
        "adapters": len(adapters),
        "adapter_bytes": mean([adapter_bytes[adapter] for adapter in adapters]) or 0.0,
        "requests": len(asked),
        "miss_ratio": ratio(len([request for request in let_in if request.outcome == "miss"]), len(let_in)),
        "ttft_p99_s": quantile(ttft, 0.99) if enough and not parts[0].facts.fixed_engine else None,
        "e2e_p99_s": quantile([e2e_s(request) for request in done], 0.99) if enough else None,
    }


def popularity_bands(parts: list[Part], adapters: int) -> list[list[int]]:
    """The hottest 1 %, the next 9 % and the other adapters, by measured requests; of equals the lower number first."""
    counts = [0] * adapters
    for part in parts:
        for request in part.measured:
            counts[request.adapter] += 1
    ranking = sorted(range(adapters), key=lambda adapter: (-counts[adapter], adapter))
    hottest, warm = max(1, round(0.01 * adapters)), max(2, round(0.1 * adapters))
    return [ranking[:hottest], ranking[hottest:warm], ranking[warm:]]


def harm_counts(parts: list[Part]) -> dict[str, int]:
    """Measured requests by what befell them."""
    facts = parts[0].facts
    measured = [request for part in parts for request in part.measured]
    counts = {name: count_mark(parts, mark) for name, mark in COUNTED_MARKS.items()}
    counts["requests"] = len(measured)
    counts["failed"] = count_status(parts, "failed")
    counts["unanswered"] = count_status(parts, "unfinished")
    if has_targets(facts):
        counts["slow"] = len([request for request in measured if is_late(request, facts)])
    return counts
