"""What the steps and loads of an engine cost, fitted to a record in real time; other records predicted from them.

A step's time is the time to the next step, or where the engine then had nothing to do, to the end of the requests
that ended with it; the seconds of its loads are taken out.
"""

from __future__ import annotations

import json
import tempfile
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats
from sim.errors import InputError
from sim.results.records import COMPLETED
from sim.spec.scenario import Scenario
from sim.studies.fidelity.least_squares import Problem, left_out_seconds, solve, sum_of_terms
from sim.studies.fidelity.step_record import StepRecord
from sim.studies.fidelity.step_terms import columns, step_cost
from sim.world.build import build_world
from sim.world.replication import simulate

FEATURES = ("step", "sequence", "token", "adapter", "storage_load", "kv_token")
"""What a step may cost seconds for: itself, each sequence, scheduled token, distinct adapter, load from storage
(reading the file: the record's loads are copies from host memory) and KV token that decoding sequences attend to."""

CANDIDATES: tuple[tuple[str, ...], ...] = (
    ("step", "sequence", "token", "adapter"),
    ("step", "sequence", "token", "adapter", "storage_load"),
    ("step", "sequence", "token", "adapter", "storage_load", "kv_token"),
)
"""Sets of features, the smaller ones first. A larger one is taken only if it predicts held-out steps better."""

_FOLDS = 10
_SHARE = 0.99  # a larger set must bring the error on held-out steps down to this share
_QUANTILES = np.linspace(0, 1, 41)


@dataclass(frozen=True, slots=True)
class RecordTimes:
    """Times of a record in seconds.

    :ivar end_s: (steps,) when each step ended; ``step_s``: (steps,) how long it took without its loads.
    :ivar features: by name of ``FEATURES``, (steps,).
    :ivar ttft_s: (requests,) from arrival to the end of the step that completed the prefill; ``e2e_s``: (requests,).
    :ivar loads_s: (loads,) from host memory, in their order.
    """

    end_s: Floats
    step_s: Floats
    features: dict[str, Floats]
    ttft_s: Floats
    e2e_s: Floats
    loads_s: Floats


@dataclass(frozen=True, slots=True)
class RecordCosts:
    """Fitted costs.

    :ivar step_s: seconds by feature; only those that were taken.
    :ivar host_s, storage_s: (41,) quantiles of the seconds of a load, equally spaced from 0 to 1.
    """

    step_s: dict[str, float]
    host_s: Floats
    storage_s: Floats


def record_times(record: StepRecord, file: str) -> RecordTimes:
    """Take the times out of a record in real time.

    :param file: what to call it in errors.
    :raises InputError: where the record has no real times.
    """
    if record.mode != "online":
        raise InputError(
            "only records in real time have arrivals to predict",
            file=file,
            key="mode",
            got=record.mode,
            allowed="online",
            hint="record a stream of requests with a rate",
        )
    finished = [request.finished_s for request in record.requests]
    if None in finished:
        raise InputError("a request never ended", file=file, key=f"requests.{finished.index(None)}.finished_s")
    finished_s = np.array(finished, dtype=np.float64)
    arrival_s = np.array([request.arrival_s for request in record.requests])
    last = {request: number for number, step in enumerate(record.steps) for request in step.scheduled}
    if len(last) < len(record.requests):
        missing = min(set(range(len(record.requests))) - last.keys())
        raise InputError("no step schedules a request", file=file, key=f"requests.{missing}")
    end_s = _ends(record, arrival_s, finished_s, last)
    loads_s = np.array([seconds for step in record.steps for _, seconds in step.loads])
    if not len(loads_s):
        raise InputError("the record has no loads", file=file, key="steps")
    in_loads = np.array([sum(seconds for _, seconds in step.loads) for step in record.steps])
    features, first = _features(record)
    return RecordTimes(
        end_s=end_s,
        step_s=end_s - np.array([step.at_s for step in record.steps]) - in_loads,
        features=features,
        ttft_s=end_s[first] - arrival_s,
        e2e_s=finished_s - arrival_s,
        loads_s=loads_s,
    )


def _ends(record: StepRecord, arrival_s: Floats, finished_s: Floats, last: dict[int, int]) -> Floats:
    """Return when each step ended: at the next one's beginning, if the engine went straight on."""
    steps = record.steps
    last_step = np.array([last[request] for request in range(len(arrival_s))])
    ends = np.zeros(len(steps))
    for number, step in enumerate(steps):
        ending = [finished_s[request] for request in step.scheduled if last[request] == number]
        busy_until = max(ending, default=step.at_s)
        left = (last_step > number) & (arrival_s <= busy_until)
        ends[number] = steps[number + 1].at_s if left.any() else busy_until
    return ends


def _features(record: StepRecord) -> tuple[dict[str, Floats], NDArray[np.int64]]:
    """Return the features of every step, and for every request the step that completes its first prefill."""
    prompts = [request.prompt_tokens for request in record.requests]
    context = [0] * len(prompts)
    target = list(prompts)  # tokens to prefill; more after a preemption
    produced = [0] * len(prompts)
    first = np.zeros(len(prompts), dtype=np.int64)
    copies: OrderedDict[int, None] = OrderedDict()
    rows = []
    for number, step in enumerate(record.steps):
        for request in step.preempted:
            context[request], target[request] = 0, prompts[request] + produced[request]
        for request, tokens in step.cached.items():
            context[request] = tokens
        kv_tokens = 0
        for request, tokens in step.scheduled.items():
            decodes = context[request] >= target[request]
            context[request] += tokens
            kv_tokens += context[request] if decodes else 0
            if context[request] >= target[request]:
                if produced[request] == 0:
                    first[request] = number
                produced[request] += 1
        tokens_in_step = sum(step.scheduled.values())
        read = _touch(copies, record.config.host_slots, step.adapters)
        rows.append((len(step.scheduled), len(step.adapters), kv_tokens, tokens_in_step, read))
    sequences, distinct, kv, token, storage_load = np.array(rows, dtype=np.float64).T
    facts = {"sequences": sequences, "distinct": distinct, "decode_kv_tokens": kv}
    made_of = columns(FEATURES, facts.__getitem__, {"token": token, "storage_load": storage_load})
    return {name: np.asarray(column) for name, column in made_of.items()}, first


def _touch(copies: OrderedDict[int, None], slots: int, adapters: Iterable[int]) -> int:
    """Touch copies in host memory in turn, which puts them last; return how many had to be read from storage."""
    read = 0
    for adapter in adapters:
        if adapter in copies:
            copies.move_to_end(adapter)
            continue
        if len(copies) == slots:
            copies.popitem(last=False)
        copies[adapter] = None
        read += 1
    return read


def fit_costs(times: RecordTimes) -> RecordCosts:
    """Fit costs by non-negative least squares, with the features that predict held-out steps best."""
    chosen = CANDIDATES[0]
    error = _held_out_error(times, chosen)
    for candidate in CANDIDATES[1:]:
        candidate_error = _held_out_error(times, candidate)
        if candidate_error < _SHARE * error:
            chosen, error = candidate, candidate_error
    step_s = dict(zip(chosen, _fit(_problem(times, chosen)).tolist(), strict=True))
    host_s = np.quantile(times.loads_s, _QUANTILES)
    return RecordCosts(step_s, host_s, _storage_seconds(times, step_s, host_s))


_fit = partial(solve, loss="absolute")


def _problem(times: RecordTimes, names: tuple[str, ...]) -> Problem:
    """Return a record's steps as a problem; a tenth of the record, in its order, counts as one configuration."""
    count = len(times.step_s)
    tenth = [str(number * _FOLDS // count) for number in range(count)]
    return Problem.of({name: times.features[name] for name in names}, times.step_s, configuration=tenth)


def _held_out_error(times: RecordTimes, names: tuple[str, ...]) -> float:
    """Return the root mean square error in seconds of steps that the fit didn't see: a tenth at a time."""
    predicted_s = left_out_seconds(_problem(times, names), sum_of_terms(_fit))
    return float(np.sqrt(np.mean((predicted_s - times.step_s) ** 2)))


def _storage_seconds(times: RecordTimes, step_s: dict[str, float], host_s: Floats) -> Floats:
    """Return quantiles of the seconds of a load from storage: a copy from host memory, and what its step took longer.

    From steps with one such load alone; at least a copy from host memory.
    """
    if not step_s.get("storage_load"):
        return host_s
    rest = sum(seconds * times.features[name] for name, seconds in step_s.items() if name != "storage_load")
    longer = (times.step_s - rest)[times.features["storage_load"] == 1]
    if len(longer) < len(_QUANTILES) // 2:
        return host_s + step_s["storage_load"]
    return np.asarray(np.maximum(np.quantile(longer, _QUANTILES), 0.0) + float(np.median(host_s)))


# A record end to end, from its requests and the costs of another record alone.

ORDERS = 20
"""Simulations, each with another iteration order of adapter sets, as it differs from process to process."""

_MODEL = "llama-3.1-8b"  # a profile names one; with sizes, KV tokens and times given, nothing depends on it


def predict(
    record: StepRecord, times: RecordTimes, costs: RecordCosts, orders: int = ORDERS
) -> dict[str, dict[str, float]]:
    """Simulate a record's requests with given costs.

    :param times: of this record: what to compare with.
    :return: by name (``ttft_p50_s``, ``ttft_p99_s``, ``e2e_p50_s``, ``e2e_p90_s``, ``e2e_p99_s``, ``loads``):
        ``measured``, ``predicted`` in the mean of all simulations, and the relative ``error``.
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
    predicted = {name: float(np.mean([run[name] for run in runs])) for name in measured}
    return {
        name: {"measured": value, "predicted": predicted[name], "error": predicted[name] / value - 1}
        for name, value in measured.items()
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
