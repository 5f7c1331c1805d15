"""The files of a model nobody trained: config, word-level tokenizer and random LoRA adapters, for timing a server.

The base weights are not written: the server draws them (``--load-format dummy``). Nothing but numpy is needed, so
that any environment can write them for any server's.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.spec.scenario import Targets
from sim.traffic.adapters import MODULES, ModelShape, modules_of

_PLACES = {name: f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")} | {
    name: f"mlp.{name}_proj" for name in ("gate", "up", "down")
}
_SCALE = 0.02


def write_base(folder: Path, shape: ModelShape, max_model_len: int) -> None:
    """Write ``config.json`` and a tokenizer with one word for each id."""
    folder.mkdir(parents=True, exist_ok=True)
    qwen = shape.qkv_bias
    config = {
        "architectures": ["Qwen2ForCausalLM" if qwen else "LlamaForCausalLM"],
        "model_type": "qwen2" if qwen else "llama",
        "hidden_size": shape.hidden, "intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim,
        "vocab_size": shape.vocab, "max_position_embeddings": max(4096, max_model_len), "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "initializer_range": 0.02, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16", "use_cache": True,
    }  # fmt: skip
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, shape.vocab)}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [
            {"id": number, "content": word, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True} for number, word in enumerate(("<unk>", "<s>", "</s>"))
        ],
        "normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }  # fmt: skip
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>",
        "model_max_length": max_model_len,
    }  # fmt: skip
    for name, data in (("config", config), ("tokenizer", tokenizer), ("tokenizer_config", settings)):
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")


def write_adapter(folder: Path, shape: ModelShape, rank: int, targets: Targets, seed: int) -> None:
    """Write one random adapter as PEFT does."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    names = modules_of(targets)
    tensors = {}
    for layer in range(shape.layers):
        for name in names:
            wide, tall = shape.module(name)
            for side, size in (("A", (rank, wide)), ("B", (tall, rank))):
                weights = rng.standard_normal(size, dtype=np.float32) * _SCALE
                tensors[f"base_model.model.model.layers.{layer}.{_PLACES[name]}.lora_{side}.weight"] = weights
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0,
        "bias": "none", "target_modules": [_PLACES[name].split(".")[1] for name in MODULES if name in names],
        "use_rslora": False, "use_dora": False, "modules_to_save": None, "base_model_name_or_path": "base",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Write float32 tensors as bfloat16: a header with every tensor's place, and their bytes after it."""
    header: dict[str, Any] = {}
    start = 0
    for name, tensor in tensors.items():
        end = start + 2 * math.prod(tensor.shape)
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            # The upper half of a float32 is a bfloat16, rounded towards zero.
            file.write((tensor.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes())
