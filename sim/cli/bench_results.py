"""What ``fidelity``, ``calibrate fit`` and ``observe`` have in common: results of benchmarks, and corrections."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.formatting import measured_value, measured_words
from sim.cli.output import command_line, message, print_rich, rich_rows, say, say_json
from sim.errors import InputError, ScenarioError

if TYPE_CHECKING:
    from calibrate.fit.load_correction import LoadCorrection, MeasuredLoad
    from sim.spec.profile import Profile
    from sim.spec.scenario_file import LoadedScenario
    from sim.studies.fidelity.bench_run import BenchRun


@dataclass(frozen=True)
class BenchFiles:
    """Results of benchmarks, and the server that they are of.

    :ivar scenario: with its fleet and adapters; None: one replica without adapters.
    :ivar profile: in place of the scenario's.
    :ivar set_: changes of the scenario, from ``--set``.
    """

    files: Sequence[Path]
    scenario: str | None
    profile: str | None
    set_: Sequence[str] = ()

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
        """Return the runs of all files, under names that differ between files."""
        from sim.studies.fidelity.bench_files import distinct_names, read_bench

        return [
            replace(run, name=name + run.name.removeprefix(file.name))
            for file, name in zip(self.files, distinct_names(self.files), strict=True)
            for run in read_bench(file)
        ]

    def check_repeats(self) -> None:
        """Refuse files with the same content: a fit would count their requests twice.

        :raises InputError: naming both.
        """
        from sim.results.run_directory.result_files import digest_file

        seen: dict[str, Path] = {}
        for file in self.files:
            first = seen.setdefault(digest_file(file), file)
            if first is not file:
                raise InputError("the same run twice", key="--from-bench", got=f"{first} and {file}")


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


def fit_to_benchmarks(files: BenchFiles, out: Path, *, json: bool, quiet: bool) -> None:
    """Correct a profile by the runs of the files, and write it."""
    from calibrate.fit.load_correction import MeasuredLoad
    from sim.studies.fidelity.bench_prediction import bench_world

    base, runs = files.base(), files.runs()
    files.check_repeats()
    loads = [MeasuredLoad(run.name, bench_world(run, base, files.profile), run.measured, run.errors) for run in runs]
    for load in loads:
        if len(load.targets) < 2:
            raise InputError(
                "has no times of first tokens and of the tokens after them",
                file=load.name,
                allowed="TTFT, and TPOT or ITL: a streamed benchmark",
            )
    profile, correction = write_correction(loads, files.files, out)
    if json:
        say_json({"file": str(out), **correction_json(profile, correction)})
        return
    say_correction(correction, quiet)
    say("", f"profile  {out}")


def write_correction(loads: Sequence[MeasuredLoad], files: Sequence[Path], out: Path) -> tuple[Profile, LoadCorrection]:
    """Correct the profile of the first load by all loads, and write it.

    :param files: what was measured.
    """
    from calibrate.fit.load_correction import correct, corrected_profile
    from sim.results.run_directory.result_files import write_text
    from sim.studies.fidelity.bench_files import distinct_names

    profile = loads[0].world.profile
    assert profile is not None, "engine fixed has no tokens"
    correction = correct(profile, loads)
    named = dict(zip(distinct_names(files), files, strict=True))
    done = corrected_profile(profile, correction, named, [load.name for load in loads], command_line())
    write_text(out, done.model_dump_json(indent=2, exclude_none=True) + "\n")
    return done, correction


_UNEXPLAINED = 0.15


def say_correction(correction: LoadCorrection, quiet: bool) -> None:
    """Print what was corrected, and how close the profile is now."""
    factor, fixed, outside = correction.factor, correction.fixed_s, correction.front_end_s
    what = "steps take" if fixed is None else "steps, but for their fixed part, take"
    confidence = "" if factor.half_width is None else " (95 %)"
    say(f"{what} {factor.value:.3f}{_plus_minus(factor.half_width, '.3f')} times what the profile says{confidence}")
    if fixed is not None:
        say(f"the fixed part of a step is {fixed.value * 1e3:.3g}{_plus_minus_ms(fixed.half_width)} ms")
    say(f"a request spends {outside.value * 1e3:.3g}{_plus_minus_ms(outside.half_width)} ms outside the engine", "")
    rows = [
        (
            each.load,
            measured_words(each.metric),
            measured_value(each.metric, each.measured),
            f"{each.before:+.1%}",
            f"{each.after:+.1%}",
        )
        for each in correction.checked
    ]
    print_rich(rich_rows(("run", "", "measured", "error before", "after"), rows))
    if factor.half_width is None:
        message(
            "note: no ± and no calibration interval: the measured values have no standard deviations and no single "
            "requests to derive them from",
            quiet,
        )
    worst = max(correction.checked, key=lambda each: abs(each.after))
    if abs(worst.after) > _UNEXPLAINED:
        message(
            f"warning: no factor explains this: {measured_words(worst.metric)} of {worst.load} stays off by "
            f"{worst.after:+.0%}. Is the scenario what was measured? Check adapters.count, cache.gpu.slots, prefixes "
            "that requests share, and whether the server was busy with other work",
            quiet,
        )


def _plus_minus(half_width: float | None, form: str) -> str:
    return "" if half_width is None else f" ± {half_width:{form}}"


def _plus_minus_ms(half_width_s: float | None) -> str:
    if half_width_s is None:
        return ""
    return _plus_minus(half_width_s * 1e3, ".2g" if half_width_s < 0.0995 else ",.0f")


def correction_json(profile: Profile, correction: LoadCorrection) -> dict[str, Any]:
    """Return a correction as plain data."""
    fixed = correction.fixed_s
    return {
        "schema_version": 1,
        "profile": profile.name,
        "factor": {"value": correction.factor.value, "half_width": correction.factor.half_width},
        "fixed_s": None if fixed is None else {"value": fixed.value, "half_width": fixed.half_width},
        "front_end_s": {
            "value": correction.front_end_s.value,
            "half_width": correction.front_end_s.half_width,
        },
        "checked": [
            {
                "run": each.load,
                "metric": each.metric,
                "measured": each.measured,
                "error_before": each.before,
                "error_after": each.after,
            }
            for each in correction.checked
        ],
    }
