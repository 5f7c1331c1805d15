"""GPU memory of a replica from the shapes of its model and from what engines are known to allocate.

Nothing is fitted: not to a card, and not to a measured size of a KV cache. All numbers are sums over the GPUs of a
replica; what every GPU holds for itself counts once for each.
"""

from __future__ import annotations

from math import prod

from calibrate.kernels.cards import ALL, MIB
from calibrate.kernels.kernel_tables import ENGINES, EXPERTS_ALONE, Deployment
from sim.errors import InputError
from sim.policies.kv.kv_rules import kv_tokens_left
from sim.policies.replica_memory import unused_bytes
from sim.spec.profile import Memory
from sim.spec.units import human_bytes
from sim.traffic.adapters import ATTENTION, MODULES, GpuSplit

UTILIZATION = 0.9
STEP_TOKENS = 8192
"""Token budget of a step (``max_num_batched_tokens``), up to which costs are fitted."""
WEIGHT_BYTES = {
    "bf16": 2.0,
    "fp8": 1.0,
    "fp8-block": 1.0 + 4 / 128**2,
    "int8": 1.0,
    "int4": 0.5625,
    "nvfp4": 0.5625,
    "mxfp4": 0.53125,
}
"""Bytes of a weight of the linear layers, scales included: one of 4 bytes for a block of 128 × 128 (``fp8-block``), one
of 2 for 32 (``int4``), one of 1 for 16 (``nvfp4``). Embeddings, output head and norms stay in 2 bytes."""
DRIVER_BYTES = 438 * MIB
"""What CUDA reports less than nvidia-smi: 79.22 GiB of 81,559 MiB on an H100 (log in vllm-project/vllm, pull request
12126). An engine's share is one of the memory that CUDA reports."""
CONTEXT_BYTES = 551 * MIB
"""The CUDA context of a process with PyTorch (a comment in ``aiconfigurator-core``, ``systems/h100_sxm.yaml``)."""
LIBRARY_BYTES = 192 * MIB
"""Allocated outside PyTorch, beside the context: 0.16 GiB on an H100 (``non_torch_memory`` in the same log); and
PyTorch's workspace for cuBLAS on Hopper, 32 MiB (``aten/src/ATen/cuda/CublasHandlePool.cpp``)."""
SAMPLER_BYTES = 14
"""Bytes per sequence and word of the vocabulary while vLLM profiles itself, by which the KV cache is sized: logits in 2
and in 4 bytes, the same after top-k, and probabilities (``v1/sample``, with FlashInfer's kernels, which are vLLM's
default; PyTorch's sort takes 38). Logits are gathered on every GPU."""
_KV_BLOCK = 16
NCCL_BYTES = {1: 0, 2: 358_612_992, 4: 411_041_792, 8: 411_041_792, 16: 411_041_792}
"""Buffers for all-reduce on each GPU, by the number of GPUs (``aiconfigurator-core``, ``systems/h100_sxm.yaml``)."""
SOURCES = {
    "memory.total_bytes": "nvidia-smi on this card, less the 438 MiB that CUDA keeps on an H100, times the GPUs of a "
    "replica",
    "memory.utilization": "vLLM's default gpu_memory_utilization",
    "memory.weights_bytes": "computed from the model's shape and the format of its weights; on each GPU its part, and "
    "at least one KV head",
    "memory.overhead_bytes": "computed for each GPU from what engines are known to allocate: CUDA context 551 MiB, "
    "libraries 192 MiB, 14 bytes for every sequence and word of the vocabulary (or the widest layer of a step), block "
    "table, rotary table, NCCL's buffers, and what PyTorch's allocator leaves unused; nothing is fitted "
    "(docs/validation.md)",
    "memory.kv_bytes_per_token": "computed: 2 x layers x KV heads x head size x 2 bytes; KV heads of all GPUs, copies "
    "included",
    "memory.slot_layout": "vLLM 0.8's buffers, on each GPU as vLLM splits them",
}
_OTHER_ENGINES = {
    "memory.utilization": "assumed: vLLM's default; {engine} sizes its share of the memory by a rule of its own "
    "(docs/init.md)",
    "memory.slot_layout": "assumed: every adapter takes its exact size; the buffers of {engine} were not modelled",
}
"""What is true of the memory under other engines than vLLM."""


def sources_of(engine: str) -> dict[str, str]:
    """Return where the numbers of ``memory_of`` come from.

    :param engine: a key of ``ENGINES``.
    """
    if engine == "vllm":
        return SOURCES
    return SOURCES | {part: source.format(engine=ENGINES[engine]) for part, source in _OTHER_ENGINES.items()}


def memory_of(deployment: Deployment) -> Memory:
    """Return the memory of a replica.

    :raises InputError: where weights leave no room for the KV cache of one step.
    """
    card, gpus = deployment.card, deployment.tensor_parallel
    shape = deployment.model.shape
    memory = Memory(
        total_bytes=(card.memory_bytes - DRIVER_BYTES) * gpus,
        utilization=UTILIZATION,
        weights_bytes=_weights(deployment),
        overhead_bytes=gpus * _overhead_on_gpu(deployment),
        kv_bytes_per_token=2 * deployment.model.kv_layers * deployment.kv_heads * gpus * shape.head_dim * 2,
        slot_layout="vllm-0.8" if deployment.engine == "vllm" else "exact",
    )
    if kv_tokens_left(memory, 0) < STEP_TOKENS:
        raise InputError(
            f"{gpus} x {card.label} can't hold {deployment.model.name} in {deployment.weights}: weights take "
            f"{human_bytes(memory.weights_bytes)}, the engine {human_bytes(memory.overhead_bytes)}, and a KV cache of "
            f"{STEP_TOKENS:,} tokens must fit beside them",
            key="--tp",
            got=gpus,
            allowed=f"{human_bytes(int(memory.total_bytes * UTILIZATION))} of memory",
            hint=_smaller(deployment),
        )
    return memory


def _smaller(deployment: Deployment) -> str | None:
    shape, gpus = deployment.model.shape, deployment.tensor_parallel
    ways = ["a larger --tp"] if any(shape.fits(more) for more in NCCL_BYTES if more > gpus) else []
    largest = max(card.memory_bytes for card in ALL.values())
    ways += ["a larger --gpu"] if deployment.card.memory_bytes < largest else []
    may_be_fp8 = not shape.experts and "fp8" in (deployment.model.formats or ("fp8",))
    may_be_fp8 &= bool(deployment.card.system)  # by data sheet there are 16 bits alone
    ways += ["--weights fp8"] if deployment.weights == "bf16" and may_be_fp8 else []
    return ", or ".join(filter(None, (", ".join(ways[:-1]), *ways[-1:]))) or None


def _weights(deployment: Deployment) -> int:
    """Return the bytes of the base model over all GPUs; norms, embeddings and biases are counted once."""
    shape, gpus = deployment.model.shape, deployment.tensor_parallel
    _, rest = deployment.model.parameters()
    attention, mlp = (
        gpus * shape.layers * sum(prod(shape.module_on_gpu(name, gpus)) for name in names)
        for names in (ATTENTION, MODULES[len(ATTENTION) :])
    )
    mlp_width = WEIGHT_BYTES[deployment.weights]
    attention_width = 2.0 if deployment.weights in EXPERTS_ALONE else mlp_width
    router = 2 * shape.layers * shape.hidden * shape.experts
    return round(attention * attention_width + mlp * max(shape.experts, 1) * mlp_width) + router + 2 * rest


def _overhead_on_gpu(deployment: Deployment) -> int:
    """Return the bytes on each GPU that neither weights, slots nor KV cache take."""
    model, gpus, sequences = deployment.model, deployment.tensor_parallel, deployment.card.batch_sequences
    unused = unused_bytes(model.shape, GpuSplit(gpus)) if deployment.weights == "bf16" and not model.tied else 0
    shape, blocks = model.shape, -(-model.context // _KV_BLOCK)
    # A full step in its widest layer: gate and up, their product, the residual and its sum.
    wide = shape.intermediate * max(shape.active_experts, 1)
    widest = 2 * STEP_TOKENS * (3 * wide // gpus + 2 * shape.hidden)
    # Buffers that last: the block table, the rotary table, and the last hidden states.
    lasting = sequences * blocks * 4 + model.context * shape.head_dim * 2 + sequences * shape.hidden * 2
    return (
        CONTEXT_BYTES
        + LIBRARY_BYTES
        + max(SAMPLER_BYTES * sequences * model.shape.vocab, widest)
        + lasting
        + NCCL_BYTES[gpus]
        + unused
    )
