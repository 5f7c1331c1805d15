"""Count how often the printed 95 % intervals hold, where the true values are known.

``python validation/benches/bench_coverage.py --out FILE [--runs 200] [--first-seed 2001] [--requests 20000 5000]
[--load .5 ...]``: every run has a seed of its own and 5 replications, and becomes a line of FILE. An interrupted run
resumes; ``--table`` prints the tables of what is there.

Queues with one server are sample paths (``queue_paths``), a hundred times quicker than the simulator, and the same
statistics. M/M/1, M/D/1 and most others are known in closed form. cache-thrash, quickstart and cycles are simulated as
``loraplan run`` does it. Their true values, and the quantiles of M/LN/1, are from long runs (``--references`` of
``--long`` requests a load).

Lines of another version of the simulator are left out. References have seeds of their own: 1,000,001 and on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from sim.results.point import Metric
from sim.results.statistics import Sampled, sections_per_replication
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import load_scenario
from sim.studies.evaluate import EvaluationOptions, evaluate_scenario
from sim.studies.study_identity import code_version

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

from queue_paths import QUEUES, path

SIMULATED = ("cache-thrash", "quickstart", "cycles")
SCENARIOS = (*QUEUES, *SIMULATED)
LOADS = (0.5, 0.7, 0.8, 0.9)
METRICS = ("miss_ratio", "queue_mean_s", "queue_p99_s", "ttft_p99_s", "e2e_mean_s", "e2e_p50_s", "e2e_p99_s")
LOAD_S, MISSES = 0.035, 0.8
"""cache-thrash: a load takes 35 ms on average, and nearly 80 % of the requests miss: the load is that of the loader."""
SATURATED_RPS = 10.0
"""quickstart: at about this rate its 32 slots are always in use, and queues grow."""
CYCLE, CYCLE_STEPS = 5000, ((1 / 2, 0.5), (1 / 3, 1.0), (1 / 6, 0.2))
"""cycles: quickstart with full caches, whose rate repeats a cycle of so many requests, in steps of these shares of its
time and of the highest rate, which is that of the load."""
WARMUP, REPLICATIONS = {"quickstart": 0.4}, 5
"""quickstart starts with cold slots, and near saturation the queue of that start lasts: it has a longer warm-up."""
FIRST_REFERENCE = 1_000_001


@dataclass(frozen=True)
class Task:
    """One run: ``reference`` is a long one that tells what is true."""

    scenario: str
    load: float
    requests: int
    seed: int

    @property
    def reference(self) -> bool:
        return self.seed >= FIRST_REFERENCE

    @property
    def replications(self) -> int:
        return 1 if self.reference else REPLICATIONS


def needs_reference(scenario: str) -> bool:
    """Return whether something of it is known from long runs alone."""
    return scenario in (*SIMULATED, "M/LN/1")


def scenario_of(task: Task) -> Scenario:
    """Return what a user would have written: default replications and sections."""
    rate = task.load / (LOAD_S * MISSES) if task.scenario == "cache-thrash" else task.load * SATURATED_RPS
    sets = {
        "workload.arrivals.rate": f"{rate!r}/s",
        "workload.requests": task.requests,
        "run.replications": task.replications,
        "run.warmup": WARMUP.get(task.scenario, 0.05),
    }
    name = task.scenario
    if name == "cycles":
        del sets["workload.arrivals.rate"]
        name, top = "quickstart", task.load * SATURATED_RPS
        cycle_s = CYCLE / (top * sum(share * level for share, level in CYCLE_STEPS))
        steps = [{"time": f"{share * cycle_s!r} s", "level": f"{level * top!r}/s"} for share, level in CYCLE_STEPS]
        sets["workload.arrivals"] = json.dumps({"process": "piecewise", "steps": steps})
        sets["workload.requests"] = "null"
        sets["workload.duration"] = f"{task.requests / CYCLE * cycle_s / 0.95!r} s"
        sets["cache.warm"] = "steady"
    return load_scenario(name, [f"{key}={value}" for key, value in sets.items()], task.seed).scenario


def drawn(task: Task) -> dict[str, Metric]:
    """Return the metrics of sample paths, with the warm-up and the sections of a run."""
    rng = np.random.default_rng([task.seed, sum(map(ord, task.scenario)), round(task.load * 100), task.requests])
    paths = path(QUEUES[task.scenario], task.load, (task.replications, task.requests), rng)
    sections, first = sections_per_replication(task.replications), task.requests // 20
    count = task.requests - first
    section = np.concatenate([np.arange(count) * sections // count + i * sections for i in range(task.replications)])
    found = {}
    for name, values in zip(("queue", "e2e"), paths, strict=True):
        sample = Sampled(values[:, first:].ravel(), section, sections, task.replications)
        found[f"{name}_mean_s"] = sample.mean("s")
        found[f"{name}_p99_s"] = sample.quantile(0.99, "s")
    found["e2e_p50_s"] = sample.quantile(0.5, "s")
    return found


def simulated(task: Task) -> dict[str, Any]:
    """Simulate one run, or draw its sample paths; return its line."""
    if task.scenario in QUEUES:
        metrics = drawn(task)
    else:
        metrics = evaluate_scenario(scenario_of(task), EvaluationOptions(draws=False)).point.metrics
    kept = {name: [(m := metrics[name]).value, m.lo, m.hi, m.settled, m.note] for name in METRICS if name in metrics}
    return {"scenario": task.scenario, "load": task.load, "requests": task.requests, "seed": task.seed, "metrics": kept}


def tasks(
    scenarios: list[str],
    loads: list[float],
    requests: list[int],
    seeds: range,
    references: int,
    long: int,
) -> list[Task]:
    """Return all runs, seed by seed: whenever they are stopped, every row of the tables has about as many."""
    found, runs = [], len(seeds)
    for index, seed in enumerate(seeds):
        found += [Task(s, load, n, seed) for s in scenarios for load in loads for n in requests]
        if index * references // runs < (index + 1) * references // runs:
            reference = FIRST_REFERENCE + index * references // runs
            found += [Task(s, load, long, reference) for s in scenarios if needs_reference(s) for load in loads]
    return found


def lines(out: Path) -> Iterator[dict[str, Any]]:
    """Return the finished runs of this version; a line that a kill cut short counts as none."""
    code = code_version()
    for text in out.read_text(encoding="utf-8").splitlines() if out.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            line = json.loads(text)
            if line["code"] == code:
                yield line


def key(line: dict[str, Any]) -> Task:
    """Return the task that a line of FILE is of."""
    return Task(line["scenario"], line["load"], line["requests"], line["seed"])


def simulate(wanted: list[Task], out: Path, jobs: int) -> None:
    """Simulate what is not there yet."""
    from joblib import Parallel, delayed

    there = {key(line) for line in lines(out)}
    todo = [task for task in wanted if task not in there]
    code = code_version()
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        file.write("\n" if out.stat().st_size else "")  # ends a line that was cut short
        for line in Parallel(n_jobs=jobs, return_as="generator_unordered")(delayed(simulated)(task) for task in todo):
            file.write(json.dumps({"code": code, **line}) + "\n")
            file.flush()


@dataclass
class Cell:
    """What became of one metric in the runs of one scenario at one load.

    :ivar settled, marked, withheld: runs that printed it as settled, as unsettled, without an interval.
    :ivar held: of the settled ones, how many hold the truth; if it were one standard error lower; one higher.
    :ivar below: of the settled ones, how many lie below the truth.
    :ivar marked_held: of the marked ones, how many hold the truth.
    :ivar half: the median half-width of all intervals, as a share of the truth.
    """

    settled: int = 0
    marked: int = 0
    withheld: int = 0
    held: tuple[int, int, int] = (0, 0, 0)
    below: int = 0
    marked_held: int = 0
    half: float = 0.0

    @property
    def limits(self) -> tuple[float, float]:
        """The 95 % interval (Clopper and Pearson) of the coverage, with what the reference leaves open."""
        low, high = (binomtest(count, self.settled).proportion_ci() for count in (min(self.held), max(self.held)))
        return float(low.low), float(high.high)

    def __str__(self) -> str:
        """Coverage in per cent, and of how many, where not all are settled; a dash where none is."""
        if not self.settled:
            return "withheld" if self.withheld and not self.marked else "marked"
        some = f" of {self.settled}" if self.marked or self.withheld else ""
        return f"{self.held[0] / self.settled:.1%}"[:-1] + some


def truths(found: list[dict[str, Any]], scenario: str, load: float) -> dict[str, tuple[float, float]]:
    """Return each known value with its standard error."""
    known = QUEUES[scenario].known(load) if scenario in QUEUES else {}
    closed = {name: (value, 0.0) for name, value in known.items() if value}
    if (scenario, load) == ("M/D/1", 0.5):
        del closed["e2e_p50_s"]  # exactly half don't wait at all: the median is anything up to the next wait
    long = [
        line["metrics"]
        for line in found
        if line["seed"] >= FIRST_REFERENCE and (line["scenario"], line["load"]) == (scenario, load)
    ]
    if len(long) < 2:
        return closed
    values = {name: np.array([metrics[name][0] for metrics in long]) for name in METRICS if name in long[0]}
    return {name: (float(v.mean()), float(v.std(ddof=1) / np.sqrt(len(v)))) for name, v in values.items()} | closed


def cell(printed: list[tuple[float | None, float | None, float | None, bool]], truth: float, error: float) -> Cell:
    """Count what became of one metric's intervals.

    :param printed: value, lo, hi and whether it is settled, of every run; ``error``: the standard error of ``truth``.
    """
    known = [(lo, hi, settled) for _, lo, hi, settled in printed if lo is not None and hi is not None]
    held = [
        sum(settled and lo <= true <= hi for lo, hi, settled in known) for true in (truth, truth - error, truth + error)
    ]
    settled = sum(settled for *_, settled in known)
    return Cell(
        settled=settled,
        marked=len(known) - settled,
        withheld=len(printed) - len(known),
        held=(held[0], held[1], held[2]),
        below=sum(settled and hi < truth for _, hi, settled in known),
        marked_held=sum(not settled and lo <= truth <= hi for lo, hi, settled in known),
        half=float(np.median([(hi - lo) / 2 / truth for lo, hi, _ in known])) if known else 0.0,
    )


Rows = dict[tuple[str, float, int], dict[str, Cell]]


def rows(found: list[dict[str, Any]]) -> Rows:
    """Return the cells of every scenario, load and number of requests that was run."""
    groups: dict[tuple[str, float, int], list[dict[str, Any]]] = defaultdict(list)
    for line in found:
        if line["seed"] < FIRST_REFERENCE:
            groups[line["scenario"], line["load"], line["requests"]].append(line["metrics"])
    order = sorted(groups, key=lambda group: (-group[2], SCENARIOS.index(group[0]), group[1]))
    return {
        group: {
            name: cell([tuple(metrics[name][:4]) for metrics in groups[group]], *true)
            for name, true in truths(found, group[0], group[1]).items()
            if name in groups[group][0]
        }
        for group in order
    }


def print_tables(table: Rows) -> None:
    """Print coverage by scenario, load and metric."""
    requests = None
    for (scenario, load, count), cells in table.items():
        if count != requests:
            print(f"\n{count:,} requests a replication\n\n| scenario | load | runs |", " | ".join(METRICS), "|")
            print("|---" * (3 + len(METRICS)), end="|\n")
        requests = count
        runs = max((c.settled + c.marked + c.withheld for c in cells.values()), default=0)
        print("|", " | ".join([scenario, f"{load:g}", str(runs), *(str(cells.get(m, "")) for m in METRICS)]), "|")


def print_details(table: Rows, least: int = 20) -> None:
    """Print a row for every metric that is settled in ``least`` runs or more: coverage with its binomial interval."""
    print("| scenario | load | requests | metric | settled | hold, % | 95 % interval of that | too low |")
    print("|---" * 8, end="|\n")
    total = held = 0
    for (scenario, load, count), cells in table.items():
        for name, c in cells.items():
            if c.settled < least:
                continue
            low, high = (f"{limit:.1%}"[:-1] for limit in c.limits)
            runs, share = c.settled + c.marked + c.withheld, f"{c.held[0] / c.settled:.1%}"[:-1]
            cells_ = (
                scenario,
                f"{load:g}",
                f"{count:,}",
                name,
                f"{c.settled} of {runs}",
                share,
                f"{low} to {high}",
                c.below,
            )
            print("|", " | ".join(map(str, cells_)), "|")
            total, held = total + c.settled, held + c.held[0]
    print(f"\n{held:,} of {total:,} hold")


def main() -> None:
    """Simulate what is missing, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="finished runs, one JSON line each")
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=("M/M/1", "M/D/1", "M/LN/1", *SIMULATED))
    parser.add_argument("--load", nargs="+", type=float, default=LOADS)
    parser.add_argument("--requests", nargs="+", type=int, default=(20_000, 5_000), help="of each replication")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=2001, help="the rule was chosen on others")
    parser.add_argument("--references", type=int, default=8)
    parser.add_argument("--long", type=int, default=1_000_000, help="requests of a reference")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="simulate nothing more")
    parser.add_argument("--details", action="store_true", help="also a row for every metric, with binomial intervals")
    asked = parser.parse_args()
    if not asked.table:
        seeds = range(asked.first_seed, asked.first_seed + asked.runs)
        wanted = tasks(asked.scenario, asked.load, asked.requests, seeds, asked.references, asked.long)
        simulate(wanted, asked.out, asked.jobs)
    found = list(lines(asked.out))
    print_tables(rows(found))
    if asked.details:
        print_details(rows(found))


if __name__ == "__main__":
    main()
