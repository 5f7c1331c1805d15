"""Values of metrics in all parts of a run, and their intervals: docs/statistics.md, "How intervals are made".

Plain loops, written from the documents alone; see ``naive_metrics``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from naive_capacity import offered_to_loaders, overload
from naive_metrics import (
    arrived_before,
    arrived_during,
    before_peak_loads_per_s,
    byte_miss_ratio,
    count_mark,
    count_status,
    delayed_hit_ratio,
    e2e_mean_s,
    e2e_p50_s,
    e2e_p99_s,
    goodput_rps,
    gpu_utilization,
    harmed,
    hit_ratio,
    itl_mean_s,
    itl_p99_s,
    load_wait_mean_s,
    loader_utilization,
    loading_s,
    loads_per_request,
    miss_ratio,
    output_tokens_per_s,
    preemptions,
    queue_mean_s,
    queue_p50_s,
    queue_p99_s,
    replica_load_skew,
    rerouted_e2e_mean_s,
    rollout_loads,
    rollout_peak_loads_per_s,
    sessions_saw_both,
    sessions_went_back,
    slo_attainment,
    throughput_rps,
    tpot_mean_s,
    tpots,
    ttft_mean_s,
    ttft_p50_s,
    ttft_p99_s,
)
from naive_parts import (
    MIN_REQUESTS_P99,
    Facts,
    Part,
    Replication,
    Request,
    admitted,
    completed,
    e2e_s,
    has_targets,
    is_late,
    mean,
    quantile,
    ratio,
    sections,
    ttft_s,
    whole,
)
from scipy.stats import f as fisher_f
from scipy.stats import t as student_t

SECTIONS_IN_ALL = 20
MIN_REQUESTS_MEAN = 20
MIN_REQUESTS_RATIO = 100
MIN_REPLICATIONS_AS_SECTIONS = 5
NORMAL = 1.959964
RARE = 0.01
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
MEDIANS: dict[str, Statistic] = {"queue_p50_s": queue_p50_s, "ttft_p50_s": ttft_p50_s, "e2e_p50_s": e2e_p50_s}
P99S: dict[str, Statistic] = {"queue_p99_s": queue_p99_s, "ttft_p99_s": ttft_p99_s, "e2e_p99_s": e2e_p99_s}
LEAST = {"p90": (100, 10), "p95": (200, 20), "p99": (1000, 100)}
"""Requests that a percentile takes, in all and in a section: ten, and one, that are slower."""
ASKED = [f"{stage}_{tail}_s" for stage in ("ttft", "e2e") for tail in ("p90", "p95")]
ASKED += ["tpot_p90_s", "tpot_p95_s", "tpot_p99_s"]
"""Percentiles that are only there where the SLO has a target for them."""
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
OF_CACHE = ("miss_ratio", "delayed_hit_ratio", "hit_ratio", "byte_miss_ratio", "loads_per_request")
"""Counted over the admitted requests for adapters."""
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
    half_of_sections: float | None = None

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


def replications_differ(in_sections: list[float | None], replications: int) -> bool:
    """One-way analysis of variance at 0.1 %, over sections that all have a value."""
    known = [x for x in in_sections if x is not None]
    count = len(in_sections) // replications
    if replications < 2 or count < 2 or len(known) < len(in_sections):
        return False
    groups = [known[i * count : (i + 1) * count] for i in range(replications)]
    means = [math.fsum(group) / count for group in groups]
    middle = math.fsum(means) / replications
    between = count * math.fsum((m - middle) ** 2 for m in means) / (replications - 1)
    inner = math.fsum((x - m) ** 2 for group, m in zip(groups, means, strict=True) for x in group)
    freedom = replications * (count - 1)
    return between > inner / freedom * float(fisher_f.ppf(0.999, replications - 1, freedom))


def limits(name: str, value: float, half: float | None) -> tuple[float | None, float | None]:
    """The interval, not below 0, nor above 1 for shares."""
    if half is None:
        return None, None
    low, high = value - half, value + half
    if name in SHARES:
        high = min(high, 1.0)
    return max(low, 0.0), high


def skewed(name: str, value: float, half: float) -> tuple[float, float]:
    """The interval of a settled metric: of a time, the θ that are no further than half · (θ / value)² from it."""
    if name in SHARES:
        return max(0.0, value - half), min(1.0, value + half)
    if not 0 < half < value / 4:
        return max(0.0, value - half), value + half
    share = half / value
    return 2 * value / (1 + math.sqrt(1 + 4 * share)), 2 * value / (1 + math.sqrt(1 - 4 * share))


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share seen in n independent requests."""
    center = (share + NORMAL**2 / (2 * n)) / (1 + NORMAL**2 / n)
    half = NORMAL / (1 + NORMAL**2 / n) * math.sqrt(share * (1 - share) / n + NORMAL**2 / (4 * n**2))
    return max(0.0, center - half), min(1.0, center + half)


def is_lost(request: Request) -> bool:
    """Whether it never gets a right answer."""
    return request.status in ("refused", "failed")


def waited_s(request: Request, stage: str, facts: Facts) -> float:
    """From arrival to a stamp, or to the end of the run where it hasn't come."""
    stamps = {"queue": request.admitted_s, "ttft": request.first_token_s, "e2e": request.finished_s}
    stamp_s = facts.duration_s if stamps[stage] is None else stamps[stage]
    return stamp_s - request.arrival_s


def is_narrow(name: str, half: float | None, value: float) -> bool:
    """Whether a half-width is at most 10 % of the value; shares are spared up to 0.005."""
    if half is None:
        return False
    return half <= WIDE * abs(value) or (name in SHARES and half <= NARROW_SHARE)


def values_of(name: str, section: Part) -> list[float]:
    """The values that a mean or quantile of requests is taken of."""
    if name.startswith("tpot"):
        return tpots([section])
    of = ttft_s if name.startswith("ttft") else e2e_s
    return [of(request) for request in completed([section])]


def percentile(name: str) -> Statistic:
    """How a percentile is taken of requests."""
    share = int(name.removesuffix("_s")[-2:]) / 100
    return lambda parts: quantile([value for part in parts for value in values_of(name, part)], share)


class SecondCount:
    """All metrics of one point, from its replications."""

    def __init__(self, replications: list[Replication], facts: Facts) -> None:
        stored_s, copied_s = loading_s([whole(replication, facts) for replication in replications])
        self.facts = facts = replace(facts, mostly_copies=copied_s > stored_s)
        self.replications = replications
        self.wholes = [whole(replication, facts) for replication in replications]
        how_many = math.ceil(SECTIONS_IN_ALL / len(replications))
        cycles = round(facts.cycles)
        if len(replications) >= 5 and cycles and 0.98 * cycles < facts.cycles < 1.02 * cycles:
            while cycles % how_many:  # a section has whole cycles
                how_many -= 1
        self.sections = [part for replication in replications for part in sections(replication, facts, how_many)]

    def of_sections(self, name: str, statistic: Statistic, enough: bool) -> Counted:
        """Kinds mean, quantile, p99, ratio: the spread of the sections, from five replications on also of these."""
        in_sections = [statistic([section]) for section in self.sections]
        in_replications = [statistic([replication]) for replication in self.wholes]
        value = statistic(self.wholes) if enough else None
        if value is None:
            return Counted(None, in_sections, in_replications, settled=False)
        half = of_sections = half_width([x for x in in_sections if x is not None], value)
        if len(self.wholes) >= MIN_REPLICATIONS_AS_SECTIONS or replications_differ(in_sections, len(self.wholes)):
            other = half_width([x for x in in_replications if x is not None], value)
            if other is not None:
                half = other if half is None else max(half, other)
        if replications_differ(in_sections, len(self.wholes)):
            of_sections = half
        low, high = limits(name, value, half)
        if name == "replica_load_skew" and low is not None:
            low, high = max(1.0, low), min(float(self.facts.base_replicas), high)
        settled = is_narrow(name, half, value) and not self.is_saturated(name)
        for section in self.sections:
            least = LEAST[name[-5:-2]][1] if name in P99S or name in ASKED else 1
            if (name in MEANS | MEDIANS | P99S or name in ASKED) and len(values_of(name, section)) < least:
                settled = False
        return Counted(value, in_sections, in_replications, low, high, settled, of_sections)

    def attainment(self) -> Counted:
        """SLO attainment: a ratio with the interval of a share of requests."""
        metric = self.of_sections("slo_attainment", slo_attainment, True)
        if metric.value is None:
            return metric
        tail = self.tail(lambda request: is_late(request, self.facts) or is_lost(request), self.in_targets)
        low, high = self.share_limits(metric, tail, self.sections)
        half = max(metric.value - low, high - metric.value)
        settled = metric.settled and is_narrow("slo_attainment", half, metric.value)
        return replace(metric, low=low, high=high, settled=settled)

    def late_shares(self) -> dict[str, Counted]:
        """For each latency term of the SLO, the share of the measured requests that are late for it."""
        return {term: self.late_share(term, target_s) for term, target_s in self.facts.terms.items()}

    def late_share(self, term: str, target_s: float) -> Counted:
        """Refused and failed ones, and those beyond the target of a quantile; its sections are whole replications
        with rollouts or faults."""
        stage, _, statistic = term.partition("_")
        of_quantile = stage != "itl" and statistic.startswith("p")

        def slowness(request: Request) -> float:
            if is_lost(request):
                return math.inf
            return self.seconds(request, stage) / target_s if of_quantile else 0.0

        def late(request: Request) -> bool:
            return slowness(request) > 1.0

        def share(parts: list[Part]) -> float | None:
            measured = [request for part in parts for request in part.measured]
            late_ones = [request for request in measured if late(request)]
            open_ones = [r for r in measured if of_quantile and r.status == "unfinished" and not late(r)]
            return ratio(len(late_ones), len(measured) - len(open_ones))

        changes = self.facts.rollout_begins or self.facts.faults
        sections_of_it = self.wholes if changes else self.sections
        value = share(self.wholes)
        if value is None:
            return Counted(None, [], [])
        half = self.wider_half(share, value, sections_of_it)
        metric = Counted(value, [], [], *limits("slo_attainment", value, half))
        tail = self.tail(late, slowness, judged=lambda r: not of_quantile or r.status != "unfinished" or late(r))
        low, high = self.share_limits(metric, tail, sections_of_it)
        return replace(metric, low=low, high=high)

    def in_targets(self, request: Request) -> float:
        """How many times its tightest target a request takes; infinite without an answer."""
        if is_lost(request):
            return math.inf
        times = [0.0]
        for stage, target_s in self.facts.targets.items():
            if stage != "tpot" or not self.facts.fixed_engine:
                times.append(self.seconds(request, stage) / target_s)
        return max(times)

    def seconds(self, request: Request, stage: str) -> float:
        """What a request takes in a stage, or for each token after the first."""
        if stage != "tpot":
            return waited_s(request, stage, self.facts)
        decode_s = waited_s(request, "e2e", self.facts) - waited_s(request, "ttft", self.facts)
        return decode_s / max(request.output_tokens - 1, 1)

    def tail(
        self,
        late: Callable[[Request], bool],
        slowness: Callable[[Request], float],
        judged: Callable[[Request], bool] | None = None,
    ) -> tuple[Statistic, float]:
        """The share of a tail that shows how much requests depend on each other, and of how many it is one.

        The late requests, or, where these are fewer than 1 % or all but 1 %, the slowest 1 %.
        """

        def counts(request: Request) -> bool:
            if judged is not None:
                return judged(request)
            return request.status != "unfinished" or is_late(request, self.facts)

        every = [request for part in self.wholes for request in part.measured if counts(request)]
        those_late = len([request for request in every if late(request)])
        in_tail = late
        if min(those_late, len(every) - those_late) < RARE * len(every):
            ordered = sorted(slowness(request) for request in every)
            border = ordered[math.floor((1 - RARE) * (len(ordered) - 1))]

            def in_tail(request: Request) -> bool:
                return slowness(request) >= border

        def share(parts: list[Part]) -> float | None:
            here = [request for part in parts for request in part.measured if counts(request)]
            return ratio(len([request for request in here if in_tail(request)]), len(here))

        return share, len(every)

    def wider_half(self, share: Statistic, value: float, sections_of_it: list[Part]) -> float | None:
        """The half-width of sections, or that of replications if there are five or they differ, and it is wider."""
        halves = [[share([section]) for section in sections_of_it]]
        if len(self.wholes) >= MIN_REPLICATIONS_AS_SECTIONS or replications_differ(halves[0], len(self.wholes)):
            halves.append([share([part]) for part in self.wholes])
        widths = [half_width([x for x in values if x is not None], value) for values in halves]
        if widths[0] is None:
            return None
        return max(width for width in widths if width is not None)

    def share_limits(
        self, metric: Counted, tail: tuple[Statistic, float], sections_of_it: list[Part]
    ) -> tuple[float, float]:
        """The wider of the interval that a share has and Wilson's, of as many independent requests as say the same."""
        share, requests = tail
        in_tail = share(self.wholes)
        half = self.wider_half(share, in_tail, sections_of_it)
        independent = requests
        if half:
            independent = min(requests, NORMAL**2 * in_tail * (1 - in_tail) / half**2)
        low, high = wilson(metric.value, independent)
        if metric.low is None:
            return low, high
        return min(low, metric.low), max(high, metric.high)

    def is_saturated(self, name: str) -> bool:
        """Whether it is a time and loaders or the fixed server are full, or more arrives than is served."""
        if not name.endswith("_s") or name == "output_tokens_per_s" or name.endswith("_loads_per_s"):
            return False
        if name not in ("rollout_duration_s", "rollout_standstill_s"):
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

    def of_count(self, in_replications: list[float]) -> Counted:
        """Kind count: the mean of the replications."""
        value = mean(in_replications)
        half = half_width(in_replications, value)
        if half is None:
            return Counted(value, [], in_replications)
        return Counted(value, [], in_replications, max(0.0, value - half), value + half)

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
        served = len(admitted(self.wholes))
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
        for name in ASKED:
            if name.removesuffix("_s") in self.facts.terms:
                values = sum(len(values_of(name, part)) for part in self.wholes)
                counted[name] = self.of_sections(name, percentile(name), values >= LEAST[name[-5:-2]][0])
        for name, statistic in (RATIOS | HISTOGRAMS).items():
            if self.facts.fixed_engine and name in OF_TOKENS:
                continue
            if name in ("goodput_rps", "slo_attainment") and not has_targets(self.facts):
                continue
            if name == "replica_load_skew" and self.facts.base_replicas == 1:
                continue
            enough = name not in OF_CACHE or not 0 < served < MIN_REQUESTS_RATIO
            counted[name] = self.attainment() if name == "slo_attainment" else self.of_sections(name, statistic, enough)
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
            metric = self.averaged(lambda parts, status=name: count_status(parts, status))
            times = len(self.replications)
            low, high = (None if end is None else end * times for end in (metric.low, metric.high))
            metric = replace(metric, value=count_status(self.wholes, name), low=low, high=high)
            if not self.facts.rollout_begins and not self.facts.faults:  # then it comes in a stream, like any other
                metric = replace(metric, in_sections=[count_status([part], name) for part in self.sections])
            counted[name] = metric
        return counted

    def without_interval(self, statistic: Statistic) -> Counted:
        in_sections = [statistic([section]) for section in self.sections]
        return Counted(statistic(self.wholes), in_sections, [statistic([part]) for part in self.wholes])

    def averaged(self, statistic: Statistic) -> Counted:
        return self.of_count([statistic([part]) for part in self.wholes])

    def harms(self) -> dict[str, Counted]:
        """What rollouts and faults did to requests."""
        return {"harmed": self.averaged(harmed)}

    def rollouts(self) -> dict[str, Counted]:
        """Of scenarios with rollouts."""
        counted = {
            "mixed_version_responses": self.averaged(lambda parts: count_mark(parts, "mixed")),
            "stale_after_cutover": self.averaged(lambda parts: count_mark(parts, "stale")),
            "rollout_loads": self.averaged(rollout_loads),
        }
        if self.facts.sessions:
            counted["sessions_saw_both"] = self.averaged(sessions_saw_both)
            counted["sessions_went_back"] = self.averaged(sessions_went_back)
        peaks = [replication.extra_resident_bytes_peak for replication in self.replications]
        counted["extra_resident_bytes_peak"] = self.of_replications("extra_resident_bytes_peak", mean(peaks), peaks)
        stills = [replication.rollout_standstill_s for replication in self.replications]
        counted["rollout_standstill_s"] = self.of_replications("rollout_standstill_s", mean(stills), stills)
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
            counted["misrouted"] = self.averaged(lambda parts: count_mark(parts, "misrouted"))
            counted["wrong_adapter_served"] = self.averaged(lambda parts: count_mark(parts, "wrong-served"))
            counted["wrong_adapter_detected"] = self.averaged(lambda parts: count_mark(parts, "wrong-detected"))
            counted["retried"] = self.averaged(lambda parts: count_mark(parts, "retried"))
        if "named-prefixes" in kinds:
            counted["old_prefix_served"] = self.averaged(lambda parts: count_mark(parts, "old-prefix"))
        if "crash" in kinds:
            counted["rerouted"] = self.averaged(lambda parts: count_mark(parts, "rerouted"))
            counted["lost"] = self.averaged(lambda parts: count_mark(parts, "lost"))
            counted["rerouted_e2e_mean_s"] = self.of_replications(
                "rerouted_e2e_mean_s",
                rerouted_e2e_mean_s(self.wholes),
                [rerouted_e2e_mean_s([part]) for part in self.wholes],
            )
        return counted
