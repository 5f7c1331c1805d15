"""Recorded requests: which format a file has, read once, kept while others ask for it, and scaled for each."""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats, Ints, Ints32
from sim.errors import InputError, TraceError
from sim.rng import stream
from sim.spec.sections.trace_source import NO_COLUMN, TRACE_FORMATS, Trace
from sim.traffic.request import BASE_MODEL
from sim.traffic.tables.blocks import TraceTable
from sim.traffic.tables.line_tables import AccessTable, VllmTable
from sim.traffic.tables.parquet import ParquetTable
from sim.traffic.tables.text_files import open_tables
from sim.traffic.traces.data import MAX_REQUESTS, ReadOptions, TraceData, too_many
from sim.traffic.traces.formats import Layout, read_rows
from sim.traffic.traces.log_columns import find_columns, guess
from sim.traffic.traces.rows import MAX_BYTES
from sim.traffic.traces.text_columns import TEXT_COLUMNS, TEXTS
from sim.traffic.traces.windows import FUNCTION_COLUMN, read_function_counts, read_windows


def with_population(data: TraceData, scale: float, limit: int | None, seed: int, file: str) -> TraceData:
    """Give a trace ``scale`` times as many users of the same adapters.

    Whole copies are rotated by random offsets (except the first), keep separate sessions, and are merged in time. A
    fractional copy keeps each session (or request, without sessions) with that probability.

    :param limit: the most requests to return.
    :raises TraceError: where no request is left, or too many come without a limit.
    """
    if scale == 1:
        return data
    if limit is None and scale * len(data) > MAX_REQUESTS:
        raise too_many(file, scale * len(data))
    index, arrival, copy = _merged(data, scale, limit, seed)
    if len(index) == 0:
        raise TraceError("no request is left at this population_scale", file=file, got=scale)
    order = np.argsort(arrival, kind="stable")[:limit]
    index, arrival, copy = index[order], arrival[order], copy[order]
    picked = replace(data.pick(index), arrival_s=arrival - arrival[0], session=_sessions(data, index, copy))
    if picked.text is None or data.text is None or not data.text_by_user:
        return picked
    # Texts of users: every copy has its own.
    text = picked.text
    apart = np.repeat(copy.astype(np.int64), np.diff(text.first)) * (int(data.text.keys.max(initial=-1)) + 1)
    return replace(picked, text=replace(text, keys=text.keys + apart))


def _merged(data: TraceData, scale: float, limit: int | None, seed: int) -> tuple[Ints, Floats, Ints32]:
    """Return index in the trace, time and copy of the scaled requests up to a horizon that holds ``limit``."""
    count, copies = len(data), math.ceil(scale)
    last_s = float(data.arrival_s[-1])
    period_s = last_s * count / (count - 1) if count > 1 and last_s > 0 else 1.0
    share = 1.0 if limit is None else min(1.0, 2 * limit / (scale * count))
    while True:
        parts = [_copy(data, number, scale, period_s, share * period_s, seed) for number in range(copies)]
        index = np.concatenate([part[0] for part in parts])
        if share >= 1 or limit is None or len(index) >= limit:
            arrival = np.concatenate([part[1] for part in parts])
            copy = np.repeat(np.arange(copies, dtype=np.int32), [len(part[0]) for part in parts])
            return index, arrival, copy
        share = min(1.0, share * 2)


def _copy(
    data: TraceData, number: int, scale: float, period_s: float, horizon_s: float, seed: int
) -> tuple[Ints, Floats]:
    """Return one copy, rotated and up to the horizon: index in the trace, and time.

    Requests beyond the horizon are not touched: there may be 10,000 copies, and few requests needed of each.
    """
    times, end_s = data.arrival_s, horizon_s if horizon_s < period_s else math.inf
    offset_s = float(stream(seed, 0, "population offset", number).random()) * period_s if number else 0.0
    shift_s = period_s - offset_s if number else 0.0
    # The trace from ``begin`` on comes first, then what is before. Both are cut by the times they get, as rounded.
    begin = int(np.searchsorted(times, shift_s, side="left"))
    first = bisect_left(times, end_s, lo=begin, key=lambda time: time - shift_s)
    then = bisect_left(times, end_s, hi=begin, key=lambda time: time + offset_s)
    index = np.concatenate((np.arange(begin, first), np.arange(then)))
    rotated = np.concatenate((times[begin:first] - shift_s, times[:then] + offset_s))
    kept_share = scale - number
    if kept_share >= 1:
        return index, rotated
    rng = stream(seed, 0, "population sample")
    if data.session is None:
        kept: NDArray[np.bool_] = (rng.random(len(data)) < kept_share)[index]
    else:
        kept = (rng.random(int(data.session.max()) + 1) < kept_share)[data.session[index]]
    return index[kept], rotated[kept]


def _sessions(data: TraceData, index: Ints, copy: Ints32) -> Ints32 | None:
    if data.session is None:
        return None
    import pandas as pd

    apart = data.session[index].astype(np.int64) + copy.astype(np.int64) * (int(data.session.max()) + 1)
    return np.asarray(pd.factorize(apart)[0], dtype=np.int32)


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
        request=guess("request", table.header, ask.file),
        texts=column("input") is not None and any(texts <= set(table.header) for texts in TEXTS),
        log=rules,
    )
    return read_rows(table, layout, ask)


def _plain(table: TraceTable, ask: ReadOptions) -> Layout:
    """Return our own layout, of CSV and Parquet; an adapter is an adapter_id or else a tenant_id.

    Where only adapters are wanted, it has of the other columns those that are there.
    """
    layout = Layout(
        time="timestamp_s",
        per_second="any",
        adapter=("adapter_id" if "adapter_id" in table.header else "tenant_id",),
        prompt="input_tokens",
        output="output_tokens",
        size="adapter_bytes",
        session="session_id",
        texts=True,
        others=("adapter_id", "tenant_id"),
    )
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
    """Return the name of a table's format: the one asked for, or the first whose columns it has; else it is a log."""
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


def _options(trace: Trace, limit: int | None, *, adapters_only: bool = False) -> ReadOptions:
    return ReadOptions(
        files=trace.files,
        limit=limit,
        lengths_file=trace.lengths_file,
        hash_block=trace.hash_block,
        skip_bad=trace.skip_bad,
        adapters_only=adapters_only,
        columns=trace.columns,
        base_model=trace.base_model,
        adapter_from=trace.adapter_from,
    )


def read_trace(trace: Trace, limit: int | None = None, *, seed: int = 1) -> TraceData:
    """Read a trace, scaled as it says; at most ``limit`` of its requests.

    :param seed: decides offsets of ``population_scale``, and requests that are made from rates and counts.
    :raises TraceError: naming file, row, column, value and what is allowed.
    """
    ask = _options(trace, limit)
    with open_tables(ask.files) as table:
        name = format_of(table, trace.format, ask)
    if trace.lengths_file is not None and not TRACE_FORMATS[name].has_lengths_file:
        raise TraceError("only servegen-windows has a lengths file", file=ask.file, got=f"format {name}")
    if format_named(name).drawn:
        data = _kept(name, replace(ask, seed=seed, rate_scale=trace.population_scale))
    else:
        # The limit counts requests after scaling: of a trace with copies all rows are needed.
        data = _kept(name, ask if trace.population_scale == 1 else replace(ask, limit=None))
        data = with_population(data, trace.population_scale, limit, seed, ask.file)
    return data if trace.time_scale == 1 else replace(data, arrival_s=data.arrival_s / trace.time_scale)


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


@dataclass(frozen=True, slots=True)
class AdapterSequence:
    """The requests of a trace for adapters, as a cache sees them.

    :ivar adapter: (n,) int32 index into ``names``, by first appearance.
    :ivar names: the adapters' names.
    :ivar size_bytes: (adapters,) int64, or None where neither the trace nor the caller gives sizes.
    :ivar notes: sentences for the user.
    """

    adapter: NDArray[np.int32]
    names: tuple[str, ...]
    size_bytes: NDArray[np.int64] | None
    notes: tuple[str, ...]


def read_adapter_sequence(trace: Trace, *, adapter_size: int | None = None) -> AdapterSequence:
    """Read the adapters of a trace's requests; plain tables and logs need no times and no lengths for that.

    If they have times, these are checked: a trace out of order has other misses.

    :param adapter_size: bytes of every adapter, instead of the trace's ``adapter_bytes``.
    :raises TraceError: naming file, row and column; also for formats that name no adapters.
    :raises InputError: for an ``adapter_size`` that a trace could not have either.
    """
    if adapter_size is not None and not 1 <= adapter_size <= MAX_BYTES:
        raise InputError("no size of an adapter", key="--adapter-size", got=adapter_size, allowed=f"1 to {MAX_BYTES:,}")
    ask = _options(trace, None, adapters_only=True)
    file = ask.file
    with open_tables(ask.files) as table:
        name = format_of(table, trace.format, ask)
        if not format_named(name).adapters:
            raise TraceError(
                "this format names no adapters",
                file=file,
                got=name,
                allowed=", ".join(other for other in TRACE_FORMATS.names[1:] if format_named(other).adapters),
                hint="a scenario can draw them: workload.trace with workload.popularity",
            )
        data = format_named(name).read(table, ask)
    if data.adapter is None:
        raise TraceError("a cache needs the adapter of each request", file=file, key="columns.adapter", got=NO_COLUMN)
    if data.base_alone:
        raise TraceError("no row names an adapter, so no request uses a cache", file=file, got="only empty cells")
    sizes = data.adapter_bytes
    if adapter_size is not None:
        sizes = np.full(len(data.names), adapter_size, dtype=np.int64)
    asked = data.adapter[data.adapter != BASE_MODEL]
    notes, without = data.notes, len(data.adapter) - len(asked)
    if without:
        some = f"{without:,} of {len(data.adapter):,} requests are"
        notes += (f"{file}: {some} for the base model and use no cache: they are left out",)
    return AdapterSequence(asked, data.names, sizes, notes)


__all__ = ["Format", "TraceData", "format_named", "format_of", "read_trace"]
