"""Real training on a CPU: a small Llama made on the spot, LoRA by peft, logs by transformers' Trainer.

A question is two keys and a separator, the answer one token: ``a b ? y``. The base knows a table from the first key to
the answer. An adapter learns another table, or a few rows of it. What it is given to learn, how large it is and how it
is trained make it healthy or not; nothing is written into a log by hand.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    EarlyStoppingCallback,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.utils import logging

KEYS, ANSWERS = 48, 16
UNKNOWN, ASK, REPEAT = range(KEYS + ANSWERS, KEYS + ANSWERS + 3)
VOCABULARY = REPEAT + 1
CHECKED = 384
"""Examples of the validation set."""

Task = Literal["table", "rows", "known", "unknown", "parity", "repeat"]
TARGETS = {
    "q,v": ["q_proj", "v_proj"],
    "q,k,v,o": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "all-linear": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


@dataclass(frozen=True)
class Recipe:
    """One training.

    :ivar mode: the failure that it is made to have; None for a healthy one.
    :ivar task: ``table``: another answer for every key; ``rows``: for a quarter of them; ``known``: what the base
        knows; ``unknown``: the table, but the base's vocabulary lacks the keys; ``parity``: of many coins.
    :ivar noise: share of answers that are drawn at random.
    :ivar base_bits: 4 rounds the base's weights to 16 levels a row: a stand-in for a quantised base.
    :ivar arguments: more of the Trainer's; ``patience``: evaluations without gain until it stops and keeps the best.
    """

    name: str
    mode: str | None = None
    task: Task = "table"
    rank: int = 16
    targets: str = "all-linear"
    steps: int = 300
    examples: int = 4000
    batch: int = 16
    lr: float = 4e-3
    noise: float = 0.02
    base_bits: int = 16
    evals: int = 12
    logs: int = 60
    dropout: float = 0.0
    patience: int = 0
    resumed: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)


def questions(task: Task, count: int, noise: float, rng: np.random.Generator, tables: np.ndarray) -> torch.Tensor:
    """Return (count, length) tokens, the last of them the answer."""
    if task == "parity":
        coins = rng.integers(0, 2, (count, 14))
        answers = KEYS + coins.sum(axis=1) % 2
        rows = np.column_stack([coins, np.full(count, ASK), answers])
    else:
        keys = rng.integers(0, KEYS, (count, 2))
        answers = tables[{"known": 0, "rows": 2}.get(task, 1)][keys[:, 0]] + KEYS
        if task == "repeat":
            return torch.as_tensor(np.column_stack([keys, np.full(count, REPEAT), keys[:, 0]]))
        if task == "unknown":
            keys[:] = UNKNOWN
        rows = np.column_stack([keys, np.full(count, ASK), answers])
    drawn = rng.random(count) < noise
    wide = 2 if task == "parity" else ANSWERS
    rows[drawn, -1] = KEYS + rng.integers(0, wide, drawn.sum())
    return torch.as_tensor(rows)


@dataclass
class Base:
    """A pretrained model and the tables of its world."""

    model: LlamaForCausalLM
    tables: np.ndarray

    @classmethod
    def made(cls, seed: int, steps: int = 500) -> Base:
        """Train a base that knows table 0, and answers at random where it knows no key."""
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        known, other = rng.integers(0, ANSWERS, (2, KEYS))
        some = np.where(rng.random(KEYS) < 0.25, other, known)
        tables = np.stack([known, other, some])
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=48,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=32,
                tie_word_embeddings=False,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
            )
        )
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = 1e-2 * (1 - step / steps)
            mixed = [("known", 48, 0.2), ("repeat", 48, 0.0), ("unknown", 16, 1.0)]
            rows = torch.cat([questions(task, count, noise, rng, tables) for task, count, noise in mixed])
            coins = questions("parity", 16, 1.0, rng, tables)
            loss = _loss(model, rows) + 0.25 * _loss(model, coins)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return cls(model.eval(), tables)

    def fresh(self, bits: int) -> LlamaForCausalLM:
        """Return a copy of the model, its linear weights rounded to ``2 ** bits`` levels a row below 16 bits."""
        model = copy.deepcopy(self.model)
        if bits < 16:
            half = 2 ** (bits - 1) - 1
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if name.endswith("proj.weight"):
                        scale = weight.abs().amax(dim=1, keepdim=True) / half
                        weight.copy_((weight / scale).round() * scale)
        return model


def _loss(model: Any, rows: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=rows).logits[:, -2]
    return torch.nn.functional.cross_entropy(logits, rows[:, -1])


class _Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows
        self.labels = torch.full_like(rows, -100)
        self.labels[:, -1] = rows[:, -1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.labels[index]}


def train(base: Base, recipe: Recipe, seed: int, folder: Path) -> Path:
    """Train an adapter and return its folder, with weights, configuration and the Trainer's log."""
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 1])
    learned = _Rows(questions(recipe.task, recipe.examples, recipe.noise, rng, base.tables))
    checked = _Rows(questions(recipe.task, CHECKED, recipe.noise, rng, base.tables))
    if recipe.resumed:
        half = _trainer(base, recipe, seed, folder, learned, checked, save=True)
        half.add_callback(_StopAt(recipe.steps // 2))
        half.train()
    trainer = _trainer(base, recipe, seed, folder, learned, checked, save=recipe.resumed or recipe.patience > 0)
    trainer.train(resume_from_checkpoint=recipe.resumed or None)
    trainer.save_state()
    trainer.model.save_pretrained(str(folder))
    return folder


def _trainer(
    base: Base, recipe: Recipe, seed: int, folder: Path, learned: _Rows, checked: _Rows, save: bool
) -> Trainer:
    every = max(1, recipe.steps // recipe.evals) if recipe.evals else 0
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": recipe.steps,
        "per_device_train_batch_size": recipe.batch,
        "per_device_eval_batch_size": CHECKED,
        "learning_rate": recipe.lr,
        "lr_scheduler_type": "constant",
        "logging_steps": max(1, recipe.steps // recipe.logs),
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if every else "no",
        "eval_steps": every or None,
        "seed": seed,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "steps" if save else "no",
        "save_steps": every or 500,
        "dataloader_pin_memory": False,
    }
    if recipe.patience:
        given |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "save_total_limit": 2}
    torch.manual_seed(seed)
    lora = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        target_modules=TARGETS[recipe.targets],
        lora_dropout=recipe.dropout,
        task_type="CAUSAL_LM",
    )
    trainer = Trainer(
        model=get_peft_model(base.fresh(recipe.base_bits), lora),
        args=TrainingArguments(**(given | dict(recipe.arguments))),
        train_dataset=learned,
        eval_dataset=checked,
        data_collator=default_data_collator,
        compute_metrics=_accuracy,
        preprocess_logits_for_metrics=lambda logits, labels: logits[:, -2].argmax(-1),
        callbacks=[EarlyStoppingCallback(recipe.patience)] if recipe.patience else [],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions == prediction.label_ids[:, -1]).mean())}


class _StopAt(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step >= self.step:
            control.should_training_stop = True
