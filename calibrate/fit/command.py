"""``loraplan calibrate fit``: fit a profile to measurements."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.bench_results import BenchFiles
from sim.cli.options import JsonOption, QuietOption
from sim.cli.output import command_line, finish
from sim.errors import InputError

if TYPE_CHECKING:
    from reports.document import Report

SAMPLES = ("steps.parquet", "loads.parquet")


def fit(
    out: Annotated[Path, typer.Option(help="The profile to write.")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Folder of samples of calibrate steps and loads.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Base model that must have been timed.")] = None,
    from_bench: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Correct a profile by this benchmark (docs/validation.md). Repeatable."),
    ] = None,
    scenario: Annotated[
        str | None, typer.Option(help="With --from-bench: the server, a scenario with its fleet and adapters.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="With --from-bench: the profile to correct. Default: the scenario's.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="With --scenario: change a value of it. Repeatable."),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fit a profile to measurements, and say how well it predicts what it was not fitted on.

    Example: loraplan calibrate fit runs/calibration --out profile.json
    """
    if from_bench:
        if folder is not None or model is not None:
            raise InputError("give either a folder or --from-bench", key="DIR", got=str(folder))
        check_profile_target(out)
        report = _fitted_to_benchmarks(BenchFiles(from_bench, scenario, profile, set_ or ()), out)
    else:
        for key, value in (("--scenario", scenario), ("--profile", profile), ("--set", ", ".join(set_ or ()))):
            if value:
                raise InputError("goes with --from-bench", key=key, got=value)
        if folder is None:
            allowed = "a folder, or --from-bench with a result of a benchmark"
            raise InputError("nothing to fit", key="DIR", allowed=allowed)
        check_profile_target(out)
        report = fitted_to_samples(folder, model, out)
    finish(report, None, as_json=json, quiet=quiet)


def fitted_to_samples(folder: Path, model: str | None, out: Path) -> Report:
    """Fit a profile to samples and write it; return how well it predicts."""
    from calibrate.fit.report import fit_report
    from calibrate.fit.sample_fit import fit_samples

    if not any((folder / file).exists() for file in SAMPLES):
        raise InputError(
            "nothing to fit in this folder",
            key="DIR",
            got=str(folder),
            allowed=" and ".join(SAMPLES),
            hint="loraplan calibrate steps and loads take samples",
        )
    named = ["--model", model] if model else []
    command = shlex.join(["loraplan", "calibrate", "fit", "DIR", *named, "--out", out.name])
    return fit_report(fit_samples(folder, model, command), out)


def _fitted_to_benchmarks(files: BenchFiles, out: Path) -> Report:
    from calibrate.fit.load_correction import benchmark_load
    from calibrate.fit.report import correction_report

    base, runs = files.base(), files.runs()
    files.check_repeats()
    loads = [benchmark_load(run, base, files.profile) for run in runs]
    for load in loads:
        if len(load.targets) < 2:
            raise InputError(
                "has no times of first tokens and of the tokens after them",
                file=load.name,
                allowed="TTFT, and TPOT or ITL: a streamed benchmark",
            )
    return correction_report(loads, files.files, out, command_line())


def check_profile_target(out: Path, key: str = "--out") -> None:
    """Make the folder of a profile that is to be written.

    :raises InputError: if it can't be written, or is something else than a profile.
    """
    if out.is_dir():
        raise InputError("a folder, not a file", key=key, got=str(out))
    if out.exists() and not _is_profile(out):
        raise InputError("this file is no profile: it is not replaced", key=key, got=str(out))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("can't make this folder", key=key, got=str(out.parent), hint=error.strerror) from None


def _is_profile(file: Path) -> bool:
    """Return whether a file has the form of a profile, also of an older version."""
    import json

    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and {"step", "load", "memory"} <= data.keys()
