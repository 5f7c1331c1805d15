"""The ``loraplan`` command: the only module that prints or exits.

Results go to stdout, progress and messages to stderr. Heavy imports happen inside the commands, so that
``--help`` answers at once.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.errors import InputError, LoraplanError

if TYPE_CHECKING:
    from sim.results.point import Point
    from sim.results.store import RunData
    from sim.spec.scenario_file import LoadedScenario
    from sim.studies.sweep import Finished

INTERRUPTED = 130

app = typer.Typer(
    name="loraplan",
    help="Capacity planning for multi-LoRA LLM serving. Start with: loraplan run quickstart",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
scenarios_app = typer.Typer(help="List and copy the bundled scenarios.", no_args_is_help=True)
app.add_typer(scenarios_app, name="scenarios")

ScenarioArgument = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="A scenario file, or the name of a bundled one.")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Change a value: a.b.c=value. Repeatable.")]
SeedOption = Annotated[int | None, typer.Option(help="Replace run.seed.", min=0)]
OutOption = Annotated[Path | None, typer.Option(help="Run directory; unset: runs/NAME, for a sweep runs/NAME-sweep.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print summary.json instead of a table.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress and no messages, only results and errors.")]
CheckOption = Annotated[bool, typer.Option("--check", help="Exit with 1 unless the SLO is met.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Simulate again what the run directory has.")]
JobsOption = Annotated[int, typer.Option(help="Worker processes; -1: one for each core.", min=-1)]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@app.command()
def run(
    scenario: ScenarioArgument,
    set_: SetOption = None,
    seed: SeedOption = None,
    out: OutOption = None,
    check: CheckOption = False,
    overwrite: OverwriteOption = False,
    jobs: JobsOption = -1,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Simulate one scenario; write a run directory with a report; print the answer."""
    from sim.spec.scenario_file import load_scenario

    loaded = load_scenario(scenario, set_ or [], seed)
    _simulate(loaded, [{}], out, check=check, overwrite=overwrite, jobs=jobs, json=json, quiet=quiet)


@app.command()
def sweep(
    scenario: ScenarioArgument,
    over: Annotated[
        list[str] | None,
        typer.Option("--over", help="Values to try: key=v1,v2,v3. Repeatable; in place of the sweep: block."),
    ] = None,
    set_: SetOption = None,
    seed: SeedOption = None,
    out: OutOption = None,
    check: CheckOption = False,
    overwrite: OverwriteOption = False,
    jobs: JobsOption = -1,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Simulate a grid of values in parallel. A sweep that was stopped goes on where it was."""
    from sim.spec.scenario_file import load_scenario
    from sim.studies.sweep import grid

    axes = _axes(over or [])
    loaded = load_scenario(scenario, set_ or [], seed)
    sets = grid(loaded, axes)
    _simulate(loaded, sets, out, check=check, overwrite=overwrite, jobs=jobs, json=json, quiet=quiet)


@app.command()
def report(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, such as runs/quickstart.")],
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Draw the report of a run again, without simulating."""
    from reports.build import write_report
    from sim.results.store import read_run

    data = read_run(run_directory)
    if data.manifest.get("status") != "finished":
        done, total = len(data.points), data.manifest.get("points_total", "?")
        _message(f"note: this run is not finished: {done} of {total} points", quiet)
    typer.echo(write_report(data))


@app.command()
def check(
    scenario: ScenarioArgument,
    set_: SetOption = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print every value, defaults included, and where it comes from.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Say whether a scenario can be simulated, and what is wrong with it if not."""
    from sim.spec.scenario_file import load_scenario
    from sim.studies.sweep import check_points

    loaded = load_scenario(scenario, set_ or [])
    notes = check_points(loaded)
    if resolved:
        _print_resolved(loaded)
    for note in notes:
        _message(f"note: {note}", False)
    typer.echo(f"{scenario}: ok")


@app.command()
def schema(debug: DebugOption = False) -> None:
    """Print the JSON Schema of scenario files, for editors."""
    from sim.spec.schema import schema_text

    typer.echo(schema_text(), nl=False)


@scenarios_app.command("list")
def list_scenarios(debug: DebugOption = False) -> None:
    """List the bundled scenarios."""
    from rich.table import Table

    from sim.spec.scenario_file import bundled_scenarios

    table = Table(box=None, pad_edge=False)
    table.add_column("scenario", no_wrap=True)
    table.add_column("what it shows")
    for entry in bundled_scenarios():
        table.add_row(entry.name, entry.description)
    _print(table)


@scenarios_app.command("copy")
def copy_bundled(
    name: Annotated[str, typer.Argument(help="A bundled scenario.")],
    destination: Annotated[Path, typer.Argument(help="A new file, or a folder.")] = Path("."),
    debug: DebugOption = False,
) -> None:
    """Copy a bundled scenario to edit it."""
    from sim.spec.scenario_file import copy_scenario

    typer.echo(copy_scenario(name, destination))


def version(value: bool) -> None:
    """Print the version and stop."""
    if value:
        from sim import __version__

        typer.echo(f"loraplan {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version_: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Capacity planning for multi-LoRA LLM serving. Start with: loraplan run quickstart."""


def _simulate(
    loaded: LoadedScenario,
    sets: list[dict[str, Any]],
    out: Path | None,
    *,
    check: bool,
    overwrite: bool,
    jobs: int,
    json: bool,
    quiet: bool,
) -> None:
    """Run a study, write its report, print its answer; exit with 1 where ``check`` asks for a missed SLO."""
    from reports.build import write_report
    from sim.results.store import read_run, summary_json
    from sim.studies.sweep import free_folder, study

    if check and not loaded.scenario.slo.terms():
        raise InputError("the scenario has no SLO to check", key="slo", hint="give slo: {ttft_p99: 1 s}")
    if jobs == 0:
        raise InputError("there is no work for no worker", key="--jobs", got=0, allowed="-1, or 1 and more")
    folder = out or free_folder(loaded, sets)
    with _progress(quiet) as progress:
        finished = study(loaded, sets, folder, command=_command(), overwrite=overwrite, jobs=jobs, progress=progress)
    data = read_run(finished.path)
    page = write_report(data)
    if json:
        typer.echo(_to_json(summary_json(loaded.scenario.name, finished.points)))
    else:
        _print_answer(loaded, data)
        typer.echo(f"\nreport  {page}\ntables  {finished.path / 'points.csv'}, {finished.path / 'requests.parquet'}")
    _notes(finished, quiet)
    if check and not _meets_slo(loaded, finished.points):
        raise typer.Exit(1)


def _notes(finished: Finished, quiet: bool) -> None:
    if finished.reused:
        count = f"{finished.reused} of {len(finished.points)} points" if len(finished.points) > 1 else "the results"
        _message(f"note: {count} were there from an earlier run; --overwrite simulates them again", quiet)
    for warning in dict.fromkeys(warning for point in finished.points for warning in point.warnings):
        _message(f"note: {warning}", quiet)


def _meets_slo(loaded: LoadedScenario, points: list[Point]) -> bool:
    """Return whether every point meets every term of the SLO with its interval."""
    from reports.findings import answer

    terms = loaded.scenario.slo.terms()
    return all(answer(point, terms).verdict == "met" for point in points)


def _print_answer(loaded: LoadedScenario, data: RunData) -> None:
    from reports.axes import make_axes
    from reports.findings import answer, sweep_answer
    from reports.tables import metrics_table, terminal_table
    from reports.verdicts import capital

    terms = loaded.scenario.slo.terms()
    assumed = (data.manifest.get("profile") or {}).get("status") == "assumed"
    points = data.points
    if len(points) == 1:
        told, table = answer(points[0], terms, assumed=assumed), metrics_table(points[0])
    else:
        told = sweep_answer(points, terms, assumed=assumed)
        table = terminal_table(points, make_axes(points), terms)
    typer.echo(f"{loaded.scenario.name}: {told.headline}")
    for sentence in (told.binding_sentence, told.headroom, *told.details):
        if sentence:
            typer.echo(f"  {sentence}")
    typer.echo(f"  Confidence: {told.confidence}. {capital(told.reason)}\n")
    _print(_rich(table))
    if table.note:
        typer.echo(table.note)


def _rich(table: Any) -> Any:
    """Return a report's table for the terminal."""
    from rich.table import Table as RichTable
    from rich.text import Text

    result = RichTable(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(table.head):
        result.add_column(Text(str(name)), justify="left" if index == 0 else "right")
    for row in table.rows:
        result.add_row(*(Text(str(cell)) for cell in row))
    return result


def _print_resolved(loaded: LoadedScenario) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in ("key", "value", "from"):
        table.add_column(name, overflow="fold")
    for row in loaded.rows():
        table.add_row(*(Text(cell) for cell in row))
    _print(table)


def _print(renderable: Any) -> None:
    """Print a rich object to stdout; a pipe gets full width, so that nothing is cut off."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(renderable)


def _message(text: str, quiet: bool) -> None:
    if not quiet:
        typer.echo(text, err=True)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with an estimate of the time left on a terminal, nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("simulating", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _axes(texts: list[str]) -> dict[str, list[Any]]:
    axes: dict[str, list[Any]] = {}
    for text in texts:
        key, values = _parse_over(text)
        if key in axes:
            raise InputError("given twice", key=f"--over {key}", hint="write all its values in one: key=v1,v2,v3")
        if any(value in values[:place] for place, value in enumerate(values)):
            raise InputError("a value stands twice", key=f"--over {key}", got=text.partition("=")[2])
        if key.partition(".")[0] in ("name", "description", "schema_version", "sweep", "run"):
            raise InputError("can't be swept", key=f"--over {key}", allowed="what is simulated, not how it is called")
        axes[key] = values
    return axes


def _parse_over(text: str) -> tuple[str, list[Any]]:
    """Return the key and values of ``--over key=v1,v2``; values are YAML, so lists and mappings work too."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    key, equals, values = text.partition("=")
    if not equals or not key.strip() or not values.strip():
        raise InputError("not a key and its values", key="--over", got=text, allowed="key=v1,v2,v3")
    try:
        parsed = YAML(typ="safe", pure=True).load(f"[{values}]")
    except YAMLError:
        raise InputError("the values are not YAML", key=f"--over {key}", got=values, allowed="v1,v2,v3") from None
    return key.strip(), parsed


def _command() -> str:
    return shlex.join(["loraplan", *sys.argv[1:]])


def _to_json(data: Any) -> str:
    import json

    from sim.results.files import json_ready

    return json.dumps(json_ready(data), indent=2, ensure_ascii=False, allow_nan=False)


def main() -> None:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGTERM, _stop)
    debug = "--debug" in sys.argv or bool(os.environ.get("LORAPLAN_DEBUG"))
    sys.exit(_guarded(debug))


def _stop(number: int, frame: object) -> None:
    """End as after Ctrl-C: what is finished is kept, and no worker is left behind."""
    raise KeyboardInterrupt


def _guarded(debug: bool) -> int:
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # newer typer makes an exit code of Ctrl-C, older ones raise
            return _interrupted()
        return code if isinstance(code, int) else 0
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or flushing at exit would complain
        return 0
    except Exception as error:
        if debug and not hasattr(error, "show"):
            raise
        return _explain(error)


def _interrupted() -> int:
    typer.echo("interrupted: finished points are kept; the same command goes on from there", err=True)
    return INTERRUPTED


def _explain(error: Exception) -> int:
    if hasattr(error, "format_message") and hasattr(error, "show"):  # a usage error of click, or of typer's own copy
        error.show()
        return 2
    if isinstance(error, LoraplanError):
        for line in str(error).splitlines():
            typer.echo(f"error: {line}", err=True)
        return error.exit_code
    typer.echo(f"error: a failure inside loraplan: {type(error).__name__}: {error}; --debug shows where", err=True)
    return 3


if __name__ == "__main__":
    main()
