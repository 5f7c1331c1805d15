"""Ways of serving adapters: what each is, what chooses it in a scenario, and what it needs of other keys.

A scenario may choose several of ``MODES``, such as ``loads-in-steps`` and ``vllm-lru``; its replicas have the last of
them. It must meet the needs of each, and those of ``OTHER_CHOICES``, which are no modes but restrict them.

A new mode is a class in ``sim/world/replica/modes``, an entry here, and a case in ``make_mode``.
"""

from __future__ import annotations

from pydantic import BaseModel

from sim.spec.needs import UNSET, Choice, Need, at_least, eviction_but, only
from sim.spec.policies import EVICTIONS
from sim.spec.registry import Registry

AT_ADMISSION = "loads-at-admission"
AT_ARRIVAL = "loads-at-arrival"
IN_STEPS = "loads-in-steps"
VLLM_LRU = "vllm-lru"
BATCH_SLOTS = "batch-slots"
PER_ADAPTER = "per-adapter"
UNIFIED = "unified"
PREFETCHING = "prefetching"

_MODES = "sim.world.replica.modes"
_WARM_INSTEAD = "cache.warm loads before the start"
_TURN = "with eviction cycle adapters load at their turn"
_RUNNING = "or set cache.protects: running"
_VLLM_SLOTS = "vllm-lru has slots for adapters alone"

MODES = Registry(
    "adapter mode",
    (
        Choice(
            AT_ADMISSION,
            "A load starts when the scheduler could first admit a request, and overlaps with steps.",
            f"{_MODES}.protected:LoadsAtAdmission",
            set_by={"fleet.load_at": "admission"},
        ),
        Choice(
            AT_ARRIVAL,
            "A load starts when a request arrives, and overlaps with steps. The request joins the queue afterwards.",
            f"{_MODES}.protected:LoadsAtArrival",
            set_by={"fleet.load_at": "arrival"},
        ),
        Choice(
            IN_STEPS,
            "The step that admits requests first loads their missing adapters, one after the other.",
            f"{_MODES}.protected:LoadsInSteps",
            set_by={"storage.mode": "blocking"},
            needs=(
                Need({"storage.loaders": only(1)}, "blocking loads run one after the other"),
                Need({"fleet.load_at": only("admission")}, "blocking loads start at admission"),
            ),
        ),
        Choice(
            VLLM_LRU,
            "Every step touches the adapters of its batch and first loads those that are missing, if need be in place "
            "of adapters in use.",
            f"{_MODES}.vllm_lru_mode:VllmLru",
            set_by={"cache.eviction": "vllm-lru"},
            needs=(
                Need(
                    {"storage.mode": only("blocking"), "fleet.admission": only("skip")},
                    "vllm-lru loads inside the step and passes requests over the adapter limit",
                    at="cache.eviction",
                ),
                Need({"cache.gpu.unified": only(False)}, _VLLM_SLOTS),
                Need({"cache.gpu.base_model_slot": only(False)}, _VLLM_SLOTS),
                Need({"cache.gpu.size": UNSET}, "vllm-lru counts slots", hint="give cache.gpu.slots"),
                Need({"cache.host.fill": only("load")}, "vllm-lru reads storage within its steps"),
                Need(
                    {"cache.host.size": UNSET},
                    "vllm-lru counts slots in host memory too",
                    hint="give cache.host.slots",
                ),
                Need(
                    {"cache.host.slots": at_least("cache.gpu.slots")},
                    "every adapter in a slot has a copy in host memory",
                ),
                Need(
                    {"cache.pinned": only(0)},
                    "vLLM can pin adapters (pin_lora, in Python alone), but then its scheduler still admits as many "
                    "distinct adapters as it has slots, pinned or not, and lacks slots for those that aren't",
                    hint=_WARM_INSTEAD,
                ),
            ),
        ),
        Choice(
            BATCH_SLOTS,
            "Every step first loads its missing adapters, if need be in place of others that running requests use.",
            f"{_MODES}.batch_slots_mode:BatchSlotsMode",
            set_by={"cache.protects": "batch"},
            needs=(
                Need(
                    {"fleet.load_at": only("admission"), "fleet.admission": only("skip"), "storage.loaders": only(1)},
                    "with slots that protect a step, loads start at admission, one after the other, and requests over "
                    "the adapter limit are passed",
                    at="cache.protects",
                ),
                Need({"cache.prefetch": only("none")}, "SGLang loads nothing ahead", hint=_RUNNING),
                Need(
                    {"cache.eviction": only("lru", "fifo")}, "slots that protect a step only know these", hint=_RUNNING
                ),
                Need({"cache.gpu.size": UNSET}, "slots are counted", hint="give cache.gpu.slots"),
                Need({"cache.gpu.unified": only(False)}, "unified memory has no slots", hint=_RUNNING),
                Need({"cache.gpu.base_model_slot": only(True)}, "here the base model has a slot", hint=_RUNNING),
            ),
        ),
        Choice(
            PER_ADAPTER,
            "Every adapter has a queue, and as many queues are active as there is room. A load starts when the queue "
            "of its adapter becomes active, and overlaps with steps.",
            f"{_MODES}.protected:PerAdapterQueues",
            set_by={"fleet.admission": "per-adapter", "cache.eviction": "cycle"},
            needs=(
                Need(
                    {"fleet.admission": only("per-adapter"), "cache.eviction": only("cycle")},
                    "admission per-adapter and eviction cycle go together",
                ),
                Need(
                    {"storage.mode": only("overlap")},
                    "admission per-adapter loads at an adapter's turn, not in a step",
                ),
                Need(
                    {"fleet.load_at": only("admission")},
                    "with admission per-adapter, loads start at an adapter's turn",
                ),
                Need({"cache.pinned": only(0)}, _TURN),
                Need({"cache.warm": only(0, "steady")}, _TURN),
                Need({"cache.prefetch": only("none")}, "admission per-adapter loads ahead anyway"),
            ),
        ),
        Choice(
            UNIFIED,
            "Loads in steps; adapters take their memory from the KV cache, and idle ones leave first.",
            f"{_MODES}.protected:Unified",
            set_by={"cache.gpu.unified": True},
            needs=(
                Need({"cache.gpu.size": UNSET}, "unified memory has no size of its own", hint="remove it"),
                Need({"cache.gpu.base_model_slot": only(False)}, "unified memory has no slots to take one from"),
                Need(
                    {"cache.eviction": eviction_but("vllm-lru", "cycle")},
                    "unified memory has no slots, which this policy needs",
                ),
                Need(
                    {"fleet.kv_check": only("whole-answer", "peak"), "storage.mode": only("blocking")},
                    "unified memory needs an admission check that reserves KV blocks for whole answers",
                    at="cache.gpu.unified",
                ),
                Need(
                    {"cache.pinned": only(0)},
                    "with unified memory only adapters of running requests can be kept",
                    hint=_WARM_INSTEAD,
                ),
                Need(
                    {"router.controller.move": only("lazy")},
                    "with unified memory, adapters come and go with the batch, and none is loaded without a request",
                ),
            ),
        ),
        Choice(
            PREFETCHING,
            "Loads at admission; idle loaders load ahead for requests further back in the queue.",
            f"{_MODES}.protected:Prefetching",
            set_by={"cache.prefetch": "queued"},
            needs=(
                Need(
                    {"storage.mode": only("overlap"), "fleet.load_at": only("admission")},
                    "only loads that start at admission and overlap with steps can be prefetched",
                    at="cache.prefetch",
                ),
            ),
        ),
    ),
)

OTHER_CHOICES = (
    Choice(
        "stop",
        "A request over the adapter limit stops the queue.",
        set_by={"fleet.admission": "stop"},
        needs=(
            Need(
                {"fleet.load_at": only("admission")},
                "with admission stop, loads start at admission; otherwise waiting requests could hold every slot and "
                "block the first in the queue for ever",
            ),
        ),
    ),
    *(
        Choice(
            name,
            about,
            set_by={key: name},
            needs=(
                Need(
                    {"cache.eviction": only("vllm-lru")},
                    "this is a rule of vLLM's queue",
                    at=key,
                    hint="remove it, or choose engine vllm",
                ),
            ),
        )
        for key, name, about in (
            (
                "fleet.passed_requests",
                "reversed",
                "Requests over the adapter limit change their order with every step.",
            ),
            ("fleet.passed_requests", "own-queue", "Requests over the adapter limit have a queue of their own."),
            ("fleet.adapter_limit", "running", "All running requests count for the adapter limit."),
        )
    ),
    Choice(
        "ratio",
        "SGLang's scheduler.",
        set_by={"fleet.kv_check": "ratio"},
        needs=(
            Need(
                {"cache.protects": only("batch"), "fleet.admission_interval": only(1)},
                "this is SGLang's scheduler, which needs its slots and looks at its queue in every step",
                at="fleet.kv_check",
                hint="choose engine sglang, or another kv_check",
            ),
        ),
    ),
    Choice(
        "overlap-schedule",
        "Steps are planned before the result of the one before is known.",
        set_by={"fleet.overlap_schedule": True},
        needs=(
            Need(
                {"fleet.kv_check": only("ratio")}, "this is a rule of SGLang's scheduler", at="fleet.overlap_schedule"
            ),
        ),
    ),
    Choice(
        "async-scheduling",
        "Steps are decided while the GPU computes the one before, as in vLLM.",
        set_by={"fleet.async_scheduling": True},
        needs=(
            Need(
                {"fleet.batching": only("mixed"), "fleet.kv_check": only("whole-prompt", "first-chunk")},
                "this is a rule of vLLM's scheduler",
                at="fleet.async_scheduling",
                hint="remove it, or choose engine vllm",
            ),
        ),
    ),
    Choice(
        "fixed",
        "One request at a time, without steps or tokens. It loads at arrival.",
        set_by={"fleet.engine": "fixed"},
        needs=(
            Need({"storage.mode": only("overlap")}, "engine fixed has no steps that a load could block"),
            Need(
                {"cache.eviction": eviction_but(*(entry.name for entry in EVICTIONS if entry.needs_batch))},
                "this policy evicts at steps, which engine fixed does not have",
            ),
            Need({"cache.host.fill": only("load", "start")}, "engine fixed loads at arrival anyway"),
            Need({"cache.gpu.unified": only(False)}, "engine fixed has no KV cache to share"),
            Need({"cache.prefetch": only("none")}, "engine fixed loads ahead anyway"),
            Need(
                {"adapters.base_quantization": only("bf16")}, "engine fixed has no weights: its service time is given"
            ),
        ),
    ),
    Choice(
        "vllm-0.8-scraped",
        "The front end of vLLM 0.8, to reproduce measured runs.",
        set_by={"fleet.front_end": "vllm-0.8-scraped"},
        needs=(
            Need(
                {"cache.eviction": only("vllm-lru")},
                "this front end is vLLM's",
                at="fleet.front_end",
                hint="choose engine vllm-0.8 or vllm-0.32",
            ),
        ),
    ),
    Choice(
        "s-lora",
        "The front end of S-LoRA, to reproduce measured runs.",
        set_by={"fleet.front_end": "s-lora"},
        needs=(
            Need(
                {"cache.gpu.unified": only(True)},
                "this front end is S-LoRA's",
                at="fleet.front_end",
                hint="choose engine s-lora",
            ),
        ),
    ),
)


def mode_of(scenario: BaseModel) -> str:
    """Return the name of the mode in which a scenario's replicas serve adapters."""
    return [mode.name for mode in MODES if mode.is_set(scenario)][-1]
