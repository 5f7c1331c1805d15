"""``loraplan adapters`` and ``loraplan vet``: can these adapters be served, and were they trained well?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.options import FINISHED_POINTS, JsonOption, QuietOption, SetOption, session_of
from sim.cli.output import command_line, finish, message, progress_bar, say, say_notes
from sim.errors import InputError

if TYPE_CHECKING:
    from sim.studies.vet.study import PricedRemedies
    from sim.training.vet_results import Vetted


def adapters(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with PEFT adapters in it or below.")],
    engine: Annotated[
        str | None, typer.Option(help="Check them against an engine's preset, such as vllm-0.32.")
    ] = None,
    max_rank: Annotated[
        int | None, typer.Option(help="The engine's largest rank. Default: what the adapters need.", min=1)
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="The base model that is served. Default: what most adapters name.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a scenario with these adapters and their true sizes.")
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="First write 16 example adapters into DIR, a new folder.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if one is refused, served wrongly or unreadable.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Count PEFT adapters by their headers: ranks, modules and sizes, and whether an engine serves them as they are.

    Example: loraplan adapters my-adapters --engine vllm-0.32
    """
    from sim.studies.vet.report import census_report, none_read
    from sim.training.files.census import find_copies, take_census
    from sim.training.files.engine_checks import ServingTarget, check_census, check_serving_target

    target = ServingTarget(engine, max_rank, base_model)
    check_serving_target(target)
    if write is not None:
        from sim.studies.vet.adapter_scenario import check_target

        check_target(write)
    if example:
        from calibrate.loads.synthetic_adapters import write_example_fleet

        write_example_fleet(folder)
    with progress_bar(quiet, "reading headers") as progress:
        census = take_census(folder, progress)
    if not census.entries:
        raise none_read(census)
    with progress_bar(quiet, "comparing") as progress:
        concerns = check_census(census, target, find_copies(census.entries, progress=progress))
    notes = []
    if write is not None:
        from sim.studies.vet.adapter_scenario import write_scenario

        notes = write_scenario(census, target, write)
    finish(census_report(census, concerns, target, write, notes), None, as_json=json, quiet=quiet)
    unreadable = any(failure.kind == "unreadable" for failure in census.failures)
    if check and (unreadable or any(concern.level in ("refused", "wrong") for concern in concerns)):
        raise typer.Exit(1)


def vet(
    context: typer.Context,
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="An adapter folder, a folder of them, or a trainer_state.json.")
    ],
    reference: Annotated[
        Path | None, typer.Option(help="Log or folder of the same training on a 16-bit base, to compare quality with.")
    ] = None,
    base_bits: Annotated[
        int | None, typer.Option(help="Bits of the base's weights in training, where no file says so.", min=1, max=32)
    ] = None,
    examples: Annotated[
        int | None, typer.Option(help="Examples that were trained on, where the log doesn't say.", min=1)
    ] = None,
    threshold: Annotated[
        list[str] | None, typer.Option(help="Change a threshold: NAME=VALUE, such as small_rank=8. Repeatable.")
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(help="Price every remedy for this fleet: a scenario file, or the name of a bundled one."),
    ] = None,
    set_: SetOption = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit with 1 if a problem is likely or certain, or an adapter can't be judged."),
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Read training logs of adapters: what went wrong, the evidence, and what would fix it.

    Example: loraplan vet my-adapters/support
    """
    from sim.results.run_directory.store import read_run
    from sim.studies.vet.remedy_report import prices_report
    from sim.studies.vet.report import vet_notes, vet_report
    from sim.training.logs.training_case import parse_thresholds
    from sim.training.vet_adapters import vet_path

    thresholds = parse_thresholds(threshold or [])
    found = vet_path(path, thresholds, reference, base_bits=base_bits, examples=examples)
    if scenario is None and set_:
        raise InputError("there is no scenario to price remedies for", key="--set", hint="give --scenario")
    priced = None
    if scenario is not None:
        session_of(context).kept = FINISHED_POINTS
        priced = _price(found, scenario, set_ or [], confined=session_of(context).confined, quiet=quiet)
    finish(vet_report(found, priced, scenario), None, as_json=json, quiet=quiet)
    for note in () if json else vet_notes(found):
        message(f"note: {note}", quiet)
    if priced is not None and not json:
        say("")
        finish(prices_report(read_run(priced.path)), priced.path, as_json=False, quiet=quiet, current=True)
        say_notes([priced.point], quiet)
    if check and not all(one.passes for one in found):
        raise typer.Exit(1)


def _price(
    found: tuple[Vetted, ...], scenario: str, set_: list[str], *, confined: bool, quiet: bool
) -> PricedRemedies | None:
    """Simulate what the remedies change, and write the run directory with its report."""
    from reports.render.html import write
    from sim.results.run_directory.store import read_run
    from sim.spec.scenario_file import load_scenario
    from sim.studies.execution import Execution
    from sim.studies.vet.remedy_report import remedies_report
    from sim.studies.vet.study import price_remedies

    with progress_bar(quiet, "pricing") as progress:
        loaded = load_scenario(scenario, set_, confined=confined, check_points=False)
        priced = price_remedies(found, loaded, None, Execution(command=command_line(), on_progress=progress))
    if priced is not None:
        write(remedies_report(read_run(priced.path)), priced.path)
    return priced
