"""``loraplan plan``: which value, or which fleet, meets the SLO."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.help import SIMULATE
from sim.cli.options import (
    AllOption,
    DeployableOptions,
    NoHeadroomOption,
    ScenarioArgument,
    complete_assignment,
    naming,
    parse_range,
    takes,
)
from sim.cli.output import finish, message, say_notes
from sim.errors import InputError

if TYPE_CHECKING:
    from sim.results.run_directory.study_records import EvaluationRecord

NONE_MEETS = 1


@dataclass(frozen=True)
class PlanOptions(DeployableOptions):
    """The same, with a scenario that may be asked for."""

    scenario: ScenarioArgument = ""


@takes(PlanOptions)
def plan(
    options: PlanOptions,
    minimize: Annotated[
        list[str] | None,
        typer.Option(
            help="Find the smallest value of KEY=a..b or KEY=a..b:step. Twice: two keys, the dearer first.",
            metavar="KEY=RANGE",
            autocompletion=complete_assignment,
            rich_help_panel=SIMULATE,
        ),
    ] = None,
    maximize: Annotated[
        list[str] | None,
        typer.Option(
            help="Find the largest value of KEY=a..b or KEY=a..b:step.",
            metavar="KEY=RANGE",
            autocompletion=complete_assignment,
            rich_help_panel=SIMULATE,
        ),
    ] = None,
    what_if: Annotated[
        bool, typer.Option("--what-if", help="Also try one change at a time at the answer.", rich_help_panel=SIMULATE)
    ] = False,
    ask: Annotated[
        bool,
        typer.Option(
            "--ask", help="Ask for the scenario, write it, and plan it.", hidden=True, rich_help_panel=SIMULATE
        ),
    ] = False,
    all_: AllOption = False,
    no_headroom: NoHeadroomOption = False,
) -> None:
    """Find the smallest fleet or cache, or the largest load, that meets the SLO. Exits with 1 if nothing does.

    With --ask, eight questions take the place of a file, and SCENARIO (default: scenario.yaml) is written. Without a
    terminal, each line of standard input is an answer; a missing line takes the default.

    Example: loraplan plan quickstart --minimize cache.gpu.slots=8..64
    """
    from reports.formatting import metric_words, percent, show
    from sim.results.run_directory.store import blamed_on, read_run
    from sim.spec.scenario_file import load_scenario
    from sim.studies.plan.findings import RECOMMENDED
    from sim.studies.plan.report import plan_report
    from sim.studies.plan.study import make_plan

    options = _with_answers(options) if ask else options
    if not options.scenario:
        raise InputError("is missing", key="SCENARIO", hint="loraplan plan --ask asks eight questions instead")
    given = {"--minimize": minimize or [], "--maximize": maximize or []}
    typed = " ".join(f"{option} {text}" for option, texts in given.items() for text in texts)
    with naming(typed, "--set", "plan."):
        loaded = options.load(*_question(*given.values()))
    manifests = options.manifests(loaded)

    def show_evaluation(entry: EvaluationRecord) -> None:
        values = ", ".join(f"{key} {value}" for key, value in entry.set.items())
        runs = f"{entry.replications} × {entry.requests:,} requests"
        seen = metric_words(entry.term) + ("" if entry.value is None else f" {show(entry.term, entry.value)}")
        if entry.unserved is not None:
            seen = f"{percent(entry.unserved)} of the requests refused or failed"
        message(f"  {values}: {entry.word} ({seen}; {runs})", options.quiet or options.json)

    quiet, asked = options.quiet, {"and_what_if": what_if, "headroom": not no_headroom}
    with naming(typed, "--set", "plan."), options.executing("planning") as execution:
        planned = make_plan(loaded, options.out, execution, **asked, on_evaluation=show_evaluation)
    with blamed_on(planned.path) if planned.resumed else nullcontext():
        data = read_run(planned.path)
        finish(plan_report(data), planned.path, as_json=options.json, quiet=quiet, every=all_ or what_if)
    say_notes([planned.point], quiet)
    if not planned.record.feasible:
        if manifests.emissions:
            message("note: nothing is emitted, because nothing certainly meets the SLO", quiet)
        raise typer.Exit(NONE_MEETS)
    if manifests.emissions:
        chosen = load_scenario(str(planned.path / RECOMMENDED)).scenario
        manifests.write_and_say(chosen, data, planned.point, json=options.json, quiet=quiet)


def _with_answers(options: PlanOptions) -> PlanOptions:
    """Ask for the scenario and write it; return the options that plan it, with which the same command is recorded."""
    from sim.studies.init.command import ask_for_scenario

    file = options.scenario or "scenario.yaml"
    if not file.endswith(".yaml"):
        raise InputError("with --ask, the file to write", key="SCENARIO", got=file, allowed="FILE.yaml, a new one")
    ask_for_scenario(Path(file), options.quiet or options.json)
    sys.argv[1:] = [*(each for each in sys.argv[1:] if each not in ("--ask", file)), file]
    return replace(options, scenario=file)


def _question(minimize: list[str], maximize: list[str]) -> list[str]:
    if minimize and maximize:
        raise InputError(
            "a plan needs exactly one of minimize and maximize",
            key="--maximize",
            hint="give either --minimize or --maximize",
        )
    if not minimize and not maximize:
        return []
    name, texts = ("minimize", minimize) if minimize else ("maximize", maximize)
    parts = []
    for text in texts:
        found = parse_range(text)
        if found is None:
            raise InputError(
                "not a key and its range",
                key=f"--{name}",
                got=text,
                allowed="KEY=a..b or KEY=a..b:step, such as cache.gpu.slots=8..64:8",
                hint="a list of values goes into the scenario: plan: {values: [8, 16]}",
            )
        parts.append(found)
    keys, lows, highs, steps = zip(*parts, strict=True)
    if len(parts) == 1:
        question = [f"plan.{name}={keys[0]}", f"plan.range=[{lows[0]}, {highs[0]}]"]
        return [*question, f"plan.step={steps[0]}"] if steps[0] else question
    ranges = ", ".join(f"[{low}, {high}]" for low, high in zip(lows, highs, strict=True))
    question = [f"plan.{name}=[{', '.join(keys)}]", f"plan.range=[{ranges}]"]
    return [*question, f"plan.step=[{', '.join(step or 'null' for step in steps)}]"] if any(steps) else question
