"""Simulated requests per second beside bare SimPy timeouts; run by ``make bench``.

Each row is a process of its own, so that its peak memory is its own. Bare timeouts (``yield env.timeout(1)``) are
measured in the same process, before and after each repetition; a row shows the repetition with the least CPU time,
which a busy machine disturbs least. ``worth`` is the time of one simulated request in bare timeouts.
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import time
from statistics import median
from typing import Any

import simpy

from sim.spec.engines import ENGINES
from sim.spec.policies import ROUTERS
from sim.spec.scenario import Scenario
from sim.spec.sections.changes import STRATEGIES
from sim.world.build import build_world
from sim.world.replication import simulate

LENGTHS = {
    "short": {
        "prompt": {"law": "lognormal", "mean": 200, "p99": 1000, "max": 8192},
        "output": {"law": "lognormal", "mean": 40, "p99": 200, "max": 4096},
    },
    "long": {
        "prompt": {"law": "lognormal", "mean": 600, "p99": 5400, "max": 8192},
        "output": {"law": "lognormal", "mean": 155, "p99": 870, "max": 4096},
    },
}

SLOTTED = ("continuous", *(name for name in ENGINES.names if name.startswith("vllm-")), "sglang", "fixed")
"""Engines whose adapter memory is counted in slots; the others keep the memory of their preset."""


PROFILE = "h100-64gb/llama-3.1-8b/assumed"
"""Of every row, so that its steps stay those of the rows before it."""


def batch(
    rate: float,
    requests: int,
    lengths: str = "short",
    adapters: int = 1000,
    size: str = "8 GB",
    replicas: int = 1,
    exponent: float = 0.9,
    **more: Any,
) -> dict[str, Any]:
    """Return a scenario of continuous batching: small adapters (6.8 MB), of which a cache of 8 GB holds 1,000."""
    data: dict[str, Any] = {
        "schema_version": 1,
        "name": "bench",
        "workload": {
            "requests": requests,
            "arrivals": {"process": "poisson", "rate": f"{rate}/s"},
            "popularity": {"law": "zipf", "exponent": exponent},
            "tokens": LENGTHS[lengths],
        },
        "adapters": {"count": adapters, "rank": 8, "targets": ["q", "v"]},
        "fleet": {"engine": "continuous", "replicas": replicas},
        "router": {"policy": "least-loaded"},
        "cache": {"gpu": {"size": size}},
        **more,
    }
    data["fleet"].setdefault("profile", PROFILE)
    return data


def thrash(requests: int) -> dict[str, Any]:
    """Return a scenario in which most requests miss."""
    return {
        "schema_version": 1,
        "name": "bench",
        "workload": {"requests": requests, "arrivals": {"process": "poisson", "rate": "30/s"}},
        "adapters": {"count": 1000, "size": "50 MB"},
        "cache": {"gpu": {"size": "10 GB"}},
        "fleet": {"engine": "fixed", "service": {"law": "fixed", "value": "10 ms"}},
        "storage": {"load": {"law": "uniform", "low": "20 ms", "high": "50 ms"}},
    }


def rows(quick: bool) -> dict[str, dict[str, Any]]:
    """Return the scenarios of the first table."""
    short, long = (20_000, 100_000) if quick else (100_000, 1_000_000)
    return {
        "short requests, 40/s": batch(40, short),
        "the same, ten times as many": batch(40, long),
        "short requests, 20/s": batch(20, short),
        "long requests, 12/s": batch(12, short, "long"),
        "long requests, 6/s": batch(6, short, "long"),
        "long, 12/s, a third miss": batch(12, short, "long", size="1200 MB"),
        "two replicas, short, 80/s": batch(80, short, replicas=2),
        # Few adapters get nearly all requests, so that the number of adapters is all that differs.
        "short, 40/s, zipf 2: 100 adapters": batch(40, short, adapters=100, exponent=2),
        "short, 40/s, zipf 2: 1,000 adapters": batch(40, short, exponent=2),
        "short, 40/s, zipf 2: 100,000 adapters": batch(40, short, adapters=100_000, exponent=2),
        "engine fixed, cache-thrash: 30/s": thrash(short),
        "engine vllm-0.8, short, 20/s": batch(20, short, fleet={"engine": "vllm-0.8"}, cache={"gpu": {"slots": 200}}),
    }


def fleets(quick: bool) -> dict[str, dict[str, Any]]:
    """Return rows of fleets, of 40 requests a second for each replica, a third of which miss."""
    requests = 20_000 if quick else 100_000
    rows = {"four replicas, least-loaded": batch(160, requests, size="1200 MB", replicas=4)}
    others = (entry.name for entry in ROUTERS if entry.name != "least-loaded" and not entry.reads_text)
    for policy in others:
        rows[f"four, {policy}"] = batch(160, requests, size="1200 MB", replicas=4, router={"policy": policy})
    for strategy in STRATEGIES:
        rollout = {"strategy": strategy, "at": f"{requests / 320} s"}
        rows[f"four, rollout {strategy} of all"] = batch(160, requests, size="1200 MB", replicas=4, rollouts=[rollout])
    return rows


def sizes(quick: bool) -> dict[str, dict[str, Any]]:
    """Return rows of a fleet that grows, and its traffic with it."""
    requests = 20_000 if quick else 100_000
    rows = {"one replica, 40/s": batch(40, requests, size="1200 MB")}
    for policy in ("least-loaded", "affinity-residency", "affinity-activity"):
        rows[f"64 replicas, {policy}"] = batch(
            64 * 40, 4 * requests, size="1200 MB", replicas=64, router={"policy": policy}
        )
    for name, router in (("together", {}), ("by weight, spill", {"pools": "weight", "spill": "full"})):
        data = batch(64 * 40, 4 * requests, size="1200 MB", router={"policy": "least-loaded", **router})
        data["fleet"] = {"engine": "continuous", "profile": PROFILE, "pools": four_pools()}
        rows[f"64 replicas in 4 pools, {name}"] = data
    return rows


def four_pools() -> list[dict[str, Any]]:
    """Return pools that differ in load times and memory, so that each request gets those of its pool."""
    return [
        {
            "name": f"pool-{i}",
            "replicas": 16,
            "kv_tokens": 160_000 + 16_000 * i,
            "storage": {"load": {"law": "fixed", "value": f"{20 + i} ms"}},
        }
        for i in range(4)
    ]


def saturated(quick: bool) -> dict[str, dict[str, Any]]:
    """Return rows of engines at saturation: all requests come within 15 s, and nearly all wait when the last one does.

    384 slots where the engine has slots; more than 20,000 wait, but in quick runs and with TensorRT-LLM.
    """
    requests = 10_000 if quick else 30_000
    rows: dict[str, dict[str, Any]] = {}
    for engine in ENGINES.names:
        data = batch(2000, requests)
        data["fleet"]["engine"] = engine
        if engine == "fixed":
            data["fleet"]["service"] = {"law": "fixed", "value": "10 ms"}
        data["cache"] = {"gpu": {"slots": 384}} if engine in SLOTTED else {}
        rows[f"{engine}, saturated"] = data
    for engine in ("continuous", "vllm-0.32"):
        data = batch(2000, requests, "long")
        data["fleet"]["engine"], data["cache"] = engine, {"gpu": {"slots": 384}}
        rows[f"{engine}, saturated, long"] = data
    return rows


def sharing(quick: bool) -> dict[str, dict[str, Any]]:
    """Return rows in pairs: traffic that shares text, with prefix caching off and on. Compare them with ``--against``.

    100 adapters with 100 slots, so that loads play no part, and a replica that keeps up with and without the cache.
    """
    requests = 10_000 if quick else 50_000
    prompts = {"shared_by": "adapter", "tokens": {"law": "uniform", "low": 400, "high": 1600}}
    few = {"shared_by": "adapter", "tokens": {"law": "uniform", "low": 50, "high": 200}}
    talks = {"requests": 4, "gap_median": "30 s", "history": True, "max_context": 8000}
    kinds: dict[str, tuple[float, str, dict[str, Any]]] = {
        "system prompts": (4, "long", {"prefix": prompts}),
        "short system prompts": (10, "short", {"prefix": few}),
        "conversations": (4, "long", {"sessions": talks}),
        "short conversations": (10, "short", {"sessions": talks}),
        "prompts and conversations": (4, "long", {"prefix": prompts, "sessions": talks}),
    }
    rows: dict[str, dict[str, Any]] = {}
    for name, (rate, lengths, shared) in kinds.items():
        for on in (False, True):
            fleet = {"engine": "vllm-0.32", "prefix_caching": on, "max_model_len": 20_000}
            data = batch(rate, requests, lengths, adapters=100, fleet=fleet, cache={"gpu": {"slots": 100}})
            data["workload"] |= shared
            rows[f"{name}, prefix caching {'on' if on else 'off'}"] = data
    return rows


def long_runs() -> dict[str, dict[str, Any]]:
    """Return rows that take minutes: only with ``--row NAME``."""
    month = batch(4, 10_368_000, size="1200 MB")
    month["workload"]["arrivals"] = {"process": "diurnal", "rate": "4/s", "swing": 0.8, "peak_at": "14 h"}
    return {
        "ten million requests": batch(40, 10_000_000),
        "thirty days, 4/s on average": month,
        # As many of the requests miss in each, and the disk keeps up with them: only the number of adapters differs.
        **{
            f"{count:,} adapters, three quarters miss": batch(
                40, 1_000_000, adapters=count, size=size, storage={"load": {"law": "fixed", "value": "5 ms"}}
            )
            for count, size in ((10_000, "600 MB"), (100_000, "2400 MB"), (1_000_000, "9 GB"))
        },
        "256 replicas, least-loaded": batch(256 * 40, 2_000_000, size="1200 MB", replicas=256),
        "256 replicas, affinity-residency": batch(
            256 * 40, 2_000_000, size="1200 MB", replicas=256, router={"policy": "affinity-residency"}
        ),
    }


def bare(count: int = 100_000) -> float:
    """Return CPU seconds of one bare timeout."""
    env = simpy.Environment()

    def wait() -> Any:
        for _ in range(count):
            yield env.timeout(1)

    env.process(wait())
    start = time.process_time()
    env.run()
    return (time.process_time() - start) / count


def measure(data: dict[str, Any], repetitions: int) -> dict[str, float]:
    """Simulate one row and return its figures."""
    world = build_world(Scenario.model_validate(data))
    requests = data["workload"]["requests"]
    timeouts, costs = [bare()], []
    for _ in range(repetitions):
        start = time.process_time()
        simulate(world, 0, 20)
        costs.append((time.process_time() - start) / requests)
        timeouts.append(bare())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"request_s": min(costs), "timeout_s": min(timeouts), "worth": min(costs) / min(timeouts), "peak_mb": peak}


def ratios(data: dict[str, Any], other: dict[str, Any], rounds: int = 25) -> dict[str, float]:
    """Simulate two rows in turn; return the ratio of their least CPU times, and the median ratio of a round."""
    worlds = [build_world(Scenario.model_validate(row)) for row in (other, data)]
    taken: list[list[float]] = []
    for _ in range(rounds):
        taken.append([])
        for world in worlds:
            gc.collect()  # so that no run pays for the garbage of the one before
            start = time.process_time()
            simulate(world, 0, 20)
            taken[-1].append(time.process_time() - start)
    base, own = (min(times) for times in zip(*taken, strict=True))
    return {"least": own / base, "median": median(own / base for base, own in taken)}


def main() -> None:
    """Print the tables."""
    quick = "--quick" in sys.argv
    tables = {
        "one core": rows(quick),
        "saturation": saturated(quick),
        "fleets": fleets(quick),
        "sizes of fleets": sizes(quick),
        "shared text": sharing(quick),
    }
    if "--row" in sys.argv:
        known = {name: row for table in (*tables.values(), long_runs()) for name, row in table.items()}
        data = known[sys.argv[sys.argv.index("--row") + 1]]
        if "--against" in sys.argv:
            print(json.dumps(ratios(data, known[sys.argv[sys.argv.index("--against") + 1]])))
            return
        requests = data["workload"]["requests"]
        print(json.dumps(measure(data, 5 if requests <= 100_000 else 2 if requests <= 1_000_000 else 1)))
        return
    for title, table in tables.items():
        show(title, list(table), quick)
    print("worth: the time of one simulated request in bare SimPy timeouts. Every change of the batch is an event, so")
    print("a request costs less the more of them share a step: quote the workload with the figure.")


def measured(name: str, quick: bool) -> dict[str, float]:
    """Measure a row in a process of its own.

    :raises subprocess.SubprocessError: if that fails; its ``stderr`` says why.
    """
    command = [sys.executable, __file__, "--row", name, *(["--quick"] if quick else [])]
    limit_s = 60 if quick else 600
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=limit_s)
    return dict(json.loads(done.stdout))


def show(title: str, names: list[str], quick: bool) -> None:
    """Measure the rows of one table and print it."""
    print(f"{title:38} {'requests/s':>10} {'timeouts/s':>10} {'worth':>6} {'peak MB':>8} {'against first':>14}")
    first = 0.0
    for name in names:
        try:
            row = measured(name, quick)
        except subprocess.SubprocessError as error:
            sys.exit(getattr(error, "stderr", None) or str(error))
        first = first or row["worth"]
        print(
            f"{name:38} {1 / row['request_s']:10,.0f} {1 / row['timeout_s']:10,.0f} {row['worth']:6.1f} "
            f"{row['peak_mb']:8,.0f} {row['worth'] / first:13.2f}x",
            flush=True,
        )
    print(flush=True)


if __name__ == "__main__":
    main()
