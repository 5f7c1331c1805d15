"""Say what turns tell of half-widths: M/M/1 and M/D/1 by Lindley's recursion, a hundred times quicker than simulated.

``python tests/bench_turns.py [--runs 200] [--scale 1]``: for every queue, load and number of requests in each of five
replications a row for the mean, the median and p99 of E2E: turns and half-widths with their variation from run to run,
the standard deviation of the value (as a share of the truth) times the root of the turns, and coverage among runs that
are settled by the half-width alone, and with turns. Statistics are those of the simulator (``sim.results.stats``).
"""

from __future__ import annotations

import argparse

import numpy as np
from known_queues import md1, mm1

from sim.results.stats import WIDE, Sampled, sections_per_replication

SERVICE_S, WARMUP, REPLICATIONS = 0.01, 0.05, 5
ROWS = {
    0.5: (2_000, 10_000, 20_000),
    0.7: (5_000, 20_000, 40_000),
    0.9: (20_000, 50_000, 200_000),
    0.93: (20_000, 100_000),
}
"""Requests of a replication by load: too few for all, enough for means, enough for p99 (but at .93: 500,000)."""


def sample(law: str, load: float, requests: int, rng: np.random.Generator) -> Sampled:
    """Return the E2E of five replications that start empty, in the sections of a simulated point."""
    first, parts = int(WARMUP * requests), []
    for _ in range(REPLICATIONS):
        gaps = rng.exponential(SERVICE_S / load, requests)
        service = rng.exponential(SERVICE_S, requests) if law == "M/M/1" else np.full(requests, SERVICE_S)
        walk = np.concatenate(([0.0], np.cumsum(service[:-1] - gaps[1:])))
        parts.append((walk - np.minimum.accumulate(walk) + service)[first:])
    sections, count = sections_per_replication(REPLICATIONS), requests - first
    section = np.concatenate([np.arange(count) * sections // count + i * sections for i in range(REPLICATIONS)])
    return Sampled(np.concatenate(parts), section, sections, REPLICATIONS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--scale", type=float, default=1.0, help="times as many requests")
    asked = parser.parse_args()
    rng = np.random.default_rng(1)
    for load, each in ROWS.items():
        for requests in (round(asked.scale * n) for n in each):
            for law, known in (("M/M/1", mm1(load, SERVICE_S)), ("M/D/1", md1(load, SERVICE_S))):
                row(law, load, requests, asked.runs, known, rng)


def row(law: str, load: float, requests: int, runs: int, known: dict[str, float], rng: np.random.Generator) -> None:
    """Print one row for each statistic."""
    samples = [sample(law, load, requests, rng) for _ in range(runs)]
    turns = np.array([each.turns[0][0] for each in samples])
    for name, q in (("mean", None), ("p50", 0.5), ("p99", 0.99)):
        truth = known[f"e2e_{name}_s"]
        metrics = [each.mean("s") if q is None else each.quantile(q, "s") for each in samples]
        value = np.array([m.value for m in metrics], dtype=np.float64)
        low, high = (np.array([getattr(m, end) for m in metrics], dtype=np.float64) for end in ("lo", "hi"))
        half, holds = (high - value) / value, (low <= truth) & (truth <= high)
        settled = np.array([m.settled for m in metrics])
        narrow, spread = half <= WIDE, np.std(value) / truth * np.sqrt(turns.mean())
        print(f"{law} {load:4g} {requests:6} {name:4} turns {turns.mean():5.0f} ± {np.std(turns) / turns.mean():3.0%}  "
              f"half-width {np.median(half):5.1%} ± {np.std(half) / half.mean():3.0%}  sd √turns {spread:.2f}  "
              f"all {holds.mean():.1%}  narrow {share(holds, narrow)}  settled {share(holds, settled)}",
              flush=True)  # fmt: skip


def share(holds: np.ndarray, of: np.ndarray) -> str:
    return f"{holds[of].mean():.1%} of {of.sum()}" if of.any() else "none"


if __name__ == "__main__":
    main()
