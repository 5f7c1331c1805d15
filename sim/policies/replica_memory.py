"""GPU memory of a replica: base weights in other number formats, and slots for adapters; and what is read of slots
with experts."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

from sim.errors import ScenarioError
from sim.spec.profile import Draw, Profile, StepCost
from sim.spec.scenario import Adapters, Scenario
from sim.traffic.adapters import ATTENTION, MODULES, ONE_GPU, GpuSplit, ModelShape, base_shape, split_of

# Base models with quantised weights: their size, and the cost of their steps.
#
# The linear layers of the decoder are quantised. Embeddings, output head, norms and biases keep the profile's format,
# as in bitsandbytes.

BITS = {"int8": 8 + 16 * 0.001, "nf4": 4 + 0.127}
"""Bits of a weight. ``int8``: 8, and 16 for the columns of outlier features, up to 0.1 % of all (Dettmers et al.,
LLM.int8(), arXiv 2208.07339). ``nf4``: 4, and .127 for the constants of its blocks of 64, quantised to 8 bits in blocks
of 256 (Dettmers et al., QLoRA, arXiv 2305.14314, section 3)."""
NF4_BITS_SINGLE = 4 + 32 / 64
"""Without double quantisation, each block of 64 has a constant of 32 bits (the same section)."""
ASSUMED_SLOWDOWN = {"int8": 2.0, "nf4": 1.33}
"""Factors on the base model's part of a step, for profiles without measurements. Source: reports on models of 7 to 13
billion parameters with bitsandbytes (docs/pools.md lists them and how far they disagree)."""
_WIDTHS = {"fp32": 4.0, "float32": 4.0, "fp8": 1.0, "fp8-block": 1.0, "int8": 1.0, "int4": 0.5, "nvfp4": 0.5}
"""Bytes of a linear layer's weight, by the number format of a profile; others take 2."""


@dataclass(frozen=True, slots=True)
class BaseWeights:
    """The format of the base model's weights.

    :ivar weights_bytes: size of the base model.
    :ivar step: step costs measured in this format; None: the profile's own step costs times ``slowdown``.
    :ivar slowdown: factor on the base model's part of a step.
    :ivar notes: assumptions, in sentences for the user.
    """

    weights_bytes: int
    step: StepCost | None = None
    slowdown: float = 1.0
    notes: tuple[str, ...] = ()

    def apply(self, profile: Profile) -> Profile:
        """Return a profile with these weights. Its draws stay unchanged (see ``drawn``); measured steps have none."""
        memory = profile.memory.model_copy(update={"weights_bytes": self.weights_bytes})
        draws = () if self.step is not None else profile.draws
        return profile.model_copy(update={"memory": memory, "step": self._step(profile.step), "draws": draws})

    def drawn(self, draw: Draw) -> Draw:
        """Return a draw of a profile's costs, adjusted to these weights."""
        return draw.model_copy(update={"step": self._step(draw.step)})

    def _step(self, step: StepCost) -> StepCost:
        if self.step is not None:
            return self.step
        if self.slowdown == 1.0:
            return step
        tokens = tuple((count, seconds * self.slowdown) for count, seconds in step.tokens)
        return step.model_copy(update={"fixed_s": step.fixed_s * self.slowdown, "tokens": tokens})


def base_weights(adapters: Adapters, profile: Profile) -> BaseWeights | None:
    """Return the format of a scenario's base model; None: the profile's own.

    :raises ScenarioError: if the size in this format is unknown, or both profile and scenario give its step costs.
    """
    name = adapters.base_quantization
    if name == "bf16":
        return None
    known = profile.quantized.get(name)
    size = None if known is None else known.weights_bytes
    if size is None:
        size = quantised_bytes(profile, name, double=adapters.base_double_quantization)
    step = None if known is None else known.step
    if step is not None and adapters.base_slowdown is not None:
        raise ScenarioError(
            f"the profile {profile.name} has steps with {name} weights",
            key="adapters.base_slowdown",
            got=adapters.base_slowdown,
            hint="remove it",
        )
    if step is not None:
        return BaseWeights(size, step)
    slowdown = ASSUMED_SLOWDOWN[name] if adapters.base_slowdown is None else adapters.base_slowdown
    whose = "assumed" if adapters.base_slowdown is None else "given by adapters.base_slowdown, not measured"
    note = (
        f"base weights in {name} take {size / 1e9:.3g} GB instead of {profile.memory.weights_bytes / 1e9:.3g} GB; the "
        f"profile has no steps with such weights: the base model's part of a step takes {slowdown:g} times as long "
        f"({whose})"
    )
    return BaseWeights(size, None, slowdown, (note,))


def quantised_bytes(profile: Profile, name: str, *, double: bool = True) -> int:
    """Return the bytes of a profile's model with its linear layers in another format.

    :raises ScenarioError: for a model of unknown shape, or weights smaller than its linear layers.
    """
    shape = base_shape(profile)
    bits = NF4_BITS_SINGLE if name == "nf4" and not double else BITS[name]
    linear, width = shape.layers * shape.linear_parameters(), _WIDTHS.get(profile.dtype, 2)
    rest = profile.memory.weights_bytes - round(linear * width)
    if rest < 0:
        raise ScenarioError(
            f"the profile's weights are smaller than the linear layers of {profile.model} in {profile.dtype}, so what "
            "another format would leave isn't known",
            key="adapters.base_quantization",
            got=name,
            allowed="bf16 (as in the profile)",
        )
    return rest + round(linear * bits / 8)


# GPU memory that vLLM's adapter slots reserve: its buffers, laid out as in PyTorch's caching allocator.
#
# vLLM 0.8.5 allocates one stacked buffer for all slots, per linear module and per A and B (``lora/layers.py``,
# ``create_lora_weights``), after the base weights. PyTorch hands out segments of 2 MiB for buffers up to 1 MiB, of 20
# MiB for those below 10 MiB and multiples of 2 MiB above, and the rest of a segment serves later, smaller buffers
# (``c10/cuda/CUDACachingAllocator.cpp``). Counting tensor by tensor matches the 65 measured KV cache sizes of
# ``vllm_h100/kv_capacity.csv`` within 0.2 %; the plain sum of bytes is off by up to 3.6 %.
#
# Over several GPUs (tensor parallelism) each has buffers of its own. Which side of an adapter is split says
# ``GpuSplit``; embedding and output head are LoRA modules of their own in Llama's class, and their buffers are whole on
# every GPU. A mixture of experts has its attention there, and its experts where adapters change them: as vLLM lays them
# out with ``--lora-target-modules``, which is in every command for such a model.

MIB = 1 << 20
_WIDTH = 2  # bytes of bf16 and fp16, in which weights and slots are kept
_EXTRA_VOCAB = 256  # lora_extra_vocab_size: rows that every slot may add to the embedding


class CachingAllocator:
    """The part of PyTorch's allocator that matters here: buffers are allocated and never freed.

    :ivar reserved: bytes taken from the device.
    """

    def __init__(self) -> None:
        self.reserved = 0
        self._left: dict[bool, list[tuple[int, int]]] = {True: [], False: []}  # by pool: (bytes, age), smallest first
        self._splits = 0

    def take(self, size: int) -> None:
        """Allocate a buffer."""
        size = -(-size // 512) * 512
        small = size <= MIB
        left = self._left[small]
        place = bisect_left(left, (size, -1))
        if place < len(left):
            block = left.pop(place)[0]
        else:
            block = _segment(size)
            self.reserved += block
        rest = block - size
        if rest >= 512 if small else rest > MIB:
            self._splits += 1
            insort(left, (rest, self._splits))


def _segment(size: int) -> int:
    """Return the bytes of the segment that PyTorch requests from the device for a buffer."""
    if size <= MIB:
        return 2 * MIB
    return 20 * MIB if size < 10 * MIB else _padded(size, 2 * MIB)


@lru_cache(maxsize=4096)
def reserved_bytes(shape: ModelShape, slots: int, max_rank: int, split: GpuSplit = ONE_GPU) -> int:
    """Return the bytes that base weights and ``slots`` slots reserve on each GPU; 0 slots: LoRA is off."""
    allocator = CachingAllocator()
    for tensor in _weights(shape, slots, split.gpus):
        allocator.take(tensor)
    for tensor in slot_buffers(shape, slots, max_rank, split):
        allocator.take(tensor)
    return allocator.reserved


def slots_bytes(shape: ModelShape, slots: int, max_rank: int, split: GpuSplit = ONE_GPU) -> int:
    """Return the bytes that ``slots`` slots reserve on each GPU, in addition to the base weights."""
    return reserved_bytes(shape, slots, max_rank, split) - reserved_bytes(shape, 0, max_rank, split)


def unused_bytes(shape: ModelShape, split: GpuSplit = ONE_GPU) -> int:
    """Return the bytes that segments for the base weights take on each GPU beyond the weights themselves."""
    return reserved_bytes(shape, 0, 8, split) - sum(_weights(shape, 0, split.gpus))


def _padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _weights(shape: ModelShape, slots: int, gpus: int) -> Iterator[int]:
    """Yield the bytes of the base model's tensors on one GPU in the order of their allocation."""
    parts = {name: shape.module_on_gpu(name, gpus) for name in MODULES}
    embeddings = shape.vocab + (_EXTRA_VOCAB * slots if shape.lora_embeddings else 0)
    yield _padded(embeddings, 64) // gpus * shape.hidden * _WIDTH
    outputs = sum(parts[name][1] for name in "qkv")
    for _ in range(shape.layers):
        yield outputs * shape.hidden * _WIDTH
        if shape.qkv_bias:
            yield outputs * _WIDTH
        yield parts["o"][0] * shape.hidden * _WIDTH
        yield 2 * parts["gate"][1] * shape.hidden * max(shape.experts, 1) * _WIDTH
        yield parts["down"][0] * shape.hidden * max(shape.experts, 1) * _WIDTH
        yield shape.hidden * _WIDTH
        yield shape.hidden * _WIDTH
    yield shape.hidden * _WIDTH
    head = shape.vocab + (_EXTRA_VOCAB if shape.lora_embeddings and slots else 0)
    yield _padded(head, 256 if shape.lora_embeddings and slots else 64) // gpus * shape.hidden * _WIDTH


def slot_buffers(shape: ModelShape, slots: int, max_rank: int, split: GpuSplit = ONE_GPU) -> Iterator[int]:
    """Yield the bytes of the stacked buffers of all slots on one GPU: every supported module, whatever is targeted, but
    experts only where they are."""
    if slots == 0:
        return
    per_row = _WIDTH * slots * max_rank
    vocab, hidden = shape.vocab + _EXTRA_VOCAB, shape.hidden
    extra_embeddings = _WIDTH * slots * _EXTRA_VOCAB * hidden
    if shape.lora_embeddings:
        yield from (extra_embeddings, per_row * vocab, per_row * hidden)
    groups: tuple[tuple[str, ...], ...] = (MODULES[:3], MODULES[3:4], MODULES[4:6], MODULES[6:])
    if shape.experts:
        groups = (*groups[:2], (split.experts,)) if split.experts else groups[:2]
    packed = [[split.buffers(shape, name) for name in group] for group in groups]
    for _ in range(shape.layers):
        for modules in packed:  # vLLM packs q, k, v, and gate, up: first all A matrices, then all B matrices
            yield from (int(per_row * each) for a, _ in modules for each in a)
            yield from (int(per_row * each) for _, b in modules for each in b)
    if shape.lora_embeddings:
        yield from (per_row * hidden, per_row * _padded(vocab, 256), extra_embeddings)


# What steps read of adapters on experts, beside what they read of adapters on attention alone.

_EXPERT_SPREAD = 2.0
"""By which factor the reads of experts may be off, one standard deviation on a log scale: an assumption."""


@dataclass(frozen=True, slots=True)
class ExpertReads:
    """What steps read of adapters on experts: an assumption from bytes, as no server with such adapters was measured.

    :ivar size: bytes of all experts in a slot, padding included, over those of its attention.
    :ivar passed: share of the experts that one token passes. Tokens choose evenly, with which they touch the most.
    """

    size: float
    passed: float

    def drawn(self, number: int, draws: int) -> ExpertReads:
        """Return the reads of one of several draws: those of equally likely factors."""
        return replace(self, size=self.size * _EXPERT_SPREAD ** NormalDist().inv_cdf((number + 0.5) / draws))

    def per_adapter(self, tokens: int, distinct: int) -> float:
        """Return how many times the bytes of its attention a distinct adapter's experts are, of those that are read."""
        untouched: float = (1.0 - self.passed) ** (tokens / distinct)
        return self.size * (1.0 - untouched)


def expert_reads(scenario: Scenario, profile: Profile) -> ExpertReads | None:
    """Return what steps read of adapters on experts; None: the scenario has none.

    :raises ScenarioError: if the profile has no cost of an adapter's bytes, from which it follows.
    """
    if not scenario.adapters.experts:
        return None
    lora = profile.step.lora
    if not (lora.per_adapter_max_rank_s or lora.per_adapter_rank_s):
        raise ScenarioError(
            f"the profile {profile.name} has no cost by an adapter's rank, from which that of experts could follow",
            key="adapters.targets",
            got=scenario.adapters.experts,
            hint="give per_adapter_max_rank_s in a profile of your own",
        )
    shape, split = base_shape(profile), split_of(scenario, profile)
    attention, experts = (split.numbers(shape, names) for names in (ATTENTION, (scenario.adapters.experts,)))
    return ExpertReads(float(experts / attention), shape.active_experts / shape.experts)
