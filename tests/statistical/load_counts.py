"""Predict the adapter loads of ten-minute runs (load_counts.csv); as a program, print errors by slots.

    python tests/statistical/load_counts.py DIR [mean-itl]

Requests come through the front end that all these runs were measured behind. It matters: while it stands still,
adapters whose next request waits outside leave the batch, and come back at the price of a cascade.

The model behind these runs is not stated, so every run's own step time is given: the run divided by its steps, the
loads that blocked them included. With ``mean-itl`` it is the mean gap between tokens that the client saw, which in
overload is up to three times as long, because streamed tokens are merged.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim.spec.profile import LoraCost, StepCost, load_profile
from sim.spec.scenario import Scenario
from sim.world.build import build_world
from sim.world.replication import simulate

PROMPT, OUTPUT = 250, 231
_KV_PER_SEQUENCE = PROMPT + OUTPUT / 2


@dataclass(frozen=True)
class Counted:
    """One run: loads per completed request, as measured and as predicted."""

    slots: int
    adapters: int
    waiting: float
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def rows(tables: Path) -> list[dict[str, str]]:
    """Return the runs in which slots bind: more adapters than slots, and most of the KV cache free."""
    capacity = {}
    with open(tables / "kv_capacity.csv", newline="") as lines:
        for row in csv.DictReader(lines):
            if row["status"] == "ok" and row["model"].startswith("llama") and row["max_lora_rank"] == "8":
                capacity[row["max_loras"]] = float(row["kv_cache_tokens"])
    with open(tables / "load_counts.csv", newline="") as lines:
        return [
            row | {"kv_tokens": str(capacity[row["gpu_slots"]])}
            for row in csv.DictReader(lines)
            if row["gpu_slots"] in capacity
            and int(row["adapters"]) > int(row["gpu_slots"])
            and float(row["loads_host_to_gpu"]) > 0
            and float(row["running_mean"]) * _KV_PER_SEQUENCE < 0.8 * capacity[row["gpu_slots"]]
        ]


def count(row: dict[str, str], folder: Path, *, mean_itl: bool = False) -> Counted:
    """Simulate one run with steps of equal length."""
    slots, adapters = int(row["gpu_slots"]), int(row["adapters"])
    duration_s = float(row["duration_s"])
    step_s = float(row["mean_itl_ms"]) / 1000 if mean_itl else duration_s / float(row["steps"])
    profile, _ = load_profile("h100-64gb/llama-3.1-8b/assumed")
    step = StepCost(fixed_s=step_s, lora=LoraCost())
    path = folder / "profile.json"
    path.write_text(json.dumps(profile.model_copy(update={"step": step}).model_dump(mode="json")), encoding="utf-8")
    no_time = {"law": "fixed", "value": "1 us"}  # the step time has the loads in it
    scenario = Scenario.model_validate(
        {
            "schema_version": 1,
            "name": "load-counts",
            "workload": {
                "duration": f"{duration_s} s",
                "arrivals": {"process": "poisson", "rate": f"{float(row['rate_per_adapter_rps']) * adapters}/s"},
                "tokens": {"prompt": {"law": "fixed", "value": PROMPT}, "output": {"law": "fixed", "value": OUTPUT}},
            },
            "adapters": {"count": adapters, "rank": 8},
            "fleet": {
                "engine": "vllm-0.8",
                "profile": str(path),
                "max_num_seqs": 2048,
                "max_num_batched_tokens": 2048,
                "kv_tokens": int(float(row["kv_tokens"])),
                "prefix_caching": False,
                "front_end": "vllm-0.8-scraped",
            },
            "cache": {"gpu": {"slots": slots}, "host": {"slots": adapters}},
            "storage": {"load": no_time, "host_load": no_time},
            "run": {"replications": 1, "warmup": "0%"},
        }
    )
    recording = simulate(build_world(scenario), 0, 1)
    completed = int((recording.requests["status"] == 0).sum())
    return Counted(
        slots,
        adapters,
        float(row["waiting_mean"]),
        float(row["loads_host_to_gpu"]) / float(row["completed_requests"]),
        len(recording.loads["tier"]) / max(completed, 1),
    )


def median_error(counted: list[Counted]) -> float:
    """Return the median absolute relative error."""
    return float(np.median([abs(each.error) for each in counted]))


def main() -> None:
    mean_itl = "mean-itl" in sys.argv
    with tempfile.TemporaryDirectory() as folder:
        counted = [count(row, Path(folder), mean_itl=mean_itl) for row in rows(Path(sys.argv[1]))]
    for slots in sorted({each.slots for each in counted}):
        for words, waits in (("unsaturated", False), ("saturated", True)):
            _say(f"{slots} slots, {words}", [c for c in counted if c.slots == slots and (c.waiting > 20) is waits])
    few = [each for each in counted if each.slots <= 64]
    _say("all", counted)
    _say("up to 64 slots", few)
    _say("up to 64 slots, saturated", [each for each in few if each.waiting > 20])


def _say(words: str, counted: list[Counted]) -> None:
    if counted:
        bias = float(np.median([each.error for each in counted]))
        print(f"{words}: {len(counted)} runs, median error {median_error(counted):.3f}, bias {bias:+.3f}")


if __name__ == "__main__":
    main()
