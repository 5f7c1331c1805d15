"""How large adapters are: model shapes, LoRA parameters, and a whole population of adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.errors import ScenarioError, did_you_mean
from sim.spec.scenario import Adapters, Targets

DTYPE_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4, "fp8": 1}
MODULES = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The linear layers of a decoder, from the model's published ``config.json``.

    :ivar lora_embeddings: whether vLLM 0.8 sets LoRA buffers for embedding and output head aside (its Llama class
        does, Qwen2 does not).
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int = 128
    vocab: int = 32000
    qkv_bias: bool = False
    lora_embeddings: bool = False

    def module(self, name: str) -> tuple[int, int]:
        """Return (d_in, d_out) of one linear layer."""
        query, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q": (self.hidden, query),
            "k": (self.hidden, key_value),
            "v": (self.hidden, key_value),
            "o": (query, self.hidden),
            "gate": (self.hidden, self.intermediate),
            "up": (self.hidden, self.intermediate),
            "down": (self.intermediate, self.hidden),
        }[name]

    def linear_parameters(self) -> int:
        """Return the parameters of one layer's linear modules, biases aside."""
        return sum(d_in * d_out for d_in, d_out in map(self.module, MODULES))


def _llama(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int) -> ModelShape:
    return ModelShape(hidden, intermediate, layers, heads, kv_heads, vocab=vocab, lora_embeddings=True)


def _qwen(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, head_dim: int = 128, vocab: int = 152064
) -> ModelShape:
    return ModelShape(hidden, intermediate, layers, heads, kv_heads, head_dim, vocab=vocab, qkv_bias=True)


SHAPES = {
    "llama-2-7b": _llama(4096, 11008, 32, 32, 32, 32000),
    "llama-2-13b": _llama(5120, 13824, 40, 40, 40, 32000),
    "llama-2-70b": _llama(8192, 28672, 80, 64, 8, 32000),
    "llama-3-70b": _llama(8192, 28672, 80, 64, 8, 128256),
    "llama-3.1-70b": _llama(8192, 28672, 80, 64, 8, 128256),
    "llama-3-8b": _llama(4096, 14336, 32, 32, 8, 128256),
    "llama-3.1-8b": _llama(4096, 14336, 32, 32, 8, 128256),
    "mistral-7b": _llama(4096, 14336, 32, 32, 8, 32000),
    "tiny": ModelShape(256, 512, 4, 4, 2, 64, vocab=1024),  # no real model: for tests of a calibration
    "qwen2.5-0.5b": _qwen(896, 4864, 24, 14, 2, 64, vocab=151936),
    "qwen2.5-7b": _qwen(3584, 18944, 28, 28, 4),
    "qwen2.5-14b": _qwen(5120, 13824, 48, 40, 8),
    "qwen2.5-32b": _qwen(5120, 27648, 64, 40, 8),
}


def model_shape(name: str) -> ModelShape:
    """Return the shape of a known base model.

    :raises ScenarioError: for an unknown name; lists the known ones.
    """
    if name in SHAPES:
        return SHAPES[name]
    raise ScenarioError(
        "unknown base model", key="adapters.base_model", got=name, allowed=", ".join(SHAPES),
        hint=did_you_mean(name, SHAPES) or "or give every adapter a size",
    )  # fmt: skip


def modules_of(targets: Targets) -> Sequence[str]:
    """Return the module names that ``targets`` stands for."""
    return MODULES if targets == "all-linear" else targets


def parameters_per_rank(shape: ModelShape, targets: Targets) -> int:
    """Return LoRA parameters per unit of rank: sum of (d_in + d_out) over target modules and layers."""
    return shape.layers * sum(sum(shape.module(name)) for name in modules_of(targets))


def tensor_count(shape: ModelShape, targets: Targets) -> int:
    """Return the tensors of one adapter file: an A and a B for every module of every layer."""
    return 2 * shape.layers * len(modules_of(targets))


@dataclass(frozen=True, slots=True)
class Population:
    """All adapters of a scenario, by adapter index.

    :ivar size_bytes: (n,) int64.
    :ivar rank: (n,) int64.
    :ivar tensors: (n,) int64, tensors in the adapter's file.
    :ivar kind: (n,) int64, index into ``kind_names``.
    :ivar slot_bytes: bytes of one padded slot: every supported module at the largest rank.
    """

    size_bytes: NDArray[np.int64]
    rank: NDArray[np.int64]
    tensors: NDArray[np.int64]
    kind: NDArray[np.int64]
    kind_names: tuple[str, ...]
    slot_bytes: int

    def __len__(self) -> int:
        return len(self.size_bytes)


def populate(adapters: Adapters, base_model: str, count: int) -> Population:
    """Lay out ``count`` adapters.

    Kinds of a mix are dealt by the golden-ratio sequence: every prefix of the adapters, and so every
    band of popularity, has the mix's shares as nearly as whole adapters allow, whatever the seed.
    """
    kinds = adapters.mix
    spread = (np.arange(count) * 0.6180339887498949) % 1.0
    edges = np.cumsum([kind.share for kind in kinds])[:-1] if kinds else np.empty(0)
    kind = np.searchsorted(edges, spread, side="right").astype(np.int64)
    specs = [(k.rank, k.targets, k.size) for k in kinds] or [(adapters.rank, adapters.targets, adapters.size)]
    width = DTYPE_BYTES[adapters.dtype]
    shape = SHAPES.get(base_model)
    if shape is None and any(size is None for _, _, size in specs):
        shape = model_shape(base_model)  # raises: without a shape there is no size
    sizes, tensors = [], []
    for rank, targets, size in specs:
        by_shape = rank * parameters_per_rank(shape, targets) * width if shape else 0
        sizes.append(size if size is not None else by_shape)
        tensors.append(tensor_count(shape, targets) if shape else 2)
    ranks = [rank for rank, _, _ in specs]
    padded = max(ranks) * parameters_per_rank(shape, "all-linear") * width if shape else max(sizes)
    return Population(
        size_bytes=np.asarray(sizes, dtype=np.int64)[kind],
        rank=np.asarray(ranks, dtype=np.int64)[kind],
        tensors=np.asarray(tensors, dtype=np.int64)[kind],
        kind=kind,
        kind_names=tuple(_kind_name(rank, targets, size) for rank, targets, size in specs),
        slot_bytes=max(padded, max(sizes)),
    )


def _kind_name(rank: int, targets: Targets, size: int | None) -> str:
    from sim.spec.units import human_bytes

    if size is not None:
        return f"{human_bytes(size)} (rank {rank})"
    return f"rank {rank}, {targets if isinstance(targets, str) else ','.join(targets)}"
