"""Write vLLM's LoRA buffers on one GPU of several: ``python tools/record_lora_shapes.py OUT.json``.

Runs in an environment with vLLM (``make vllm-env``), which needs no GPU: vLLM's own classes are made for one rank of
each size of tensor parallelism on PyTorch's meta device, so that only shapes are computed. ``tests/calibrate`` compares
loraplan's formulas with the file.
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
from vllm.lora.layers.logits_processor import LogitsProcessorWithLoRA
from vllm.model_executor.layers.logits_processor import LogitsProcessor

MODELS = {  # hidden, intermediate, heads, KV heads, head size, vocabulary: from their config.json
    "llama-3.1-8b": (4096, 14336, 32, 8, 128, 128256),
    "llama-3.1-70b": (8192, 28672, 64, 8, 128, 128256),
    "qwen2.5-7b": (3584, 18944, 28, 4, 128, 152064),
    "tiny": (256, 512, 4, 2, 64, 1024),  # two KV heads: copies at 4 GPUs
}
PARALLEL = (1, 2, 4, 8, 16)
SLOTS, RANK = 4, 16


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


def main() -> int:
    """Write the file."""
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
