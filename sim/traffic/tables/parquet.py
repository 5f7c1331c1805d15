"""Tables in Parquet files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from sim.arrays import Floats
from sim.errors import TraceError
from sim.traffic.tables.blocks import BadRows, RowBlock, TextColumn, shown, text_of

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 1 << 16
"""Rows that are decoded at once."""

CELL_BYTES = 4096
"""Bytes of a cell of text, at most; names of adapters have up to 1,024."""

_FOOTER_BYTES = 16 << 20
"""Bytes of a text in the file's metadata, at most."""


@dataclass(frozen=True, slots=True)
class ArrowColumn:
    """Cells of a Parquet file."""

    array: pa.Array
    file: str

    def texts(self) -> Sequence[str]:
        import pyarrow as pa

        with _arrow_errors(self.file):
            if not pa.types.is_dictionary(self.array.type):
                return [text_of(value) for value in self.array.to_pylist()]
            # One string per distinct text, so that a long text in every row is stored once.
            words = [text_of(value) for value in self.array.dictionary.to_pylist()]
            return [words[index] if index is not None else "" for index in self.array.indices.to_pylist()]

    def floats(self) -> Floats:
        import pyarrow as pa

        kind = self.array.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind):
            with _arrow_errors(self.file):
                values = self.array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
            return np.asarray(values, dtype=np.float64)
        return TextColumn(self.texts()).floats()


class ParquetTable:
    """A Parquet file, read batch by batch."""

    def __init__(self, file: str, raw: IO[bytes]) -> None:
        import pyarrow.parquet as pq

        self._name, self._raw = file, raw
        limits = {"thrift_string_size_limit": _FOOTER_BYTES, "thrift_container_size_limit": _FOOTER_BYTES >> 4}
        with _arrow_errors(file):
            # An open file, never a name: pyarrow takes some names for network addresses.
            schema = pq.ParquetFile(raw, **limits).schema_arrow
            sorts = [(field.name, _sort_of(field.type)) for field in schema]
            text = [name for name, sort in sorts if sort == "text"]
            self._file = pq.ParquetFile(raw, read_dictionary=text, **limits)
            self.header: tuple[str, ...] = tuple(schema.names)
        self._text = frozenset(text)
        self._other = frozenset(name for name, sort in sorts if sort == "other")
        self._batches: Iterator[Any] | None = None
        self._batch: Any = None
        self._row = 1

    def read(self, columns: Sequence[str], count: int, bad_rows: BadRows) -> RowBlock | None:
        import pyarrow as pa

        if self._batches is None:
            self._check(columns)
            self._batches = self._file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns))
        while self._batch is None or self._batch.num_rows == 0:
            with _arrow_errors(self._name):
                self._batch = next(self._batches, None)
            if self._batch is not None:
                self._check_cells()
            else:
                self._file.close(force=True)
                self._raw.close()
                pa.default_memory_pool().release_unused()
                return None
        part, self._batch = self._batch.slice(0, count), self._batch.slice(count)
        rows = np.arange(self._row, self._row + part.num_rows, dtype=np.int64)
        self._row += part.num_rows
        bad_rows.rows += part.num_rows
        return RowBlock(rows, {name: ArrowColumn(part.column(name), self._name) for name in columns})

    def _check(self, columns: Sequence[str]) -> None:
        """Refuse, from the metadata, columns of lists and of texts longer than names can be."""
        for name in columns:
            if name in self._other:
                raise TraceError(
                    "a column of this type is not supported",
                    key=name,
                    file=self._name,
                    allowed="numbers, times or text",
                )
        facts = self._file.metadata
        wanted = frozenset(columns)
        for group in range(facts.num_row_groups):
            rows = facts.row_group(group).num_rows
            for place in range(facts.num_columns):
                column = facts.row_group(group).column(place)
                if column.path_in_schema in wanted and column.total_uncompressed_size > (rows + 1) * CELL_BYTES * 2:
                    raise self._too_long(column.path_in_schema)

    def _check_cells(self) -> None:
        import pyarrow.compute as pc

        with _arrow_errors(self._name):
            for name in self._text.intersection(self._batch.schema.names):
                column = self._batch.column(name)
                words = column.dictionary if hasattr(column, "dictionary") else column
                if (pc.max(pc.binary_length(words)).as_py() or 0) > CELL_BYTES:
                    raise self._too_long(name)

    def _too_long(self, column: str) -> TraceError:
        return TraceError("a cell is too long", key=column, file=self._name, allowed=f"up to {CELL_BYTES:,} bytes")


def _sort_of(kind: pa.DataType) -> str:
    """Return whether cells are ``text`` of variable length, ``small`` or ``other``, perhaps as a dictionary."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        return _sort_of(kind.value_type)
    kinds = (types.is_string, types.is_binary, types.is_large_string, types.is_large_binary, types.is_fixed_size_binary)
    if any(is_kind(kind) for is_kind in kinds):
        return "text"
    return "small" if types.is_primitive(kind) or types.is_decimal(kind) or types.is_null(kind) else "other"


@contextlib.contextmanager
def _arrow_errors(file: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # what damaged files raise
        got = shown(" ".join(str(error).split()))
        raise TraceError("the Parquet file can't be read", file=file, got=got) from error
