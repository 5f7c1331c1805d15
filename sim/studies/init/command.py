"""``loraplan init``: a first scenario from what the user has."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.log_options import BaseModelOption, ColumnsOption, HiddenAdapterFromOption, trace_source
from sim.cli.options import QuietOption, session_of
from sim.cli.output import message, prompt, say
from sim.errors import InputError

if TYPE_CHECKING:
    from sim.spec.engine_flags.command_lines import ReadCommand, Setting
    from sim.spec.sections.trace_source import Trace
    from sim.studies.init.draft import Draft
    from sim.studies.init.manifest import FoundEngine
    from sim.studies.init.questions import Question

_OF_LOGS = ("--columns", "--base-model", "--adapter-from", "--skip-bad")
"""Options that say how a log is read."""
_ROUTING = {
    "roundrobin": "round-robin",
    "session": "production-stack-session",
    "prefixaware": "production-stack-prefixaware",
}
"""Routing logics of the production stack that can be simulated."""
_INPUT = "standard input"
_LONGEST_LINE = 10_000


def one_command(given: list[str] | None) -> str | None:
    """Return the command line of an engine that was given; None: there is none.

    :raises InputError: for two, as ``--from-vllm`` and ``--from-sglang`` are one option.
    """
    if given and len(given) > 1:
        raise InputError(
            "more than one command line",
            key="--from-vllm, --from-sglang",
            got=len(given),
            allowed="1",
            hint="draft a scenario for each",
        )
    return given[0] if given else None


def init(
    context: typer.Context,
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
        list[Path] | None,
        typer.Option(
            "--from-manifest",
            "--from-epp",
            metavar="FILE",
            help="A Kubernetes manifest, values of the vLLM production stack, or an EndpointPickerConfig of llm-d.",
        ),
    ] = None,
    from_trace: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A trace or a log, whose requests the scenario replays; of a log, several."),
    ] = None,
    columns: ColumnsOption = None,
    base_model: BaseModelOption = None,
    adapter_from: HiddenAdapterFromOption = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that can't be used, and count them.", hidden=True)
    ] = False,
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
    from sim.studies.deploy.picker import is_picker, read_picker
    from sim.studies.init.draft import EXAMPLE, Draft, write_draft
    from sim.studies.init.manifest import read_manifest
    from sim.studies.vet.adapter_scenario import check_target

    check_target(out)
    draft = Draft(_name_of(out))
    if gpu is not None:
        draft.add([gpu_setting(gpu)])
    text = one_command(from_vllm)
    pickers = [file for file in from_manifest or () if is_picker(file)]
    manifests = [file for file in from_manifest or () if file not in pickers]
    if len(pickers) > 1 or len(manifests) > 1:
        got = " and ".join(map(str, pickers if len(pickers) > 1 else manifests))
        raise InputError("more than one of a kind", key="--from-manifest", got=got, allowed="one, and one --from-epp")
    if manifests and text is not None:
        got = f"a command line and {manifests[0]}"
        raise InputError("both start an engine", key="--from-vllm, --from-manifest", got=got, allowed="one of them")
    engines = read_manifest(manifests[0]) if manifests else []
    words = engines[0].words if engines else text
    command = None if words is None else read_command(words)
    of_log = (columns, base_model, adapter_from, skip_bad)
    if from_trace:
        source = trace_source(from_trace, columns, base_model, adapter_from, skip_bad=skip_bad)
        model = command.model if command is not None and base_model is None else ""
        _add_trace(draft, source, model, out.parent, quiet)
    elif unread := [key for key, value in zip(_OF_LOGS, of_log, strict=True) if value]:
        raise InputError("says how a log is read, and there is none", key=unread[0], hint="give --from-trace too")
    if from_adapters is not None:
        _add_adapters(draft, from_adapters, command)
    if command is not None:
        if engines:
            _add_pods(draft, engines[0], command, manifests[0].name)
        draft.add_command(command)
    if len(engines) > 1:
        draft.comments.append(f"{manifests[0].name} starts {len(engines)} engines; this is the first.")
    for picker in pickers:
        settings, comments = read_picker(picker)
        draft.add([*settings, Setting("fleet.replicas", 2, EXAMPLE)])
        draft.comments += comments
    if not (command or from_manifest or from_trace or from_adapters):
        if not (_on_terminal() and sys.stdout.isatty()):
            allowed = "--from-vllm, --from-manifest, --from-trace or --from-adapters; on a terminal, questions"
            raise InputError(
                "nothing to draft a scenario from", allowed=allowed, hint="loraplan plan --ask reads answers"
            )
        _ask(draft, quiet)
    notes = write_draft(draft, out)
    say(f"scenario {out}")
    for note in notes:
        message(f"note: {note}", quiet)
    session_of(context).kept = f"{out} is kept"
    if not any(key.startswith("plan.") for key in draft.settings):
        say(f"next     {draft.next_step(out)}")
    elif typer.confirm("Plan the fleet now?", default=True):
        arguments = ["plan", str(out), *(["--quiet"] if quiet else [])]
        sys.argv[1:] = arguments  # the command that its results are kept with
        root: Any = context.find_root()
        code = root.command.main(arguments, prog_name="loraplan", standalone_mode=False, obj=root.obj)
        raise typer.Exit(code if isinstance(code, int) else 0)
    else:
        say(f"next     loraplan plan {out}")


def ask_for_scenario(out: Path, quiet: bool) -> None:
    """Write the scenario that ``loraplan plan --ask`` plans, unless the file exists."""
    from sim.studies.init.draft import Draft, write_draft
    from sim.studies.vet.adapter_scenario import check_target

    check_target(out, f"loraplan plan {out} plans it; or remove it, or give another path")
    draft = Draft(_name_of(out), made_by="loraplan plan --ask")
    _ask(draft, quiet)
    for note in write_draft(draft, out):
        message(f"note: {note}", quiet)
    message(f"scenario {out}", quiet)


def _name_of(out: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", out.stem).strip("-._")[:64] or "scenario"


def _on_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _ask(draft: Draft, quiet: bool) -> None:
    """Add answers to a draft: from a terminal, or else from the lines of standard input, where none is the default.

    :raises InputError: for a wrong line of standard input; a terminal is asked again.
    """
    from sim.studies.init.questions import ask

    if _on_terminal():
        message("Enter takes the value in brackets. All of them can be changed in the file.", quiet)
        ask(draft, lambda asked, default: prompt(asked.text, default), lambda error: message(str(error), False))
        return
    lines: list[str] = []
    missing: list[str] = []

    def answer(question: Question, default: str) -> str:
        lines.append(_line_of_input(len(lines) + 1))
        if not lines[-1].strip():
            missing.append(f"{question.keys[0]} {default}")
        return lines[-1]

    def refuse(error: InputError) -> None:
        error.file, error.line = _INPUT, len(lines)
        raise error

    ask(draft, answer, refuse)
    if _line_of_input(len(lines) + 1).strip():
        allowed = f"{len(lines)} lines"
        raise InputError("more answers than questions", file=_INPUT, line=len(lines) + 1, allowed=allowed)
    if missing:
        message(f"note: defaults used: {', '.join(missing)}", quiet)


def _line_of_input(number: int) -> str:
    try:
        return "" if sys.stdin is None else sys.stdin.readline(_LONGEST_LINE)
    except UnicodeDecodeError:
        raise InputError("not text", file=_INPUT, line=number) from None


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
    draft.names = None if data.adapter is None else data.names
    draft.comments.append(f"The requests are those of {', '.join(Path(file).name for file in source.files)}.")


def _add_pods(draft: Draft, engine: FoundEngine, command: ReadCommand, file: str) -> None:
    """Take what a manifest says of the pods that a command line runs in."""
    from sim.spec.engine_flags.command_lines import Setting

    servers = command.value("fleet.replicas") or 1
    used = servers * (command.value("fleet.tensor_parallel") or 1)
    scales = engine.most is not None and engine.most != (engine.replicas or 1)
    if engine.replicas is not None:
        said = f"{'the fewest ' if scales else ''}replicas in {file}"
        said += f", each of {servers} with data parallelism" if servers > 1 else ""
        draft.add([Setting("fleet.replicas", engine.replicas * servers, said)])
    if scales:
        said = f"Not translated: {file} scales from {engine.replicas or 1} to {engine.most} replicas"
        draft.comments.append(f"{said}: fleet.autoscale simulates an autoscaler.")
    if engine.prefill:
        draft.comments.append(
            f"Not translated: prefill in {file}: roles of fleet.pools simulate prefill and decode apart."
        )
    if engine.routing:
        policy = _ROUTING.get(engine.routing)
        said = f"the routing logic {engine.routing} in {file}"
        if policy is None:
            draft.comments.append(f"Not translated: {said}: no router.policy is like it; round-robin is simulated.")
        else:
            draft.add([Setting("router.policy", policy, said)])
    if engine.gpu is not None:
        draft.add([Setting("fleet.gpu", engine.gpu, f"what {file} asks for")])
    if engine.gpus and engine.gpus != used:
        said = f"GPUs of a pod in {file}: {engine.gpus}; tensor × data parallelism of its command: {used}"
        draft.comments.append(f"{said}. Costs follow fleet.gpus_per_replica.")
        draft.add([Setting("fleet.gpus_per_replica", engine.gpus // servers, f"of a pod in {file}, for costs")])


def _add_adapters(draft: Draft, folder: Path, command: ReadCommand | None) -> None:
    """Take the adapters of a folder, which a command line serves."""
    from sim.spec.engine_flags.command_lines import Setting
    from sim.spec.engine_flags.options import vllm_rank
    from sim.spec.engines import nearest_version
    from sim.studies.vet.adapter_scenario import adapter_lines
    from sim.training.files.census import Copies, known_model, take_census
    from sim.training.files.engine_checks import ServingTarget, check_census, is_served, served_base

    census = take_census(folder, lambda done, total: None)
    base = served_base(census.entries, ServingTarget(None, None, None))
    served = [entry for entry in census.entries if is_served(entry, base)]
    if not served:
        raise InputError("no adapter can be read", key="--from-adapters", got=str(folder))
    lines = adapter_lines(served)
    draft.lines["adapters"] = lines if draft.names is None else lines[1:]
    said = f"The adapters are the {len(served):,} in {folder.name}, with the sizes of their files."
    if draft.names is not None:
        both = len(set(draft.names) & {name for entry in served for name in (entry.folder, Path(entry.folder).name)})
        said = f"The log names {len(draft.names):,} adapters, {both:,} of them in {folder.name}. They get the ranks "
        said += f"and sizes of its {len(served):,} adapters by share, not by name."
    draft.comments.append(said)
    limit = None if command is None else command.value("adapters.rank")
    if command is not None:
        row = nearest_version(command.engine)
        engine = command.engine if row.simulated else row.preset
        for concern in check_census(census, ServingTarget(engine, limit), Copies((), 0)):
            if concern.level == "refused":
                draft.comments.append(f"{command.name} refuses {concern.count:,} of these adapters: {concern.words}.")
    if command is not None and limit:
        largest = max(entry.rank for entry in served)
        if limit > (vllm_rank(largest) if command.name == "vLLM" else largest):
            said = f"Slots are for the largest rank, {largest}. Those of --max-lora-rank {limit} take more memory"
            draft.comments.append(f"{said}: adapters.max_rank: {limit}.")
    if model := known_model(base or ""):
        draft.add([Setting("adapters.base_model", model, "what the adapters name")])
