"""Measured serving points that come with the kernel tables: closed loops of whole deployments on real machines."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from typing import NamedTuple

from calibrate.kernels.base_models import base_model_of
from calibrate.kernels.cards import CARDS
from calibrate.kernels.kernel_tables import ENGINES, Deployment, systems_folder
from calibrate.kernels.memory_model import memory_of
from sim.policies.kv.kv_rules import kv_tokens_left
from validation.overheads.loop_schedule import Loop

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
_AROUND = "aic-auto-gap-analysis"
"""Runs of this source have lengths of 80 to 120 % of the stated ones; the others, of InferenceX, 80 to 100 %."""
_SHORT_OF_A_SLOT = ("trtllm", "llama-3.1-8b")
"""Runs of that source in which requests wait longer the longer answers are, and the fewer clients there are: as if the
batch had a slot less than there are clients. Seen on the deployments that calibrate, whose TTFT is off by 8 % with that
and by 23 % without."""
_BOTH = 2248
_LONG = 9416
"""Tokens of the longest request of InferenceX, prompts and answers of about 1,024, or one of them of about 8,192
(``max-model-len`` in its workflows)."""
_SYSTEMS = {card.system: card for card in CARDS.values()}


class DeploymentGroup(NamedTuple):
    """One deployment, of which the table has several points."""

    engine: str
    card: str
    model: str
    weights: str
    gpus: int


@dataclass(frozen=True, slots=True)
class ServingPoint:
    """One measured closed loop.

    :ivar line: in the table, from 2.
    :ivar first_s: mean time to the first token.
    :ivar token_s: mean time between tokens of the answer.
    :ivar kv_bytes: of a number in the KV cache.
    :ivar version: of the engine; empty where the table has none.
    """

    line: int
    deployment: Deployment
    loop: Loop
    first_s: float
    token_s: float
    kv_bytes: int = 2
    version: str = ""

    @property
    def fits(self) -> bool:
        """Whether the KV cache holds all clients' requests to their ends, so that none waits for another's blocks."""
        each = self.loop.spread[1] * (self.loop.prompt + self.loop.answer)
        tokens = kv_tokens_left(memory_of(self.deployment), 0) * 2 // self.kv_bytes
        return self.loop.clients * each <= tokens

    @property
    def group(self) -> DeploymentGroup:
        """The deployment: its points share its errors."""
        each = self.deployment
        return DeploymentGroup(each.engine, each.card.name, each.model.name, each.weights, each.tensor_parallel)


def serving_points() -> tuple[list[ServingPoint], int]:
    """Return the points of known models and cards, one replica each, and how many others there are.

    A mixture of experts counts where its experts are split like its attention.

    :raises InputError: without the extra ``kernels``.
    """
    with open(systems_folder() / TABLE, newline="") as lines:
        rows = list(csv.DictReader(lines))
    points = [point for line, row in enumerate(rows, 2) if (point := point_of(line, row)) is not None]
    return points, len(rows) - len(points)


def point_of(line: int, row: dict[str, str]) -> ServingPoint | None:
    """Return the point of a row of the table; None if it is of no dense model on a known card, or several replicas."""
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
    lengths = int(float(row["batch_size"])), int(row["isl"]), int(row["osl"])
    seconds = float(row["silicon_ttft_ms"]) / 1000, float(row["silicon_tpot_ms"]) / 1000
    version = row.get("backend_version", "")
    if _AROUND in row["silicon_data_source"]:
        loop = Loop(*lengths, (0.8, 1.2))
        if (deployment.engine, deployment.model.name) == _SHORT_OF_A_SLOT:
            loop = replace(loop, batch_slots=max(loop.clients - 1, 1))
        return ServingPoint(line, deployment, loop, *seconds, version=version)
    loop = _inferencex_loop(deployment, *lengths)
    return ServingPoint(line, deployment, loop, *seconds, kv_bytes=1, version=version)


def _inferencex_loop(deployment: Deployment, clients: int, prompt: int, answer: int) -> Loop:
    """Return a loop of InferenceX as its scripts set it up, such as ``70b_fp8_h200_trt_slurm.sh``.

    vLLM computes up to 8,192 tokens in a step; TensorRT-LLM as many as the longest request has, and no chunks. With
    prompts and answers of 1,024 tokens on fewer than 8 GPUs it lets prompts wait for each other
    (``batch_wait_timeout_iters: 20``, ``batch_wait_max_tokens_ratio: 0.9``).
    """
    loop = Loop(clients, prompt, answer, (0.8, 1.0))
    if deployment.engine != "trtllm":
        return loop
    budget = _BOTH if prompt == answer else _LONG
    loop = replace(loop, budget=budget, chunked=False)
    if prompt == answer and deployment.tensor_parallel < 8:
        loop = replace(loop, wait_steps=20, wait_tokens=0.9 * budget)
    return loop
