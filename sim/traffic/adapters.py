"""Sizes of adapters: model shapes, LoRA parameters, and the population of a scenario."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

import numpy as np
from numpy.typing import NDArray

from sim.errors import ScenarioError, did_you_mean
from sim.spec.profile import Profile
from sim.spec.scenario import Adapters, Scenario, Targets
from sim.spec.sections.workload import EXPERTS, SHARED_OUTER, AdapterKind
from sim.spec.units import human_bytes

DTYPE_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4, "fp8": 1}
GOLDEN = 0.6180339887498949
"""Fractional part of the golden ratio; its multiples assign the kinds of a mix to adapters."""
ATTENTION = ("q", "k", "v", "o")
MODULES = (*ATTENTION, "gate", "up", "down")
TARGETS = (*MODULES, *EXPERTS)
"""All that adapters may change, in the order of a layer."""
ROW_PARALLEL = frozenset({"o", "down"})
"""Modules that tensor parallelism splits along their input; the others are split along their output."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The linear layers of a decoder, from the model's published ``config.json``.

    :ivar intermediate: of the MLP, or of each expert.
    :ivar experts: MLPs of each layer, of which a token passes ``active_experts``; 0: one MLP for all tokens.
    :ivar fused_experts: whether gate and up of all experts are one tensor, so that adapters have one A for both (models
        with ``is_3d_moe_weight`` in vLLM, such as gpt-oss).
    :ivar lora_embeddings: whether vLLM 0.8 allocates LoRA buffers for embedding and output head (its Llama class
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
    experts: int = 0
    active_experts: int = 0
    fused_experts: bool = False

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
        """Return the parameters of one layer's linear modules, of all experts and their router, without biases."""
        attention, mlp = (
            sum(d_in * d_out for d_in, d_out in map(self.module, names)) for names in (ATTENTION, MODULES[4:])
        )
        return attention + mlp * max(self.experts, 1) + self.hidden * self.experts

    def adapted(self, targets: Targets) -> Sequence[str]:
        """Return the modules that adapters with such targets change; ``all-linear`` leaves experts out.

        :raises ScenarioError: where the targets are experts and the model has none, or the other way round.
        """
        known = (*ATTENTION, *EXPERTS) if self.experts else MODULES
        names = (ATTENTION if self.experts else MODULES) if targets == "all-linear" else targets
        if any(name not in known for name in names):
            raise ScenarioError(
                "gate, up and down of a mixture of experts are its experts"
                if self.experts
                else "the base model has no experts",
                key="adapters.targets",
                got=", ".join(names),
                allowed=", ".join(known) + (", or all-linear for all but the experts" if self.experts else ""),
            )
        return names

    def module_on_gpu(self, name: str, gpus: int) -> tuple[int, int]:
        """Return (d_in, d_out) of the part of one linear layer that each of several GPUs holds.

        Every GPU has at least one KV head: GPUs beyond the model's KV heads hold copies.
        """
        d_in, d_out = self.module(name)
        if name in ROW_PARALLEL:
            return d_in // gpus, d_out
        return d_in, max(self.kv_heads // gpus, 1) * self.head_dim if name in ("k", "v") else d_out // gpus

    def fits(self, gpus: int) -> bool:
        """Return whether tensor parallelism can split it over so many GPUs: whole heads, and even parts."""
        whole = self.kv_heads % gpus == 0 or gpus % self.kv_heads == 0
        return whole and self.heads % gpus == 0 and self.intermediate % gpus == 0


@dataclass(frozen=True, slots=True)
class GpuSplit:
    """How a replica is spread over GPUs (tensor parallelism).

    :ivar fully_sharded: whether both sides of every adapter are split, as by vLLM's ``--fully-sharded-loras``. If not,
        every GPU holds the side whole that the split of its module leaves whole: A of q, k, v, gate and up, B of o and
        down.
    :ivar experts: the experts' target that slots hold beside the attention; empty: none.
    :ivar expert_parallel: whether each GPU has whole experts, 1/n of them, in place of 1/n of every expert.
    :ivar marlin: whether vLLM pads experts for Marlin's kernels, the only ones for weights in MXFP4 that take adapters:
        hidden sizes to multiples of 256, intermediate ones to 128 (``mxfp4_round_up_hidden_size_and_...``).
    """

    gpus: int = 1
    fully_sharded: bool = False
    experts: str = ""
    expert_parallel: bool = False
    marlin: bool = False

    def buffers(self, shape: ModelShape, name: str) -> tuple[tuple[Fraction, ...], tuple[Fraction, ...]]:
        """Return the numbers per unit of rank in every buffer of A and of B of one layer's module, on each GPU.

        As in vLLM 0.8 to 0.32 (``vllm/lora/layers``: ``create_lora_weights``), whose experts have two buffers for gate
        and up, or one where they are fused.
        """
        if name not in EXPERTS:
            d_in, d_out = shape.module_on_gpu(name, self.gpus)
            more = self.gpus if self.fully_sharded else 1
            row = name in ROW_PARALLEL
            return (Fraction(d_in, 1 if row else more),), (Fraction(d_out, more if row else 1),)
        hidden, intermediate, count = shape.hidden, Fraction(shape.intermediate, self.gpus), shape.experts
        if self.expert_parallel:
            intermediate, count = Fraction(shape.intermediate), ceil(count / self.gpus)
        if self.marlin:
            hidden, intermediate = 256 * ceil(hidden / 256), Fraction(128 * ceil(intermediate / 128))
        shared = name == SHARED_OUTER
        outer = Fraction(hidden * (1 if shared else count), self.gpus if self.fully_sharded else 1)
        inner = count * intermediate
        first = 1 if shape.fused_experts and not shared else 2
        return (*(outer,) * first, inner), (*(2 * inner / first,) * first, outer)

    def numbers(self, shape: ModelShape, names: Sequence[str]) -> Fraction:
        """Return the numbers per unit of rank of one layer's modules, A and B, on each GPU."""
        return sum((number for name in names for side in self.buffers(shape, name) for number in side), Fraction())

    def share(self, shape: ModelShape) -> float:
        """Return the part of an adapter on all modules of a slot that each GPU holds, without padding: 1 on one GPU,
        more than 1/n on n that copy sides."""
        names = shape.adapted(held_modules(self.experts))
        return float(replace(self, marlin=False).numbers(shape, names) / ONE_GPU.numbers(shape, names))


ONE_GPU = GpuSplit()


def held_modules(experts: str) -> Targets:
    """Return the modules of a slot: all linear ones, with the experts if any adapter changes them this way."""
    return (*ATTENTION, experts) if experts else "all-linear"  # type: ignore[return-value]


def split_of(scenario: Scenario, profile: Profile) -> GpuSplit:
    """Return how a replica, its slots and their experts are spread over GPUs."""
    fleet = scenario.fleet
    experts, marlin = scenario.adapters.experts, profile.dtype == "mxfp4"
    return GpuSplit(profile.tensor_parallel, fleet.fully_sharded_loras, experts, fleet.expert_parallel, marlin)


def _llama(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int) -> ModelShape:
    return ModelShape(hidden, intermediate, layers, heads, kv_heads, vocab=vocab, lora_embeddings=True)


def _qwen(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> ModelShape:
    return ModelShape(hidden, intermediate, layers, heads, kv_heads, vocab=152064, qkv_bias=True)


SHAPES = {
    "codellama-34b": _llama(8192, 22016, 48, 64, 8, 32000),
    "gpt-oss-120b": replace(
        ModelShape(2880, 2880, 36, 64, 8, 64, vocab=201088, qkv_bias=True),
        experts=128,
        active_experts=4,
        fused_experts=True,
    ),
    "llama-2-7b": _llama(4096, 11008, 32, 32, 32, 32000),
    "llama-2-13b": _llama(5120, 13824, 40, 40, 40, 32000),
    "llama-2-70b": _llama(8192, 28672, 80, 64, 8, 32000),
    "llama-3-70b": _llama(8192, 28672, 80, 64, 8, 128256),
    "llama-3.1-70b": _llama(8192, 28672, 80, 64, 8, 128256),
    "llama-3-8b": _llama(4096, 14336, 32, 32, 8, 128256),
    "llama-3.1-8b": _llama(4096, 14336, 32, 32, 8, 128256),
    "mistral-7b": _llama(4096, 14336, 32, 32, 8, 32000),
    "tiny": ModelShape(256, 512, 4, 4, 2, 64, vocab=1024),  # no real model: for tests of calibration
    "qwen2.5-0.5b": replace(_qwen(896, 4864, 24, 14, 2), head_dim=64, vocab=151936),
    "qwen2.5-7b": _qwen(3584, 18944, 28, 28, 4),
    "qwen2.5-14b": _qwen(5120, 13824, 48, 40, 8),
    "qwen2.5-32b": _qwen(5120, 27648, 64, 40, 8),
    "qwen3-8b": ModelShape(4096, 12288, 36, 32, 8, vocab=151936),
    "qwen3-14b": ModelShape(5120, 17408, 40, 40, 8, vocab=151936),
    "qwen3-32b": ModelShape(5120, 25600, 64, 64, 8, vocab=151936),
}
CONTEXTS = {
    "gpt-oss-120b": 131072,
    **dict.fromkeys(("llama-2-7b", "llama-2-13b", "llama-2-70b"), 4096),
    **dict.fromkeys(("llama-3-8b", "llama-3-70b"), 8192),
    **dict.fromkeys(("llama-3.1-8b", "llama-3.1-70b"), 131072),
    "mistral-7b": 32768,
    **dict.fromkeys(("qwen2.5-0.5b", "qwen2.5-7b", "qwen2.5-14b", "qwen2.5-32b"), 32768),
    **dict.fromkeys(("qwen3-8b", "qwen3-32b"), 40960),
}
"""Tokens of the longest sequence, ``max_position_embeddings`` of each ``config.json``; Qwen2.5: of Instruct."""
DENSE = {name: shape for name, shape in SHAPES.items() if not shape.experts}
"""The models without experts: those whose adapters and steps we know to the layer."""


def model_shape(name: str) -> ModelShape:
    """Return the shape of a known base model.

    :raises ScenarioError: for an unknown name; lists the known ones.
    """
    if name in SHAPES:
        return SHAPES[name]
    raise ScenarioError(
        "unknown base model",
        key="adapters.base_model",
        got=name,
        allowed=", ".join(SHAPES),
        hint=did_you_mean(name, SHAPES) or "or give every adapter a size",
    )


def base_shape(profile: Profile) -> ModelShape:
    """Return the shape of a profile's base model: its own, else that of the known model of its name.

    :raises ScenarioError: where there is neither.
    """
    return model_shape(profile.model) if profile.shape is None else ModelShape(**profile.shape.model_dump())


def modules_of(targets: Targets) -> Sequence[str]:
    """Return the module names of ``targets``."""
    return MODULES if targets == "all-linear" else targets


def parameters_per_rank(shape: ModelShape, targets: Targets) -> int:
    """Return LoRA parameters per unit of rank: sum of (d_in + d_out) over target modules and layers."""
    return shape.layers * int(ONE_GPU.numbers(shape, shape.adapted(targets)))


def tensor_count(shape: ModelShape, targets: Targets) -> int:
    """Return the tensors of one adapter file: an A and a B for every module of every layer.

    Fused experts are two modules, stacked; shared outer ones are stacked too, and are three (``vllm/lora/utils.py``).
    """
    of_experts = {"experts": 2 if shape.fused_experts else 3 * shape.experts, SHARED_OUTER: 3}
    return 2 * shape.layers * sum(of_experts.get(name, 1) for name in shape.adapted(targets))


def model_tensors(shape: ModelShape) -> int:
    """Return the tensors of a whole model's files: weights, biases and two norms per layer, embeddings, final norm and
    output head."""
    return shape.layers * (len(MODULES) + 2 + 3 * shape.qkv_bias) + 3


@dataclass(frozen=True, slots=True)
class Population:
    """All adapters of a scenario, by adapter index; full models are among them, with a rank of 0.

    :ivar size_bytes: (n,) int64.
    :ivar rank: (n,) int64.
    :ivar tensors: (n,) int64, tensors in the adapter's file.
    :ivar kind: (n,) int64, index into ``kind_names``.
    :ivar slot_bytes: bytes of one padded slot: every supported module at the largest rank.
    :ivar full_kinds: the kinds that are full models.
    :ivar asked_rank: the rank that slots are made for, at least.
    """

    size_bytes: NDArray[np.int64]
    rank: NDArray[np.int64]
    tensors: NDArray[np.int64]
    kind: NDArray[np.int64]
    kind_names: tuple[str, ...]
    slot_bytes: int
    full_kinds: tuple[int, ...] = ()
    asked_rank: int = 0

    def __len__(self) -> int:
        return len(self.size_bytes)

    @property
    def slot_rank(self) -> int:
        """The rank that slots are made for."""
        return max(int(self.rank.max()), self.asked_rank)

    @property
    def full(self) -> NDArray[np.bool_]:
        """Which are full models, (n,)."""
        return np.isin(self.kind, self.full_kinds)

    @property
    def adapter_bytes(self) -> NDArray[np.int64]:
        """Bytes of each adapter, full models left out, (m,)."""
        return self.size_bytes[~self.full]

    def without_full(self) -> Population:
        """Return the population for replicas of the base model, where full models take no memory."""
        if not self.full_kinds:
            return self
        full = self.full
        return replace(self, size_bytes=np.where(full, 0, self.size_bytes), tensors=np.where(full, 0, self.tensors))

    def alone(self, there: NDArray[np.bool_], slot_bytes: int) -> Population:
        """Return the population for replicas that serve some adapters alone; the others take no memory there.

        :param slot_bytes: of a slot that is padded to the largest of these.
        """
        size, rank, tensors = (np.where(there, each, 0) for each in (self.size_bytes, self.rank, self.tensors))
        return replace(self, size_bytes=size, rank=rank, tensors=tensors, slot_bytes=slot_bytes)


def populate(
    adapters: Adapters, base_model: str | ModelShape, count: int, weights_bytes: int = 0, *, in_turn: bool = False
) -> Population:
    """Return the population of ``count`` adapters.

    The golden-ratio sequence assigns the kinds of a mix: every prefix of the adapters, and so every band of popularity,
    has the mix's shares as closely as whole adapters allow, for any seed.

    :param base_model: its name, or its shape where that is not the shape of a known model.
    :param weights_bytes: bytes of a full model without a size of its own.
    :param in_turn: kinds with equal shares take turns instead.
    """
    kinds = adapters.of_adapters
    spread = (np.arange(count) * GOLDEN) % 1.0
    shares = np.array([kind.share for kind in kinds])
    if adapters.base_share > 0:  # the others are shares of what it leaves
        shares /= shares.sum()
    edges = np.cumsum(shares)[:-1]
    kind = np.searchsorted(edges, spread, side="right").astype(np.int64)
    if in_turn and len(set(shares.tolist())) == 1:
        kind = np.arange(count) % len(kinds)
    # Checked already, and sizes are parsed.
    alone = AdapterKind.model_construct(share=1.0, rank=adapters.rank, targets=adapters.targets, size=adapters.size)
    specs = kinds or (alone,)
    width = DTYPE_BYTES[adapters.dtype]
    shape = SHAPES.get(base_model) if isinstance(base_model, str) else base_model
    if shape is None and any(spec.kind == "lora" and spec.size is None for spec in specs):
        shape = model_shape(str(base_model))  # raises: without a shape there is no size
    sizes, tensors = zip(*(_size_and_tensors(spec, shape, width, weights_bytes) for spec in specs), strict=True)
    ranks = [0 if spec.kind == "full" else spec.rank for spec in specs]
    largest = max((size for spec, size in zip(specs, sizes, strict=True) if spec.kind == "lora"), default=0)
    slot_rank = max(*ranks, adapters.max_rank or 0)
    padded = slot_rank * parameters_per_rank(shape, held_modules(adapters.experts)) * width if shape else largest
    return Population(
        size_bytes=np.asarray(sizes, dtype=np.int64)[kind],
        rank=np.asarray(ranks, dtype=np.int64)[kind],
        tensors=np.asarray(tensors, dtype=np.int64)[kind],
        kind=kind,
        kind_names=tuple(_kind_name(spec, size) for spec, size in zip(specs, sizes, strict=True)),
        slot_bytes=max(padded, largest),
        full_kinds=tuple(number for number, spec in enumerate(specs) if spec.kind == "full"),
        asked_rank=adapters.max_rank or 0,
    )


def with_sizes(population: Population, given: NDArray[np.int64], kinds: Sequence[AdapterKind]) -> Population:
    """Return a population with the sizes that a trace gives for the first adapters.

    :raises ScenarioError: if some of them are full models.
    """
    if population.full_kinds:
        raise ScenarioError(
            "the trace has adapter sizes, but doesn't tell which adapters are full models",
            key=f"adapters.mix.{next(i for i, kind in enumerate(kinds) if kind.kind == 'full')}.kind",
            got="full",
            allowed="lora",
            hint="remove the trace's column adapter_bytes, or the full models",
        )
    sizes = population.size_bytes.copy()
    sizes[: len(given)] = given
    return replace(
        population,
        size_bytes=sizes,
        kind=np.zeros_like(population.kind),
        kind_names=("sizes from the trace",),
        slot_bytes=max(population.slot_bytes, int(sizes.max())),
    )


def _size_and_tensors(spec: AdapterKind, shape: ModelShape | None, width: int, weights_bytes: int) -> tuple[int, int]:
    if spec.kind == "full":
        return spec.size or weights_bytes, model_tensors(shape) if shape else 1
    by_shape = spec.rank * parameters_per_rank(shape, spec.targets) * width if shape else 0
    return spec.size if spec.size is not None else by_shape, tensor_count(shape, spec.targets) if shape else 2


def _kind_name(spec: AdapterKind, size: int) -> str:
    if spec.kind == "full":
        return f"full models, {human_bytes(size)}"
    if spec.size is not None:
        return f"{human_bytes(spec.size)} (rank {spec.rank})"
    return f"rank {spec.rank}, {spec.targets if isinstance(spec.targets, str) else ','.join(spec.targets)}"
