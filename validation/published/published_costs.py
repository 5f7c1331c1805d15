"""Memory and load costs from published measurements of vLLM 0.8.5 (docs/validation.md says where they are from).

``fit_memory`` and ``fit_loads`` take the rows of one table and return a section of a profile.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import ArrayLike

from sim.arrays import Floats
from sim.errors import InputError
from sim.policies.replica_memory import reserved_bytes
from sim.rng import stream
from sim.spec.profile import HoldOut, LoadCost, Memory, TierCost
from sim.spec.scenario import Targets
from sim.studies.fidelity.least_squares import Problem, hold_out_line, resample, rounded, significant, solve
from sim.studies.fidelity.measured_runs import MODELS, TARGETS, read_table
from sim.traffic.adapters import SHAPES, parameters_per_rank, tensor_count

Row = Mapping[str, str]

TOTAL_BYTES = 64 << 30
UTILIZATION = 0.9
KV_COLUMNS = ("model", "max_loras", "max_lora_rank", "kv_cache_tokens", "status")
LOAD_COLUMNS = ("model", "adapter_rank", "max_lora_rank", "tier", "nth_load", "load_ms")
"""What is read of ``kv_capacity.csv`` and of ``load_samples.csv``."""

_WORDS = ("model", "status", "tier")
_WIDTH = 2  # bytes of bf16
_REUSED = 50
"""In each run of the load samples, copies 1 to 50 follow loads from disk, copies 51 to 100 find warm host memory."""
_QUANTILES = np.linspace(0, 1, 101)
"""Of residuals: the p99 is one of them."""
_LEAST_PER_BYTE_S = 1e-15
_RESAMPLES = 1000
_MIXED = 1000
"""Predicted samples of each cell, at even quantiles, where cells are mixed."""

READ, FIRST_COPY, RELOAD = "disk_to_host", "first_copy", "reload"
Cell = tuple[str, int, int, str]
"""Model, adapter rank, slot rank, and what was timed: ``READ``, ``FIRST_COPY`` or ``RELOAD``."""
Cells = Sequence[tuple[Cell, Floats]]
"""Cells and their seconds, in the order of measurement; a cell that is drawn twice occurs twice."""
TIERS = {RELOAD: "loads from host", READ: "reads from storage"}
"""What predictions of loads are reported as."""
LAW, NOISE = "law", "noise"
HALVES, CELL_OUT, HALF_WIDTH = "odd and even samples", "leave one cell out", "bootstrap half-width"
TOGETHER = HALVES + ", all cells together"


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
    table = read_table(path)
    table.require(columns)
    rows = [cells for cells in table.rows if cells.row["model"] in MODELS]
    for cells in rows:
        for name in columns:
            if name not in _WORDS and cells.row[name]:
                cells.parsed(name, _finite, "a number")
    there = {MODELS[cells.row["model"]] for cells in rows}
    wanted = {model} if model is not None else set(MODELS.values())
    if wanted - there:
        raise InputError("no rows of this model", file=table.file, got=", ".join(sorted(wanted - there)))
    return [cells.row for cells in rows]


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


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
        total_bytes=TOTAL_BYTES,
        utilization=UTILIZATION,
        weights_bytes=reserved_bytes(shape, 0, 8),
        overhead_bytes=round(TOTAL_BYTES * UTILIZATION - usable),
        kv_bytes_per_token=kv_bytes,
        slot_layout="vllm-0.8",
    )
    return Fitted(memory, {"kv_tokens": float(np.median(np.abs((usable - reserved) / kv_bytes / tokens - 1)))})


def kv_tokens(memory: Memory, model: str, slots: int, rank: int) -> float:
    """Return the KV tokens that so many slots of such a rank leave room for."""
    reserved = reserved_bytes(SHAPES[model], slots, rank or 8)
    return (memory.total_bytes * memory.utilization - memory.overhead_bytes - reserved) / memory.kv_bytes_per_token


def load_cells(rows: Sequence[Row]) -> Cells:
    """Return the load samples by cell.

    The first read of a process is left out: it also warms the file cache of all others.

    :param rows: ``load_samples.csv``: adapter_rank, max_lora_rank, tier, nth_load, load_ms.
    """
    cells: dict[Cell, list[float]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: int(row["nth_load"])):
        nth, tier = int(row["nth_load"]), row["tier"]
        if tier == "host_to_gpu":
            tier = RELOAD if nth > _REUSED else FIRST_COPY
        elif nth == 1:
            continue
        key = MODELS[row["model"]], int(row["adapter_rank"]), int(row["max_lora_rank"]), tier
        cells[key].append(float(row["load_ms"]) / 1000)
    return [(key, np.array(seconds)) for key, seconds in cells.items()]


@dataclass(frozen=True, slots=True)
class LoadLaw:
    """Median seconds of loads of one model.

    A copy to the GPU costs for every buffer that is zeroed first (all that the slot has), for every tensor, and for
    every B tensor of an adapter of lower rank than the slot; bytes play no part. Reading from disk costs a fixed time
    and bytes over a bandwidth.
    """

    model: str
    per_buffer_s: float
    per_tensor_s: float
    per_padded_s: float
    read_s: float
    per_byte_s: float

    @property
    def tensors(self) -> int:
        return tensor_count(SHAPES[self.model], _targets(self.model))

    def copy_s(self, rank: int, slot_rank: int) -> float:
        """Return the seconds of a copy from host memory to a slot."""
        padded = self.per_padded_s * (rank < slot_rank) * self.tensors / 2
        return self.per_buffer_s * _buffers(self.model) + self.per_tensor_s * self.tensors + padded

    def disk_s(self, rank: int) -> float:
        """Return the seconds of reading an adapter into host memory."""
        return self.read_s + self.per_byte_s * rank * _bytes_per_rank(self.model)

    def median_s(self, cell: Cell) -> float:
        """Return the median of a cell of reads or copies."""
        return self.disk_s(cell[1]) if cell[3] == READ else self.copy_s(cell[1], cell[2])


def fit_load_law(cells: Cells, model: str) -> LoadLaw:
    """Fit medians of cells; one law of copies holds for both models."""
    reloads = [(cell, seconds) for cell, seconds in cells if cell[3] == RELOAD]
    tensors = [tensor_count(SHAPES[name], _targets(name)) for (name, *_), _ in reloads]
    padded = [count / 2 * (rank < top) for count, ((_, rank, top, _), _) in zip(tensors, reloads, strict=True)]
    buffers = [_buffers(name) for (name, *_), _ in reloads]
    buffer_s, tensor_s, padded_s = _fit_medians(
        {"buffer": buffers, "tensor": tensors, "padded_tensor": padded}, reloads
    )
    reads = _of(cells, model, READ)
    sizes = [cell[1] * _bytes_per_rank(model) for cell, _ in reads]
    read_s, per_byte_s = _fit_medians({"read": np.ones(len(reads)), "byte": sizes}, reads)
    return LoadLaw(model, buffer_s, tensor_s, padded_s, read_s, max(per_byte_s, _LEAST_PER_BYTE_S))


def load_cost(cells: Cells, law: LoadLaw) -> LoadCost:
    """Return the profile section of a law and of how samples spread around the medians of their cells.

    Storage also costs the first copy after it, in proportion to later ones.
    """
    first = float(np.median([np.median(s) / law.copy_s(c[1], c[2]) for c, s in _of(cells, law.model, FIRST_COPY)]))
    storage = TierCost(
        open_s=law.read_s + first * law.per_buffer_s * _buffers(law.model),
        per_tensor_s=first * law.per_tensor_s,
        per_padded_tensor_s=first * law.per_padded_s,
        bandwidth_bytes_per_s=1 / law.per_byte_s,
        residual=tuple(significant(spread(_of(cells, law.model, READ)))),
    )
    host = TierCost(
        open_s=law.per_buffer_s * _buffers(law.model),
        per_tensor_s=law.per_tensor_s,
        per_padded_tensor_s=law.per_padded_s,
        bandwidth_bytes_per_s=1e15,
        residual=tuple(significant(spread(_of(cells, law.model, RELOAD)))),
    )
    return LoadCost(storage=storage, host=host)


def spread(cells: Cells) -> Floats:
    """Return quantiles of sample over median of its cell, averaged over cells, (101,).

    What the law misses of a cell's median isn't in it: that doesn't vary from load to load. Averaging quantiles, rather
    than pooling samples, keeps the cell that spreads most from making the tail of all.
    """
    return np.asarray(np.mean([np.quantile(s / np.median(s), _QUANTILES) for _, s in cells], axis=0))


def fit_loads(rows: Sequence[Row], model: str) -> Fitted:
    """Fit the time of loads.

    :param rows: ``load_samples.csv``: adapter_rank, max_lora_rank, tier, nth_load, load_ms.
    """
    cells = load_cells(rows)
    law = fit_load_law(cells, model)
    residuals = {
        name: float(np.median([abs(law.median_s(c) / float(np.median(s)) - 1) for c, s in _of(cells, model, tier)]))
        for name, tier in (("load.host", RELOAD), ("load.storage", READ))
    }
    return Fitted(load_cost(cells, law), residuals)


def load_hold_outs(cells: Cells, model: str) -> tuple[HoldOut, ...]:
    """Return how well p50 and p99 of cells of loads are predicted by what doesn't know them.

    Odd and even samples: a law and a spread fitted to every other sample of all cells predict the remaining ones of
    each cell, and the other way round; their noise is the error of one half of a cell as a prediction of the
    other. All cells together: the same, of the samples of all cells as one. Leave one cell out: both predict a cell
    that neither knows. The bootstrap half-width is half of the central 95 % of a cell's p99 when its samples are drawn
    with replacement, over that p99.
    """
    found = []
    halves = [([(c, s[k::2]) for c, s in cells], [(c, s[1 - k :: 2]) for c, s in cells]) for k in (0, 1)]
    for tier, name in TIERS.items():
        own = _of(cells, model, tier)
        for word, share in (("p50", 0.5), ("p99", 0.99)):
            what, count = f"{name}, {word}", len(own)
            by_half = np.concatenate(
                [_quantile_errors(fit, _of(rest, model, tier), model, share) for fit, rest in halves]
            )
            together = np.array([_mixed_error(fit, _of(rest, model, tier), model, share) for fit, rest in halves])
            by_cell = np.concatenate(
                [_quantile_errors([one for one in cells if one[0] != out[0]], [out], model, share) for out in own]
            )
            noise = np.concatenate(
                [[np.quantile(s[k::2], share) / np.quantile(s[1 - k :: 2], share) - 1 for _, s in own] for k in (0, 1)]
            )
            found += [
                hold_out_line(what, LAW, HALVES, by_half, count),
                hold_out_line(what, NOISE, HALVES, noise, count),
                hold_out_line(what, LAW, CELL_OUT, by_cell, count),
                hold_out_line(what, LAW, TOGETHER, together, count),
            ]
        widths = np.array([_half_width(seconds, 0.99) for _, seconds in own])
        found.append(hold_out_line(f"{name}, p99", NOISE, HALF_WIDTH, widths))
    return tuple(map(rounded, found))


def load_draws(cells: Cells, model: str, draws: int, seed: int = 0) -> list[LoadCost]:
    """Return load costs fitted to cells drawn with replacement and, in each, to samples drawn with replacement.

    Cells are drawn among those of the same law's part: reads of one rank; copies of one model, padded or not.
    """

    def part(cell: tuple[Cell, Floats]) -> tuple[str, str, int]:
        name, rank, slot_rank, tier = cell[0]
        return name, tier, rank if tier == READ else int(rank < slot_rank)

    rng = stream(seed, 0, "bootstrap of loads")
    found = []
    for _ in range(draws):
        drawn = [(cell, rng.choice(seconds, size=len(seconds))) for cell, seconds in resample(cells, rng, part)]
        found.append(load_cost(drawn, fit_load_law(drawn, model)))
    return found


def _targets(model: str) -> Targets:
    targets = TARGETS.get(model)
    return "all-linear" if targets is None else cast(Targets, tuple(targets))


def _buffers(model: str) -> int:
    """Return the buffers of one slot that a load sets to zero: A and B of all supported modules."""
    shape = SHAPES[model]
    return tensor_count(shape, "all-linear") + (6 if shape.lora_embeddings else 0)


def _bytes_per_rank(model: str) -> int:
    return parameters_per_rank(SHAPES[model], _targets(model)) * _WIDTH


def _of(cells: Cells, model: str, tier: str) -> Cells:
    return [(cell, seconds) for cell, seconds in cells if (cell[0], cell[3]) == (model, tier)]


def _fit_medians(columns: Mapping[str, ArrayLike], cells: Cells) -> list[float]:
    """Return the coefficients that fit the medians of cells best."""
    return [float(value) for value in solve(Problem.of(columns, [np.median(seconds) for _, seconds in cells]))]


def _quantile_errors(fit: Cells, rest: Cells, model: str, share: float) -> Floats:
    """Return relative errors of a quantile of cells of one tier, predicted from other samples."""
    law = fit_load_law(fit, model)
    ratio = float(np.interp(share, _QUANTILES, spread(_of(fit, model, rest[0][0][3]))))
    return np.array([law.median_s(cell) * ratio / np.quantile(seconds, share) - 1 for cell, seconds in rest])


def _mixed_error(fit: Cells, rest: Cells, model: str, share: float) -> float:
    """Return the relative error of a quantile of all samples of one tier, predicted from other samples."""
    law = fit_load_law(fit, model)
    even = np.linspace(0, 1, 2 * _MIXED + 1)[1::2]
    ratios = np.interp(even, _QUANTILES, spread(_of(fit, model, rest[0][0][3])))
    predicted = np.concatenate([law.median_s(cell) * ratios for cell, _ in rest])
    measured = np.concatenate([seconds for _, seconds in rest])
    return float(np.quantile(predicted, share) / np.quantile(measured, share) - 1)


def _half_width(seconds: Floats, share: float) -> float:
    """Return half the width of the bootstrap's central 95 % of a quantile, over that quantile."""
    drawn = stream(0, 0, "bootstrap of a quantile").choice(seconds, size=(_RESAMPLES, len(seconds)))
    low, high = np.quantile(np.quantile(drawn, share, axis=1), (0.025, 0.975))
    return float((high - low) / 2 / np.quantile(seconds, share))
