"""``loraplan trace``: what a trace is like, and a scenario whose traffic is like it."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.log_options import AdapterFromOption, BaseModelOption, ColumnsOption, trace_source
from sim.cli.options import JsonOption, QuietOption, takes
from sim.cli.output import (
    file_stem,
    make_folder,
    message,
    print_rich,
    progress_bar,
    rich_table,
    say,
    say_file,
    say_json,
)
from sim.errors import InputError

if TYPE_CHECKING:
    from sim.spec.sections.trace_source import Trace
    from sim.studies.traces.trace_study import TraceStudy
    from sim.traffic.traces.data import TraceData

FACTS, PAGE = "trace.json", "report.html"
PLAIN = (".csv", ".parquet")
"""Endings of ``--out`` that ask for a plain file."""
SEED = 1
"""Of shuffles and of the generated traffic: the same trace gives the same answer."""


@dataclass(frozen=True)
class TraceOptions:
    """The argument and the options of ``loraplan trace``."""

    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="A trace or a log (docs/traces.md); of a log, also several.")
    ]
    format_: Annotated[str, typer.Option("--format", help="Format of the trace; auto: recognised by its columns.")] = (
        "auto"
    )
    columns: ColumnsOption = None
    base_model: BaseModelOption = None
    adapter_from: AdapterFromOption = None
    requests: Annotated[int | None, typer.Option(help="Read at most this many requests.", min=1)] = None
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that can't be used, and count them.")] = (
        False
    )
    fit: Annotated[
        str, typer.Option(help="Share of the trace's time that traffic is fitted to; the rest checks it.")
    ] = "50%"
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for results. Default: runs/trace-NAME, and none with --json. NAME.csv or NAME.parquet: only "
            "write the trace as such a file, with the columns of docs/traces.md."
        ),
    ] = None
    json: JsonOption = False
    quiet: QuietOption = False


@takes(TraceOptions)
def trace(options: TraceOptions) -> None:
    """Describe a trace (bursts, popularity, locality) and write a scenario with similar traffic.

    Example: loraplan trace trace.csv
    """
    from sim.studies.traces.trace_study import study_trace
    from sim.traffic.traces.read import read_trace

    share = _share(options.fit)
    source = trace_source(options.files, options, format_=options.format_, skip_bad=options.skip_bad)
    plain = options.out if options.out is not None and options.out.suffix in PLAIN else None
    if plain is not None and plain.exists():  # it may be the log itself
        raise InputError("the file exists", key="--out", got=str(plain), hint="choose another name, or remove the file")
    data = read_trace(source, options.requests)
    if plain is not None:
        for note in data.notes:
            message(f"note: {note}", options.quiet)
        _convert(data, plain)
        say(plain)
        return
    folder = options.out or (None if options.json else Path("runs") / f"trace-{file_stem(options.files[0])}")
    if folder is not None:
        make_folder(folder)
    with progress_bar(options.quiet, "fitting") as progress:
        study = study_trace(data, source.files[0], fit_share=share, seed=SEED, progress=progress)
    for note in study.facts.notes:
        message(f"note: {note}", options.quiet)
    written = [] if folder is None else _write(folder, source, study, data, options.requests)
    if options.json:
        say_json(study.facts.to_json())
        return
    _print(study, written)


def _share(text: str) -> float:
    from pydantic_core import PydanticCustomError

    from sim.spec.units import parse_share

    try:
        share = parse_share(text)
    except PydanticCustomError as error:
        allowed = (error.context or {})["allowed"]
        raise InputError("not a share", key="--fit", got=text, allowed=allowed) from None
    if not share > 0:
        raise InputError("nothing to fit", key="--fit", got=text, allowed="above 0, up to 100%")
    return share


def _convert(data: TraceData, target: Path) -> None:
    from sim.results.run_directory.result_files import write_atomically
    from sim.traffic.traces.export import check_plain, write_plain

    check_plain(data)
    write_atomically(target, lambda out: write_plain(data, out, target.suffix))


def _write(
    folder: Path, source: Trace, study: TraceStudy, data: TraceData, requests: int | None
) -> list[tuple[str, Path]]:
    from reports.pages.trace_page import TracePage, write_page
    from sim.results.run_directory.result_files import digest_file, write_json
    from sim.studies.traces.trace_scenario import write_replay, write_scenario
    from sim.version import __version__

    file = Path(source.files[0])
    write_json(folder / FACTS, study.facts.to_json())
    written = [("replay", write_replay(source, data, folder, requests)), ("facts", folder / FACTS)]
    scenario = None
    if study.model is not None:
        path = write_scenario(study, data, file_stem(file), folder, seed=SEED)
        scenario = path.read_text(encoding="utf-8")
        written.insert(0, ("scenario", path))
    provenance = [
        *(("Trace", f"{Path(each).name}, sha256 {digest_file(Path(each))[:12]}") for each in source.files),
        ("Seed", str(SEED)),
        ("Version", f"loraplan {__version__}"),
    ]
    page = TracePage(study.facts, file.name, shlex.join(["loraplan", *sys.argv[1:]]), scenario, provenance)
    return [("report", write_page(page, folder / PAGE)), *written]


def _print(study: TraceStudy, written: list[tuple[str, Path]]) -> None:
    from reports.tables.trace_tables import check_table, curve_table, facts_table, laws_table
    from reports.text.trace_text import headline, sentences

    say(headline(study.facts))
    for sentence in sentences(study.facts):
        say(f"  {sentence}")
    for make in (facts_table, curve_table, laws_table, check_table):
        table = make(study.facts)
        if table is not None:
            say("", table.caption)
            print_rich(rich_table(table))
            if table.note:
                say(table.note)
    say("")
    for label, path in written:
        say_file(f"{label:8} ", path)
        if label == "replay" and study.facts.bursts and not study.facts.fit_has_bursts:
            plan = '--minimize fleet.replicas=1..8 --set "slo={ttft_p99: 1 s}"'
            say(f"next     loraplan plan {shlex.quote(str(path))} {plan}")
