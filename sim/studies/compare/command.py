"""``loraplan compare``: is one run better than another? What changes from one plan to another?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from sim.cli.options import AllOption, JsonOption, QuietOption
from sim.cli.output import command_line, finish, folder_for
from sim.errors import InputError


def compare(
    one: Annotated[Path, typer.Argument(metavar="A", help="A run directory, such as runs/quickstart.")],
    others: Annotated[list[Path], typer.Argument(metavar="B", help="The run directory to compare with A.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page. Default: runs/compare-A-B, and none with --json.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if B is clearly worse in any term of the SLO.")
    ] = False,
    all_: AllOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare two runs: what differs, what changes with it, and whether that is more than chance.

    Of two plans: what changes in what they recommend, in first limit, headroom and cost.

    Example: loraplan compare runs/quickstart runs/more-slots

    Example: loraplan compare runs/today-plan runs/next-quarter-plan
    """
    from sim import api
    from sim.results.run_directory.store import blamed_on
    from sim.studies.compare.study import worse_terms

    other, *more = others
    if more:
        raise InputError(
            "too many run directories", got=f"{len(others) + 1}", allowed="two: A and B", hint="compare each with A"
        )
    with blamed_on(one, other):
        results = api.compare(_no_scenario(one), _no_scenario(other))
        comparison = results.comparison
        if check and not comparison.terms:
            if any(comparison.tenants_alone):
                raise InputError(
                    "only one of the runs has the tenants with an SLO, so there is none to check", key="tenants"
                )
            raise InputError("the scenarios have no SLO to check", key="slo", hint="give slo: {ttft_p99: 1 s}")
        folder = folder_for(out, f"compare-{_stem(one)}-{_stem(other)}", as_json=json)
        finish(results.document(command_line()), folder, as_json=json, quiet=quiet, every=all_)
        failed = check and worse_terms(comparison)
    if failed:
        raise typer.Exit(1)


def _no_scenario(path: Path) -> Path:
    """Return the path of a run directory; a scenario in its place must be run first."""
    from sim.spec.scenario_file import bundled_scenarios

    bundled = not path.exists() and str(path) in bundled_scenarios()
    if bundled or path.suffix in (".yaml", ".yml"):
        raise InputError(
            "this is a scenario, not a run directory", got=str(path), hint=f"run it first: loraplan run {path}"
        )
    return path


def _stem(path: Path) -> str:
    """Return a run directory's name as part of another one."""
    return re.sub(r"[^\w.-]+", "-", path.resolve().name)[:60].strip("-.") or "run"
