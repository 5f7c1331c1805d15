"""Write vLLM's LoRA buffers on one GPU of several: ``python tools/record_lora_shapes.py OUT.json EXPERTS.json``.

Runs in an environment with vLLM (``make vllm-env``), which needs no GPU: vLLM's own classes are made for one rank of
each size of tensor parallelism on PyTorch's meta device, so that only shapes are computed. ``tests/calibrate`` compares
loraplan's formulas with the files; the second has the bytes of buffers for experts.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import vllm
import vllm.model_executor.layers.linear as linear
import vllm.model_executor.layers.vocab_parallel_embedding as vocabulary
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.config.lora import LoRAConfig
from vllm.distributed import parallel_state
from vllm.lora import layers
from vllm.lora.layers.fused_moe import FusedMoE3DWithLoRA, FusedMoEWithLoRA
from vllm.lora.layers.logits_processor import LogitsProcessorWithLoRA
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEParallelConfig, RoutingMethodType
from vllm.model_executor.layers.fused_moe.expert_map_manager import determine_expert_map
from vllm.model_executor.layers.fused_moe.oracle.mxfp4 import (
    Mxfp4MoeBackend,
    mxfp4_round_up_hidden_size_and_intermediate_size,
)
from vllm.model_executor.layers.logits_processor import LogitsProcessor

MODELS = {  # hidden, intermediate, heads, KV heads, head size, vocabulary: from their config.json
    "llama-3.1-8b": (4096, 14336, 32, 8, 128, 128256),
    "llama-3.1-70b": (8192, 28672, 64, 8, 128, 128256),
    "qwen2.5-7b": (3584, 18944, 28, 4, 128, 152064),
    "tiny": (256, 512, 4, 2, 64, 1024),  # two KV heads: copies at 4 GPUs
}
PARALLEL = (1, 2, 4, 8, 16)
SLOTS, RANK = 4, 16
MIXTURES = {  # hidden, intermediate, experts, active experts, whether gate and up are one tensor, whether in MXFP4
    "mixtral-8x7b": (4096, 14336, 8, 2, False, False),
    "qwen3-30b-a3b": (2048, 768, 128, 8, False, False),
    "gpt-oss-20b": (2880, 2880, 32, 4, True, True),
    "gpt-oss-120b": (2880, 2880, 128, 4, True, True),
}
"""From their config.json; which are fused from ``is_3d_moe_weight`` of vLLM's classes."""
RANKS = (8, 16, 64)


def buffers(layer: Any, name: str, config: LoRAConfig, packed: list[str]) -> list[list[list[int]]]:
    """Return the shapes of A and B that vLLM allocates for a layer, by the class that it would choose for it."""
    kinds = [getattr(layers, f"{name}With{suffix}", None) for suffix in ("LoRA", "ShardedLoRA")]
    arguments = {"source_layer": layer, "lora_config": config, "packed_modules_list": packed, "model_config": None}
    kind = next(each for each in kinds if each is not None and each.can_replace_layer(**arguments))  # both at one GPU
    made = kind(layer)
    made.create_lora_weights(config.max_loras, config)
    sides = (made.lora_a_stacked, made.lora_b_stacked)
    return [[list(part.shape) for part in (side if isinstance(side, tuple) else (side,))] for side in sides]


def one_layer(sizes: tuple[int, ...], parallel: int, sharded: bool) -> dict[str, Any]:
    """Return the shapes of every LoRA buffer of one decoder layer, of the embedding and of the output head."""
    hidden, intermediate, heads, kv_heads, head, vocab = sizes
    config = LoRAConfig(max_loras=SLOTS, max_lora_rank=RANK, fully_sharded_loras=sharded, lora_dtype=torch.bfloat16)
    qkv = linear.QKVParallelLinear(hidden, head, heads, kv_heads, bias=False, prefix="qkv")
    out = linear.RowParallelLinear(heads * head, hidden, bias=False, prefix="o")
    gate_up = linear.MergedColumnParallelLinear(hidden, [intermediate] * 2, bias=False, prefix="gate_up")
    down = linear.RowParallelLinear(intermediate, hidden, bias=False, prefix="down")
    found = {
        "qkv": buffers(qkv, "MergedQKVParallelLinear", config, ["q", "k", "v"]),
        "o": buffers(out, "RowParallelLinear", config, ["o"]),
        "gate_up": buffers(gate_up, "MergedColumnParallelLinear", config, ["gate", "up"]),
        "down": buffers(down, "RowParallelLinear", config, ["down"]),
    }
    embedding = vocabulary.VocabParallelEmbedding(vocab, hidden)
    found["embedding"] = buffers(embedding, "VocabParallelEmbedding", config, [])
    head_layer = LogitsProcessorWithLoRA(
        LogitsProcessor(vocab, vocab), hidden, torch.bfloat16, torch.device("meta"), None
    )
    head_layer.create_lora_weights(SLOTS, config)
    found["head"] = [[list(head_layer.lora_a_stacked.shape)], [list(head_layer.lora_b_stacked.shape)]]
    weights = {"qkv": qkv, "o": out, "gate_up": gate_up, "down": down, "embedding": embedding}
    return {"lora": found, "weights": {name: list(each.weight.shape) for name, each in weights.items()}}


def expert_buffers(
    sizes: tuple[Any, ...], parallel: int, rank: int, *, sharded: bool = False, shared: bool = False, ep: bool = False
) -> dict[str, list[int]]:
    """Return the bytes of the LoRA buffers of one layer's experts, in the order in which vLLM allocates them."""
    hidden, intermediate, experts, active, fused, mxfp4 = sizes
    split = FusedMoEParallelConfig(
        **{f"{kind}_{what}": int(what == "size") for kind in ("pcp", "dp") for what in ("size", "rank")},
        tp_size=1 if ep else parallel,
        tp_rank=0 if ep else parallel - 1,
        ep_size=parallel if ep else 1,
        ep_rank=0,
        sp_size=1,
        use_ep=ep,
        all2all_backend="allgather_reducescatter",
        enable_eplb=False,
    )
    config = FusedMoEConfig(
        num_experts=experts,
        experts_per_token=active,
        hidden_dim=hidden,
        intermediate_size=intermediate,
        num_local_experts=determine_expert_map(split.ep_size, 0, experts)[0],
        num_logical_experts=experts,
        activation=MoEActivation.SILU,
        device="meta",
        routing_method=RoutingMethodType.Renormalize,
        moe_parallel_config=split,
        in_dtype=torch.bfloat16,
        is_lora_enabled=True,
    )
    if mxfp4:  # as in RoutedExperts; Marlin is the first of the backends for gpt-oss whose experts support LoRA
        rounded = config.hidden_dim, config.intermediate_size_per_partition
        rounded = mxfp4_round_up_hidden_size_and_intermediate_size(Mxfp4MoeBackend.MARLIN, *rounded)
        config.hidden_dim, config.intermediate_size_per_partition = rounded
    lora = LoRAConfig(
        max_loras=SLOTS,
        max_lora_rank=rank,
        fully_sharded_loras=sharded,
        enable_moe_shared_loras=shared,
        lora_dtype=torch.bfloat16,
    )
    kind = FusedMoE3DWithLoRA if fused and not shared else FusedMoEWithLoRA  # as LoRAModelManager chooses
    layer = kind.__new__(kind)  # its own __init__ needs the kernels of a GPU
    torch.nn.Module.__init__(layer)
    layer.moe_config, layer.device = config, torch.device("meta")
    layer.tp_size, layer.tp_rank = split.tp_size, split.tp_rank
    layer.enable_moe_shared_loras = False
    layer._w13_slices = 1 if kind is FusedMoE3DWithLoRA else 2
    layer._ep_check()
    layer.create_lora_weights(SLOTS, lora, SimpleNamespace(architectures=["any"]))
    sides = ("w13_lora_a_stacked", "w2_lora_a_stacked"), ("w13_lora_b_stacked", "w2_lora_b_stacked")
    return {
        side: [part.nbytes for name in names for part in getattr(layer, name)]
        for side, names in zip("AB", sides, strict=True)
    }


def expert_rows() -> list[dict[str, Any]]:
    """Return a row for each mixture, number of GPUs, rank and option."""
    options: tuple[dict[str, bool], ...] = (
        {},
        {"sharded": True},
        {"shared": True},
        {"shared": True, "sharded": True},
        {"ep": True},
    )
    return [
        {"model": model, "gpus": gpus, "rank": rank, **given, **expert_buffers(sizes, gpus, rank, **given)}
        for model, sizes in MIXTURES.items()
        for gpus in (1, 2, 4, 8)
        for given in options
        for rank in RANKS
        if gpus > 1 or given in ({}, {"shared": True})
    ]


def main() -> int:
    """Write the files."""
    rows = []
    for model, sizes in MODELS.items():
        for parallel in (each for each in PARALLEL if sizes[2] % each == 0):  # vLLM refuses the others
            for sharded in (False, True):
                with ExitStack() as stack:
                    stack.enter_context(set_current_vllm_config(VllmConfig()))
                    stack.enter_context(torch.device("meta"))
                    group = SimpleNamespace(world_size=parallel, rank_in_group=parallel - 1)
                    stack.enter_context(patch.object(parallel_state, "_TP", group))
                    row = one_layer(sizes, parallel, sharded)
                rows.append({"model": model, "tensor_parallel": parallel, "fully_sharded": sharded, **row})
    record = {"vllm": vllm.__version__, "slots": SLOTS, "rank": RANK, "rows": rows}
    text = json.dumps(record, separators=(",", ":")).replace('{"model"', '\n{"model"')
    Path(sys.argv[1]).write_text(text + "\n")
    with set_current_vllm_config(VllmConfig()):
        experts = {"vllm": vllm.__version__, "slots": SLOTS, "models": MIXTURES, "rows": expert_rows()}
    text = json.dumps(experts, separators=(",", ":")).replace('{"model"', '\n{"model"')
    Path(sys.argv[2]).write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
