"""``loraplan run`` and ``loraplan sweep``: simulate, keep the results, print the answer."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.help import SIMULATE
from sim.cli.options import (
    AllOption,
    CheckOption,
    DeployableOptions,
    NoHeadroomOption,
    OverwriteOption,
    StudyOptions,
    complete_assignment,
    naming,
    parse_range,
    takes,
)
from sim.cli.output import finish, message, say_notes
from sim.errors import InputError, ScenarioError

if TYPE_CHECKING:
    from sim.results.point import Point
    from sim.spec.scenario_file import LoadedScenario
    from sim.study_results import Results


@takes(DeployableOptions)
def run(
    options: DeployableOptions,
    all_: AllOption = False,
    check: CheckOption = False,
    overwrite: OverwriteOption = False,
    no_headroom: NoHeadroomOption = False,
) -> None:
    """Simulate one scenario, print the answer and write a report.

    Example: loraplan run quickstart --set cache.gpu.slots=64
    """
    loaded = options.load()
    manifests = options.manifests(loaded)
    _check_slo(loaded, check)
    results = _simulate(options, loaded, [{}], overwrite=overwrite, headroom=not no_headroom)
    _print(options, results, every=all_)
    if manifests.emissions:
        manifests.write_and_say(loaded.scenario, results.data, results.point, json=options.json, quiet=options.quiet)
    _end(options, loaded, results, check)


@takes(StudyOptions)
def sweep(
    options: StudyOptions,
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over",
            help="Values to try: KEY=v1,v2,v3 or KEY=a..b:step. Repeatable.",
            metavar="KEY=VALUES",
            autocompletion=complete_assignment,
            rich_help_panel=SIMULATE,
        ),
    ] = None,
    all_: AllOption = False,
    check: CheckOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Simulate every combination of some values, in parallel. An interrupted sweep resumes.

    Example: loraplan sweep quickstart --over cache.gpu.slots=8..64:8
    """
    from sim.studies.design import grid

    with naming("--over" if over else "", "sweep"):
        loaded = options.load(check_points=not over)
        axes = _axes(over or [], loaded)
        _check_slo(loaded, check)
        results = _simulate(options, loaded, grid(loaded, axes), overwrite=overwrite)
    _print(options, results, every=all_)
    _end(options, loaded, results, check)


def _check_slo(loaded: LoadedScenario, check: bool) -> None:
    from sim.results.slo_terms import all_terms

    if loaded.scenario.fleet.engine == "fixed" and all_terms(loaded.scenario):
        from sim.studies.plan.checks import check_terms

        check_terms(loaded)
    if check and not all_terms(loaded.scenario):
        raise InputError("the scenario has no SLO to check", key="slo", hint="give slo: {ttft_p99: 1 s}")


def _simulate(options: StudyOptions, loaded: LoadedScenario, sets: list[dict[str, Any]], **how: bool) -> Results:
    from sim.api import simulated
    from sim.studies.study_identity import free_folder

    folder = options.out or free_folder(loaded, sets)
    return simulated(loaded, sets, folder, options.executing(lines=len(sets) > 1), **how)


def _print(options: StudyOptions, results: Results, *, every: bool) -> None:
    """Print the answer, and write the report if the folder lacks it."""
    from reports.render.html import current_page
    from sim.results.run_directory.store import blamed_on

    with blamed_on(results.path) if results.reused else nullcontext():  # points of this run are what we write
        current = results.unchanged and current_page(results.path)
        document = results.document()
        finish(document, results.path, as_json=options.json, quiet=options.quiet, every=every, current=current)


def _end(options: StudyOptions, loaded: LoadedScenario, results: Results, check: bool) -> None:
    """Say what else there is to know, and exit with 1 if the SLO should be met and is not."""
    points, quiet = results.points, options.quiet
    if results.reused:
        count = f"{results.reused} of {len(points)} points" if len(points) > 1 else "the results"
        message(f"note: {count} come from an earlier run; --overwrite simulates again", quiet)
    say_notes(points, quiet)
    if check and not _meets_slo(loaded, points):
        raise typer.Exit(1)


def _meets_slo(loaded: LoadedScenario, points: list[Point]) -> bool:
    """Return whether every point meets every term of the SLO, and of those of its tenants, with its interval."""
    from sim.results.verdict import MET, verdict

    def terms(point: Point) -> dict[str, float]:
        varies = any(key.startswith("slo") for key in point.set)
        scenario = loaded.with_values(point.set).scenario if varies else loaded.scenario
        return scenario.slo.terms()

    return all(verdict(point, terms(point)) == MET for point in points)


def _axes(texts: list[str], loaded: LoadedScenario) -> dict[str, list[Any]]:
    axes: dict[str, list[Any]] = {}
    for text in texts:
        key, values = _parse_over(text, loaded)
        if key in axes:
            raise InputError("given twice", key=f"--over {key}", hint="write all its values in one: key=v1,v2,v3")
        if key in loaded.origins and loaded.origins[key].place == "--set":
            raise InputError("given by --set, too", key=f"--over {key}", hint="leave out one of the two")
        if key.partition(".")[0] in ("name", "description", "schema_version", "sweep", "run"):
            raise InputError("can't be swept", key=f"--over {key}", allowed="what is simulated, not how it is called")
        axes[key] = values
    return axes


def _parse_over(text: str, loaded: LoadedScenario) -> tuple[str, list[Any]]:
    """Return the key and values of ``--over key=v1,v2`` or ``key=a..b:step``.

    Values are YAML, so lists and mappings work too.
    """
    key, equals, values = text.partition("=")
    if not equals or not key.strip() or not values.strip():
        allowed = "key=v1,v2,v3 or key=a..b:step"
        raise InputError("not a key and its values", key="--over", got=text, allowed=allowed)
    found = parse_range(text)
    if found is None:
        return key.strip(), _yaml_list(key, values)
    from sim.studies.plan.candidates import values_between

    option = f"--over {found.key}"
    if found.step is None:
        ends = _yaml_list(key, f"{found.low}, {found.high}")
        values_between(ends, None, option, option)  # where no step helps, it says why
        try:
            loaded.with_values({found.key: ends[0]})
        except InputError as error:
            if error.key == found.key:  # such as a rate without its unit
                raise
        hint = f"such as {text}:10%, or a distance with its unit"
        if all(isinstance(end, int) for end in ends):
            hint = f"such as {text}:1" + (f", or {text}:10%" if ends[0] > 0 else "")
        raise InputError("a range needs a step", key=option, got=values, hint=hint)
    low, high, step = _yaml_list(key, f"{found.low}, {found.high}, {found.step}")
    return found.key, values_between([low, high], step, option, option)


def _yaml_list(key: str, values: str) -> list[Any]:
    from sim.spec.files.tree import plain
    from sim.spec.files.yaml_tree import parse_yaml

    try:
        node = parse_yaml(f"[{values}]", "--over")
    except ScenarioError as error:
        raise InputError(error.problem, key=f"--over {key}", got=values, allowed="v1,v2,v3 or a..b:step") from None
    assert node is not None, "brackets are a list"
    found: list[Any] = plain(node)
    return found
