"""The trace of a scenario: its file, format and scaling."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, PositiveInt, field_validator, model_validator

from sim.spec.base import Strict, located
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


class Trace(Strict):
    """Recorded requests, replayed with their own times, adapters and lengths."""

    file: str
    """A file in one of the formats, perhaps gzipped; relative to the scenario (or to the working directory, if given by
    ``--set``)."""
    format: str = Field(
        default="auto",
        description=TRACE_FORMATS.described(
            "Where a trace names no adapters, ``popularity`` draws them; where it has no lengths, ``tokens`` does. "
            "Published traces are read as their authors give them."
        ),
    )
    lengths_file: str | None = None
    """With ``servegen-windows``: a CSV file with each client's token lengths (mean, p50, p90, p99)."""
    time_scale: float = Field(default=1.0, gt=0, le=1e6)
    """Factor on the playback speed; order and locality stay as recorded."""
    population_scale: float = Field(default=1.0, gt=0, le=10_000)
    """Factor on the number of users of the same adapters: copies of the trace, shifted in time by random offsets (a
    fraction keeps that share of the sessions). It changes the order of requests, and so loses part of the locality."""
    hash_block: PositiveInt = Field(default=512, le=65536)
    """Tokens of a block in the column ``hash_ids``; Mooncake's have 512."""
    skip_bad: bool = False
    """Leave out rows that can't be used and count them, instead of stopping at the first."""

    @field_validator("format")
    @classmethod
    def _format(cls, value: str) -> str:
        return TRACE_FORMATS.check(value)

    @model_validator(mode="after")
    def _lengths_of_windows(self) -> Trace:
        if self.lengths_file is not None and not TRACE_FORMATS[self.format].has_lengths_file:
            raise located(
                "lengths_file",
                "only servegen-windows has a lengths file",
                got=self.lengths_file,
                hint="the other formats have their lengths in the trace, or none",
            )
        return self
