"""Predict a record in real time end to end, from its requests and the costs of another record alone."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sim.errors import InputError
from sim.results.records import COMPLETED
from sim.spec.scenario import Scenario
from sim.studies.fidelity.record_costs import RecordCosts, RecordTimes
from sim.studies.fidelity.step_record import StepRecord
from sim.studies.fidelity.step_terms import step_cost
from sim.world.build import build_world
from sim.world.replication import simulate

ORDERS = 20
"""Simulations, each with another iteration order of adapter sets, as it differs from process to process."""

_MODEL = "llama-3.1-8b"  # a profile names one; with sizes, KV tokens and times given, nothing depends on it


@dataclass(frozen=True, slots=True)
class PredictedMetric:
    """One metric: in the record, and in the mean of all simulations."""

    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """The relative error."""
        return self.predicted / self.measured - 1


def predict(
    record: StepRecord, times: RecordTimes, costs: RecordCosts, orders: int = ORDERS
) -> dict[str, PredictedMetric]:
    """Simulate a record's requests with given costs.

    :param times: of this record: what to compare with.
    :return: by name: ``ttft_p50_s``, ``ttft_p99_s``, ``e2e_p50_s``, ``e2e_p90_s``, ``e2e_p99_s``, ``loads``.
    :raises InputError: where the record has prefix caching or requests to the base model.
    """
    if record.config.prefix_caching or any(request.adapter is None for request in record.requests):
        raise InputError(
            "predicting a record with prefix caching or requests to the base model is not supported",
            key="--record",
            hint="leave out --fit-on to replay it step by step",
        )
    with tempfile.TemporaryDirectory(prefix="loraplan-") as folder:
        world = build_world(scenario_of(record, costs, Path(folder)))
    runs = []
    for order in range(orders):
        recording = simulate(world, order, 1)
        requests = recording.requests
        done = requests["status"] == COMPLETED
        arrival = requests["arrival_s"][done].astype(np.float64)
        ttft, e2e = (requests[name][done].astype(np.float64) - arrival for name in ("first_token_s", "finished_s"))
        runs.append(_metrics(ttft, e2e, len(recording.loads["adapter"])))
    measured = _metrics(times.ttft_s, times.e2e_s, len(times.loads_s))
    return {
        name: PredictedMetric(value, float(np.mean([run[name] for run in runs]))) for name, value in measured.items()
    }


def _metrics(ttft_s: Any, e2e_s: Any, loads: int) -> dict[str, float]:
    quantiles = (("ttft", ttft_s, (50, 99)), ("e2e", e2e_s, (50, 90, 99)))
    latencies = {f"{n}_p{q}_s": float(np.quantile(values, q / 100)) for n, values, wanted in quantiles for q in wanted}
    return latencies | {"loads": float(loads)}


def scenario_of(record: StepRecord, costs: RecordCosts, folder: Path) -> Scenario:
    """Return a record's requests and engine as a scenario; its profile and its trace are written to ``folder``."""
    config = record.config
    (folder / "profile.json").write_text(json.dumps(_profile(record, costs)), encoding="utf-8")
    rows = sorted(record.requests, key=lambda request: (request.arrival_s, request.id))
    lines = [f"{r.arrival_s!r},a{r.adapter},{r.prompt_tokens},{r.output_tokens}" for r in rows]
    header = "timestamp_s,adapter_id,input_tokens,output_tokens"
    (folder / "trace.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return Scenario.model_validate(
        {
            "schema_version": 1,
            "name": "record",
            "workload": {"trace": {"file": str(folder / "trace.csv")}},
            "adapters": {"count": config.adapters, "size": "1 MiB", "rank": 8},
            "fleet": {
                "engine": record.preset,
                "async_scheduling": record.asynchronous,
                "front_end_time": 0,  # the engine's own times were recorded
                "profile": str(folder / "profile.json"),
                "max_num_seqs": config.max_num_seqs,
                "max_num_batched_tokens": config.max_num_batched_tokens,
                "block_size": config.block_size,
                "kv_tokens": config.kv_blocks * config.block_size,
                "prefix_caching": config.prefix_caching,
            },
            "cache": {"gpu": {"slots": config.slots}, "host": {"slots": config.host_slots}},
            "run": {"warmup": 0},
        }
    )


def _profile(record: StepRecord, costs: RecordCosts) -> dict[str, Any]:
    config = record.config
    tiers = {}
    for name, seconds in (("storage", costs.storage_s), ("host", costs.host_s)):
        median = float(np.median(seconds))
        residual = np.maximum(seconds / median, 1e-9).tolist()
        tiers[name] = {"open_s": median, "bandwidth_bytes_per_s": 1e30, "residual": residual}
    return {
        "schema_version": 1,
        "name": "record",
        "status": "measured",
        "description": "Fitted to a record.",
        "device": "record",
        "model": _MODEL,
        "dtype": "bf16",
        "step": step_cost(costs.step_s).model_dump(mode="json"),
        "load": tiers,
        "memory": {
            "total_bytes": 2**30,
            "utilization": 1.0,
            "weights_bytes": 1,
            "overhead_bytes": 0,
            "kv_bytes_per_token": 1,
        },
        "envelope": {
            "sequences": config.max_num_seqs,
            "distinct_adapters": config.slots,
            "rank": 8,
            "slots": config.slots,
        },
        "sources": {"step": "fitted to a record"},
    }
