"""The trace of a scenario: its file, format and scaling."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, field_validator

from sim.spec.base import Errors, Strict, checks, located
from sim.spec.registry import Entry, Registry


@dataclass(frozen=True, kw_only=True)
class TraceFormat(Entry):
    """A format of traces; its target is a ``Layout`` of columns, or a ``Format`` with a reader of its own.

    :ivar has_lengths_file: whether token lengths come from a second file.
    """

    has_lengths_file: bool = False


_COLUMNS = (
    "timestamp_s, adapter_id or tenant_id, input_tokens, output_tokens, optional adapter_bytes, session_id, and "
    "prefix_id with prefix_tokens, or hash_ids."
)
_FORMATS, _READ = "sim.traffic.traces.formats", "sim.traffic.traces.read"
TRACE_FORMATS = Registry(
    "format",
    (
        TraceFormat("auto", "told by the columns.", has_lengths_file=True),
        TraceFormat("csv", _COLUMNS, f"{_READ}:CSV"),
        TraceFormat("parquet", "the same columns.", f"{_READ}:PARQUET"),
        TraceFormat("log", "a log of requests, in any order; see ``columns``.", f"{_READ}:LOG"),
        TraceFormat("azure-llm-2023", "Azure's LLM inference traces.", f"{_FORMATS}:AZURE_LLM"),
        TraceFormat("mooncake", "Mooncake's traces.", f"{_FORMATS}:MOONCAKE"),
        TraceFormat("burstgpt", "BurstGPT.", f"{_FORMATS}:BURSTGPT"),
        TraceFormat(
            "servegen-windows", "ServeGen's rates of clients.", f"{_READ}:SERVEGEN_WINDOWS", has_lengths_file=True
        ),
        TraceFormat("azure-functions", "Azure Functions, invocations per minute.", f"{_READ}:AZURE_FUNCTIONS"),
        TraceFormat(
            "azure-functions-2021", "Azure Functions 2021, one invocation a row.", f"{_FORMATS}:AZURE_FUNCTIONS_2021"
        ),
    ),
)


NO_COLUMN = "none"
"""Stands for a column of a log that there is none."""

TimeUnit = Literal["s", "ms", "us", "ns"]


class LogColumns(Strict):
    """Which columns of a log hold what; the others are found by their names."""

    time: str | None = None
    """When a request came: ISO 8601, the times of access logs, or a number."""
    unit: TimeUnit | None = None
    """Of times that are numbers. Unset: told by the size of the first one."""
    duration: str | None = None
    """Seconds (milliseconds if the name ends in ``ms``) to take from a time at which a request ended."""
    adapter: str | None = None
    """The adapter's name; an empty cell is a request to the base model. ``none``: ``popularity`` draws adapters."""
    input: str | None = None
    """Prompt tokens. ``none``, with ``output: none``: ``tokens`` draws the lengths."""
    output: str | None = None
    """Output tokens."""
    session: str | None = None
    """The conversation. ``none``: the log has no sessions."""
    status: str | None = None
    """How a request ended: rows of failed ones are left out and counted. ``none``: all count."""

    @checks
    def _both_lengths(self) -> Errors:
        if (self.input == NO_COLUMN) != (self.output == NO_COLUMN):
            yield located(
                "output" if self.input == NO_COLUMN else "input",
                "lengths are drawn for prompts and outputs together",
                allowed="input: none and output: none, or a column for each",
            )


class Trace(Strict):
    """Recorded requests, replayed with their own times, adapters and lengths."""

    file: str | tuple[str, ...]
    """A file, perhaps compressed (gzip, zstd), relative to the scenario (in ``--set``: to the working directory). Of a
    log, several files: ``[access.log.1.gz, access.log]``."""
    format: Annotated[str, AfterValidator(TRACE_FORMATS.check)] = Field(
        default="auto",
        description=TRACE_FORMATS.described(
            "Where a trace names no adapters, ``popularity`` draws them; where it has no lengths, ``tokens`` does."
        ),
    )
    lengths_file: str | None = None
    """With ``servegen-windows``: a CSV file with each client's token lengths (mean, p50, p90, p99)."""
    time_scale: float = Field(default=1.0, gt=0, le=1e6)
    """Factor on the playback speed; order and locality stay as recorded."""
    population_scale: float = Field(default=1.0, gt=0, le=10_000)
    """Factor on the number of users of the same adapters: copies of the trace, shifted by random offsets, which loses
    part of the locality. A fraction keeps that share of the sessions."""
    hash_block: PositiveInt = Field(default=512, le=65536)
    """Tokens of a block in the column ``hash_ids``; Mooncake's have 512."""
    columns: LogColumns | None = None
    """Which columns of a log hold what (docs/trace.md). Unset: found by their names."""
    base_model: str | None = None
    """The name of the base model in a log's column of adapters."""
    adapter_from: str | None = None
    """A regular expression that finds the adapter's name there: its first group, or all of it. Rows without a match are
    left out and counted."""
    skip_bad: bool = False
    """Leave out rows that can't be used and count them, instead of stopping at the first."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files, one or several."""
        return (self.file,) if isinstance(self.file, str) else self.file

    @field_validator("adapter_from")
    @classmethod
    def _pattern(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise located("", f"not a regular expression: {error}", got=value) from None
        return value

    @checks
    def _only_of_logs(self) -> Errors:
        given = {"columns": self.columns, "base_model": self.base_model, "adapter_from": self.adapter_from}
        for key, value in given.items():
            if value is not None and self.format not in ("auto", "log"):
                yield located(key, "only a log has this", got=f"format {self.format}", allowed="format log or auto")
        if not self.files or (len(self.files) > 1 and self.format not in ("auto", "log")):
            yield located("file", "only a log has several files", got=f"format {self.format}", allowed="one file")
        if twice := next((file for file in self.files if self.files.count(file) > 1), None):
            yield located("file", "the same file twice", got=twice)

    @checks
    def _lengths_of_windows(self) -> Errors:
        if self.lengths_file is not None and not TRACE_FORMATS[self.format].has_lengths_file:
            yield located(
                "lengths_file",
                "only servegen-windows has a lengths file",
                got=self.lengths_file,
                hint="the other formats have their lengths in the trace, or none",
            )
