"""Measured runs of S-LoRA: a table with a row a run, whose arrivals and adapters are known exactly.

The columns are those of ``slora/runs.csv`` (docs/validation.md). The client was seeded, so each run is
replayed as a trace. ``python validation/published/slora_runs.py RUNS.csv`` predicts them.
"""

from __future__ import annotations

import argparse
import math
import random
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sim.cli.output import finish
from sim.results.records import COMPLETED, Recording
from sim.results.run_directory.result_files import write_text
from sim.spec.scenario import Scenario
from sim.studies.fidelity.command import predict_runs
from sim.studies.fidelity.measured_runs import (
    METRICS,
    MOST_RPS,
    UNSATURATED,
    LengthHistograms,
    MeasuredRun,
    RunCells,
    read_table,
)

SATURATED = "saturated"

SETTINGS = {
    "max_total_tokens": "kv_tokens",
    "batch_max_tokens": "max_num_batched_tokens",
    "max_running_requests": "max_num_seqs",
    "decode_steps_between_admissions": "admission_interval",
}
"""Settings of the server, as columns and as keys of ``fleet``."""

MEASURED = tuple(name for name in METRICS if name != "running_mean")
"""What is compared in every table. ``batch_mean`` is a mean over steps, not over time, so it isn't."""
MORE_MEASURED = ("output_tok_per_s", "ttft_mean_ms", "loads_per_request")

COLUMNS = (
    "model",
    "rank",
    "adapters",
    "adapter_rate_rps",
    "sent",
    "client_extra_ms",
    "duration_s",
    "prompt_tokens",
    "output_tokens",
    *SETTINGS,
    "unfinished",
    "batch_max",
    "kv_usage_mean",
    *MEASURED,
    *MORE_MEASURED,
)

MODELS = ("llama-2-7b",)
TARGETS = ("q", "k", "v", "o")
"""What these adapters target."""
DATASET = 94_145
"""Prompts of the client's dataset, and the most requests that it sends. It shuffles them before anything else, which
moves its random numbers on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SLoraRun(MeasuredRun):
    """One row.

    :ivar sent: requests.
    :ivar client_extra_s: time that the client took between two requests, besides the drawn gap.
    :ivar settings: of the server, by keys of ``fleet``.
    :ivar waiting_mean: requests that waited at the end, at least.
    """

    compared: ClassVar[tuple[str, ...]] = (*METRICS, "ttft_mean_ms", "loads_per_request")
    regimes: ClassVar[tuple[str, ...]] = (UNSATURATED, SATURATED)
    engine: ClassVar[str] = "s-lora"
    front_end: ClassVar[str] = "s-lora"
    profile: ClassVar[str] = "unnamed-64gb/{model}/s-lora"
    sampling: ClassVar[str] = "arrivals as they were sent"

    sent: int
    client_extra_s: float
    prompt_tokens: int
    output_tokens: int
    settings: tuple[tuple[str, int], ...]

    @property
    def seeds(self) -> int:
        """How often the run is simulated: its arrivals are known exactly."""
        return 1

    @property
    def regime(self) -> str:
        """What limited the run, by what was measured: saturated, if more were left at the end than ever ran at once."""
        return SATURATED if self.waiting_mean > 0 else UNSATURATED

    @property
    def simulated(self) -> tuple[object, ...]:
        """What a simulation of the run depends on, besides the profile."""
        requests = self.sent, self.client_extra_s, self.prompt_tokens, self.output_tokens
        return self.name, self.adapters, self.ranks, self.rates, self.duration_s, requests, self.settings

    def usable(self, metric: str) -> bool:
        """Return whether a metric was measured, and measured well enough to be compared.

        Under overload the server merges chunks, so the client counts fewer and longer gaps.
        """
        if metric == "itl_mean_ms" and self.regime != UNSATURATED:
            return False
        return self.measured.get(metric, 0.0) > 0

    def as_measured(self, lengths: LengthHistograms | None, profile: str, trace: Path) -> Scenario:
        """Return the scenario that the run was: one replica of S-LoRA behind its front end."""
        times, adapters = sent_requests(self)
        rest = f"{self.prompt_tokens},{self.output_tokens}\n"
        rows = "".join([f"{time!r},{adapter},{rest}" for time, adapter in zip(times.tolist(), adapters, strict=True)])
        write_text(trace, f"timestamp_s,adapter_id,input_tokens,output_tokens\n{rows}")
        return Scenario.model_validate(
            {
                "schema_version": 1,
                "name": "measured-run",
                "description": self.name,
                "workload": {"duration": f"{self.duration_s} s", "trace": {"file": str(trace)}},
                "adapters": {
                    "base_model": self.model,
                    "count": self.adapters,
                    "dtype": "fp16",
                    "rank": self.max_lora_rank,
                    "targets": list(TARGETS),
                },
                "fleet": {
                    "profile": profile,
                    "engine": self.engine,
                    "front_end": self.front_end,
                    **dict(self.settings),
                },
                "run": {"replications": 1, "warmup": "0%"},
            }
        )

    def counted_otherwise(self, recording: Recording, duration_s: float) -> dict[str, float]:
        """Return the metrics that the snapshot of a run defines in its own way.

        Quantiles of TTFT are over all requests that were sent, where those that have not completed wait to the end;
        loads are counted over requests that have completed or run.
        """
        columns = recording.requests
        done = (columns["status"] == COMPLETED) & (columns["finished_s"].astype(np.float64) <= duration_s)
        first_s, sent_s = columns["first_token_s"].astype(np.float64), columns["arrival_s"].astype(np.float64)
        ttft_ms = np.where(done, first_s - sent_s, duration_s) * 1000
        p50, p99 = np.quantile(ttft_ms, (0.5, 0.99)) if len(ttft_ms) else (np.nan, np.nan)
        joined = int(np.count_nonzero(columns["admitted_s"].astype(np.float64) >= 0))
        return {
            "ttft_p50_ms": float(p50),
            "ttft_p99_ms": float(p99),
            "loads_per_request": len(recording.loads["tier"]) / max(joined, 1),
        }


def read_slora_runs(path: Path) -> list[MeasuredRun]:
    """Read a table of measured runs of S-LoRA.

    :raises InputError: naming the missing columns, or the line and value that can't be used.
    """
    table = read_table(path)
    table.require(COLUMNS)
    return [_run(cells) for cells in table.rows]


def _run(cells: RunCells) -> SLoraRun:
    rank, adapters, rate = cells.count("rank"), cells.count("adapters"), cells.number("adapter_rate_rps")
    if not 0 < rate * adapters <= MOST_RPS:
        allowed = "above 0, up to 1,000,000 requests/s for all adapters"
        raise cells.error("this rate can't be simulated", "adapter_rate_rps", cells.row["adapter_rate_rps"], allowed)
    if cells.count("sent") > DATASET:
        raise cells.error("more requests than prompts", "sent", cells.row["sent"], f"up to {DATASET:,}")
    return SLoraRun(
        line=cells.line,
        model=cells.parsed("model", lambda text: MODELS[MODELS.index(text)], ", ".join(MODELS)),
        workload_group=f"rank_{rank}",
        case=f"{adapters}_adapters_{rate:g}_rps",
        gpu_slots=adapters,
        host_slots=adapters,
        adapters=adapters,
        max_lora_rank=rank,
        ranks=(rank,),
        rates=((rate, adapters),),
        duration_s=cells.seconds("duration_s"),
        waiting_mean=max(0.0, cells.number("unfinished") - cells.number("batch_max", empty=0.0)),
        kv_usage_mean=cells.number("kv_usage_mean", empty=math.nan),
        measured={name: cells.number(name, empty=math.nan) for name in (*MEASURED, *MORE_MEASURED)},
        file=cells.file,
        sent=cells.count("sent"),
        client_extra_s=cells.number("client_extra_ms") / 1000,
        prompt_tokens=cells.count("prompt_tokens"),
        output_tokens=cells.count("output_tokens"),
        settings=tuple((key, cells.count(column)) for column, key in SETTINGS.items()),
    )


def sent_requests(run: SLoraRun) -> tuple[NDArray[np.float64], list[int]]:
    """Return the times and adapters of the requests that the seeded client sent.

    Its adapters take turns until they are shuffled, and all its random numbers have seed 0.
    """
    rng = random.Random(0)
    rng.shuffle(list(range(DATASET)))
    adapters = [index % run.adapters for index in range(run.sent)]
    rng.shuffle(adapters)
    gaps = np.random.RandomState(0).exponential(1 / run.offered_rps, run.sent) + run.client_extra_s
    return np.concatenate(([0.0], np.cumsum(gaps)[:-1])), adapters


def main() -> None:
    """Predict the runs of a table, as ``loraplan fidelity`` predicts those of vLLM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, metavar="RUNS.csv")
    parser.add_argument("--out", type=Path, help="folder for results; default: runs/fidelity-NAME")
    parser.add_argument("--profile-dir", type=Path, help="folder with a profile MODEL.json; default: the bundled one")
    parser.add_argument("--jobs", type=int, default=-1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    runs = read_slora_runs(given.file)
    command = shlex.join(["python", "validation/published/slora_runs.py", *sys.argv[1:]])
    folder, report = predict_runs(
        given.file, runs, None, given.profile_dir, given.out, given.jobs, quiet=False, command=command
    )
    finish(report, folder, as_json=given.json, quiet=False)


if __name__ == "__main__":
    main()
