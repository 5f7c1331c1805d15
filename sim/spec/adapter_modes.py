"""Ways of serving adapters: which one a scenario asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.spec.scenario import Scenario

AT_ARRIVAL = "loads-at-arrival"
AT_ADMISSION = "loads-at-admission"
PREFETCHING = "prefetching"
IN_STEPS = "loads-in-steps"
VLLM_LRU = "vllm-lru"
UNIFIED = "unified"
PER_ADAPTER = "per-adapter"


def mode_of(scenario: Scenario) -> str:
    """Return the name of the mode in which a scenario's replicas serve adapters."""
    if scenario.cache.eviction == "vllm-lru":
        return VLLM_LRU
    if scenario.cache.gpu.unified:
        return UNIFIED
    if scenario.fleet.admission == "per-adapter":
        return PER_ADAPTER
    if scenario.storage.mode == "blocking":
        return IN_STEPS
    if scenario.load_at == "arrival":
        return AT_ARRIVAL
    return PREFETCHING if scenario.cache.prefetch == "queued" else AT_ADMISSION
