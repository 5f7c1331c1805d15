"""``loraplan compare``: is one run better than another?"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.options import JsonOption, QuietOption
from sim.cli.output import make_folder, message, print_rich, rich_rows, rich_table, say, say_file, say_json
from sim.errors import InputError

if TYPE_CHECKING:
    from reports.answers.run_comparison import Comparison
    from sim.results.run_directory.store import RunData

PAGE, DATA = "report.html", "compare.json"
_SHOWN = 12
"""Differing keys that the terminal lists."""


def compare(
    one: Annotated[Path, typer.Argument(metavar="A", help="A run directory, such as runs/quickstart.")],
    other: Annotated[Path, typer.Argument(metavar="B", help="The run directory to compare with A.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page. Default: runs/compare-A-B, and none with --json.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if B is clearly worse in any term of the SLO.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare two runs: what differs, what changes with it, and whether that is more than chance.

    Example: loraplan compare runs/quickstart runs/more-slots
    """
    from reports.answers.run_comparison import compare_runs
    from reports.text.comparison_text import caution_sentences
    from sim.results.run_directory.store import blamed_on

    with blamed_on(one, other):
        comparison = compare_runs(_read(one), _read(other))
        failed = _show(comparison, (one, other), out, check=check, json=json)
    for caution in caution_sentences(comparison):
        message(f"note: {caution}", quiet)
    if check and failed:
        raise typer.Exit(1)


def _show(comparison: Comparison, runs: tuple[Path, Path], out: Path | None, *, check: bool, json: bool) -> bool:
    """Write the page and print the answer; return whether B is clearly worse in any term."""
    from reports.answers.run_comparison import worse_terms
    from reports.pages.comparison_page import write_page
    from reports.text.comparison_text import as_json

    if check and not comparison.terms:
        if any(comparison.cautions.tenants_alone):
            raise InputError(
                "only one of the runs has the tenants with an SLO, so there is none to check", key="tenants"
            )
        raise InputError("the scenarios have no SLO to check", key="slo", hint="give slo: {ttft_p99: 1 s}")
    folder = out or (None if json else Path("runs") / f"compare-{_stem(runs[0])}-{_stem(runs[1])}")
    if folder is not None:
        from sim.results.run_directory.result_files import write_json

        make_folder(folder)
        write_json(folder / DATA, as_json(comparison))
        write_page(comparison, folder / PAGE, shlex.join(["loraplan", *sys.argv[1:]]))
    if json:
        say_json(as_json(comparison))
    else:
        _print(comparison)
        say("")
        if folder is not None:
            say_file("report  ", folder / PAGE)
            say_file("data    ", folder / DATA)
    return bool(worse_terms(comparison))


def _read(path: Path) -> RunData:
    """Read a run directory; a scenario in its place must be run first."""
    from sim.results.run_directory.store import read_run
    from sim.spec.scenario_file import bundled_scenarios

    bundled = not path.exists() and str(path) in {entry.name for entry in bundled_scenarios()}
    if bundled or path.suffix in (".yaml", ".yml"):
        raise InputError(
            "this is a scenario, not a run directory", got=str(path), hint=f"run it first: loraplan run {path}"
        )
    return read_run(path)


def _stem(path: Path) -> str:
    """Return a run directory's name as part of another one."""
    return re.sub(r"[^\w.-]+", "-", path.resolve().name)[:60].strip("-.") or "run"


def _print(comparison: Comparison) -> None:
    from reports.tables.comparison_tables import differing_rows, terminal_table
    from reports.text.comparison_text import details, headline
    from reports.text.setup_text import setup_line

    for letter, run in (("A", comparison.one), ("B", comparison.other)):
        say(f"{letter}  {run.path}  {run.manifest.get('name', '')}")
        if line := setup_line(run.points):
            say(f"   {line}")
    say("", headline(comparison))
    for sentence in details(comparison):
        say(f"  {sentence}")
    say("")
    if comparison.changed:
        rows = differing_rows(comparison)[:_SHOWN]
        print_rich(rich_rows(["what differs", "A", "B"], rows))
        if len(comparison.changed) > _SHOWN:
            say(f"… and {len(comparison.changed) - _SHOWN} more: the page has all of them")
    else:
        say("The scenarios don't differ.")
    table = terminal_table(comparison)
    say("")
    print_rich(rich_table(table))
    if table.note:
        say(table.note)
