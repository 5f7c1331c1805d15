"""Tables in Parquet files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.errors import TraceError
from sim.traffic.traces.blocks import Block, Floats, TextColumn, text_of
from sim.traffic.traces.problems import Problems, shown

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 1 << 16
"""Rows that are decoded at once."""


@dataclass(frozen=True, slots=True)
class ArrowColumn:
    """Cells of a Parquet file."""

    array: pa.Array
    file: str

    def texts(self) -> Sequence[str]:
        with _arrow_errors(self.file):
            return [text_of(value) for value in self.array.to_pylist()]

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

    def __init__(self, file: str) -> None:
        import pyarrow.parquet as pq

        self._name = file
        with _arrow_errors(file):
            self._file = pq.ParquetFile(file)
            self.header: tuple[str, ...] = tuple(self._file.schema_arrow.names)
        self._batches: Iterator[Any] | None = None
        self._batch: Any = None
        self._row = 1

    def read(self, columns: Sequence[str], count: int, problems: Problems) -> Block | None:
        import pyarrow as pa

        if self._batches is None:
            self._batches = self._file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns))
        while self._batch is None or self._batch.num_rows == 0:
            with _arrow_errors(self._name):
                self._batch = next(self._batches, None)
            if self._batch is None:
                self._file.close(force=True)
                pa.default_memory_pool().release_unused()
                return None
        part, self._batch = self._batch.slice(0, count), self._batch.slice(count)
        rows = np.arange(self._row, self._row + part.num_rows, dtype=np.int64)
        self._row += part.num_rows
        problems.rows += part.num_rows
        return Block(rows, {name: ArrowColumn(part.column(name), self._name) for name in columns})


@contextlib.contextmanager
def _arrow_errors(file: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # what damaged files raise
        got = shown(" ".join(str(error).split()))
        raise TraceError("the Parquet file can't be read", file=file, got=got) from error
