"""Hours of serving that a lab measured with vLLM and with S-LoRA, predicted as ``loraplan fidelity`` does.

``--rows`` takes one of their tables (docs/validation.md), or a folder with ``runs.csv``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from sim.studies.fidelity.command import LENGTHS
from sim.studies.fidelity.fidelity_study import predict_all, profiles_for
from sim.studies.fidelity.measured_runs import read_lengths, read_table, runs_of
from validation.gallery.entry import Bar, Entry, Row, Source, median_error
from validation.published.slora_runs import read_slora_runs

BUNDLED = Path(__file__).parent / "data"
VLLM, SLORA = "vllm-h100", "s-lora-64gb"
LIMITS: Mapping[str, Mapping[str, float]] = {
    VLLM: {"req_per_s": 0.03, "tpot_mean_ms": 0.05, "ttft_p50_ms": 0.1, "ttft_p99_ms": 0.15},
    SLORA: {"req_per_s": 0.01, "tpot_mean_ms": 0.02, "ttft_mean_ms": 0.02, "loads_per_request": 0.01},
}
"""Bars of the median error, somewhat above that of all runs of the source (docs/validation.md)."""


def predict(path: Path | None) -> list[Row]:
    """Predict the runs of a table, or of both bundled ones."""
    if path is None:
        return [row for name in ("vllm_h100.csv", "s_lora.csv") for row in _table(BUNDLED / name)]
    return _table(path / "runs.csv" if path.is_dir() else path)


def _table(path: Path) -> list[Row]:
    table, lengths, entry = read_table(path), None, SLORA
    if "sent" in table.columns:
        runs = read_slora_runs(path)
    else:
        runs, lengths, entry = runs_of(table), read_lengths(path.with_name(LENGTHS)), VLLM
    profiles = profiles_for(sorted({run.model for run in runs}), None, runs[0].profile)
    with tempfile.TemporaryDirectory(prefix="loraplan-") as folder:
        found = predict_all(runs, lengths, profiles, table=Path(folder) / "predicted.csv")
    return [
        Row(
            entry,
            each.run.name,
            {key: each.run.measured[key] for key in LIMITS[entry] if each.run.usable(key)},
            {key: each.predicted[key] for key in LIMITS[entry]},
            anchor=each.calibrated,
        )
        for each in found
    ]


def bars(rows: Sequence[Row]) -> list[Bar]:
    """Return a bar for the median error of each quantity."""
    limits = LIMITS[rows[0].entry] if rows else {}
    return [Bar(f"{key}, median error", median_error(rows, key), limit) for key, limit in limits.items()]


LAB = "Agulló et al., arXiv 2508.08343 (Apache-2.0)"
SOURCE = Source(
    (
        Entry(
            VLLM,
            "vLLM 0.8.5 on one H100 with 64 GB, hours",
            f"{LAB}: FerranAgulloLopez/GPULLMAdapterOptimization",
            "every 37th of the 447 hours that nothing was fitted to, in the order of their names",
            "the profiles' step costs, on 74 other hours and on closed loops of the same server; prompt and answer "
            "lengths correlate by −0.35",
            bars,
            "[Validation](validation.md#served-hours) has all 447. p99 TTFT of unsaturated hours is that of the "
            "measuring client, and the noisiest.",
        ),
        Entry(
            SLORA,
            "S-LoRA on a GPU with 64 GB, 20 minutes each",
            f"{LAB}: FerranAgulloLopez/GPULLMAdapterOptimizationSLoRA",
            "every third of 35 runs; the client is seeded, so arrivals and adapters are exact",
            "the profile's step costs, on the times of steps of these runs, and 30 ms of front end",
            bars,
            "Costs come from the same runs, so this shows that queues and loads follow, not that costs carry over to "
            "another card.",
        ),
    ),
    predict,
)
