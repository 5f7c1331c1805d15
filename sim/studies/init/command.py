"""``loraplan init``: a first scenario from what the user has."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.log_options import BaseModelOption, ColumnsOption, trace_source
from sim.cli.options import QuietOption
from sim.cli.output import message, say
from sim.errors import InputError

if TYPE_CHECKING:
    from sim.spec.engine_flags.command_lines import Setting
    from sim.spec.sections.trace_source import Trace
    from sim.studies.init.draft import Draft

_OF_LOGS = ("--columns", "--base-model", "--adapter-from")
"""Options that say how a log is read."""


def one_command(given: list[str] | None) -> str | None:
    """Return the command line of an engine that was given; None: there is none.

    :raises InputError: for two, as ``--from-vllm`` and ``--from-sglang`` are one option.
    """
    if given and len(given) > 1:
        raise InputError(
            "more than one command line",
            key="--from-vllm, --from-sglang",
            got=" and ".join(given),
            allowed="one",
            hint="draft a scenario for each",
        )
    return given[0] if given else None


def init(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The scenario to write; it must not exist.")] = Path(
        "scenario.yaml"
    ),
    from_vllm: Annotated[
        list[str] | None,
        typer.Option(
            "--from-vllm", "--from-sglang", metavar="TEXT", help='A command line: "vllm serve MODEL --enable-lora".'
        ),
    ] = None,
    from_manifest: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A Kubernetes manifest, or values of the vLLM production stack.")
    ] = None,
    from_trace: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A trace or a log, whose requests the scenario replays; of a log, several."),
    ] = None,
    columns: ColumnsOption = None,
    base_model: BaseModelOption = None,
    adapter_from: Annotated[
        str | None,
        typer.Option("--adapter-from", metavar="REGEX", help="Find the adapter's name in a log's column.", hidden=True),
    ] = None,
    from_adapters: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder of PEFT adapters, with their ranks and sizes.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="The GPU, such as h100-80gb.")] = None,
    quiet: QuietOption = False,
) -> None:
    """Draft a scenario from a command line, a manifest, a log, a folder of adapters, or a few questions.

    Example: loraplan init --from-vllm "vllm serve MODEL --enable-lora"
    """
    from sim.spec.engine_flags.command_lines import Setting, read_command
    from sim.studies.init.draft import Draft, read_manifest, write_draft
    from sim.studies.vet.adapter_scenario import check_target

    check_target(out)
    draft = Draft(re.sub(r"[^A-Za-z0-9._-]+", "-", out.stem).strip("-._")[:64] or "scenario")
    if gpu is not None:
        draft.add([gpu_setting(gpu)])
    text = one_command(from_vllm)
    command = None if text is None else read_command(text)
    engines = [] if from_manifest is None else read_manifest(from_manifest)
    if from_trace:
        served = read_command(engines[0].words) if engines else command
        source = trace_source(from_trace, columns, base_model, adapter_from)
        model = served.model if served is not None and base_model is None else ""
        _add_trace(draft, source, model, out.parent, quiet)
    elif unread := [key for key, value in zip(_OF_LOGS, (columns, base_model, adapter_from), strict=True) if value]:
        raise InputError("says how a log is read, and there is none", key=unread[0], hint="give --from-trace too")
    if from_adapters is not None:
        _add_adapters(draft, from_adapters)
    if from_manifest is not None:
        first, *others = engines
        draft.add_command(read_command(first.words))
        if first.replicas is not None:
            draft.add([Setting("fleet.replicas", first.replicas, f"replicas in {from_manifest.name}")])
        if first.gpu is not None:
            draft.add([Setting("fleet.gpu", first.gpu, f"what {from_manifest.name} asks for")])
        if others:
            draft.comments.append(f"{from_manifest.name} starts {len(others)} more engines; this is the first.")
    if command is not None:
        draft.add_command(command)
    if not (command or from_manifest or from_trace or from_adapters):
        if not sys.stdin.isatty():
            allowed = "--from-vllm, --from-manifest, --from-trace or --from-adapters; on a terminal, questions"
            raise InputError("nothing to draft a scenario from", allowed=allowed)
        draft.add(_answers())
    for note in write_draft(draft, out):
        message(f"note: {note}", quiet)
    say(f"scenario {out}", f"next     loraplan run {out}")


def gpu_setting(name: str) -> Setting:
    """Return what ``--gpu`` means.

    :raises InputError: for an unknown GPU.
    """
    from sim.spec.engine_flags.command_lines import Setting
    from sim.spec.gpus import GPUS, gpu_named, unknown_gpu_hint

    found = gpu_named(name)
    if found is None:
        raise InputError("unknown GPU", key="--gpu", got=name, allowed=", ".join(GPUS), hint=unknown_gpu_hint(name))
    return Setting("fleet.gpu", found.name, "--gpu")


def _add_trace(draft: Draft, source: Trace, model: str, folder: Path, quiet: bool) -> None:
    """Take the requests of a log.

    :param model: the base model that is served; rows with its name are requests to it. ``folder``: of the scenario.
    """
    from sim.studies.trace.scenario import replay_lines
    from sim.traffic.traces.read import read_trace

    data = read_trace(source)
    if model in data.names:
        source = source.model_copy(update={"base_model": model})
        data = read_trace(source)
        draft.comments.append(f"Rows of {model} are requests to the base model, which this server serves.")
    for note in data.notes:
        message(f"note: {note}", quiet)
    draft.lines["workload"] = replay_lines(source, data, folder)
    draft.names_adapters = data.adapter is not None
    draft.comments.append(f"The requests are those of {', '.join(Path(file).name for file in source.files)}.")


def _add_adapters(draft: Draft, folder: Path) -> None:
    from sim.spec.engine_flags.command_lines import Setting
    from sim.studies.vet.adapter_scenario import adapter_lines
    from sim.training.files.census import known_model, take_census
    from sim.training.files.engine_checks import ServingTarget, is_served, served_base

    census = take_census(folder, lambda done, total: None)
    base = served_base(census.entries, ServingTarget(None, None, None))
    served = [entry for entry in census.entries if is_served(entry, base)]
    if not served:
        raise InputError("no adapter can be read", key="--from-adapters", got=str(folder))
    lines = adapter_lines(served)
    draft.lines["adapters"] = [line for line in lines if not (draft.names_adapters and line.startswith("  count:"))]
    draft.comments.append(f"The adapters are the {len(served):,} in {folder.name}, with the sizes of their files.")
    if model := known_model(base or ""):
        draft.add([Setting("adapters.base_model", model, "what the adapters name")])


def _answers() -> list[Setting]:
    """Ask for what a plan needs most, and return it."""
    from rich.prompt import FloatPrompt, IntPrompt, Prompt

    from sim.spec.engine_flags.command_lines import Setting
    from sim.spec.gpus import DEFAULT_GPU, GPUS
    from sim.spec.profile_choice import DEFAULT_MODEL
    from sim.spec.units import parse_rate, parse_seconds

    say("Enter takes the default. All answers can be changed in the file.")
    mine = "your answer"
    gpu = Prompt.ask("GPU of a replica", choices=list(GPUS), default=DEFAULT_GPU)
    model = Prompt.ask("Base model, as on Hugging Face or short", default=DEFAULT_MODEL)
    engine = Prompt.ask("Engine, perhaps with its version (vllm, vllm-0.12, sglang)", default="vllm")
    replicas = IntPrompt.ask("Replicas behind the router", default=1)
    count = IntPrompt.ask("Adapters that requests ask for", default=100)
    rank = IntPrompt.ask("Their LoRA rank", default=16)
    slots = IntPrompt.ask("Adapters in GPU memory at once (--max-loras, --max-loras-per-batch)", default=8)
    # vLLM's own default, as many as in GPU memory, loads nearly every adapter from storage.
    host = IntPrompt.ask("Adapters in host memory (--max-cpu-loras)", default=max(count, slots))
    rate = _quantity("Requests of all adapters, such as 6/s or 90/min", "6/s", parse_rate)
    cv = FloatPrompt.ask(
        "Burstiness: cv of the gaps between requests (1 for independent users, 4 is bursty)", default=1.0
    )
    prompt = IntPrompt.ask("Prompt tokens of a request, on average", default=300)
    output = IntPrompt.ask("Output tokens of a request, on average", default=120)
    ttft = _quantity("Time to the first token that 99 % of requests must keep", "1 s", parse_seconds)
    process = {"process": "poisson", "rate": rate} if cv == 1 else {"process": "gamma", "rate": rate, "cv": cv}
    values: dict[str, object] = {
        "fleet.gpu": gpu,
        "adapters.base_model": model,
        "fleet.engine": engine,
        "fleet.replicas": replicas,
        "adapters.count": count,
        "adapters.rank": rank,
        "cache.gpu.slots": slots,
        "cache.host.slots": host,
        "workload.arrivals": process,
        "workload.tokens.prompt": {"law": "lognormal", "mean": prompt, "p99": 6 * prompt},
        "workload.tokens.output": {"law": "lognormal", "mean": output, "p99": 6 * output},
        "slo.ttft_p99": ttft,
    }
    return [Setting(key, value, mine) for key, value in values.items()]


def _quantity(question: str, default: str, parse: Callable[[object], float]) -> str:
    """Ask until the answer is a quantity as scenarios have it."""
    from pydantic_core import PydanticCustomError
    from rich.prompt import Prompt

    while True:
        answer = Prompt.ask(question, default=default)
        try:
            parse(answer)
        except PydanticCustomError as error:
            say(f"Please enter {(error.context or {})['allowed']}")
        else:
            return answer
