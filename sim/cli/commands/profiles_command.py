"""``loraplan profiles``: which GPUs and models there are costs for, how good each is, and how to make one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.options import JsonOption, QuietOption, complete_profile
from sim.cli.output import make_folder, message, print_rich, rich_rows, say, say_json
from sim.errors import InputError, ScenarioError

if TYPE_CHECKING:
    from reports.table import Table
    from sim.spec.profile import Profile
    from sim.studies.profile_listing import ProfileRow


def list_profiles(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORD]...", help="Only profiles with these words, such as h100 qwen."),
    ] = None,
    gpu: Annotated[str, typer.Option(help="Show only profiles of this GPU, such as h100-80gb.")] = "",
    model: Annotated[str, typer.Option(help="Show only profiles of this base model, such as qwen2.5-14b.")] = "",
    status: Annotated[str, typer.Option(help="Show only profiles that are measured, derived or assumed.")] = "",
    folder: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="A folder of profiles. Default: the bundled ones.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List profiles: GPU, model, GPUs per replica, engine, status and error.

    Example: loraplan profiles list h100 qwen
    """
    from sim.studies.profile_listing import ProfileFilter
    from sim.studies.profile_listing import list_profiles as rows_of

    rows = rows_of(folder, ProfileFilter(tuple(words or ()), gpu, model, status))
    if json:
        say_json({"profiles": [asdict(row) for row in rows]})
        return
    print_rich(_table(rows))
    say("", *_LEGEND)


_LEGEND = (
    "TPOT ±: how far the profile's predictions of a decode step (32 sequences, 16 adapters) may be off, as a 90 % "
    "interval over its draws; ? means unknown.",
    "A scenario selects a profile by fleet.gpu, adapters.base_model and fleet.engine, or names one in fleet.profile.",
    "One profile in full: loraplan profiles show NAME. For another GPU or model: loraplan profiles build --help",
)
_LONGEST = 16


def _table(rows: Sequence[ProfileRow]) -> Table:
    """Return a row for each profile; its name says most, so a narrow terminal can do without the columns next to it."""
    cells = []
    for row in rows:
        weights = "" if row.weights in ("bf16", "fp16") else f" {row.weights}"
        error = "?" if row.tpot_error is None else f"{100 * row.tpot_error:.0f} %"
        engine = re.split(r" ?[,(]", row.engine)[0].replace("not recorded", "-")
        device = row.gpu or row.device
        shown = device if len(device) <= _LONGEST else f"{device[: _LONGEST - 1]}…"
        cells.append((row.name, shown, f"{row.model}{weights}", str(row.gpus), engine, row.status, error))
    head = ["profile", "GPU", "model", "TP", "engine", "status", "TPOT ±"]
    return rich_rows(head, cells, words=(1, 2, 4, 5), optional=(1, 2, 4))


def show_profile(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A bundled profile, or the path of one.", autocompletion=complete_profile),
    ],
    json: JsonOption = False,
) -> None:
    """Show a profile: its coefficients with units and sources, how it was made, and its errors.

    Example: loraplan profiles show h100-64gb/llama-3.1-8b/vllm-0.8.5
    """
    from sim.spec.profile import load_profile
    from sim.studies.profile_listing import coefficients, profile_row

    try:
        profile, digest = load_profile(name)
    except ScenarioError as error:
        error.key = "NAME"
        raise
    row, numbers = profile_row(name, profile), coefficients(profile)
    provenance = profile.provenance.model_dump(mode="json") if profile.provenance else None
    if json:
        say_json(
            {
                **asdict(row),
                "description": profile.description,
                "sha256": digest,
                "coefficients": [asdict(number) for number in numbers],
                "hold_out": [line.model_dump(mode="json") for line in profile.hold_out],
                "draws": len(profile.draws),
                "provenance": provenance,
            }
        )
        return
    say(f"{name}  ({profile.stated}, sha256 {digest[:12]})", profile.description, "")
    gpus = f"{row.gpus} GPUs of one replica" if row.gpus > 1 else "1 GPU"
    say(f"device  {row.device}, {gpus}", f"model   {row.model}, {row.weights}", f"engine  {row.engine}", "")
    sources = list(dict.fromkeys(number.source for number in numbers))
    rows = [(number.path, _text(number.value), number.unit, sources.index(number.source) + 1) for number in numbers]
    print_rich(rich_rows(("number", "value", "unit", "source"), rows))
    say("", "sources", *(f"{place:3d}  {source}" for place, source in enumerate(sources, 1)))
    say("", f"error: {row.error}", f"made by: {row.made_by}")
    for label, value in _facts(profile):
        say(f"{label}: {value}")


def _text(value: Any) -> str:
    """Return a value of a profile: a number, a word, quantiles, or a table of tokens and seconds."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return f"{len(value)} pairs, {value[0][0]:,.0f}: {value[0][1]:g} … {value[-1][0]:,.0f}: {value[-1][1]:g}"
    if isinstance(value, list):
        return f"{value[0]:g} … {value[len(value) // 2]:g} … {value[-1]:g} ({len(value)} quantiles)"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _facts(profile: Profile) -> list[tuple[str, str]]:
    """Return what a profile says about how it was made and held out, as (label, value)."""
    facts = []
    if profile.conditions:
        conditions = profile.conditions
        facts.append(("graphs", conditions.graphs))
        facts.append(("LoRA kernels", conditions.lora_backend))
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
    gpu: Annotated[str, typer.Option("--gpu", help="GPU, such as h100-80gb, h200, b200, a100-80gb, l40s.")],
    model: Annotated[
        str, typer.Option("--model", help="Base model, such as llama-3.1-8b; or a config.json, or its folder.")
    ],
    tensor_parallel: Annotated[int, typer.Option("--tp", help="GPUs of one replica (tensor parallelism).", min=1)] = 1,
    engine: Annotated[str, typer.Option("--engine", help="vllm, sglang or trtllm.")] = "vllm",
    weights: Annotated[
        str, typer.Option("--weights", help="Format of the weights: bf16, fp8, fp8-block, int8, int4, nvfp4.")
    ] = "bf16",
    name: Annotated[str | None, typer.Option("--name", help="Name of the model in a config.json.")] = None,
    out: Annotated[Path | None, typer.Option(help="The profile to write. Default: profiles/NAME.json.")] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Build a profile from measured kernel tables, for a GPU and a model that were not measured together.

    Needs the extra kernels. LoRA's own costs are scaled from the one card that they were measured on.

    Example: loraplan profiles build --gpu h100-80gb --model llama-3.1-8b
    """
    from calibrate.fit.fit_report import write_profile
    from calibrate.kernels.base_models import WEIGHTS, base_model_of, config_file
    from calibrate.kernels.cards import card_of
    from calibrate.kernels.kernel_tables import Deployment, engine_of, other_version
    from calibrate.kernels.profile_from_kernels import build_command
    from calibrate.kernels.profile_from_kernels import build_profile as built_profile

    if weights not in WEIGHTS:
        raise InputError("unknown format of weights", key="--weights", got=weights, allowed=", ".join(WEIGHTS))
    deployment = Deployment(card_of(gpu), base_model_of(model, name), engine_of(engine), weights, tensor_parallel)
    given = None if config_file(model) is None else "config.json"
    built = built_profile(deployment, shlex.join(build_command(deployment, given)))
    profile = built.profile
    file = out or Path("profiles") / f"{profile.name}.json"
    _check_out(file)
    write_profile(profile, file)
    other = other_version(engine, profile.conditions.engine if profile.conditions else "")
    if other:
        message(f"note: {other}", quiet)
    surrogate = built.surrogate
    if json:
        say_json(
            {
                "name": profile.name,
                "file": str(file),
                "status": profile.status,
                "surrogate_error": {
                    "median": surrogate.quantile(0.5),
                    "p95": surrogate.quantile(0.95),
                    "decode_median": surrogate.median(decoding=True),
                    "prompt_median": surrogate.median(decoding=False),
                },
                "error": profile.error,
                "sources": profile.sources,
            }
        )
        return
    say(f"{profile.name}  ({profile.stated})", profile.description, "")
    head = ("step costs against the kernel tables", "median", "95 % below")
    rows = [
        ("all steps", f"{surrogate.quantile(0.5):.1%}", f"{surrogate.quantile(0.95):.1%}"),
        ("decode steps", f"{surrogate.median(decoding=True):.1%}", ""),
        ("steps with prompts", f"{surrogate.median(decoding=False):.1%}", ""),
    ]
    print_rich(rich_rows(head, rows))
    say("", *(f"{part}: {source}" for part, source in profile.sources.items()), "", f"profile  {file}")
    path = file if file.is_absolute() else f"./{file}"
    message(f"use it: loraplan run quickstart --set fleet.profile={path}", quiet)


def _check_out(file: Path) -> None:
    """Refuse to write over something that is no profile."""
    from sim.cli.commands.fit_command import is_profile

    if file.is_dir():
        raise InputError("a folder, not a file", key="--out", got=str(file))
    if file.exists() and not is_profile(file):
        raise InputError("this file is no profile: it is not replaced", key="--out", got=str(file))
    make_folder(file.parent)
