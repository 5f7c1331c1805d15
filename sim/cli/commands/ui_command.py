"""``loraplan ui``: a local page with sliders; ``loraplan mcp``: a server for agents."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from sim.cli.options import QuietOption, complete_scenario, session_of
from sim.cli.output import message, say
from sim.errors import InputError, install_hint

STOPPED = "The page has stopped. Saved reports are kept."


def ui(
    context: typer.Context,
    scenario: Annotated[
        str,
        typer.Argument(
            metavar="SCENARIO",
            help="A scenario file, or the name of a bundled one. Default: quickstart.",
            autocompletion=complete_scenario,
        ),
    ] = "quickstart",
    port: Annotated[int, typer.Option(help="Where to listen on 127.0.0.1; 0: any free port.", min=0, max=65535)] = 0,
    folder: Annotated[
        Path,
        typer.Option(
            help="Folder of scenarios on the page. Reports are written to its runs folder.",
            show_default="the current folder",
        ),
    ] = Path("."),
    no_open: Annotated[bool, typer.Option("--no-open", help="Print the address, open no browser.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Open a local page: move a slider, and watch p99, misses, headroom and cost follow.

    Example: loraplan ui quickstart
    """
    session = session_of(context)
    session.ended = STOPPED
    _check(folder, "the page", "ui", "starlette", "uvicorn")
    from sim.ui.simulating.workers import Workers

    # Else a browser would open in this terminal.
    has_desktop = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))

    def on_ready(address: str) -> None:
        say(address, wraps=False)
        sys.stdout.flush()
        message("Open this address on this machine. Ctrl-C stops the page.", quiet)
        if not no_open and has_desktop:
            import webbrowser

            webbrowser.open(address)

    with closing(Workers()) as workers:  # they get ready while this process imports the rest
        from sim.ui.http_server import serve
        from sim.ui.library import Library

        serve(Library(folder, scenario, confined=session.confined), scenario, port, workers, on_ready)


def mcp(
    context: typer.Context,
    folder: Annotated[
        Path,
        typer.Option(
            help="Folder whose scenarios, traces and runs an agent may use; nothing outside it is read or written.",
            show_default="the current folder",
        ),
    ] = Path("."),
) -> None:
    """Serve agents over MCP: check, run, plan, compare, trace and profiles as tools.

    Example: loraplan mcp --folder my-fleet
    """
    session_of(context).ended = "The server has stopped. Runs are kept."
    _check(folder, "this server", "mcp", "mcp", "resvg_py")
    os.chdir(folder)
    from sim.ui.mcp_server import serve

    serve()


def _check(folder: Path, who: str, extra: str, *packages: str) -> None:
    if not folder.is_dir():
        raise InputError("no such folder", key="--folder", got=str(folder))
    for name in packages:
        if find_spec(name) is None:
            raise InputError(f"{who} needs {name}, which isn't installed", hint=install_hint(extra))
