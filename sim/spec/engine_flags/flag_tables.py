"""The tables of options by engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from sim.spec.engine_flags.flag import (
    BY_PROFILE,
    COUNTED,
    EVERY_SCENARIO,
    FROM_WEIGHTS,
    IN_ORDER,
    KV_FORMAT,
    NO_SPECULATION,
    NOT_SPLIT,
    OF_PROFILE,
    ONE_GPU,
    QUANTIZED,
    EngineFlags,
    Flag,
    bare,
)
from sim.spec.engine_flags.sglang_flags import SGLANG
from sim.spec.engine_flags.vllm_flags import VLLM
from sim.spec.registry import Registry

# The options of engines that no command line is written for.
#
# They were read from the sources: ``slora/server/api_server.py``, ``launcher/src/main.rs`` of LoRAX, and for
# TensorRT-LLM ``tensorrt_llm/llmapi/llm_args.py`` and ``tensorrt_llm/lora_helper.py``.

S_LORA = EngineFlags(
    "S-LoRA",
    flags=Registry(
        "option of S-LoRA",
        (
            Flag("--model_dir", OF_PROFILE, sets=("fleet.profile", "adapters.base_model")),
            Flag("--lora-dirs", COUNTED, sets=("adapters.count",), also=("--lora",)),
            Flag("--max_total_token_num", "adapters take theirs from it", sets=("fleet.kv_tokens",)),
            Flag(
                "--batch_max_tokens",
                "unset, the larger of max_total_token_num / 6 and max_req_total_len",
                sets=("fleet.max_num_batched_tokens",),
            ),
            Flag("--running_max_req_size", sets=("fleet.max_num_seqs",)),
            Flag("--max_req_total_len", sets=("fleet.max_model_len",)),
            Flag("--max_req_input_len", "only prompt and answer together have a limit"),
            Flag("--swap", "adapters wait in host memory", sets=("cache.host.fill: start",)),
            Flag("--pool-size-lora", "adapters take their memory from the KV cache (cache.gpu.unified)"),
            Flag("--prefetch", "off in S-LoRA by default, and not simulated", also=("--prefetch-size",)),
            Flag("--scheduler", "vtc_fair is vtc", sets=("fleet.scheduling",)),
            Flag("--batch-num-adapters", IN_ORDER),
            Flag("--enable-abort", IN_ORDER),
            Flag("--tp", ONE_GPU),
            Flag("--mode", "weights and KV cache have the formats of the profile"),
        ),
    ),
)

LORAX = EngineFlags(
    "LoRAX",
    flags=Registry(
        "option of LoRAX",
        (
            Flag("--model-id", OF_PROFILE, sets=("fleet.profile", "adapters.base_model")),
            Flag(
                "--adapter-memory-fraction",
                "a share of the GPU, while cache.gpu.size is in bytes",
                sets=("cache.gpu.size",),
            ),
            Flag(
                "--max-active-adapters",
                "in place of cache.gpu.size; LoRAX has both limits",
                sets=("cache.gpu.slots",),
            ),
            Flag("--adapter-cycle-time-s", sets=("cache.cycle",)),
            Flag("--preloaded-adapter-ids", "with engine lorax no adapter is resident at the start"),
            Flag("--max-batch-prefill-tokens", sets=("fleet.max_num_batched_tokens",)),
            Flag("--max-batch-total-tokens", sets=("fleet.kv_tokens",)),
            Flag("--max-total-tokens", sets=("fleet.max_model_len",)),
            Flag("--max-input-length", "only prompt and answer together have a limit"),
            Flag("--max-waiting-tokens", sets=("fleet.admission_interval",)),
            Flag("--waiting-served-ratio", sets=("fleet.waiting_ratio",)),
            Flag("--eager-prefill", "see fleet.waiting_ratio for when a prefill interrupts decodes"),
            Flag("--max-concurrent-requests", "the queue has no limit"),
            Flag("--cuda-memory-fraction", sets=("fleet.gpu_memory_utilization",)),
            Flag("--dtype", OF_PROFILE, sets=("fleet.profile",)),
            Flag("--quantize", QUANTIZED, sets=("adapters.base_quantization",)),
            Flag("--sharded", ONE_GPU),
            Flag("--num-shard", ONE_GPU),
            Flag("--speculative-tokens", NO_SPECULATION),
        ),
    ),
)

TENSORRT_LLM = EngineFlags(
    "TensorRT-LLM",
    flags=Registry(
        "option of TensorRT-LLM",
        (
            Flag("model", OF_PROFILE, sets=("fleet.profile", "adapters.base_model")),
            Flag("enable_lora", EVERY_SCENARIO),
            Flag("lora_config.lora_dir", COUNTED, sets=("adapters.count",), also=("lora_dir",)),
            Flag(
                "lora_config.max_loras",
                "in place of cache.gpu.size",
                sets=("cache.gpu.slots",),
                also=("max_loras",),
            ),
            Flag(
                "lora_config.max_cpu_loras",
                "in place of cache.host.size",
                sets=("cache.host.slots",),
                also=("max_cpu_loras",),
            ),
            Flag(
                "lora_config.max_lora_rank",
                "the largest rank of all adapters",
                sets=("adapters.rank",),
                also=("max_lora_rank",),
            ),
            Flag(
                "lora_config.lora_target_modules",
                sets=("adapters.targets",),
                also=("lora_target_modules",),
            ),
            Flag(
                "peft_cache_config.device_cache_percent",
                FROM_WEIGHTS,
                sets=("cache.gpu.size",),
                also=("device_cache_percent", "lora_cache_gpu_memory_fraction"),
            ),
            Flag(
                "peft_cache_config.host_cache_size",
                sets=("cache.host.size",),
                also=("host_cache_size", "lora_cache_host_memory_bytes"),
            ),
            Flag(
                "peft_cache_config.num_put_workers",
                "more than 1 needs storage.mode overlap",
                sets=("storage.loaders",),
                also=("num_put_workers",),
            ),
            Flag(
                "peft_cache_config.num_ensure_workers",
                sets=("storage.host_loaders",),
                also=("num_ensure_workers",),
            ),
            Flag(
                "peft_cache_config.optimal_adapter_size",
                "the cache counts bytes, not pages",
                also=("optimal_adapter_size", "lora_cache_optimal_adapter_size"),
            ),
            Flag("max_batch_size", sets=("fleet.max_num_seqs",)),
            Flag("max_num_tokens", sets=("fleet.max_num_batched_tokens",)),
            Flag("max_seq_len", sets=("fleet.max_model_len",)),
            Flag("max_input_len", "only prompt and answer together have a limit"),
            Flag("enable_chunked_prefill", sets=("fleet.chunked_prefill",), also=("enable_chunked_context",)),
            Flag(
                "kv_cache_config.free_gpu_memory_fraction",
                "a share of what weights leave free, while loraplan's is of the whole GPU",
                sets=("fleet.gpu_memory_utilization",),
                also=("free_gpu_memory_fraction", "kv_cache_free_gpu_memory_fraction"),
            ),
            Flag("kv_cache_config.max_tokens", sets=("fleet.kv_tokens",)),
            Flag("kv_cache_config.tokens_per_block", sets=("fleet.block_size",), also=("tokens_per_block",)),
            Flag(
                "kv_cache_config.enable_block_reuse",
                "the rules by which TensorRT-LLM reuses blocks are not known here",
                also=("enable_block_reuse",),
            ),
            Flag("kv_cache_config.dtype", KV_FORMAT),
            Flag("dtype", OF_PROFILE, sets=("fleet.profile",)),
            Flag("quant_config", QUANTIZED, sets=("adapters.base_quantization",)),
            Flag(
                "scheduler_config.capacity_scheduler_policy",
                "GUARANTEED_NO_EVICT; for MAX_UTILIZATION whole-prompt, with fleet.chunked_prefill",
                sets=("fleet.kv_check: whole-answer",),
                also=("capacity_scheduler_policy",),
            ),
            Flag("tensor_parallel_size", BY_PROFILE, sets=("fleet.tensor_parallel",), also=("tp_size",)),
            Flag("pipeline_parallel_size", NOT_SPLIT, also=("pp_size",)),
            Flag("moe_expert_parallel_size", NOT_SPLIT, also=("ep_size",)),
            Flag("speculative_config", NO_SPECULATION),
        ),
    ),
)


FLAGS = Registry("engine with options", (VLLM, SGLANG, S_LORA, LORAX, TENSORRT_LLM))


_MOST_HINTS = 3


def flag_hint(key: str, value: object = None) -> str | None:
    """Return what a scenario has for an option of an engine that stands where a key should; None: it is no option.

    :param key: the dotted key whose last part, or last two, may name an option.
    :param value: what stands there. Configurations of engines have sections, so keys of a mapping are tried too.
    """
    before, _, word = key.rpartition(".")
    hints = [_hint(f"{before.rpartition('.')[2]}.{word}") or _hint(word)]
    if isinstance(value, Mapping):
        hints += [_hint(f"{word}.{inner}") or _hint(str(inner)) for inner in value]
    found = list(dict.fromkeys(hint for hint in hints if hint))
    return "; ".join(found[:_MOST_HINTS]) or None


def _hint(name: str) -> str | None:
    groups: dict[tuple[str, ...], list[tuple[str, Flag]]] = {}
    for engine, flag in _by_name().get(bare(name), ()):
        groups.setdefault(flag.sets or (flag.about,), []).append((engine, flag))
    return "; ".join(_sentence(group, bare(name)) for group in groups.values()) or None


def _sentence(group: list[tuple[str, Flag]], name: str) -> str:
    """Return what options of one meaning, which engines share under this name, are in a scenario."""
    engines = [engine for engine, _ in group]
    flag = group[0][1]
    whose = f"{engines[0]}'s {flag.name}"
    if len(engines) > 1:
        shared = next(each for each in (flag.name, *flag.also) if bare(each) == name)
        whose = f"{shared} of {', '.join(engines[:-1])} and {engines[-1]}"
    if not flag.sets:
        return f"{whose} has no equivalent here: {flag.about}"
    about = f" ({flag.about})" if flag.about and all(other.about == flag.about for _, other in group) else ""
    return f"{whose} is {' and '.join(flag.sets)} here{about}"


@lru_cache(maxsize=1)
def _by_name() -> dict[str, list[tuple[str, Flag]]]:
    found: dict[str, list[tuple[str, Flag]]] = {}
    for engine in FLAGS:
        for flag in engine.flags:
            for name in dict.fromkeys(_names(flag)):
                found.setdefault(name, []).append((engine.name, flag))
    return found


def _names(flag: Flag) -> Iterator[str]:
    for name in (flag.name, *flag.also):
        yield bare(name)
