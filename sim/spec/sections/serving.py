"""What serves: the fleet, its caches, its storage and its router."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationInfo, field_validator, model_validator

from sim.spec.base import Strict, located
from sim.spec.engines import ENGINES
from sim.spec.policies import EVICTIONS, given_in
from sim.spec.sections.full_models import FullModels
from sim.spec.sections.laws import TimeLaw
from sim.spec.units import Bytes, Seconds, Share

DEFAULT_PROFILE = "h100-64gb/llama-3.1-8b/assumed"


_BATCHING_KEYS = (
    "admission", "load_at", "batching", "admission_interval", "waiting_ratio", "chunked_prefill", "front_end",
    "max_model_len", "kv_check", "reserved_kv_blocks", "gpu_memory_utilization",
)  # fmt: skip
"""What engine ``fixed`` has not."""


class Fleet(Strict):
    """The replicas, what each can do, and how long its steps take."""

    replicas: PositiveInt = Field(default=1, le=4096)
    """How many replicas serve the traffic."""
    profile: str = DEFAULT_PROFILE
    """Where step, load and memory costs come from: a bundled name or a path to a profile."""
    engine: str = Field(
        default="continuous", description=ENGINES.described("Which rules a replica follows; any of them can be set.")
    )
    service: TimeLaw | None = None
    """Engine ``fixed`` only: the time one request takes."""
    max_num_seqs: PositiveInt = 256
    """Most sequences in one batch."""
    max_num_batched_tokens: PositiveInt = 2048
    """Token budget of one step; longer prefills are split into chunks."""
    chunked_prefill: bool = True
    """Whether a prompt longer than what is left of the budget is split. If not, it waits for a step of its own, and
    those behind it wait too; prompts longer than the whole budget are refused."""
    batching: Literal["mixed", "prefill-first"] = "mixed"
    """``mixed``: prompts and decodes share steps. ``prefill-first``: prompts are computed in steps of their own, and
    all decodes pause meanwhile."""
    block_size: PositiveInt = Field(default=16, le=65536)
    """Tokens in one KV block."""
    kv_tokens: PositiveInt | None = None
    """KV cache of one replica in tokens; unset: what the profile's memory leaves after weights and slots."""
    max_model_len: PositiveInt | None = None
    """Longest request, prompt and answer, in tokens: longer ones are refused, and the KV cache must hold one such.
    Unset: what the KV cache holds."""
    gpu_memory_utilization: Share | None = None
    """Share of the GPU's memory that the engine may use; unset: the profile's."""
    admission: Literal["skip", "stop", "per-adapter"] = "skip"
    """What a waiting request does whose adapter is not there: ``skip``: later ones pass it; ``stop``: all wait;
    ``per-adapter``: a queue for each adapter, of which as many are active as there is room, and of the active ones the
    request that waited longest goes first (see ``cache.cycle``)."""
    admission_interval: PositiveInt = Field(default=1, le=10000)
    """After waiting requests were admitted, look at the queue again only this many decode steps later, or when nobody
    runs."""
    waiting_ratio: float = Field(default=0.0, ge=0, le=1000)
    """With an ``admission_interval``: look earlier, after one decode step, once waiting requests are this many times as
    many as those that run. 0: never."""
    load_at: Literal["arrival", "admission"] | None = None
    """When a load is asked for: when the request arrives, or when the scheduler first could admit it.
    Unset: ``arrival``, except with ``admission: stop`` or ``storage.mode: blocking``."""

    kv_check: Literal["whole-prompt", "first-chunk", "whole-answer", "peak"] = "whole-prompt"
    """What of the KV cache must be free for a request to join. ``whole-prompt``, ``first-chunk``: blocks for that much;
    when answers outgrow the cache, the newest request is preempted. ``whole-answer``: blocks for prompt and answer,
    which it keeps to its end. ``peak``: as many tokens as the batch will hold at most before its last answer ends. The
    last two know how long answers will be, as if every request's ``max_tokens`` were what it does produce."""
    reserved_kv_blocks: NonNegativeInt = Field(default=0, le=1024)
    """KV blocks that the engine keeps for itself."""
    front_end: Literal["none", "vllm-0.8-scraped"] = "none"
    """What stands between clients and the engine. ``none`` to plan. ``vllm-0.8-scraped`` to reproduce measured runs: an
    API server that stops for longer and longer while its metrics are read every 2 s and at each adapter's first
    request, and a client that keeps at most 25,500 requests open."""
    full_models: FullModels | None = None
    """Replicas for full fine-tunes (``kind: full`` in ``adapters.mix``), beside ``replicas`` of the base model."""

    @field_validator("engine")
    @classmethod
    def _engine(cls, value: str) -> str:
        return ENGINES.check(value)

    @model_validator(mode="after")
    def _consistent(self) -> Fleet:
        if self.engine == "fixed" and self.service is None:
            raise located("service", "engine fixed needs its service time", hint="such as {law: fixed, value: 10 ms}")
        if self.engine != "fixed" and self.service is not None:
            raise located("service", "only engine fixed has a service time", hint="remove it, or set engine: fixed")
        for key in _BATCHING_KEYS:
            if self.engine == "fixed" and key in self.model_fields_set:
                raise located(
                    key, f"engine fixed has no {key}: it loads at arrival and serves in order", hint="remove it"
                )
        ahead = self.kv_check in ("whole-answer", "peak")
        if not self.chunked_prefill and not ahead:
            raise located(
                "chunked_prefill", "without chunks, a preempted request could outgrow the budget and never run again",
                got=f"chunked_prefill false, kv_check {self.kv_check}", allowed="kv_check whole-answer or peak",
            )  # fmt: skip
        if self.kv_check == "peak" and self.block_size != 1:
            raise located("block_size", "kv_check peak counts tokens", got=self.block_size, allowed="1")
        if self.waiting_ratio and self.admission_interval == 1:
            raise located(
                "waiting_ratio", "the queue is looked at before every step anyway", got="admission_interval 1",
                hint="give admission_interval, such as 20",
            )  # fmt: skip
        if self.admission == "per-adapter" and self.load_at == "arrival":
            raise located("load_at", "with admission per-adapter, loads are asked for when an adapter gets its turn")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise located(
                "max_num_batched_tokens", "every running sequence needs one token of the budget",
                got=f"max_num_batched_tokens {self.max_num_batched_tokens}, max_num_seqs {self.max_num_seqs}",
                allowed="at least max_num_seqs",
            )  # fmt: skip
        if self.admission == "stop" and self.load_at == "arrival":
            raise located(
                "load_at", "with admission stop, loads are asked for at admission",
                hint="waiting requests could hold every slot and block the first in the queue for ever",
            )  # fmt: skip
        return self


class GpuCache(Strict):
    """GPU memory for adapters: a number of slots, or bytes."""

    slots: PositiveInt | None = None
    """Adapters that fit; each slot is padded to all linear modules at the largest rank of the scenario."""
    size: Bytes | None = None
    """Bytes for adapters, each taking its exact size."""
    unified: bool = False
    """Whether adapters take their memory from the KV cache when they come, each its exact size, instead of having some
    set aside. ``slots`` then is the most that may be there at once; unset: as many as fit."""
    base_model_slot: bool = False
    """Whether the base model takes one of the slots; it gives it up only when all others are in use."""

    @model_validator(mode="after")
    def _one_way(self) -> GpuCache:
        if self.unified:
            if self.size is not None:
                raise located("size", "unified memory has no size of its own", got=self.size, hint="remove it")
            if self.base_model_slot:
                raise located("base_model_slot", "unified memory has no slots to take one from", got=True)
        elif (self.slots is None) == (self.size is None):
            raise located("slots", "give either slots or size", got=f"slots {self.slots}, size {self.size}")
        elif self.base_model_slot and self.slots is None:
            raise located("base_model_slot", "a cache by size has no slots", hint="give cache.gpu.slots")
        return self


class HostCache(Strict):
    """Host memory for adapters, between storage and GPU; always LRU."""

    slots: PositiveInt | None = None
    """Adapters that fit, whatever their size."""
    size: Bytes | None = None
    """Bytes for adapters, each taking its exact size."""
    fill: Literal["load", "arrival", "start"] = "load"
    """How copies come there. ``load``: a load from storage to the GPU leaves one. ``arrival``: a request whose adapter
    isn't there has it fetched when it arrives, by the loaders of storage, and waits for that; loads to the GPU then
    come from host memory. An adapter with requests inside keeps its place. ``start``: all are there from the start,
    without limit."""
    full: Literal["wait", "reject"] = "wait"
    """With ``fill: arrival``, where every place is kept by an adapter with requests inside: a request for another one
    waits for a place, or is rejected."""

    @model_validator(mode="after")
    def _one_way(self) -> HostCache:
        if self.full == "reject" and self.fill != "arrival":
            raise located("full", "only a request that fetches at arrival can be rejected", hint="set fill: arrival")
        if self.fill == "start":
            for key in ("slots", "size"):
                if getattr(self, key) is not None:
                    raise located(key, "host memory that holds all adapters has no limit", hint=f"remove {key} or fill")
        elif (self.slots is None) == (self.size is None) and not (self.fill == "arrival" and self.slots is None):
            raise located("slots", "give either slots or size", got=f"slots {self.slots}, size {self.size}")
        return self


class Cache(Strict):
    """Where adapters live near the GPU."""

    gpu: GpuCache = GpuCache(slots=32)
    """GPU memory for adapters, per replica."""
    host: HostCache | None = None
    """Host memory for adapters, per replica; unset: every load comes from storage (with ``vllm-lru``: as many host
    slots as GPU slots)."""
    eviction: str = Field(
        default="lru",
        description=EVICTIONS.described(
            "Which adapter leaves a full GPU cache. Only ``vllm-lru`` takes adapters in use. Policies of your own: "
            "docs/own-policy.md."
        ),
    )
    cycle: Seconds = Field(default=2.0, gt=0)
    """With ``eviction: cycle``: how long an adapter may keep others from a place while its queue isn't empty."""
    pinned: NonNegativeInt = 0
    """As many of the most popular adapters are in GPU memory from the start and never leave. They take their share of
    it, in use or not; room for one more adapter must be left."""
    warm: NonNegativeInt = 0
    """As many of the most popular adapters, after the pinned ones, are in GPU memory at the start, up to the first that
    finds no room; they may leave. Loads before the start take no time and are not counted."""
    prefetch: Literal["none", "queued"] = "none"
    """``queued``: with loads that are asked for at admission and overlap with steps, idle loaders load what requests in
    the queue will need, in the order of the queue, into free room or that of adapters which are not in use and which
    nobody in the queue waits for. A request that finds its adapter there is a hit; one that comes while it is on its
    way is a delayed hit."""

    @field_validator("eviction")
    @classmethod
    def _eviction(cls, value: str, info: ValidationInfo) -> str:
        given = given_in(info.context)
        return value if given.any_name else EVICTIONS.check(value, given.evictions)


class Storage(Strict):
    """How adapters are loaded. Every replica has its own loaders."""

    loaders: PositiveInt = 1
    """Loads from storage that run at the same time; the rest queue, first come first served."""
    load: TimeLaw | None = None
    """Time of one load from storage to the GPU; unset: computed from the profile and the adapter's size."""
    host_loaders: PositiveInt = 1
    """Copies from host to GPU that run at the same time."""
    host_load: TimeLaw | None = None
    """Time of one load from host to GPU; unset: computed from the profile and the adapter's size."""
    mode: Literal["overlap", "blocking"] = "overlap"
    """``overlap``: steps go on during a load and only its requests wait. ``blocking``: a step waits for the
    loads of the requests it admits, one after the other."""
