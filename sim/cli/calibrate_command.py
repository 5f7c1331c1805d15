"""``loraplan calibrate steps``, ``loads`` and ``all``: measure a device."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sim.cli.options import QuietOption
from sim.cli.output import message, print_rich, progress_bar, rich_rows
from sim.errors import InputError

if TYPE_CHECKING:
    from calibrate.samples import SampleLog

PROFILE = "profile.json"

ModelOption = Annotated[str, typer.Option(help="Base model whose shapes are timed, such as llama-3.1-8b or tiny.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, or cuda: the first visible GPU.")]
SamplesOption = Annotated[Path, typer.Option(help="Folder for the samples; one with samples goes on where it stopped.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="A small grid, in about two minutes for steps and loads.")]
LayersOption = Annotated[int | None, typer.Option(help="Decoder layers to time; unset: all. Fewer are scaled.", min=1)]
BackendOption = Annotated[
    list[str] | None, typer.Option(help="grouped_mm, bmm, loop, triton; the first is fitted. Unset: all that run.")
]
SamplesSeedOption = Annotated[int, typer.Option(help="Of the order of visits and the random batches.", min=0)]
AnewOption = Annotated[bool, typer.Option("--overwrite", help="Start anew: remove the samples in the folder.")]


def steps(
    model: ModelOption = "llama-3.1-8b",
    device: DeviceOption = "cuda",
    out: SamplesOption = Path("runs/calibration"),
    layers: LayersOption = None,
    backend: BackendOption = None,
    quick: QuickOption = False,
    seed: SamplesSeedOption = 1,
    overwrite: AnewOption = False,
    quiet: QuietOption = False,
) -> None:
    """Time forward steps of a model's shapes with LoRA, over batch size, adapters, ranks, slots and KV."""
    _need_torch()
    _time_steps(model, device, out, layers, backend, quick=quick, seed=seed, overwrite=overwrite, quiet=quiet)
    message(f"next: loraplan calibrate loads --model {model} --device {device} --out {out}", quiet)


def loads(
    model: ModelOption = "llama-3.1-8b",
    device: DeviceOption = "cuda",
    out: SamplesOption = Path("runs/calibration"),
    quick: QuickOption = False,
    seed: SamplesSeedOption = 1,
    overwrite: AnewOption = False,
    quiet: QuietOption = False,
) -> None:
    """Time adapter loads in stages: from disk, to the GPU, into slots, one and several at a time."""
    _need_torch()
    _time_loads(model, device, out, quick=quick, seed=seed, overwrite=overwrite, quiet=quiet)
    message(f"next: loraplan calibrate fit {out} --out {out / PROFILE}", quiet)


def everything(
    model: ModelOption = "llama-3.1-8b",
    device: DeviceOption = "cuda",
    out: SamplesOption = Path("runs/calibration"),
    layers: LayersOption = None,
    quick: QuickOption = False,
    seed: SamplesSeedOption = 1,
    overwrite: AnewOption = False,
    quiet: QuietOption = False,
) -> None:
    """Time steps and loads, and fit a profile to them: OUT/profile.json."""
    from sim.cli.fit_command import fit

    _need_torch()
    if overwrite:
        (out / PROFILE).unlink(missing_ok=True)  # it would be taken for one of the new samples
    _time_steps(model, device, out, layers, None, quick=quick, seed=seed, overwrite=overwrite, quiet=quiet)
    _time_loads(model, device, out, quick=quick, seed=seed, overwrite=overwrite, quiet=quiet)
    fit(out, out=out / PROFILE, quiet=quiet)
    message(f"next: loraplan run quickstart --set fleet.profile={out / PROFILE}", quiet)


def _time_steps(
    model: str, device: str, out: Path, layers: int | None, backend: list[str] | None, *, quick: bool, seed: int,
    overwrite: bool, quiet: bool,
) -> None:  # fmt: skip
    from calibrate.device.devices import open_device
    from calibrate.steps.step_timing import StepOptions, default_backends, time_steps

    target = open_device(device)
    options = StepOptions(model, layers, tuple(backend or default_backends(target)), quick, seed)
    with progress_bar(quiet, "timing steps") as progress:
        log = time_steps(options, target, out, command=_command(), overwrite=overwrite, progress=progress)
    _tell(log, "steps", quiet)


def _time_loads(model: str, device: str, out: Path, *, quick: bool, seed: int, overwrite: bool, quiet: bool) -> None:
    from calibrate.device.devices import open_device
    from calibrate.loads.load_timing import LoadOptions, time_loads

    target, options = open_device(device), LoadOptions(model, quick, seed)
    with progress_bar(quiet, "timing loads") as progress:
        log = time_loads(options, target, out, command=_command(), overwrite=overwrite, progress=progress)
    _tell(log, "loads", quiet)


def _tell(log: SampleLog, suite: Literal["steps", "loads"], quiet: bool) -> None:
    """Print what was timed, and on stderr what may have disturbed it."""
    from calibrate.summary import ceilings_line, sample_rows

    head, rows = sample_rows(log)
    print_rich(rich_rows(head, rows))
    typer.echo(f"\n{ceilings_line(log)}" if suite == "steps" else "")
    typer.echo(f"samples  {log.folder / f'{suite}.parquet'}")
    for flag in log.manifest.get("flags", ()):
        message(f"note: {flag}", quiet)


def _need_torch() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "safetensors") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed",
            key="calibrate",
            hint="pip install 'loraplan[gpu]'",
        )


def _command() -> str:
    return shlex.join(["loraplan", *sys.argv[1:]])
