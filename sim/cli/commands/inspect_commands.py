"""Commands that inspect scenarios and runs without simulating: check, schema, scenarios, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim.cli.options import QuietOption, ScenarioArgument, SetOption, complete_scenario, session_of
from sim.cli.output import message, print_rich, rich_rows, say, say_file


def report(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, such as runs/quickstart.")],
    quiet: QuietOption = False,
) -> None:
    """Rebuild the report of a run without simulating.

    Example: loraplan report runs/quickstart
    """
    from reports.render.html import write
    from sim.results.run_directory.store import blamed_on, read_run
    from sim.studies.reports import report_of

    with blamed_on(run_directory):
        data = read_run(run_directory)
        page = write(report_of(data), run_directory)
    if data.manifest.get("status") != "finished":
        done = f"{len(data.points)} of {data.manifest.get('points_total', '?')} points"
        plan = data.manifest.get("kind") == "plan"
        what = "plan has no answer yet" if plan else f"run is not finished: {done}"
        message(f"note: this {what}", quiet)
    say_file("", page)


def check(
    context: typer.Context,
    scenario: ScenarioArgument,
    set_: SetOption = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print every value, defaults included, and where it comes from.")
    ] = False,
) -> None:
    """Check a scenario without simulating it: what is wrong, on what it would run, and what is assumed.

    Example: loraplan check my-scenario.yaml
    """
    from sim.spec.scenario_file import load_scenario
    from sim.studies.design import checked

    loaded = load_scenario(scenario, set_ or [], confined=session_of(context).confined)
    notes, lines = checked(loaded)
    if loaded.scenario.plan is not None:
        from sim.studies.plan.checks import check_plan

        check_plan(loaded)
    if resolved:
        print_rich(rich_rows(("key", "value", "from"), loaded.rows(), words=(1, 2)))
    for note in notes:
        message(f"note: {note}", False)
    say(f"{scenario}: ok", *(f"  {line}" for line in lines))


def schema() -> None:
    """Print the JSON Schema of scenario files, for editors.

    Example: loraplan schema > scenario.schema.json
    """
    from sim.spec.scenario import schema_text

    say(*schema_text().splitlines(), wraps=False)


def list_scenarios() -> None:
    """List the bundled scenarios.

    Example: loraplan scenarios list
    """
    from sim.spec.scenario_file import bundled_scenarios

    print_rich(rich_rows(("scenario", "what it shows"), list(bundled_scenarios().items()), words=(1,)))


def copy_bundled(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A bundled scenario.", autocompletion=complete_scenario)],
    destination: Annotated[Path, typer.Argument(help="A new file, or a folder.")] = Path("."),
) -> None:
    """Copy a bundled scenario to edit it.

    Example: loraplan scenarios copy quickstart my-scenario.yaml
    """
    from sim.spec.scenario_file import copy_scenario

    say(copy_scenario(name, destination))


GROUPS = {
    "scenarios": (
        "List and copy the bundled scenarios.\n\nExample: loraplan scenarios list",
        {"list": list_scenarios, "copy": copy_bundled},
    )
}
