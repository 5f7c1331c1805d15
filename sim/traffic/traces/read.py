"""Recorded requests: which format a file has, read once, kept while others ask for it, and scaled for each."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from sim.errors import TraceError
from sim.spec.sections.trace_source import TRACE_FORMATS, Trace
from sim.traffic.tables.blocks import TraceTable
from sim.traffic.tables.line_tables import AccessTable, VllmTable
from sim.traffic.tables.parquet import ParquetTable
from sim.traffic.tables.text_files import open_tables
from sim.traffic.traces.data import ReadOptions, TraceData
from sim.traffic.traces.formats import Layout, plain, read_rows
from sim.traffic.traces.log_columns import find_columns
from sim.traffic.traces.scales import faster, with_population
from sim.traffic.traces.text_columns import TEXT_COLUMNS, TEXTS
from sim.traffic.traces.windows import FUNCTION_COLUMN, read_function_counts, read_windows

__all__ = ["Format", "TraceData", "format_named", "format_of", "read_trace"]


@dataclass(frozen=True, slots=True)
class Format:
    """A format of traces.

    :ivar marks: columns that tell it from the others.
    :ivar read: its reader.
    :ivar adapters: whether it names adapters.
    :ivar drawn: whether it holds rates and counts, from which requests are made.
    """

    marks: frozenset[str]
    read: Callable[[TraceTable, ReadOptions], TraceData]
    adapters: bool = True
    drawn: bool = False


def _read_csv(table: TraceTable, ask: ReadOptions) -> TraceData:
    if isinstance(table, ParquetTable):
        raise TraceError("a Parquet file", key="format", file=ask.file, got="csv", allowed="parquet or auto")
    return read_rows(table, _plain(table, ask), ask)


def _read_parquet(table: TraceTable, ask: ReadOptions) -> TraceData:
    if not isinstance(table, ParquetTable):
        raise TraceError("not a Parquet file", key="format", file=ask.file, got="parquet", allowed="csv or auto")
    return read_rows(table, _plain(table, ask), ask)


def _read_log(table: TraceTable, ask: ReadOptions) -> TraceData:
    rules = find_columns(table.header, ask)
    column = rules.columns.get
    adapter = column("adapter")
    layout = Layout(
        time=column("time"),
        per_second="any",
        minus=column("duration"),
        adapter=() if adapter is None else (adapter,),
        prompt=column("input"),
        output=column("output"),
        no_output="failed",
        unsorted=True,
        session=column("session"),
        texts=column("input") is not None and any(texts <= set(table.header) for texts in TEXTS),
        log=rules,
    )
    return read_rows(table, layout, ask)


def _plain(table: TraceTable, ask: ReadOptions) -> Layout:
    """Return our own layout; where only adapters are wanted, of the other columns those that are there."""
    layout = plain(table.header)
    if not ask.adapters_only:
        return layout

    def there(column: str | None) -> str | None:
        return column if column in table.header else None

    time, prompt, output = map(there, (layout.time, layout.prompt, layout.output))
    unread = (*layout.others, "session_id", *TEXT_COLUMNS)
    return replace(layout, time=time, prompt=prompt, output=output, session=None, texts=False, others=unread)


CSV = Format(frozenset(), _read_csv)
PARQUET = Format(frozenset(), _read_parquet)
LOG = Format(frozenset(), _read_log)
SERVEGEN_WINDOWS = Format(frozenset(("client_id", "timestamp_s", "rate_rps")), read_windows, drawn=True)
AZURE_FUNCTIONS = Format(frozenset((FUNCTION_COLUMN, "1")), read_function_counts, drawn=True)


@lru_cache
def format_named(name: str) -> Format:
    """Return the format of a name in ``TRACE_FORMATS``."""
    found = TRACE_FORMATS[name].load()
    if isinstance(found, Layout):
        return Format(
            frozenset(found.needed()), lambda table, ask: read_rows(table, found, ask), adapters=bool(found.adapter)
        )
    assert isinstance(found, Format), "a layout, or a format with a reader of its own"
    return found


def format_of(table: TraceTable, asked: str, ask: ReadOptions) -> str:
    """Return the name of a table's format: the one asked for, or the first whose columns it has; else it is a log.

    :raises TraceError: for a name that is none.
    """
    if asked not in TRACE_FORMATS:
        raise TRACE_FORMATS.unknown(asked, "format", kind=TraceError)
    if asked != "auto":
        return asked
    given = (ask.columns, ask.base_model, ask.adapter_from)
    if any(each is not None for each in given) or len(ask.files) > 1 or isinstance(table, AccessTable | VllmTable):
        return "log"
    for name in TRACE_FORMATS.names[1:]:
        marks = format_named(name).marks
        if marks and marks <= set(table.header):
            return name
    if not set(_plain(table, ask).needed()) <= set(table.header):
        return "log"
    return "parquet" if isinstance(table, ParquetTable) else "csv"


def read_trace(trace: Trace, limit: int | None = None, *, seed: int = 1) -> TraceData:
    """Read a trace, scaled as it says; at most ``limit`` of its requests.

    :param seed: decides offsets of ``population_scale``, and requests that are made from rates and counts.
    :raises TraceError: naming file, row, column, value and what is allowed.
    """
    ask = ReadOptions(
        files=trace.files,
        limit=limit,
        lengths_file=trace.lengths_file,
        hash_block=trace.hash_block,
        skip_bad=trace.skip_bad,
        columns=trace.columns,
        base_model=trace.base_model,
        adapter_from=trace.adapter_from,
    )
    with open_tables(ask.files) as table:
        name = format_of(table, trace.format, ask)
    if trace.lengths_file is not None and not TRACE_FORMATS[name].has_lengths_file:
        raise TraceError("only servegen-windows has a lengths file", file=ask.file, got=f"format {name}")
    if format_named(name).drawn:
        return faster(_kept(name, replace(ask, seed=seed, rate_scale=trace.population_scale)), trace.time_scale)
    # The limit counts requests after scaling: of a trace with copies all rows are needed.
    data = _kept(name, ask if trace.population_scale == 1 else replace(ask, limit=None))
    return faster(with_population(data, trace.population_scale, limit, seed, ask.file), trace.time_scale)


def _kept(name: str, ask: ReadOptions) -> TraceData:
    files = ask.files if ask.lengths_file is None else (*ask.files, ask.lengths_file)
    return _read(name, ask, tuple(map(_state, files)))


def _state(file: str) -> tuple[int, int]:
    """Return what tells a changed file from the one before."""
    try:
        status = os.stat(file)
    except OSError:
        return 0, 0  # reading it says what is wrong
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=2)
def _read(name: str, ask: ReadOptions, states: tuple[tuple[int, int], ...]) -> TraceData:
    """Read a trace once per state of its files: a sweep builds many worlds from it. Two, as a trace may take 1.2 GB."""
    with open_tables(ask.files) as table:
        return format_named(name).read(table, ask)
