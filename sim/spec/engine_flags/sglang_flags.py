"""The options of SGLang: https://docs.sglang.ai/advanced_features/server_arguments.html and lora.html next to it."""

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
    PROJECTIONS,
    QUANTIZED,
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
    same,
    tensor_parallel,
    unless,
    where,
    whole_number,
)
from sim.spec.registry import Registry

_EVICTIONS = ("lru", "fifo")
"""What SGLang takes for ``--lora-eviction-policy``."""
_PROJECTIONS = {name: f"{name}_proj" for name in PROJECTIONS}


def _target_modules(replica: Replica) -> str:
    adapters = replica.scenario.adapters
    kinds = [kind.targets for kind in adapters.mix if kind.kind == "lora"] or [adapters.targets]
    targets = {name for each in kinds for name in (_PROJECTIONS if isinstance(each, str) else each)}
    return " ".join(name for short, name in _PROJECTIONS.items() if short in targets)


def _eviction(replica: Replica) -> str | None:
    eviction = replica.scenario.cache.eviction
    return eviction if eviction in _EVICTIONS else None


def _seconds(words: Sequence[str], given: Given) -> Mapping[str, object]:
    return {"fleet.drain_wait": f"{words[0]} s"} if words else {}


def _policy(replica: Replica) -> str | None:
    return "lpm" if replica.scenario.fleet.scheduling == "lpm" else None


def _without_overlap(replica: Replica) -> bool | None:
    fleet = replica.scenario.fleet
    return True if fleet.kv_check == "ratio" and not fleet.overlap_schedule else None


def _chunk(words: Sequence[str], given: Given) -> Mapping[str, object]:
    size = whole_number(words)
    return {"fleet.chunked_prefill": False} if size is not None and size < 0 else _prefill_tokens(words, given)


def _prefill_tokens(words: Sequence[str], given: Given) -> Mapping[str, object]:
    limits = (whole_number(given.get(name, ())) for name in ("chunked-prefill-size", "max-prefill-tokens"))
    positive = [limit for limit in limits if limit is not None and limit > 0]
    return {"fleet.max_num_batched_tokens": min(positive)} if positive else {}


def _kv_tokens(replica: Replica) -> int | None:
    """Return the size of the KV cache, also where it follows from memory: SGLang's share of it means something else."""
    given = replica.scenario.fleet.kv_tokens
    return replica.kv_tokens if given is None else given


SGLANG = EngineFlags(
    "SGLang",
    command="python -m sglang.launch_server --model-path MODEL",
    flags=Registry(
        "option of SGLang",
        (
            Flag("--enable-lora", EVERY_SCENARIO, written=always),
            same(
                "--max-loras-per-batch",
                "cache.gpu.slots",
                about="with cache.gpu.base_model_slot, the base model takes one of them",
                unset=8,
            ),
            Flag(
                "--max-lora-rank",
                "the largest rank of all adapters",
                sets=("adapters.rank",),
                written=largest_rank,
            ),
            Flag("--lora-target-modules", sets=("adapters.targets",), written=_target_modules, reads=modules),
            same("--max-loaded-loras", "cache.host.slots"),
            Flag("--lora-eviction-policy", sets=("cache.eviction",), written=_eviction),
            same("--max-running-requests", "fleet.max_num_seqs"),
            same(
                "--chunked-prefill-size",
                "fleet.max_num_batched_tokens",
                about="-1: fleet.chunked_prefill false",
                reads=_chunk,
            ),
            same("--context-length", "fleet.max_model_len"),
            Flag(
                "--model-path",
                OF_PROFILE,
                sets=("fleet.profile", "adapters.base_model"),
                also=("--model",),
                reads=means_nothing,
            ),
            Flag("--lora-paths", COUNTED, sets=("adapters.count",), reads=counted),
            Flag(
                "--enable-lora-overlap-loading",
                sets=("storage.mode: overlap", "fleet.load_at: admission"),
                written=where("storage.mode", "overlap"),
            ),
            Flag(
                "--lora-drain-wait-threshold",
                "in seconds; 0: off",
                sets=("fleet.drain_wait",),
                written=unless("fleet.drain_wait", 0.0),
                reads=_seconds,
            ),
            Flag("--lora-backend", "kernels cost what the profile says"),
            Flag(
                "--max-prefill-tokens",
                "the smaller of both limits",
                sets=("fleet.max_num_batched_tokens",),
                reads=_prefill_tokens,
            ),
            Flag(
                "--enable-mixed-chunk",
                sets=("fleet.batching: mixed",),
                written=where("fleet.batching", "mixed"),
            ),
            Flag(
                "--mem-fraction-static",
                "SGLang's share holds weights and KV cache, loraplan's all that the engine uses",
                sets=("fleet.gpu_memory_utilization",),
                reads=means_nothing,
            ),
            Flag("--max-total-tokens", sets=("fleet.kv_tokens",), written=_kv_tokens),
            same("--page-size", "fleet.block_size"),
            Flag("--kv-cache-dtype", KV_FORMAT),
            Flag("--dtype", OF_PROFILE, sets=("fleet.profile",), reads=means_nothing),
            Flag("--quantization", QUANTIZED, sets=("adapters.base_quantization",), reads=means_nothing),
            Flag(
                "--disable-radix-cache",
                sets=("fleet.prefix_caching: false",),
                written=where("fleet.prefix_caching", False),
            ),
            Flag(
                "--schedule-policy",
                "fcfs, or lpm; loraplan has none of the others",
                sets=("fleet.scheduling",),
                written=_policy,
                reads=chosen("fleet.scheduling", fcfs="fcfs", lpm="lpm"),
            ),
            Flag(
                "--schedule-conservativeness",
                sets=("fleet.schedule_conservativeness",),
                written=unless("fleet.schedule_conservativeness", 1.0),
            ),
            Flag(
                "--disable-overlap-schedule",
                sets=("fleet.overlap_schedule: false",),
                written=_without_overlap,
            ),
            Flag("--max-queued-requests", "the queue has no limit"),
            Flag(
                "--tp-size",
                BY_PROFILE,
                sets=("fleet.tensor_parallel",),
                also=("--tensor-parallel-size", "--tp"),
                written=tensor_parallel,
            ),
            Flag("--pp-size", NOT_SPLIT, also=("--pipeline-parallel-size", "--pp")),
            Flag("--ep-size", NOT_SPLIT, also=("--expert-parallel-size", "--ep")),
            Flag("--dp-size", EACH_ITS_OWN, sets=("fleet.replicas",), also=("--data-parallel-size", "--dp")),
            Flag(
                "--load-balance-method",
                sets=("router.policy",),
                reads=chosen("router.policy", round_robin="round-robin"),
            ),
            Flag("--speculative-algorithm", NO_SPECULATION),
            Flag("--disaggregation-mode", NO_SPLIT),
        ),
    ),
)
