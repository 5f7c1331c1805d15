"""The side of ``loraplan fidelity`` that predicts measured runs, and ``loraplan calibrate fit``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.bench_results import BenchFiles, fit_to_benchmarks
from sim.cli.options import QuietOption, takes
from sim.cli.output import message, print_rich, progress_bar, rich_rows, rich_table, say, say_file, say_json
from sim.errors import InputError

if TYPE_CHECKING:
    from reports.pages.fidelity_page import FidelityPage
    from sim.spec.profile import Profile
    from sim.studies.fidelity.fidelity_study import ModelProfile, RunPrediction
    from sim.studies.fidelity.measured_runs import LengthHistograms, MeasuredRun

LENGTHS = "sharegpt_lengths.json"
PEER = "digital_twin_predictions.csv"
SAMPLES = ("steps.parquet", "loads.parquet")
TABLE, PAGE, SUMMARY = "predictions.csv", "report.html", "fidelity.json"


@dataclass(frozen=True)
class MeasuredTable:
    """A table of measured runs to predict.

    :ivar lengths: histograms of lengths; None: those of every run are known.
    :ivar profile_dir: folder with a profile for each model; None: the bundled ones.
    :ivar out: folder for results; None: ``runs/fidelity-NAME``.
    :ivar jobs: worker processes; -1: one for each core.
    """

    file: Path
    runs: Sequence[MeasuredRun]
    lengths: LengthHistograms | None
    profile_dir: Path | None
    out: Path | None
    jobs: int


def predict_runs(measured: MeasuredTable, *, json: bool, quiet: bool) -> None:
    """Predict every run of a table; write one row a run and a page; print the errors."""
    from reports.pages.fidelity_page import write_page
    from reports.tables.fidelity_tables import error_table, peer_table
    from reports.text.fidelity_text import choice_sentence
    from sim.results.run_directory.result_files import write_json
    from sim.studies.fidelity.fidelity_errors import as_json
    from sim.studies.fidelity.fidelity_study import predict_all, profiles_for

    if measured.jobs == 0:
        raise InputError("not a number of workers", key="--jobs", got=0, allowed="-1, or 1 and more")
    runs = measured.runs
    profiles = profiles_for(sorted({run.model for run in runs}), measured.profile_dir, runs[0].profile)
    folder = measured.out or Path("runs") / f"fidelity-{measured.file.stem}"
    _make(folder)
    if (folder / "manifest.json").exists():
        raise InputError("this folder holds a run", key="--out", got=str(folder), hint="give another one")
    with progress_bar(quiet) as progress:
        predictions = predict_all(
            runs, measured.lengths, profiles, table=folder / TABLE, jobs=measured.jobs, progress=progress
        )
    errors = as_json(predictions)
    write_json(folder / SUMMARY, errors)
    page = _page(predictions, errors, measured.file, profiles)
    path = write_page(page, folder / PAGE)
    if json:
        say_json(errors)
        return
    table = error_table(errors)
    print_rich(rich_table(table))
    say(table.note, "", choice_sentence(errors))
    comparison = peer_table(page.peer)
    if comparison is not None:
        say("", f"{comparison.caption}:")
        print_rich(rich_table(comparison))
    say("")
    say_file("report  ", path)
    say_file("table   ", folder / TABLE)
    if errors["calibration_runs"]:
        message(
            f"note: {errors['calibration_runs']} runs calibrated the profiles and are left out of all errors", quiet
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("can't make this folder", key="--out", got=str(folder), hint=error.strerror) from None


def _page(
    predictions: Sequence[RunPrediction], errors: dict[str, Any], file: Path, profiles: dict[str, ModelProfile]
) -> FidelityPage:
    from reports.answers.fidelity_findings import Compared
    from reports.pages.fidelity_page import FidelityPage
    from sim.studies.fidelity.fidelity_errors import compare_peer

    peer = file.with_name(PEER)
    left = [p for p in predictions if not p.calibrated]
    seconds = sum(p.wall_s for p in predictions)
    return FidelityPage(
        runs=[
            Compared(
                p.run.name,
                p.run.model,
                f"{p.run.model}/{p.run.workload_group}/{p.run.rates}/{p.run.ranks}",
                f"{p.run.model}, {p.run.adapters} adapters, {p.run.offered_rps:.3g} requests/s",
                p.run.gpu_slots,
                p.run.regime,
                p.calibrated,
                p.run.measured,
                p.predicted,
            )
            for p in predictions
        ],
        errors=errors,
        peer=compare_peer(left, peer).rows if peer.exists() else (),
        provenance=[
            ("Measured runs", f"{file.name}, {len(predictions)} runs"),
            *(
                (f"Profile of {model}", f"{profile.name}, sha256 {profile.sha256[:12]}")
                for model, profile in profiles.items()
            ),
            ("Calibration", f"{errors['calibration_runs']} runs, named in the profiles, are left out of all errors"),
            ("Model", "engine {0.engine} behind the front end {0.front_end}; {0.sampling}".format(predictions[0].run)),
            ("Cost", f"{seconds:,.0f} core seconds, {seconds / len(predictions):.2f} a run"),
        ],
        command=shlex.join(["loraplan", *sys.argv[1:]]),
    )


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
    _make(out.parent)
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
