"""Summarize a finished run of samples in rows for a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from calibrate.measure import CANARY, median_half_width
from calibrate.samples import Configuration, SampleLog
from sim.spec.units import human_seconds

Table = tuple[Sequence[str], list[list[str]]]


def sample_rows(log: SampleLog) -> Table:
    """Return a row for each kind and backend (or stage of a load): how many, how long, how well known, how far off
    the floor."""
    samples: dict[str, list[float]] = defaultdict(list)
    configurations: dict[str, Configuration] = {}
    for visit in log.visits:
        samples[visit.configuration.key] += visit.seconds
        configurations[visit.configuration.key] = visit.configuration
    rows: dict[str, list[str]] = {}
    for key, one in configurations.items():
        rows.setdefault(_kind(one), []).append(key)
    table = []
    for kind, keys in sorted(rows.items(), key=lambda row: (row[0] == CANARY, row[0])):
        medians = [float(np.median(samples[key])) for key in keys]
        widths = [median_half_width(samples[key]) for key in keys]
        floors = [float(configurations[key].parameters.get("floor_s", float("nan"))) for key in keys]
        over = np.array(medians) / np.array(floors)
        table.append(
            [
                kind,
                f"{len(keys):,}",
                f"{sum(len(samples[key]) for key in keys):,}",
                human_seconds(min(medians)),
                human_seconds(max(medians)),
                f"{np.median(widths):.1%}" if np.isfinite(np.median(widths)) else "unknown",
                f"{np.nanmedian(over):.1f}" if np.isfinite(over).any() else "",
            ]
        )
    return ("what", "configurations", "samples", "fastest", "slowest", "half-width of the median", "times the floor"), (
        table
    )


def ceilings_line(log: SampleLog) -> str:
    """Return the device's measured ceilings, from which floors are made, and how far backends are from float32."""
    ceilings = log.manifest["ceilings"]
    errors = ", ".join(f"{name} {error:.1e}" for name, error in log.manifest["backend_errors"].items())
    return (
        f"ceilings: {ceilings['bytes_per_s'] / 1e9:,.4g} GB/s, {ceilings['flops_per_s'] / 1e12:,.4g} TFLOP/s in bf16; "
        f"relative error against float32: {errors}"
    )


def _kind(one: Configuration) -> str:
    if one.kind == CANARY:
        return CANARY
    how = ", graph" if one.parameters.get("graph") else ""
    lora = f", LoRA by {one.parameters['backend']}" if one.parameters.get("backend") else ""
    base = ", base" if "backend" in one.parameters and not lora and one.kind != "head" else ""
    return f"{one.kind}{base}{lora}{how}"
