"""KV memory of a replica: what weights and slots leave of the GPU."""

from __future__ import annotations

from sim.spec.profile import Memory


def kv_tokens_left(memory: Memory, adapter_bytes: int, utilization: float | None = None) -> int:
    """Return the KV cache in tokens: ``total x utilization - weights - adapters - overhead``; may be negative.

    :param adapter_bytes: bytes set aside for adapters: slots times padded slot size, or the cache's size.
    """
    usable = memory.total_bytes * (memory.utilization if utilization is None else utilization)
    left = usable - memory.weights_bytes - memory.overhead_bytes - adapter_bytes
    return int(left // memory.kv_bytes_per_token)
