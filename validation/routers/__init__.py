"""Routers as they are deployed, judged by tables of what the real ones scored and chose: a module for each system."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class Judged(NamedTuple):
    """One row of a table, next to what we compute for it.

    :ivar row: its id.
    :ivar error: the largest difference of a number in it; 0 where the row holds none.
    :ivar equal: whether we make the same choice; None where the row holds none.
    """

    row: str
    error: float = 0.0
    equal: bool | None = None


Judge = Callable[[Mapping[str, Any]], Iterator[Judged]]
"""Judges the rows of one table, as it is in its file."""


def largest_error(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the largest difference of two rows of numbers; infinite if they differ in length."""
    if len(ours) != len(theirs):
        return float("inf")
    return max((abs(one - other) for one, other in zip(ours, theirs, strict=True)), default=0.0)
