"""Logs and folders of trainings written by hand, for what no training of a few seconds shows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Curve = Callable[[float], float]


def history(
    loss: Curve,
    eval_loss: Curve | None = None,
    *,
    steps: int = 400,
    losses: int = 40,
    evals: int = 10,
    grad_norm: Curve | None = None,
    accuracy: Curve | None = None,
    epochs: float = 4,
    lr: float = 2e-4,
) -> list[dict[str, Any]]:
    """Return a log_history of curves over the share of the run that is done, 0 to 1."""
    rows: list[dict[str, Any]] = []
    for n in range(1, losses + 1):
        at, step = n / losses, n * steps // losses
        norm = {} if grad_norm is None else {"grad_norm": grad_norm(at)}
        rows.append({"epoch": epochs * at, "loss": loss(at), "learning_rate": lr, "step": step} | norm)
    for n in range(1, evals + 1) if eval_loss else ():
        at, step = n / evals, n * steps // evals
        assert eval_loss is not None
        metric = {} if accuracy is None else {"eval_accuracy": accuracy(at)}
        rows.append({"epoch": epochs * at, "eval_loss": eval_loss(at), "step": step} | metric)
    return sorted(rows, key=lambda row: row["step"])


def write_log(folder: Path, rows: Sequence[Mapping[str, Any]] | object, **rest: Any) -> Path:
    """Write a ``trainer_state.json`` as the Trainer does, NaN included."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "trainer_state.json"
    state = {"global_step": 400, "max_steps": 400, "num_train_epochs": 4, "train_batch_size": 16, "log_history": rows}
    file.write_text(json.dumps(state | rest))
    return file


def write_config(folder: Path, rank: int = 16, targets: object = "all-linear", **rest: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    base = {"peft_type": "LORA", "r": rank, "target_modules": targets, "base_model_name_or_path": "meta/Llama-3.1-8B"}
    (folder / "adapter_config.json").write_text(json.dumps(base | rest))


def closing(steps: int = 400, batch: int = 16) -> dict[str, Any]:
    """Return the entry that a finished run ends with."""
    return {
        "step": steps,
        "train_runtime": 100.0,
        "train_samples_per_second": batch * steps / 100,
        "train_steps_per_second": steps / 100,
        "train_loss": 1.0,
        "total_flos": 1e15,
    }


def falling(start: float, end: float, speed: float = 8.0) -> Curve:
    """Return a curve that falls from start to end, most of it early."""
    return lambda at: end + (start - end) * math.exp(-speed * at)


STUCK = (2.31, 1.62, 1.21, 1.06, 1.02, 1.01, 1.00, 1.01, 1.00, 0.99, 1.00, 1.00)
LEARNED = (2.31, 1.62, 1.21, 0.98, 0.83, 0.71, 0.62, 0.55, 0.49, 0.44, 0.40, 0.37)


def write_adapter(
    folder: Path, losses: tuple[float, ...] = STUCK, *, rank: int = 4, targets: tuple[str, ...] = ("q", "k", "v", "o")
) -> Path:
    """Write configuration and log of an adapter; a stuck one ends at 70 % accuracy, others at 90 %."""
    folder.mkdir(parents=True, exist_ok=True)
    best = 0.70 if losses is STUCK else 0.90
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "meta-llama/Llama-3.1-8B",
        "r": rank,
        "target_modules": [f"{name}_proj" for name in targets],
    }
    rows: list[dict[str, float]] = []
    for i, loss in enumerate(losses, 1):
        rows.append({"step": 50 * i, "epoch": i / 4, "loss": loss, "grad_norm": 1.1, "learning_rate": 2e-4})
        if i % 2 == 0:
            accuracy = best - 0.12 * 2.0 ** (1 - i)
            rows.append({"step": 50 * i, "epoch": i / 4, "eval_loss": loss + 0.05, "eval_accuracy": accuracy})
    state = {
        "global_step": 50 * len(losses),
        "max_steps": 50 * len(losses),
        "epoch": len(losses) / 4,
        "train_batch_size": 8,
        "log_history": rows,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder
