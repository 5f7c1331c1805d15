"""Compare measured with predicted metrics, in one table with a row a request, and with the noise of repeated runs.

The predictions are simulations of the very requests that the server was sent.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibrate.serve.client import COMPLETE, PlannedRequest
from calibrate.serve.drive import LiveRun
from calibrate.serve.server_metrics import ObservedRun, over_run
from sim.arrays import Floats
from sim.results.recording.leaps import gap_bin_edges
from sim.results.records import COMPLETED, Recording
from sim.results.statistics import histogram_quantile
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import LoadedScenario
from sim.traffic.request import MISS
from sim.world.build import build_world
from sim.world.replication import simulate

if TYPE_CHECKING:
    import pyarrow

METRICS = {
    "throughput_rps": "throughput",
    "output_tokens_per_s": "output tokens",
    "in_flight_mean": "requests in the server",
    "ttft_p50_s": "p50 TTFT",
    "ttft_p90_s": "p90 TTFT",
    "ttft_p99_s": "p99 TTFT",
    "ttft_mean_s": "mean TTFT",
    "itl_p50_s": "p50 ITL",
    "itl_mean_s": "mean ITL",
    "itl_p99_s": "p99 ITL",
    "e2e_p50_s": "p50 E2E",
    "e2e_p90_s": "p90 E2E",
    "e2e_p99_s": "p99 E2E",
    "e2e_mean_s": "mean E2E",
    "loads_per_request": "loads per request",
    "miss_ratio": "miss ratio",
    "preemptions": "preemptions",
}
"""What is compared, and what a page calls it, in order."""

WANTED = {
    "loads_per_request": 0.10,
    "throughput_rps": 0.05,
    "ttft_p50_s": 0.15,
    "e2e_p50_s": 0.15,
    "ttft_p99_s": 0.40,
    "e2e_p99_s": 0.40,
}
"""Relative errors that a good prediction stays below on an otherwise idle machine."""


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """A measured run as arrays over its planned requests; NaN where a request was not served completely.

    :ivar sent_s: seconds after the run's start.
    """

    sent_s: Floats
    ttft_s: Floats
    e2e_s: Floats
    late_s: Floats


def times_of(run: LiveRun, count: int) -> RequestTimes:
    """Return the times of a run of ``count`` requests."""
    columns = {name: np.full(count, np.nan) for name in ("sent", "ttft", "e2e", "late")}
    for sent in run.sent:
        place, at = sent.request.index, sent.sent - run.start
        if not sent.sent:
            continue
        columns["sent"][place], columns["late"][place] = at, at - sent.request.at_s
        if sent.status == COMPLETE:
            columns["ttft"][place], columns["e2e"][place] = sent.first - sent.sent, sent.last - sent.sent
    return RequestTimes(columns["sent"], columns["ttft"], columns["e2e"], columns["late"])


def measured_metrics(run: LiveRun, times: RequestTimes, observed: ObservedRun | str) -> dict[str, float]:
    """Return the metrics of one run, those that could be measured."""
    done = np.isfinite(times.e2e_s)
    output = np.array([sent.request.output_tokens for sent in run.sent if sent.status == COMPLETE], dtype=np.float64)
    gaps = np.array([gap for sent in run.sent if sent.status == COMPLETE for gap in sent.gaps()])
    if not done.any():
        return {}
    span = float(np.max((times.sent_s + times.e2e_s)[done]) - np.nanmin(times.sent_s))
    result = latency_metrics(times.ttft_s[done], times.e2e_s[done], output, span)
    if len(gaps):
        result |= {
            "itl_mean_s": float(gaps.mean()),
            "itl_p50_s": float(np.quantile(gaps, 0.5)),
            "itl_p99_s": float(np.quantile(gaps, 0.99)),
        }
    counted = over_run(run.pages)
    if "preemptions" in counted:
        result["preemptions"] = counted["preemptions"]
    if not isinstance(observed, str):
        result["loads_per_request"] = observed.loads / len(times.sent_s)
        result["miss_ratio"] = observed.misses / len(times.sent_s)
    return result


def comparison(runs: Sequence[dict[str, float]], prediction: ServePrediction) -> dict[str, dict[str, float | None]]:
    """Return, by metric, the mean of what was measured, what was predicted, its error and the noise.

    The noise is the largest difference between runs, relative to their mean; None for a single run.
    """
    table: dict[str, dict[str, float | None]] = {}
    for name in METRICS:
        values = [run[name] for run in runs if name in run]
        predicted = prediction.metrics.get(name)
        measured = float(np.mean(values)) if values else None
        error = predicted / measured - 1 if measured and predicted is not None else None
        noise = (max(values) - min(values)) / measured if len(values) > 1 and measured else None
        table[name] = {
            "measured": measured,
            "predicted": predicted,
            "error": error,
            "noise": noise,
            "wanted": WANTED.get(name),
        }
    return table


def request_table(runs: Sequence[LiveRun], times: Sequence[RequestTimes], prediction: ServePrediction) -> pyarrow.Table:
    """Return one row a request and run: what was sent, what came, and what was predicted."""
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    for number, (run, columns) in enumerate(zip(runs, times, strict=True), 1):
        for sent in run.sent:
            r, place = sent.request, sent.request.index
            rows.append(
                {
                    "run": number,
                    "index": r.index,
                    "adapter": r.adapter,
                    "prompt_tokens": r.prompt_tokens,
                    "output_tokens": r.output_tokens,
                    "planned_s": r.at_s,
                    "sent_s": columns.sent_s[place],
                    "status": sent.status,
                    "problem": sent.problem,
                    "tokens": sent.tokens,
                    "ttft_s": columns.ttft_s[place],
                    "e2e_s": columns.e2e_s[place],
                    "itl_max_s": max(sent.gaps(), default=float("nan")),
                    "predicted_ttft_s": prediction.ttft_s[place],
                    "predicted_e2e_s": prediction.e2e_s[place],
                }
            )
    return pa.Table.from_pylist(rows)


# Simulate the requests that a server was sent: the same times, adapters and lengths, with costs from a profile.

ORDERS = 8
"""Simulations, each with another iteration order of adapter sets and other random load times."""

_APART_S = 10.0  # so far apart are the requests that touch every adapter before the traffic


@dataclass(frozen=True, slots=True)
class ServePrediction:
    """What the simulator makes of a run.

    :ivar ttft_s, e2e_s: (requests,) means of all simulations; NaN for a request that was refused.
    :ivar metrics: by name, means of all simulations.
    """

    ttft_s: Floats
    e2e_s: Floats
    metrics: dict[str, float]
    notes: tuple[str, ...]


def predict(
    loaded: LoadedScenario, planned: Sequence[PlannedRequest], count: int, sent_s: Floats, settings: Mapping[str, Any]
) -> ServePrediction:
    """Simulate requests at the times they were sent.

    As on the server, each adapter is requested once before the traffic, in order; those requests are not counted.

    :param sent_s: (requests,) seconds after the run's start.
    :param settings: of the fleet, in place of the scenario's: profile, engine, the reported size of the KV cache.
    """
    with tempfile.TemporaryDirectory(prefix="loraplan-") as folder:
        world = build_world(scenario_of(loaded, planned, count, sent_s, settings, Path(folder)))
    first = len(world.traffic.population)
    runs = [simulate(world, order, 1) for order in range(ORDERS)]
    pairs = [_times(run, first) for run in runs]
    metrics = [_metrics(run, first, *pair) for run, pair in zip(runs, pairs, strict=True)]
    return ServePrediction(
        ttft_s=np.mean([ttft for ttft, _ in pairs], axis=0),
        e2e_s=np.mean([e2e for _, e2e in pairs], axis=0),
        metrics={name: float(np.mean([run[name] for run in metrics])) for name in metrics[0]},
        notes=world.notes,
    )


def scenario_of(
    loaded: LoadedScenario,
    planned: Sequence[PlannedRequest],
    count: int,
    sent_s: Floats,
    settings: Mapping[str, Any],
    folder: Path,
) -> Scenario:
    """Return the scenario of a run; its trace is written to ``folder``."""
    digits = len(str(count))
    begin = _APART_S * (count + 1)
    lines = ["timestamp_s,adapter_id,input_tokens,output_tokens"]
    lines += [f"{_APART_S * index!r},a{index:0{digits}d},8,1" for index in range(count)]
    rows = sorted(zip(sent_s.tolist(), planned, strict=True), key=lambda row: (row[0], row[1].index))
    lines += [f"{begin + at!r},a{r.adapter:0{digits}d},{r.prompt_tokens},{r.output_tokens}" for at, r in rows]
    (folder / "trace.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = copy.deepcopy(loaded.data)
    for key in ("sweep", "slo"):
        data.pop(key, None)
    data["workload"] = {"trace": {"file": str(folder / "trace.csv")}}
    data["adapters"] = {**data["adapters"], "count": count}
    data["fleet"] = {**data.get("fleet", {}), **settings}
    data["run"] = {**data.get("run", {}), "replications": 1, "warmup": (count + 0.5) / (count + len(planned))}
    data["run"].pop("half_width", None)
    return Scenario.model_validate(data)


def _times(run: Recording, first: int) -> tuple[Floats, Floats]:
    """Return TTFT and E2E of the traffic's requests, (requests,); NaN where one never ended."""
    r = run.requests
    good = r["status"][first:] == COMPLETED
    arrival = r["arrival_s"][first:].astype(np.float64)
    first_token, finished = (r[name][first:].astype(np.float64) for name in ("first_token_s", "finished_s"))
    ttft, e2e = (np.where(good, stamps - arrival, np.nan) for stamps in (first_token, finished))
    return ttft, e2e


def _metrics(run: Recording, first: int, ttft: Floats, e2e: Floats) -> dict[str, float]:
    r = {name: column[first:] for name, column in run.requests.items()}
    done = np.isfinite(e2e)
    arrival, output = r["arrival_s"].astype(np.float64), r["output_tokens"].astype(np.float64)
    begin = float(arrival[0])
    gaps = run.gap_counts.sum(axis=0)
    edges = gap_bin_edges()
    span = float(np.max((arrival + e2e)[done]) - begin) if done.any() else float("nan")
    return {
        **latency_metrics(ttft[done], e2e[done], output[done], span),
        "itl_mean_s": float(run.gap_sum_s.sum() / gaps.sum()) if gaps.sum() else float("nan"),
        "itl_p50_s": histogram_quantile(gaps, edges, 0.5),
        "itl_p99_s": histogram_quantile(gaps, edges, 0.99),
        "loads_per_request": float(np.sum(run.loads["started_s"] >= begin)) / len(ttft),
        "miss_ratio": float(np.mean(r["outcome"] == MISS)),
        "preemptions": float(r["preemptions"].sum()),
    }


def latency_metrics(ttft: Floats, e2e: Floats, output: Floats, span_s: float) -> dict[str, float]:
    """Return what is compared of requests that ended, by name; the same for what was measured and predicted.

    :param span_s: from the first request to the last token.
    """
    result = {
        "throughput_rps": len(ttft) / span_s,
        "output_tokens_per_s": float(output.sum()) / span_s,
        "in_flight_mean": float(e2e.sum()) / span_s,
    }
    for name, values in (("ttft", ttft), ("e2e", e2e)):
        result[f"{name}_mean_s"] = float(np.mean(values)) if len(values) else float("nan")
        for q in (50, 90, 99):
            result[f"{name}_p{q}_s"] = float(np.quantile(values, q / 100)) if len(values) else float("nan")
    return result
