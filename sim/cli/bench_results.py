"""Results of benchmark clients, as ``loraplan fidelity`` and ``loraplan calibrate fit`` read them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sim.errors import InputError, ScenarioError

if TYPE_CHECKING:
    from sim.spec.scenario_file import LoadedScenario
    from sim.studies.fidelity.bench_run import BenchRun


@dataclass(frozen=True)
class BenchFiles:
    """Results of benchmarks, and the server that they are of.

    :ivar scenario: with its fleet and adapters; None: one replica without adapters.
    :ivar profile: in place of the scenario's.
    :ivar set_: changes of the scenario, from ``--set``.
    :ivar stated: runs of which a few numbers are known, and no file.
    :ivar key: the option that names the runs, for error messages.
    """

    files: Sequence[Path]
    scenario: str | None
    profile: str | None
    set_: Sequence[str] = ()
    stated: Sequence[str] = ()
    key: str = "--from-bench"

    def base(self) -> LoadedScenario | None:
        """Return the scenario.

        :raises InputError: with every problem found.
        """
        from sim.spec.scenario_file import load_scenario

        if self.scenario is None and self.set_:
            raise InputError("changes a scenario: give --scenario", key="--set", got=self.set_[0])
        if self.scenario is None:
            return None
        loaded = load_scenario(self.scenario, self.set_)
        check_one_kind(loaded)
        return loaded

    @property
    def options(self) -> str:
        """The options that name the server, for the next command about it."""
        named = [("--scenario", self.scenario), ("--profile", self.profile), *(("--set", each) for each in self.set_)]
        return shlex.join(word for name, value in named if value is not None for word in (name, value))

    def runs(self) -> list[BenchRun]:
        """Return the runs of all files, under names that differ between files, and those that are stated."""
        from sim.studies.fidelity.bench_files import distinct_names, read_bench
        from sim.studies.fidelity.bench_prediction import simulated_runs
        from sim.studies.fidelity.bench_run import stated_run

        stated = [stated_run(text, self.key) for text in self.stated]
        names = [run.name for run in stated]
        if twice := [name for name in names if names.count(name) > 1]:
            hint = f"put all of its numbers into one {self.key}"
            raise InputError("the same run twice", key=self.key, got=twice[0], hint=hint)
        measured = [
            replace(run, name=name + run.name.removeprefix(file.name))
            for file, name in zip(self.files, distinct_names(self.files), strict=True)
            for run in read_bench(file)
        ]
        return simulated_runs(measured + stated)

    def check_repeats(self) -> None:
        """Refuse files with the same content: a fit would count their requests twice.

        :raises InputError: naming both.
        """
        from sim.results.run_directory.result_files import digest_file

        seen: dict[str, Path] = {}
        for file in self.files:
            first = seen.setdefault(digest_file(file), file)
            if first is not file:
                raise InputError("the same run twice", key=self.key, got=f"{first} and {file}")


def check_one_kind(loaded: LoadedScenario) -> None:
    """Refuse a fleet of several pools: measurements of all together belong to no profile.

    :raises InputError: with the pools.
    """
    pools = loaded.scenario.fleet.pools
    if len(pools) > 1:
        raise loaded.locate(
            ScenarioError(
                "what was measured of several pools together says nothing about the profile of each",
                key="fleet.pools",
                got=", ".join(pool.name for pool in pools),
                allowed="a scenario with one kind of replica",
                hint="measure the replicas of one pool, and give a scenario with these alone",
            )
        )
