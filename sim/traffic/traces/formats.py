"""Formats with one request a row: which column holds what, and the one reader that serves them all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats, Ints, Ints32, Mask
from sim.errors import TraceError
from sim.traffic.request import BASE_MODEL
from sim.traffic.tables.blocks import BLOCK_CELLS, BLOCK_ROWS, BadRows, TraceTable, listed, shown
from sim.traffic.traces.data import MAX_REQUESTS, ReadOptions, TraceData, silence_note, ties_note, too_many
from sim.traffic.traces.log_columns import (
    EXAMPLES,
    ISO,
    ISO_WITHOUT_ZONE,
    NOTHING,
    UNITS,
    LogRules,
    TimeStyle,
    numbers,
    style_of,
    unit_of,
)
from sim.traffic.traces.rows import MAX_BYTES, Names, Rows, TimeOrder, hashes, kept
from sim.traffic.traces.text_columns import TEXT_COLUMNS, GrowingArray, TextReader, text_columns

YEARS = (1700, 2200)
"""Beyond these, dates can't be told to 100 ns."""

_SINCE_1970 = (9e8, 4e9)
"""Seconds, from 1998 to 2096: numbers between them are times since 1970."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns of a format hold what.

    :ivar adapter: the columns that name the adapter together; () where none does.
    :ivar per_second: units of the time column in a second; "dates" for ISO 8601; "any": the first time decides.
    :ivar minus: a column in seconds that is taken from the time (ends become starts).
    :ivar no_output: what an output of 0 tokens means.
    :ivar log: what a log says beyond its columns.
    :ivar unsorted: whether rows may come in any order.
    :ivar size, session, request: columns that a file may have.
    :ivar texts: whether it may have columns that say what requests share (``text_columns.py``).
    :ivar others: columns of the format that hold nothing for us; not worth a note.
    """

    time: str | None
    per_second: float | Literal["dates", "any"] = 1.0
    minus: str | None = None
    adapter: tuple[str, ...] = ()
    prompt: str | None = None
    output: str | None = None
    no_output: Literal["bad", "one", "failed"] = "bad"
    unsorted: bool = False
    size: str | None = None
    session: str | None = None
    request: str | None = None
    texts: bool = False
    others: tuple[str, ...] = ()
    log: LogRules | None = None

    def needed(self) -> tuple[str, ...]:
        """Return the columns that a file must have."""
        columns = (self.time, self.minus, *self.adapter, self.prompt, self.output)
        return tuple(column for column in columns if column is not None)

    def used(self, header: Sequence[str]) -> tuple[str, ...]:
        """Return the columns that are read from a file with this header."""
        statuses = () if self.log is None else self.log.statuses
        optional = (self.size, self.session, self.request, *statuses, *(TEXT_COLUMNS if self.texts else ()))
        found = (column for column in optional if column is not None and column in header)
        return tuple(dict.fromkeys((*self.needed(), *found)))  # one column may be used for two things


# Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md and ...2024.md
AZURE_LLM = Layout(
    time="TIMESTAMP", per_second="dates", prompt="ContextTokens", output="GeneratedTokens", no_output="one"
)
# kvcache-ai/Mooncake, FAST25-release/traces: milliseconds; hash_ids are of the prompt's 512-token blocks, each of a
# block with all before it
MOONCAKE = Layout(
    time="timestamp",
    per_second=1000,
    prompt="input_length",
    output="output_length",
    no_output="one",
    texts=True,
    others=("n_hash_ids", "second_hash_id"),
)
# HPMLL/BurstGPT, README.md: "with some failure that Response tokens are 0s"
BURSTGPT = Layout(
    time="Timestamp",
    prompt="Request tokens",
    output="Response tokens",
    no_output="failed",
    session="Session ID",
    others=("Elapsed time", "Model", "Total tokens", "Log Type"),
)
# Azure/AzurePublicDataset, AzureFunctionsInvocationTrace2021.md: func is "unique only within an application"
AZURE_FUNCTIONS_2021 = Layout(time="end_timestamp", minus="duration", adapter=("app", "func"), unsorted=True)


def read_rows(table: TraceTable, layout: Layout, ask: ReadOptions) -> TraceData:
    """Read a table with one request a row.

    :raises TraceError: naming the file, and the row and column of the first cell that can't be used.
    """
    columns = layout.used(table.header)
    check_columns(table, ask.file, layout.needed(), columns)
    bad_rows = BadRows(ask.file, ask.skip_bad)
    texts = text_columns(table.header, ask.file) if layout.texts else ()
    reader = _Reader(layout, columns, ask, TextReader(texts, ask.hash_block) if texts else None)
    block_rows = max(1, min(BLOCK_ROWS, BLOCK_CELLS // len(table.header)))
    limit = None if layout.unsorted else ask.limit
    while (limit is None or reader.count < limit) and not bad_rows.hopeless:
        wanted = block_rows if limit is None else min(block_rows, limit - reader.count)
        block = table.read(columns, wanted, bad_rows)
        if block is None:
            break
        if len(block.rows):
            reader.take(Rows(block, bad_rows))
        if limit is None and reader.count > MAX_REQUESTS:
            raise too_many(ask.file, reader.count)
    ignored = [name for name in table.header if name not in columns and name not in layout.others]
    notes = [f"{ask.file}: columns ignored: {listed(ignored)}"] if ignored else []
    notes += bad_rows.settle(reader.count)
    if reader.count == 0:
        raise no_rows(ask.file, bad_rows)
    return reader.finish(notes, bad_rows)


class _Reader:
    """Turn blocks into arrays by a layout.

    :ivar count: requests so far.
    """

    def __init__(self, layout: Layout, columns: tuple[str, ...], ask: ReadOptions, texts: TextReader | None) -> None:
        self._layout, self._columns, self._ask, self._texts = layout, columns, ask, texts
        self.count = 0
        self._arrivals, self._sessions, self._requests = map(GrowingArray, (np.float64, np.uint64, np.uint64))
        self._prompts, self._outputs, self._adapters = map(GrowingArray, (np.int32, np.int32, np.int32))
        self._order, self._names = TimeOrder(), Names(ask.file)
        self._origin: Any = None
        self._style = ISO if layout.per_second == "dates" else None
        self._sizes: Ints = np.zeros(0, dtype=np.int64)
        self._resized: set[int] = set()

    def take(self, rows: Rows) -> None:
        """Check a block and keep its good rows."""
        layout, log = self._layout, self._layout.log
        if log is not None:
            log.leave_out(rows)
        seconds = self._seconds(rows) if layout.time is not None else None
        # A request that leaves a single column of names empty is for the base model.
        optional = len(layout.adapter) == 1
        rename = None if log is None else log.names
        cells = rows.names(layout.adapter, self._names, optional=optional, rename=rename) if layout.adapter else ()
        prompt = rows.tokens(layout.prompt) if layout.prompt else None
        output = self._output(rows) if layout.output else None
        if prompt is not None and output is not None and layout.output is not None:
            rows.together(layout.output, prompt, output)
        sizes = None
        if layout.size is not None and layout.size in self._columns:  # the base model has none
            named = np.fromiter(map(bool, cells), np.bool_, len(cells))
            sizes = rows.whole(layout.size, 1, MAX_BYTES, "not a size in bytes", needed=named)
        if seconds is not None and layout.time is not None and not layout.unsorted:
            self._order.check(rows, layout.time, seconds)
        block = None if self._texts is None or prompt is None else self._texts.check(rows, prompt)
        good = rows.good
        if self._texts is not None and block is not None:
            self._texts.keep(block, good)
        self.count += int(np.count_nonzero(good))
        for part, values in ((self._arrivals, seconds), (self._prompts, prompt), (self._outputs, output)):
            if values is not None:
                part.append(values[good])
        if layout.adapter:
            codes = self._names.codes(kept(cells, good))
            self._adapters.append(codes)
            if sizes is not None:
                named = codes != BASE_MODEL
                self._resize(codes[named], sizes[good][named])
        for part, column in ((self._sessions, layout.session), (self._requests, layout.request)):
            if column is not None and column in self._columns:
                # A request without a session, or an id, is one of its own.
                each = zip(rows.texts(column), rows.lines.tolist(), strict=True)
                cells = [f"\0{self.count} {row}" if (cell.lower() or "-") in NOTHING else cell for cell, row in each]
                part.append(hashes(cells)[good])

    def _seconds(self, rows: Rows) -> Floats:
        layout = self._layout
        assert layout.time is not None
        if self._style is None and layout.per_second == "any":
            unit = "" if layout.log is None else layout.log.unit
            self._style = style_of(rows.texts(layout.time))
            if unit and (self._style is None or self._style.unit):
                self._style = numbers(unit)
        style = self._style
        if style is None and layout.log is not None:
            style = ISO  # whose error says what times can be
        if style is not None and not style.unit:
            seconds = self._dates(rows, layout.time, style)
        else:
            fixed = 1.0 if isinstance(layout.per_second, str) else layout.per_second
            seconds = rows.seconds(layout.time, fixed if style is None else UNITS[style.unit])
        if layout.minus is not None:
            unit = (layout.log and unit_of(layout.minus)) or "s"
            most, needed = 1e9 * UNITS[unit], None if layout.log is None else np.zeros(len(rows.good), np.bool_)
            seconds = seconds - rows.numbers(layout.minus, 0, most, f"{unit}, 0 or more", needed) / UNITS[unit]
        return seconds

    def _dates(self, rows: Rows, column: str, style: TimeStyle) -> Floats:
        """Return seconds since the first date of the file; exact to 100 ns, which seconds since 1970 are not."""
        import pandas as pd

        dates = pd.Series(style.dates(rows.texts(column)), dtype=object)
        times = pd.to_datetime(dates, errors="coerce", format=style.date_format, utc=True)
        bad = ~times.dt.year.between(*YEARS).to_numpy(dtype=np.bool_)
        allowed = "2023-11-16 18:15:46.6805900" if self._layout.per_second == "dates" else EXAMPLES
        rows.refuse(bad, column, "not a time", allowed)
        times = times.where(~bad).dt.as_unit("ns")
        if self._origin is None and not bad.all():
            self._origin = times[int(np.argmin(bad))]
        if self._origin is None:
            return np.zeros(len(bad))
        seconds = (times - self._origin).dt.total_seconds()
        return np.asarray(np.nan_to_num(seconds.to_numpy(dtype=np.float64)), dtype=np.float64)

    def _output(self, rows: Rows) -> Ints32:
        layout = self._layout
        assert layout.output is not None
        if layout.no_output == "bad":
            return rows.tokens(layout.output)
        failed = layout.no_output == "failed"
        output = rows.tokens(layout.output, least=0, empty=failed)
        if failed:
            rows.leave_out(output == 0, "failed (no response tokens)")
        return np.maximum(output, 1)

    def _resize(self, codes: Ints32, sizes: Ints) -> None:
        """Keep the last size that is given for each adapter, and note adapters with several."""
        grown = np.zeros(len(self._names), dtype=np.int64)
        grown[: len(self._sizes)] = self._sizes
        before = grown[codes]
        grown[codes] = sizes
        self._resized |= set(codes[((before != 0) & (before != sizes)) | (grown[codes] != sizes)].tolist())
        self._sizes = grown

    def finish(self, notes: list[str], bad_rows: BadRows) -> TraceData:
        """Return the arrays of all blocks."""
        layout, ask = self._layout, self._ask
        # The largest first: numbering sessions needs room of its own.
        session = _numbered(self._sessions.take()) if self._sessions.count else None
        arrival: Floats = self._arrivals.take()
        prompt = self._prompts.take() if layout.prompt else None
        output = self._outputs.take() if layout.output else None
        adapter = self._adapters.take() if layout.adapter else None
        names = self._names.all()
        text = None if self._texts is None else self._texts.finish()
        if layout.unsorted and len(arrival):
            order = np.argsort(arrival, kind="stable")
            if layout.request is not None:
                others = (each[order] for each in (arrival, prompt, output, adapter) if each is not None)
                again, twice = _repeats(self._requests.take()[order], others)
                order = order[~twice]
                bad_rows.skipped["logged twice"] += int(twice.sum())
                if again.any():
                    some = f"{again.sum():,} rows repeat the {shown(layout.request)} of another row"
                    same = f"left out {twice.sum():,} that say the same, and counted any others"
                    notes += [f"{ask.file}: {some}; {same if twice.any() else 'none says the same, so all count'}"]
            order = order[: ask.limit]
            arrival = arrival[order]
            prompt, output = (None if each is None else each[order] for each in (prompt, output))
            session = None if session is None else _numbered(session[order])
            text = None if text is None else text.pick(order)
            if adapter is not None:
                adapter, names = in_use(adapter[order], names)
        begins_at = ""
        if len(arrival):
            begins_at = self._begins_at(float(arrival[0]))
            arrival -= arrival[0]
            notes += ties_note(ask.file, arrival)
            if not layout.unsorted:
                notes += silence_note(ask.file, arrival, self._order.longest_s, self._order.longest_row)
        style, log = self._style, layout.log
        if log is not None:
            notes += log.notes(ask.file, style, names)
            empty = 0 if adapter is None else int(np.count_nonzero(adapter == BASE_MODEL))
            if empty and log.base_model is None and not ask.adapters_only:
                some = f"{empty:,} of {len(arrival):,} rows name no adapter"
                notes.append(f"{ask.file}: {some}, and count as requests to the base model")
        elif layout.per_second == "any" and style is not None and style.unit != "s":
            notes.append(f"{ask.file}: times are {style.words}")
        if self._resized:
            who = f"{len(self._resized):,} adapters have" if len(self._resized) > 1 else "1 adapter has"
            notes.append(f"{ask.file}: {who} several sizes; the last one counts")
        return TraceData(
            arrival_s=arrival,
            prompt_tokens=prompt,
            output_tokens=output,
            adapter=adapter,
            session=session,
            names=names,
            adapter_bytes=self._sizes if len(self._sizes) else None,
            notes=tuple(notes),
            skipped=dict(+bad_rows.skipped),
            text=text,
            text_by_user=self._texts is not None and self._texts.by_user,
            columns={} if log is None else log.said(style),
            begins_at=begins_at,
        )

    def _begins_at(self, first_s: float) -> str:
        """Return the date of the first request; empty where times have another origin than 1970."""
        import pandas as pd

        origin = self._origin
        if origin is None and _SINCE_1970[0] < first_s < _SINCE_1970[1]:
            origin = pd.Timestamp(0, tz="UTC")
        if origin is None:
            return ""
        date = origin + pd.Timedelta(seconds=first_s)
        return str((date.tz_localize(None) if self._style is ISO_WITHOUT_ZONE else date).isoformat(timespec="seconds"))


def in_use(adapter: Ints32, names: tuple[str, ...]) -> tuple[Ints32, tuple[str, ...]]:
    """Number adapters anew by their first appearance, and drop the names of those that don't appear."""
    import pandas as pd

    named = adapter != BASE_MODEL
    numbered, order = pd.factorize(adapter[named])
    codes = np.full(len(adapter), BASE_MODEL, dtype=np.int32)
    codes[named] = numbered
    return codes, tuple(names[index] for index in order.tolist())


def _repeats(ids: NDArray[np.uint64], others: Iterable[NDArray[Any]]) -> tuple[Mask, Mask]:
    """Return which rows repeat an earlier row's id, and which of these its other values, too."""
    import pandas as pd

    again = np.asarray(pd.Series(ids).duplicated())
    for values in others if again.any() else ():
        ids = pd.util.hash_array(ids ^ values.astype(np.float64).view(np.uint64))
    return again, again & pd.Series(ids).duplicated()


def _numbered(values: NDArray[Any]) -> Ints32:
    import pandas as pd

    return np.asarray(pd.factorize(values)[0], dtype=np.int32)


def check_columns(table: TraceTable, file: str, needed: Sequence[str], used: Sequence[str]) -> None:
    """Refuse a header that lacks a column or has one twice.

    :raises TraceError: with the header and the columns that are needed.
    """
    header = list(table.header)
    for column in needed:
        if column not in header:
            wanted = "adapter_id or tenant_id" if column == "tenant_id" else column
            allowed = ", ".join(needed).replace("tenant_id", "adapter_id or tenant_id")
            near = get_close_matches(column.lower(), [name.lower() for name in header], n=1)
            named = next((name for name in header if near and name.lower() == near[0]), None)
            hint = f"the file has {shown(named)!r}: rename it" if named is not None else None
            raise TraceError(
                f"column {wanted} is missing", file=file, line=1, got=listed(header), allowed=allowed, hint=hint
            )
    for column in used:
        if header.count(column) > 1:
            raise TraceError("a column occurs twice in the header", key=column, file=file, line=1)


def no_rows(file: str, bad_rows: BadRows) -> TraceError:
    """Return the error for a file without a request."""
    if bad_rows.skipped:
        return TraceError("no row is left", file=file, got=", ".join(bad_rows.skipped))
    return TraceError("the trace has a header but no requests", file=file, line=1)
