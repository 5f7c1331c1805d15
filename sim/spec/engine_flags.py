"""The options of real engines and what a scenario has for each: one table, read in both directions.

Error messages, ``docs/engine-flags.md`` and the command lines that configure an engine like a scenario follow from it.
The options of vLLM are those of https://docs.vllm.ai/en/latest/cli/serve.html (0.32) and features/lora.html; of SGLang
those of https://docs.sglang.ai/advanced_features/server_arguments.html and advanced_features/lora.html. The others were
read from the sources: ``slora/server/api_server.py``, ``launcher/src/main.rs`` of LoRAX, and for TensorRT-LLM
``tensorrt_llm/llmapi/llm_args.py`` and ``tensorrt_llm/lora_helper.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sim.spec.engines import ENGINES, fill
from sim.spec.needs import value_of, words_of
from sim.spec.profile import Profile, load_profile
from sim.spec.profile_choice import profile_choice
from sim.spec.registry import Entry, Registry
from sim.spec.sections.serving import Cache, Fleet, Storage

if TYPE_CHECKING:
    from sim.spec.scenario import Scenario

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Allowed values of vLLM's ``--max-lora-rank`` (``vllm/config.py``, ``LoRAConfig``): slots are padded to one of
these."""
_SGLANG_EVICTIONS = ("lru", "fifo")
"""What SGLang takes for ``--lora-eviction-policy``."""
_NO_COMMAND = {
    "continuous": "engine continuous is idealised, and no server follows its rules; choose fleet.engine vllm",
    "fixed": "engine fixed is a queue with a given service time, not a server",
}
"""Why engines that are no products have no command line."""
_RULES = (
    *(f"fleet.{key}" for key in ("batching", "chunked_prefill", "admission", "admission_interval", "waiting_ratio")),
    *(f"fleet.{key}" for key in ("load_at", "passed_requests", "kv_check")),
    *(f"fleet.{key}" for key in ("reserved_kv_blocks", "prefix_caching", "uncached_blocks")),
    *(f"cache.gpu.{key}" for key in ("slots", "size", "unified", "base_model_slot")),
    *(f"cache.host.{key}" for key in ("slots", "size", "fill")),
    *(f"cache.{key}" for key in ("eviction", "pinned", "prefetch")),
    *(f"storage.{key}" for key in ("mode", "loaders", "host_loaders")),
)
"""Keys that say how an engine works, rather than what it runs on or what it serves."""
_PROJECTIONS = {name: f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
_MOST_HINTS = 3

Written = Callable[["Scenario"], object]
"""The value of an option for a scenario; True: an option without a value; False: its opposite; None: it is left out."""


@dataclass(frozen=True, kw_only=True)
class Flag(Entry):
    """An option of an engine, and what a scenario has for it.

    ``about`` says how the two differ; of an option that a scenario has no key for, why.

    :ivar sets: the keys, each with a value where the option means that value: ``fleet.batching: mixed``.
    :ivar also: other names. Dashes, underscores and capital letters make no difference.
    :ivar written: its value in a command line; None: command lines leave it to the user.
    """

    sets: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    written: Written | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys without values."""
        return tuple(setting.partition(": ")[0] for setting in self.sets)

    def text(self, scenario: Scenario) -> str | None:
        """Return the option as the command line of a scenario has it; None: it has none."""
        value = None if self.written is None else self.written(scenario)
        if isinstance(value, bool):
            return self.name if value else f"--no-{self.name.removeprefix('--')}"
        return None if value is None else f"{self.name} {value}"


@dataclass(frozen=True, kw_only=True)
class EngineFlags(Entry):
    """The options of one engine, in the order in which command lines have them.

    :ivar command: how its command line begins; empty: none is written.
    """

    flags: Registry[Flag]
    command: str = ""


def vllm_rank(rank: int) -> int:
    """Return the rank to which vLLM pads slots for this largest rank; above vLLM's limit, the rank itself."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), rank)


def _value(key: str) -> Written:
    return lambda scenario: value_of(scenario, key)


def _always(scenario: Scenario) -> bool:
    return True


def _largest_rank(scenario: Scenario) -> int:
    adapters = scenario.adapters
    return max([kind.rank for kind in adapters.mix if kind.kind == "lora"] or [adapters.rank])


def _vllm_largest_rank(scenario: Scenario) -> int:
    return min(vllm_rank(_largest_rank(scenario)), VLLM_RANKS[-1])


def _profile(scenario: Scenario) -> Profile:
    return load_profile(profile_choice(scenario).name)[0]


def _memory_share(scenario: Scenario) -> str | None:
    """Return the share that the KV cache follows from; None where the scenario gives its size."""
    if scenario.fleet.kv_tokens is not None:
        return None
    share = scenario.fleet.gpu_memory_utilization
    return f"{_profile(scenario).memory.utilization if share is None else share:g}"


def _kv_blocks(scenario: Scenario) -> int | None:
    tokens = scenario.fleet.kv_tokens
    return None if tokens is None else tokens // scenario.fleet.block_size


def _tensor_parallel(scenario: Scenario) -> int | None:
    """Return over how many GPUs the profile spreads a replica; None: it runs on one, which is the default."""
    gpus = _profile(scenario).tensor_parallel
    return gpus if gpus > 1 else None


def _host_slots(scenario: Scenario) -> int | None:
    """Return how many adapters vLLM keeps in host memory: unset, as many as on the GPU."""
    return value_of(scenario, "cache.host.slots") or scenario.cache.gpu.slots


def _where(key: str, value: object) -> Written:
    """Return an option without a value, for scenarios in which a key has this value."""
    return lambda scenario: True if value_of(scenario, key) == value else None


def _target_modules(scenario: Scenario) -> str:
    kinds = [kind.targets for kind in scenario.adapters.mix if kind.kind == "lora"] or [scenario.adapters.targets]
    targets = {name for each in kinds for name in (_PROJECTIONS if isinstance(each, str) else each)}
    return " ".join(name for short, name in _PROJECTIONS.items() if short in targets)


def _sglang_eviction(scenario: Scenario) -> str | None:
    return scenario.cache.eviction if scenario.cache.eviction in _SGLANG_EVICTIONS else None


_EVERY_SCENARIO = "every scenario serves adapters"
_ONE_GPU = "parallelism over several GPUs is not supported for this engine yet"
_NOT_SPLIT = "pipeline and expert parallelism are not supported yet"
_BY_PROFILE = "a profile is made for a number of GPUs, see loraplan profiles list"
_NO_SPECULATION = "speculative decoding is not simulated"
_NO_SPLIT = "every replica does both prefill and decode"
_IN_ORDER = "requests are served first come, first served"
_OF_PROFILE = "costs and memory are those of a profile, of one model on one device"
_KV_FORMAT = "the KV cache has the format of the profile"
_COUNTED = "a scenario counts adapters; it does not list them"
_EACH_ITS_OWN = "each replica has its own adapters and queue; router.policy distributes the requests"
_TOKENS = "in tokens"
_QUANTIZED = "int8 and nf4 only"
_FROM_WEIGHTS = "a share of what weights leave free, while cache.gpu.size is in bytes"

FLAGS = Registry(
    "engine with options",
    (
        EngineFlags(
            "vLLM",
            command="vllm serve MODEL",
            flags=Registry(
                "option of vLLM",
                (
                    Flag("--enable-lora", _EVERY_SCENARIO, written=_always),
                    Flag("--max-loras", sets=("cache.gpu.slots",), written=_value("cache.gpu.slots")),
                    Flag(
                        "--max-lora-rank",
                        "the largest rank of all adapters; vLLM pads slots to it",
                        sets=("adapters.rank",),
                        written=_vllm_largest_rank,
                    ),
                    Flag(
                        "--max-cpu-loras",
                        "unset, vLLM keeps as many as --max-loras",
                        sets=("cache.host.slots",),
                        written=_host_slots,
                    ),
                    Flag("--max-num-seqs", sets=("fleet.max_num_seqs",), written=_value("fleet.max_num_seqs")),
                    Flag(
                        "--max-num-batched-tokens",
                        sets=("fleet.max_num_batched_tokens",),
                        written=_value("fleet.max_num_batched_tokens"),
                    ),
                    Flag("--max-model-len", sets=("fleet.max_model_len",), written=_value("fleet.max_model_len")),
                    Flag(
                        "--gpu-memory-utilization",
                        sets=("fleet.gpu_memory_utilization",),
                        written=_memory_share,
                    ),
                    Flag("--model", _OF_PROFILE, sets=("fleet.profile", "adapters.base_model"), also=("model_tag",)),
                    Flag("--lora-modules", _COUNTED, sets=("adapters.count",)),
                    Flag("--lora-dtype", sets=("adapters.dtype",)),
                    Flag(
                        "--lora-target-modules",
                        "the modules that adapters have; vLLM leaves out those that it is not given",
                        sets=("adapters.targets",),
                    ),
                    Flag("--fully-sharded-loras", _BY_PROFILE, sets=("fleet.profile",)),
                    Flag(
                        "--tensor-parallel-size",
                        _BY_PROFILE,
                        sets=("fleet.profile",),
                        also=("-tp",),
                        written=_tensor_parallel,
                    ),
                    Flag("--pipeline-parallel-size", _NOT_SPLIT, also=("-pp",)),
                    Flag("--enable-expert-parallel", _NOT_SPLIT, also=("-ep",)),
                    Flag("--data-parallel-size", _EACH_ITS_OWN, sets=("fleet.replicas",), also=("-dp",)),
                    Flag("--block-size", sets=("fleet.block_size",), written=_value("fleet.block_size")),
                    Flag(
                        "--num-gpu-blocks-override",
                        "blocks × fleet.block_size",
                        sets=("fleet.kv_tokens",),
                        written=_kv_blocks,
                    ),
                    Flag("--kv-cache-memory-bytes", _TOKENS, sets=("fleet.kv_tokens",)),
                    Flag("--kv-cache-dtype", _KV_FORMAT),
                    Flag("--dtype", _OF_PROFILE, sets=("fleet.profile",)),
                    Flag("--quantization", _QUANTIZED, sets=("adapters.base_quantization",), also=("-q",)),
                    Flag(
                        "--enable-chunked-prefill",
                        sets=("fleet.chunked_prefill",),
                        also=("--no-enable-chunked-prefill",),
                    ),
                    Flag(
                        "--enable-prefix-caching",
                        sets=("fleet.prefix_caching",),
                        also=("--no-enable-prefix-caching",),
                        written=_value("fleet.prefix_caching"),
                    ),
                    Flag("--scheduling-policy", _IN_ORDER),
                    Flag("--async-scheduling", "a step is planned when the one before has ended"),
                    Flag("--max-num-partial-prefills", "one prompt after the other is split"),
                    Flag("--long-prefill-token-threshold", "one prompt after the other is split"),
                    Flag("--speculative-config", _NO_SPECULATION, also=("num_speculative_tokens",)),
                    Flag("--kv-transfer-config", _NO_SPLIT),
                    Flag("--cpu-offload-gb", "weights stay on the GPU"),
                    Flag("--swap-space", "a preempted request is computed again"),
                ),
            ),
        ),
        EngineFlags(
            "SGLang",
            command="python -m sglang.launch_server --model-path MODEL",
            flags=Registry(
                "option of SGLang",
                (
                    Flag("--enable-lora", _EVERY_SCENARIO, written=_always),
                    Flag(
                        "--max-loras-per-batch",
                        "with cache.gpu.base_model_slot, the base model takes one of them",
                        sets=("cache.gpu.slots",),
                        written=_value("cache.gpu.slots"),
                    ),
                    Flag(
                        "--max-lora-rank",
                        "the largest rank of all adapters",
                        sets=("adapters.rank",),
                        written=_largest_rank,
                    ),
                    Flag("--lora-target-modules", sets=("adapters.targets",), written=_target_modules),
                    Flag("--max-loaded-loras", sets=("cache.host.slots",), written=_value("cache.host.slots")),
                    Flag("--lora-eviction-policy", sets=("cache.eviction",), written=_sglang_eviction),
                    Flag(
                        "--max-running-requests",
                        sets=("fleet.max_num_seqs",),
                        written=_value("fleet.max_num_seqs"),
                    ),
                    Flag(
                        "--chunked-prefill-size",
                        "-1: fleet.chunked_prefill false",
                        sets=("fleet.max_num_batched_tokens",),
                        written=_value("fleet.max_num_batched_tokens"),
                    ),
                    Flag("--context-length", sets=("fleet.max_model_len",), written=_value("fleet.max_model_len")),
                    Flag("--model-path", _OF_PROFILE, sets=("fleet.profile", "adapters.base_model"), also=("--model",)),
                    Flag("--lora-paths", _COUNTED, sets=("adapters.count",)),
                    Flag(
                        "--enable-lora-overlap-loading",
                        sets=("storage.mode: overlap", "fleet.load_at: admission"),
                        written=_where("storage.mode", "overlap"),
                    ),
                    Flag("--lora-drain-wait-threshold", "adapters are not drained for others that starve"),
                    Flag("--lora-backend", "kernels cost what the profile says"),
                    Flag("--max-prefill-tokens", "the smaller of both limits", sets=("fleet.max_num_batched_tokens",)),
                    Flag(
                        "--enable-mixed-chunk",
                        sets=("fleet.batching: mixed",),
                        written=_where("fleet.batching", "mixed"),
                    ),
                    Flag(
                        "--mem-fraction-static",
                        "SGLang's share holds weights and KV cache, loraplan's all that the engine uses",
                        sets=("fleet.gpu_memory_utilization",),
                    ),
                    Flag("--max-total-tokens", sets=("fleet.kv_tokens",), written=_value("fleet.kv_tokens")),
                    Flag("--page-size", sets=("fleet.block_size",), written=_value("fleet.block_size")),
                    Flag("--kv-cache-dtype", _KV_FORMAT),
                    Flag("--dtype", _OF_PROFILE, sets=("fleet.profile",)),
                    Flag("--quantization", _QUANTIZED, sets=("adapters.base_quantization",)),
                    Flag(
                        "--disable-radix-cache",
                        sets=("fleet.prefix_caching: false",),
                        written=_where("fleet.prefix_caching", False),
                    ),
                    Flag("--schedule-policy", _IN_ORDER),
                    Flag(
                        "--schedule-conservativeness",
                        "a request joins if its prompt fits, whatever answers are to come",
                    ),
                    Flag("--max-queued-requests", "the queue has no limit"),
                    Flag(
                        "--tp-size",
                        _BY_PROFILE,
                        sets=("fleet.profile",),
                        also=("--tensor-parallel-size", "--tp"),
                        written=_tensor_parallel,
                    ),
                    Flag("--pp-size", _NOT_SPLIT, also=("--pipeline-parallel-size", "--pp")),
                    Flag("--ep-size", _NOT_SPLIT, also=("--expert-parallel-size", "--ep")),
                    Flag("--dp-size", _EACH_ITS_OWN, sets=("fleet.replicas",), also=("--data-parallel-size", "--dp")),
                    Flag("--load-balance-method", sets=("router.policy",)),
                    Flag("--speculative-algorithm", _NO_SPECULATION),
                    Flag("--disaggregation-mode", _NO_SPLIT),
                ),
            ),
        ),
        EngineFlags(
            "S-LoRA",
            flags=Registry(
                "option of S-LoRA",
                (
                    Flag("--model_dir", _OF_PROFILE, sets=("fleet.profile", "adapters.base_model")),
                    Flag("--lora-dirs", _COUNTED, sets=("adapters.count",), also=("--lora",)),
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
                    Flag("--scheduler", _IN_ORDER),
                    Flag("--batch-num-adapters", _IN_ORDER),
                    Flag("--enable-abort", _IN_ORDER),
                    Flag("--tp", _ONE_GPU),
                    Flag("--mode", "weights and KV cache have the formats of the profile"),
                ),
            ),
        ),
        EngineFlags(
            "LoRAX",
            flags=Registry(
                "option of LoRAX",
                (
                    Flag("--model-id", _OF_PROFILE, sets=("fleet.profile", "adapters.base_model")),
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
                    Flag("--dtype", _OF_PROFILE, sets=("fleet.profile",)),
                    Flag("--quantize", _QUANTIZED, sets=("adapters.base_quantization",)),
                    Flag("--sharded", _ONE_GPU),
                    Flag("--num-shard", _ONE_GPU),
                    Flag("--speculative-tokens", _NO_SPECULATION),
                ),
            ),
        ),
        EngineFlags(
            "TensorRT-LLM",
            flags=Registry(
                "option of TensorRT-LLM",
                (
                    Flag("model", _OF_PROFILE, sets=("fleet.profile", "adapters.base_model")),
                    Flag("enable_lora", _EVERY_SCENARIO),
                    Flag("lora_config.lora_dir", _COUNTED, sets=("adapters.count",), also=("lora_dir",)),
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
                        _FROM_WEIGHTS,
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
                    Flag("kv_cache_config.dtype", _KV_FORMAT),
                    Flag("dtype", _OF_PROFILE, sets=("fleet.profile",)),
                    Flag("quant_config", _QUANTIZED, sets=("adapters.base_quantization",)),
                    Flag(
                        "scheduler_config.capacity_scheduler_policy",
                        "GUARANTEED_NO_EVICT; MAX_UTILIZATION, which pauses requests, is not simulated",
                        sets=("fleet.kv_check: whole-answer",),
                        also=("capacity_scheduler_policy",),
                    ),
                    Flag("tensor_parallel_size", _BY_PROFILE, sets=("fleet.profile",), also=("tp_size",)),
                    Flag("pipeline_parallel_size", _NOT_SPLIT, also=("pp_size",)),
                    Flag("moe_expert_parallel_size", _NOT_SPLIT, also=("ep_size",)),
                    Flag("speculative_config", _NO_SPECULATION),
                ),
            ),
        ),
    ),
)


def engine_flags(scenario: Scenario) -> dict[str, str]:
    """Return the command line that starts one replica as it was simulated, by engine; none where ``why_no_flags``.

    ``MODEL`` stands for the base model's path or name.
    """
    if why_no_flags(scenario):
        return {}
    return {name: _command_line(FLAGS[name], scenario) for name in ENGINES[scenario.fleet.engine].flags}


def _command_line(engine: EngineFlags, scenario: Scenario) -> str:
    without_lora = scenario.adapters.base_alone
    written = [flag.text(scenario) for flag in engine.flags if not (without_lora and "lora" in flag.name.lower())]
    return " ".join([engine.command, *(text for text in written if text is not None)])


def why_no_flags(scenario: Scenario) -> str:
    """Return why no command line starts what was simulated, in one sentence; empty where one does.

    An engine has its own rules. A scenario that changes one of them, where no option does, simulates another engine.
    """
    name = scenario.fleet.engine
    if not ENGINES[name].flags:
        return f"No command line is given: {_NO_COMMAND.get(name, f'loraplan writes none for engine {name}')}."
    (engine,) = ENGINES[name].flags
    read_back = _read_back(scenario, FLAGS[engine])
    for key in _RULES:
        value = value_of(scenario, key)
        if value not in (None, value_of(read_back, key)):
            return f"No command line is given: no option of {engine} sets {key} to {words_of(value)}."
    return ""


def _read_back(scenario: Scenario, engine: EngineFlags) -> Scenario:
    """Return the scenario with the rules that its engine follows when started with the command line alone."""
    data: dict[str, Any] = {"fleet": {"engine": scenario.fleet.engine}, "cache": {}, "storage": {}}
    for key in (key for flag in engine.flags if flag.text(scenario) is not None for key in flag.keys):
        section, *path, last = key.split(".")
        value = value_of(scenario, key)
        if section in data and value is not None:
            place = data[section]
            for part in path:
                place = place.setdefault(part, {})
            place[last] = value
    filled = fill(data)
    parts = (Fleet(**filled["fleet"]), Cache(**filled["cache"]), Storage(**filled["storage"]))
    return scenario.model_copy(update=dict(zip(data, parts, strict=True)))


def beyond_flags(scenario: Scenario) -> list[str]:
    """Return the parts of the scenario that these command lines can't express."""
    found = []
    fleet = scenario.fleet
    if fleet.replicas > 1:
        found.append(f"{fleet.replicas} replicas behind a router of policy {scenario.router.policy}")
    if fleet.full_models is not None:
        found.append("replicas of full models, each started like this with its own MODEL and without LoRA")
    if scenario.adapters.base_quantization != "bf16":
        found.append(f"base weights in {scenario.adapters.base_quantization}: start from a checkpoint in this format")
    return found


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
    for engine, flag in _by_name().get(_bare(name), ()):
        groups.setdefault(flag.sets or (flag.about,), []).append((engine, flag))
    return "; ".join(_sentence(group, _bare(name)) for group in groups.values()) or None


def _sentence(group: list[tuple[str, Flag]], name: str) -> str:
    """Return what options of one meaning, which engines share under this name, are in a scenario."""
    engines = [engine for engine, _ in group]
    flag = group[0][1]
    whose = f"{engines[0]}'s {flag.name}"
    if len(engines) > 1:
        shared = next(each for each in (flag.name, *flag.also) if _bare(each) == name)
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
        yield _bare(name)


def _bare(name: str) -> str:
    """Return a name as all its spellings have it: ``--max-loras``, ``max_loras``, ``maxLoras`` and ``MAX_LORAS``."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
    return re.sub(r"[-_\s]+", "-", apart).strip("-")
