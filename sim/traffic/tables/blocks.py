"""Blocks of rows from a table in any file, with their cells as text or as numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sim.traffic.tables.bad_rows import BadRows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BLOCK_ROWS = 1 << 12
"""Rows of a block. Their cells fit a processor's cache; blocks of 65,536 rows are read half as fast."""

BLOCK_CELLS = 1 << 19
"""Cells of a block, so that wide tables need no more memory than narrow ones."""


class Column(Protocol):
    """The cells of one column in a block."""

    def texts(self) -> Sequence[str]:
        """Return the cells as in the file, empty where there is none."""

    def floats(self) -> Floats:
        """Return the cells as numbers, NaN where they are none."""


@dataclass(frozen=True, slots=True)
class TextColumn:
    """Cells of a text file."""

    cells: Sequence[str]

    def texts(self) -> Sequence[str]:
        return self.cells

    def floats(self) -> Floats:
        # Python's float: it rounds correctly, unlike pandas' faster parsers, and times must be exact. But it also
        # reads 1_000 and digits of other scripts, which other programs would not.
        joined = "".join(self.cells)
        if joined.isascii() and "_" not in joined:
            with contextlib.suppress(ValueError):
                return np.fromiter(map(float, self.cells), np.float64, len(self.cells))
        return np.fromiter(map(_number, self.cells), np.float64, len(self.cells))


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Consecutive rows.

    :ivar rows: (n,) int64, the line on which each row begins; in a Parquet file its number, from 1.
    """

    rows: Ints
    columns: dict[str, Column]


class TraceTable(Protocol):
    """A file with named columns."""

    @property
    def header(self) -> tuple[str, ...]:
        """The names of the columns."""

    def read(self, columns: Sequence[str], count: int, bad_rows: BadRows) -> RowBlock | None:
        """Return the next rows, at most ``count`` and perhaps none of them good; None at the end of the file."""


def text_of(value: object) -> str:
    """Return a value of JSON or Parquet as it would stand in a CSV file."""
    if value is None:
        return ""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _number(cell: str) -> float:
    try:
        return float(cell) if cell.isascii() and "_" not in cell else float("nan")
    except ValueError:
        return float("nan")
