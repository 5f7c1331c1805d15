"""Replays fleets that speculate with vLLM's own scheduler, without a model; run by vLLM's Python.

Reads cases as JSON: limits, requests, the chances of their drafts, and of each step the time, and what loraplan has:
tokens by request, free blocks and preemptions so far. Prints of each case its steps, its preemptions, and the first
step that vLLM decides otherwise.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}

import torch
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    SpeculativeConfig,
    VllmConfig,
)
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

STOP = 5
"""A token that ends answers, below all others."""

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
}


def make_scheduler(case: dict[str, Any], model: str) -> Scheduler:
    target = ModelConfig(model=model, skip_tokenizer_init=True, dtype="float32", max_model_len=case["longest"])
    drafts = SpeculativeConfig(
        method="ngram",
        num_speculative_tokens=case["tokens"],
        prompt_lookup_max=3,
        target_model_config=target,
        target_parallel_config=ParallelConfig(),
    )
    cache = CacheConfig(block_size=case["size"], enable_prefix_caching=case["caches"])
    cache.num_gpu_blocks = case["blocks"] + 1  # one is vLLM's own
    config = VllmConfig(
        model_config=target,
        cache_config=cache,
        scheduler_config=SchedulerConfig(
            max_num_seqs=case["seqs"],
            max_num_batched_tokens=case["budget"],
            max_model_len=case["longest"],
            is_encoder_decoder=False,
            async_scheduling=False,
        ),
        device_config=DeviceConfig("cpu"),
        speculative_config=drafts,
    )
    layer = FullAttentionSpec(block_size=case["size"], num_kv_heads=1, head_size=1, dtype=torch.float32)
    kv = KVCacheConfig(case["blocks"] + 1, [], [KVCacheGroupSpec(["layer"], layer)])
    kind = AsyncScheduler if case["asynchronous"] else Scheduler
    scheduler = kind(config, kv, StructuredOutputManager(config), block_size=case["size"])
    scheduler.num_lookahead_tokens = case["ahead"]  # that of a draft model, which would have to be there
    return scheduler


def replay(case: dict[str, Any], model: str) -> dict[str, Any]:
    scheduler, number, preempted = make_scheduler(case, model), 10, 0
    hasher = get_request_block_hasher(case["size"], sha256) if case["caches"] else None
    answers = {each["id"]: each["output"] for each in case["requests"]}
    stopping = {each["id"] for each in case["requests"] if each["stops"]}

    def fresh(count: int) -> list[int]:
        nonlocal number
        number += count
        return list(range(number - count, number))

    def tokens_of(request: Request, complete: bool, drafted: int) -> list[int]:
        """Return what a step gives a request; the last one of an answer may be a stop token."""
        known, index = request.num_output_tokens, request.request_id
        given = fresh(1 + min(case["luck"].get(f"{index}/{known}", 0), drafted)) if complete else []
        if index in stopping and known < answers[index] <= known + len(given):
            given[answers[index] - known - 1] = STOP
        return given

    def process(step: SchedulerOutput, scheduled: list[tuple[Request, bool, int]]) -> None:
        given = [tokens_of(*each) for each in scheduled]
        ids = [request.request_id for request, _, _ in scheduled]
        places = {index: at for at, index in enumerate(ids)}
        scheduler.update_from_output(step, ModelRunnerOutput(ids, places, given))
        if not case["asynchronous"]:
            left = [index for index in ids if index in scheduler.requests]
            scheduler.update_draft_token_ids(DraftTokenIds(left, [[7] * case["tokens"] for _ in left]))

    under_way: list[tuple[SchedulerOutput, list[tuple[Request, bool, int]]]] = []
    to_come = sorted(case["requests"], key=lambda request: request["arrival_s"])
    for place, (now, *expected) in enumerate(case["steps"]):
        while len(under_way) > int(case["asynchronous"]):
            process(*under_way.pop(0))
        while to_come and to_come[0]["arrival_s"] <= now:
            each = to_come.pop(0)
            most = {"max_tokens": 10**6, "stop_token_ids": [STOP]} if each["stops"] else {"max_tokens": each["output"]}
            limit = SamplingParams(ignore_eos=True, **most)
            scheduler.add_request(Request(each["id"], fresh(each["prompt"]), limit, None, block_hasher=hasher))
        step = scheduler.schedule()
        preempted += len(step.preempted_req_ids or ())
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        found = [step.num_scheduled_tokens, free, preempted]
        if found != expected:
            return {"step": place, "vllm": found, "loraplan": expected}
        drafts = step.scheduled_spec_decode_tokens
        scheduled = [
            (request, request.num_computed_tokens >= request.num_tokens, len(drafts.get(request.request_id, ())))
            for request in (scheduler.requests[index] for index in found[0])
        ]
        under_way.append((step, scheduled))
    for each in under_way:
        process(*each)
    return {"steps": len(case["steps"]), "preempted": preempted, "left": list(scheduler.requests)}


if __name__ == "__main__":
    init_none_hash(sha256)
    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
        print(json.dumps([replay(case, folder) for case in json.load(sys.stdin)]))
