"""The ``loraplan`` command: the only package that prints or exits.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
from importlib import import_module
from typing import Annotated, Any

import typer

from sim.cli.help import CommandHelp, GroupHelp
from sim.cli.options import Session
from sim.cli.output import message, say, say_timing
from sim.cli.streams import check_surroundings, guarded_streams, working_folder_exists
from sim.errors import InputError, LoraplanError, did_you_mean
from sim.timing import begin, end

INTERRUPTED = 130

ANSWER, SCENARIOS, OBSERVE, COSTS = (
    "Answer a question",
    "Scenarios",
    "Traces and adapters of yours",
    "Costs of a GPU, a model and an engine",
)

_INSPECT, _VET, _COSTS = "sim.cli.commands.inspect_commands", "sim.studies.vet.command", "calibrate.command"
_COMMANDS = {
    "run": (ANSWER, "sim.studies.run.command"),
    "sweep": (ANSWER, "sim.studies.run.command"),
    "plan": (ANSWER, "sim.studies.plan.command"),
    "compare": (ANSWER, "sim.studies.compare.command"),
    "report": (ANSWER, _INSPECT),
    "ui": (ANSWER, "sim.cli.commands.ui_command"),
    "mcp": (ANSWER, "sim.cli.commands.ui_command"),
    "init": (SCENARIOS, "sim.studies.init.command"),
    "check": (SCENARIOS, _INSPECT),
    "schema": (SCENARIOS, _INSPECT),
    "trace": (OBSERVE, "sim.studies.trace.command"),
    "observe": (OBSERVE, "sim.studies.observe.command"),
    "cache": (OBSERVE, "sim.studies.cache.command"),
    "adapters": (OBSERVE, _VET),
    "vet": (OBSERVE, _VET),
    "fidelity": (COSTS, "sim.studies.fidelity.command"),
}
"""Each command's group and module, in the order of ``--help``; those of ``_GROUPS`` have commands of their own."""
_GROUPS = {"scenarios": (SCENARIOS, _INSPECT), "profiles": (COSTS, _COSTS), "calibrate": (COSTS, _COSTS)}


def make_app(only: str = "") -> typer.Typer:
    """Return the command line, with the one command that is needed; with all, if there is no such one."""
    app = typer.Typer(
        name="loraplan",
        cls=GroupHelp,
        help="Capacity planning for multi-LoRA LLM serving.\n\nExample: loraplan run quickstart",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(root)
    wanted = {only} if only in _COMMANDS or only in _GROUPS else {*_COMMANDS, *_GROUPS}
    wanted |= {"plan"} if only == "init" else set()  # which offers to start it
    for name, (panel, module) in _COMMANDS.items():
        if name in wanted:
            app.command(name, cls=CommandHelp, rich_help_panel=panel)(getattr(import_module(module), name))
    for name, (panel, module) in _GROUPS.items():
        if name in wanted:
            about, named = import_module(module).GROUPS[name]
            group = typer.Typer(cls=GroupHelp, help=about, no_args_is_help=True)
            for member, call in named.items():
                group.command(member, cls=CommandHelp)(call)
            app.add_typer(group, name=name, rich_help_panel=panel)
    return app


def __getattr__(name: str) -> typer.Typer:
    """Make ``app``, with all commands, on first use."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = made = make_app()
    return made


def version(value: bool) -> None:
    """Print the version and stop."""
    if value:
        from sim.version import __version__, build

        say(f"loraplan {__version__} ({build()})")
        raise typer.Exit


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


_ANYWHERE = ("--debug", "--confined", "--timing")
"""Options of any command; the last is documented with the times that it prints (docs/performance.md), not in help."""


def main() -> None:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGTERM, _stop)
    # Taken out here, because they may stand behind any command.
    arguments = [argument for argument in sys.argv[1:] if argument not in _ANYWHERE]
    if arguments[:1] != ["calibrate"]:  # others multiply no large matrices: starting threads for that takes longer
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # looking for some opens a file of every installed package
    gc.set_threshold(200_000, 20)  # imports make many objects, and no garbage
    debug = "--debug" in sys.argv[1:] or bool(os.environ.get("LORAPLAN_DEBUG"))
    if "--timing" in sys.argv[1:]:
        begin()
    with guarded_streams():
        code = _exit_code(arguments, debug, "--confined" in sys.argv[1:])
        if taken := end():
            say_timing(taken)
    sys.exit(code)


def start() -> None:
    """Run the command line as the only thing that this process does.

    Python takes a process apart object by object, which is a fifth of the time of a short command. Here the system
    does it, unless there are other threads, or ``--debug`` is given: a profiler reports after the command.
    """
    try:
        main()
    except SystemExit as ended:
        if threading.active_count() == 1 and "--debug" not in sys.argv[1:]:
            atexit._run_exitfuncs()
            os._exit(int(ended.code or 0))
        raise


def _stop(number: int, frame: object) -> None:
    """End as after Ctrl-C: what is finished is kept, and no worker is left behind."""
    raise KeyboardInterrupt


def _exit_code(arguments: list[str], debug: bool, confined: bool) -> int:
    session = Session(confined)
    try:
        check_surroundings()
        code = make_app(arguments[0] if arguments else "")(
            arguments, prog_name="loraplan", standalone_mode=False, obj=session
        )
        sys.stdout.flush()  # here, so that a disk that is full is an error of the command
        if code == INTERRUPTED:  # newer typer makes an exit code of Ctrl-C, older ones raise
            return _interrupted(session)
        return code if isinstance(code, int) else 0
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted(session)
    except Exception as error:
        if "KeyboardInterrupt" in str(error):  # pydantic's compiled part wraps it
            return _interrupted(session)
        if debug and not hasattr(error, "show"):
            raise
        return _explain(error)


def _interrupted(session: Session) -> int:
    message(session.ended or f"interrupted: {session.kept}", quiet=False)
    return INTERRUPTED


def _explain_usage(error: Any) -> None:
    """Say what is wrong with a command line, what was probably meant, and where its options are listed."""
    from sim.spec.engine_flags.options import flag_hint

    known, context = getattr(error, "possibilities", None), getattr(error, "ctx", None)
    # The error of an option that lacks its value has the option's name as well.
    option = error.option_name if hasattr(error, "possibilities") else None
    command = context.command_path if context is not None else "loraplan"
    problem = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":  # of click, or of typer's own copy
        for line in problem.splitlines():
            message(line, quiet=False)
        return
    if option and (hint := flag_hint(option)):
        # What a scenario has for an option of an engine that loraplan itself doesn't have.
        problem = f"{error.message}; {hint}; values of a scenario are changed with --set KEY=VALUE"
    elif near := did_you_mean((option or "").lstrip("-"), [each.lstrip("-") for each in known or ()], 0.65):
        near = near.replace("'", "'--", 1)
        problem = f"{error.message}; {near}"
    elif option and context and any(each.name == "set_" for each in context.command.params) and (keys := _keys(option)):
        problem = f"{error.message}; did you mean --set {keys[0]}=VALUE?"
    elif known:
        problem = error.message
    elif hasattr(error.__cause__, "errors"):  # of pydantic, which newer typer checks options with
        from sim.spec.files.problems import value_problem

        problem = problem.replace(error.message, value_problem(error.__cause__))
    message(f"error: {problem}", quiet=False)
    message(f"{command} --help shows how to call it", quiet=False)


def _keys(option: str) -> list[str]:
    """Return the keys of a scenario that have the name of an option, the likeliest first."""
    from sim.spec.files.problems import keys_ending, known_keys
    from sim.spec.scenario import Scenario

    return keys_ending(option.lstrip("-").replace("-", "_"), known_keys(Scenario))


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
