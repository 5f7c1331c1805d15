"""Compare the headroom of bundled scenarios with long bisections: ten times the requests, another seed.

``python tests/bench_headroom.py [NAME]...`` prints the table of docs/statistics.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from unittest.mock import patch

from sim.spec.scenario import Scenario
from sim.spec.scenario_file import load_scenario
from sim.studies import headroom, short_runs
from sim.studies.evaluate import EvaluationOptions, evaluate, make_design
from sim.studies.headroom import find_headroom
from sim.studies.short_runs import Traffic, steady

NAMES = (
    "plan-max-load",
    "plan-cache-size",
    "plan-adapters",
    "plan-70b-tensor-parallel",
    "retrain-1000-adapters",
    "plan-cheapest-fleet",
    "plan-replicas",
    "sessions",
    "full-models-beside-adapters",
    "engines-side-by-side",
    "prefix-sharing",
    "quickstart",
    "router-comparison",
    "burst",
    "cache-thrash",
)
SEED = 20_261_126
STEP, WIDTH = 1.1, 1.02
"""Ratio of multiples until the edge is passed, and of the ends of the bracket that a bisection ends with."""


def bisected(name: str, start: float) -> float:
    """Return where the SLO of a scenario fails by long runs.

    :param start: the multiple that is tried first.
    """
    scenario = load_scenario(name, seed=SEED).scenario
    return bisected_scenario(scenario, start, 10 * Traffic.of(steady(scenario)).requests)


def bisected_scenario(scenario: Scenario, start: float, requests: int) -> float:
    """Return where the SLO of a scenario fails by one run of so many requests at each multiple."""
    traffic = Traffic.of(steady(scenario))

    def fails(multiple: float) -> bool:
        longer = patch.multiple(short_runs, WARMUP=0.1, MOST=10**9, _BURSTIEST=1.0)
        with longer, patch.object(headroom, "FINE", requests):
            return max(search._strains(multiple, fine=True).values()) > 1

    search = headroom._Search(traffic)
    lo = hi = start
    if fails(start):
        while fails(lo := lo / STEP):
            hi = lo
    else:
        while not fails(hi := hi * STEP):
            lo = hi
    while hi / lo > WIDTH:
        middle = (lo * hi) ** 0.5
        lo, hi = (lo, middle) if fails(middle) else (middle, hi)
    return (lo * hi) ** 0.5


def rows(names: tuple[str, ...]) -> Iterator[str]:
    """Yield the rows of the table."""
    for name in names:
        scenario = load_scenario(name).scenario
        today = evaluate(make_design(scenario), EvaluationOptions(draws=False)).point
        started = time.process_time()
        found = find_headroom(scenario, today)
        took_s = time.process_time() - started
        if found.multiple is None:
            yield f"| {name} | {found.outcome} | | | {found.term} | {took_s:.1f} s |"
            continue
        long = bisected(name, found.multiple)
        error = found.multiple / long - 1
        yield f"| {name} | {found.multiple:.3f} | {long:.3f} | {error:+.1%} | {found.term} | {took_s:.1f} s |"


if __name__ == "__main__":
    print("| scenario | headroom | long bisection | error | fails first | CPU time |\n|---|---|---|---|---|---|")
    for row in rows(tuple(sys.argv[1:]) or NAMES):
        print(row, flush=True)
