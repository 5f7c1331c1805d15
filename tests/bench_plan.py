"""Hold plans against exhaustive sweeps with ten times the requests, and against themselves with other seeds.

``python tests/bench_plan.py [--seeds 20] [--jobs -1] [NAME ...]``: a table for every bundled planning scenario.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from sim.results.verdict import MET, verdict
from sim.spec.scenario_file import LoadedScenario, load_scenario
from sim.studies.backends.pool import Local
from sim.studies.execution import Execution
from sim.studies.planning.candidates import variables
from sim.studies.planning.plan_study import PlanOutcome, make_plan
from sim.studies.sweep import run_study

NAMES = ("plan-cache-size", "plan-replicas", "plan-max-load", "plan-adapters", "plan-cheapest-fleet")


def candidates(loaded: LoadedScenario) -> list[tuple[float, dict[str, Any], dict[str, Any]]]:
    """Return what each candidate costs (the lower the better), its values, and what the plan calls it."""
    plan = loaded.scenario.plan
    assert plan is not None, "a planning scenario has a plan"
    (axis,) = variables(plan)
    if not plan.fleets:
        return [(float(i), {axis.key: value}, {axis.key: value}) for i, value in enumerate(axis.values)]
    return [
        (fleet.price * fleet.gpus * count, {**fleet.set, axis.key: count}, {"fleet": fleet.name, axis.key: count})
        for fleet in plan.fleets
        for count in axis.values
    ]


def exhaustive(loaded: LoadedScenario, folder: Path, jobs: int) -> tuple[dict[str, Any], int]:
    """Return the best candidate that meets the SLO with ten times the requests, and what all of them took."""
    rows = sorted(candidates(loaded), key=lambda row: row[0])
    more = {"workload.requests": 10 * (loaded.scenario.workload.requests or 0)}
    finished = run_study(loaded, [{**set_, **more} for _, set_, _ in rows], folder, Execution(Local(jobs)))
    terms = loaded.scenario.slo.terms()
    best = next((name for (_, _, name), p in zip(rows, finished.points, strict=True) if verdict(p, terms) == MET), {})
    return best, round(sum(point.cost["requests"] for point in finished.points))


def short(answer: dict[str, Any]) -> str:
    return ", ".join(str(value) for key, value in answer.items() if key != "price") or "none"


def planned(name: str, seed: int, jobs: int) -> tuple[PlanOutcome, float]:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = make_plan(load_scenario(name, (), seed), Path(folder) / "run", Execution(Local(jobs)))
    return found, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=-1)
    options = parser.parse_args()
    for name in options.names:
        loaded = load_scenario(name)
        with tempfile.TemporaryDirectory() as folder:
            best, requests = exhaustive(loaded, Path(folder) / "sweep", options.jobs)
        print(f"\n{name}: exhaustive {short(best)}, {requests:,} requests", flush=True)
        answers: Counter[str] = Counter()
        for seed in range(1, options.seeds + 1):
            found, seconds = planned(name, seed, options.jobs)
            word = "certain" if found.certain else "uncertain"
            answers[f"{short(found.answer)} {word}"] += 1
            if seed == 1:
                share = found.simulated_requests / requests
                print(
                    f"  plan {short(found.answer)} ({word}), {found.simulated_requests:,} requests, {share:.2%} of "
                    f"the sweep's, {seconds:.1f} s",
                    flush=True,
                )
        print(f"  seeds 1 to {options.seeds}: {dict(answers)}", flush=True)


if __name__ == "__main__":
    main()
