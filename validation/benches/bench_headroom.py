"""Compare headroom with long runs: other seeds, many more requests.

``python validation/benches/bench_headroom.py [NAME]...`` bisects bundled scenarios and prints the table of
docs/statistics.md.
``python validation/benches/bench_headroom.py --random 30`` runs random scenarios with bursts, tenants, schedules and
closed loops at 0.8, 1.0 and 1.3 times their headroom, and prints whether they meet their SLO there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np

from sim.results.run_directory.headroom_record import ALWAYS, FOUND, NEVER, Headroom
from sim.results.slo_terms import all_terms
from sim.results.verdict import strain
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import load_scenario
from sim.spec.sections.traffic_laws import ClosedArrivals
from sim.studies import headroom, short_runs
from sim.studies.design import make_design
from sim.studies.evaluate import EvaluationOptions, evaluate
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
    return float((lo * hi) ** 0.5)


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


KINDS = ("bursts", "on-off", "mmpp", "piecewise", "diurnal", "tenant steps", "tenant bursts", "bucket", "closed loop")
FACTORS = (0.8, 1.0, 1.3)
LONG = 20_000
"""Requests of a direct run at today's traffic, at least; and six periods, the first of which is its warm-up."""


def random_scenario(seed: int) -> Scenario:
    """Return a scenario of a kind that follows from its seed: one to three servers or small batching engines, whose
    traffic takes a fifth to nine tenths of their time, and an SLO of a few times the mean service."""
    rng, kind = np.random.default_rng([seed, 1]), KINDS[seed % len(KINDS)]
    replicas, service_s = int(rng.integers(1, 4)), float(rng.uniform(0.05, 0.3))
    batching = rng.uniform() < 0.3
    served_s = 0.06 if batching else service_s  # of a replica for each request
    rate = float(rng.uniform(0.2, 0.9)) * replicas / served_s
    period_s = float(rng.uniform(600, 8_000)) / rate  # so many requests a period
    steps = [
        {"time": f"{0.9 * period_s} s", "level": 1},
        {"time": f"{0.1 * period_s} s", "level": float(rng.uniform(1.5, 8))},
    ]
    plain: dict[str, Any] = {"process": "poisson", "rate": f"{rate}/s"}
    arrivals = {
        "bursts": {"process": "gamma", "rate": f"{rate}/s", "cv": float(rng.uniform(1.5, 4))},
        "on-off": {
            "process": "on-off",
            "rate": f"{rate}/s",
            "on": f"{0.02 * period_s} s",
            "off": f"{0.02 * period_s} s",
        },
        "mmpp": {
            "process": "mmpp",
            "rate": f"{rate}/s",
            "states": [{"level": 1, "time": f"{0.05 * period_s} s"}, {"level": 3, "time": f"{0.01 * period_s} s"}],
        },
        "piecewise": {"process": "piecewise", "rate": f"{rate}/s", "steps": steps},
        "diurnal": {"process": "diurnal", "rate": f"{rate}/s", "swing": "60%", "period": f"{period_s} s"},
        "closed loop": {
            "process": "closed",
            "concurrency": int(rng.integers(4, 20)) * replicas,
            "think": f"{10 * served_s} s",
        },
    }.get(kind, plain)
    target, metric = f"{float(rng.uniform(5, 30)) * service_s} s", str(rng.choice(["e2e_p99", "queue_p99"]))
    slo = {metric: target}
    tenants: list[dict[str, Any]] = []
    if kind.startswith("tenant") or kind == "bucket":
        seconds: dict[str, dict[str, Any]] = {
            "tenant steps": {"steps": steps},
            "tenant bursts": {"cv": float(rng.uniform(2, 4))},
            "bucket": {"bucket": {"rate": f"{0.5 * rate * 120 * float(rng.uniform(1.2, 3))}/s", "burst": 2_000}},
        }
        tenants = [
            {"name": "chat", "adapters": 12, "share": "50%", "slo": slo},
            {"name": "batch", "adapters": 4, "share": "50%", **seconds[kind]},
        ]
    law = str(rng.choice(["fixed", "exponential"]))
    service = {"law": law, ("value" if law == "fixed" else "mean"): f"{service_s} s"}
    engine = {"engine": "continuous", "max_num_seqs": 16, "profile": "h100-64gb/llama-3.1-8b/assumed"}
    periods = 6 * period_s * rate if kind in ("piecewise", "diurnal", "tenant steps") else 0.0
    requests = max(LONG, int(periods))
    return Scenario.model_validate(
        {
            "schema_version": 1,
            "name": f"{seed}-{kind.replace(' ', '-')}",
            "workload": {
                "requests": requests,
                "arrivals": arrivals,
                "tokens": {"prompt": {"law": "fixed", "value": 80}, "output": {"law": "fixed", "value": 40}},
            },
            "adapters": {"count": 16, "rank": 16},
            "fleet": {"replicas": replicas, **(engine if batching else {"engine": "fixed", "service": service})},
            "cache": {"gpu": {"slots": 16 if rng.uniform() < 0.5 else 12}, "warm": "steady"},
            "storage": {"load": {"law": "fixed", "value": f"{0.2 * service_s} s"}},
            "slo": {} if tenants else slo,
            "tenants": tenants,
            "run": {"seed": seed, "replications": 2, "warmup": period_s * rate / requests if periods else 0.1},
        }
    )


def multiplied(scenario: Scenario, multiple: float) -> Scenario:
    """Return a scenario with a multiple of its traffic for as long, and another seed.

    More clients of a closed loop that is full send no more requests in the same time.
    """
    workload, arrivals = scenario.workload, scenario.workload.arrivals
    assert arrivals is not None
    assert workload.requests is not None
    more: dict[str, float] = {}
    requests = workload.requests
    if isinstance(arrivals, ClosedArrivals):
        more["concurrency"] = max(1, round(arrivals.concurrency * multiple))
    else:
        more["rate"], requests = arrivals.rate * multiple, round(requests * max(multiple, 0.2))
    changed = {"arrivals": arrivals.model_copy(update=more), "requests": requests}
    run = scenario.run.model_copy(update={"seed": SEED})
    return scenario.model_copy(update={"workload": workload.model_copy(update=changed), "run": run})


@dataclass(frozen=True)
class Compared:
    """A headroom and the strains of direct runs, by factor; above 1 the SLO is missed.

    :ivar at: the multiple that the factors are of; None: the search gave no number.
    """

    scenario: Scenario
    found: Headroom
    at: float | None
    strains: dict[float, float]

    @property
    def wrong(self) -> list[float]:
        """Factors at which the direct run says otherwise, outside the range that the search gives."""
        found, at = self.found, self.at or 0.0
        wrong = []
        for factor, strained in self.strains.items():
            below = found.outcome == ALWAYS or (found.outcome == FOUND and factor * at <= (found.lo or 0.0))
            above = found.outcome == NEVER or (found.outcome == FOUND and factor * at >= (found.hi or 0.0))
            if (below and factor <= 1 and strained > 1) or (above and strained <= 1):
                wrong.append(factor)
        return wrong


def compared(scenario: Scenario) -> Compared:
    """Return the headroom of a scenario beside direct runs."""
    today = evaluate(make_design(scenario), EvaluationOptions(draws=False)).point
    found = find_headroom(scenario, today)
    at = found.multiple or found.lo or found.hi
    strains = {}
    for factor in FACTORS if at else ():
        assert at is not None
        point = evaluate(make_design(multiplied(scenario, factor * at)), EvaluationOptions(draws=False)).point
        strains[factor] = max(strain(point, name, target) for name, target in all_terms(scenario).items())
    return Compared(scenario, found, at, strains)


def random_rows(count: int) -> Iterator[str]:
    """Yield a row for each of so many random scenarios."""
    for seed in range(count):
        each = compared(random_scenario(seed))
        found = each.found
        spread = "" if found.outcome != FOUND else f"{found.lo:.2f} to {found.hi:.2f}"
        shown = [f"{each.strains[factor]:.2f}" if each.strains else "" for factor in FACTORS]
        agrees = "" if not each.strains else f"no: {each.wrong}" if each.wrong else "yes"
        number = f"{found.outcome} {each.at:.2f}" if each.at else found.outcome
        cells = (each.scenario.name, each.scenario.fleet.engine, number, spread, found.term, *shown, agrees)
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__" and sys.argv[1:2] == ["--random"]:
    factors = " | ".join(f"at {factor}" for factor in FACTORS)
    print(f"| scenario | engine | headroom | range | fails first | {factors} | agrees |\n{'|---' * 9}|")
    for row in random_rows(int(sys.argv[2])):
        print(row, flush=True)
elif __name__ == "__main__":
    print("| scenario | headroom | long bisection | error | fails first | CPU time |\n|---|---|---|---|---|---|")
    for row in rows(tuple(sys.argv[1:]) or NAMES):
        print(row, flush=True)
