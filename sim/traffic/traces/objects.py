"""The adapters that a trace asks for, in order: all that a cache-only replay needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.errors import TraceError
from sim.traffic.traces.data import Ask
from sim.traffic.traces.formats import Layout, plain, read_rows
from sim.traffic.traces.read import FORMATS, format_of
from sim.traffic.traces.text_files import open_table


@dataclass(frozen=True, slots=True)
class Objects:
    """The requests of a trace as a cache sees them.

    :ivar adapter: (n,) int32 index into ``names``, by first appearance.
    :ivar names: the adapters' names.
    :ivar size_bytes: (adapters,) int64, or None where neither the trace nor the caller gives sizes.
    :ivar skipped: reason → rows left out.
    :ivar notes: sentences for the user.
    """

    adapter: NDArray[np.int32]
    names: tuple[str, ...]
    size_bytes: NDArray[np.int64] | None
    skipped: dict[str, int]
    notes: tuple[str, ...]


def read_objects(
    file: str,
    *,
    format: str = "auto",  # noqa: A002 - the name of the scenario's field
    limit: int | None = None,
    skip_bad: bool = False,
    adapter_size: int | None = None,
) -> Objects:
    """Read which adapters a trace asks for; plain CSV and Parquet need no times and no lengths for that.

    Where they have them, they are checked all the same: a trace out of order has other misses.

    :param limit: at most so many requests.
    :param skip_bad: leave bad rows out and count them.
    :param adapter_size: bytes of every adapter, instead of the trace's ``adapter_bytes``.
    :raises TraceError: naming file, row and column; also for formats that name no adapters.
    """
    ask = Ask(file=file, limit=limit, skip_bad=skip_bad)
    with open_table(file) as table:
        name = format_of(table, format)
        if name in ("csv", "parquet"):
            data = read_rows(table, _what_there_is(plain(table.header), table.header), ask)
        else:
            data = FORMATS[name].read(table, ask)
    if data.adapter is None:
        raise TraceError(
            "this format names no adapters", file=file, got=name,
            allowed="csv, parquet, servegen-windows, azure-functions, azure-functions-2021",
            hint="a scenario can draw them: workload.trace with workload.popularity",
        )  # fmt: skip
    sizes = data.adapter_bytes
    if adapter_size is not None:
        sizes = np.full(len(data.names), adapter_size, dtype=np.int64)
    return Objects(data.adapter, data.names, sizes, data.skipped, data.notes)


def _what_there_is(layout: Layout, header: Sequence[str]) -> Layout:
    """Return a layout that needs only the adapter, and reads of the other columns those that are there."""

    def there(column: str | None) -> str | None:
        return column if column in header else None

    time, prompt, output = map(there, (layout.time, layout.prompt, layout.output))
    return replace(layout, time=time, prompt=prompt, output=output, session=None, others=(*layout.others, "session_id"))
