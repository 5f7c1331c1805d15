"""The content of a trace, in any format, and the options of its readers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from sim.arrays import Floats, Ints, Ints32
from sim.errors import TraceError
from sim.spec.sections.trace_source import LogColumns
from sim.traffic.request import BASE_MODEL
from sim.traffic.shared_text import SharedText

MAX_REQUESTS = 50_000_000
"""Requests of a trace, at most, unless the user sets a limit: they take 1.2 GB."""

SILENCE = 10
"""A silence is reported if it is so many times the longest gap of independent requests."""


@dataclass(frozen=True, slots=True)
class TraceData:
    """The requests of a trace, in order. The arrays are shared between readers and read-only.

    :ivar arrival_s: (n,) float64, from 0 at the first request, never falling.
    :ivar prompt_tokens, output_tokens: (n,) int32, 1 or more, or None where the format has no lengths.
    :ivar adapter: (n,) int32 index into ``names`` (by first appearance), ``BASE_MODEL`` where a request names none;
        None where the trace has no names.
    :ivar session: (n,) int32 index by first appearance, or None where the trace names none.
    :ivar names: adapter names.
    :ivar adapter_bytes: (adapters,) int64 from the optional column, or None.
    :ivar notes: notes for the user, such as ignored columns.
    :ivar skipped: reason → rows left out.
    :ivar text: which tokens of prompts requests share, or None where the trace doesn't say.
    :ivar columns: of a log, what was read as what: the fields of ``workload.trace.columns``.
    :ivar begins_at: time of the first request in ISO 8601, without an offset where the trace gives none; empty: its
        times are no dates.
    :ivar text_by_user: whether copies of the trace, which stand for other users, share nothing of it.
    """

    arrival_s: Floats
    prompt_tokens: Ints32 | None = None
    output_tokens: Ints32 | None = None
    adapter: Ints32 | None = None
    session: Ints32 | None = None
    names: tuple[str, ...] = ()
    adapter_bytes: Ints | None = None
    notes: tuple[str, ...] = ()
    skipped: dict[str, int] = field(default_factory=dict)
    text: SharedText | None = None
    text_by_user: bool = False
    columns: dict[str, str] = field(default_factory=dict)
    begins_at: str = ""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, np.ndarray):
                value.flags.writeable = False

    def __reduce__(self) -> tuple[type[TraceData], tuple[Any, ...]]:
        # Unpickled or copied arrays are writable; building the object again makes them read-only.
        return type(self), tuple(getattr(self, each.name) for each in fields(self))

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def base_share(self) -> float:
        """Share of the requests that are for the base model: in a trace of names, those that name no adapter."""
        return 0.0 if self.adapter is None else float(np.mean(self.adapter == BASE_MODEL))

    @property
    def base_alone(self) -> bool:
        """Whether all requests are for the base model, so that LoRA is off."""
        return self.adapter is not None and not self.names

    def without_names(self) -> TraceData:
        """Return the trace as one that says nothing about adapters."""
        return replace(self, adapter=None, names=(), adapter_bytes=None)

    def for_adapters(self) -> TraceData:
        """Return the trace without the requests to the base model, unless there are no others."""
        if self.base_alone:
            return self.without_names()
        if self.adapter is None or self.base_share == 0:
            return self
        return self.pick(np.flatnonzero(self.adapter != BASE_MODEL))

    def pick(self, index: Ints) -> TraceData:
        """Return these requests of the trace, in this order."""
        arrays = ("arrival_s", "prompt_tokens", "output_tokens", "adapter", "session")
        picked = {name: values[index] for name in arrays if (values := getattr(self, name)) is not None}
        return replace(self, **picked, text=None if self.text is None else self.text.pick(index))


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Everything that decides what a reader returns.

    :ivar files: of which only a log has several.
    :ivar limit: the most requests to return.
    :ivar seed: for formats that give rates or counts instead of single requests.
    :ivar rate_scale: factor on the rates and counts of such formats.
    :ivar hash_block: tokens of a block in the column ``hash_ids``.
    :ivar adapters_only: read only adapters, so that plain tables and logs need no times and no lengths.
    :ivar columns, base_model, adapter_from: of a log, as in ``workload.trace``.
    """

    files: tuple[str, ...]
    limit: int | None
    seed: int = 1
    rate_scale: float = 1.0
    lengths_file: str | None = None
    hash_block: int = 512
    skip_bad: bool = False
    adapters_only: bool = False
    columns: LogColumns | None = None
    base_model: str | None = None
    adapter_from: str | None = None

    @property
    def file(self) -> str:
        """The first of its files, for messages."""
        return self.files[0]


def too_many(file: str, count: float) -> TraceError:
    """Return the error for a trace with more requests than intended, most likely."""
    return TraceError(
        "the trace has too many requests",
        file=file,
        got=f"{count:,.0f}",
        allowed=f"up to {MAX_REQUESTS:,}",
        hint="give workload.requests (or --requests) to take the first so many, or a population_scale below 1",
    )


def ties_note(file: str, arrival_s: Floats) -> Iterable[str]:
    """Yield a note on requests with equal times, if they are more than a tenth."""
    same = arrival_s[1:] == arrival_s[:-1]
    shared = int(np.count_nonzero(np.append(same, False) | np.append(False, same)))
    if shared > len(arrival_s) / 10:
        yield f"{file}: {shared:,} of {len(arrival_s):,} requests share their time with another"


def silence_s(count: int, span_s: float) -> float:
    """Return the seconds from which a gap of so many requests is far longer than by chance."""
    # n independent gaps reach about 1 + ln n times their mean.
    return max(SILENCE * (1 + float(np.log(count))) * span_s / count, span_s / 100)


def silence_note(file: str, arrival_s: Floats, longest_s: float, row: int) -> Iterable[str]:
    """Yield a note on the longest gap without requests, if it looks like a gap in the recording."""
    if longest_s > silence_s(len(arrival_s), float(arrival_s[-1])):
        yield f"{file}: the longest gap without requests, {longest_s:,.4g} s, ends with row {row}"
