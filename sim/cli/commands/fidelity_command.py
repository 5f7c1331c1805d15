"""``loraplan fidelity``: compare the simulator with what a real engine did."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.bench_results import BenchFiles, predict_benchmarks
from sim.cli.commands.fit_command import LENGTHS, MeasuredTable, predict_runs
from sim.cli.measured_values import measured_words
from sim.cli.options import JobsOption, JsonOption, QuietOption, takes
from sim.cli.output import message, print_rich, progress_bar, rich_rows, say, say_json
from sim.errors import InputError

if TYPE_CHECKING:
    from sim.studies.fidelity.record_costs import RecordCosts
    from sim.studies.fidelity.record_prediction import PredictedMetric
    from sim.studies.fidelity.serving_stages import Server, ServerErrors, StagePrediction
    from sim.studies.fidelity.sglang_record import SglangRecord
    from sim.studies.fidelity.step_record import StepRecord
    from sim.studies.fidelity.step_replay import Replay


@dataclass(frozen=True)
class FidelityOptions:
    """The argument and the options of ``loraplan fidelity``."""

    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="Predict these measured runs: results of vllm bench serve, GuideLLM, AIPerf, GenAI-Perf or "
            "inference-perf (.json), or a table RUNS.csv of served hours, or of serving stages.",
        ),
    ] = None
    scenario: Annotated[
        str | None,
        typer.Option(help="Of results: the server that was measured, a scenario with its fleet and adapters."),
    ] = None
    profile: Annotated[
        str | None, typer.Option(help="Of results: predict from this profile. Default: the scenario's.")
    ] = None
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="With --scenario: change a value of it. Repeatable."),
    ] = None
    record: Annotated[
        Path | None, typer.Option(help="Replay this record of an engine's steps, and compare every step.")
    ] = None
    fit_on: Annotated[
        Path | None, typer.Option(help="Fit costs to this record, and predict --record; both in real time.")
    ] = None
    lengths: Annotated[
        Path | None,
        typer.Option(help="Histograms of lengths. Default: sharegpt_lengths.json next to RUNS.csv.", hidden=True),
    ] = None
    profile_dir: Annotated[
        Path | None, typer.Option(help="Folder with a profile MODEL.json for each model. Default: the bundled ones.")
    ] = None
    out: Annotated[Path | None, typer.Option(help="Folder for results. Default: runs/fidelity-NAME.")] = None
    jobs: JobsOption = -1
    json: JsonOption = False
    quiet: QuietOption = False


@takes(FidelityOptions)
def fidelity(options: FidelityOptions) -> None:
    """Predict measured runs of a real server, or replay a record of a real engine step by step.

    Example: loraplan fidelity bench.json --scenario my-scenario.yaml
    """
    if options.runs:
        if options.record is not None or options.fit_on is not None:
            raise InputError(
                "give either measured runs or a record, not both",
                key="--record",
                got=str(options.record or options.fit_on),
            )
        _predict(options, options.runs)
        return
    _refuse_server(options, "goes with results of benchmarks")
    if options.record is None and options.fit_on is not None:
        raise InputError("--fit-on needs a record to predict", key="--record", hint="give --record FILE")
    if options.record is None:
        raise InputError(
            "there is nothing to compare with",
            key="FILE",
            allowed="results of a benchmark, a table of measured runs, or --record with a record of an engine's steps",
        )
    if options.lengths or options.profile_dir or options.out:
        raise InputError(
            "--lengths, --profile-dir and --out go with RUNS.csv",
            key="--record",
            got=str(options.lengths or options.profile_dir or options.out),
        )
    _compare_record(options.record, options.fit_on, json=options.json, quiet=options.quiet)


def _predict(options: FidelityOptions, files: list[Path]) -> None:
    """Predict results of benchmarks, or the runs of a table."""
    from sim.studies.benchmarks.bench_files import is_bench_file

    if all(map(is_bench_file, files)):
        if options.lengths or options.profile_dir or options.out:
            raise InputError(
                "--lengths, --profile-dir and --out go with RUNS.csv",
                key="FILE",
                got=str(options.lengths or options.profile_dir or options.out),
            )
        results = BenchFiles(files, options.scenario, options.profile, options.set_ or ())
        predict_benchmarks(results, json=options.json, quiet=options.quiet)
        return
    if len(files) > 1:
        raise InputError("one table at a time, or results (.json)", key="FILE", got=", ".join(map(str, files)))
    _refuse_server(options, "a table names its models; --profile-dir gives other profiles")
    if _is_of_stages(files[0]):
        _predict_stages(options, files[0])
        return
    from sim.studies.fidelity.measured_runs import read_lengths, read_runs

    file = files[0]
    runs, lengths = read_runs(file), read_lengths(options.lengths or file.with_name(LENGTHS))
    table = MeasuredTable(file, runs, lengths, options.profile_dir, options.out, options.jobs)
    predict_runs(table, json=options.json, quiet=options.quiet)


def _is_of_stages(file: Path) -> bool:
    """Return whether a table has stages of a serving benchmark, rather than served hours with adapters."""
    from sim.studies.fidelity.run_cells import read_table
    from sim.studies.fidelity.serving_stages import KEY_COLUMN

    table = read_table(file)
    if not table.columns:
        raise InputError(
            "the table is empty", file=table.file, allowed="served hours or serving stages (docs/validation.md)"
        )
    return KEY_COLUMN in table.columns


def _predict_stages(options: FidelityOptions, file: Path) -> None:
    """Predict every stage of a serving benchmark, and print measured beside predicted."""
    from sim.studies.fidelity.run_cells import read_table
    from sim.studies.fidelity.serving_stages import METRICS, errors_by_server, predict_stages, stages_of

    for key, value in (("--lengths", options.lengths), ("--profile-dir", options.profile_dir), ("--out", options.out)):
        if value:
            raise InputError("goes with tables of served hours", key=key, got=str(value))
    stages = stages_of(read_table(file))
    with tempfile.TemporaryDirectory(prefix="loraplan-") as folder:
        profiles, refused = _profiles_of([stage.server for stage in stages], Path(folder))
        stages = [stage for stage in stages if stage.server in profiles]
        with progress_bar(options.quiet) as progress:
            predictions = predict_stages(stages, profiles, options.jobs, progress)
    errors = {
        metric: errors_by_server(predictions, metric)
        for metric in METRICS
        if any(metric in stage.measured for stage in stages)
    }
    for server, error in refused.items():
        message(f"note: the stages of {server.words} are left out: {error}", options.quiet)
    for each in predictions:
        if each.overloaded:
            message(f"note: stage {each.stage.name}: the predicted server is overloaded", options.quiet)
    if options.json:
        say_json(_stages_json(predictions, errors))
        return
    shown = [metric for metric in ("tpot_mean", "tpot_p90", "ttft_mean", "ttft_p99") if metric in errors]
    heads = [f"{metric.partition('_')[0].upper()} {metric.partition('_')[2]}" for metric in shown]
    rows = [
        (each.stage.name, each.stage.server.words, each.stage.load, *(_beside(each, metric) for metric in shown))
        for each in predictions
    ]
    print_rich(rich_rows(("stage", "server", "load", *(f"{head}: measured, predicted, error" for head in heads)), rows))
    say("", "Errors: median and 90 % quantile of absolute errors, and the median signed one", "")
    print_rich(
        rich_rows(
            ("server", "stages", *heads),
            [
                (words, f"{count:,}", *(_error_words(errors[metric].get(words)) for metric in shown))
                for words, (count, *_) in errors[shown[0]].items()
            ],
        )
    )
    for name in sorted({each.profile for each in predictions}):
        message(f"note: predicted with the profile {name}", options.quiet)


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


def _beside(prediction: StagePrediction, metric: str) -> str:
    if metric not in prediction.stage.measured:
        return ""
    measured, predicted = (values[metric] * 1e3 for values in (prediction.stage.measured, prediction.predicted))
    return f"{measured:,.1f} {predicted:,.1f} ms {prediction.error(metric):+.0%}"


def _error_words(found: ServerErrors | None) -> str:
    if found is None:
        return ""
    _, median, ninety, bias = found
    return f"{median:.1%} {ninety:.1%} {bias:+.1%}"


def _stages_json(
    predictions: Sequence[StagePrediction], errors: Mapping[str, Mapping[str, ServerErrors]]
) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "stages": [
            {
                "name": each.stage.name,
                "server": each.stage.server.words,
                "load": each.stage.load,
                "profile": each.profile,
                "metrics": {
                    f"{name}_s": {"measured": value, "predicted": each.predicted[name], "error": each.error(name)}
                    for name, value in each.stage.measured.items()
                },
            }
            for each in predictions
        ],
        "errors": {
            f"{metric}_s": {
                words: dict(zip(("stages", "median", "p90", "bias"), found, strict=True))
                for words, found in by_server.items()
            }
            for metric, by_server in errors.items()
        },
    }


def _refuse_server(options: FidelityOptions, problem: str) -> None:
    """Refuse the options that describe the server of a benchmark, where there is none."""
    changes = ", ".join(options.set_ or ())
    for key, value in (("--scenario", options.scenario), ("--profile", options.profile), ("--set", changes)):
        if value:
            raise InputError(problem, key=key, got=value)


def _compare_record(file: Path, fit_on: Path | None, *, json: bool, quiet: bool) -> None:
    from sim.studies.fidelity.sglang_record import SglangRecord, read_any_record, replay_sglang
    from sim.studies.fidelity.step_record import read_record
    from sim.studies.fidelity.step_replay import replay

    record = read_any_record(file)
    if isinstance(record, SglangRecord) and fit_on is not None:
        raise InputError("records of SGLang have no times that could be predicted", key="--fit-on", got=str(fit_on))
    if fit_on is None or isinstance(record, SglangRecord):
        result = replay_sglang(record) if isinstance(record, SglangRecord) else replay(record)
        if json:
            say_json(_replay_json(result))
        else:
            _print_replay(file, record, result)
        return
    from sim.studies.fidelity.record_costs import fit_costs, record_times
    from sim.studies.fidelity.record_prediction import ORDERS, predict

    times = record_times(record, str(file))
    costs = fit_costs(record_times(read_record(fit_on), str(fit_on)))
    if fit_on.resolve() == file.resolve():
        message("note: costs fitted to the record that they predict say little; give --fit-on another one", quiet)
    result, metrics = replay(record), predict(record, times, costs)
    if json:
        say_json(_replay_json(result) | {"prediction": _prediction_json(costs, metrics)})
        return
    _print_replay(file, record, result)
    _print_prediction(fit_on, costs, metrics)
    message(f"note: predictions are means of {ORDERS} simulations, each with another order of adapters", quiet)


def _late_steps(result: Replay) -> tuple[int, int]:
    """Return how many requests end within one step of the record, and the most steps between them."""
    late = [abs(steps) for steps in result.late_steps.values()]
    return sum(steps <= 1 for steps in late), max(late, default=0)


def _replay_json(result: Replay) -> dict[str, Any]:
    return {
        "steps": result.steps,
        "equal_steps": result.equal_steps,
        "loads": result.loads,
        "predicted_loads": result.predicted_loads,
        "equal_loads": result.equal_loads,
        "cached_tokens": result.cached_tokens,
        "predicted_cached_tokens": result.predicted_cached_tokens,
        "first_difference": result.first_difference,
        "late_steps_max": _late_steps(result)[1],
    }


def _prediction_json(costs: RecordCosts, metrics: dict[str, PredictedMetric]) -> dict[str, Any]:
    return {
        "step_s": costs.step_s,
        "metrics": {
            name: {"measured": value.measured, "predicted": value.predicted, "error": value.error}
            for name, value in metrics.items()
        },
    }


def _print_replay(file: Path, record: StepRecord | SglangRecord, result: Replay) -> None:
    preempted = sum(len(step.preempted) for step in record.steps)
    rows: list[tuple[str, str]] = [
        ("engine", record.engine),
        ("preset", record.preset),
        ("requests", f"{len(record.requests):,}"),
        ("steps", f"{result.steps:,}"),
        ("equal steps", f"{result.equal_steps:,}"),
        ("loads", f"{result.loads:,}"),
        ("predicted loads", f"{result.predicted_loads:,}"),
        ("equal loads", f"{result.equal_loads:,}"),
        ("preemptions", f"{preempted:,}"),
    ]
    met = "tokens, preemptions, loads and evictions"
    if record.config.prefix_caching:
        rows.append(("cached tokens", f"{result.cached_tokens:,}"))
        rows.append(("predicted cached tokens", f"{result.predicted_cached_tokens:,}"))
        met = "tokens, cached tokens, blocks overwritten, preemptions, loads and evictions"
    if record.mode == "online":
        rows.append(("ends within one step", f"{_late_steps(result)[0]:,} of {len(record.requests):,} requests"))
    if result.first_difference is None:
        say(f"{file}: every step is met: {met}", "")
    else:
        different = result.steps - result.equal_steps
        say(f"{file}: {different:,} of {result.steps:,} steps differ; the first: {result.first_difference}", "")
    print_rich(rich_rows(("", ""), rows))


_COST_WORDS = {
    "step": "ms a step",
    "sequence": "a sequence",
    "token": "a token",
    "adapter": "a distinct adapter",
    "storage_load": "a load from storage",
    "kv_token": "a KV token",
}


def _print_prediction(fit_on: Path, costs: RecordCosts, metrics: dict[str, PredictedMetric]) -> None:
    words = ", ".join(f"{seconds * 1e3:.3g} {_COST_WORDS[name]}" for name, seconds in costs.step_s.items())
    host = float(costs.host_s[len(costs.host_s) // 2])
    say("", f"Predicted with costs from {fit_on}: {words}; {host * 1e3:.3g} a load from host memory (median)", "")
    rows = [
        (measured_words(name), _show(name, value.measured), _show(name, value.predicted), f"{value.error:+.1%}")
        for name, value in metrics.items()
    ]
    print_rich(rich_rows(("metric", "measured", "predicted", "error"), rows))


def _show(name: str, value: float) -> str:
    from sim.spec.units import human_seconds

    return human_seconds(value) if name.endswith("_s") else f"{value:,.1f}"
