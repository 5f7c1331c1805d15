"""JSON of a known form: every missing field is an error that names it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError

Floats = NDArray[np.float64]

MOST = 1e15
_NUMERIC = {int, float}


@dataclass(frozen=True, slots=True)
class JsonFields:
    """A table of JSON, and where it is.

    :ivar file, where: for error messages: the file, and the path to this table.
    :ivar form: what the file is, such as ``a result of vllm bench serve``.
    """

    file: str
    form: str
    data: Any
    where: str = ""

    def has(self, path: str) -> bool:
        """Return whether there is a value that is not null."""
        return self._value(path) is not None

    def table(self, path: str) -> JsonFields:
        """Return a table in this one.

        :raises InputError: if there is none.
        """
        value = self._value(path)
        if not isinstance(value, dict):
            raise self.wrong(path, value, "a table")
        return JsonFields(self.file, self.form, value, self._path(path))

    def tables(self, path: str) -> Iterator[JsonFields]:
        """Yield the tables of a list."""
        for place, value in enumerate(self.items(path)):
            if not isinstance(value, dict):
                raise self.wrong(f"{path}.{place}", value, "a table")
            yield JsonFields(self.file, self.form, value, f"{self._path(path)}.{place}")

    def items(self, path: str) -> list[Any]:
        """Return a list."""
        value = self._value(path)
        if not isinstance(value, list):
            raise self.wrong(path, value, "a list")
        return value

    def numbers(self, path: str) -> Floats:
        """Return a list of numbers."""
        return self._numbers(path, self.items(path))

    def lists_of_numbers(self, path: str) -> list[Floats]:
        """Return a list of lists of numbers."""
        found = []
        for place, each in enumerate(self.items(path)):
            if not isinstance(each, list):
                raise self.wrong(f"{path}.{place}", each, "a list")
            found.append(self._numbers(f"{path}.{place}", each))
        return found

    def number(self, *paths: str) -> float:
        """Return the first of several numbers that is there.

        :raises InputError: if none is, or it can't be meant.
        """
        for path in paths:
            if (value := self._value(path)) is not None:
                return self._number(path, value)
        raise self.wrong(paths[0], None, "a number")

    def maybe(self, *paths: str) -> float | None:
        """Return such a number; None if none is there."""
        return self.number(*paths) if any(self.has(path) for path in paths) else None

    def text(self, *paths: str) -> str | None:
        """Return the first text that is there."""
        return next((value for path in paths if isinstance(value := self._value(path), str)), None)

    def wrong(self, path: str, got: object, allowed: str) -> InputError:
        """Return the error for a field."""
        problem = "is missing" if got is None else "can't be used"
        return InputError(f"{problem} in {self.form}", file=self.file, key=self._path(path), got=got, allowed=allowed)

    def _numbers(self, path: str, values: list[Any]) -> Floats:
        """Check numbers together, which a file may have millions of; one by one only to name the one that is wrong."""
        if set(map(type, values)) <= _NUMERIC:
            try:
                found = np.array(values, dtype=np.float64)
            except OverflowError:  # an integer beyond all floats
                pass
            else:
                if ((found >= 0) & (found <= MOST)).all():
                    return found
        return np.array([self._number(f"{path}.{place}", value) for place, value in enumerate(values)])

    def _number(self, path: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise self.wrong(path, value, "a number")
        if not 0 <= value <= MOST:
            raise self.wrong(path, value, f"0 to {MOST:g}")
        return float(value)

    def _value(self, path: str) -> Any:
        value = self.data
        for part in path.split("."):
            if not isinstance(value, dict):
                return None
            value = value.get(part)
        return value

    def _path(self, path: str) -> str:
        return f"{self.where}.{path}" if self.where else path
