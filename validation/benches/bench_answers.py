"""Compare answers to questions that users ask with long runs: ten times the requests, another seed.

``python validation/benches/bench_answers.py [NAME ...] [--requests 5000]``
prints what docs/statistics.md says in short.
Bundled plans have their own benchmark (``bench_plan.py``).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from reports.formatting import metric_words, show
from sim.results.point import Metric, Point
from sim.results.verdict import term_verdict
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import load_scenario
from sim.studies.design import make_design
from sim.studies.evaluate import EvaluationOptions, evaluate
from sim.studies.headroom import find_headroom
from validation.benches.bench_headroom import bisected_scenario

LONG = 10
OTHER_SEED = 10_001
RUNS: dict[str, tuple[str, ...]] = {
    "two H100, 300 adapters, bursts at 20/s": (
        "fleet.replicas=2",
        "adapters.count=300",
        "cache.host.slots=300",
        "workload.arrivals={process: gamma, rate: 20/s, cv: 3}",
    ),
    "400 adapters of rank 64 instead of 200 of rank 16": (
        "adapters.count=400",
        "adapters.rank=64",
        "cache.host.slots=400",
    ),
}
"""What ``quickstart`` is changed to."""
ROLLOUT = "50 of 300 adapters replaced at noon"
STRATEGIES = ("new-name", "in-place", "unload-then-load")


def scenario_of(sets: tuple[str, ...], requests: int, *, long: bool) -> Scenario:
    """Return a scenario as it was asked, or with ten times the requests and another seed."""
    length = f"workload.requests={requests * (LONG if long else 1)}"
    return load_scenario("quickstart", [*sets, length], OTHER_SEED if long else None).scenario


def point_of(scenario: Scenario) -> Point:
    """Simulate a scenario."""
    return evaluate(make_design(scenario), EvaluationOptions(draws=False)).point


def with_bounds(name: str, metric: Metric) -> str:
    """Return a metric with its interval."""
    if metric.value is None:
        return "–"
    ends = "" if metric.lo is None or metric.hi is None else f" ({show(name, metric.lo)} to {show(name, metric.hi)})"
    return show(name, metric.value) + ends + ("" if metric.settled else ", unsettled")


def answers(question: str, sets: tuple[str, ...], requests: int) -> Iterator[str]:
    """Yield a row for each term of the SLO, and one for the headroom."""
    asked, long = (scenario_of(sets, requests, long=each) for each in (False, True))
    short_point, long_point = point_of(asked), point_of(long)
    for name, target in asked.slo.terms().items():
        words = (term_verdict(point, name, target) for point in (short_point, long_point))
        short, found = (
            f"{word}: {with_bounds(name, point.metrics[name])}"
            for word, point in zip(words, (short_point, long_point), strict=True)
        )
        yield f"| {question} | {metric_words(name)} within {show(name, target)} | {short} | {found} |"
    headroom = find_headroom(asked, short_point)
    if headroom.multiple is None:
        yield f"| {question} | headroom | {headroom.outcome} | – |"
        return
    multiple = bisected_scenario(long, headroom.multiple, requests * LONG)
    yield f"| {question} | headroom | {headroom.multiple:.2f} ({metric_words(headroom.term)}) | {multiple:.2f} |"


def impacts(requests: int) -> Iterator[str]:
    """Yield a row for each strategy: what it did beyond the usual, against ten times the replications."""
    for strategy in STRATEGIES:
        sets = (
            "fleet.replicas=2",
            "adapters.count=300",
            "cache.host.slots=300",
            "workload.arrivals.rate=12/s",
            f"rollouts=[{{strategy: {strategy}, at: {requests / 24:g} s, share: {50 / 300}, spread: 60 s}}]",
            "run.warmup=10%",
        )
        asked = scenario_of(sets, requests, long=False)
        run = asked.run.model_copy(update={"replications": LONG * asked.run.replications, "seed": OTHER_SEED})
        long = asked.model_copy(update={"run": run})
        short, found = (with_bounds("harmed_excess", point_of(each).metrics["harmed_excess"]) for each in (asked, long))
        yield f"| {ROLLOUT} | {strategy}: requests affected beyond the usual | {short} | {found} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*RUNS, ROLLOUT], help="questions; all by default")
    parser.add_argument("--requests", type=int, default=5_000, help="of each of the five replications")
    asked = parser.parse_args()
    print("| question | what | answer | long run |\n|---|---|---|---|")
    for name in asked.names:
        for row in impacts(asked.requests) if name == ROLLOUT else answers(name, RUNS[name], asked.requests):
            print(row, flush=True)


if __name__ == "__main__":
    main()
