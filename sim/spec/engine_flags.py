"""Command lines that configure real engines like a scenario.

vLLM: https://docs.vllm.ai/en/latest/cli/serve.html and features/lora.html. SGLang:
https://docs.sglang.ai/advanced_features/server_arguments.html and advanced_features/lora.html.
"""

from __future__ import annotations

from sim.spec.engines import ENGINES
from sim.spec.scenario import Scenario

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Allowed values of vLLM's ``--max-lora-rank`` (``vllm/config.py``, ``LoRAConfig``): slots are padded to one of
these."""
_SGLANG_EVICTIONS = ("lru", "fifo")
"""What SGLang takes for ``--lora-eviction-policy``."""
_PROJECTIONS = {name: f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}


def engine_flags(scenario: Scenario) -> dict[str, str]:
    """Return a command line by engine; none for engines whose flags are unknown.

    Each starts one replica. ``MODEL`` stands for the base model's path or name.
    """
    writers = {"vLLM": _vllm, "SGLang": _sglang}
    return {name: writers[name](scenario) for name in ENGINES[scenario.fleet.engine].flags}


def beyond_flags(scenario: Scenario) -> list[str]:
    """Return the parts of the scenario that these command lines can't express."""
    found = []
    fleet, engine, eviction = scenario.fleet, scenario.fleet.engine, scenario.cache.eviction
    if engine == "continuous" and eviction not in _SGLANG_EVICTIONS:
        found.append(f"eviction {eviction}: vLLM evicts by its own LRU, SGLang by lru or fifo")
    if scenario.cache.gpu.size is not None:
        found.append("a cache by size: both engines count slots")
    if scenario.fleet.replicas > 1:
        found.append(f"{scenario.fleet.replicas} replicas behind a router of policy {scenario.router.policy}")
    if fleet.full_models is not None:
        found.append("replicas of full models, each started like this with its own MODEL and without LoRA")
    if scenario.adapters.base_quantization != "bf16":
        found.append(f"base weights in {scenario.adapters.base_quantization}: start from a checkpoint in this format")
    return found


def vllm_rank(rank: int) -> int:
    """Return the rank to which vLLM pads slots for this largest rank; above vLLM's limit, the rank itself."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), rank)


def _ranks(scenario: Scenario) -> int:
    adapters = scenario.adapters
    return max([kind.rank for kind in adapters.mix if kind.kind == "lora"] or [adapters.rank])


def _vllm(scenario: Scenario) -> str:
    fleet, gpu, host = scenario.fleet, scenario.cache.gpu, scenario.cache.host
    rank = min(vllm_rank(_ranks(scenario)), VLLM_RANKS[-1])
    parts = ["vllm serve MODEL --enable-lora"]
    if gpu.slots is not None:
        parts.append(f"--max-loras {gpu.slots}")
    parts.append(f"--max-lora-rank {rank}")
    if host is not None and host.slots is not None:
        parts.append(f"--max-cpu-loras {host.slots}")
    parts += [f"--max-num-seqs {fleet.max_num_seqs}", f"--max-num-batched-tokens {fleet.max_num_batched_tokens}"]
    if fleet.max_model_len is not None:
        parts.append(f"--max-model-len {fleet.max_model_len}")
    if fleet.gpu_memory_utilization is not None:
        parts.append(f"--gpu-memory-utilization {fleet.gpu_memory_utilization:g}")
    return " ".join(parts)


def _sglang(scenario: Scenario) -> str:
    fleet, gpu, host = scenario.fleet, scenario.cache.gpu, scenario.cache.host
    targets = {
        module
        for targets in [kind.targets for kind in scenario.adapters.mix if kind.kind == "lora"]
        or [scenario.adapters.targets]
        for module in _modules(targets)
    }
    named = [name for short, name in _PROJECTIONS.items() if short in targets]
    parts = ["python -m sglang.launch_server --model-path MODEL --enable-lora"]
    if gpu.slots is not None:
        parts.append(f"--max-loras-per-batch {gpu.slots}")
    parts += [f"--max-lora-rank {_ranks(scenario)}", f"--lora-target-modules {' '.join(named)}"]
    if host is not None and host.slots is not None:
        parts.append(f"--max-loaded-loras {host.slots}")
    if scenario.cache.eviction in _SGLANG_EVICTIONS:
        parts.append(f"--lora-eviction-policy {scenario.cache.eviction}")
    parts += [f"--max-running-requests {fleet.max_num_seqs}", f"--chunked-prefill-size {fleet.max_num_batched_tokens}"]
    if fleet.max_model_len is not None:
        parts.append(f"--context-length {fleet.max_model_len}")
    return " ".join(parts)


def _modules(targets: object) -> tuple[str, ...]:
    return tuple(_PROJECTIONS) if isinstance(targets, str) else tuple(targets)  # type: ignore[arg-type]
