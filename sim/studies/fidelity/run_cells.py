"""Tables of measured runs as text: their columns, and cells that are checked when they are read."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.errors import InputError
from sim.reading import open_text


@dataclass(frozen=True, slots=True)
class RunCells:
    """The cells of one row.

    :ivar file, line: where the row is, for error messages.
    """

    row: Mapping[str, str]
    file: str
    line: int

    def parsed(self, column: str, parse: Callable[[str], Any], allowed: str) -> Any:
        """Return a cell as ``parse`` reads it.

        :raises InputError: with file, line and column, where ``parse`` raises ValueError or KeyError.
        """
        text = self.row[column] or ""
        try:
            return parse(text)
        except (ValueError, KeyError):
            raise self.error("not a value", column, text, allowed) from None

    def count(self, column: str) -> int:
        """Return a whole number, 1 or more."""
        return int(self.parsed(column, positive_int, "a whole number, 1 or more"))

    def number(self, column: str, empty: float | None = None) -> float:
        """Return a number, 0 or more.

        :param empty: what an empty cell stands for; None: it is an error.
        """
        if empty is not None and not self.row[column]:
            return empty
        return float(self.parsed(column, non_negative, "a number, 0 or more"))

    def seconds(self, column: str) -> float:
        """Return how long a run took, 1 s or more."""
        return float(self.parsed(column, _duration, "seconds, 1 to 10,000,000"))

    def error(self, problem: str, column: str, got: str, allowed: str) -> InputError:
        """Return the error of one cell."""
        return InputError(problem, file=self.file, line=self.line, key=column, got=got, allowed=allowed)


@dataclass(frozen=True, slots=True)
class TableOfRuns:
    """A table whose cells have not been read yet."""

    file: str
    columns: Sequence[str]
    rows: Sequence[RunCells]

    def require(self, columns: Sequence[str]) -> None:
        """Refuse a table without rows or without one of these columns.

        :raises InputError: naming the missing columns.
        """
        missing = [name for name in columns if name not in self.columns]
        if missing:
            raise InputError(
                "columns are missing",
                file=self.file,
                line=1,
                got=", ".join(missing),
                hint=f"a table of measured runs has the columns {', '.join(columns)}",
            )
        if not self.rows:
            raise InputError("the table has no rows", file=self.file)


def read_table(path: Path) -> TableOfRuns:
    """Read a table of measured runs.

    :raises InputError: where the file can't be read.
    """
    file = str(path)
    try:
        with open_text(path) as lines:
            reader = csv.DictReader(lines)
            columns = tuple(reader.fieldnames or ())
            return TableOfRuns(file, columns, [RunCells(row, file, reader.line_num) for row in reader])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        got = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError("the table can't be read", file=file, got=got) from None


def positive_int(text: str) -> int:
    """Return a whole number, 1 or more.

    :raises ValueError: for any other text.
    """
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def non_negative(text: str) -> float:
    """Return a finite number, 0 or more.

    :raises ValueError: for any other text.
    """
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError
    return value


def _duration(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 1e7:
        raise ValueError
    return value
