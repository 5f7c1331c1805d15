"""An untrusted training log: Hugging Face Trainer's ``trainer_state.json``, as series over optimiser steps.

The Trainer writes ``NaN`` and ``Infinity`` into its JSON; they are kept as values, because a diverged run has them.
Other oddities (a wrong type, a missing step) are left out and counted in a note: one bad entry is no reason to refuse
the rest of the evidence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_high
from typing import Any

from sim.cells import printable
from sim.errors import InputError
from sim.training.files.adapter_folder import CONFIG, read_json, resolved_inside

STATE = "trainer_state.json"

LOG_LIMIT = 64 << 20
"""Bytes of a log, at most: one entry a step for 300,000 steps."""

_STEP_LIMIT = 1 << 40
CHECKPOINT = re.compile(r"checkpoint-(\d{1,12})")
_EVAL = "eval_"
_SPEEDS = (
    *("runtime", "samples_per_second", "steps_per_second", "num_tokens", "jit_compilation_time"),
    "model_preparation_time",
)
"""Endings of evaluation keys that measure speed, not quality."""


@dataclass(frozen=True, slots=True)
class StepSeries:
    """Values over optimiser steps; steps rise strictly, values may be NaN or infinite."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.steps)

    def finite(self) -> StepSeries:
        """Return it without NaN and infinities."""
        return _series((step, value) for step, value in entries(self) if math.isfinite(value))

    def until(self, step: int) -> StepSeries:
        """Return what was logged up to a step, that step included."""
        return _series(entry for entry in entries(self) if entry[0] <= step)


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """The content of a log; None or an empty series where it has nothing.

    :ivar path: the file.
    :ivar loss: training loss, a mean since the entry before; ``grad_norm``: before clipping.
    :ivar metrics: evaluation metrics but the loss, by name without ``eval_``; speeds are left out.
    :ivar global_step: optimiser steps done.
    :ivar best_step: of the best checkpoint by the Trainer's own metric.
    :ivar batch: examples of an optimiser step, all devices and accumulation included; known from the closing entry.
    :ivar train_batch_size: examples of a forward pass, which accumulation multiplies.
    :ivar steps_per_epoch: from steps and epochs; ``eval_examples``: from runtime and speed of the evaluation.
    """

    path: Path
    loss: StepSeries = StepSeries()
    grad_norm: StepSeries = StepSeries()
    learning_rate: StepSeries = StepSeries()
    eval_loss: StepSeries = StepSeries()
    metrics: Mapping[str, StepSeries] = field(default_factory=dict)
    global_step: int = 0
    best_step: int | None = None
    batch: float | None = None
    train_batch_size: int | None = None
    steps_per_epoch: float | None = None
    eval_examples: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def kept_step(self) -> int:
        """The step whose weights are the adapter's: the last, or the best where the run kept track of it.

        A Trainer with a metric for the best model loads that model at the end, by default; the log doesn't tell
        otherwise.
        """
        last = max((self.global_step, *self.loss.steps[-1:], *self.eval_loss.steps[-1:]))
        of_checkpoint = CHECKPOINT.fullmatch(self.path.parent.name) is not None  # then the file describes its weights
        return last if of_checkpoint or self.best_step is None else self.best_step


def read_log(path: Path) -> TrainingLog:
    """Read a ``trainer_state.json``.

    :raises InputError: if the file can't be read, is too long or is no Trainer's state.
    """
    data = read_json(path, LOG_LIMIT, "log")
    history = data.get("log_history")
    if not isinstance(history, list):
        raise InputError(
            "no log_history in this file",
            file=str(path),
            got=None if history is None else type(history).__name__,
            allowed=f"a {STATE} of Hugging Face's Trainer",
        )
    notes: list[str] = []
    rows = _rows(history, notes)
    table = _by_key(rows, notes)
    global_step = _whole(data.get("global_step")) or max((step for step, _ in rows), default=0)
    epochs = entries(table.get("epoch", StepSeries()))
    per_epoch = [step / epoch for step, epoch in epochs if math.isfinite(epoch) and epoch > 1e-9 and step > 0]
    return TrainingLog(
        path=path,
        loss=table.get("loss", StepSeries()),
        grad_norm=table.get("grad_norm", StepSeries()),
        learning_rate=table.get("learning_rate", StepSeries()),
        eval_loss=_eval_loss(table, notes),
        metrics=_metrics(table),
        global_step=global_step,
        best_step=_best_step(data),
        batch=_batch(table),
        train_batch_size=_whole(data.get("train_batch_size")),
        steps_per_epoch=median_high(per_epoch) if per_epoch else None,
        eval_examples=_eval_examples(table),
        notes=tuple(notes),
    )


def find_log(folder: Path) -> Path | None:
    """Return an adapter folder's log: in it, in its newest checkpoint, or in the folder above a checkpoint.

    The first of these that is there: ``trainer_state.json`` in the folder itself (what ``save_state`` writes, and every
    checkpoint has); in the child ``checkpoint-N`` with the largest N; next to the folder, if the folder has no log of
    its own and is the only adapter there.

    :raises InputError: if the log is a link that leads out of its folder.
    """
    checkpoints = [(int(match[1]), child) for child in _children(folder) if (match := CHECKPOINT.fullmatch(child.name))]
    for place in (folder, *(child for _, child in sorted(checkpoints, reverse=True))):
        if resolved_inside(place / STATE, place).is_file():
            return place / STATE
    beside = folder.absolute().parent
    alone = sum((child / CONFIG).is_file() for child in _children(beside)) == 1
    return beside / STATE if alone and resolved_inside(beside / STATE, beside).is_file() else None


def _children(folder: Path) -> list[Path]:
    try:
        return [child for child in folder.iterdir() if child.is_dir() and not child.is_symlink()]
    except OSError:
        return []


def _rows(history: list[Any], notes: list[str]) -> list[tuple[int, Mapping[str, Any]]]:
    """Return (step, entry) in the order of the file."""
    rows = []
    for entry in history:
        step = _whole(entry.get("step")) if isinstance(entry, dict) else None
        if step is not None:
            rows.append((step, entry))
    if len(rows) < len(history):
        notes.append(f"{len(history) - len(rows)} of {len(history)} entries have no step that can be read: left out")
    return rows


def _by_key(rows: Iterable[tuple[int, Mapping[str, Any]]], notes: list[str]) -> dict[str, StepSeries]:
    """Return a series for each key of numbers; of entries for one step, the later counts."""
    table: dict[str, dict[int, float]] = {}
    wrong: dict[str, int] = {}
    repeated: set[int] = set()
    for step, entry in rows:
        for key, value in entry.items():
            if key == "step" or (number := _number(value)) is None:
                if key in ("loss", "eval_loss", "grad_norm", "learning_rate"):
                    wrong[key] = wrong.get(key, 0) + 1
                continue
            values = table.setdefault(key, {})
            before = values.get(step)
            same = before is None or before == number or (math.isnan(before) and math.isnan(number))
            if key in ("loss", "eval_loss") and not same:
                repeated.add(step)
            values[step] = number
    for key, count in wrong.items():
        notes.append(f"{count} values of {key} are no numbers: left out")
    if repeated:
        first, last = min(repeated), max(repeated)
        where = f"step {first} stands" if first == last else f"{len(repeated)} steps from {first} to {last} stand"
        notes.append(f"{where} there more than once, as after a resumption: the later entry counts")
    return {key: _series(sorted(values.items())) for key, values in table.items()}


def _series(points: Iterable[tuple[int, float]]) -> StepSeries:
    both = list(points)
    return StepSeries(tuple(step for step, _ in both), tuple(value for _, value in both))


def _eval_loss(table: Mapping[str, StepSeries], notes: list[str]) -> StepSeries:
    """Return the validation loss; of several data sets, which log ``eval_NAME_loss``, the first by name."""
    if "eval_loss" in table:
        return table["eval_loss"]
    named = sorted(key for key in table if key.startswith(_EVAL) and key.endswith("_loss"))
    if len(named) > 1:
        notes.append(f"{len(named)} validation sets: judged by {printable(named[0])}")
    return table[named[0]] if named else StepSeries()


def _metrics(table: Mapping[str, StepSeries]) -> dict[str, StepSeries]:
    return {
        key.removeprefix(_EVAL): series
        for key, series in table.items()
        if key.startswith(_EVAL) and key != "eval_loss" and not key.endswith(_SPEEDS)
    }


def _number(value: Any) -> float | None:
    """Return a number; older Trainers wrote some as text, and ``"NaN"`` is one of these."""
    if type(value) is bool:
        return None
    if isinstance(value, str):
        value = value.strip()
        if len(value) > 40:
            return None
    try:
        return float(value) if isinstance(value, (int, float, str)) else None
    except (ValueError, OverflowError):
        return None


def _whole(value: Any) -> int | None:
    """Return a count, None where it isn't one; a float that is whole is."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value < _STEP_LIMIT else None


def _best_step(data: Mapping[str, Any]) -> int | None:
    """Return the best checkpoint's step; older Trainers only gave its folder."""
    step = _whole(data.get("best_global_step"))
    if step:
        return step
    name = data.get("best_model_checkpoint")
    match = CHECKPOINT.search(name[-40:]) if isinstance(name, str) else None
    return int(match[1]) if match else None


def _batch(table: Mapping[str, StepSeries]) -> float | None:
    """Return examples of an optimiser step from the closing entry: examples a second over steps a second."""
    samples, steps = table.get("train_samples_per_second"), table.get("train_steps_per_second")
    if not samples or not steps:
        return None
    ratio = samples.values[-1] / steps.values[-1] if steps.values[-1] else math.nan
    return ratio if math.isfinite(ratio) and ratio > 0 else None


def _eval_examples(table: Mapping[str, StepSeries]) -> int | None:
    runtime, speed = table.get("eval_runtime"), table.get("eval_samples_per_second")
    if not runtime or not speed:
        return None
    product = runtime.values[-1] * speed.values[-1]
    return round(product) if math.isfinite(product) and 0 < product < _STEP_LIMIT else None


def entries(series: StepSeries) -> Iterator[tuple[int, float]]:
    """Yield (step, value)."""
    return zip(series.steps, series.values, strict=True)
