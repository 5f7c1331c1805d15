"""Say how often intervals hold by queue, without simulating: sample paths a hundred times quicker, the same statistics.

``python tests/bench_cycles.py [--seed 12] [--queue M/M/1 ...] [--share 1]``: for every queue, load and number of
requests in each of five replications a row for the mean and p99 of the wait, and the mean, median and p99 of E2E:
cycles and half-widths with their variation from run to run, the standard deviation of the value (as a share of the
truth) times the root of the cycles, and coverage among all runs, among those whose half-width is narrow, and among
those that are settled, for which cycles count too (``sim.results.statistics``). Sums by queue at the end.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np
from queue_paths import QUEUES, Queue, path

from sim.results.point import Metric
from sim.results.statistics import WIDE, Sampled, sections_per_replication

WARMUP, REPLICATIONS = 0.05, 5
ROWS = (
    (2_000, (0.5, 0.7), 180),
    (5_000, (0.5, 0.7, 0.9), 180),
    (20_000, (0.5, 0.7, 0.9, 0.93), 180),
    (50_000, (0.7, 0.9, 0.93), 96),
    (200_000, (0.9, 0.93), 48),
)
"""Requests of a replication, loads, and how many runs of five replications."""
SOME = 0.05
"""Share of the runs below which a row is left out of the sums of rows."""
AT_ONCE = 4_000_000
"""Requests that are drawn at once."""
STATISTICS = {
    "queue_mean_s": None,
    "queue_p99_s": 0.99,
    "e2e_mean_s": None,
    "e2e_p50_s": 0.5,
    "e2e_p99_s": 0.99,
}


def samples(
    queue: Queue, load: float, requests: int, runs: int, rng: np.random.Generator
) -> dict[str, list[tuple[Metric, int]]]:
    """Return every metric of every run, with the cycles of its requests."""
    first, count = int(WARMUP * requests), requests - int(WARMUP * requests)
    sections = sections_per_replication(REPLICATIONS)
    section = np.concatenate([np.arange(count) * sections // count + i * sections for i in range(REPLICATIONS)])
    found: dict[str, list[tuple[Metric, int]]] = {name: [] for name in STATISTICS}
    at_once = max(1, AT_ONCE // (requests * REPLICATIONS)) if queue.servers == 1 else 100
    for done in range(0, runs, at_once):
        shape = (min(at_once, runs - done) * REPLICATIONS, requests)
        parts = dict(zip(("queue", "e2e"), path(queue, load, shape, rng), strict=True))
        for start in range(0, shape[0], REPLICATIONS):
            for kind, values in parts.items():
                measured = values[start : start + REPLICATIONS, first:].ravel()
                sample = Sampled(measured, section, sections, REPLICATIONS)
                for name, q in STATISTICS.items():
                    if name.startswith(kind):
                        metric = sample.mean("s") if q is None else sample.quantile(q, "s")
                        found[name].append((metric, sample.cycles[0].count))
    return found


def row(label: str, found: list[tuple[Metric, int]], truth: float) -> Counter[str]:
    """Print one row; return how many intervals there are, are narrow and are settled, and how many of those hold."""
    cycles = np.array([each for _, each in found])
    low, value, high = (np.array([getattr(m, end) for m, _ in found], dtype=float) for end in ("lo", "value", "hi"))
    half, holds = (high - value) / value, (low <= truth) & (truth <= high)
    settled, narrow = np.array([m.settled for m, _ in found]), half <= WIDE
    spread = np.std(value) / truth * np.sqrt(cycles.mean())
    print(
        f"{label} cycles {cycles.mean():6.0f} ± {np.std(cycles) / cycles.mean():3.0%}  "
        f"half-width {np.median(half):5.1%} ± {np.std(half) / half.mean():3.0%}  sd √cycles {spread:.2f}  "
        f"all {holds.mean():6.1%}  narrow {share(holds, narrow)}  settled {share(holds, settled)}",
        flush=True,
    )
    counts = Counter(all=len(found))
    for kind, those in (("narrow", narrow), ("settled", settled)):
        held, some = int(holds[those].sum()), bool(those.sum() >= SOME * len(found))
        counts += Counter(
            {
                kind: int(those.sum()),
                f"{kind} hold": held,
                f"{kind} rows": int(some),
                f"{kind} below": int(some and held < 0.9 * those.sum()),
            }
        )
    return counts


def share(holds: np.ndarray, of: np.ndarray) -> str:
    return f"{holds[of].mean():6.1%} of {of.sum():3}" if of.any() else "     none     "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=12, help="11 and 21 are those the rule saw")
    parser.add_argument("--queue", nargs="+", choices=QUEUES, default=list(QUEUES))
    parser.add_argument("--share", type=float, default=1.0, help="of the runs")
    asked = parser.parse_args()
    sums = {}
    for name in asked.queue:
        total: Counter[str] = Counter()
        for requests, loads, runs in ROWS:
            if QUEUES[name].servers > 1 and requests > 50_000:
                continue  # one step of Python a request
            for load in loads:
                known = QUEUES[name].known(load)
                rng = np.random.default_rng([asked.seed, sum(map(ord, name)), round(load * 100), requests])
                found = samples(QUEUES[name], load, requests, round(asked.share * runs), rng)
                for metric in (each for each in STATISTICS if known.get(each)):
                    label = f"{name:12}{load:5g}{requests:7}  {metric:12}"
                    total += row(label, found[metric], known[metric])
        sums[name] = total
    for name, c in sums.items():
        print(name, end="")
        for kind in ("narrow", "settled"):
            held, low, of = (c[f"{kind} {what}"] for what in ("hold", "below", "rows"))
            print(f"; {kind} {c[kind] / c['all']:.0%}, hold {held / max(1, c[kind]):.1%}, ", end="")
            print(f"below 90 % in {low} of {of} rows", end="")
        print()


if __name__ == "__main__":
    main()
