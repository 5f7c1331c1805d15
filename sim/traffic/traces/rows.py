"""Checks the rows of a block: cells become numbers and names, or the reason why a row can't be used."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats, Ints, Ints32, Mask
from sim.errors import TraceError
from sim.spec.sections.laws import MAX_TOKENS
from sim.traffic.request import BASE_MODEL
from sim.traffic.tables.blocks import BadRows, RowBlock

Rename = Callable[[Sequence[str]], Mapping[str, str | None]]

MAX_BYTES = 10**11
"""Bytes of an adapter: none has 100 GB, and the bytes of 50 million requests add up in int64 (5e18 of 9.2e18)."""

YEAR_2200_S = 7.26e9
"""Since 1970: 20250304090001 ms would be later."""
MAX_SECONDS = 1e11
"""3,170 years. Times since 1970 in milliseconds or smaller units exceed it, which reveals the wrong unit."""

_IN_THOUSANDS = re.compile(r" *\d{1,3}(,\d{3})+ *", re.ASCII)

MAX_NAME_BYTES = 1024

MAX_NAMES_LETTERS = 1 << 29
"""Letters of all adapters' names together, at most: ten million names of 50."""


class Rows:
    """Check the rows of one block; a row keeps the first problem found.

    :ivar lines: (n,) int64, the line of each row in its file.
    :ivar good: (n,) bool, rows without a problem so far.
    """

    def __init__(self, block: RowBlock, bad_rows: BadRows) -> None:
        self._block = block
        self._bad_rows = bad_rows
        self.lines = block.rows
        self.good: Mask = np.ones(len(block.rows), dtype=np.bool_)

    def texts(self, column: str) -> Sequence[str]:
        return self._block.columns[column].texts()

    def refuse(self, bad: Mask, column: str, problem: str, allowed: str, hint: str | None = None) -> None:
        """Record a problem of the rows of a mask that have none yet."""
        new = bad & self.good
        if not new.any():
            return
        first = int(np.argmax(new))
        self.good &= ~new
        line, got = int(self.lines[first]), self.texts(column)[first]
        error = TraceError(problem, key=column, line=line, got=got, allowed=allowed, hint=hint)
        self._bad_rows.add(error, int(new.sum()))

    def leave_out(self, mask: Mask, reason: str) -> None:
        """Leave rows out, by the rules of their format."""
        new = mask & self.good
        if new.any():
            self.good &= ~new
            self._bad_rows.skipped[reason] += int(new.sum())

    def numbers(
        self,
        column: str,
        least: float = -np.inf,
        most: float = np.inf,
        allowed: str = "a number",
        needed: Mask | None = None,
        *,
        thousands: bool = False,
    ) -> Floats:
        """Return a column as float64, 0 where it is refused as not finite or out of bounds.

        :param needed: rows that must have a number; others may leave it out, which reads as 0. None: all rows.
        :param thousands: whether 1,623 is 1623; where numbers have fractions it may as well be 1.623.
        """
        numbers = self._block.columns[column].floats()
        if thousands and np.isnan(numbers).any():
            some = ((place, cell) for place, cell in enumerate(self.texts(column)) if _IN_THOUSANDS.fullmatch(cell))
            for place, cell in some:
                numbers[place] = float(cell.replace(",", ""))
        if needed is not None and not needed.all():
            empty = np.fromiter((not cell.strip() for cell in self.texts(column)), np.bool_, len(numbers))
            numbers = np.where(empty & ~needed, 0.0, numbers)
            needed = needed | ~empty
        with np.errstate(invalid="ignore"):
            bad = ~((numbers >= least) & (numbers <= most) & np.isfinite(numbers))
        if needed is not None:
            bad &= needed
        if bad.any():
            self._refuse_unreadable(bad, column)
            self.refuse(bad, column, "not a usable number", allowed)
            numbers = np.where(bad, 0.0, numbers)
        return numbers

    def numbers_where(self, column: str, wanted: Mask) -> Floats:
        """Return a column in which only the rows of a mask need a number; NaN in the others, 0 where refused."""
        numbers = self._block.columns[column].floats()
        bad = wanted & ~np.isfinite(numbers)
        if bad.any():
            self._refuse_unreadable(bad, column)
            self.refuse(bad, column, "not a usable number", "a number")
        return np.where(wanted, np.where(bad, 0.0, numbers), np.nan)

    def whole(self, column: str, least: int, most: int, problem: str, needed: Mask | None = None) -> Ints:
        """Return a column as int64, 0 where it is refused, or left out in a row that doesn't need it."""
        bounds = f"a whole number, {least} to {most:,}"
        numbers = self.numbers(column, least=least, allowed=bounds, needed=needed, thousands=True)
        bad = (numbers != np.floor(numbers)) | (numbers > most)
        if bad.any():
            self.refuse(bad, column, problem, bounds)
            numbers = np.where(bad, 0.0, numbers)
        return numbers.astype(np.int64)

    def tokens(self, column: str, least: int = 1, *, empty: bool = False) -> Ints32:
        """Return a column of token counts, int32.

        :param empty: whether a cell may be empty, which reads as 0.
        """
        needed = np.zeros(len(self.good), np.bool_) if empty else None
        return self.whole(column, least, MAX_TOKENS, "not a token count", needed).astype(np.int32)

    def together(self, column: str, prompt: Ints32, output: Ints32) -> None:
        """Refuse rows whose prompt and output have too many tokens together; ``column`` is that of the outputs."""
        allowed = f"up to {MAX_TOKENS:,} tokens together with the prompt"
        self.refuse(prompt + output > MAX_TOKENS, column, "the request is too long", allowed)

    def seconds(self, column: str, per_second: float = 1) -> Floats:
        """Return a column of times in seconds, from a column that counts ``per_second`` units per second."""
        numbers, most = self.numbers(column), (MAX_SECONDS if per_second == 1 else YEAR_2200_S) * per_second
        hint = "is the unit right (--columns unit=us)? Dates are written 2025-03-04 09:00:01"
        if per_second == 1:
            hint = "times in ms, µs or ns must be converted, or named: --columns unit=ms"
        self.refuse(np.abs(numbers) > most, column, "not a usable time", f"up to {most:g}", hint)
        return np.where(np.abs(numbers) > most, 0.0, numbers) / per_second

    def names(
        self, columns: tuple[str, ...], names: Names, *, optional: bool = False, rename: Rename | None = None
    ) -> Sequence[str]:
        """Return the adapter names of the rows (several columns joined by /), refusing bad ones.

        :param optional: a row may leave its name out, which is then empty.
        :param rename: gives the name for each cell; None: the cell is the name.
        """
        parts = [self.texts(column) for column in columns]
        if rename is not None:
            name_of = rename(parts[0])
            parts[0] = [name_of[cell] or "" for cell in parts[0]]
        if optional and any(map(str.isspace, set(parts[0]))):
            parts = [["" if cell.isspace() else cell for cell in part] for part in parts]
        for column, cells in zip(columns, parts, strict=True):
            for problem, allowed, mask in names.check(cells, optional=optional):
                self.refuse(mask, column, problem, allowed)
        return parts[0] if len(parts) == 1 else list(map("/".join, zip(*parts, strict=True)))

    def _refuse_unreadable(self, bad: Mask, column: str) -> None:
        cells = self.texts(column)
        empty, foreign = np.zeros_like(bad), np.zeros_like(bad)
        for index in np.flatnonzero(bad & self.good).tolist():
            empty[index] = not cells[index].strip()
            foreign[index] = not _is_text(cells[index])
        self.refuse(foreign, column, "not UTF-8 text", "UTF-8")
        self.refuse(empty, column, "the cell is empty", "a number")


class Names:
    """Numbers names by their first appearance; its length is the number of names so far.

    :param file: for messages.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._letters = 0
        self._codes: dict[str, int] = {}
        self._names: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._names)

    def all(self) -> tuple[str, ...]:
        """Return the names in the order of their numbers."""
        return tuple(self._names)

    def check(self, cells: Sequence[str], *, optional: bool) -> list[tuple[str, str, Mask]]:
        """Return (problem, allowed, mask) for each kind of bad name.

        :param optional: an empty cell is no problem.
        """
        wrong: dict[tuple[str, str], set[str]] = {}
        for cell in set(cells):
            problem = None if cell in self._codes or (optional and not cell) else _name_problem(cell)
            if problem is not None:
                wrong.setdefault(problem, set()).add(cell)
        return [
            (problem, allowed, np.fromiter((cell in bad for cell in cells), np.bool_, len(cells)))
            for (problem, allowed), bad in sorted(wrong.items())
        ]

    def codes(self, cells: Sequence[str]) -> Ints32:
        """Return the number of each name, int32; new names get the next ones, and empty cells ``BASE_MODEL``.

        :raises TraceError: if the names together are too long; the rest of a trace takes a few bytes per row.
        """
        codes = self._codes
        for cell in dict.fromkeys(cells):
            if not cell:
                codes[cell] = BASE_MODEL
            elif cell not in codes:
                codes[cell] = self._names.setdefault(cell.strip(), len(self._names))
                self._letters += len(cell)
        if self._letters > MAX_NAMES_LETTERS:
            raise TraceError(
                "the names of all adapters are too long together",
                file=self._file,
                got=f"{len(self._names):,} names",
                allowed=f"{MAX_NAMES_LETTERS:,} letters",
            )
        return np.fromiter(map(codes.__getitem__, cells), np.int32, len(cells))


class TimeOrder:
    """Checks that times never fall, over all blocks of a file.

    :ivar longest_s: the longest time without a request, and the row that ended it.
    """

    def __init__(self) -> None:
        self._latest_s = -np.inf
        self.longest_s = 0.0
        self.longest_row = 0

    def check(self, rows: Rows, column: str, seconds: Floats) -> None:
        """Refuse rows that are earlier than a good row before them."""
        so_far = np.maximum.accumulate(np.where(rows.good, seconds, -np.inf))
        before = np.maximum(np.concatenate(([-np.inf], so_far[:-1])), self._latest_s)
        rows.refuse(seconds < before, column, "time runs backwards", "times that never fall", "sort the trace by time")
        gaps = np.where(rows.good & np.isfinite(before), seconds - before, 0.0)
        longest = int(np.argmax(gaps))
        if gaps[longest] > self.longest_s:
            self.longest_s, self.longest_row = float(gaps[longest]), int(rows.lines[longest])
        self._latest_s = max(self._latest_s, float(so_far[-1]))


def kept(cells: Sequence[str], good: Mask) -> Sequence[str]:
    """Return the cells of the good rows."""
    if good.all():
        return cells
    return [cell for cell, fine in zip(cells, good.tolist(), strict=True) if fine]


def hashes(cells: Sequence[str]) -> NDArray[np.uint64]:
    """Return 64-bit hashes of names, which may be millions: 8 bytes each instead of a string.

    With 10 million names, two collide with a probability of 3 in a million.
    """
    from pandas.util import hash_array

    plain = list(map(str.strip, cells))
    if not "".join(plain).isascii():
        plain = [cell if _is_text(cell) else repr(cell) for cell in plain]
    return np.asarray(hash_array(np.array(plain, dtype=object), categorize=False), dtype=np.uint64)


def _is_text(cell: str) -> bool:
    return cell.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in cell)


def _name_problem(cell: str) -> tuple[str, str] | None:
    name = cell.strip()
    if not name:
        return "the adapter's name is empty", "a name"
    if not _is_text(name):
        return "not UTF-8 text", "UTF-8"
    if not all(letter >= " " and letter != "\x7f" for letter in name):
        return "the adapter's name holds control characters", "a name on one line"
    if len(name) > MAX_NAME_BYTES or len(name.encode()) > MAX_NAME_BYTES:
        return "the adapter's name is too long", f"at most {MAX_NAME_BYTES:,} bytes"
    return None
