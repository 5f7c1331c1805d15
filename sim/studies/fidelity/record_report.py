"""The report on a record of an engine's steps: replayed step by step, and predicted from the costs of another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reports.document import Report
from reports.measured_words import measured_words
from reports.table import Table
from sim.spec.units import human_seconds
from sim.studies.fidelity.record_costs import RecordCosts
from sim.studies.fidelity.record_prediction import ORDERS, PredictedMetric
from sim.studies.fidelity.sglang_record import SglangRecord
from sim.studies.fidelity.step_record import StepRecord
from sim.studies.fidelity.step_replay import Replay

_COST_WORDS = {
    "step": "ms a step",
    "sequence": "a sequence",
    "token": "a token",
    "adapter": "a distinct adapter",
    "storage_load": "a load from storage",
    "kv_token": "a KV token",
}


def replay_report(file: Path, record: StepRecord | SglangRecord, result: Replay) -> Report:
    """Return how many of a record's steps the simulator meets."""
    preempted = sum(len(step.preempted) for step in record.steps)
    rows = [
        ["engine", record.engine],
        ["preset", record.preset],
        ["requests", f"{len(record.requests):,}"],
        ["steps", f"{result.steps:,}"],
        ["equal steps", f"{result.equal_steps:,}"],
        ["loads", f"{result.loads:,}"],
        ["predicted loads", f"{result.predicted_loads:,}"],
        ["equal loads", f"{result.equal_loads:,}"],
        ["preemptions", f"{preempted:,}"],
    ]
    met = "tokens, preemptions, loads and evictions"
    if record.config.prefix_caching:
        rows.append(["cached tokens", f"{result.cached_tokens:,}"])
        rows.append(["predicted cached tokens", f"{result.predicted_cached_tokens:,}"])
        met = "tokens, cached tokens, blocks overwritten, preemptions, loads and evictions"
    if record.mode == "online":
        rows.append(["ends within one step", f"{_late_steps(result)[0]:,} of {len(record.requests):,} requests"])
    headline = f"{file}: every step is met: {met}"
    if result.first_difference is not None:
        different = result.steps - result.equal_steps
        headline = f"{file}: {different:,} of {result.steps:,} steps differ; the first: {result.first_difference}"
    data = {
        "steps": result.steps,
        "equal_steps": result.equal_steps,
        "loads": result.loads,
        "predicted_loads": result.predicted_loads,
        "equal_loads": result.equal_loads,
        "cached_tokens": result.cached_tokens,
        "predicted_cached_tokens": result.predicted_cached_tokens,
        "first_difference": result.first_difference,
        "late_steps_max": _late_steps(result)[1],
    }
    return Report("fidelity", str(file), data, [headline, "", Table("", ["", ""], rows)])


def _late_steps(result: Replay) -> tuple[int, int]:
    """Return how many requests end within one step of the record, and the most steps between them."""
    late = [abs(steps) for steps in result.late_steps.values()]
    return sum(steps <= 1 for steps in late), max(late, default=0)


def with_prediction(
    replayed: Report, fit_on: Path, costs: RecordCosts, metrics: dict[str, PredictedMetric], *, itself: bool
) -> Report:
    """Return the report on a replay with what the costs of another record predict.

    :param itself: whether it is the same record.
    """
    words = ", ".join(f"{seconds * 1e3:.3g} {_COST_WORDS[name]}" for name, seconds in costs.step_s.items())
    host = float(costs.host_s[len(costs.host_s) // 2])
    rows = [
        [measured_words(name), _show(name, value.measured), _show(name, value.predicted), f"{value.error:+.1%}"]
        for name, value in metrics.items()
    ]
    found = {
        name: {"measured": value.measured, "predicted": value.predicted, "error": value.error}
        for name, value in metrics.items()
    }
    own = "costs fitted to the record that they predict say little; give --fit-on another one"
    return replace(
        replayed,
        data={**replayed.data, "prediction": {"step_s": costs.step_s, "metrics": found}},
        terminal=[
            *replayed.terminal,
            "",
            f"Predicted with costs from {fit_on}: {words}; {host * 1e3:.3g} a load from host memory (median)",
            "",
            Table("", ["metric", "measured", "predicted", "error"], rows),
        ],
        notes=[
            *([own] if itself else []),
            f"predictions are means of {ORDERS} simulations, each with another order of adapters",
        ],
    )


def _show(name: str, value: float) -> str:
    return human_seconds(value) if name.endswith("_s") else f"{value:,.1f}"
