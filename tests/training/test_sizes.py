"""Sizes by our formulas are those of the files, byte for byte; the files are PEFT's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sim.spec.scenario import Targets
from sim.traffic.adapters import ModelShape, parameters_per_rank, tensor_count
from sim.training.files.adapter_folder import WEIGHTS
from sim.training.files.census import take_census

# PEFT still asks transformers by a name that it gave up.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

RANKS = (4, 8, 16, 32, 64)
DTYPES = {"fp16": 2, "bf16": 2, "fp32": 4}
TARGETS: tuple[Targets, ...] = (("q", "v"), ("q", "k", "v", "o"), "all-linear")
TINY = ModelShape(hidden=32, intermediate=48, layers=3, heads=4, kv_heads=2, head_dim=8, vocab=64)


def base() -> Any:
    """Return a new model: PEFT changes the one that it is given."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=TINY.hidden,
            intermediate_size=TINY.intermediate,
            num_hidden_layers=TINY.layers,
            num_attention_heads=TINY.heads,
            num_key_value_heads=TINY.kv_heads,
            head_dim=TINY.head_dim,
            vocab_size=TINY.vocab,
        )
    )


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_files_of_peft_are_as_large_as_the_formulas_say(targets: Targets, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    formats = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    modules = targets if targets == "all-linear" else [f"{name}_proj" for name in targets]
    for rank in RANKS:
        model = get_peft_model(base(), LoraConfig(r=rank, target_modules=modules, task_type="CAUSAL_LM"))
        for dtype in DTYPES:
            model.to(formats[dtype])
            model.save_pretrained(tmp_path / f"{rank:02d}-{dtype}")
    entries = take_census(tmp_path).entries
    assert len(entries) == len(RANKS) * len(DTYPES)
    for entry in entries:
        rank, dtype = int(entry.folder[:2]), entry.folder[3:]
        expected = rank * parameters_per_rank(TINY, targets) * DTYPES[dtype]
        assert (entry.bytes, entry.rank, entry.dtypes) == (expected, rank, (dtype,)), entry.folder
        assert entry.tensors == tensor_count(TINY, targets)
        assert entry.parameters == entry.lora_parameters == rank * parameters_per_rank(TINY, targets)
        assert entry.target_words == (targets if isinstance(targets, str) else ",".join(targets))
        assert (entry.layers, entry.extras) == (TINY.layers, ())
        path = tmp_path / entry.folder / WEIGHTS
        assert entry.file_bytes == path.stat().st_size
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        assert entry.file_bytes == 8 + header + entry.bytes


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed but the targeted layer")  # it can't be merged: true
@pytest.mark.filterwarnings("ignore:Adapter 'default'.*have invalid shape")  # PEFT takes biases for torn matrices
def test_what_peft_adds_is_found(tmp_path: Path) -> None:
    from peft import IA3Config, LoraConfig, get_peft_model

    kinds: dict[str, dict[str, Any]] = {
        "dora": {"use_dora": True},
        "rslora": {"use_rslora": True},
        "saved": {"modules_to_save": ["lm_head"]},
        "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
        "pattern": {"rank_pattern": {"v_proj": 8}, "alpha_pattern": {"v_proj": 4}},
        "bias": {"lora_bias": True},
        "layers": {"layers_to_transform": [0, 2]},
    }
    for name, fields in kinds.items():
        config = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **fields})
        model = get_peft_model(base(), config)
        model.save_pretrained(tmp_path / name, save_embedding_layers=name == "embeddings")
    other = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    model = get_peft_model(base(), other)
    model.save_pretrained(tmp_path / "ia3")
    census = take_census(tmp_path)
    found = {entry.folder: entry for entry in census.entries}
    assert found["dora"].extras == ("DoRA",)
    assert found["dora"].bytes == found["dora"].parameters * 4 > found["dora"].lora_parameters * 4
    assert found["rslora"].extras == ("rsLoRA",)
    assert found["saved"].extras == ("saved modules",)
    assert found["saved"].bytes > 4 * TINY.vocab * TINY.hidden
    assert found["embeddings"].extras == ("saved embeddings", "LoRA on embeddings")
    assert found["pattern"].extras == ("rank pattern", "alpha pattern")
    assert found["pattern"].ranks == (4, 8)
    assert found["bias"].extras == ("bias",)
    assert (found["layers"].layers, found["layers"].extras) == (2, ("part of the layers",))
    (failure,) = census.failures
    assert (failure.folder, failure.kind) == ("ia3", "not LoRA")
    assert "IA3" in failure.problem
