"""What routers cost on 16 replicas, in times of ``least-loaded``.

``python validation/benches/bench_routers.py [--requests 20000] [--rounds 5]`` simulates a fleet of vLLM with long
prompts, and one of ``continuous`` in which a request costs a few microseconds. The routers take turns; the ratios are
of medians of CPU times. The figures are in docs/performance.md.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from typing import Any

from sim.spec.scenario import Scenario
from sim.version import build
from sim.world.build import build_world
from sim.world.replication import simulate
from validation.benches.bench import batch

DEFAULT = [{"name": "queue", "weight": 2}, {"name": "kv-cache-utilization", "weight": 2}]
DEFAULT += [{"name": "prefix-cache", "weight": 3}]
STATE = {"name": "lora-load-state", "weight": 3}
ROUTERS: dict[str, dict[str, Any]] = {
    "least-loaded": {"policy": "least-loaded"},
    "scorers": {"policy": "scorers", "scorers": DEFAULT},
    "scorers with lora-load-state": {"policy": "scorers", "scorers": [*DEFAULT, STATE]},
    "lora-load-state": {"policy": "scorers", "scorers": [STATE]},
    "token-load": {"policy": "scorers", "scorers": [{"name": "token-load"}]},
    "dynamo": {"policy": "dynamo"},
}


def vllm(requests: int, router: dict[str, Any]) -> dict[str, Any]:
    """Return 256 adapters on vLLM, with prompts of 100 to 1,000 tokens."""
    lengths = {
        "prompt": {"law": "uniform", "low": 100, "high": 1000},
        "output": {"law": "uniform", "low": 20, "high": 240},
    }
    return {
        "schema_version": 1,
        "name": "routers",
        "workload": {
            "requests": requests,
            "arrivals": {"process": "poisson", "rate": "96/s"},
            "popularity": {"law": "zipf", "exponent": 0.9},
            "tokens": lengths,
        },
        "adapters": {"count": 256, "base_model": "llama-3.1-8b"},
        "cache": {"gpu": {"slots": 16}, "host": {"slots": 64}},
        "fleet": {"engine": "vllm", "gpu": "h100-64gb", "replicas": 16},
        "router": router,
    }


def short(requests: int, router: dict[str, Any]) -> dict[str, Any]:
    """Return short requests on ``continuous``."""
    return batch(16 * 40, requests, size="1200 MB", replicas=16, router=router)


def main() -> None:
    """Print a table for each fleet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    for fleet in (vllm, short):
        worlds = {
            name: build_world(Scenario.model_validate(fleet(given.requests, each))) for name, each in ROUTERS.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in worlds}
        for _ in range(given.rounds):
            for name, world in worlds.items():
                gc.collect()
                started = time.process_time()
                simulate(world, 0, 20)
                seconds[name].append(time.process_time() - started)
        least = statistics.median(seconds["least-loaded"])
        print(f"{fleet.__name__}, {build()}: least-loaded takes {least / given.requests * 1e6:.1f} µs a request")
        for name, found in seconds.items():
            print(f"  {name:30} {statistics.median(found) / least:.2f}")


if __name__ == "__main__":
    main()
