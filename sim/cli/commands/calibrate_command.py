"""``loraplan calibrate steps``, ``loads`` and ``all``: measure a device."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sim.cli.options import MEASURED_SAMPLES, QuietOption, session_of, takes
from sim.cli.output import command_line, message, print_rich, progress_bar, rich_rows, say
from sim.errors import InputError, install_hint

if TYPE_CHECKING:
    from calibrate.samples import SampleLog

PROFILE = "profile.json"

ModelOption = Annotated[str, typer.Option(help="Base model whose shapes are timed, such as llama-3.1-8b or tiny.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, or cuda: the first visible GPU.")]
SamplesOption = Annotated[Path, typer.Option(help="Folder for the samples; an interrupted suite resumes there.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="A small grid: minutes, not an hour.")]
LayersOption = Annotated[
    int | None, typer.Option(help="Decoder layers to time; fewer are scaled. Default: all.", min=1)
]
BackendOption = Annotated[
    list[str] | None,
    typer.Option(help="grouped_mm, bmm, loop, triton, vllm; the first is fitted. Default: all that run."),
]
SamplesSeedOption = Annotated[int, typer.Option(help="Seed of the measuring order and the random batches.", min=0)]
OverwriteSamplesOption = Annotated[
    bool, typer.Option("--overwrite", help="Start over: remove the samples in the folder.")
]
WithinOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Stop after this time, such as 9min; exit with 1 if something is left. The same command continues.",
    ),
]
StepParts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PART]...",
        help="What to time, in this order: base-decode, lora-decode, prefill, backends, eager. Default: all, mixed.",
    ),
]
LoadParts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PART]...", help="What to time, in this order: whole, concurrent, stages. Default: all, mixed."
    ),
]


@dataclass(frozen=True)
class SamplingOptions:
    """The options of commands that time a device."""

    context: typer.Context
    model: ModelOption = "llama-3.1-8b"
    device: DeviceOption = "cuda"
    out: SamplesOption = Path("runs/calibration")
    quick: QuickOption = False
    seed: SamplesSeedOption = 1
    overwrite: OverwriteSamplesOption = False
    within: WithinOption = None
    quiet: QuietOption = False


@takes(SamplingOptions)
def steps(
    options: SamplingOptions, part: StepParts = None, layers: LayersOption = None, backend: BackendOption = None
) -> None:
    """Time forward steps of a model's shapes with LoRA, over batch size, adapters, ranks, slots and KV.

    Example: loraplan calibrate steps base-decode --quick
    """
    ends_at = _begin(options)
    _end_where_cut_short(_time_steps(options, ends_at, layers, backend, part), options.quiet)
    target = f"--model {options.model} --device {options.device} --out {options.out}"
    message(f"next: loraplan calibrate loads {target}", options.quiet)


@takes(SamplingOptions)
def loads(options: SamplingOptions, part: LoadParts = None) -> None:
    """Time adapter loads in stages: from disk, to the GPU, into slots, one and several at a time.

    Example: loraplan calibrate loads --quick
    """
    ends_at = _begin(options)
    _end_where_cut_short(_time_loads(options, ends_at, part), options.quiet)
    message(f"next: loraplan calibrate fit {options.out} --out {options.out / PROFILE}", options.quiet)


@takes(SamplingOptions)
def everything(options: SamplingOptions, layers: LayersOption = None) -> None:
    """Time steps and loads, and fit a profile to them: OUT/profile.json.

    Example: loraplan calibrate all --quick
    """
    from sim.cli.commands.fit_command import FitOptions, check_profile_target, fit_to_folder

    ends_at = _begin(options)
    profile = options.out / PROFILE
    if options.overwrite:
        profile.unlink(missing_ok=True)  # it would be taken for one of the new samples
    _end_where_cut_short(_time_steps(options, ends_at, layers, None), options.quiet)
    _end_where_cut_short(_time_loads(options, ends_at), options.quiet)
    fit_to_folder(options.out, FitOptions(profile, quiet=options.quiet), check_profile_target(profile))
    message(f"next: loraplan run quickstart --set fleet.profile={profile}", options.quiet)


def _begin(options: SamplingOptions) -> float:
    """Return when timing has to end, on ``time.monotonic``."""
    _need_torch()
    session_of(options.context).kept = MEASURED_SAMPLES
    return math.inf if options.within is None else time.monotonic() + _seconds(options.within)


def _seconds(within: str) -> float:
    from pydantic_core import PydanticCustomError

    from sim.spec.units import parse_seconds

    try:
        return parse_seconds(within)
    except PydanticCustomError as error:
        raise InputError(str(error), key="--within", got=within, allowed="a time such as 9min or 540s") from None


def _time_steps(
    options: SamplingOptions,
    ends_at: float,
    layers: int | None,
    backend: list[str] | None,
    part: list[str] | None = None,
) -> SampleLog:
    from calibrate.device.devices import open_device
    from calibrate.steps.step_timing import StepOptions, default_backends, time_steps

    target = open_device(options.device)
    backends = tuple(backend or default_backends(target))
    grid = StepOptions(
        options.model,
        layers,
        backends,
        options.quick,
        options.seed,
        parts=tuple(part or ()),
        ends_at=ends_at,
    )
    with progress_bar(options.quiet, "timing steps", lines=True) as progress:
        log = time_steps(
            grid, target, options.out, command=command_line(), overwrite=options.overwrite, progress=progress
        )
    _print_samples(log, "steps", options.quiet)
    return log


def _time_loads(options: SamplingOptions, ends_at: float, part: list[str] | None = None) -> SampleLog:
    from calibrate.device.devices import open_device
    from calibrate.loads.load_timing import LoadOptions, time_loads

    target = open_device(options.device)
    suite = LoadOptions(options.model, options.quick, options.seed, parts=tuple(part or ()), ends_at=ends_at)
    with progress_bar(options.quiet, "timing loads", lines=True) as progress:
        log = time_loads(
            suite, target, options.out, command=command_line(), overwrite=options.overwrite, progress=progress
        )
    _print_samples(log, "loads", options.quiet)
    return log


def _end_where_cut_short(log: SampleLog, quiet: bool) -> None:
    if log.cut_short:
        message("time is up (--within): the same command continues with what is left", quiet)
        raise typer.Exit(1)


def _print_samples(log: SampleLog, suite: Literal["steps", "loads"], quiet: bool) -> None:
    """Print what was timed, and on stderr what may have disturbed it."""
    from calibrate.summary import ceilings_line, sample_rows

    head, rows = sample_rows(log)
    print_rich(rich_rows(head, rows))
    say("", *((ceilings_line(log),) if suite == "steps" else ()))
    say(f"samples  {log.folder / f'{suite}.parquet'}")
    for flag in log.manifest.get("flags", ()):
        message(f"note: {flag}", quiet)


def _need_torch() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "safetensors") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed",
            key="calibrate",
            hint=install_hint("gpu"),
        )
