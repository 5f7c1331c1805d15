"""``loraplan calibrate fit``: fit a profile to measurements."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.bench_results import BenchFiles, fit_to_benchmarks
from sim.cli.options import QuietOption, takes
from sim.cli.output import print_rich, rich_rows, say, say_json
from sim.errors import InputError

if TYPE_CHECKING:
    from sim.spec.profile import Profile

SAMPLES = ("steps.parquet", "loads.parquet")


@dataclass(frozen=True)
class FitOptions:
    """The argument and the options of ``loraplan calibrate fit``."""

    out: Annotated[Path, typer.Option(help="The profile to write.")]
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="Folder of samples."),
    ] = None
    model: Annotated[str | None, typer.Option(help="Base model that must have been timed.")] = None
    from_bench: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Correct a profile by this result of a benchmark instead. Repeatable."),
    ] = None
    scenario: Annotated[
        str | None, typer.Option(help="With --from-bench: the server, a scenario with its fleet and adapters.")
    ] = None
    profile: Annotated[
        str | None, typer.Option(help="With --from-bench: the profile to correct. Default: the scenario's.")
    ] = None
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="With --scenario: change a value of it. Repeatable."),
    ] = None
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False
    quiet: QuietOption = False


@takes(FitOptions)
def fit(options: FitOptions) -> None:
    """Fit a profile to measurements, and say how well it predicts what it was not fitted on.

    DIR has samples that `loraplan calibrate steps` and `loads` took. With `--from-bench`, a profile is corrected by
    results of benchmarks (docs/benchmarks.md).

    Example: loraplan calibrate fit runs/calibration --out profile.json
    """
    out = check_profile_target(options.out)
    if options.from_bench:
        if options.folder is not None or options.model is not None:
            raise InputError("give either a folder or --from-bench", key="DIR", got=str(options.folder))
        results = BenchFiles(options.from_bench, options.scenario, options.profile, options.set_ or ())
        fit_to_benchmarks(results, out, json=options.json, quiet=options.quiet)
        return
    changes = ", ".join(options.set_ or ())
    for key, value in (("--scenario", options.scenario), ("--profile", options.profile), ("--set", changes)):
        if value:
            raise InputError("goes with --from-bench", key=key, got=value)
    if options.folder is None:
        raise InputError("nothing to fit", key="DIR", allowed="a folder, or --from-bench with a result of a benchmark")
    fit_to_folder(options.folder, options, out)


def fit_to_folder(folder: Path, options: FitOptions, out: Path) -> None:
    """Fit a profile to samples, write it, and print how well it predicts."""
    from calibrate.fit.sample_fit import fit_samples

    if not any((folder / file).exists() for file in SAMPLES):
        raise InputError(
            "nothing to fit in this folder",
            key="DIR",
            got=str(folder),
            allowed=" and ".join(SAMPLES),
            hint="loraplan calibrate steps and loads take samples",
        )
    model = ["--model", options.model] if options.model else []
    command = shlex.join(["loraplan", "calibrate", "fit", "DIR", *model, "--out", out.name])
    show_fitted(fit_samples(folder, options.model, command), out, json=options.json)


def show_fitted(profile: Profile, out: Path, *, json: bool) -> None:
    """Write a fitted profile, and print how well it predicts."""
    from calibrate.fit.fit_report import HEAD, as_json, closing, hold_out_rows, write_profile

    write_profile(profile, out)
    if json:
        say_json({**as_json(profile), "file": str(out)})
        return
    print_rich(rich_rows(HEAD, hold_out_rows(profile.hold_out)))
    say("", *closing(profile), "", f"profile  {out}")


def check_profile_target(out: Path, key: str = "--out") -> Path:
    """Make the folder of a profile that is to be written, and return its path.

    :raises InputError: if it can't be written, or is something else than a profile.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("can't make this folder", key="--out", got=str(out.parent), hint=error.strerror) from None
    if out.is_dir():
        raise InputError("a folder, not a file", key=key, got=str(out))
    if out.exists() and not is_profile(out):
        raise InputError("this file is no profile: it is not replaced", key=key, got=str(out))
    return out


def is_profile(file: Path) -> bool:
    """Return whether a file has the form of a profile, also of an older version."""
    import json

    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and {"step", "load", "memory"} <= data.keys()
