"""The options of vLLM 0.33: ``engine/arg_utils.py`` and ``config`` there, for those that 0.8 to 0.32 had as well."""

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
    same,
    tensor_parallel,
    unless,
    where,
    whole_number,
)
from sim.spec.engine_versions import AHEAD_SINCE, release_of
from sim.spec.needs import value_of
from sim.spec.registry import Registry

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Allowed values of vLLM's ``--max-lora-rank`` (``vllm/config.py``, ``LoRAConfig``): slots are padded to one of
these."""
_PROMPT_CHECK_FROM = (0, 19)
_INTERVAL_FROM = (0, 33)
_OLD = "older versions only; "
_ONE_PROMPT = "one prompt after the other is split"
_REFUSED = "requests wait, as many as there are; tenants can have a limit (tenants.bucket)"
_NO_CONTEXT = "parallelism over the tokens of a sequence is not supported yet"


def vllm_rank(rank: int) -> int:
    """Return the rank to which vLLM pads slots for this largest rank; above vLLM's limit, the rank itself."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), rank)


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


def _prompt_check(replica: Replica) -> bool | None:
    """Return False where a version with the option checks the first chunk only; else it is the default, or there is
    none."""
    fleet = replica.scenario.fleet
    return False if fleet.kv_check == "first-chunk" and _version(replica) >= _PROMPT_CHECK_FROM else None


def _scheduled_ahead(replica: Replica) -> bool | None:
    """Return whether steps are scheduled ahead where this is not the default of the version."""
    ahead = value_of(replica.scenario, "fleet.async_scheduling") is True
    return None if ahead == (_version(replica) >= AHEAD_SINCE) else ahead


def _prefill_interval(replica: Replica) -> int | None:
    """Return after how many steps prompts may follow, where that is not every step and the version has it."""
    steps: int = value_of(replica.scenario, "fleet.prefill_schedule_interval")
    return steps if steps > 1 and _version(replica) >= _INTERVAL_FROM else None


def _version(replica: Replica) -> tuple[int, ...]:
    return tuple(map(int, (release_of(replica.scenario.fleet.engine) or "0").split(".")[:2]))


VLLM = EngineFlags(
    "vLLM",
    command="vllm serve MODEL",
    flags=Registry(
        "option of vLLM",
        (
            Flag("--enable-lora", EVERY_SCENARIO, written=always),
            same("--max-loras", "cache.gpu.slots", unset=1),
            Flag(
                "--max-lora-rank",
                "the largest rank of all adapters; vLLM pads slots to it",
                sets=("adapters.rank",),
                written=lambda replica: min(vllm_rank(largest_rank(replica)), VLLM_RANKS[-1]),
            ),
            Flag(
                "--max-cpu-loras",
                "unset, vLLM keeps as many as --max-loras",
                sets=("cache.host.slots",),
                written=_host_slots,
            ),
            same("--max-num-seqs", "fleet.max_num_seqs"),
            same("--max-num-batched-tokens", "fleet.max_num_batched_tokens"),
            same("--max-model-len", "fleet.max_model_len"),
            Flag(
                "--gpu-memory-utilization",
                "unset, vLLM takes 0.92 from 0.25 on, before that 0.9",
                also=("--device-memory-utilization",),
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
            Flag("--prefill-context-parallel-size", _NO_CONTEXT, also=("-pcp",)),
            Flag("--decode-context-parallel-size", _NO_CONTEXT, also=("-dcp",)),
            Flag("--data-parallel-size", EACH_ITS_OWN, sets=("fleet.replicas",), also=("-dp",)),
            same("--block-size", "fleet.block_size"),
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
            same("--enable-prefix-caching", "fleet.prefix_caching", also=("--no-enable-prefix-caching",)),
            Flag(
                "--scheduling-policy",
                "each request carries the priority of its tenant; from 0.9.2 on",
                sets=("fleet.scheduling",),
                written=unless("fleet.scheduling", "fcfs"),
                reads=chosen("fleet.scheduling", fcfs="fcfs", priority="priority"),
            ),
            Flag(
                "--async-scheduling",
                "unset, vLLM has it from 0.14 on, except on CPUs",
                sets=("fleet.async_scheduling",),
                also=("--no-async-scheduling",),
                written=_scheduled_ahead,
            ),
            Flag(
                "--scheduler-reserve-full-isl",
                "on, the default: whole-prompt; off: first-chunk; from 0.19 on",
                sets=("fleet.kv_check",),
                also=("--no-scheduler-reserve-full-isl",),
                written=_prompt_check,
                reads=lambda words, given: {
                    "fleet.kv_check": "first-chunk" if "no-scheduler-reserve-full-isl" in given else "whole-prompt"
                },
            ),
            Flag(
                "--prefill-schedule-interval",
                "without data parallelism from 0.33 on",
                sets=("fleet.prefill_schedule_interval",),
                written=_prefill_interval,
            ),
            Flag("--max-num-active-seqs", "fleet.max_num_seqs is what runs, not what buffers are sized for"),
            Flag("--max-num-scheduled-tokens", "fleet.max_num_batched_tokens is what a step computes"),
            Flag("--max-num-queued-reqs", _REFUSED),
            Flag("--max-num-queued-tokens", _REFUSED),
            Flag("--watermark", "requests join as long as there are KV blocks"),
            Flag("--scheduler-cls", "another scheduler has other rules"),
            Flag("--stream-interval", "each token is sent when it is there"),
            Flag("--performance-mode", "changes defaults: set fleet.max_num_seqs and fleet.max_num_batched_tokens"),
            Flag("--max-num-partial-prefills", _OLD + _ONE_PROMPT),
            Flag("--long-prefill-token-threshold", _ONE_PROMPT),
            Flag(
                "--long-prefill-token-threshold-adaptive",
                _ONE_PROMPT,
                also=("--no-long-prefill-token-threshold-adaptive",),
            ),
            Flag(
                "--specialize-active-lora",
                "LoRA kernels cost what the profile says",
                also=("--no-specialize-active-lora",),
            ),
            Flag("--speculative-config", NO_SPECULATION, also=("num_speculative_tokens",)),
            Flag("--kv-transfer-config", NO_SPLIT),
            Flag("--cpu-offload-gb", "weights stay on the GPU"),
            Flag("--swap-space", _OLD + "a preempted request is computed again"),
        ),
    ),
)
