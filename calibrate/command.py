"""``loraplan calibrate steps``, ``loads`` and ``all``: measure a device. ``GROUPS`` has all commands of the package."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calibrate.fit import command as fitting
from calibrate.kernels import command as profiles
from calibrate.serve import command as serving
from sim.cli.options import MEASURED_SAMPLES, QuietOption, session_of, takes
from sim.cli.output import command_line, finish, message, progress_bar
from sim.errors import InputError, install_hint

if TYPE_CHECKING:
    from calibrate.measure import Sampling
    from calibrate.samples import SampleLog

PROFILE = "profile.json"

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
LayersOption = Annotated[
    int | None, typer.Option(help="Decoder layers to time; fewer are scaled. Default: all.", min=1)
]
BackendOption = Annotated[
    list[str] | None,
    typer.Option(help="grouped_mm, bmm, loop, triton, vllm; the first is fitted. Default: all that run."),
]


@dataclass(frozen=True)
class SamplingOptions:
    """The options of commands that time a device."""

    context: typer.Context
    model: Annotated[str, typer.Option(help="Base model whose shapes are timed, such as llama-3.1-8b or tiny.")] = (
        "llama-3.1-8b"
    )
    device: Annotated[str, typer.Option(help="cpu, or cuda: the first visible GPU.")] = "cuda"
    out: Annotated[Path, typer.Option(help="Folder for the samples; an interrupted suite resumes there.")] = Path(
        "runs/calibration"
    )
    quick: Annotated[bool, typer.Option("--quick", help="A small grid: minutes, not an hour.")] = False
    seed: Annotated[int, typer.Option(help="Seed of the measuring order and the random batches.", min=0)] = 1
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start over: remove the samples in the folder.")] = (
        False
    )
    within: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Stop after this time, such as 9min; exit with 1 if something is left. The same command continues.",
        ),
    ] = None
    quiet: QuietOption = False

    def begin(self) -> float:
        """Return when timing has to end, on ``time.monotonic``."""
        from importlib.util import find_spec

        from sim.spec.units import parse_seconds

        missing = [name for name in ("torch", "safetensors") if find_spec(name) is None]
        if missing:
            raise InputError(
                f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed",
                key="calibrate",
                hint=install_hint("gpu"),
            )
        session_of(self.context).kept = MEASURED_SAMPLES
        if self.within is None:
            return math.inf
        try:
            return time.monotonic() + parse_seconds(self.within)
        except ValueError as error:
            allowed = "a time such as 9min or 540s"
            raise InputError(str(error), key="--within", got=self.within, allowed=allowed) from None

    def sampling(self, ends_at: float, parts: list[str] | None = None) -> Sampling:
        """Return how a suite is timed."""
        from calibrate.measure import Sampling

        return Sampling(
            quick=self.quick, seed=self.seed, parts=tuple(parts or ()), ends_at=ends_at, overwrite=self.overwrite
        )


@takes(SamplingOptions)
def steps(
    options: SamplingOptions, part: StepParts = None, layers: LayersOption = None, backend: BackendOption = None
) -> None:
    """Time forward steps of a model's shapes with LoRA, over batch size, adapters, ranks, slots and KV.

    Example: loraplan calibrate steps base-decode --quick
    """
    _time_steps(options, options.begin(), layers, backend, part)
    target = f"--model {options.model} --device {options.device} --out {options.out}"
    message(f"next: loraplan calibrate loads {target}", options.quiet)


@takes(SamplingOptions)
def loads(options: SamplingOptions, part: LoadParts = None) -> None:
    """Time adapter loads in stages: from disk, to the GPU, into slots, one and several at a time.

    Example: loraplan calibrate loads --quick
    """
    _time_loads(options, options.begin(), part)
    message(f"next: loraplan calibrate fit {options.out} --out {options.out / PROFILE}", options.quiet)


@takes(SamplingOptions)
def everything(options: SamplingOptions, layers: LayersOption = None) -> None:
    """Time steps and loads, and fit a profile to them: OUT/profile.json.

    Example: loraplan calibrate all --quick
    """
    ends_at = options.begin()
    profile = options.out / PROFILE
    if options.overwrite:
        profile.unlink(missing_ok=True)  # it would be taken for one of the new samples
    _time_steps(options, ends_at, layers)
    _time_loads(options, ends_at)
    fitting.check_profile_target(profile)
    finish(fitting.fitted_to_samples(options.out, None, profile), None, as_json=False, quiet=options.quiet)
    message(f"next: loraplan run quickstart --set fleet.profile={profile}", options.quiet)


def _time_steps(
    options: SamplingOptions,
    ends_at: float,
    layers: int | None,
    backend: list[str] | None = None,
    parts: list[str] | None = None,
) -> None:
    from calibrate.device.devices import open_device
    from calibrate.steps.step_timing import default_backends, time_steps

    device = open_device(options.device)
    with progress_bar(options.quiet, "timing steps", lines=True) as progress:
        log = time_steps(
            options.model,
            device,
            options.out,
            options.sampling(ends_at, parts),
            layers=layers,
            backends=tuple(backend or default_backends(device)),
            command=command_line(),
            progress=progress,
        )
    _show(log, options.quiet)


def _time_loads(options: SamplingOptions, ends_at: float, parts: list[str] | None = None) -> None:
    from calibrate.device.devices import open_device
    from calibrate.loads.load_timing import time_loads

    device, sampling = open_device(options.device), options.sampling(ends_at, parts)
    with progress_bar(options.quiet, "timing loads", lines=True) as progress:
        log = time_loads(options.model, device, options.out, sampling, command=command_line(), progress=progress)
    _show(log, options.quiet)


def _show(log: SampleLog, quiet: bool) -> None:
    """Print what was timed.

    :raises typer.Exit: where the time was up before all was.
    """
    from calibrate.measure import samples_report

    finish(samples_report(log), None, as_json=False, quiet=quiet)
    if log.cut_short:
        message("time is up (--within): the same command continues with what is left", quiet)
        raise typer.Exit(1)


GROUPS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "profiles": (
        "List, show and build profiles.\n\nExample: loraplan profiles list h100 qwen",
        {
            "list": profiles.list_profiles,
            "show": profiles.show_profile,
            "build": profiles.build_profile,
            "adjust": profiles.adjust_profile,
        },
    ),
    "calibrate": (
        "Measure a GPU or a server, and write profiles from the measurements.\n\nExample: loraplan calibrate all "
        "--quick",
        {"all": everything, "steps": steps, "loads": loads, "fit": fitting.fit, "serve": serving.serve},
    ),
}
"""Groups of commands by name: what a group's help says, and its commands by name."""
