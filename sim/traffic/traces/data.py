"""What a trace says, whatever its format, and what every reader is told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.errors import TraceError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Ints32 = NDArray[np.int32]

MAX_REQUESTS = 50_000_000
"""Requests of a trace that are read without being asked for: they take 1.2 GB."""

SILENCE = 10
"""A silence is told when it is so many times the longest gap that independent requests would show."""


@dataclass(frozen=True, slots=True)
class TraceData:
    """The requests of a trace, in order. The arrays are shared by all who read the trace, and can't be written to.

    :ivar arrival_s: (n,) float64, from 0 at the first request, never falling.
    :ivar prompt_tokens, output_tokens: (n,) int32, 1 or more, or None where the format has no lengths.
    :ivar adapter: (n,) int32 index into ``names`` (by first appearance), or None where the trace names none.
    :ivar session: (n,) int32 index by first appearance, or None where the trace names none.
    :ivar names: adapter names.
    :ivar adapter_bytes: (adapters,) int64 from the optional column, or None.
    :ivar notes: what a reader should know, such as columns that were ignored.
    :ivar skipped: reason → rows left out.
    """

    arrival_s: Floats
    prompt_tokens: Ints32 | None
    output_tokens: Ints32 | None
    adapter: Ints32 | None
    session: Ints32 | None
    names: tuple[str, ...]
    adapter_bytes: Ints | None
    notes: tuple[str, ...]
    skipped: dict[str, int]

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value.flags.writeable = False

    def __reduce__(self) -> tuple[type[TraceData], tuple[Any, ...]]:
        # Arrays come out of a pickle or a deep copy writable: made anew, they are locked again.
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    def __len__(self) -> int:
        return len(self.arrival_s)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What is asked of a reader: with the state of the files, all that decides what it returns.

    :ivar limit: at most so many requests.
    :ivar seed: decides what formats without single requests leave to chance.
    :ivar rate_scale: multiplies rates and counts of such formats.
    :ivar adapters_only: only adapters are wanted: plain tables need no times and no lengths then.
    """

    file: str
    limit: int | None
    seed: int = 1
    rate_scale: float = 1.0
    lengths_file: str | None = None
    skip_bad: bool = False
    adapters_only: bool = False


def too_many(file: str, count: float) -> TraceError:
    """Return the error for a trace that stands for more requests than anyone can have meant."""
    return TraceError(
        "the trace stands for too many requests",
        file=file,
        got=f"{count:,.0f}",
        allowed=f"up to {MAX_REQUESTS:,}",
        hint="give workload.requests (or --requests) to take the first so many, or a population_scale below 1",
    )


def ties_note(file: str, arrival_s: Floats) -> Iterable[str]:
    """Say how many requests share their time with another, where that is more than a tenth of them."""
    same = arrival_s[1:] == arrival_s[:-1]
    shared = (
        int(np.count_nonzero(same)) + int(np.count_nonzero(same[:1])) + int(np.count_nonzero(same[1:] & ~same[:-1]))
    )
    if shared > len(arrival_s) / 10:
        yield f"{file}: {shared:,} of {len(arrival_s):,} requests share their time with another"


def silence_note(file: str, arrival_s: Floats, longest_s: float, row: int) -> Iterable[str]:
    """Name the longest silence where it looks like a gap in the recording rather than chance."""
    count, span = len(arrival_s), float(arrival_s[-1])
    # n independent gaps reach about 1 + ln n times their mean.
    if longest_s > SILENCE * (1 + np.log(count)) * span / count and longest_s > span / 100:
        yield f"{file}: the longest silence, {longest_s:,.4g} s, ends with row {row}"
