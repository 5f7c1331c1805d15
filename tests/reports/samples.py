"""Deterministic runs to draw reports from: realistic numbers, nothing simulated."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from reports.render.html import page
from sim.results.catalogue import UNITS
from sim.results.metric_state import SETTLED, Cause, State
from sim.results.model import WRONG_KINDS, Capacity, Impact, Timeline, from_plain
from sim.results.point import Metric, Point, SliceResult
from sim.results.run_directory.store import RunData
from sim.studies.run.report import run_report

RATES = (25, 26, 33, 34, 34.2, 34.5)
P99_S = (0.274, 0.300, 0.863, 1.128, 1.189, 1.289)
QUANTILES = [i / 100 for i in range(100)] + [0.991 + i / 1000 for i in range(9)] + [0.9995, 0.9999]
SERVICE_S = 0.01
LOAD_S = 0.035


def metric(name: str, value: float | None, half: float = 0.015, state: State = SETTLED) -> Metric:
    unit = UNITS[name]
    if value is None:
        return Metric(None, unit=unit, state=state)
    return Metric(value, value * (1 - half), value * (1 + half), unit, state)


def make_point(
    swept: dict[str, Any] | None = None,
    *,
    p99: float = 0.3,
    mean: float = 0.09,
    miss: float = 0.8,
    busy: float = 0.73,
    rate: float = 26.0,
    half: float = 0.015,
    fixed: bool = True,
    settled: bool = True,
    capacity: dict[str, dict[str, float | None]] | None = None,
    offered: float | None = None,
    breakdown: dict[str, float] | None = None,
) -> Point:
    """A point whose parts agree with each other."""
    load = miss * LOAD_S
    queue = max(0.3 * (mean - load - SERVICE_S), 0.001)
    rest = mean - load - queue
    stages = {
        "loader_queue_s": max(rest - SERVICE_S, 0.0) if fixed else 0.05 * rest,
        "load_s": load,
        "queue_s": queue,
        "prefill_s": 0.0 if fixed else 0.1 * rest,
        "decode_s": min(SERVICE_S, rest) if fixed else 0.85 * rest,
    }
    shares: dict[str, dict[str, float | None]] = {
        "loader": {"utilization": busy, "offered_load": offered or busy, "loaders": 1},
        "slots": {"blocked_share": 0.0, "in_use_peak": 41, "slots": 200},
        "compute": {"utilization": min(1.0, rate * SERVICE_S)},
    }
    if not fixed:
        shares["kv"] = {"blocked_share": 0.0, "peak_share": 0.62, "tokens": 262_144}
        shares["seats"] = {"blocked_share": 0.0, "limit": 256}
    return Point(
        set=swept or {},
        metrics=_metrics(p99, mean, miss, busy, rate, half, fixed, settled),
        cdf=_cdf(p99, mean, fixed),
        timeline=_timeline(rate, mean, busy),
        breakdown=stages if breakdown is None else breakdown,
        groups=_groups(miss, p99),
        capacity=from_plain(Capacity, shares if capacity is None else capacity),
        traffic={
            "requests": 1_000_000,
            "adapters": 1000,
            "rate_rps": rate,
            "top_1pct": 0.01,
            "top_10pct": 0.1,
            "top_20pct": 0.2,
            "effective_adapters": 1000,
        },
        warnings=[] if settled else ["The loader is loaded above 95 %: longer runs would give longer waits."],
        cost={"wall_s": 9.1, "simulated_s": 1e6 / rate, "requests": 5_000_000},
    )


def _metrics(
    p99: float, mean: float, miss: float, busy: float, rate: float, half: float, fixed: bool, settled: bool
) -> dict[str, Metric]:
    values: dict[str, float | None] = {
        "miss_ratio": miss,
        "delayed_hit_ratio": 0.01 * miss,
        "hit_ratio": 1 - 1.01 * miss,
        "byte_miss_ratio": miss,
        "loads_per_request": miss,
        "loader_utilization": busy,
        "gpu_utilization": min(1.0, rate * SERVICE_S),
        "queue_mean_s": 0.3 * mean,
        "queue_p50_s": 0.1 * mean,
        "queue_p99_s": 0.5 * p99,
        "load_wait_mean_s": 0.6 * mean,
        "ttft_mean_s": 0.9 * mean,
        "ttft_p50_s": 0.5 * mean,
        "ttft_p99_s": 0.96 * p99,
        "tpot_mean_s": None if fixed else 0.0212,
        "itl_mean_s": None if fixed else 0.0209,
        "itl_p99_s": None if fixed else 0.0641,
        "e2e_mean_s": mean,
        "e2e_p50_s": 0.6 * mean,
        "e2e_p99_s": p99,
        "throughput_rps": rate,
        "output_tokens_per_s": None if fixed else 155 * rate,
        "goodput_rps": 0.98 * rate,
        "slo_attainment": 0.98,
        "completed": 950_000,
        "unfinished": 0,
        "refused": 0,
        "failed": 0,
        "preemptions": 0,
        "evictions": 950_000 * miss,
    }
    shaky = {"ttft_p99_s", "e2e_p99_s", "queue_p99_s"}
    busy_state = State(Cause.LOADER_BUSY, share=0.96)
    return {
        name: metric(
            name,
            value,
            0.002 if "ratio" in name else half,
            State(Cause.NO_TOKENS) if value is None else SETTLED if settled or name not in shaky else busy_state,
        )
        for name, value in values.items()
    }


def _cdf(p99: float, mean: float, fixed: bool) -> dict[str, list[float]]:
    rate = -math.log(0.01) / max(p99 - 0.02, 1e-3)
    e2e = [0.02 - math.log(1 - q) / rate for q in QUANTILES]
    return {
        "q": QUANTILES,
        "e2e_s": e2e,
        "ttft_s": [v * 0.6 for v in e2e],
        "queue_s": [max(0.0, v - 0.06) for v in e2e],
        "load_wait_s": [max(0.0, 0.7 * v - 0.02) for v in e2e],
    }


def _timeline(rate: float, mean: float, busy: float) -> Timeline:
    times = [2.5 + 5 * i for i in range(200)]
    wave = [math.sin(i / 7) + 0.6 * math.sin(i / 2.3 + 1) + 0.3 * math.sin(i * 1.7) for i in range(200)]
    return Timeline(
        t_s=times,
        running=[max(0.0, rate * mean * (0.5 + 0.1 * w)) for w in wave],
        waiting=[max(0.0, rate * mean * (0.4 + 0.4 * w)) for w in wave],
        loads_in_flight=[min(1.0, busy + 0.05 * w) for w in wave],
        arrivals_per_s=[rate * (1 + 0.05 * w) for w in wave],
    )


def _groups(miss: float, p99: float) -> list[SliceResult]:
    rows = (
        ("rank 16, all-linear", 700, 83_886_080, 665_000, 1.0),
        ("rank 8, q, v", 300, 6_815_744, 285_000, 0.97),
        ("hottest 1 %", 10, 60_000_000, 9_500, 0.6),
        ("next 9 %", 90, 60_000_000, 85_500, 0.9),
        ("rest", 900, 60_000_000, 855_000, 1.02),
    )
    return [
        SliceResult(
            name,
            {"adapters": n, "adapter_bytes": size, "requests": r},
            {
                "miss_ratio": Metric(min(1.0, miss * f)),
                "ttft_p99_s": Metric(p99 * 0.9 * f, unit="s"),
                "e2e_p99_s": Metric(p99 * f, unit="s"),
            },
        )
        for name, n, size, r, f in rows
    ]


def manifest(name: str = "thousand-adapters", kind: str = "run", **changes: Any) -> dict[str, Any]:
    scenario = {
        "schema_version": 1,
        "name": name,
        "description": "One thousand customers, one adapter each.",
        "workload": {
            "requests": 1_000_000,
            "arrivals": {"process": "poisson", "rate": "26/s"},
            "popularity": {"law": "uniform"},
        },
        "adapters": {"count": 1000, "size": "50 MB"},
        "fleet": {"engine": "fixed", "service": {"law": "fixed", "value": "10 ms"}},
        "cache": {"gpu": {"size": "10 GB"}, "eviction": "lru"},
        "storage": {"loaders": 1, "load": {"law": "uniform", "low": "20 ms", "high": "50 ms"}},
        "slo": {"e2e_p99": "1 s", "miss_ratio": None},
        "run": {"seed": 1, "replications": 5, "warmup": "5%"},
    }
    data = {
        "schema_version": 1,
        "kind": kind,
        "name": name,
        "status": "finished",
        "scenario": scenario,
        "scenario_source": "scenarios/thousand-adapters.yaml",
        "scenario_hash": "9f2c41d0" * 8,
        "command": f"loraplan {kind} scenarios/{name}.yaml --seed 1",
        "seed": 1,
        "versions": {"loraplan": "0.1.0", "python": "3.11.9", "numpy": "2.4.6", "simpy": "4.1.1"},
        "profile": None,
        "inputs": {"scenarios/thousand-adapters.yaml": "ab" * 32},
        "started_at": "2026-11-24T15:30:00+00:00",
        "wall_s": 47.3,
        "points_total": 1,
        "points_done": 1,
    }
    return {**data, **changes}


def with_draws(point: Point, width: float = 0.1, *, overloaded: int = 0) -> Point:
    """The point with calibration intervals of ``±width`` around every value that has an interval."""
    metrics = {
        name: replace(found, calibration_lo=found.value * (1 - width), calibration_hi=found.value * (1 + width))
        if found.value is not None and UNITS[name] != "requests" and name not in ("preemptions", "evictions")
        else found
        for name, found in point.metrics.items()
    }
    return replace(point, metrics=metrics, calibration={"draws": 8, "of": 200, "overloaded": overloaded})


def _run(points: list[Point], kind: str, slo: dict[str, Any] | None = None, **changes: Any) -> RunData:
    data = manifest(kind=kind, points_total=len(points), points_done=len(points), **changes)
    if slo is not None:
        data["scenario"]["slo"] = slo
    return RunData(Path("/tmp/runs") / data["name"], data, points)


def single() -> RunData:
    return _run([make_point()], "run")


def batching() -> RunData:
    profile = {"name": "h100-64gb/llama-3.1-8b/assumed", "status": "assumed", "sha256": "cd" * 32}
    point = make_point(p99=7.9, mean=3.4, miss=0.12, busy=0.31, rate=12, fixed=False)
    return _run([point], "run", {"ttft_p99": "1 s", "e2e_p99": "10 s", "miss_ratio": "20%"}, profile=profile)


def drawn() -> RunData:
    profile = {"name": "h100/llama-3.1-8b/measured", "status": "measured", "sha256": "ef" * 32, "draws": 200}
    point = with_draws(make_point(p99=7.9, mean=3.4, miss=0.12, busy=0.31, rate=12, fixed=False), 0.3)
    return _run([point], "run", {"ttft_p99": "10 s", "e2e_p99": "10 s"}, profile=profile)


def drawn_rates() -> RunData:
    run = rates()
    for i, point in enumerate(run.points):
        run.points[i] = with_draws(point, 0.05 * 4**i, overloaded=max(0, i - 2))
    return run


def overloaded() -> RunData:
    point = make_point(p99=412.0, mean=190.0, busy=1.0, offered=1.12, rate=40, half=0.3, settled=False)
    return _run([point], "run")


def rates() -> RunData:
    means = (0.082, 0.088, 0.212, 0.271, 0.288, 0.312)
    points = [
        make_point(
            {"workload.arrivals.rate": f"{rate}/s"},
            p99=p99,
            mean=mean,
            miss=0.8 - 0.001 * i,
            rate=rate,
            busy=round(rate * LOAD_S * 0.8, 3),
            half=0.01 + 0.012 * i,
            settled=rate * LOAD_S * 0.8 <= 0.955,
        )
        for i, (rate, p99, mean) in enumerate(zip(RATES, P99_S, means, strict=True))
    ]
    return _run(points, "sweep")


def grid() -> RunData:
    points = []
    for slots in (16, 32, 64, 128, 256, 400):
        for adapters in (100, 200, 500, 1000, 2000):
            miss = max(0.004, 1 - (slots / adapters) ** 0.45) if slots < adapters else 0.002
            busy = min(0.99, 30 * miss * LOAD_S)
            p99 = 0.06 + 0.03 / (1.02 - busy)
            swept = {"cache.gpu.slots": slots, "adapters.count": adapters}
            points.append(make_point(swept, p99=p99, mean=p99 / 4, miss=miss, busy=busy, settled=busy < 0.95))
    return _run(points, "sweep", {"e2e_p99": "250 ms", "miss_ratio": "40%"})


def policies() -> RunData:
    """One swept key that isn't a quantity, with names that hold markup."""
    names = ("round-robin", "<script>alert(1)</script>", "least-loaded & $bounded$", 'with "quotes"')
    points = [make_point({"router.policy": n}, p99=0.3 + 0.2 * i, mean=0.1 + 0.05 * i) for i, n in enumerate(names)]
    run = _run(points, "sweep", name="<b>bold</b>")
    run.manifest["command"] = "loraplan sweep '<img src=x>.yaml' --set name='</code>'"
    return run


def policy_and_slots() -> RunData:
    points = []
    for factor, policy in ((1.0, "lru"), (0.9, "sieve"), (1.2, "fifo")):
        for slots in (25, 50, 100, 200, 400, 800):
            miss = min(0.999, factor * (1 - (slots / 1000) ** 0.7))
            busy = min(0.94, 30 * miss * LOAD_S)
            swept = {"cache.eviction": policy, "cache.gpu.slots": slots}
            points.append(make_point(swept, p99=0.06 + 0.05 / (1 - busy), miss=miss, busy=busy))
    return _run(points, "sweep")


def three_keys() -> RunData:
    points = [
        make_point({"fleet.replicas": r, "cache.gpu.slots": s, "storage.loaders": k}, p99=2.0 / (r * k) + 8 / s)
        for r in (1, 2, 4)
        for s in (16, 32, 64)
        for k in (1, 2)
    ]
    return _run(points, "sweep")


def many(count: int = 200) -> RunData:
    points = [
        make_point({"adapters.count": 10 + 10 * i}, p99=0.1 + 1e-6 * i**2, mean=0.06, miss=1 - 1 / (1 + i / 30))
        for i in range(count)
    ]
    return _run(points, "sweep")


def changed_point(
    swept: dict[str, Any] | None = None,
    *,
    harmed: int = 220,
    duration: float | None = 6.0,
    during: float = 0.4,
    rollout: bool = True,
    harm: dict[str, int] | None = None,
    faults: dict[str, float] | None = None,
    usual: int = 0,
) -> Point:
    """A point of a fleet in which something changes at 400 s and is over at 450 s.

    :param usual: late requests without it.
    """
    point = make_point(swept, fixed=False, miss=0.2, busy=0.2)
    found = {"mixed": 95, "slow": harmed - 95} if harm is None else harm
    kinds = ("crash",) if "lost" in (faults or {}) else ()
    impact = Impact(**{"requests": 57_000, "slow": 0, **found}, faults=kinds)
    beyond = {kind: impact.mean(kind) for kind in (*WRONG_KINDS, "slow")}
    beyond["slow"] -= usual
    impact = replace(impact, beyond={kind: many for kind, many in beyond.items() if many})
    values: dict[str, float | None] = {
        "harmed": harmed,
        "harmed_excess": harmed - usual,
        "replica_load_skew": 1.03,
        **(faults or {}),
    }
    if rollout:
        impact = replace(impact, requests_before=30_000, slow_before=30)
        values |= {
            "rollout_ttft_p99_s": during,
            "before_ttft_p99_s": 0.2,
            "rollout_e2e_p99_s": 5.1,
            "before_e2e_p99_s": 5.0,
            "rollout_peak_loads_per_s": 27.2,
            "before_peak_loads_per_s": 18.4,
            "rollout_duration_s": duration,
            "rollout_loads": 4635,
            "sessions_saw_both": 2946,
            "sessions_went_back": 2,
            "mixed_version_responses": 95,
            "extra_resident_bytes_peak": 533e6,
            "rollout_miss_ratio": 0.35,
            "before_miss_ratio": 0.34,
        }
    for name, value in values.items():
        state = State(Cause.COMPLETE_IN_SOME, 0, 4) if value is None else SETTLED
        point.metrics[name] = metric(name, value, 0.05, state)
    shares = [min(1.0, max(0.0, (t - 400) / 50)) for t in point.timeline.t_s]
    version_mix: dict[str, Any] = {}
    if rollout:
        versions = {"1": [1 - x for x in shares], "2": [0.99 * x for x in shares], "none": [0.01 * x for x in shares]}
        version_mix = {"t_s": point.timeline.t_s, "versions": versions}
    kinds = (("rollout", "in-place on 4 replicas"), ("complete", "every replica has <the> new version"))
    events = [
        {"t_s": 400.0 + 50 * i, "kind": k, "text": f"rollouts.0: {t}", "rollout": 0} for i, (k, t) in enumerate(kinds)
    ]
    bump = [1 + 3 * (0.0 < x < 1.0) for x in shares]
    timeline = replace(
        point.timeline,
        loads_per_s=[9.0 * b for b in bump],
        ttft_p99_s=[None, *(0.2 * b for b in bump[1:])],
        e2e_mean_s=[2.0 * b for b in bump],
        e2e_p99_s=[5.0 * b for b in bump],
    )
    replicas = [
        SliceResult(
            str(i),
            {"pool": "", "requests": 4000 + 100 * i, "completed": 4000, "loads": 1200 + i, "gpu_utilization": 0.9},
            {"miss_ratio": Metric(0.3), "e2e_p99_s": Metric(None if i == 3 else 5.0, unit="s")},
        )
        for i in range(4)
    ]
    for name, mean in (("harmed", harmed), ("harmed_excess", harmed - usual)):
        point.metrics[name] = replace(point.metrics[name], parts=[mean + i for i in (-2, -1, 1, 2)])
    return replace(
        point,
        impact=impact,
        version_mix=version_mix,
        events=events,
        timeline=timeline,
        replicas=replicas,
        traffic_ids={"requests": "same", "draws": "same"},
    )


def rollout() -> RunData:
    return _run([changed_point()], "run", {"ttft_p99": "1 s"})


def strategies() -> RunData:
    points = [
        changed_point({"rollouts.0.strategy": "in-place"}),
        changed_point({"rollouts.0.strategy": "drain-then-swap"}, harmed=230, during=1.6, harm={"slow": 230}),
        changed_point({"rollouts.0.strategy": "lazy-reread"}, harmed=8512, duration=None, harm={"stale": 8512}),
    ]
    return _run(points, "sweep", {"ttft_p99": "1 s"})


def crashes() -> RunData:
    points = [
        changed_point(
            {"faults.0.requests": fate, "faults.0.detected": late},
            harmed=5 + lost,
            rollout=False,
            harm={"lost": lost, "failed": lost, "rerouted": max(0, 120 - lost), "slow": 5},
            faults={
                "lost": lost,
                "rerouted": max(0, 120 - lost),
                "failed": lost,
                "rerouted_e2e_mean_s": None if lost else 9.0,
            },
        )
        for fate, first in (("reroute", 0), ("lose", 120))
        for late in ("0 s", "5 s")
        for lost in (first + (20 if first and late == "5 s" else 0),)
    ]
    return _run(points, "sweep", {"ttft_p99": "1 s"})


def misrouted() -> RunData:
    counts = {"misrouted": 2092, "wrong_adapter_served": 1077, "wrong_adapter_detected": 1020, "retried": 1020}
    harm = {"wrong_served": 1077, "wrong_detected": 1020, "retried": 1020, "slow": 30}
    return _run([changed_point(harmed=1100, rollout=False, harm=harm, faults=counts)], "run", {"ttft_p99": "1 s"})


def routers() -> RunData:
    points = []
    parts: list[float | None]
    for name, loads, skew, p99 in (
        ("round-robin", 0.4, 1.0, 0.685),
        ("hash", 0.1, 1.2, 0.105),
        ("affinity-residency", 0.01, 1.3, 0.099),
    ):
        point = make_point({"router.policy": name}, fixed=False)
        parts = [p99 * f for f in (0.9, 1.0, 1.1)]
        point.metrics["ttft_p99_s"] = replace(metric("ttft_p99_s", p99), parts=parts)
        parts = [loads * f for f in (0.9, 1.0, 1.1)]
        point.metrics["loads_per_request"] = replace(metric("loads_per_request", loads), parts=parts)
        point.metrics["replica_load_skew"] = metric("replica_load_skew", skew)
        same = {"requests": "same", "draws": "same"}
        points.append(replace(point, replicas=changed_point().replicas, traffic_ids=same))
    return _run(points, "sweep", {"ttft_p99": "1 s"})


def nothing_yet() -> RunData:
    return RunData(Path("/tmp/runs/x"), manifest(kind="sweep", status="interrupted", points_total=6, points_done=0), [])


ALL = {
    "single": single,
    "batching": batching,
    "overloaded": overloaded,
    "rates": rates,
    "grid": grid,
    "policies": policies,
    "policy_and_slots": policy_and_slots,
    "three_keys": three_keys,
    "many": many,
    "nothing_yet": nothing_yet,
    "drawn": drawn,
    "drawn_rates": drawn_rates,
    "rollout": rollout,
    "strategies": strategies,
    "crashes": crashes,
    "misrouted": misrouted,
    "routers": routers,
}


def build_report(run: RunData) -> str:
    return page(run_report(run))
