"""Memory of GPUs against vLLM itself: the buffers of its LoRA layers, and measured sizes of the KV cache."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest

from calibrate.kernels import memory_model
from calibrate.kernels.base_models import base_model_of
from calibrate.kernels.cards import SCALED
from calibrate.kernels.kernel_tables import Deployment
from calibrate.kernels.memory_model import memory_of
from sim.policies.kv.kv_rules import kv_tokens_left
from sim.policies.replica_memory import reserved_bytes, slot_buffers, slots_bytes
from sim.spec.sections.workload import EXPERTS, SHARED_OUTER
from sim.studies.fidelity.measured_runs import MODELS
from sim.traffic.adapters import (
    ATTENTION,
    ROW_PARALLEL,
    SHAPES,
    GpuSplit,
    ModelShape,
    parameters_per_rank,
    tensor_count,
)

RECORD = json.loads((Path(__file__).parent / "vllm_lora_shapes.json").read_text())
"""What ``tools/record_lora_shapes.py`` found in vLLM 0.32; 0.8.5 has the same rules (``vllm/lora/layers.py``)."""
SLOTS, RANK = RECORD["slots"], RECORD["rank"]
MIXTURES = json.loads((Path(__file__).parent / "vllm_expert_buffers.json").read_text())
"""Bytes of the buffers of FusedMoEWithLoRA and FusedMoE3DWithLoRA in one layer, found by the same script."""
GROUPS = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}
H100_64 = replace(SCALED["h100-64gb"], batch_sequences=2048)
"""The card of the measured sizes: memory as nvidia-smi shows it there; ``max_num_seqs`` of the runs."""
CONTEXTS = {"llama-3.1-8b": 131_072, "qwen2.5-7b": 32_768}
"""``max_model_len`` of the runs: the models' own."""


def row_name(row: dict[str, Any]) -> str:
    return f"{row['model']}-tp{row['tensor_parallel']}{'-sharded' * row['fully_sharded']}"


@pytest.mark.parametrize("row", RECORD["rows"], ids=row_name)
def test_each_gpu_holds_the_buffers_that_vllm_allocates(row: dict[str, Any]) -> None:
    shape, split = SHAPES[row["model"]], GpuSplit(row["tensor_parallel"], row["fully_sharded"])
    for group, names in GROUPS.items():
        for side, buffers in enumerate(row["lora"][group]):
            expected = [prod(buffer) for buffer in buffers]
            assert [int(SLOTS * RANK * split.buffers(shape, name)[side][0]) for name in names] == expected, (
                group,
                "AB"[side],
            )
    order = [prod(each) for group in GROUPS for side in row["lora"][group] for each in side]
    in_layers = list(slot_buffers(replace(shape, lora_embeddings=False), SLOTS, RANK, split))
    assert in_layers == [2 * count for count in order] * shape.layers


@pytest.mark.parametrize("row", RECORD["rows"], ids=row_name)
def test_embedding_and_head_are_whole_on_every_gpu(row: dict[str, Any]) -> None:
    """vLLM 0.8 has 256 rows more per slot for added words, and pads the head to a multiple of 256; 0.32 has neither."""
    shape = replace(SHAPES[row["model"]], lora_embeddings=True)
    buffers = list(slot_buffers(shape, SLOTS, RANK, GpuSplit(row["tensor_parallel"], row["fully_sharded"])))
    ends = [buffers[1], buffers[2], buffers[-3], buffers[-2]]
    recorded = [2 * prod(each) for group in ("embedding", "head") for side in row["lora"][group] for each in side]
    rows = 2 * SLOTS * RANK
    assert ends == [recorded[0] + rows * 256, recorded[1], recorded[2], rows * -(-(shape.vocab + 256) // 256) * 256]


@pytest.mark.parametrize("row", RECORD["rows"], ids=row_name)
def test_each_gpu_holds_its_part_of_the_base_model(row: dict[str, Any]) -> None:
    shape, gpus, weights = SHAPES[row["model"]], row["tensor_parallel"], row["weights"]
    for group, names in GROUPS.items():
        parts = [shape.module_on_gpu(name, gpus) for name in names]
        d_in, d_out = parts[0][0], sum(part[1] for part in parts)
        assert [d_out, d_in] == weights[group]


def test_parts_add_up() -> None:
    """Laws: fully sharded parts add up to the whole adapter, and others never hold less."""
    for name, shape in SHAPES.items():
        whole, modules = parameters_per_rank(shape, "all-linear") / shape.layers, shape.adapted("all-linear")
        for gpus in (n for n in (1, 2, 4, 8) if shape.fits(n)):
            sharded, plain = (gpus * GpuSplit(gpus, fully).numbers(shape, modules) for fully in (True, False))
            copies = sum(shape.module(m)[m in ROW_PARALLEL] for m in modules) * (gpus - 1)
            more_heads = max(gpus - shape.kv_heads, 0) * 2 * shape.head_dim
            assert sharded == whole + more_heads, name
            assert plain == sharded + copies, name


def mixture(model: str) -> ModelShape:
    """Return a mixture's shape with little attention, as the record is of its experts alone."""
    hidden, intermediate, experts, active, fused, _ = MIXTURES["models"][model]
    shape = ModelShape(hidden, intermediate, layers=1, heads=8, kv_heads=8, head_dim=64)
    return replace(shape, experts=experts, active_experts=active, fused_experts=fused)


@pytest.mark.parametrize("model", MIXTURES["models"])
def test_slots_of_experts_are_the_buffers_that_vllm_allocates(model: str) -> None:
    rows = [row for row in MIXTURES["rows"] if row["model"] == model]
    assert {(row["gpus"], row["rank"]) for row in rows} == {(g, r) for g in (1, 2, 4, 8) for r in (8, 16, 64)}
    for row in rows:
        target = SHARED_OUTER if row.get("shared") else "experts"
        marlin = MIXTURES["models"][model][-1]
        split = GpuSplit(row["gpus"], row.get("sharded", False), target, row.get("ep", False), marlin)
        with_experts, attention = (
            list(slot_buffers(mixture(model), MIXTURES["slots"], row["rank"], each))
            for each in (split, replace(split, experts=""))
        )
        assert with_experts == [*attention, *row["A"], *row["B"]], row


def test_an_adapter_on_experts_by_hand() -> None:
    """Qwen3-30B-A3B: 48 layers of 128 experts, 2048 by 768. Each has A and B of gate, up and down, or shared ones."""
    shape = replace(mixture("qwen3-30b-a3b"), layers=48)
    per_expert, outer, inner = 48 * 128 * 3 * (2048 + 768), 48 * 3 * 2048, 48 * 128 * 3 * 768
    assert parameters_per_rank(shape, ("experts",)) == per_expert
    assert parameters_per_rank(shape, (SHARED_OUTER,)) == outer + inner
    assert [tensor_count(shape, (name,)) for name in EXPERTS] == [48 * 128 * 6, 48 * 6]
    fused = replace(shape, fused_experts=True)  # one A of 2048 for gate and up
    assert parameters_per_rank(fused, ("experts",)) == per_expert - 48 * 128 * 2048
    assert tensor_count(fused, ("experts",)) == 48 * 4


@pytest.mark.parametrize("target", EXPERTS)
def test_parts_of_experts_add_up(target: str) -> None:
    """Laws: fully sharded parts add up to the whole; with whole experts per GPU nothing but shared matrices is there
    twice; the default copies A of gate and up and B of down."""
    shape = mixture("qwen3-30b-a3b")
    whole = GpuSplit().numbers(shape, (target,))
    outer = 3 * 2048 * (1 if target == SHARED_OUTER else 128)
    for gpus in (2, 4, 8):
        assert gpus * GpuSplit(gpus, fully_sharded=True).numbers(shape, (target,)) == whole
        assert gpus * GpuSplit(gpus).numbers(shape, (target,)) == whole + (gpus - 1) * outer
        copies = (gpus - 1) * outer if target == SHARED_OUTER else 0
        assert gpus * GpuSplit(gpus, expert_parallel=True).numbers(shape, (target,)) == whole + copies
        # Padding for Marlin is no part of a load.
        padded, plain = (GpuSplit(gpus, experts=target, marlin=marlin) for marlin in (True, False))
        assert padded.share(shape) == plain.share(shape)
        assert plain.share(shape) == pytest.approx(
            float(plain.numbers(shape, (*ATTENTION, target)) / GpuSplit().numbers(shape, (*ATTENTION, target)))
        )


def test_slots_of_a_70b_model() -> None:
    """A slot of rank 16 in all linear modules, in MB on each GPU, counted by hand: 80 layers of 2 bytes."""
    shape = replace(SHAPES["llama-3.1-70b"], lora_embeddings=False)
    a_of_columns, b_of_rows = 5 * 8192, 2 * 8192
    split = 8192 + 2 * 1024 + 2 * 28672 + 8192 + 28672
    for gpus in (1, 2, 4, 8):
        plain = 80 * 16 * 2 * (a_of_columns + b_of_rows + split // gpus)
        sharded = 80 * 16 * 2 * (a_of_columns + b_of_rows + split) // gpus
        assert sum(slot_buffers(shape, 1, 16, GpuSplit(gpus))) == plain
        assert sum(slot_buffers(shape, 1, 16, GpuSplit(gpus, fully_sharded=True))) == sharded
        # The allocator reserves more: buffers of 8 MiB come from segments of 20 MiB.
        assert 1 <= slots_bytes(shape, 32, 16, GpuSplit(gpus)) / (32 * plain) < 1.25


@pytest.mark.parametrize(("model", "gpus", "heads"), [("llama-3.1-8b", 8, 1), ("llama-3.1-70b", 16, 1), ("tiny", 4, 1)])
def test_a_gpu_has_at_least_one_kv_head(model: str, gpus: int, heads: int) -> None:
    shape = SHAPES[model]
    assert shape.fits(gpus)
    assert shape.module_on_gpu("k", gpus)[1] == heads * shape.head_dim
    if model != "tiny":
        memory = memory_of(Deployment(H100_64, base_model_of(model), tensor_parallel=gpus))
        assert memory.kv_bytes_per_token == gpus * 2 * shape.layers * heads * shape.head_dim * 2


def test_qwen_with_28_heads_can_not_be_split_over_8_gpus() -> None:
    assert [n for n in range(1, 17) if SHAPES["qwen2.5-7b"].fits(n)] == [1, 2, 4]


def test_segments_of_one_gpu_are_those_of_the_model_alone() -> None:
    for shape in (SHAPES["llama-3.1-8b"], SHAPES["qwen2.5-7b"]):
        assert reserved_bytes(shape, 32, 16, GpuSplit(1, fully_sharded=True)) == reserved_bytes(shape, 32, 16)


def errors(shared: Path) -> list[float]:
    with open(shared / "vllm_h100" / "kv_capacity.csv", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["status"] == "ok"]
    found = []
    for row in rows:
        model = base_model_of(MODELS[row["model"]])
        model = replace(model, context=CONTEXTS[model.name])
        slots, rank = int(row["max_loras"]), int(row["max_lora_rank"])
        tokens = kv_tokens_left(memory_of(Deployment(H100_64, model)), slots_bytes(model.shape, slots, rank))
        found.append(abs(tokens / float(row["kv_cache_tokens"]) - 1))
    return found


def test_nothing_is_fitted_and_every_measured_kv_cache_is_met_within_5_percent(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = errors(shared)
    assert len(found) == 65
    assert max(found) < 0.05
    assert sorted(found)[32] < 0.01
    # The sizes can tell samplers apart: PyTorch's, which sorts, would leave less.
    monkeypatch.setattr(memory_model, "SAMPLER_BYTES", 38)
    assert min(errors(shared)) > 0.1
