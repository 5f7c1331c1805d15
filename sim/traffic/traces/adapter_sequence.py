"""The adapters of a trace's requests, in order: the input of a cache-only replay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError, TraceError
from sim.spec.sections.trace_source import TRACE_FORMATS
from sim.traffic.request import BASE_MODEL
from sim.traffic.tables.text_files import open_table
from sim.traffic.traces.data import ReadOptions
from sim.traffic.traces.read import format_named, format_of
from sim.traffic.traces.rows import MAX_BYTES


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


def read_adapter_sequence(
    file: str,
    *,
    format: str = "auto",  # noqa: A002 - the name of the scenario's field
    skip_bad: bool = False,
    adapter_size: int | None = None,
) -> AdapterSequence:
    """Read the adapters of a trace's requests; plain CSV and Parquet need no times and no lengths for that.

    If they have times, these are checked: a trace out of order has other misses.

    :param skip_bad: leave bad rows out and count them.
    :param adapter_size: bytes of every adapter, instead of the trace's ``adapter_bytes``.
    :raises TraceError: naming file, row and column; also for formats that name no adapters.
    :raises InputError: for an ``adapter_size`` that a trace could not have either.
    """
    if adapter_size is not None and not 1 <= adapter_size <= MAX_BYTES:
        raise InputError("no size of an adapter", key="--adapter-size", got=adapter_size, allowed=f"1 to {MAX_BYTES:,}")
    ask = ReadOptions(files=(file,), limit=None, skip_bad=skip_bad, adapters_only=True)
    with open_table(file) as table:
        name = format_of(table, format, ask)
        if not format_named(name).adapters:
            raise TraceError(
                "this format names no adapters",
                file=file,
                got=name,
                allowed=", ".join(other for other in TRACE_FORMATS.names[1:] if format_named(other).adapters),
                hint="a scenario can draw them: workload.trace with workload.popularity",
            )
        data = format_named(name).read(table, ask)
    assert data.adapter is not None, "the format says that it names adapters"
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
