"""Measured serving points that come with the kernel tables: closed loops of whole deployments on real machines."""

from __future__ import annotations

import csv
from dataclasses import dataclass

from calibrate.kernels.base_models import base_model_of
from calibrate.kernels.cards import CARDS
from calibrate.kernels.closed_loop import Loop
from calibrate.kernels.kernel_tables import ENGINES, Deployment, systems_folder

TABLE = "silicon_sample.csv"
_MIXTURE = "openai/gpt-oss-120b"
_MODELS = {
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama-3.1-8b",
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "Qwen/Qwen3-32B": "qwen3-32b",
    _MIXTURE: "gpt-oss-120b",
    "nvidia/Qwen3-32B-NVFP4": "qwen3-32b",
}
_WEIGHTS = {"": "bf16", "bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8-block", "nvfp4": "nvfp4"}
_FIXED_LENGTHS, _SHORTEST = "aic-auto-gap-analysis", 0.8
"""Runs of this source have prompts and answers of one length; the others, of InferenceX, 80 to 100 % of it."""
_SYSTEMS = {card.system: card for card in CARDS.values()}


@dataclass(frozen=True, slots=True)
class ServingPoint:
    """One measured closed loop.

    :ivar line: in the table, from 2.
    :ivar first_s: mean time to the first token.
    :ivar token_s: mean time between tokens of the answer.
    """

    line: int
    deployment: Deployment
    loop: Loop
    first_s: float
    token_s: float

    @property
    def group(self) -> tuple[str, str, str, str, int]:
        """Engine, card, model, weights and GPUs: points of one deployment share its errors."""
        each = self.deployment
        return each.engine, each.card.name, each.model.name, each.weights, each.tensor_parallel


def serving_points() -> tuple[list[ServingPoint], int]:
    """Return the points of known models and cards, one replica each, and how many others there are.

    A mixture of experts counts where its experts are split like its attention.

    :raises InputError: without the extra ``kernels``.
    """
    with open(systems_folder() / TABLE, newline="") as lines:
        rows = list(csv.DictReader(lines))
    points = [point for line, row in enumerate(rows, 2) if (point := _point(line, row)) is not None]
    return points, len(rows) - len(points)


def _point(line: int, row: dict[str, str]) -> ServingPoint | None:
    known = row["model_path"] in _MODELS and row["system"] in _SYSTEMS and row["backend"] in ENGINES
    weights = _WEIGHTS.get(row["gemm_quant_mode"])
    split: set[str] = set()
    if row["model_path"] == _MIXTURE:  # its weights are published in one format, whatever the table calls it
        weights, split = "mxfp4", {row["attention_dp_size"], row["moe_ep_size"]} - {"1", "1.0"}
    if not known or weights is None or split or row["mode"] != "agg" or float(row["pp_size"]) != 1:
        return None
    deployment = Deployment(
        _SYSTEMS[row["system"]],
        base_model_of(_MODELS[row["model_path"]]),
        row["backend"],
        weights,
        int(float(row["tp_size"])),
    )
    spread = (0.8, 1.2) if _FIXED_LENGTHS in row["silicon_data_source"] else (0.8, 1.0)
    loop = Loop(int(float(row["batch_size"])), int(row["isl"]), int(row["osl"]), spread)
    return ServingPoint(
        line, deployment, loop, float(row["silicon_ttft_ms"]) / 1000, float(row["silicon_tpot_ms"]) / 1000
    )
