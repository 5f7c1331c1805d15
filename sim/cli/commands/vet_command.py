"""``loraplan vet``: was this adapter trained well, and what would remedy it?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.options import FINISHED_POINTS, JsonOption, QuietOption, SetOption, session_of, takes
from sim.cli.output import (
    command_line,
    message,
    print_rich,
    progress_bar,
    rich_rows,
    say,
    say_file,
    say_json,
    say_result,
)
from sim.errors import InputError

if TYPE_CHECKING:
    from sim.studies.training.remedy_run import PricedRemedies
    from sim.training.vet_results import Vetted

_SHOWN = 20
"""Adapters with findings that the terminal shows in full."""


@dataclass(frozen=True)
class VetOptions:
    """The argument and the options of ``loraplan vet``."""

    context: typer.Context
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="An adapter folder, a folder of them, or a trainer_state.json.")
    ]
    reference: Annotated[
        Path | None, typer.Option(help="Log or folder of the same training on a 16-bit base, to compare quality with.")
    ] = None
    base_bits: Annotated[
        int | None, typer.Option(help="Bits of the base's weights in training, where no file says so.", min=1, max=32)
    ] = None
    examples: Annotated[
        int | None, typer.Option(help="Examples that were trained on, where the log doesn't say.", min=1)
    ] = None
    threshold: Annotated[
        list[str] | None, typer.Option(help="Change a threshold: NAME=VALUE, such as small_rank=8. Repeatable.")
    ] = None
    scenario: Annotated[
        str | None,
        typer.Option(help="Price every remedy for this fleet: a scenario file, or the name of a bundled one."),
    ] = None
    set_: SetOption = None
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit with 1 if a problem is likely or certain, or an adapter can't be judged."),
    ] = False
    json: JsonOption = False
    quiet: QuietOption = False


@takes(VetOptions)
def vet(options: VetOptions) -> None:
    """Read training logs of adapters: what went wrong, the evidence, and what would fix it.

    Example: loraplan vet my-adapters/support
    """
    from sim.training.logs.training_case import parse_thresholds
    from sim.training.vet_adapters import vet_path
    from sim.training.vet_text import as_json

    found = vet_path(
        options.path,
        parse_thresholds(options.threshold or []),
        options.reference,
        base_bits=options.base_bits,
        examples=options.examples,
    )
    if options.scenario is None and options.set_:
        raise InputError("there is no scenario to price remedies for", key="--set", hint="give --scenario")
    if options.scenario is not None:
        session_of(options.context).kept = FINISHED_POINTS
    priced = (
        None
        if options.scenario is None
        else _price(
            found,
            options.scenario,
            options.set_ or [],
            confined=session_of(options.context).confined,
            quiet=options.quiet,
        )
    )
    if options.json:
        vetted = [as_json(one) for one in found]
        say_json(vetted if options.scenario is None else {"vetted": vetted, "priced": _priced_json(priced)})
    else:
        _print(found, options.quiet)
        if options.scenario is not None:
            _print_priced(priced, options.quiet)
    if options.check and not all(one.passes for one in found):
        raise typer.Exit(1)


def _price(
    found: tuple[Vetted, ...], scenario: str, set_: list[str], *, confined: bool, quiet: bool
) -> PricedRemedies | None:
    """Simulate what the remedies change, and write the run directory with its report."""
    from reports.render.html import write
    from sim.results.run_directory.store import read_run
    from sim.spec.scenario_file import load_scenario
    from sim.studies.execution import Execution
    from sim.studies.training.remedy_report import remedies_report
    from sim.studies.training.remedy_run import price_remedies

    with progress_bar(quiet, "pricing") as progress:
        loaded = load_scenario(scenario, set_, confined=confined, check_points=False)
        priced = price_remedies(found, loaded, None, Execution(command=command_line(), on_progress=progress))
    if priced is not None:
        data = read_run(priced.path)
        write(remedies_report(data), priced.path)
    return priced


def _priced_json(priced: PricedRemedies | None) -> dict[str, Any] | None:
    """Return the prices as plain data; None where no remedy changes what serving costs."""
    if priced is None:
        return None
    changes = [row.to_json() for row in priced.rows]
    return {"run": str(priced.path), "as_it_is": priced.point.metrics_json(), "changes": changes}


def _print_priced(priced: PricedRemedies | None, quiet: bool) -> None:
    """Print what the fleet pays: an answer, and a table for each remedy."""
    from reports.render.html import PAGE
    from sim.results.run_directory.store import read_run
    from sim.studies.training.remedy_report import cures_answer, remedy_tables

    if priced is None:
        say("", "None of the remedies changes what serving costs, so there is nothing to price.")
        return
    data = read_run(priced.path)
    say("")
    say_result(data.manifest["name"], cures_answer(data).headline, [priced.point])
    for table in remedy_tables(data):
        say("", table.caption)
        print_rich(table)
        say(table.note)
    say("")
    say_file("report  ", priced.path / PAGE)
    for warning in priced.point.warnings:
        message(f"note: {warning}", quiet)


def _print(found: tuple[Vetted, ...], quiet: bool) -> None:
    from sim.cells import printable
    from sim.training.vet_text import summary

    if len(found) == 1:
        _print_one(found[0], quiet)
        return
    say(summary(found))
    notable = sorted((one for one in found if one.findings), key=lambda one: one.passes)
    for one in notable[:_SHOWN]:
        say("")
        _print_one(one, quiet=True)
    if len(notable) > _SHOWN:
        say("", f"… and {len(notable) - _SHOWN} more with findings: --json has all of them")
    unknown = [printable(str(one.path), 200) for one in found if not one.judged]
    if unknown:
        say("", f"can't be judged: {', '.join(unknown[:_SHOWN])}{', …' if len(unknown) > _SHOWN else ''}")
    if any(one.notes for one in found):
        message("note: --json says what could not be judged, and why", quiet)


def _print_one(one: Vetted, quiet: bool) -> None:
    from sim.cells import printable
    from sim.training.vet_text import changes_size, remedy_rows, verdict

    say(verdict(one))
    for finding in one.findings:
        if len(one.findings) > 1:
            say(f"{finding.mode} ({finding.confidence})")
        for evidence in finding.evidence:
            say(f"  {printable(evidence.what, 300)}")
        if changes_size(finding):
            say("")
            print_rich(rich_rows(["remedy", "rank", "targets", "parameters", "size"], remedy_rows(one, finding)))
        else:
            say("remedies, in the order in which to try them")
            for number, remedy in enumerate(finding.remedies, 1):
                say(f"  {number}. {remedy.words}")
    for note in one.notes:
        message(f"note: {printable(note, 400)}", quiet)
