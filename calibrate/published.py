"""Memory and load costs from published measurements of vLLM 0.8.5 (docs/validation.md says where they are from).

Each function takes the rows of one table and returns a section of a profile.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from sim.errors import InputError
from sim.policies.slot_memory import reserved_bytes
from sim.spec.profile import LoadCost, Memory, TierCost
from sim.studies.measured_runs import MODELS, TARGETS
from sim.traffic.adapters import SHAPES, parameters_per_rank, tensor_count

Floats = NDArray[np.float64]
Row = dict[str, str]

TOTAL_BYTES = 64 << 30
UTILIZATION = 0.9
KV_COLUMNS = ("model", "max_loras", "max_lora_rank", "kv_cache_tokens", "status")
LOAD_COLUMNS = ("model", "adapter_rank", "max_lora_rank", "tier", "nth_load", "load_ms")
"""What is read of ``kv_capacity.csv`` and of ``load_samples.csv``."""

_WORDS = ("model", "status", "tier")
_WIDTH = 2  # bytes of bf16
_REUSED = 50
"""In each run of the load samples, copies 1 to 50 follow loads from disk, copies 51 to 100 find warm host memory."""
_QUANTILES = 21


@dataclass(frozen=True, slots=True)
class Fitted:
    """A section of a profile, and the median absolute relative error of its fit by what was fitted."""

    section: Memory | LoadCost
    residuals: dict[str, float]


def read_rows(path: Path, columns: Sequence[str], model: str | None = None) -> list[Row]:
    """Read a CSV file that must have these columns, numbers in all but those of words; an empty cell is no number.

    :param model: a base model that must occur; None: every known one must.
    :raises InputError: naming the file, and the missing columns or the line and value that can't be used.
    """
    file = str(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError("columns are missing", file=file, line=1, got=", ".join(missing))
            rows = [_checked(row, columns, file, reader.line_num) for row in reader if row["model"] in MODELS]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError("the table can't be read", file=file, got=str(error)) from None
    there = {MODELS[row["model"]] for row in rows}
    wanted = {model} if model is not None else set(MODELS.values())
    if wanted - there:
        raise InputError("no rows of this model", file=file, got=", ".join(sorted(wanted - there)))
    return rows


def _checked(row: Row, columns: Sequence[str], file: str, line: int) -> Row:
    for name in columns:
        try:
            good = name in _WORDS or not row[name] or math.isfinite(float(row[name]))
        except (TypeError, ValueError):
            good = False
        if not good:
            raise InputError("not a number", file=file, line=line, key=name, got=row[name])
    return row


def fit_memory(rows: Sequence[Row], model: str) -> Fitted:
    """Fit the bytes that neither weights, slots nor KV cache take, the one number that isn't computed.

    :param rows: ``kv_capacity.csv``: max_loras, max_lora_rank, kv_cache_tokens, status.
    """
    shape = SHAPES[model]
    kv_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * _WIDTH
    rows = [row for row in rows if MODELS[row["model"]] == model and row["status"] == "ok"]
    reserved = np.array([reserved_bytes(shape, int(row["max_loras"]), int(row["max_lora_rank"])) for row in rows])
    tokens = np.array([float(row["kv_cache_tokens"]) for row in rows])
    usable = float(np.median(tokens * kv_bytes + reserved))
    memory = Memory(
        total_bytes=TOTAL_BYTES, utilization=UTILIZATION, weights_bytes=reserved_bytes(shape, 0, 8),
        overhead_bytes=round(TOTAL_BYTES * UTILIZATION - usable), kv_bytes_per_token=kv_bytes, slot_layout="vllm-0.8",
    )  # fmt: skip
    return Fitted(memory, {"kv_tokens": float(np.median(np.abs((usable - reserved) / kv_bytes / tokens - 1)))})


def fit_loads(rows: Sequence[Row], model: str) -> Fitted:
    """Fit the time of loads.

    A copy to the GPU costs for every buffer that is zeroed first (all that the slot has), for every tensor, and for
    every B tensor of an adapter of lower rank than the slot; bytes play no part. One law holds for both models. Reading
    from disk costs a fixed time and bytes over a bandwidth.

    :param rows: ``load_samples.csv``: adapter_rank, max_lora_rank, tier, nth_load, load_ms.
    """
    cells: dict[tuple[str, int, int, str], list[float]] = defaultdict(list)
    for row in rows:
        nth, tier = int(row["nth_load"]), row["tier"]
        if tier == "host_to_gpu":
            tier = "reload" if nth > _REUSED else "first_copy"
        elif nth == 1:
            continue  # the first read of a process also warms the file cache of all others
        key = MODELS[row["model"]], int(row["adapter_rank"]), int(row["max_lora_rank"]), tier
        cells[key].append(float(row["load_ms"]) / 1000)
    per_buffer, per_tensor, per_padded = _copy_law(cells)
    buffers, tensors = _buffers(model), tensor_count(SHAPES[model], _targets(model))

    def copy_s(rank: int, max_rank: int) -> float:
        return per_buffer * buffers + per_tensor * tensors + per_padded * (rank < max_rank) * tensors / 2

    def own(tier: str) -> list[tuple[int, int, Floats]]:
        return [
            (rank, top, np.array(seconds)) for (m, rank, top, t), seconds in cells.items() if (m, t) == (model, tier)
        ]

    first_copy = float(np.median([np.median(seconds) / copy_s(rank, top) for rank, top, seconds in own("first_copy")]))
    ranks = np.array([rank for rank, _, _ in own("disk_to_host")])
    size = ranks * parameters_per_rank(SHAPES[model], _targets(model)) * _WIDTH
    read = np.array([np.median(seconds) for _, _, seconds in own("disk_to_host")])
    fixed, per_byte = _relative_nnls(np.column_stack((np.ones(len(size)), size)), read)
    storage = TierCost(
        open_s=fixed + first_copy * per_buffer * buffers, per_tensor_s=first_copy * per_tensor,
        per_padded_tensor_s=first_copy * per_padded, bandwidth_bytes_per_s=1 / per_byte,
        residual=_quantiles(np.concatenate([
            seconds / (fixed + per_byte * rank * size[0] / ranks[0]) for rank, _, seconds in own("disk_to_host")
        ])),
    )  # fmt: skip
    reloads = [seconds / copy_s(rank, top) for rank, top, seconds in own("reload")]
    host = TierCost(
        open_s=per_buffer * buffers, per_tensor_s=per_tensor, per_padded_tensor_s=per_padded,
        bandwidth_bytes_per_s=1e15, residual=_quantiles(np.concatenate(reloads)),
    )  # fmt: skip
    residuals = {
        "load.host": float(np.median([abs(float(np.median(ratio)) - 1) for ratio in reloads])),
        "load.storage": float(np.median(np.abs((fixed + per_byte * size) / read - 1))),
    }
    return Fitted(LoadCost(storage=storage, host=host), residuals)


def _copy_law(cells: dict[tuple[str, int, int, str], list[float]]) -> tuple[float, float, float]:
    """Return the seconds of a copy per zeroed buffer, per tensor and per padded B tensor, over all models."""
    features, seconds = [], []
    for (model, rank, top, tier), samples in cells.items():
        if tier == "reload":
            tensors = tensor_count(SHAPES[model], _targets(model))
            features.append((_buffers(model), tensors, tensors / 2 * (rank < top)))
            seconds.append(float(np.median(samples)))
    solution = _relative_nnls(np.array(features), np.array(seconds))
    return float(solution[0]), float(solution[1]), float(solution[2])


def _targets(model: str) -> tuple[str, ...] | str:
    targets = TARGETS.get(model, "all-linear")
    return targets if isinstance(targets, str) else tuple(targets)


def _buffers(model: str) -> int:
    """Return the buffers of one slot that a load sets to zero: A and B of all supported modules."""
    shape = SHAPES[model]
    return tensor_count(shape, "all-linear") + (6 if shape.lora_embeddings else 0)


def _relative_nnls(features: Floats, target: Floats) -> Floats:
    return np.asarray(nnls(features / target[:, None], np.ones(len(target)))[0])


def _quantiles(ratios: Floats) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in np.quantile(ratios, np.linspace(0, 1, _QUANTILES)))
