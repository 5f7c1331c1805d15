"""Check the answers of plans against long runs with another seed.

``python validation/benches/bench_plan.py [--seeds 20] [--shorter 1] [--jobs -1] [NAME ...]``: a table with a
row for each plan.
Every plan is repeated with several seeds. What it says of its answer, of the more wanted neighbour and of the design
that probably meets the SLO is compared with a run of ten times the requests.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sim.results.verdict import met_probability
from sim.spec.scenario_file import LoadedScenario, load_scenario
from sim.studies.backends.pool import Local, Pool
from sim.studies.design import make_design
from sim.studies.evaluate import EvaluationOptions, evaluate, on_pool
from sim.studies.execution import Execution
from sim.studies.plan.evaluator import longer
from sim.studies.plan.study import PlanOutcome, in_steady_state, make_plan

LONG = 10
"""How many times longer a run is whose verdict counts as the truth."""
OTHER_SEED = 10_001
PLANS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{
        name: (name, ())
        for name in ("plan-cache-size", "plan-replicas", "plan-max-load", "plan-adapters", "plan-cheapest-fleet")
    },
    "replicas and slots": (
        "plan-replicas",
        ("plan={minimize: [fleet.replicas, cache.gpu.slots], range: [[2, 6], [16, 64]], step: [1, 16]}",),
    ),
    "slots and copies": (
        "plan-adapters",
        ("plan={minimize: [cache.gpu.slots, cache.host.slots], range: [[16, 64], [100, 200]], step: [16, 50]}",),
    ),
}


@dataclass
class Tally:
    """What the plans of one scenario said, and how often it was right.

    :ivar answers: answers by how often they were given.
    :ivar held: whether the certain answer met the SLO; ``missed``: whether the neighbour of a smallest one missed it.
    :ivar probable: (stated probability, whether it was right) of designs that probably meet it, beyond the answer.
    """

    answers: Counter[str] = field(default_factory=Counter)
    held: list[bool] = field(default_factory=list)
    missed: list[bool] = field(default_factory=list)
    probable: list[tuple[float, bool]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def row(self) -> str:
        said = "; ".join(f"{answer} ({count})" for answer, count in self.answers.most_common())
        stated = sum(p for p, _ in self.probable) / max(1, len(self.probable))
        right = f"{sum(r for _, r in self.probable)} of {len(self.probable)}" if self.probable else "–"
        return (
            f"{said} | {sum(self.held)} of {len(self.held)} | {sum(self.missed)} of {len(self.missed)} | "
            f"{right} | {f'{stated:.2f}' if self.probable else '–'} | {sum(self.seconds) / len(self.seconds):.0f} s"
        )


class Truth:
    """Long runs of the designs that plans name, each simulated once."""

    def __init__(self, loaded: LoadedScenario, pool: Pool) -> None:
        self._loaded = in_steady_state(loaded).with_values({"run.seed": OTHER_SEED})
        self._pool = pool
        self._known: dict[str, bool] = {}

    def meets(self, set_: dict[str, Any]) -> bool:
        if repr(set_) not in self._known:
            plan = self._loaded.scenario.plan
            assert plan is not None, "a planning scenario has a plan"
            fleet = next((dict(fleet.set) for fleet in plan.fleets if fleet.name == set_.get("fleet")), {})
            values = {**fleet, **{key: value for key, value in set_.items() if key != "fleet"}}
            design = make_design(longer(self._loaded.with_values(values), LONG).scenario)
            options = EvaluationOptions(replications=design.replications, draws=False)
            point = evaluate(design, options, on_pool(self._pool)).point
            self._known[repr(set_)] = met_probability(point, self._loaded.scenario.slo.terms()) >= 0.5
        return self._known[repr(set_)]


def count(tally: Tally, found: PlanOutcome, truth: Truth) -> None:
    """Add one plan to a tally."""
    record = found.record
    tally.answers[", ".join(map(str, found.point.set.values())) + ("" if record.feasible else " nearest")] += 1
    if record.feasible:
        tally.held.append(truth.meets(found.point.set))
    if record.feasible and record.certain and record.edge_set is not None and record.edge_refused is None:
        tally.missed.append(not truth.meets(record.edge_set))
    likely = record.probable
    if likely is not None and not (record.feasible and likely.set == found.point.set):
        tally.probable.append((likely.probability, truth.meets(likely.set)))


def shortened(loaded: LoadedScenario, times: int) -> LoadedScenario:
    """Return a scenario with so many times fewer requests."""
    return loaded.with_values({"workload.requests": (loaded.scenario.workload.requests or 0) // times})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(PLANS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--shorter", type=int, default=1, help="divide the requests of each scenario by this")
    parser.add_argument("--jobs", type=int, default=-1)
    options = parser.parse_args()
    pool = Local(options.jobs)
    scenarios = {name: shortened(load_scenario(*PLANS[name]), options.shorter) for name in options.names}
    truths = {name: Truth(loaded, pool) for name, loaded in scenarios.items()}
    tallies = {name: Tally() for name in scenarios}
    for seed in range(1, options.seeds + 1):
        for name, loaded in scenarios.items():
            started = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                found = make_plan(loaded.with_values({"run.seed": seed}), Path(folder) / "run", Execution(pool))
            tallies[name].seconds.append(time.process_time() - started)
            count(tallies[name], found, truths[name])
            print(f"{name} | {seed} | {tallies[name].row()}", flush=True)
    print("\nplan | answers (times) | certain holds | neighbour misses | probable right | stated p | CPU")
    for name, tally in tallies.items():
        print(f"{name} | {tally.row()}")


if __name__ == "__main__":
    main()
