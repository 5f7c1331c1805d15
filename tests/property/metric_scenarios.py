"""Random small scenarios for counting metrics: every engine, and everything that may happen to a request.

Plain draws from a seeded generator: a family and a number name a scenario, in every process the same.
"""

from __future__ import annotations

import random
from typing import Any

from strategies import ODD, ROUTERS, STRATEGIES, seconds, write_profile, write_trace

from sim.errors import LoraplanError
from sim.spec.scenario import Scenario
from sim.world.build import build_world

ENGINES = ("continuous", "fixed", "vllm-0.8", "vllm-0.32", "sglang", "s-lora", "lorax", "tensorrt-llm")
FAULTS = (
    "crash",
    "slow-storage",
    "storage-stall",
    "failing-loads",
    "network-delay",
    "misrouting",
    "stale-map",
    "base-model",
    "named-prefixes",
)
FAMILIES = (*ENGINES, *STRATEGIES, "faults", "crash", "full-models")
TERMS = ("ttft_p99", "e2e_p99", "queue_p99", "tpot_mean")
OTHER_TERMS = ("ttft_mean", "itl_p99", "e2e_p50", "queue_mean", "ttft_p90", "ttft_p95", "e2e_p95", "itl_p95")
OTHER_TERMS += ("tpot_p90", "tpot_p95", "tpot_p99")
BLOCKING = ("vllm-0.8", "vllm-0.32", "sglang", "s-lora", "tensorrt-llm")
ATTEMPTS = 400


def metric_scenario(family: str, number: int) -> Scenario:
    """Return a scenario of a family; draws that make no valid scenario are drawn again."""
    draw = random.Random(f"{family}/{number}")
    for _ in range(ATTEMPTS):
        try:
            scenario = Scenario.model_validate(
                _with_base(_sections(draw, family), random.Random(f"{family}/{number}/b"))
            )
            traffic = build_world(scenario).traffic
            if all(any(traffic.chunks(index)) for index in range(scenario.run.replications)):
                return scenario  # a run in which nothing arrives is refused
        except (LoraplanError, ValueError):
            continue
    raise AssertionError(f"no valid scenario in {ATTEMPTS} draws: {family}/{number}")


def _sections(draw: random.Random, family: str) -> dict[str, Any]:
    engine = family if family in ENGINES else draw.choice(ENGINES)
    changes = family if family not in ENGINES else draw.choice(("none", "none", "none", "rollout", "faults", "both"))
    requests = draw.choice((60, 90, 150, 220, 300))
    replications = draw.choice((1, 1, 2, 3, 5, 5, 6))
    rate = draw.choice((3, 8, 15, 30, 60)) * ODD
    large = family in STRATEGIES and draw.random() < 0.2
    if large:  # or there would be no p99 of the requests that come during a rollout
        requests, replications = 420, 6
    horizon_s = requests / rate
    replicas = draw.choice((1, 1, 2, 3, 4))
    adapters = _adapters(draw, full=family == "full-models")
    sections: dict[str, Any] = {
        "schema_version": 1,
        "name": "counted",
        "workload": _workload(draw, requests, rate, adapters["count"], changes, timed=not large),
        "adapters": adapters,
        "cache": _cache(draw, engine),
        "storage": _storage(draw, engine),
        "fleet": _fleet(draw, engine, replicas),
        "router": {"policy": draw.choice(ROUTERS), "instances": draw.choice((1, 3))},
        "slo": _slo(draw, engine),
        "run": {
            "seed": draw.randrange(10**6),
            "replications": replications,
            "warmup": draw.choice((0.0, 0.05, 0.1, 0.25, 0.5)),
        },
    }
    if family == "full-models":
        sections["fleet"]["full_models"] = _full_models(draw)
    if changes in ("rollout", "both", *STRATEGIES):
        strategy = changes if changes in STRATEGIES else draw.choice(STRATEGIES)
        sections["rollouts"] = [_rollout(draw, strategy, horizon_s)]
    if changes == "crash":
        sections["faults"] = [_fault(draw, "crash", horizon_s, replicas)]
    if changes in ("faults", "both") or (changes in STRATEGIES and draw.random() < 0.3):
        kinds = draw.sample(FAULTS, draw.choice((1, 1, 2)))
        if "named-prefixes" in kinds and "rollouts" not in sections:
            sections["rollouts"] = [_rollout(draw, draw.choice(STRATEGIES[1:4]), horizon_s)]
        sections["faults"] = [_fault(draw, kind, horizon_s, replicas) for kind in kinds]
    return sections


def _with_base(sections: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Return a scenario in which some requests may be for the base model, unless a trace names their adapters."""
    adapters, share = sections["adapters"], draw.choice((0, 0, 0.2, 0.5))
    if share == 0 or "trace" in sections["workload"]:
        return sections
    kinds = adapters.get("mix") or [{"share": 1.0, "rank": adapters["rank"], "size": adapters["size"]}]
    others = [{**kind, "share": kind["share"] * (1 - share)} for kind in kinds]
    return {**sections, "adapters": {"count": adapters["count"], "mix": [*others, {"share": share, "kind": "base"}]}}


def _adapters(draw: random.Random, *, full: bool) -> dict[str, Any]:
    count = draw.choice((4, 8, 12, 30))
    if full:
        return {"count": count, "mix": [{"share": 0.3, "kind": "full", "size": "2 GB"}, {"share": 0.7, "rank": 8}]}
    if draw.random() < 0.5:
        return {"count": count, "rank": 8, "size": "2 MiB"}
    return {
        "count": count,
        "mix": [{"share": 0.5, "rank": 4, "size": "1 MiB"}, {"share": 0.5, "rank": 16, "size": "4 MiB"}],
    }


def _workload(
    draw: random.Random, requests: int, rate: float, adapters: int, changes: str, *, timed: bool
) -> dict[str, Any]:
    most_prompt, most_output = draw.choice(((40, 12), (90, 30), (20, 4), (60, 1)))
    if changes == "none" and draw.random() < 0.1:
        return {"trace": {"file": write_trace(_trace(draw, requests, rate, adapters, most_prompt, most_output))}}
    arrivals: dict[str, Any] = draw.choice(
        ({"process": "poisson"}, {"process": "gamma", "cv": draw.choice((0.3, 3.0, 10.0))})
    )
    if arrivals["process"] == "poisson" and adapters in (8, 30):  # a draw would change all that is drawn after it
        steps = [{"time": f"{7 / rate} s", "level": 1}, {"time": f"{20 / rate} s", "level": 3}]
        arrivals = {"process": "piecewise", "steps": steps}
    workload: dict[str, Any] = {
        "arrivals": arrivals | {"rate": f"{rate}/s"},
        "popularity": draw.choice(({"law": "uniform"}, {"law": "zipf", "exponent": 1.0})),
        "tokens": {
            "prompt": {"law": "uniform", "low": 1, "high": most_prompt},
            "output": draw.choice(
                ({"law": "uniform", "low": 1, "high": most_output}, {"law": "geometric", "mean": most_output / 2 + 0.5})
            ),
        },
    }
    if timed and draw.random() < 0.35:
        workload["duration"] = seconds(requests / rate)
    else:
        workload["requests"] = requests
    if draw.random() < (0.7 if changes != "none" else 0.2):
        gap = seconds(draw.choice((0.05, 0.5, 2.0)) * ODD)
        workload["sessions"] = {"requests": draw.choice((2.0, 5.0)), "gap_median": gap, "gap_sigma": 1.0}
    return workload


def _trace(
    draw: random.Random, requests: int, rate: float, adapters: int, most_prompt: int, most_output: int
) -> list[tuple[float, int, int, int]]:
    """Rows of which many come at the same instant."""
    rows, time_s = [], 0.0
    for _ in range(requests):
        time_s += draw.choice((0, 0, 1, 2, 4)) / rate
        rows.append((time_s, draw.randrange(adapters), draw.randint(1, most_prompt), draw.randint(1, most_output)))
    return rows


def _time_law(draw: random.Random, mean_s: float) -> dict[str, Any]:
    return draw.choice(
        (
            {"law": "fixed", "value": seconds(mean_s)},
            {"law": "exponential", "mean": seconds(mean_s)},
            {"law": "uniform", "low": seconds(mean_s / 2), "high": seconds(mean_s * 1.5)},
        )
    )


def _profile(draw: random.Random) -> str:
    milli = 1e-3 * ODD
    step = {
        "fixed_s": draw.choice((2, 5, 12)) * milli,
        "tokens": [[0, 0.0], [64, draw.choice((1, 4)) * milli]],
        "per_sequence_s": draw.choice((0.05, 0.2)) * milli,
        "per_kv_token_s": draw.choice((0.002, 0.02)) * milli,
        "per_passed_s": 0.05 * milli,
        "lora": {"per_slot_s": 0.05 * milli, "per_adapter_s": 0.2 * milli, "per_adapter_rank_s": 0.01 * milli},
    }
    storage = {"open_s": draw.choice((10, 30, 90)) * milli, "bandwidth_bytes_per_s": 2.0**27, "residual": [0.5, 1, 2]}
    return write_profile(step, storage, {"open_s": 3 * milli, "bandwidth_bytes_per_s": 2.0**31})


def _fleet(draw: random.Random, engine: str, replicas: int) -> dict[str, Any]:
    fleet: dict[str, Any] = {"engine": engine, "replicas": replicas, "profile": _profile(draw)}
    if engine == "fixed":
        return fleet | {"service": _time_law(draw, draw.choice((0.01, 0.05, 0.15)) * ODD)}
    fleet["max_num_seqs"] = draw.choice((2, 4, 8, 16))
    fleet["max_num_batched_tokens"] = draw.choice((64, 110, 512))
    fleet["kv_tokens"] = draw.choice((96, 192, 256, 512, 4096))
    if draw.random() < 0.2:
        fleet["max_model_len"] = draw.choice((60, 90))
    if engine == "continuous":
        fleet["batching"] = draw.choice(("mixed", "mixed", "prefill-first"))
        fleet["admission"] = draw.choice(("skip", "skip", "stop"))
        fleet["kv_check"] = draw.choice(("whole-prompt", "first-chunk", "whole-answer"))
        if fleet["admission"] == "skip":
            fleet["load_at"] = draw.choice(("arrival", "admission"))
    return fleet


def _cache(draw: random.Random, engine: str) -> dict[str, Any]:
    slots = draw.choice((1, 2, 3, 5))
    cache: dict[str, Any] = {"gpu": {"slots": slots}}
    if engine in ("lorax", "tensorrt-llm"):
        cache["gpu"] = {"size": f"{4 * slots} MiB"}
    elif engine == "s-lora":
        cache["gpu"] = {"unified": True}
    if engine in ("continuous", "fixed"):
        cache["eviction"] = draw.choice(("lru", "fifo", "sieve", "gdsf", "s3-fifo"))
        if draw.random() < 0.2:
            cache["prefetch"] = "queued"
    if engine in ("vllm-0.8", "vllm-0.32"):
        cache["host"] = {"slots": slots + draw.choice((0, 2, 4))}
    elif engine == "tensorrt-llm":
        cache["host"] = {
            "size": f"{draw.choice((4, 9, 20))} MiB",
            "fill": "arrival",
            "full": draw.choice(("wait", "reject")),
        }
    elif draw.random() < 0.5:
        cache["host"] = draw.choice(
            (
                {"slots": draw.choice((2, 4, 8))},
                {"fill": "start"},
                {"slots": draw.choice((2, 4)), "fill": "arrival", "full": draw.choice(("wait", "reject"))},
            )
        )
    if draw.random() < 0.3:
        cache["warm"] = draw.choice((1, 2))
    return cache


def _storage(draw: random.Random, engine: str) -> dict[str, Any]:
    storage: dict[str, Any] = {}
    if engine not in BLOCKING:
        storage["loaders"] = draw.choice((1, 2, 3))
    if engine == "continuous" and draw.random() < 0.25:
        storage = {"mode": "blocking"}
    if draw.random() < 0.5:
        storage["load"] = _time_law(draw, draw.choice((0.01, 0.05, 0.2)) * ODD)
    return storage


def _slo(draw: random.Random, engine: str) -> dict[str, str]:
    terms = draw.sample(TERMS, draw.choice((0, 1, 2, 3)))
    if draw.random() < 0.3:
        terms.append(draw.choice(OTHER_TERMS))
    if engine == "fixed":
        terms = [term for term in terms if "itl" not in term and "tpot" not in term]
    targets_s = {"tpot": (0.01, 0.02, 0.06), "itl": (0.05,)}
    return {term: seconds(draw.choice(targets_s.get(term[: term.index("_")], (0.05, 0.3, 1.0, 4.0)))) for term in terms}


def _full_models(draw: random.Random) -> dict[str, Any]:
    if draw.random() < 0.5:
        return {"serve": "dedicated", "replicas": draw.choice((1, 2))}
    full: dict[str, Any] = {"serve": "swap", "replicas": draw.choice((1, 2)), "resident": draw.choice((1, 2))}
    if draw.random() < 0.5:
        full["turn"] = seconds(draw.choice((0.1, 1.0)))
    return full | {"load": _time_law(draw, 0.2)}


def _rollout(draw: random.Random, strategy: str, horizon_s: float) -> dict[str, Any]:
    rollout: dict[str, Any] = {
        "strategy": strategy,
        "at": seconds(horizon_s * draw.choice((0.0, 0.3, 0.55, 0.7))),
        "dwell": seconds(horizon_s * 0.05),
    }
    if strategy != "lazy-reread" and draw.random() < 0.5:
        rollout["stages"] = draw.choice(([0.5, 1.0], [0.1, 0.4, 1.0]))
    if draw.random() < 0.4:
        rollout["propagation"] = {"law": "uniform", "low": "0 s", "high": seconds(horizon_s * 0.1)}
    if draw.random() < 0.6:
        rollout["observe"] = seconds(horizon_s * draw.choice((0.1, 0.3)))
    if strategy == "new-name":
        rollout["sticky"] = draw.random() < 0.5
        rollout["keep_old"] = draw.random() < 0.5
    return rollout


def _fault(draw: random.Random, kind: str, horizon_s: float, replicas: int) -> dict[str, Any]:
    at = seconds(horizon_s * draw.choice((0.2, 0.45, 0.7)))
    lasts = seconds(horizon_s * draw.choice((0.1, 0.3)))
    if kind == "crash":
        return {
            "kind": kind,
            "replica": draw.randrange(replicas),
            "at": at,
            "down": lasts,
            "detected": seconds(draw.choice((0.0, 0.1, 1.0))),
            "requests": draw.choice(("reroute", "reroute", "lose")),
        }
    if kind == "named-prefixes":
        return {"kind": kind, "share": 0.8, "lifetime": seconds(horizon_s)}
    fault: dict[str, Any] = {"kind": kind}
    if kind in ("slow-storage", "storage-stall") or draw.random() < 0.5:
        fault |= {"at": at, "lasts": lasts}
    more: dict[str, dict[str, Any]] = {
        "slow-storage": {"factor": draw.choice((3.0, 20.0))},
        "failing-loads": {
            "probability": draw.choice((0.2, 0.7)),
            "retries": draw.choice((0, 1, 2)),
            "backoff": "50 ms",
        },
        "network-delay": {"delay": {"law": "uniform", "low": "5 ms", "high": "200 ms"}, "share": 0.5},
        "misrouting": {"probability": 0.2},
        "stale-map": {"share": 0.9, "propagation": {"law": "uniform", "low": "0 s", "high": lasts}},
        "base-model": {"probability": 0.3},
    }
    fault |= more.get(kind, {})
    if kind in ("misrouting", "stale-map", "base-model") and draw.random() < 0.6:
        fault["detector"] = {
            "checks": draw.choice((0.5, 1.0)),
            "retries": draw.choice((0, 1, 2)),
            "delay": draw.choice(("0 s", "50 ms")),
        }
    return fault
