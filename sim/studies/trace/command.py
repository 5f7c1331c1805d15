"""``loraplan trace``: what a trace is like, and a scenario whose traffic is like it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.log_options import AdapterFromOption, BaseModelOption, ColumnsOption, trace_source
from sim.cli.options import JsonOption, QuietOption, parsed
from sim.cli.output import command_line, file_stem, finish, folder_for, message, progress_bar, say
from sim.errors import InputError

if TYPE_CHECKING:
    from sim.spec.sections.trace_source import Trace

PLAIN = (".csv", ".parquet")
"""Endings of ``--out`` that ask for a plain file."""


def trace(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="A trace or a log (docs/trace.md); of a log, also several.")
    ],
    format_: Annotated[str, typer.Option("--format", help="Format of the trace; auto: recognised by its columns.")] = (
        "auto"
    ),
    columns: ColumnsOption = None,
    base_model: BaseModelOption = None,
    adapter_from: AdapterFromOption = None,
    requests: Annotated[int | None, typer.Option(help="Read at most this many requests.", min=1)] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that can't be used, and count them.")
    ] = False,
    fit: Annotated[
        str, typer.Option(help="Share of the trace's time that traffic is fitted to; the rest checks it.")
    ] = "50%",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for results. Default: runs/trace-NAME, and none with --json. NAME.csv or NAME.parquet: only "
            "write the trace as such a file."
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Describe a trace (bursts, popularity, locality) and write a scenario with similar traffic.

    Example: loraplan trace trace.csv
    """
    from sim.spec.units import parse_share
    from sim.studies.trace.report import study_report
    from sim.studies.trace.study import study_trace
    from sim.traffic.traces.read import read_trace

    share = parsed(parse_share, "--fit", fit, "not a share")
    if not share > 0:
        raise InputError("nothing to fit", key="--fit", got=fit, allowed="above 0, up to 100%")
    source = trace_source(files, columns, base_model, adapter_from, format_=format_, skip_bad=skip_bad)
    if out is not None and out.suffix in PLAIN:
        _convert(source, requests, out, quiet)
        return
    data, stem = read_trace(source, requests), file_stem(files[0])
    folder = folder_for(out, f"trace-{stem}", as_json=json)
    with progress_bar(quiet, "fitting") as progress:
        study = study_trace(data, source.files[0], fit_share=share, progress=progress)
    report = study_report(study, source, data, stem=stem, requests=requests, command=command_line())
    finish(report, folder, as_json=json, quiet=quiet)


def _convert(source: Trace, requests: int | None, target: Path, quiet: bool) -> None:
    """Write a trace as a plain file."""
    from sim.results.run_directory.result_files import write_atomically
    from sim.traffic.traces.export import check_plain, write_plain
    from sim.traffic.traces.read import read_trace

    if target.exists():  # it may be the log itself
        raise InputError(
            "the file exists", key="--out", got=str(target), hint="choose another name, or remove the file"
        )
    data = read_trace(source, requests)
    for note in data.notes:
        message(f"note: {note}", quiet)
    check_plain(data)
    write_atomically(target, lambda out: write_plain(data, out, target.suffix))
    say(target)
