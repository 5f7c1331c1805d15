"""Engines by name. A preset is nothing but values of scenario fields: it fills in those that the scenario leaves out.

The differences between engines, and between versions of one, are these fields and not branches in the code; each rule
was read from the source named with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sim.spec.engine_versions import release_of, suggest_engine, versions_of
from sim.spec.gpus import DEFAULT_GPU, gpu_named
from sim.spec.registry import Entry, Registry

Preset = Mapping[str, Mapping[str, Any]]
"""Values by section and key, such as ``{"fleet": {"admission": "skip"}}``."""

_VLLM: Preset = {
    # v1/core/sched/scheduler.py: a waiting request whose adapter would be one too many is passed by later ones.
    # lora/worker_manager.py, _apply_adapters: adapters are loaded in the step, one after the other, and the slot of the
    # least recently touched one is taken even if the batch uses it.
    # v1/core/kv_cache_utils.py: block 0 is the null block.
    # A request to the base model: scheduler.py counts only those with a lora_request for max_loras; it takes no slot.
    # lora/ops/triton_ops/lora_kernel_metadata.py, prepare_tensors: a step without any runs no LoRA kernel.
    # v1/core/block_pool.py, free_blocks: until 0.22 blocks return to the end of the free queue, cached or not.
    # v1/core/kv_cache_manager.py, enable_caching: on by default for models that generate.
    # engine/arg_utils.py, get_batch_defaults: _VLLM_BATCHES has the limits of larger GPUs.
    "fleet": {
        "max_num_seqs": 256,
        "max_num_batched_tokens": 2048,
        "admission": "skip",
        "load_at": "admission",
        "passed_requests": "keep-order",
        "self_preemption": "ends-scan",
        "kv_check": "first-chunk",
        "reserved_kv_blocks": 1,
        "prefix_caching": True,
        "uncached_blocks": "last",
    },
    "cache": {"eviction": "vllm-lru"},
    "storage": {"mode": "blocking"},
}


def _changed(preset: Preset, **sections: Mapping[str, Any]) -> Preset:
    """Return a preset with some fields changed."""
    return {name: {**preset.get(name, {}), **sections.get(name, {})} for name in (*preset, *sections)}


# config/vllm.py, VllmConfig.__post_init__: async_scheduling is on by default with the executors uni and mp on GPUs.
_VLLM_0_14 = _changed(_VLLM, fleet={"async_scheduling": True})
_VLLM_0_18 = _changed(_VLLM_0_14, fleet={"passed_requests": "own-queue"})
_VLLM_0_19 = _changed(_VLLM_0_18, fleet={"kv_check": "whole-prompt"})
_VLLM_0_23 = _changed(_VLLM_0_19, fleet={"uncached_blocks": "first"})
# config/cache.py: the default share of the memory is 0.92 from 0.25 on.
_VLLM_0_32 = _changed(_VLLM_0_23, fleet={"passed_requests": "keep-order", "gpu_memory_utilization": 0.92})

_PRIORITY_FROM = (0, 9, 2)
"""The first V1 engine with vLLM's ``--scheduling-policy``: v1/core/sched/request_queue.py."""

# SGLang 0.5.23.
_SGLANG: Preset = {
    # managers/scheduler.py: "Run prefill first if possible"; a request over the adapter limit is passed (from 0.5.7
    # on; before, all wait: admission stop). chunked_prefill_size is 8192 on GPUs of 60 to 160 GB. page_size 1.
    "fleet": {
        "batching": "prefill-first",
        "admission": "skip",
        "max_num_batched_tokens": 8192,
        "block_size": 1,
        # managers/schedule_policy.py, PrefillAdder; scheduler.py, event_loop_overlap: the default on GPUs.
        "kv_check": "ratio",
        "overlap_schedule": True,
        # mem_cache/radix_cache.py: on unless --disable-radix-cache; a request's lora_id is part of the key.
        "prefix_caching": True,
    },
    # lora/eviction_policy.py: lru by default, or fifo. lora/lora_manager.py, fetch_new_loras({None}): the base
    # model is put into a slot at the start. arg_groups/fields/lora.py: max_loras_per_batch 8. All registered
    # adapters are in host memory; max_loaded_loras (cache.host.slots) limits them, and those it drove out are read
    # again when a request for them arrives. lora_manager.py, validate_lora_batch and fetch_new_loras: a request to the
    # base model counts for max_loras_per_batch as adapter None, and takes a slot of zeros. lora/mem_pool.py,
    # prepare_lora_batch: only the adapters of the batch about to run keep their slots.
    "cache": {
        "gpu": {"slots": 8, "base_model_slot": True},
        "host": {"fill": "start"},
        "eviction": "lru",
        "protects": "batch",
    },
    # model_executor/forward_batch_info.py: the batch's adapters are fetched right before it runs. With
    # --enable-lora-overlap-loading: mode overlap, one loader, load_at admission.
    "storage": {"mode": "blocking"},
}

# S-LoRA, repository as of 2024.
_S_LORA: Preset = {
    # slora/server/router/manager.py: a new batch after max_wait_tokens = 10 decode steps, computed alone.
    # router/req_queue.py: first come first served, up to the first that doesn't fit; peak of the KV cache; prompts
    # whole. api_server.py: batch_max_tokens = max(max_total_token_num / 6, max_req_total_len), the latter 3072.
    "fleet": {
        "batching": "prefill-first",
        "chunked_prefill": False,
        "max_num_batched_tokens": 3072,
        "budget_kv_share": 1 / 6,
        "admission": "stop",
        "admission_interval": 10,
        "kv_check": "peak",
        "block_size": 1,
    },
    # common/mem_allocator.py, router/model_infer/infer_adapter.py: adapters and KV in one pool; offload_adapters
    # frees those that the running batch doesn't use. model_rpc.py: all adapters are in host memory at the start.
    # infer_adapter.py, load_adapters: for a request to the base model (adapter None) nothing is loaded.
    "cache": {"gpu": {"unified": True}, "host": {"fill": "start"}, "eviction": "discard-when-idle"},
    # router/manager.py, _step: load_adapters is awaited before the prefill. Prefetch is off by default.
    "storage": {"mode": "blocking"},
}

# LoRAX, repository as of 2024.
_LORAX: Preset = {
    # router/src/infer.rs: a prefill batch of its own once waiting requests are waiting_served_ratio = 1.2 times the
    # running ones, or max_waiting_tokens = 20 decode steps have passed. router/src/scheduler.rs: queues by adapter.
    # block_allocator.rs: blocks for input and max_new_tokens, of 16, the first kept. Prefill budget 4096.
    "fleet": {
        "batching": "prefill-first",
        "chunked_prefill": False,
        "max_num_batched_tokens": 4096,
        "admission": "per-adapter",
        "admission_interval": 20,
        "waiting_ratio": 1.2,
        "kv_check": "whole-answer",
        "block_size": 16,
        "reserved_kv_blocks": 1,
    },
    # server/lorax_server/utils/adapter.py: ADAPTER_MEMORY_FRACTION, a tenth of the GPU, here of 64 GB.
    # router/src/scheduler.rs, update_adapters: adapter_cycle_time_s = 2. router/src/loader.rs: downloaded at the
    # first request, then on the local disk, which stands here for host memory. router/src/adapter.rs: the base model
    # is an adapter, "__base_model__", with a queue of its own; it takes no memory.
    "cache": {
        "gpu": {"size": "6.4 GB"},
        "host": {"fill": "arrival"},
        "eviction": "cycle",
        "cycle": "2 s",
    },
    # router/src/loader.rs, loader_task: one command at a time.
    "storage": {"mode": "overlap", "loaders": 1, "host_loaders": 1},
}

# TensorRT-LLM, GUARANTEED_NO_EVICT.
_TENSORRT_LLM: Preset = {
    # cpp/tensorrt_llm/batch_manager/capacityScheduler.cpp: blocks to the end of the answer; lack of adapter pages
    # passes a request, lack of KV blocks stops the scan. microBatchScheduler.cpp: decodes and prompts in one step,
    # prompts whole unless chunked context is on. kv_cache tokens_per_block 32.
    "fleet": {
        "batching": "mixed",
        "chunked_prefill": False,
        "max_num_batched_tokens": 8192,
        "admission": "skip",
        "load_at": "admission",
        "kv_check": "whole-answer",
        "block_size": 32,
    },
    # _torch/pyexecutor/resource_manager.py, PeftCacheManager.prepare_resources: an adapter is read from its files into
    # the host cache when a step first schedules it, and the step waits. batch_manager/peftCacheManager.cpp,
    # runtime/loraCache.cpp: host cache of 1 GiB; device cache of 2 % of the memory that weights leave (here of 64 GB);
    # of tasks that no request uses, the one that ended longest ago leaves. capacityScheduler.cpp: a request to the base
    # model has no LoRA task, and needs no pages.
    "cache": {
        "gpu": {"size": "0.8 GB"},
        "host": {"size": "1 GiB", "fill": "load"},
        "eviction": "lru",
    },
    # peftCacheManager.cpp, ensureBatch: copies are joined before the step; numPutWorkers, numEnsureWorkers 1.
    "storage": {"mode": "blocking", "loaders": 1},
}


@dataclass(frozen=True, kw_only=True)
class Engine(Entry):
    """An engine, or rather the values of scenario fields that follow it; its target is what it makes of adapters.

    :ivar no_prefix_cache: why ``fleet.prefix_caching`` is not possible; empty: it is.
    :ivar flags: the engines whose command lines can say what such a scenario says (``sim/spec/engine_flags``).
    :ivar schedulings: values of ``fleet.scheduling`` whose rules are known for it.
    """

    preset: Preset = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    no_prefix_cache: str = ""
    schedulings: tuple[str, ...] = ("fcfs",)


class Engines(Registry[Engine]):
    """The presets by name; a version of an engine finds the preset that has its rules (``engine_versions.py``)."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def __getitem__(self, name: str) -> Engine:
        """Return the preset that a name stands for: its own, or the one with the rules of this version."""
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def all_names(self, given: Mapping[str, Engine] | None = None) -> tuple[str, ...]:
        """Return every name, that of the newest version of an engine first."""
        return tuple(dict.fromkeys((DEFAULT_ENGINE, *super().all_names(given))))

    def get(self, name: str, given: Mapping[str, Engine] | None = None) -> Engine | None:
        """Return the preset that a name stands for, or None."""
        found = super().get(name, given)
        versions = versions_of(name) if found is None else None
        return found if versions is None else super().get(versions.preset)


_RULES = "sim.training.files.engine_rules"


def _vllm(name: str, about: str, rules: str, preset: Preset) -> Engine:
    """Return a version of vLLM's V1 engine."""
    return Engine(name, about, f"{_RULES}:{rules}", flags=("vLLM",), preset=preset, schedulings=("fcfs", "priority"))


ENGINES = Engines(
    "engine",
    (
        # The defaults of all fields: protected LRU, loads that overlap with steps, skip-over admission.
        Engine(
            "continuous",
            "continuous batching with protected LRU and overlapped loads: an idealised engine, not a real one.",
            f"{_RULES}:CONTINUOUS",
            schedulings=("fcfs", "priority", "vtc"),
        ),
        # KV blocks for the first chunk of a prompt suffice to join.
        _vllm("vllm-0.8", "as vLLM 0.8.3 to 0.9.1, V1 engine.", "VLLM_0_8", _VLLM),
        # RequestQueue.prepend_requests reverses what prepend_request has reversed: skipped requests change their order.
        _vllm(
            "vllm-0.9.2",
            "as vLLM 0.9.2 to 0.13.",
            "VLLM_BETWEEN",
            _changed(_VLLM, fleet={"passed_requests": "reversed"}),
        ),
        # Steps are scheduled ahead from here on.
        _vllm("vllm-0.14", "as vLLM 0.14 to 0.17.", "VLLM_BETWEEN", _VLLM_0_14),
        # skipped_waiting: a queue of its own, which _select_waiting_queue_for_scheduling tries first.
        _vllm("vllm-0.18", "as vLLM 0.18.", "VLLM_BETWEEN", _VLLM_0_18),
        # The whole prompt must fit (scheduler_reserve_full_isl).
        _vllm("vllm-0.19", "as vLLM 0.19 to 0.22.", "VLLM_BETWEEN", _VLLM_0_19),
        # block_pool.py, free_blocks: blocks without a hash are put at the head of the free queue.
        _vllm("vllm-0.23", "as vLLM 0.23 to 0.30.", "VLLM_BETWEEN", _VLLM_0_23),
        _vllm("vllm-0.32", "as vLLM 0.31 and 0.32.", "VLLM_0_32", _VLLM_0_32),
        # scheduler.py, schedule: max_loras counts all running requests; the scan of these goes on after one that
        # preempts itself.
        _vllm(
            "vllm-0.33",
            "as vLLM 0.33.",
            "VLLM_0_32",
            _changed(_VLLM_0_32, fleet={"adapter_limit": "running", "self_preemption": "goes-on"}),
        ),
        Engine(
            "sglang",
            "as SGLang 0.5.23.",
            f"{_RULES}:SGLANG",
            flags=("SGLang",),
            preset=_SGLANG,
            schedulings=("fcfs", "lpm"),
        ),
        Engine(
            "s-lora",
            "as S-LoRA in 2024.",
            f"{_RULES}:S_LORA",
            preset=_S_LORA,
            # slora/common/mem_allocator.py: KV memory is freed with its request, whatever it holds.
            no_prefix_cache="S-LoRA has no prefix cache",
            # slora/server/router/vtc_req_queue.py: --scheduler vtc_fair.
            schedulings=("fcfs", "vtc"),
        ),
        Engine(
            "lorax",
            "as LoRAX in 2024.",
            f"{_RULES}:LORAX",
            preset=_LORAX,
            # router/src/radix.rs, launcher/src/main.rs: --prefix-caching, off by default.
            no_prefix_cache="LoRAX has a prefix cache, off by default, but its rules are not known here",
        ),
        Engine(
            "tensorrt-llm",
            "as TensorRT-LLM with GUARANTEED_NO_EVICT.",
            f"{_RULES}:TENSORRT_LLM",
            preset=_TENSORRT_LLM,
            # llmapi/llm_args.py, KvCacheConfig: enable_block_reuse is True by default.
            no_prefix_cache="TensorRT-LLM reuses blocks by default, but its rules for that are not known here",
        ),
        Engine(
            "fixed",
            "one request at a time with a given service time (encoders, classifiers, queueing oracles).",
            f"{_RULES}:FIXED",
        ),
    ),
    suggest=suggest_engine,
)

DEFAULT_ENGINE = "vllm"
"""What a scenario that names no engine plans for: the newest version of vLLM whose rules are known."""
_VLLM_BATCHES = {"h100-80gb": (1024, 8192), "h200": (1024, 8192), "b200": (1024, 16384)}
"""``max_num_seqs`` and ``max_num_batched_tokens`` of ``vllm serve`` on GPUs of 70 GiB and more other than A100s, and of
160 GiB and more; vLLM 0.28 and 0.32, engine/arg_utils.py, get_batch_defaults."""
_CAPACITY = ("slots", "size")
_WITHOUT = {"budget_kv_share": "max_num_batched_tokens"}
"""Keys that a preset fills in only where the scenario leaves out another one as well."""


def batch_limits(gpu: str) -> dict[str, int]:
    """Return what ``vllm serve`` takes for ``max_num_seqs`` and ``max_num_batched_tokens`` on a GPU."""
    known = gpu_named(gpu)
    keys = ("max_num_seqs", "max_num_batched_tokens")
    defaults = tuple(_VLLM["fleet"][key] for key in keys)
    return dict(zip(keys, _VLLM_BATCHES.get(known.name, defaults) if known else defaults, strict=True))


def _of_its_gpu(preset: Preset, fleet: Mapping[str, Any]) -> Preset:
    """Return vLLM's preset with the limits of a batch on the GPU of a fleet; a profile's file may be of any GPU."""
    gpu, profile = fleet.get("gpu"), fleet.get("profile")
    if gpu is None:
        gpu = DEFAULT_GPU if profile is None else str(profile).partition("/")[0]
    limits = batch_limits(str(gpu))
    budget = fleet.get("max_num_batched_tokens")
    if isinstance(budget, int) and budget > 0:  # every running sequence needs one token of it
        limits["max_num_seqs"] = min(limits["max_num_seqs"], budget)
    return _changed(preset, fleet=limits)


def fill(data: Any) -> Any:
    """Return a scenario's plain data with what its engine's preset says of fields that it leaves out.

    Data that is no valid scenario comes back as it is: checking it is another's work.
    """
    if not isinstance(data, dict):
        return data
    fleet = data.get("fleet", {})
    engine = fleet.get("engine", DEFAULT_ENGINE) if isinstance(fleet, dict) else None
    preset = ENGINES[engine].preset if isinstance(engine, str) and engine in ENGINES else {}
    if "max_num_seqs" in preset.get("fleet", {}):
        preset = _of_its_gpu(preset, fleet)
    filled = dict(data)
    for section, values in preset.items():
        given = data.get(section, {})
        if isinstance(given, dict):
            meant = {key: value for key, value in values.items() if given.get(_WITHOUT.get(key, "")) is None}
            filled[section] = {**given, **{key: _filled(value, given.get(key)) for key, value in meant.items()}}
    if preset is _SGLANG and all(isinstance(filled[section], dict) for section in preset):
        _leave_out_what_does_not_fit(filled, data)
    elif "max_num_seqs" in preset.get("fleet", {}) and isinstance(filled["cache"], dict):
        _leave_out_of_vllm(filled["fleet"], filled["cache"], fleet)
    return filled


def _leave_out_of_vllm(filled: dict[str, Any], cache: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Leave out what vLLM's preset says of steps and adapters where a scenario chooses other rules for them."""
    ahead = filled.get("batching", "mixed") == "mixed" and filled["kv_check"] in ("whole-prompt", "first-chunk")
    if not ahead and given.get("async_scheduling") is None:
        filled.pop("async_scheduling", None)
    if cache.get("eviction") != "vllm-lru" and given.get("adapter_limit") is None:
        filled.pop("adapter_limit", None)


def _leave_out_what_does_not_fit(filled: dict[str, Any], data: Mapping[str, Any]) -> None:
    """Leave out what the preset says of SGLang's slots and scheduler where a scenario chooses rules beside them."""
    cache, fleet = filled["cache"], filled["fleet"]
    if not _has_batch_slots(cache, fleet, filled["storage"]) and data.get("cache", {}).get("protects") is None:
        del cache["protects"]
    given = data.get("fleet", {})
    alone = cache.get("protects") == "batch" and fleet.get("admission_interval", 1) == 1
    if not alone and given.get("kv_check") is None:
        del fleet["kv_check"]
    if fleet.get("kv_check") != "ratio" and given.get("overlap_schedule") is None:
        del fleet["overlap_schedule"]


def _has_batch_slots(cache: Mapping[str, Any], fleet: Mapping[str, Any], storage: Mapping[str, Any]) -> bool:
    """Return whether a scenario keeps to SGLang's slots; with other rules for adapters, those in use are protected."""
    gpu = cache.get("gpu")
    return (
        cache.get("eviction") in ("lru", "fifo")
        and isinstance(gpu, dict)
        and gpu.get("base_model_slot") is True
        and gpu.get("size") is None
        and (storage.get("mode") == "blocking" or fleet.get("load_at") == "admission")
        and storage.get("loaders", 1) == 1
        and cache.get("prefetch", "none") == "none"
        and fleet.get("admission") == "skip"
    )


def _filled(value: Any, given: Any) -> Any:
    """Return what a field gets of a preset's value and the scenario's, either of which may be a mapping."""
    if given is None or not isinstance(value, dict):
        return value if given is None else given
    if not isinstance(given, dict) or "fill" in given:  # a host tier that fills in another way is another one
        return given
    if any(given.get(key) is not None for key in _CAPACITY):  # a cache of another size than the preset's
        value = {key: item for key, item in value.items() if key not in _CAPACITY}
        if value.get("fill") == "start":
            value["fill"] = "arrival"
    return {**value, **given}


def schedulings_of(engine: str) -> tuple[str, ...]:
    """Return the values of ``fleet.scheduling`` that an engine, or this version of it, has."""
    known = ENGINES[engine].schedulings
    release = release_of(engine)
    numbers = () if release is None else tuple(int(part) for part in release.split(".")[:3])
    if "vLLM" in ENGINES[engine].flags and numbers and numbers < _PRIORITY_FROM:
        return ("fcfs",)
    return known


def engine_words(name: str) -> str:
    """Return an engine's name as a scenario has it, with whose rules it stands for if it is not a preset's.

    The idealised engine says so wherever its name appears.
    """
    if name == "continuous":
        return f"{name} (idealised engine)"
    versions = versions_of(name)
    return name if versions is None or name in ENGINES.names else f"{name} (rules of {versions.words})"


def preset_value(engine: str, key: str) -> Any:
    """Return what an engine's preset says of a dotted key, or None."""
    value: Any = ENGINES[engine].preset
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
