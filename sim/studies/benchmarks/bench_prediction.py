"""Predicts what a benchmark measured, and puts both side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sim.errors import InputError
from sim.spec.scenario_file import LoadedScenario
from sim.studies.benchmarks.bench_run import BenchRun, OpenLoad
from sim.studies.benchmarks.bench_scenario import bench_scenario, moved_to_run
from sim.studies.fidelity.predicted_service import predict_service, predicted_values
from sim.world.build import build_world
from sim.world.world import World

SIMULATIONS = 8


@dataclass(frozen=True, slots=True)
class BenchMetric:
    """One row.

    :ivar half_width: of the 95 % interval of what was measured; None where the file has no spread.
    """

    name: str
    measured: float
    predicted: float
    half_width: float | None

    @property
    def error(self) -> float | None:
        """Predicted over measured, minus 1."""
        return self.predicted / self.measured - 1 if self.measured else None


@dataclass(frozen=True, slots=True)
class BenchPrediction:
    """A run and what was predicted for it.

    :ivar profile, profile_status: whose costs were simulated, and how trustworthy they are.
    :ivar engine: whose rules.
    :ivar notes: on the scenario, and on what the file lacks.
    """

    run: BenchRun
    profile: str
    profile_status: str
    engine: str
    metrics: tuple[BenchMetric, ...]
    notes: tuple[str, ...]


def bench_world(run: BenchRun, base: LoadedScenario | None, profile: str | None) -> World:
    """Return the world of a run, whose files are all read.

    :raises InputError: where it can't be simulated.
    """
    with tempfile.TemporaryDirectory(prefix="loraplan-") as folder:
        try:
            loaded = bench_scenario(run, base, profile, Path(folder))
            try:
                return build_world(loaded.scenario)
            except InputError as error:
                raise loaded.locate(error) from None
        except InputError as error:
            raise moved_to_run(error, run, Path(folder)) from None


def predict_bench(run: BenchRun, base: LoadedScenario | None, profile: str | None) -> BenchPrediction:
    """Simulate a run as its client loaded the server, and compare.

    :raises InputError: where it can't be simulated.
    """
    world = bench_world(run, base, profile)
    assert world.profile is not None, "engine fixed is refused"
    predicted = predict_service(world, SIMULATIONS)
    return BenchPrediction(
        run=run,
        profile=world.profile.name,
        profile_status=world.profile.stated,
        engine=world.scenario.fleet.engine,
        metrics=tuple(
            BenchMetric(name, run.measured[name], value, run.errors.get(name))
            for name, value in predicted_values(predicted).items()
            if name in run.measured
        ),
        notes=(*_gaps_of(run), *_on_fleet(world)),
    )


def _on_fleet(world: World) -> Iterator[str]:
    """Yield the simulator's notes, but those on how the file in between was read."""
    if not world.scenario.adapters.base_alone:
        count = len(world.population)
        yield (
            "a result doesn't say which adapter a request was for: the scenario's popularity draws it from "
            f"{count:,} {'adapter' if count == 1 else 'adapters'} (--set adapters.count=N, if the client used others)"
        )
    yield from (note for note in world.notes if "requests.csv" not in note)


def _gaps_of(run: BenchRun) -> Iterator[str]:
    """Yield what the file lacks and the prediction assumes."""
    if run.rows is None:
        yield (
            f"{run.name} has no single requests: their lengths are drawn with the mean"
            f"{'' if run.prompt.p99 is None else ' and p99'} that it names"
        )
    if isinstance(run.load, OpenLoad) and run.load.cap is not None:
        yield f"the client's limit of {run.load.cap:,} requests at a time is not simulated"
    if run.failed:
        yield f"{run.failed:,} requests failed; they are left out"
