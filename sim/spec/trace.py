"""Recorded requests: which file, in which format, replayed how."""

from __future__ import annotations

from typing import Literal

from sim.spec.base import Strict


class Trace(Strict):
    """Recorded requests, replayed with their own times, adapters and lengths."""

    file: str
    """CSV file, relative to the scenario (or to the folder you stand in, when given by ``--set``)."""
    format: Literal["auto", "csv", "azure-llm-2023"] = "auto"
    """``csv``: columns timestamp_s, adapter_id or tenant_id, input_tokens, output_tokens. ``azure-llm-2023``:
    TIMESTAMP, ContextTokens, GeneratedTokens; its requests name no adapter and draw one from ``popularity``."""
