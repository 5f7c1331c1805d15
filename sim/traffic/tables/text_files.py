"""Tables in files: detects the kind of a file, and reads CSV and JSON, compressed or not."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import os
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from operator import itemgetter
from typing import IO

import numpy as np

from sim.errors import TraceError
from sim.reading import BLOCK_BYTES, ROW_BYTES, Bounded, open_regular
from sim.traffic.tables.blocks import BadRows, Column, RowBlock, TextColumn, TraceTable, listed
from sim.traffic.tables.line_tables import ACCESS_LINE, FIELDS_LINE, VLLM_LINE, AccessTable, VllmTable
from sim.traffic.tables.parquet import ParquetTable
from sim.traffic.tables.records import Found, RecordTable, columns_of, records_by_line, records_of_document

MOST_LINES = 10
"""Lines that a malformed row may span; beyond that, an unclosed quote has probably swallowed other rows."""
_HEAD_RECORDS = 10_000
"""Records in JSON whose keys make the header: a log may begin with failed requests, which have no token counts."""
MAX_COLUMNS = 10_000
"""Columns of a table, at most; the widest known format has 1,444."""
_JSON_BEHIND = re.compile(rb'^(?:[^\n{",;|\t]| \| ){1,200}\{ ?"')
"""The beginning of a line of JSON behind what a logger or a container writes first."""
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


@contextlib.contextmanager
def open_tables(files: Sequence[str]) -> Iterator[TraceTable]:
    """Open files of one kind as one table.

    :raises TraceError: as ``open_table`` does, perhaps while it is read.
    """
    if len(files) == 1:
        with open_table(files[0]) as table:
            yield table
        return
    with contextlib.ExitStack() as stack:
        yield _SeveralFiles(files, stack)


class _SeveralFiles:
    """Tables one after the other, with the header of the first."""

    def __init__(self, files: Sequence[str], stack: contextlib.ExitStack) -> None:
        self._stack, self._rest = stack, list(files)
        self._table = stack.enter_context(open_table(self._rest.pop(0)))
        self.header = self._table.header

    def read(self, columns: Sequence[str], count: int, bad_rows: BadRows) -> RowBlock | None:
        while (block := self._table.read(columns, count, bad_rows)) is None and self._rest:
            bad_rows.place = self._rest.pop(0)
            self._stack.close()
            self._table = self._stack.enter_context(open_table(bad_rows.place))
            missing = [name for name in columns if name not in self._table.header]
            if missing:
                got = listed(list(self._table.header))
                hint = "files that are read together have the same columns"
                raise TraceError(f"column {missing[0]} is missing", file=bad_rows.place, got=got, hint=hint)
        return block


@contextlib.contextmanager
def open_table(file: str) -> Iterator[TraceTable]:
    """Open a table; its first bytes tell its kind.

    :raises TraceError: where there is no such file, or no table in it.
    """
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise TraceError("not a file", file=file)
        with open_regular(file) as raw:
            start = raw.peek(4)[:4]
            if start == b"PAR1":
                yield ParquetTable(file, raw)
            else:
                yield _text_table(file, _unpacked(raw, start))
    except FileNotFoundError:
        raise TraceError("no such trace", file=file) from None
    except _DAMAGED as error:
        raise TraceError("the compressed file is damaged", file=file, got=str(error)) from error
    except OSError as error:
        raise TraceError("the trace can't be read", file=file, got=error.strerror or str(error)) from error


def _unpacked(raw: io.BufferedReader, start: bytes) -> gzip.GzipFile | io.BufferedReader:
    if start[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=raw)
    if start == b"\x28\xb5\x2f\xfd":
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(raw, "zstd"))
    return raw


def _text_table(file: str, raw: gzip.GzipFile | io.BufferedReader) -> TraceTable:
    head = raw.peek(4096)[:4096]
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or head.count(0) > len(head) // 4:
        raise TraceError("not UTF-8 text", file=file, got="what looks like UTF-16", hint="save it as UTF-8")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        raise TraceError("the trace is empty", file=file)
    if start.startswith((b"# HELP ", b"# TYPE ")):
        raise TraceError("a page of metrics, and no log of requests", file=file, hint="loraplan observe reads it")
    if start.startswith((b"PK\x03\x04", b"BZh")):
        raise TraceError("a compressed archive or an Excel file", file=file, hint="unpack it, or save it as CSV")
    lines = [line for line in start.split(b"\n") if line.strip()]  # those of other programs may come first
    is_vllm = 2 * sum(VLLM_LINE.match(line) is not None for line in lines) >= len(lines)
    is_access = ACCESS_LINE.match(start) or FIELDS_LINE.match(start)
    is_json = start[:1] in (b"{", b"[")
    behind_others = not is_json and 2 * sum(_JSON_BEHIND.match(line) is not None for line in lines) >= len(lines)
    is_csv = not (is_vllm or is_json or is_access or behind_others)
    # Bytes that are no UTF-8 become lone surrogates, so that the error can name their row.
    bounded = Bounded(raw, lambda: _too_long(file), rows=True)  # type: ignore[arg-type]  # a GzipFile is read like a file
    newline = "" if is_csv else "\n"
    text = io.TextIOWrapper(bounded, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
    if is_csv:
        header = re.split(rb"[\r\n]", start, maxsplit=1)[0]
        delimiter = next((mark for mark in ",;\t|" if mark.encode() in header), ",")
        return CsvTable(file, text, bounded, delimiter)
    if is_vllm:
        return VllmTable(text, bounded, file)
    if is_access:
        return AccessTable(text, bounded)
    if behind_others:
        return _json_table(file, records_by_line(text, bounded, behind_others=True), bounded)
    if start[:1] == b"[" or start.split(b"\n")[0].strip() == b"{":
        return _json_table(file, records_of_document(text, bounded, file), bounded)
    return _json_table(file, records_by_line(text, bounded), bounded)


def _too_long(file: str) -> TraceError:
    """Return the error for an endless row: a compressed file of 10 MB can hold one of 10 GB."""
    return TraceError(
        "a row is too long", file=file, allowed=f"{ROW_BYTES >> 20} MiB", hint="a quote that is never closed?"
    )


class CsvTable:
    """Text with a header and with commas, semicolons, tabs or bars between its cells."""

    def __init__(self, file: str, text: IO[str], source: Bounded, delimiter: str = ",") -> None:
        self._reader = csv.reader(text, skipinitialspace=True, delimiter=delimiter)
        self._source = source
        self.header: tuple[str, ...] = ()
        try:
            while not any(self.header):
                self.header = tuple(cell.strip() for cell in next(self._reader))
        except StopIteration:
            raise TraceError("the trace is empty", file=file) from None
        except csv.Error as error:
            raise TraceError("not a CSV table", file=file, line=self._reader.line_num, got=str(error)) from error
        _check_width(self.header, file)

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


def _json_table(file: str, records: Iterator[Found], source: Bounded) -> RecordTable:
    """Return records in JSON; the header has the keys of the first ones, with dots where tables are nested."""
    head = list(islice(records, 1))
    if head and head[0].error is not None:
        raise TraceError("not a line of JSON", file=file, line=head[0].line, allowed="one object a line")
    for each in islice(records, _HEAD_RECORDS - 1):
        head.append(each)
        if source.block_bytes > BLOCK_BYTES:
            break
    header = tuple(dict.fromkeys(name for each in head if each.record for name in columns_of(each.record)))
    if not header:
        got = next((each.left_out for each in head if each.left_out is not None), "objects without keys")
        raise TraceError("nothing in it is a request", file=file, got=got)
    _check_width(header, file)
    return RecordTable(header, chain(head, records), source)


def _check_width(header: Sequence[str], file: str) -> None:
    """Refuse a header with too many columns: comparing millions of names would take hours.

    :raises TraceError: naming how many there are.
    """
    if len(header) > MAX_COLUMNS:
        raise TraceError("too many columns", file=file, got=f"{len(header):,}", allowed=f"up to {MAX_COLUMNS:,}")
