"""Folders as a training leaves them, for tests: one that got stuck at 70 % accuracy, and one that learned."""

from __future__ import annotations

import json
from pathlib import Path

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
