"""The trace of a scenario: its file, format and scaling."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sim.spec.base import Strict, located

TraceFormat = Literal[
    "auto",
    "csv",
    "parquet",
    "azure-llm-2023",
    "mooncake",
    "burstgpt",
    "servegen-windows",
    "azure-functions",
    "azure-functions-2021",
]


class Trace(Strict):
    """Recorded requests, replayed with their own times, adapters and lengths."""

    file: str
    """A file in one of the formats, perhaps gzipped; relative to the scenario (or to the working directory, if given by
    ``--set``)."""
    format: TraceFormat = "auto"
    """``auto``: detected from the columns. ``csv`` and ``parquet``: timestamp_s, adapter_id or tenant_id, input_tokens,
    output_tokens, optional adapter_bytes and session_id. The others are published traces as their authors
    give them. Where a trace names no adapters, ``popularity`` draws them; where it has no lengths, ``tokens`` does."""
    lengths_file: str | None = None
    """With ``servegen-windows``: a CSV file with each client's token lengths (mean, p50, p90, p99)."""
    time_scale: float = Field(default=1.0, gt=0, le=1e6)
    """Factor on the playback speed; order and locality stay as recorded."""
    population_scale: float = Field(default=1.0, gt=0, le=10_000)
    """Factor on the number of users of the same adapters: copies of the trace, shifted in time by random offsets (a
    fraction keeps that share of the sessions). It changes the order of requests, and so loses part of the locality."""
    skip_bad: bool = False
    """Leave out rows that can't be used and count them, instead of stopping at the first."""

    @model_validator(mode="after")
    def _lengths_of_windows(self) -> Trace:
        if self.lengths_file is not None and self.format not in ("auto", "servegen-windows"):
            raise located(
                "lengths_file",
                "only servegen-windows has a lengths file",
                got=self.lengths_file,
                hint="the other formats have their lengths in the trace, or none",
            )
        return self
