"""``loraplan profiles``: which GPUs and models there are costs for, how good each is, and how to make one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.bench_results import BenchFiles
from sim.cli.options import JsonOption, QuietOption, complete_profile
from sim.cli.output import command_line, finish, message
from sim.errors import InputError, ScenarioError

if TYPE_CHECKING:
    from reports.table import Table
    from sim.spec.profile import Profile
    from sim.studies.profile_listing import ProfileRow

ProfileArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="A bundled profile, or the path of one.", autocompletion=complete_profile)
]


def list_profiles(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORD]...", help="Only profiles with these words, such as h100 qwen."),
    ] = None,
    gpu: Annotated[str, typer.Option(help="Only profiles of this GPU, such as h100-80gb.")] = "",
    model: Annotated[str, typer.Option(help="Only profiles of this base model, such as qwen2.5-14b.")] = "",
    status: Annotated[str, typer.Option(help="Only profiles that are measured, derived or assumed.")] = "",
    folder: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="A folder of profiles. Default: the bundled ones.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List profiles: GPU, model, GPUs per replica, engine, status and error.

    Example: loraplan profiles list h100 qwen
    """
    from reports.document import Report
    from sim.studies.profile_listing import list_profiles as rows_of

    rows = rows_of(folder, words or (), gpu, model, status)
    data = {"profiles": [asdict(row) for row in rows]}
    report = Report("profiles list", "profiles", data=data, terminal=[_table(rows), "", *_LEGEND])
    finish(report, None, as_json=json, quiet=False)


_LEGEND = (
    "TPOT ±: how far the profile's predictions of a decode step (32 sequences, 16 adapters) may be off, as a 90 % "
    "interval over its draws; ? means unknown.",
    "A scenario selects a profile by fleet.gpu, adapters.base_model and fleet.engine, or names one in fleet.profile.",
    "One profile in full: loraplan profiles show NAME. For another GPU or model: loraplan profiles build --help",
)
_LONGEST = 16


def _table(rows: Sequence[ProfileRow]) -> Table:
    """Return a row for each profile; its name says most, so a narrow terminal can do without the columns next to it."""
    from reports.table import Table

    cells = []
    for row in rows:
        weights = "" if row.weights in ("bf16", "fp16") else f" {row.weights}"
        error = "?" if row.tpot_error is None else f"{100 * row.tpot_error:.0f} %"
        engine = re.split(r" ?[,(]", row.engine)[0].replace("not recorded", "-")
        device = row.gpu or row.device
        shown = device if len(device) <= _LONGEST else f"{device[: _LONGEST - 1]}…"
        cells.append([row.name, shown, f"{row.model}{weights}", str(row.gpus), engine, row.status, error])
    head = ["profile", "GPU", "model", "TP", "engine", "status", "TPOT ±"]
    return Table("Profiles", head, cells, words=(1, 2, 4, 5), optional=(1, 2, 4))


def show_profile(name: ProfileArgument, json: JsonOption = False) -> None:
    """Show a profile: its coefficients with units and sources, how it was made, and its errors.

    Example: loraplan profiles show h100-64gb/llama-3.1-8b/vllm-0.8.5
    """
    from reports.document import Report
    from reports.table import Table
    from sim.studies.profile_listing import coefficients, profile_row

    profile, digest = _named(name)
    row, numbers = profile_row(name, profile), coefficients(profile)
    sources = list(dict.fromkeys(each["source"] for each in numbers))
    cells = [
        [each["path"], _text(each["value"]), each["unit"], str(sources.index(each["source"]) + 1)] for each in numbers
    ]
    gpus = f"{row.gpus} GPUs of one replica" if row.gpus > 1 else "1 GPU"
    report = Report(
        kind="profiles show",
        name=name,
        data={
            **asdict(row),
            "description": profile.description,
            "sha256": digest,
            "coefficients": numbers,
            "hold_out": [line.model_dump(mode="json") for line in profile.hold_out],
            "draws": len(profile.draws),
            "provenance": profile.provenance.model_dump(mode="json") if profile.provenance else None,
        },
        terminal=[
            *(f"{name}  ({profile.stated}, sha256 {digest[:12]})", profile.description, ""),
            *(f"device  {row.device}, {gpus}", f"model   {row.model}, {row.weights}", f"engine  {row.engine}", ""),
            Table("Coefficients", ["number", "value", "unit", "source"], cells),
            *("", "sources", *(f"{place:3d}  {source}" for place, source in enumerate(sources, 1))),
            *("", f"how far off: {row.error}", f"made by: {row.made_by}"),
            *(f"{label}: {value}" for label, value in _facts(profile)),
        ],
    )
    finish(report, None, as_json=json, quiet=False)


def _named(name: str) -> tuple[Profile, str]:
    from sim.spec.profile import load_profile

    try:
        return load_profile(name)
    except ScenarioError as error:
        error.key = "NAME"
        raise


def _text(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list):
        return f"{len(value)} pairs, {value[0][0]:,.0f}: {value[0][1]:g} … {value[-1][0]:,.0f}: {value[-1][1]:g}"
    if isinstance(value, list):
        return f"{value[0]:g} … {value[len(value) // 2]:g} … {value[-1]:g} ({len(value)} quantiles)"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _facts(profile: Profile) -> list[tuple[str, str]]:
    facts = []
    if profile.conditions:
        conditions = profile.conditions
        facts += [("graphs", conditions.graphs), ("LoRA kernels", conditions.lora_backend)]
    if profile.provenance:
        for name, value in {**profile.provenance.device, "date": profile.provenance.date}.items():
            facts += [(name, value)] if value else []
        facts += [(f"median error, {name}", f"{error:.1%}") for name, error in profile.provenance.residuals.items()]
        if profile.provenance.calibration:
            facts.append(("calibrated by", profile.provenance.calibration))
    facts += [
        (f"held out, {line.what}", f"mean {line.mean:.1%}, 90 % below {line.p90:.1%} ({line.form}, {line.method})")
        for line in profile.hold_out
    ]
    draws = len(profile.draws)
    facts.append(("draws", f"{draws} for calibration intervals" if draws else "none: results carry no interval"))
    return facts


def build_profile(
    gpu: Annotated[str, typer.Option("--gpu", help="GPU, such as h100-80gb or a10g; another one: see --memory.")],
    model: Annotated[
        str, typer.Option("--model", help="Base model, such as llama-3.1-8b; or a config.json, or its folder.")
    ],
    tensor_parallel: Annotated[int, typer.Option("--tp", help="GPUs of one replica (tensor parallelism).", min=1)] = 1,
    engine: Annotated[str, typer.Option("--engine", help="vllm, sglang or trtllm.")] = "vllm",
    weights: Annotated[
        str, typer.Option("--weights", help="Format of the weights: bf16, fp8, fp8-block, int8, int4, nvfp4.")
    ] = "bf16",
    memory: Annotated[
        str | None,
        typer.Option(
            help="Another GPU by its data sheet, all three: --memory 24GB --bandwidth 600GB/s --flops 70T (FLOP/s with "
            "16 bits, without sparsity)."
        ),
    ] = None,
    bandwidth: Annotated[str | None, typer.Option(help="See --memory.", hidden=True)] = None,
    flops: Annotated[str | None, typer.Option(help="See --memory.", hidden=True)] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the model in a config.json.")] = None,
    out: Annotated[Path | None, typer.Option(help="The profile to write. Default: profiles/NAME.json.")] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Build a profile for a GPU and a model that were not measured together.

    From measured kernel tables where there are some (derived; needs the extra kernels): A100, H100, H200, B200, L40S.
    For another card, or a shape of attention that they lack, from the card's data sheet (assumed; a wide interval).
    LoRA's own costs are scaled from the one card that they were measured on.

    Example: loraplan profiles build --gpu a10g --model llama-2-7b
    """
    from calibrate.fit.command import check_profile_target
    from calibrate.fit.report import write_profile
    from calibrate.kernels.base_models import WEIGHTS, base_model_of, config_file
    from calibrate.kernels.cards import card_of, figures_of
    from calibrate.kernels.kernel_tables import Deployment, engine_of, other_version
    from calibrate.kernels.profile_from_kernels import build_command
    from calibrate.kernels.profile_from_kernels import build_profile as built_profile
    from reports.document import Report
    from reports.table import Table

    if weights not in WEIGHTS:
        raise InputError("unknown format of weights", key="--weights", got=weights, allowed=", ".join(WEIGHTS))
    card = card_of(gpu, **figures_of(memory, bandwidth, flops))
    deployment = Deployment(card, base_model_of(model, name), engine_of(engine), weights, tensor_parallel)
    given = None if config_file(model) is None else "config.json"
    built = built_profile(deployment, shlex.join(build_command(deployment, given)))
    profile, surrogate = built.profile, built.surrogate
    file = out or Path("profiles") / f"{profile.name}.json"
    check_profile_target(file)
    write_profile(profile, file)
    half, most = surrogate.quantile(0.5), surrogate.quantile(0.95)
    decoding, prompts = surrogate.median(decoding=True), surrogate.median(decoding=False)
    rows = [
        ["all steps", f"{half:.1%}", f"{most:.1%}"],
        ["decode steps", f"{decoding:.1%}", ""],
        ["steps with prompts", f"{prompts:.1%}", ""],
    ]
    sources = (f"{part}: {source}" for part, source in profile.sources.items())
    by_sheet = profile.status == "assumed"
    shape, lacking = deployment.model.shape, ""
    if by_sheet and card.system:
        lacking = (
            f"the kernel tables of {card.label} have no attention of {shape.heads} heads over {shape.kv_heads} KV "
            f"heads (--tp {tensor_parallel}): built from its data sheet instead, so the profile is assumed"
        )
    other = None if by_sheet else other_version(engine, profile.conditions.engine if profile.conditions else "")
    report = Report(
        kind="profiles build",
        name=profile.name,
        data={
            "name": profile.name,
            "file": str(file),
            "status": profile.status,
            "surrogate_error": {"median": half, "p95": most, "decode_median": decoding, "prompt_median": prompts},
            "error": profile.error,
            "sources": profile.sources,
        },
        terminal=[
            *(f"{profile.name}  ({profile.stated})", profile.description, ""),
            Table("Step costs", [f"step costs against {built.kernels}", "median", "95 % below"], rows),
            *("", *sources, "", *([f"how far off: {profile.error}", ""] if by_sheet else []), f"profile  {file}"),
        ],
        notes=[note for note in (other, lacking) if note],
    )
    finish(report, None, as_json=json, quiet=quiet)
    if not json:
        path = file if file.is_absolute() else f"./{file}"
        message(f"use it: loraplan run quickstart --set fleet.profile={path}", quiet)


def adjust_profile(
    name: ProfileArgument,
    anchor: Annotated[
        list[str],
        typer.Option(
            metavar="RUN",
            help="A measured run: a result of vllm bench serve, GuideLLM and the like (.json), or its numbers: "
            "concurrency=8,prompt=512,output=128 and means such as tpot=30ms,ttft=200ms. Repeatable.",
        ),
    ],
    scenario: Annotated[
        str | None, typer.Option(help="The server that was measured. Default: one without adapters.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="With --scenario: change a value of it. Repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The profile to write. Default: profiles/NAME.json.")] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Anchor a profile on a few measured numbers of your own card.

    Sets one factor on what decoding takes and one on what prompts take, so that the runs are predicted as they were
    measured. LoRA's own costs change only with a --scenario that has adapters.

    Example: loraplan profiles adjust l40s/llama-3.1-8b/vllm-0.24.0 --anchor bench.json
    """
    from calibrate.fit.anchor import SUFFIX
    from calibrate.fit.anchor import anchor as anchor_on
    from calibrate.fit.command import check_profile_target
    from calibrate.fit.load_correction import benchmark_load
    from calibrate.fit.report import anchor_report
    from sim.studies.fidelity.bench_files import is_bench_file

    before, _ = _named(name)
    files = [Path(each) for each in anchor if is_bench_file(Path(each))]
    stated = [each for each in anchor if Path(each) not in files]
    bench = BenchFiles(files, scenario, name, set_ or (), stated, "--anchor")
    bench.check_repeats()
    base = bench.base()
    loads = [benchmark_load(run, base, name) for run in bench.runs()]
    file = out or Path("profiles") / f"{before.name.removesuffix(SUFFIX)}{SUFFIX}.json"
    anchored = anchor_on(before, loads)
    check_profile_target(file)
    report = anchor_report(before, anchored, loads, files, file, command_line())
    finish(report, None, as_json=json, quiet=quiet)
