"""The ``loraplan`` command: the only package that prints or exits.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from calibrate.command import GROUPS
from sim.cli.commands import (
    inspect_commands,
    ui_command,
)
from sim.cli.help import CommandHelp, GroupHelp
from sim.cli.options import Session
from sim.cli.output import message, say
from sim.cli.streams import check_surroundings, guarded_streams, working_folder_exists
from sim.errors import InputError, LoraplanError, did_you_mean
from sim.studies.cache import command as cache_command
from sim.studies.compare import command as compare_command
from sim.studies.fidelity import command as fidelity_command
from sim.studies.init import command as init_command
from sim.studies.observe import command as observe_command
from sim.studies.plan import command as plan_command
from sim.studies.run import command as run_command
from sim.studies.trace import command as trace_command
from sim.studies.vet import command as vet_command

INTERRUPTED = 130

ANSWER, SCENARIOS, OBSERVE, COSTS = (
    "Answer a question",
    "Scenarios",
    "Traces and adapters of yours",
    "Costs of a GPU, a model and an engine",
)
"""Groups of commands in ``--help``."""


app = typer.Typer(
    name="loraplan",
    cls=GroupHelp,
    help="Capacity planning for multi-LoRA LLM serving.\n\nExample: loraplan run quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for panel, members in {
    ANSWER: (
        run_command.run,
        run_command.sweep,
        plan_command.plan,
        compare_command.compare,
        inspect_commands.report,
        ui_command.ui,
    ),
    SCENARIOS: (init_command.init, inspect_commands.check, inspect_commands.schema),
    OBSERVE: (
        trace_command.trace,
        observe_command.observe,
        cache_command.cache,
        vet_command.adapters,
        vet_command.vet,
    ),
    COSTS: (fidelity_command.fidelity,),
}.items():
    for command in members:
        app.command(cls=CommandHelp, rich_help_panel=panel)(command)
_GROUPS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "scenarios": (
        "List and copy the bundled scenarios.\n\nExample: loraplan scenarios list",
        {"list": inspect_commands.list_scenarios, "copy": inspect_commands.copy_bundled},
    ),
    **GROUPS,
}
for name, (about, named) in _GROUPS.items():
    group = typer.Typer(cls=GroupHelp, help=about, no_args_is_help=True)
    for member, call in named.items():
        group.command(member, cls=CommandHelp)(call)
    app.add_typer(group, name=name, rich_help_panel=COSTS if name in GROUPS else SCENARIOS)


def version(value: bool) -> None:
    """Print the version and stop."""
    if value:
        from sim.version import __version__, build

        say(f"loraplan {__version__} ({build()})")
        raise typer.Exit


@app.callback()
def root(
    version_: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks. Works with any command.")] = False,
    confined: Annotated[
        bool,
        typer.Option(
            "--confined",
            help="For scenarios that you don't trust: refuse files outside their folder. Works with any command.",
        ),
    ] = False,
) -> None:
    """Capacity planning for multi-LoRA LLM serving.

    Example: loraplan run quickstart
    """


def main() -> None:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGTERM, _stop)
    # Taken out here, because they may stand behind any command.
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--debug", "--confined")]
    debug = "--debug" in sys.argv[1:] or bool(os.environ.get("LORAPLAN_DEBUG"))
    with guarded_streams():
        code = _exit_code(arguments, debug, "--confined" in sys.argv[1:])
    sys.exit(code)


def _stop(number: int, frame: object) -> None:
    """End as after Ctrl-C: what is finished is kept, and no worker is left behind."""
    raise KeyboardInterrupt


def _exit_code(arguments: list[str], debug: bool, confined: bool) -> int:
    session = Session(confined)
    try:
        check_surroundings()
        code = app(arguments, prog_name="loraplan", standalone_mode=False, obj=session)
        sys.stdout.flush()  # here, so that a disk that is full is an error of the command
        if code == INTERRUPTED:  # newer typer makes an exit code of Ctrl-C, older ones raise
            return _interrupted(session)
        return code if isinstance(code, int) else 0
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted(session)
    except Exception as error:
        if debug and not hasattr(error, "show"):
            raise
        return _explain(error)


def _interrupted(session: Session) -> int:
    message(session.ended or f"interrupted: {session.kept}", quiet=False)
    return INTERRUPTED


def _explain_usage(error: Any) -> None:
    """Say what is wrong with a command line, what was probably meant, and where its options are listed."""
    from sim.spec.engine_flags.options import flag_hint

    option, known = getattr(error, "option_name", None), getattr(error, "possibilities", None)
    command = error.ctx.command_path if getattr(error, "ctx", None) is not None else "loraplan"
    problem = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":  # of click, or of typer's own copy
        for line in problem.splitlines():
            message(line, quiet=False)
        return
    if option and (hint := flag_hint(option)):
        # What a scenario has for an option of an engine that loraplan itself doesn't have.
        problem = f"{error.message}; {hint}; values of a scenario are changed with --set KEY=VALUE"
    elif known:
        near = did_you_mean((option or "").lstrip("-"), [each.lstrip("-") for each in known])
        near = near and near.replace("'", "'--", 1)
        problem = f"{error.message}; {near}" if near else error.message
    elif hasattr(error.__cause__, "errors"):  # of pydantic, which newer typer checks options with
        from sim.spec.files.problems import value_problem

        problem = problem.replace(error.message, value_problem(error.__cause__))
    message(f"error: {problem}", quiet=False)
    message(f"{command} --help shows how to call it", quiet=False)


def _explain(error: Exception) -> int:
    if hasattr(error, "format_message") and hasattr(error, "show"):  # a usage error of click, or of typer's own copy
        _explain_usage(error)
        return 2
    if isinstance(error, OSError) and isinstance(error.filename, (str, bytes)) and error.strerror:
        # Whatever stands in the way of a file is the user's to change, and they need its name.
        error = InputError(f"can't be used: {error.strerror}", file=os.fsdecode(error.filename))
    elif isinstance(error, OSError) and not working_folder_exists():
        error = InputError("no longer exists", file="the working folder")
    if isinstance(error, LoraplanError):
        for line in str(error).split("\n"):
            message(f"error: {line}", quiet=False)
        return error.exit_code
    said = f"{type(error).__name__}: {error}"
    message(f"error: internal failure: {said}; run it again with --debug to see where", quiet=False)
    return 3
