"""Recorded requests: which file, in which format, replayed how."""

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
    """A file of one of the formats, may be gzipped; relative to the scenario (or to the folder you stand in, when
    given by ``--set``)."""
    format: TraceFormat = "auto"
    """``auto``: told by the columns. ``csv`` and ``parquet``: timestamp_s, adapter_id or tenant_id, input_tokens,
    output_tokens, optional adapter_bytes and session_id. The others are published traces as their authors
    give them. Where a trace names no adapters, ``popularity`` draws them; where it has no lengths, ``tokens`` does."""
    lengths_file: str | None = None
    """With ``servegen-windows``: a CSV file with each client's token lengths (mean, p50, p90, p99)."""
    time_scale: float = Field(default=1.0, gt=0, le=1e6)
    """Play the trace so many times as fast; order and locality stay as recorded."""
    population_scale: float = Field(default=1.0, gt=0, le=10_000)
    """So many times as many users of the same adapters: copies of the trace, shifted in time by random offsets (a
    fraction keeps that share of the sessions). It destroys part of the locality: the order of requests is a new one."""
    skip_bad: bool = False
    """Leave out rows that can't be used and count them, instead of stopping at the first."""

    @model_validator(mode="after")
    def _lengths_of_windows(self) -> Trace:
        if self.lengths_file is not None and self.format not in ("auto", "servegen-windows"):
            raise located(
                "lengths_file", "only servegen-windows has a lengths file", got=self.lengths_file,
                hint="the other formats have their lengths in the trace, or none",
            )  # fmt: skip
        return self
