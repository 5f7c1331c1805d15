"""Blocks of rows from a table in any file, with cells as text or as numbers, and what is wrong with rows."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sim.arrays import Floats, Ints
from sim.errors import TraceError

BLOCK_ROWS = 1 << 12
"""Rows of a block. Their cells fit a processor's cache; blocks of 65,536 rows are read half as fast."""

BLOCK_CELLS = 1 << 19
"""Cells of a block, so that wide tables need no more memory than narrow ones."""


# Rows that can't be used: the first is reported in full, the others are counted by reason.

LOOK_ON = 1 << 20
"""Rows read after a bad one, to count further bad rows."""


def shown(cell: str) -> str:
    """Return a cell as it can be printed: bytes that are no UTF-8, and control characters, as escapes."""
    text = cell.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:200])


def listed(names: list[str], most: int = 8) -> str:
    """Return names for a sentence, the first few of them and each cut to 40 characters."""
    cut = [shown(name)[:40] or "''" for name in names[:most]]
    return ", ".join(cut) + (f" and {len(names) - most:,} more" if len(names) > most else "")


class BadRows:
    """Collect what is wrong with the rows of a trace.

    :ivar place: the file that is being read, of those that a trace has.
    :ivar rows: rows seen, good and bad.
    :ivar skipped: reason → rows left out; includes reasons that are no error, such as a failed request.
    """

    def __init__(self, file: str, skip_bad: bool) -> None:
        self.file = self.place = file
        self.rows = 0
        self.skipped: Counter[str] = Counter()
        self._skip_bad = skip_bad
        self._first: TraceError | None = None
        self._bad = 0
        self._rows_when_found = 0

    def add(self, error: TraceError, count: int = 1) -> None:
        """Note ``count`` rows with one problem; the error says what is wrong, and has the line of the first of them."""
        if not self._bad:
            self._rows_when_found = self.rows
        self._bad += count
        self.skipped[error.problem] += count
        first = self._first
        if first is None or (first.file == self.place and (error.line or 0) < (first.line or 0)):
            error.file = self.place
            error.got = None if error.got is None else shown(str(error.got))
            self._first = error

    @property
    def hopeless(self) -> bool:
        """Whether reading on would only count more rows of a trace that is refused anyway."""
        return not self._skip_bad and self._bad > 0 and self.rows - self._rows_when_found > LOOK_ON

    def settle(self, kept: int) -> tuple[str, ...]:
        """Return notes on how many rows were left out.

        :param kept: rows that can be used.
        :raises TraceError: for the first bad row, unless bad rows are skipped and others are left.
        """
        if self._first is not None and (not self._skip_bad or kept == 0):
            self._first.hint = "; ".join(part for part in (self._first.hint, self._others(kept)) if part)
            raise self._first
        if not self.skipped:
            return ()
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.skipped.most_common())
        return (f"{self.file}: left out {self.skipped.total():,} of {self.rows:,} rows: {reasons}",)

    def _others(self, kept: int) -> str:
        """Return how many more rows are bad, and what leaves them out where that leaves most of the trace."""
        if self._skip_bad:
            return "no row is left"
        count = f"at least {self._bad - 1:,}" if self.hopeless else f"{self._bad - 1:,}"
        if kept == 0 and self._bad > 1:
            same = len(self.skipped) == 1
            return f"all {self._bad:,} rows have this problem" if same else f"all {self._bad:,} rows are bad"
        more = "" if self._bad == 1 else "1 more bad row; " if self._bad == 2 else f"{count} more bad rows; "
        if self._bad > kept:
            return f"{more}most rows are bad, so their cause matters more than --skip-bad"
        return f"{more}skip_bad (--skip-bad) leaves such rows out"


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
        return np.fromiter(map(number_of, self.cells), np.float64, len(self.cells))


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


def number_of(cell: str) -> float:
    """Return a cell as a number, NaN where it is none."""
    try:
        return float(cell) if cell.isascii() and "_" not in cell else float("nan")
    except ValueError:
        return float("nan")
