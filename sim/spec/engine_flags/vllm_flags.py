"""The options of vLLM 0.32: https://docs.vllm.ai/en/latest/cli/serve.html and features/lora.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sim.spec.engine_flags.flag import (
    BY_PROFILE,
    COUNTED,
    EACH_ITS_OWN,
    EVERY_SCENARIO,
    KV_FORMAT,
    NO_SPECULATION,
    NO_SPLIT,
    NOT_SPLIT,
    OF_PROFILE,
    QUANTIZED,
    TOKENS,
    EngineFlags,
    Flag,
    Given,
    Replica,
    always,
    chosen,
    counted,
    largest_rank,
    means_nothing,
    modules,
    profile,
    tensor_parallel,
    value_at,
    where,
    whole_number,
)
from sim.spec.engines import preset_value
from sim.spec.needs import value_of
from sim.spec.registry import Registry

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Allowed values of vLLM's ``--max-lora-rank`` (``vllm/config.py``, ``LoRAConfig``): slots are padded to one of
these."""


def vllm_rank(rank: int) -> int:
    """Return the rank to which vLLM pads slots for this largest rank; above vLLM's limit, the rank itself."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), rank)


def _padded_rank(replica: Replica) -> int:
    return min(vllm_rank(largest_rank(replica)), VLLM_RANKS[-1])


def _memory_share(replica: Replica) -> str | None:
    """Return the share that the KV cache follows from; None where the scenario gives its size."""
    fleet = replica.scenario.fleet
    if fleet.kv_tokens is not None:
        return None
    share = fleet.gpu_memory_utilization
    return f"{profile(replica).memory.utilization if share is None else share:g}"


def _kv_blocks(replica: Replica) -> int | None:
    fleet = replica.scenario.fleet
    return None if fleet.kv_tokens is None else fleet.kv_tokens // fleet.block_size


def _tokens_of_blocks(words: Sequence[str], given: Given) -> Mapping[str, object]:
    blocks, size = whole_number(words), whole_number(given.get("block-size", ()))
    return {"fleet.kv_tokens": blocks * (size or 16)} if blocks else {}


def _host_slots(replica: Replica) -> int | None:
    """Return how many adapters vLLM keeps in host memory: unset, as many as on the GPU."""
    return value_of(replica.scenario, "cache.host.slots") or replica.scenario.cache.gpu.slots


def _scheduling(replica: Replica) -> str | None:
    """Return the policy where it is not vLLM's default."""
    policy = replica.scenario.fleet.scheduling
    return None if policy == "fcfs" else policy


def _async_scheduling(replica: Replica) -> bool | None:
    """Return whether steps are scheduled ahead, where that is not the version's default."""
    fleet = replica.scenario.fleet
    default = bool(preset_value(fleet.engine, "fleet.async_scheduling"))
    return None if fleet.async_scheduling == default else fleet.async_scheduling


def _prefill_interval(replica: Replica) -> int | None:
    """Return the interval where it is not vLLM's default."""
    interval = replica.scenario.fleet.prefill_schedule_interval
    return None if interval == 1 else interval


VLLM = EngineFlags(
    "vLLM",
    command="vllm serve MODEL",
    flags=Registry(
        "option of vLLM",
        (
            Flag("--enable-lora", EVERY_SCENARIO, written=always),
            Flag("--max-loras", sets=("cache.gpu.slots",), written=value_at("cache.gpu.slots"), unset=1),
            Flag(
                "--max-lora-rank",
                "the largest rank of all adapters; vLLM pads slots to it",
                sets=("adapters.rank",),
                written=_padded_rank,
            ),
            Flag(
                "--max-cpu-loras",
                "unset, vLLM keeps as many as --max-loras",
                sets=("cache.host.slots",),
                written=_host_slots,
            ),
            Flag("--max-num-seqs", sets=("fleet.max_num_seqs",), written=value_at("fleet.max_num_seqs")),
            Flag(
                "--max-num-batched-tokens",
                sets=("fleet.max_num_batched_tokens",),
                written=value_at("fleet.max_num_batched_tokens"),
            ),
            Flag("--max-model-len", sets=("fleet.max_model_len",), written=value_at("fleet.max_model_len")),
            Flag(
                "--gpu-memory-utilization",
                sets=("fleet.gpu_memory_utilization",),
                written=_memory_share,
            ),
            Flag(
                "--model",
                OF_PROFILE,
                sets=("fleet.profile", "adapters.base_model"),
                also=("model_tag",),
                reads=means_nothing,
            ),
            Flag("--lora-modules", COUNTED, sets=("adapters.count",), reads=counted),
            Flag(
                "--lora-dtype",
                sets=("adapters.dtype",),
                reads=chosen("adapters.dtype", float16="fp16", half="fp16", bfloat16="bf16", float32="fp32"),
            ),
            Flag(
                "--lora-target-modules",
                "the modules that adapters have; vLLM leaves out those that it is not given",
                sets=("adapters.targets",),
                reads=modules,
            ),
            Flag(
                "--fully-sharded-loras",
                "both sides of every adapter split over the GPUs of a replica",
                sets=("fleet.fully_sharded_loras",),
                written=where("fleet.fully_sharded_loras", True),
            ),
            Flag(
                "--tensor-parallel-size",
                BY_PROFILE,
                sets=("fleet.tensor_parallel",),
                also=("-tp",),
                written=tensor_parallel,
            ),
            Flag("--pipeline-parallel-size", NOT_SPLIT, also=("-pp",)),
            Flag("--enable-expert-parallel", NOT_SPLIT, also=("-ep",)),
            Flag("--data-parallel-size", EACH_ITS_OWN, sets=("fleet.replicas",), also=("-dp",)),
            Flag("--block-size", sets=("fleet.block_size",), written=value_at("fleet.block_size")),
            Flag(
                "--num-gpu-blocks-override",
                "blocks × fleet.block_size",
                sets=("fleet.kv_tokens",),
                written=_kv_blocks,
                reads=_tokens_of_blocks,
            ),
            Flag("--kv-cache-memory-bytes", TOKENS, sets=("fleet.kv_tokens",), reads=means_nothing),
            Flag("--kv-cache-dtype", KV_FORMAT),
            Flag("--dtype", OF_PROFILE, sets=("fleet.profile",), reads=means_nothing),
            Flag(
                "--quantization",
                QUANTIZED,
                sets=("adapters.base_quantization",),
                also=("-q",),
                reads=chosen("adapters.base_quantization", bitsandbytes="nf4"),
            ),
            Flag(
                "--enable-chunked-prefill",
                sets=("fleet.chunked_prefill",),
                also=("--no-enable-chunked-prefill",),
            ),
            Flag(
                "--enable-prefix-caching",
                sets=("fleet.prefix_caching",),
                also=("--no-enable-prefix-caching",),
                written=value_at("fleet.prefix_caching"),
            ),
            Flag(
                "--async-scheduling",
                "unset, vLLM schedules ahead on GPUs from 0.14 on",
                sets=("fleet.async_scheduling",),
                also=("--no-async-scheduling",),
                written=_async_scheduling,
            ),
            Flag(
                "--scheduling-policy",
                "each request carries the priority of its tenant; from 0.9.2 on",
                sets=("fleet.scheduling",),
                written=_scheduling,
                reads=chosen("fleet.scheduling", fcfs="fcfs", priority="priority"),
            ),
            Flag(
                "--prefill-schedule-interval",
                "from 0.33 on",
                sets=("fleet.prefill_schedule_interval",),
                written=_prefill_interval,
            ),
            Flag("--max-num-partial-prefills", "one prompt after the other is split"),
            Flag("--long-prefill-token-threshold", "one prompt after the other is split"),
            Flag("--speculative-config", NO_SPECULATION, also=("num_speculative_tokens",)),
            Flag("--kv-transfer-config", NO_SPLIT),
            Flag("--cpu-offload-gb", "weights stay on the GPU"),
            Flag("--swap-space", "a preempted request is computed again"),
        ),
    ),
)
