"""``loraplan fidelity``: compare the simulator with what a real engine did."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.bench_results import BenchFiles
from sim.cli.options import JobsOption, JsonOption, QuietOption
from sim.cli.output import command_line, finish, make_folder, message, progress_bar
from sim.errors import InputError

if TYPE_CHECKING:
    from reports.document import Report
    from sim.studies.fidelity.measured_runs import LengthHistograms, MeasuredRun
    from sim.studies.fidelity.serving_stages import Server, Stage

LENGTHS = "sharegpt_lengths.json"


def fidelity(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="Measured runs to predict: results of vllm bench serve, GuideLLM, AIPerf, GenAI-Perf or "
            "inference-perf (.json), or a table RUNS.csv (docs/validation.md).",
        ),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(help="Of results: the server that was measured, a scenario with its fleet and adapters."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Of results: predict from this profile. Default: the scenario's.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="With --scenario: change a value of it. Repeatable."),
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Replay this record of an engine's steps, and compare every step.")
    ] = None,
    fit_on: Annotated[
        Path | None, typer.Option(help="Fit costs to this record, and predict --record; both in real time.")
    ] = None,
    lengths: Annotated[
        Path | None,
        typer.Option(help="Histograms of lengths. Default: sharegpt_lengths.json next to RUNS.csv.", hidden=True),
    ] = None,
    profile_dir: Annotated[
        Path | None,
        typer.Option(
            help="Of served hours: folder with a profile MODEL.json for each model. Default: the bundled ones."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Of served hours: folder for results and report. Default: runs/fidelity-NAME.")
    ] = None,
    jobs: JobsOption = -1,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Predict measured runs of a real server, or replay a record of a real engine step by step.

    Example: loraplan fidelity bench.json --scenario my-scenario.yaml
    """
    from sim.studies.fidelity.bench_files import is_bench_file

    of_table = {"--lengths": lengths, "--profile-dir": profile_dir, "--out": out}
    of_server = {"--scenario": scenario, "--profile": profile, "--set": ", ".join(set_ or ())}
    folder = None
    if not runs:
        _refuse(of_server, "goes with results of benchmarks")
        if record is None and fit_on is not None:
            raise InputError("--fit-on needs a record to predict", key="--record", hint="give --record FILE")
        if record is None:
            raise InputError(
                "there is nothing to compare with",
                key="FILE",
                allowed="results of a benchmark, a table of measured runs, or --record with a record of an engine's "
                "steps",
            )
        _refuse(of_table, "goes with tables of served hours")
        report = _record_report(record, fit_on)
    elif record is not None or fit_on is not None:
        raise InputError("give either measured runs or a record, not both", key="--record", got=str(record or fit_on))
    elif all(map(is_bench_file, runs)):
        _refuse(of_table, "goes with tables of served hours")
        _predict_benchmarks(BenchFiles(runs, scenario, profile, set_ or ()), json=json, quiet=quiet)
        return
    elif len(runs) > 1:
        raise InputError("one table at a time, or results (.json)", key="FILE", got=", ".join(map(str, runs)))
    else:
        _refuse(of_server, "a table names its models; --profile-dir gives other profiles")
        from sim.studies.fidelity.measured_runs import read_lengths, read_table, runs_of
        from sim.studies.fidelity.serving_stages import KEY_COLUMN, stages_of

        table = read_table(runs[0])
        if not table.columns:
            allowed = "served hours or serving stages (docs/validation.md)"
            raise InputError("the table is empty", file=table.file, allowed=allowed)
        if KEY_COLUMN in table.columns:
            _refuse(of_table, "goes with tables of served hours")
            report = _stage_report(stages_of(table), jobs, quiet)
        else:
            measured, histograms = runs_of(table), read_lengths(lengths or runs[0].with_name(LENGTHS))
            folder, report = predict_runs(
                runs[0], measured, histograms, profile_dir, out, jobs, quiet=quiet, command=command_line()
            )
    finish(report, folder, as_json=json, quiet=quiet)


def _refuse(options: Mapping[str, object], problem: str) -> None:
    for name, value in options.items():
        if value:
            raise InputError(problem, key=name, got=str(value))


def _predict_benchmarks(files: BenchFiles, *, json: bool, quiet: bool) -> None:
    from sim.studies.fidelity.bench_prediction import predict_bench
    from sim.studies.fidelity.report import bench_report

    base = files.base()
    predictions = [predict_bench(run, base, files.profile) for run in files.runs()]
    finish(bench_report(predictions), None, as_json=json, quiet=quiet)
    if json:
        return
    for note in dict.fromkeys(note for prediction in predictions for note in prediction.notes):
        message(f"note: {note}", quiet)
    again = shlex.join(word for file in files.files for word in ("--from-bench", str(file)))
    message(f"to correct the profile by this: loraplan calibrate fit {again} {files.options} --out profile.json", quiet)


def predict_runs(
    file: Path,
    runs: Sequence[MeasuredRun],
    lengths: LengthHistograms | None,
    profile_dir: Path | None,
    out: Path | None,
    jobs: int,
    *,
    quiet: bool,
    command: str,
) -> tuple[Path, Report]:
    """Predict every run of a table, and write one row for each; return the folder with these rows, and the report.

    :param lengths: of the requests; None: every run knows its own.
    :param profile_dir: folder with a profile for each model; None: the bundled ones.
    :param command: that makes the report again.
    """
    from sim.studies.fidelity.fidelity_study import predict_all, profiles_for
    from sim.studies.fidelity.report import TABLE, runs_report

    if jobs == 0:
        raise InputError("not a number of workers", key="--jobs", got=0, allowed="-1, or 1 and more")
    profiles = profiles_for(sorted({run.model for run in runs}), profile_dir, runs[0].profile)
    folder = out or Path("runs") / f"fidelity-{file.stem}"
    make_folder(folder)
    with progress_bar(quiet) as progress:
        predictions = predict_all(runs, lengths, profiles, table=folder / TABLE, jobs=jobs, progress=progress)
    return folder, runs_report(predictions, file, profiles, command)


def _stage_report(stages: Sequence[Stage], jobs: int, quiet: bool) -> Report:
    from sim.studies.fidelity.report import stage_report
    from sim.studies.fidelity.serving_stages import predict_stages

    with tempfile.TemporaryDirectory(prefix="loraplan-") as folder:
        profiles, refused = _profiles_of([stage.server for stage in stages], Path(folder))
        stages = [stage for stage in stages if stage.server in profiles]
        with progress_bar(quiet) as progress:
            predictions = predict_stages(stages, profiles, jobs, progress)
    return stage_report(predictions, refused)


def _profiles_of(servers: Sequence[Server], folder: Path) -> tuple[dict[Server, str | None], dict[Server, InputError]]:
    """Return the profile of each server, and why there is none for the others.

    :raises InputError: where there is none for any.
    """
    profiles: dict[Server, str | None] = {}
    refused: dict[Server, InputError] = {}
    for server in dict.fromkeys(servers):
        try:
            profiles[server] = _profile_of(server, folder)
        except InputError as error:
            # What are options of loraplan profiles build are columns here.
            refused[server] = InputError(re.sub(r"--(gpu|model|tp)\b", r"\1", str(error)))
    if not profiles:
        raise next(iter(refused.values()))
    return profiles, refused


def _profile_of(server: Server, folder: Path) -> str | None:
    """Return the path of a server's profile, built from kernel tables if none comes with loraplan; None: one does."""
    from sim.spec.profile_choice import has_profile

    if has_profile(server.gpu, server.model, server.engine, server.tensor_parallel):
        return None
    from calibrate.kernels.base_models import base_model_of
    from calibrate.kernels.cards import card_of
    from calibrate.kernels.kernel_tables import Deployment, engine_of
    from calibrate.kernels.profile_from_kernels import build_profile

    deployment = Deployment(
        card_of(server.gpu),
        base_model_of(server.model),
        engine_of(server.engine),
        tensor_parallel=server.tensor_parallel,
    )
    path = folder / f"{server.gpu}-{server.model}-{server.tensor_parallel}.json"
    path.write_text(build_profile(deployment, "loraplan fidelity").profile.model_dump_json())
    return str(path)


def _record_report(file: Path, fit_on: Path | None) -> Report:
    from sim.studies.fidelity.record_prediction import fit_costs, predict, record_times
    from sim.studies.fidelity.report import replay_report, with_prediction
    from sim.studies.fidelity.sglang_record import SglangRecord, read_any_record, replay_any_record
    from sim.studies.fidelity.step_record import PairRecord, read_record

    record = read_any_record(file)
    if fit_on is None:
        return replay_report(file, record, replay_any_record(record))
    if isinstance(record, SglangRecord):
        raise InputError("records of SGLang have no times that could be predicted", key="--fit-on", got=str(fit_on))
    if isinstance(record, PairRecord) or record.config.offload is not None:
        raise InputError("records of copied KV have no times to predict", key="--fit-on", got=str(fit_on))
    times = record_times(record, str(file))
    costs = fit_costs(record_times(read_record(fit_on), str(fit_on)))
    replayed, metrics = replay_report(file, record, replay_any_record(record)), predict(record, times, costs)
    return with_prediction(replayed, fit_on, costs, metrics, itself=fit_on.resolve() == file.resolve())
