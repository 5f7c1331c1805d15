"""``loraplan run`` and ``loraplan sweep``: simulate, keep the results, print the answer."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.emitting import Manifests
from sim.cli.help import RESULTS, SIMULATE
from sim.cli.options import (
    CheckOption,
    DeployableOptions,
    NoHeadroomOption,
    OverwriteOption,
    StudyOptions,
    complete_assignment,
    parse_range,
    takes,
)
from sim.cli.output import (
    command_line,
    message,
    pool_of,
    print_rich,
    progress_bar,
    rich_table,
    say,
    say_file,
    say_json,
    say_notes,
    say_result,
    workers_of,
)
from sim.cli.terminal import has_marks, width_of_terminal
from sim.errors import InputError, ScenarioError

if TYPE_CHECKING:
    from reports.text.answer_text import Answer
    from sim.results.point import Point
    from sim.results.run_directory.store import RunData
    from sim.spec.scenario_file import LoadedScenario


@takes(DeployableOptions)
def run(
    options: DeployableOptions,
    all_: Annotated[
        bool, typer.Option("--all", help="Print every metric, not only the main ones.", rich_help_panel=RESULTS)
    ] = False,
    check: CheckOption = False,
    overwrite: OverwriteOption = False,
    no_headroom: NoHeadroomOption = False,
) -> None:
    """Simulate one scenario, print the answer and write a report.

    Example: loraplan run quickstart --set cache.gpu.slots=64
    """
    loaded = options.load()
    manifests = options.manifests(loaded)
    asked = _Asked(check, overwrite, headroom=not no_headroom, key_only=not all_, manifests=manifests)
    _simulate(options, loaded, [{}], asked)


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
    check: CheckOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Simulate every combination of some values, in parallel. An interrupted sweep resumes.

    Example: loraplan sweep quickstart --over cache.gpu.slots=8..64:8
    """
    from sim.studies.sweep import grid

    axes = _axes(over or [])
    loaded = options.load(check_points=not axes)
    _simulate(options, loaded, grid(loaded, axes), _Asked(check, overwrite))


@dataclass(frozen=True)
class _Asked:
    """What a study is to do besides simulating.

    :ivar check: exit with 1 if the SLO is missed.
    :ivar overwrite: simulate again what the run directory has.
    :ivar headroom: simulate how much more traffic fits.
    :ivar key_only: print key metrics alone.
    :ivar manifests: what to emit.
    """

    check: bool
    overwrite: bool
    headroom: bool = False
    key_only: bool = False
    manifests: Manifests = field(default_factory=Manifests)


def _simulate(options: StudyOptions, loaded: LoadedScenario, sets: list[dict[str, Any]], asked: _Asked) -> None:
    """Run a study, write its report, print its answer."""
    from reports.pages.run_page import current_report, run_answer, write_report
    from sim.results.run_directory.store import blamed_on, summary_json
    from sim.results.slo_terms import all_terms
    from sim.studies.execution import Execution
    from sim.studies.study_identity import finished_study, free_folder

    if asked.check and not all_terms(loaded.scenario):
        raise InputError("the scenario has no SLO to check", key="slo", hint="give slo: {ttft_p99: 1 s}")
    folder = options.out or free_folder(loaded, sets)
    opened = pool_of(options.backend, options.jobs, options.quiet)
    # Looked for here too: a study that is finished needs no simulator, and importing it takes as long as all the rest.
    finished = None if asked.overwrite else finished_study(loaded, sets, folder, headroom=asked.headroom)
    if finished is None:
        workers = workers_of(options.jobs)
        with opened as pool, progress_bar(options.quiet, workers=workers, lines=len(sets) > 1) as progress:
            from sim.studies.sweep import run_study

            execution = Execution(pool, command_line(), progress)
            finished = run_study(loaded, sets, folder, execution, overwrite=asked.overwrite, headroom=asked.headroom)
    data = finished.run
    with blamed_on(finished.path) if finished.reused else nullcontext():  # points of this run are what we write
        answer = run_answer(data)
    if options.json:
        say_json(summary_json(loaded.scenario.name, finished.points, data.headroom))
    else:
        _print_answer(loaded, data, answer, key_only=asked.key_only)
    sys.stdout.flush()  # the answer can be read while the charts are drawn
    with blamed_on(finished.path) if finished.reused else nullcontext():
        page = (current_report(finished.path) if finished.unchanged else None) or write_report(data, answer)
    if not options.json:
        say("")
        say_file("report  ", page)
        tables = ["points.csv", *(["tenants.csv"] if any(point.tenants for point in finished.points) else [])]
        say(f"tables  {', '.join(str(finished.path / name) for name in (*tables, 'requests.parquet'))}")
    if asked.manifests.emissions:
        asked.manifests.write_and_say(loaded.scenario, data, finished.points[0], json=options.json, quiet=options.quiet)
    if finished.reused:
        count = f"{finished.reused} of {len(finished.points)} points" if len(finished.points) > 1 else "the results"
        message(f"note: {count} come from an earlier run; --overwrite simulates again", options.quiet)
    say_notes(finished.points, options.quiet)
    if asked.check and not _meets_slo(loaded, finished.points):
        raise typer.Exit(1)


def _meets_slo(loaded: LoadedScenario, points: list[Point]) -> bool:
    """Return whether every point meets every term of the SLO, and of those of its tenants, with its interval."""
    from sim.results.verdict import MET, verdict

    def terms(point: Point) -> dict[str, float]:
        varies = any(key.startswith("slo") for key in point.set)
        scenario = loaded.with_values(point.set).scenario if varies else loaded.scenario
        return scenario.slo.terms()

    return all(verdict(point, terms(point)) == MET for point in points)


def _print_answer(loaded: LoadedScenario, data: RunData, answer: Answer, *, key_only: bool) -> None:
    from reports.answers.change_findings import has_clear_impact
    from reports.axes import make_axes
    from reports.tables.metric_tables import (
        grouped_table,
        matrix_table,
        metrics_table,
        terminal_table,
        traffic_sentence,
    )
    from reports.tables.slice_tables import base_model_table, money_table, pools_table, tenants_table
    from reports.text.metric_text import capital
    from sim.results.verdict import NO_SLO, verdict

    points, terms = data.points, loaded.scenario.slo.terms()
    axes = make_axes(points)
    if len(points) > 1:
        matrix = matrix_table(points, axes, terms) if width_of_terminal() is not None and has_marks() else None
        table = matrix or terminal_table(points, axes, terms)
    else:
        load = None if data.headroom is None else data.headroom.load
        table = grouped_table(points[0], terms, load) if key_only else metrics_table(points[0])
    about_slo = len(points) == 1 and not has_clear_impact(points[0])  # a mark would say that all is well
    found = verdict(points[0], terms) if about_slo else NO_SLO
    say_result(loaded.scenario.name, answer.headline, points, None if found == NO_SLO else found)
    for sentence in (answer.binding_sentence, answer.headroom, *answer.details, traffic_sentence(points)):
        if sentence:
            say(f"  {sentence}")
    say(f"  Confidence: {answer.confidence}. {capital(answer.reason)}.", "")
    print_rich(rich_table(table))
    if table.note:
        say(table.note)
    more = (base_model_table(points[0]), pools_table(points[0], "")) if len(points) == 1 else ()
    for part in (*more, tenants_table(points, axes), money_table(points, axes)):
        if part is not None:
            say("", part.caption)
            print_rich(rich_table(part))
            say(*filter(None, [part.note]))


def _axes(texts: list[str]) -> dict[str, list[Any]]:
    axes: dict[str, list[Any]] = {}
    for text in texts:
        key, values = _parse_over(text)
        if key in axes:
            raise InputError("given twice", key=f"--over {key}", hint="write all its values in one: key=v1,v2,v3")
        if any(value in values[:place] for place, value in enumerate(values)):
            raise InputError("a value occurs twice", key=f"--over {key}", got=text.partition("=")[2])
        if key.partition(".")[0] in ("name", "description", "schema_version", "sweep", "run"):
            raise InputError("can't be swept", key=f"--over {key}", allowed="what is simulated, not how it is called")
        axes[key] = values
    return axes


def _parse_over(text: str) -> tuple[str, list[Any]]:
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
    from sim.studies.planning.candidates import values_between

    option = f"--over {found.key}"
    if found.step is None:
        ends = _yaml_list(key, f"{found.low}, {found.high}")
        values_between(ends, None, option, option)  # where no step helps, it says why
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
