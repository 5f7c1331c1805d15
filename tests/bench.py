"""Simulated requests per second beside bare SimPy timeouts; run by ``make bench``.

Each row is a process of its own, so that its peak memory is its own. Bare timeouts (``yield env.timeout(1)``) are
measured in the same process, before and after each repetition; a row shows the repetition with the least CPU time,
which a busy machine disturbs least. ``worth`` is the time of one simulated request in bare timeouts.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

import simpy

from sim.spec.rollouts import STRATEGIES
from sim.spec.routing import ROUTERS
from sim.spec.scenario import Scenario
from sim.world.build import build_world, simulate

LENGTHS = {
    "short": {"prompt": {"law": "lognormal", "mean": 200, "p99": 1000, "max": 8192},
              "output": {"law": "lognormal", "mean": 40, "p99": 200, "max": 4096}},
    "long": {"prompt": {"law": "lognormal", "mean": 600, "p99": 5400, "max": 8192},
             "output": {"law": "lognormal", "mean": 155, "p99": 870, "max": 4096}},
}  # fmt: skip


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
    return {
        "schema_version": 1, "name": "bench",
        "workload": {"requests": requests, "arrivals": {"process": "poisson", "rate": f"{rate}/s"},
                     "popularity": {"law": "zipf", "exponent": exponent}, "tokens": LENGTHS[lengths]},
        "adapters": {"count": adapters, "rank": 8, "targets": ["q", "v"]},
        "fleet": {"replicas": replicas}, "router": {"policy": "least-loaded"},
        "cache": {"gpu": {"size": size}}, **more,
    }  # fmt: skip


def thrash(requests: int) -> dict[str, Any]:
    return {
        "schema_version": 1, "name": "bench",
        "workload": {"requests": requests, "arrivals": {"process": "poisson", "rate": "30/s"}},
        "adapters": {"count": 1000, "size": "50 MB"}, "cache": {"gpu": {"size": "10 GB"}},
        "fleet": {"engine": "fixed", "service": {"law": "fixed", "value": "10 ms"}},
        "storage": {"load": {"law": "uniform", "low": "20 ms", "high": "50 ms"}},
    }  # fmt: skip


def rows(quick: bool) -> dict[str, dict[str, Any]]:
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
    }


def fleets(quick: bool) -> dict[str, dict[str, Any]]:
    """Return rows of fleets, of 40 requests a second for each replica, a third of which miss."""
    requests = 20_000 if quick else 100_000
    rows = {"four replicas, least-loaded": batch(160, requests, size="1200 MB", replicas=4)}
    others = (name for name in ROUTERS if name != "least-loaded")
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
    return rows


def long_runs() -> dict[str, dict[str, Any]]:
    """Return rows that take minutes: only with ``--row NAME``."""
    return {
        "ten million requests": batch(40, 10_000_000),
        "a million adapters": batch(40, 1_000_000, adapters=1_000_000),
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


def main() -> None:
    """Print the tables."""
    quick = "--quick" in sys.argv
    tables = {"one core": rows(quick), "fleets": fleets(quick), "sizes of fleets": sizes(quick)}
    if "--row" in sys.argv:
        name = sys.argv[sys.argv.index("--row") + 1]
        data = next(table[name] for table in (*tables.values(), long_runs()) if name in table)
        requests = data["workload"]["requests"]
        print(json.dumps(measure(data, 5 if requests <= 100_000 else 2 if requests <= 1_000_000 else 1)))
        return
    for title, table in tables.items():
        show(title, list(table), quick)
    print("worth: the time of one simulated request in bare SimPy timeouts. Every change of the batch is an event, so")
    print("a request costs less the more of them share a step: quote the workload with the figure.")


def show(title: str, names: list[str], quick: bool) -> None:
    """Measure the rows of one table, each in a process of its own, and print it."""
    print(f"{title:38} {'requests/s':>10} {'timeouts/s':>10} {'worth':>6} {'peak MB':>8} {'against first':>14}")
    first = 0.0
    for name in names:
        command = [sys.executable, __file__, "--row", name, *(["--quick"] if quick else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        row = json.loads(done.stdout)
        first = first or row["worth"]
        print(f"{name:38} {1 / row['request_s']:10,.0f} {1 / row['timeout_s']:10,.0f} {row['worth']:6.1f} "
              f"{row['peak_mb']:8,.0f} {row['worth'] / first:13.2f}x", flush=True)  # fmt: skip
    print(flush=True)


if __name__ == "__main__":
    main()
