"""Tables in files: detects the kind of a file, and reads CSV and JSON lines, gzipped or not."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import itemgetter
from typing import IO, Any

import numpy as np

from sim.errors import TraceError
from sim.reading import BLOCK_BYTES, ROW_BYTES, Bounded, open_regular
from sim.traffic.traces.bad_rows import BadRows
from sim.traffic.traces.blocks import Column, RowBlock, TextColumn, TraceTable, text_of
from sim.traffic.traces.parquet import ParquetTable

MOST_LINES = 10
"""Lines that a malformed row may span; beyond that, an unclosed quote has probably swallowed other rows."""
MAX_COLUMNS = 10_000
"""Columns of a table, at most; the widest known format has 1,444."""
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


@contextlib.contextmanager
def open_table(file: str) -> Iterator[TraceTable]:
    """Open a table; its first bytes tell its kind.

    :raises TraceError: where there is no such file, or no table in it.
    """
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise TraceError("not a file", file=file)
        with open_regular(file) as raw:
            if raw.read(4) == b"PAR1":
                yield ParquetTable(file, raw)
                return
            raw.seek(0)
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if packed else contextlib.nullcontext(raw) as plain:
                yield _text_table(file, plain)  # type: ignore[arg-type]  # a GzipFile is read like a file
    except FileNotFoundError:
        raise TraceError("no such trace", file=file, hint="paths in a scenario are relative to its file") from None
    except _DAMAGED as error:
        raise TraceError("the compressed file is damaged", file=file, got=str(error)) from error
    except OSError as error:
        raise TraceError("the trace can't be read", file=file, got=error.strerror or str(error)) from error


def _text_table(file: str, raw: IO[bytes]) -> TraceTable:
    head = raw.read(4096)
    raw.seek(0)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or head.count(0) > len(head) // 4:
        raise TraceError("not UTF-8 text", file=file, got="what looks like UTF-16", hint="save it as UTF-8")
    if not head.removeprefix(b"\xef\xbb\xbf").strip():
        raise TraceError("the trace is empty", file=file)
    is_json = head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
    # Bytes that are no UTF-8 become lone surrogates, so that the error can name their row.
    newline = "\n" if is_json else ""
    bounded = Bounded(raw, lambda: _too_long(file), rows=True)
    text = io.TextIOWrapper(bounded, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
    return JsonTable(file, text, bounded) if is_json else CsvTable(file, text, bounded)


def _too_long(file: str) -> TraceError:
    """Return the error for an endless row: a compressed file of 10 MB can hold one of 10 GB."""
    return TraceError(
        "a row is too long", file=file, allowed=f"{ROW_BYTES >> 20} MiB", hint="a quote that is never closed?"
    )


class CsvTable:
    """Comma-separated text with a header."""

    def __init__(self, file: str, text: IO[str], source: Bounded) -> None:
        self._reader = csv.reader(text, skipinitialspace=True)
        self._source = source
        self.header: tuple[str, ...] = ()
        try:
            while not any(self.header):
                self.header = tuple(cell.strip() for cell in next(self._reader))
        except StopIteration:
            raise TraceError("the trace is empty", file=file) from None
        except csv.Error as error:
            raise TraceError("not a CSV table", file=file, line=self._reader.line_num, got=str(error)) from error
        check_width(self.header, file)

    def read(self, columns: Sequence[str], count: int, bad_rows: BadRows) -> RowBlock | None:
        rows, lines = self._rows(count, bad_rows)
        if not rows:
            return None
        width = len(self.header)
        if set(map(len, rows)) != {width}:
            rows, lines = _even(rows, [*lines, self._reader.line_num + 1], width, bad_rows)
        bad_rows.rows += len(rows)
        places = {name: self.header.index(name) for name in columns}
        found: dict[str, Column] = {
            name: TextColumn(list(map(itemgetter(place), rows))) for name, place in places.items()
        }
        return RowBlock(np.asarray(lines, dtype=np.int64), found)

    def _rows(self, count: int, bad_rows: BadRows) -> tuple[list[list[str]], list[int]]:
        """Return rows and the lines on which they begin."""
        rows: list[list[str]] = []
        lines: list[int] = []
        reader, source = self._reader, self._source
        line = reader.line_num
        source.row_bytes = source.block_bytes = 0
        while True:
            try:
                for row in islice(reader, count - len(rows)):
                    rows.append(row)
                    lines.append(line + 1)
                    line = reader.line_num
                    source.row_bytes = 0
                    if source.block_bytes > BLOCK_BYTES:
                        break
                return rows, lines
            except csv.Error as error:
                bad_rows.rows += 1
                hint = "a quote that is never closed?" if "field limit" in str(error) else None
                bad_rows.add(TraceError("not a CSV row", line=line + 1, got=str(error), hint=hint))
                line = reader.line_num
                source.row_bytes = 0


def _even(rows: list[list[str]], lines: list[int], width: int, bad_rows: BadRows) -> tuple[list[list[str]], list[int]]:
    """Drop blank lines, and record rows with more or fewer cells than the header.

    :param lines: where each row begins, and where the next one would.
    :raises TraceError: where an unclosed quote has swallowed many lines.
    """
    even: list[int] = []
    for index, row in enumerate(rows):
        if len(row) == width:
            even.append(index)
        elif len(row) > 1 or (row and row[0].strip()):
            bad_rows.rows += 1
            first, last = lines[index], lines[index + 1] - 1
            hint = f"the row goes on to line {last}: a quote that is never closed?" if last > first else None
            error = TraceError(
                "not as many cells as the header", line=first, got=str(len(row)), allowed=str(width), hint=hint
            )
            if last - first >= MOST_LINES:
                error.file = bad_rows.file
                raise error
            bad_rows.add(error)
    return [rows[index] for index in even], [lines[index] for index in even]


class JsonTable:
    """JSON lines: one object a line; the keys of the first are the header."""

    def __init__(self, file: str, text: IO[str], source: Bounded) -> None:
        self._lines = enumerate(text, start=1)
        self._source = source
        self._first: list[tuple[int, str]] = []
        for number, line in self._lines:
            if line.strip():
                self._first = [(number, line)]
                break
        record = _record(self._first[0][1]) if self._first else None
        if record is None:
            raise TraceError("not a line of JSON", file=file, line=1, allowed="one object a line")
        self.header = tuple(record)
        check_width(self.header, file)

    def read(self, columns: Sequence[str], count: int, bad_rows: BadRows) -> RowBlock | None:
        lines: list[int] = []
        cells: dict[str, list[str]] = {name: [] for name in columns}
        seen, source = False, self._source
        source.block_bytes = 0
        for number, line in islice(self._take(), count):
            seen = True
            source.row_bytes = 0
            record = _record(line)
            if record is None:
                if line.strip():
                    bad_rows.rows += 1
                    got = line.rstrip()[:80]
                    bad_rows.add(TraceError("not a line of JSON", line=number, got=got, allowed="one object a line"))
                continue
            lines.append(number)
            for name in columns:
                cells[name].append(text_of(record.get(name)))
            if source.block_bytes > BLOCK_BYTES:
                break
        bad_rows.rows += len(lines)
        if not seen:
            return None
        return RowBlock(np.asarray(lines, dtype=np.int64), {name: TextColumn(column) for name, column in cells.items()})

    def _take(self) -> Iterator[tuple[int, str]]:
        while self._first:
            yield self._first.pop()
        yield from self._lines


def check_width(header: Sequence[str], file: str) -> None:
    """Refuse a header with too many columns: comparing millions of names would take hours.

    :raises TraceError: naming how many there are.
    """
    if len(header) > MAX_COLUMNS:
        raise TraceError("too many columns", file=file, got=f"{len(header):,}", allowed=f"up to {MAX_COLUMNS:,}")


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
