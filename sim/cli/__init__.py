"""The ``loraplan`` command: the only package that prints or exits.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Annotated

import typer

from sim.cli.commands import (
    adapters_command,
    cache_command,
    calibrate_command,
    compare_command,
    fidelity_command,
    fit_command,
    init_command,
    inspect_commands,
    plan_command,
    profiles_command,
    run_commands,
    serve_command,
    trace_command,
    vet_command,
)
from sim.cli.options import Session
from sim.cli.output import message, say
from sim.cli.streams import check_surroundings, guarded_streams, working_folder_exists
from sim.errors import InputError, LoraplanError

INTERRUPTED = 130

app = typer.Typer(
    name="loraplan",
    help="Capacity planning for multi-LoRA LLM serving. Start with: loraplan run quickstart",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    run_commands.run,
    run_commands.sweep,
    plan_command.plan,
    inspect_commands.report,
    inspect_commands.check,
    fidelity_command.fidelity,
):
    app.command()(command)
app.command()(init_command.init)
app.command()(inspect_commands.schema)
app.command()(compare_command.compare)
app.command()(cache_command.cache)
app.command()(trace_command.trace)
app.command()(adapters_command.adapters)
app.command()(vet_command.vet)
scenarios_app = typer.Typer(help="List and copy the bundled scenarios.", no_args_is_help=True)
scenarios_app.command("list")(inspect_commands.list_scenarios)
scenarios_app.command("copy")(inspect_commands.copy_bundled)
app.add_typer(scenarios_app, name="scenarios")
profiles_app = typer.Typer(
    help="List, inspect and build profiles: the costs of a GPU, a model and an engine.", no_args_is_help=True
)
profiles_app.command("list")(profiles_command.list_profiles)
profiles_app.command("show")(profiles_command.show_profile)
profiles_app.command("build")(profiles_command.build_profile)
app.add_typer(profiles_app, name="profiles")
calibrate_app = typer.Typer(help="Write the profiles that predictions are made from.", no_args_is_help=True)
calibrate_app.command("all")(calibrate_command.everything)
calibrate_app.command("steps")(calibrate_command.steps)
calibrate_app.command("loads")(calibrate_command.loads)
calibrate_app.command("fit")(fit_command.fit)
calibrate_app.command("serve")(serve_command.serve)
app.add_typer(calibrate_app, name="calibrate")


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
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; also behind any command.")] = False,
    confined: Annotated[
        bool,
        typer.Option(
            "--confined", help="For a stranger's scenario: refuse files outside its folder; also behind any command."
        ),
    ] = False,
) -> None:
    """Capacity planning for multi-LoRA LLM serving. Start with: loraplan run quickstart."""


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
        code = app(arguments, standalone_mode=False, obj=session)
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
    message(f"interrupted: {session.kept}", quiet=False)
    return INTERRUPTED


def _hint_on_option(name: str) -> str | None:
    """Return what a scenario has for an option of an engine that loraplan itself doesn't have."""
    from sim.spec.engine_flags.flag_hints import flag_hint

    hint = flag_hint(name) if name else None
    return f"{hint}; values of a scenario are changed with --set KEY=VALUE" if hint else None


def _explain(error: Exception) -> int:
    if hasattr(error, "format_message") and hasattr(error, "show"):  # a usage error of click, or of typer's own copy
        usage = io.StringIO()
        error.show(usage)
        for line in usage.getvalue().splitlines():
            message(line, quiet=False)
        if hint := _hint_on_option(getattr(error, "option_name", "")):
            message(hint, quiet=False)
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
    message(f"error: a failure inside loraplan: {said}; --debug shows where", quiet=False)
    return 3
