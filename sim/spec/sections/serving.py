"""What serves: the fleet, its caches, its storage and its router."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    GetJsonSchemaHandler,
    NonNegativeInt,
    PositiveInt,
    SerializationInfo,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from sim.spec.base import Errors, Strict, checks, located
from sim.spec.engines import DEFAULT_ENGINE, ENGINES
from sim.spec.files.tree import OF_A_POOL
from sim.spec.gpus import GPUS, gpu_named, unknown_gpu_hint
from sim.spec.policies import EVICTIONS, given_in
from sim.spec.sections.control_plane import Autoscale
from sim.spec.sections.laws import MAX_TOKENS, Acceptance, TimeLaw, TimeOrLaw
from sim.spec.units import Bandwidth, Bytes, Price, Seconds, Share

# Several kinds of replica in one fleet, replicas of full models among them: which requests each takes.

_SWAP_KEYS = ("resident", "load", "turn")
"""Keys that only a pool of replicas has."""


class FullModels(Strict):
    """The replicas that serve full fine-tunes, and only these."""

    serve: Literal["dedicated", "swap"] = "dedicated"
    """``dedicated``: every full model has its own replicas. ``swap``: one pool of replicas for all full models; a
    replica holds ``resident`` of them, and loads another once one has drained."""
    replicas: PositiveInt = Field(default=1, le=4096)
    """``dedicated``: replicas of each full model. ``swap``: replicas of the pool."""
    resident: PositiveInt | None = Field(default=None, le=64)
    """``swap`` only: whole models that a replica holds at a time. Unset: 1."""
    load: TimeLaw | None = None
    """``swap`` only: time to load one whole model, during which the replica is idle. Unset: size over storage
    bandwidth, plus the profile's cost per tensor."""
    turn: Seconds | None = None
    """``swap`` only: how long after its load a model's requests may overtake older ones for another model. Unset:
    never, as in Ollama."""

    @checks
    def _meaningful(self) -> Errors:
        for key in _SWAP_KEYS:
            if self.serve == "dedicated" and getattr(self, key) is not None:
                yield located(
                    key,
                    "dedicated replicas hold their model from the start and never load",
                    got="serve dedicated",
                    allowed="only with serve swap",
                    hint=f"remove {key}, or set serve: swap",
                )

    @property
    def places(self) -> int:
        """Whole models that a replica holds at a time, with the default resolved."""
        return self.resident or 1


MOST_REPLICAS = 4096
"""Replicas of a fleet, those of all pools and of full models among them."""


class Served(Strict):
    """Requests for adapters of these kinds and of these tenants."""

    kinds: tuple[NonNegativeInt, ...] = ()
    """Places in ``adapters.mix``, from 0; none: any."""
    tenants: tuple[str, ...] = ()
    """Names; none: any."""

    @checks
    def _something(self) -> Errors:
        if not (self.kinds or self.tenants):
            yield located("", "names neither kinds nor tenants", hint="such as {tenants: [free]}")


class KvOffload(Strict):
    """Host memory for KV blocks of prompts, as with vLLM's OffloadingConnector."""

    size: Bytes | None = None
    """Bytes for each replica (vLLM's ``--kv-offloading-size``)."""
    host_memory: Bytes | None = None
    """Instead of ``size``: bytes for KV and copies of adapters together. KV gets what the copies leave."""
    policy: Literal["lru", "arc"] = "lru"
    """Which blocks leave when it is full."""
    answers: bool = False
    """Whether generated blocks are kept as well."""
    store_from: NonNegativeInt = Field(default=0, le=1000)
    """A block is stored when it is computed for this time; 0 or 1: at once."""
    bandwidth: Bandwidth = 25_000_000_000
    """Between host memory and each GPU, in each direction, shared with copies of adapters. The default is PCIe 4.0."""

    @checks
    def _one_way(self) -> Errors:
        if (self.size is None) == (self.host_memory is None):
            got = "neither" if self.size is None else "both"
            yield located("size", "give either size or host_memory", got=got)


class ReadFailures(Strict):
    """Reads of KV that fail."""

    share: Share = Field(gt=0)
    """Share of the reads."""
    policy: Literal["fail", "recompute"] = "fail"
    """What becomes of the request (``kv_load_failure_policy``): ``fail``: it ends without an answer; ``recompute``: the
    decode replica computes its prompt."""
    lease: Seconds = Field(default=30.0, le=3600)
    """For how long the prefill replica still holds the blocks (``kv_lease_duration``)."""


class Speculation(Strict):
    """A draft guesses the next tokens of each sequence, and the next step verifies them (speculative decoding)."""

    tokens: NonNegativeInt = Field(le=64)
    """Tokens drafted for each sequence in every step (vLLM's ``num_speculative_tokens``). 0: none."""
    acceptance: Acceptance
    """How likely a drafted token is accepted if all before it were: ``70%``, or a list by position, the last of which
    holds for later ones. It is that of the base model, and of adapters without an ``acceptance`` of their own
    (``adapters``)."""
    draft: Share
    """Time of drafting one token, as a share of the model's own decode step without adapters: 0% for n-gram, about 10%
    for EAGLE, and for a small model the ratio of the two sizes."""
    method: Literal["eagle3", "draft_model", "ngram"] = "eagle3"
    """Where drafts come from. A draft with KV of its own (not ``ngram``) takes blocks for ``tokens`` more. By itself
    vLLM sets ``async_scheduling`` with ``eagle3``, and with ``draft_model`` from 0.28 on."""


class KvTransfer(Strict):
    """How decode replicas read the KV of prompts from prefill replicas (vLLM's NixlConnector, pull mode)."""

    bandwidth: Bandwidth = 25_000_000_000
    """Of a read to each GPU. The default is 200 Gbit/s."""
    latency: Seconds = Field(default=0.002, le=60)
    """Time of a read besides its bytes."""
    streams: PositiveInt = Field(default=1, le=1024)
    """Reads of one decode replica at a time, each with ``bandwidth``."""
    min_prompt: NonNegativeInt = Field(default=0, le=MAX_TOKENS)
    """Shorter prompts are computed where they are answered."""
    failures: ReadFailures | None = None
    """Reads that fail; unset: none does."""


_OF_FIXED = (
    *("replicas", "gpu", "price", "profile", "gpus_per_replica", "engine", "service"),
    *("max_num_seqs", "max_num_batched_tokens", "block_size", "uncached_blocks", "kv_tokens"),
)
"""Keys of a replica that engine ``fixed`` has, or ignores."""


class ReplicaKeys(Strict):
    """What a fleet says of its replicas, and each of its pools of its own."""

    replicas: PositiveInt = Field(default=1, le=4096)
    """How many replicas serve the traffic; with ``autoscale``, at the start."""
    gpu: str | None = Field(default=None, json_schema_extra={"examples": list(GPUS)})
    """The GPU, such as ``h100-80gb`` or ``l40s``. With ``adapters.base_model`` and ``engine`` it picks the profile
    (docs/profiles.md)."""
    price: Price | None = None
    """US dollars for one GPU for an hour: ``2.50``, ``2.50 USD/h`` or ``$2.50/h``. Another price needs no new
    simulation."""
    profile: str | None = None
    """Where step, load and memory costs come from: a bundled name or a path. Unset: what ``gpu``,
    ``adapters.base_model`` and ``engine`` pick."""
    tensor_parallel: PositiveInt | None = Field(default=None, le=64)
    """GPUs of one replica, over which the model is split. Unset: those of the profile, or 1 with ``gpu``. Another
    number takes the bundled profile for so many GPUs."""
    gpus_per_replica: PositiveInt | None = Field(default=None, le=1024)
    """GPUs of one replica for costs and manifests, where a profile of one device stands for several. Unset:
    ``tensor_parallel``."""
    fully_sharded_loras: bool = False
    """vLLM with several GPUs per replica: whether both sides of every adapter are split over them, so that slots are
    smaller (docs/pools.md)."""
    expert_parallel: bool = False
    """vLLM only: whether each GPU has whole experts and their adapters (docs/memory.md). Steps take the same time."""
    engine: Annotated[str, AfterValidator(ENGINES.check)] = Field(
        default=DEFAULT_ENGINE,
        description=ENGINES.described(
            "Which rules a replica follows; any of them can be set. ``vllm`` is the newest version, and any version, "
            "such as ``vllm-0.16``, finds the preset with its rules (docs/engines.md)."
        ),
    )
    service: TimeOrLaw | None = None
    """Engine ``fixed`` only: the time that one request takes, such as ``10 ms``."""
    max_num_seqs: PositiveInt = 256
    """Most sequences in one batch. With vLLM, unset: what ``vllm serve`` takes on ``gpu``, 1024 on h100-80gb, h200 and
    b200. With SGLang and TensorRT-LLM 2048, with S-LoRA 1000."""
    max_num_batched_tokens: PositiveInt = Field(default=2048, le=MAX_TOKENS)
    """Token budget of one step. With vLLM, unset: what ``vllm serve`` takes on ``gpu``, 8192 on h100-80gb and h200,
    16384 on b200. With SGLang, unset: its chunk on ``gpu``, 4096 to 16384."""
    budget_kv_share: float = Field(default=0.0, ge=0, le=1)
    """The token budget is at least this share of the KV cache's tokens, as in S-LoRA (a sixth)."""
    chunked_prefill: bool = True
    """Whether a prompt longer than the rest of the budget is split. If not, it waits for a step of its own, and so do
    the requests behind it; one longer than the whole budget is refused."""
    batching: Literal["mixed", "prefill-first"] = "mixed"
    """``mixed``: prompts and decodes share steps. ``prefill-first``: prompts have steps of their own, in which all
    decodes pause."""
    block_size: PositiveInt = Field(default=16, le=65536)
    """Tokens in one KV block."""
    prefix_caching: bool = False
    """Whether requests reuse the KV blocks of others whose prompts begin with the same tokens (docs/prefix-caching.md).
    The presets of vLLM and SGLang have it on."""
    uncached_blocks: Literal["first", "last"] = "first"
    """With ``prefix_caching``: where a block that was never full goes when it becomes free. ``first``: it is used again
    at once. ``last``: behind cached ones, as in vLLM before 0.23."""
    kv_offload: KvOffload | None = None
    """Host memory for the KV of prompts (docs/kv-offload.md)."""
    speculation: Speculation | None = None
    """Drafted tokens that a step verifies (docs/speculation.md)."""
    kv_tokens: PositiveInt | None = None
    """KV cache of one replica in tokens; unset: the memory that weights and slots leave."""
    max_model_len: PositiveInt | None = None
    """Longest request in tokens, prompt and answer: longer ones are refused, and the KV cache must hold one. Unset:
    limited by the KV cache."""
    gpu_memory: Bytes | None = Field(default=None, gt=0)
    """Memory of one GPU that differs from the profile's in this alone, such as ``96 GB``."""
    gpu_memory_utilization: Share | None = None
    """Share of the GPU's memory that the engine may use; unset: the profile's, or what SGLang would take."""
    admission: Literal["skip", "stop", "per-adapter"] = "skip"
    """What happens to a waiting request whose adapter is not resident. ``skip``: later requests overtake it. ``stop``:
    all wait. ``per-adapter``: every adapter has a queue, as many are active as there is room, and of these the request
    that waited longest goes first (see ``cache.cycle``)."""
    passed_requests: Literal["keep-order", "reversed", "own-queue"] = "keep-order"
    """With ``cache.eviction: vllm-lru``, where requests wait whose adapter would be one too many. ``keep-order``: at
    the head of the queue, behind preempted ones. ``reversed``: there, in reverse order after every step. ``own-queue``:
    in a queue of their own, which goes first."""
    adapter_limit: Literal["scheduled", "running"] = "scheduled"
    """With ``cache.eviction: vllm-lru``, which adapters count for the limit of ``cache.gpu.slots``. ``scheduled``:
    those of requests that get a token in the step. ``running``: those of all running requests, as in vLLM 0.33."""
    scheduling: Literal["fcfs", "priority", "vtc", "lcf", "lpm"] = "fcfs"
    """Which waiting request goes first. ``fcfs``: the one that came first. ``priority``: that of the tenant with the
    lowest ``priority``; when KV memory runs out, the last in this order is preempted. ``vtc``: that of the tenant that
    was served least; ``lcf``: the same, but a pause does not raise its counter (docs/tenants.md). ``lpm``: that of
    which the prefix cache knows most, while at most 128 wait. Only with an engine that has the policy."""
    drain_wait: Seconds = Field(default=0.0, ge=0)
    """With ``kv_check: ratio``: how long an adapter waits for a slot before another one gets no more long requests
    (SGLang's ``lora_drain_wait_threshold``). 0: never."""
    self_preemption: Literal["goes-on", "ends-scan"] = "goes-on"
    """With ``scheduling: priority``, what follows if a request that lacks a KV block is itself the one to be preempted.
    ``goes-on``: the next running request is looked at (vLLM 0.33). ``ends-scan``: those behind it get no token in this
    step (up to 0.32)."""
    async_scheduling: bool = False
    """Whether the next step is decided while the GPU computes the one before, as vLLM does on GPUs from 0.14 on
    (docs/engines.md). It needs ``batching: mixed``, vLLM's rules of ``kv_check`` and ``scheduling``, and no drafts of
    method ``ngram``."""
    admission_interval: PositiveInt = Field(default=1, le=10000)
    """Decode steps between two admissions from the queue, unless no request is running."""
    prefill_schedule_interval: PositiveInt = Field(default=1, le=10000)
    """After a step that computed prompts and left no request waiting, steps up to this number compute no prompts while
    requests decode (vLLM 0.33). 1: off."""
    waiting_ratio: float = Field(default=0.0, ge=0, le=1000)
    """With an ``admission_interval``: admit after one decode step once this many times more requests wait than run. 0:
    never."""
    load_at: Literal["arrival", "admission"] | None = None
    """Whether a load starts when the request arrives, or when the scheduler could first admit it. Unset: ``arrival``,
    except with ``admission: stop`` or ``storage.mode: blocking``."""

    kv_check: Literal["whole-prompt", "first-chunk", "whole-answer", "peak", "ratio"] = "whole-prompt"
    """How much of the KV cache must be free for a request to join. ``whole-prompt``, ``first-chunk``: blocks for that
    much; when answers outgrow the cache, the newest request is preempted. ``whole-answer``: blocks for prompt and
    answer. ``peak``: the most tokens that the batch will hold before its last answer ends. Both take the length of the
    answer for the request's ``max_tokens``. ``ratio``: SGLang's rule (docs/engines.md)."""
    schedule_conservativeness: float = Field(default=1.0, gt=0, le=10)
    """With ``kv_check: ratio``: a factor on the share of answers for which room is kept."""
    overlap_schedule: bool = False
    """With ``kv_check: ratio``: whether each step is planned while the one before runs, without its result."""
    reserved_kv_blocks: NonNegativeInt = Field(default=0, le=1024)
    """KV blocks that the engine keeps for itself."""
    front_end: Literal["none", "vllm-0.8-scraped", "s-lora"] = "none"
    """The front end between clients and engine. ``none``: for planning. The others reproduce measured runs.
    ``vllm-0.8-scraped``: an API server that pauses longer and longer whenever its metrics are read and at each
    adapter's first request. ``s-lora``: 30 ms for each request."""
    front_end_time: Seconds | None = Field(default=None, le=60)
    """Time that a request spends between client and engine; TTFT and E2E include it. Unset: as measured with the
    profile; else 7 ms for vLLM from 0.14 on, the median of measured servers, and 0 for others and with a
    ``front_end``."""

    @field_validator("gpu")
    @classmethod
    def _gpu(cls, value: str | None) -> str | None:
        if value is None:
            return None
        found = gpu_named(value)
        if found is None:
            raise located("", "unknown GPU", got=value, allowed=", ".join(GPUS), hint=unknown_gpu_hint(value))
        return found.name


def _not_one_limit(slots: int | None, size: float | None) -> PydanticCustomError:
    """Return the error of a cache that has both limits or none."""
    got = "neither" if slots is None else f"slots {slots}, size {size}"
    return located("slots", "give either slots or size", got=got)


class GpuCache(Strict):
    """GPU memory for adapters: a number of slots, or bytes."""

    slots: PositiveInt | None = None
    """Number of adapter slots; each is padded to all linear modules at the scenario's largest rank."""
    size: Bytes | None = None
    """Bytes for adapters; each takes its exact size."""
    unified: bool = False
    """Whether adapters take their exact size from the KV cache when they load. ``slots`` then limits the resident
    adapters; unset: as many as fit."""
    base_model_slot: bool = False
    """Whether the base model takes one of the slots; it loses it only when all others are in use. With ``storage.mode:
    blocking``, a request to the base model then needs a slot like any other."""

    @checks
    def _one_way(self) -> Errors:
        if self.unified:
            return
        if (self.slots is None) == (self.size is None):
            yield _not_one_limit(self.slots, self.size)
        elif self.base_model_slot and self.slots is None:
            yield located("base_model_slot", "a cache by size has no slots", hint="give cache.gpu.slots")


class HostCache(Strict):
    """Host memory for adapters, between storage and GPU; always LRU."""

    slots: PositiveInt | None = None
    """Number of adapters, of any size."""
    size: Bytes | None = None
    """Bytes for adapters; each takes its exact size. Not with ``vllm-lru``, which counts slots here, too."""
    fill: Literal["load", "arrival", "start"] = "load"
    """How host memory is filled. ``load``: a load from storage to the GPU leaves a copy. ``arrival``: a request whose
    adapter has no copy fetches it on arrival, through the storage loaders; an adapter with requests in the system keeps
    its place. ``start``: all adapters are there from the start, without limit."""
    full: Literal["wait", "reject"] = "wait"
    """With ``fill: arrival``, if every place is needed by requests in the system: whether a request for another adapter
    waits for a place or is rejected."""

    @checks
    def _one_way(self) -> Errors:
        if self.full == "reject" and self.fill != "arrival":
            yield located("full", "only a request that fetches at arrival can be rejected", hint="set fill: arrival")
        if self.fill == "start":
            for key in ("slots", "size"):
                if getattr(self, key) is not None:
                    yield located(key, "host memory that holds all adapters has no limit", hint=f"remove {key} or fill")
        elif (self.slots is None) == (self.size is None) and not (self.fill == "arrival" and self.slots is None):
            yield _not_one_limit(self.slots, self.size)


class Cache(Strict):
    """The caches for adapters in GPU and host memory."""

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
    protects: Literal["running", "batch"] = "running"
    """Which adapters can't be evicted. ``running``: those of running requests. ``batch``: those of the step about to
    run, as in SGLang, where a prefill may evict adapters of requests that decode, and their next step loads them again.
    The base model then counts as an adapter."""
    cycle: Seconds = Field(default=2.0, gt=0)
    """With ``eviction: cycle``: how long an adapter may keep its place while its queue isn't empty and others wait."""
    pinned: NonNegativeInt = 0
    """Number of most popular adapters that are in GPU memory from the start and never evicted. There must be room for
    one more."""
    warm: NonNegativeInt | Literal["steady"] = 0
    """Number of most popular adapters, after the pinned ones, that are in GPU memory at the start but may be evicted.
    ``steady``: GPU and host memory start full, with the adapters that were used last, so a short run shows what a long
    one would. Loads before the start are not counted. ``loraplan plan`` uses ``steady`` unless the scenario sets this
    key."""
    prefetch: Literal["none", "queued"] = "none"
    """``queued``: with loads that start at admission and overlap with steps, idle loaders load the adapters of queued
    requests, in queue order, into room that neither running nor queued requests need. A request that arrives during
    such a load is a delayed hit."""

    @property
    def starts_full(self) -> bool:
        """Whether GPU and host memory are full at the start."""
        return self.warm == "steady"

    @field_validator("eviction")
    @classmethod
    def _eviction(cls, value: str, info: ValidationInfo) -> str:
        given = given_in(info.context)
        return value if given.any_name else EVICTIONS.check(value, given.evictions)


class Storage(Strict):
    """How adapters are loaded. Every replica has its own loaders."""

    loaders: PositiveInt = 1
    """Loads from storage that run at the same time; the rest queue. 1 where they block steps (``mode``)."""
    load: TimeLaw | None = None
    """Time of one load from storage to the GPU; unset: computed from the profile and the adapter's size."""
    bandwidth: Bandwidth | None = None
    """Bytes per second of each load from storage, such as those of a network disk; unset: the profile's."""
    host_loaders: PositiveInt = 1
    """Copies from host to GPU that run at the same time."""
    host_load: TimeLaw | None = None
    """Time of one load from host memory to the GPU; unset: computed likewise."""
    mode: Literal["overlap", "blocking"] = "overlap"
    """``overlap``: steps continue during a load, and only its requests wait. ``blocking``: a step waits for the loads
    of the requests it admits, one after the other."""

    @checks
    def _one_time_of_a_load(self) -> Errors:
        if self.load is not None and self.bandwidth is not None:
            yield located("bandwidth", "storage.load gives the time of a load already", hint="remove one of them")


class Pool(ReplicaKeys):
    """Replicas of one kind in a fleet of several. It has every key of ``fleet`` that describes a replica; a key that it
    leaves out is as in ``fleet``, ``cache`` or ``storage``."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")
    """Its name in results, and in keys: ``fleet.pools.small.replicas``."""
    replicas: NonNegativeInt = Field(default=1, le=MOST_REPLICAS)
    """How many replicas it has. 0: the pool is left out, for sweeps and plans over mixes."""
    serves: Literal["all", "adapters", "base"] | Served = "all"
    """Which requests it takes: those for ``adapters``, those to the ``base`` model, or those that a section names.
    Slots are only as large as these need."""
    role: Literal["both", "prefill", "decode"] = "both"
    """``prefill``: its replicas compute prompts, whose KV those with role ``decode`` read (docs/prefill-decode.md)."""
    weight: float = Field(default=1.0, ge=0, le=1e6)
    """With ``router.pools: weight``: its share of the requests, relative to other pools that take them. 0: only what
    other pools pass on (``router.spill``)."""
    cache: Cache | None = None
    """Keys of ``cache`` that differ in this pool."""
    storage: Storage | None = None
    """Keys of ``storage`` that differ in this pool."""

    @model_serializer(mode="plain")
    def _given(self, info: SerializationInfo) -> dict[str, Any]:
        """Return what was given: the rest is as in the fleet, not as the defaults of this class say."""
        given = {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}
        kept = {"name": self.name, "replicas": self.replicas, "serves": self.serves, **given}
        return {
            name: value.model_dump(mode=info.mode, by_alias=True, exclude_unset=True)
            if isinstance(value, Strict)
            else value
            for name, value in kept.items()
        }

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the JSON Schema without the defaults of keys whose default is the value of the fleet."""
        schema = super().__get_pydantic_json_schema__(core_schema, handler)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name in ReplicaKeys.model_fields.keys() - {"replicas"}:
            properties[name].pop("default", None)
        return schema


class Fleet(ReplicaKeys):
    """The replicas, what each can do, and how long its steps take."""

    full_models: FullModels | None = None
    """Replicas for full fine-tunes (``kind: full`` in ``adapters.mix``), besides those of the base model."""

    autoscale: Autoscale | None = None
    """A controller that starts and stops replicas during the run; unset: none."""
    kv_transfer: KvTransfer | None = None
    """With roles of pools: how KV gets from one to the other."""
    pools: tuple[Pool, ...] = Field(default=(), max_length=64)
    """Several kinds of replica in one fleet (docs/pools.md). What is given here, in ``cache`` and in ``storage`` holds
    for all of them, unless a pool says otherwise."""

    @checks
    def _consistent(self) -> Errors:
        if self.pools:  # what doesn't fit together is found in each pool by itself
            yield from self._check_pools()
            return
        if self.engine == "fixed" and self.service is None:
            yield located("service", "engine fixed needs its service time", hint="such as 10 ms")
        if self.engine != "fixed" and self.service is not None:
            yield located("service", "only engine fixed has a service time", hint="remove it, or set engine: fixed")
        for key in ReplicaKeys.model_fields:
            if self.engine == "fixed" and key in self.model_fields_set and key not in _OF_FIXED:
                yield located(
                    key, f"engine fixed has no {key}: it loads at arrival and serves in order", hint="remove it"
                )
        lacking = ENGINES[self.engine].no_prefix_cache
        if self.prefix_caching and lacking:
            yield located("prefix_caching", lacking, got="true", allowed="false", hint="remove it")
        ahead = self.kv_check in ("whole-answer", "peak")
        if self.prefix_caching and ahead:
            yield located(
                "prefix_caching",
                "with blocks reserved for whole answers, the rules of a prefix cache are not known",
                got=f"prefix_caching true, kv_check {self.kv_check}",
                allowed="kv_check whole-prompt or first-chunk",
            )
        if not self.chunked_prefill and not (ahead or self.kv_check == "ratio"):
            yield located(
                "chunked_prefill",
                "without chunks, a preempted request could outgrow the budget and never run again",
                got=f"chunked_prefill false, kv_check {self.kv_check}",
                allowed="kv_check whole-answer, peak or ratio",
            )
        if self.kv_check == "peak" and self.block_size != 1:
            yield located("block_size", "kv_check peak counts tokens", got=self.block_size, allowed="1")
        if self.schedule_conservativeness != 1.0 and self.kv_check != "ratio":
            yield located("schedule_conservativeness", "this is a factor of kv_check ratio", got=self.kv_check)
        if self.kv_check != "ratio" and (self.drain_wait or self.scheduling == "lpm"):
            key = "drain_wait" if self.drain_wait else "scheduling"
            yield located(key, "this is a rule of SGLang's scheduler (kv_check ratio)", got=self.kv_check)
        if self.kv_check == "ratio" and self.prefill_schedule_interval > 1:
            yield located(
                "prefill_schedule_interval", "SGLang's scheduler (kv_check ratio) has no such rule", allowed="1"
            )
        if self.waiting_ratio and self.admission_interval == 1:
            yield located(
                "waiting_ratio",
                "waiting requests are admitted before every step anyway",
                got="admission_interval 1",
                hint="give admission_interval, such as 20",
            )
        drafted = 0 if self.speculation is None else self.speculation.tokens
        needed = self.max_num_seqs * (1 + drafted)
        if drafted and self.max_num_batched_tokens < needed:
            yield located(
                "speculation.tokens",
                "every running sequence needs its token and its drafts of the budget",
                got=f"{drafted}, with max_num_batched_tokens {self.max_num_batched_tokens}",
                allowed=f"max_num_batched_tokens of {needed} or more for max_num_seqs {self.max_num_seqs}",
                hint="or lower max_num_seqs",
            )
        elif self.max_num_batched_tokens < self.max_num_seqs:
            yield located(
                "max_num_batched_tokens",
                "every running sequence needs one token of the budget",
                got=f"max_num_batched_tokens {self.max_num_batched_tokens}, max_num_seqs {self.max_num_seqs}",
                allowed="at least max_num_seqs",
            )

    def _check_pools(self) -> Errors:
        instead = "describe one kind of replica without pools"
        for key, problem, hint in (
            ("replicas", "a fleet of pools has the replicas of its pools", "give each pool its replicas"),
            ("full_models", "full models are not supported in a fleet of pools", instead),
            ("autoscale", "an autoscaler is not supported in a fleet of pools", instead),
        ):
            if key in self.model_fields_set:
                joined = "and" if key == "replicas" else "or"
                yield located(key, problem, hint=f"remove fleet.{key}, {joined} {hint}")
        for i, pool in enumerate(self.pools):
            if pool.name in [other.name for other in self.pools[:i]]:
                yield located(f"pools.{i}.name", "two pools have the same name", got=pool.name)
            if pool.name in OF_A_POOL:  # fleet.pools.cache.gpu could be read in two ways
                yield located(
                    f"pools.{i}.name", "a key of pools has this name", got=pool.name, hint="choose another name"
                )
        total = sum(pool.replicas for pool in self.pools)
        if not 0 < total <= MOST_REPLICAS:
            problem = "too many replicas" if total else "no pool has a replica"
            yield located("pools", problem, got=f"{total:,} in all", allowed=f"1 to {MOST_REPLICAS:,}")

    @model_validator(mode="before")
    @classmethod
    def _start_at_the_minimum(cls, data: Any) -> Any:
        autoscale = data.get("autoscale") if isinstance(data, dict) else None
        least = autoscale.get("min") if isinstance(autoscale, dict) else None
        if not isinstance(least, int) or least <= 1 or data.get("replicas") is not None:
            return data
        return {**data, "replicas": least}

    @property
    def places(self) -> int:
        """How many replicas there are at most: places for them, not all of which serve at every time."""
        return self.replicas if self.autoscale is None else max(self.replicas, self.autoscale.max)

    @property
    def total(self) -> int:
        """How many replicas it has in all pools, without those of full models."""
        return sum(pool.replicas for pool in self.pools) or self.replicas

    @property
    def disaggregated(self) -> bool:
        """Whether prompts and answers are computed by replicas of different pools."""
        return any(pool.role != "both" for pool in self.open_pools)

    @property
    def open_pools(self) -> tuple[Pool, ...]:
        """The pools that have replicas."""
        return tuple(pool for pool in self.pools if pool.replicas)
