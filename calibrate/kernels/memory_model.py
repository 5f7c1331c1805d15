"""GPU memory of a replica from the shapes of its model: nothing is fitted to a card.

All numbers are sums over the GPUs of a replica. The slots of a tensor-parallel replica are counted as if each GPU held
its share of them alone (vLLM's ``--fully-sharded-loras``); without that, vLLM keeps one side of every adapter whole on
every GPU.
"""

from __future__ import annotations

from calibrate.kernels.kernel_tables import Deployment
from sim.errors import InputError
from sim.policies.kv.kv_memory import kv_tokens_left
from sim.spec.profile import Memory
from sim.spec.units import human_bytes

UTILIZATION = 0.9
STEP_TOKENS = 8192
"""Token budget of a step (``max_num_batched_tokens``), up to which costs are fitted."""
WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp8-block": 1.0 + 4 / 128**2, "int8": 1.0, "int4": 0.5625, "nvfp4": 0.5625}
"""Bytes of a weight of the linear layers, scales included: one of 4 bytes for a block of 128 × 128 (``fp8-block``), one
of 2 for 32 (``int4``), one of 1 for 16 (``nvfp4``). Embeddings, output head and norms stay in 2 bytes."""
CONTEXT_BYTES = 2_100_000_000
"""The CUDA context, the engine's graphs and the activations of a step."""
SAMPLER_BYTES = 25
"""Bytes per sequence and word of the vocabulary while the engine profiles itself: logits in 2 and 4 bytes, sorted with
8 bytes of index, their softmax, and sums."""
NCCL_BYTES = {1: 0, 2: 358_612_992, 4: 411_041_792, 8: 411_041_792, 16: 411_041_792}
"""Buffers for all-reduce on each GPU, by the number of GPUs (``aiconfigurator-core``, ``systems/h100_sxm.yaml``)."""
SOURCES = {
    "memory.total_bytes": "nvidia-smi on this card, times the GPUs of a replica",
    "memory.utilization": "vLLM's default gpu_memory_utilization",
    "memory.weights_bytes": "computed from the model's shape and the format of its weights",
    "memory.overhead_bytes": "2.1 GB a GPU, 25 bytes for every sequence and word of the vocabulary, and NCCL's "
    "buffers; agrees with the two models measured on the H100-64GB within 5 %",
    "memory.kv_bytes_per_token": "computed: 2 x layers x KV heads x head size x 2 bytes",
    "memory.slot_layout": "vLLM 0.8's buffers; over several GPUs as with --fully-sharded-loras",
}


def memory_of(deployment: Deployment) -> Memory:
    """Return the memory of a replica.

    :raises InputError: where weights leave no room for the KV cache of one step.
    """
    card, gpus = deployment.card, deployment.tensor_parallel
    shape = deployment.model.shape
    linear, rest = deployment.model.parameters()
    sampler = SAMPLER_BYTES * card.batch_sequences * shape.vocab
    memory = Memory(
        total_bytes=card.memory_bytes * gpus,
        utilization=UTILIZATION,
        weights_bytes=round(linear * WEIGHT_BYTES[deployment.weights]) + 2 * rest,
        overhead_bytes=gpus * (CONTEXT_BYTES + sampler + NCCL_BYTES[gpus]),
        kv_bytes_per_token=2 * shape.layers * deployment.kv_heads * gpus * shape.head_dim * 2,
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
            hint="a larger --tp, a larger --gpu, or --weights fp8",
        )
    return memory
