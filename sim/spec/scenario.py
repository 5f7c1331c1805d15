"""The scenario: what arrives, on which adapters, at which fleet, and what is asked of it.

Sections stand in the order of the user's questions; all but ``workload`` and ``adapters`` have
defaults. The docstring under a field is its description in the JSON Schema and in the reference.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from sim.errors import did_you_mean
from sim.spec.base import Strict, located
from sim.spec.engines import PRESETS, fill
from sim.spec.laws import FixedTokens, LognormalTokens, TimeLaw, TokenLaw
from sim.spec.units import Bytes, Rate, Seconds, Share

ENGINES = tuple(PRESETS)
ENGINES_PLANNED = ("sglang", "s-lora", "lorax", "tensorrt-llm")
EVICTIONS = ("lru", "vllm-lru")
ROUTERS = ("round-robin", "least-loaded")
DEFAULT_PROFILE = "h100-64gb/llama-3.1-8b/assumed"


def _known(value: str, known: tuple[str, ...], what: str, planned: tuple[str, ...] = ()) -> str:
    if value in known:
        return value
    hint = did_you_mean(value, known) or ""
    problem = f"unknown {what}"
    if value in planned:
        problem, hint = f"this version has no {what} {value!r} yet", f"use {known[0]}"
    raise located("", problem, got=value, allowed=", ".join(known), hint=hint)


class PoissonArrivals(Strict):
    """Independent users: exponential gaps."""

    process: Literal["poisson"]
    rate: Rate
    """Mean requests per unit of time over all adapters, such as ``12/s``."""


class GammaArrivals(Strict):
    """Gamma gaps: ``cv`` above 1 is burstier than Poisson, below 1 more regular."""

    process: Literal["gamma"]
    rate: Rate
    """Mean requests per unit of time over all adapters."""
    cv: float = Field(gt=0, le=100)
    """Coefficient of variation of the gaps: 1 is Poisson, 4 is bursty."""


Arrivals = Annotated[PoissonArrivals | GammaArrivals, Field(discriminator="process")]


class UniformPopularity(Strict):
    """Every adapter is equally likely."""

    law: Literal["uniform"]


class ZipfPopularity(Strict):
    """The k-th most popular adapter is asked for in proportion to ``1 / k**exponent``."""

    law: Literal["zipf"]
    exponent: float = Field(ge=0, le=10)
    """0 is uniform; production traffic lies between 0.6 and 1.2."""


class CyclicPopularity(Strict):
    """Adapters in turn, 0, 1, 2, …: the worst case of an LRU cache."""

    law: Literal["cyclic"]


class WeightsPopularity(Strict):
    """Weights from a file: one number a line, adapter 0 first, or CSV rows ``adapter_id,weight``."""

    law: Literal["weights"]
    file: str
    """The file, relative to the scenario."""


class AdapterGroup(Strict):
    """Adapters that are equally popular."""

    adapters: PositiveInt
    """How many."""
    weight: float = Field(ge=0)
    """How often each is asked for, relative to the others; a rate per adapter will do."""


class GroupsPopularity(Strict):
    """Groups of equally popular adapters: the first group's are adapters 0, 1, …, and so on."""

    law: Literal["groups"]
    groups: tuple[AdapterGroup, ...] = Field(min_length=1)
    """The groups; together they have ``adapters.count`` adapters."""


Popularity = Annotated[
    UniformPopularity | ZipfPopularity | CyclicPopularity | WeightsPopularity | GroupsPopularity,
    Field(discriminator="law"),
]


class Tokens(Strict):
    """How long prompts and answers are."""

    prompt: TokenLaw = LognormalTokens(law="lognormal", mean=600, p99=5400, max=8192)
    """Prompt tokens per request."""
    output: TokenLaw = LognormalTokens(law="lognormal", mean=155, p99=870, max=4096)
    """Output tokens per request."""
    correlation: float = Field(default=0.0, gt=-1, lt=1)
    """Correlation of the normal scores of a request's prompt and output length: below 0, long prompts have short
    answers. 0: independent."""


class Trace(Strict):
    """Recorded requests, replayed with their own times, adapters and lengths."""

    file: str
    """CSV file, relative to the scenario (or to the folder you stand in, when given by ``--set``)."""
    format: Literal["auto", "csv", "azure-llm-2023"] = "auto"
    """``csv``: columns timestamp_s, adapter_id or tenant_id, input_tokens, output_tokens. ``azure-llm-2023``:
    TIMESTAMP, ContextTokens, GeneratedTokens; its requests name no adapter and draw one from ``popularity``."""


class Workload(Strict):
    """What arrives: generated from laws, or replayed from a trace."""

    requests: PositiveInt | None = Field(default=None, le=1_000_000_000)
    """Simulate this many requests, to the end of the last one. With a trace: at most so many of its rows."""
    duration: Seconds | None = Field(default=None, gt=0)
    """Simulate this long instead; what has not ended by then counts as unfinished."""
    arrivals: Arrivals | None = None
    """When requests come. Not with a trace."""
    popularity: Popularity = UniformPopularity(law="uniform")
    """Which adapter a request asks for (where a trace names it, the trace decides)."""
    tokens: Tokens = Tokens()
    """Prompt and output lengths. Not with a trace."""
    trace: Trace | None = None
    """Replay recorded requests instead."""

    @model_validator(mode="after")
    def _one_source(self) -> Workload:
        if self.trace is not None:
            for key in ("arrivals", "tokens"):
                if key in self.model_fields_set and getattr(self, key) is not None:
                    raise located(key, "a trace brings its own arrivals and lengths", hint=f"remove {key}")
        elif self.arrivals is None:
            raise located("arrivals", "nothing arrives", hint="give arrivals: {process: poisson, rate: 12/s}")
        elif self.requests is None and self.duration is None:
            raise located("requests", "the run has no end", hint="give requests: 100000 or duration: 1 h")
        if self.requests is not None and self.duration is not None and self.trace is None:
            raise located("duration", "give either requests or duration, not both")
        return self


Targets = Literal["all-linear"] | tuple[Literal["q", "k", "v", "o", "gate", "up", "down"], ...]


class AdapterKind(Strict):
    """A share of the adapters that have the same shape."""

    share: Share
    """Share of all adapters; the shares of a mix add up to 100%."""
    rank: PositiveInt = 16
    """LoRA rank."""
    targets: Targets = "all-linear"
    """Modules with LoRA weights: ``all-linear`` or a list of q, k, v, o, gate, up, down."""
    size: Bytes | None = None
    """Bytes of one adapter, if not those of its rank and targets."""


class Adapters(Strict):
    """How many adapters there are, and how large."""

    base_model: str | None = None
    """The model they belong to; unset: the profile's."""
    count: PositiveInt | None = Field(default=None, le=10_000_000)
    """How many adapters; needed unless a trace or a weights file names them (a trace that names none: 100)."""
    rank: PositiveInt = 16
    """LoRA rank of every adapter (without a mix)."""
    targets: Targets = "all-linear"
    """Modules with LoRA weights (without a mix)."""
    size: Bytes | None = None
    """Bytes of one adapter (without a mix); unset: computed from rank, targets and the base model."""
    dtype: Literal["fp16", "bf16", "fp32", "fp8"] = "fp16"
    """Number format of the weights."""
    mix: tuple[AdapterKind, ...] = ()
    """Kinds of adapters and their shares, instead of one kind."""

    @model_validator(mode="after")
    def _one_way(self) -> Adapters:
        if self.mix:
            for key in ("rank", "targets", "size"):
                if key in self.model_fields_set:
                    raise located(key, f"give {key} in the mix or for all adapters, not both")
            total = sum(kind.share for kind in self.mix)
            if abs(total - 1) > 1e-6:
                raise located("mix", "the shares of a mix add up to 100%", got=f"{total:.2%}")
        return self


class Fleet(Strict):
    """The replicas, what each can do, and how long its steps take."""

    replicas: PositiveInt = Field(default=1, le=4096)
    """How many replicas serve the traffic."""
    profile: str = DEFAULT_PROFILE
    """Where step, load and memory costs come from: a bundled name or a path to a profile."""
    engine: str = "continuous"
    """``continuous``: continuous batching with protected LRU and overlapped loads. ``vllm-0.8``, ``vllm-0.32``:
    presets that follow these engines; any field of a preset can be set. ``fixed``: one request at a time with a given
    service time (encoders, classifiers, queueing oracles)."""
    service: TimeLaw | None = None
    """Engine ``fixed`` only: the time one request takes."""
    max_num_seqs: PositiveInt = 256
    """Most sequences in one batch."""
    max_num_batched_tokens: PositiveInt = 2048
    """Token budget of one step; longer prefills are split into chunks."""
    block_size: PositiveInt = Field(default=16, le=65536)
    """Tokens in one KV block."""
    kv_tokens: PositiveInt | None = None
    """KV cache of one replica in tokens; unset: what the profile's memory leaves after weights and slots."""
    max_model_len: PositiveInt | None = None
    """Longest request, prompt and answer, in tokens: longer ones are refused, and the KV cache must hold one such.
    Unset: what the KV cache holds."""
    gpu_memory_utilization: Share | None = None
    """Share of the GPU's memory that the engine may use; unset: the profile's."""
    admission: Literal["skip", "stop"] = "skip"
    """What a waiting request does whose adapter is not there: ``skip``: later ones pass it; ``stop``: all wait."""
    load_at: Literal["arrival", "admission"] | None = None
    """When a load is asked for: when the request arrives, or when the scheduler first could admit it.
    Unset: ``arrival``, except with ``admission: stop`` or ``storage.mode: blocking``."""

    kv_check: Literal["whole-prompt", "first-chunk"] = "whole-prompt"
    """Which KV blocks must be free for a request to join: those of its whole prompt, or of its first chunk."""
    reserved_kv_blocks: NonNegativeInt = Field(default=0, le=1024)
    """KV blocks that the engine keeps for itself."""

    @field_validator("engine")
    @classmethod
    def _engine(cls, value: str) -> str:
        return _known(value, ENGINES, "engine", ENGINES_PLANNED)

    @model_validator(mode="after")
    def _consistent(self) -> Fleet:
        if self.engine == "fixed" and self.service is None:
            raise located("service", "engine fixed needs its service time", hint="such as {law: fixed, value: 10 ms}")
        if self.engine != "fixed" and self.service is not None:
            raise located("service", "only engine fixed has a service time", hint="remove it, or set engine: fixed")
        for key in ("admission", "load_at"):
            if self.engine == "fixed" and key in self.model_fields_set:
                raise located(
                    key, f"engine fixed has no {key}: it loads at arrival and serves in order", hint="remove it"
                )
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

    @model_validator(mode="after")
    def _one_way(self) -> GpuCache:
        if (self.slots is None) == (self.size is None):
            raise located("slots", "give either slots or size", got=f"slots {self.slots}, size {self.size}")
        return self


class HostCache(GpuCache):
    """Host memory for adapters, between storage and GPU; always LRU."""

    slots: PositiveInt | None = None
    """Adapters that fit, whatever their size."""
    size: Bytes | None = None
    """Bytes for adapters, each taking its exact size."""


class Cache(Strict):
    """Where adapters live near the GPU."""

    gpu: GpuCache = GpuCache(slots=32)
    """GPU memory for adapters, per replica."""
    host: HostCache | None = None
    """Host memory for adapters, per replica; unset: every load comes from storage (with ``vllm-lru``: as many host
    slots as GPU slots)."""
    eviction: str = "lru"
    """Who leaves a full GPU cache: ``lru``, the least recently used adapter that is not in use; ``vllm-lru``, the one
    that steps touched least recently, in use or not, as vLLM does; it then also leaves when host memory drops it."""

    @field_validator("eviction")
    @classmethod
    def _eviction(cls, value: str) -> str:
        return _known(value, EVICTIONS, "eviction policy")


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


class Router(Strict):
    """Which replica a request goes to."""

    policy: str = "round-robin"
    """``round-robin`` or ``least-loaded`` (fewest requests in the replica, lowest index first)."""

    @field_validator("policy")
    @classmethod
    def _policy(cls, value: str) -> str:
        return _known(value, ROUTERS, "router policy")


class Slo(Strict):
    """What is asked of the fleet; every term must hold."""

    ttft_mean: Seconds | None = None
    """Mean time to first token."""
    ttft_p50: Seconds | None = None
    """Median time to first token."""
    ttft_p99: Seconds | None = None
    """99 % of first tokens come within this time."""
    tpot_mean: Seconds | None = None
    """Mean time per output token after the first."""
    itl_mean: Seconds | None = None
    """Mean gap between tokens."""
    itl_p99: Seconds | None = None
    """99 % of gaps between tokens are shorter."""
    e2e_mean: Seconds | None = None
    """Mean time from arrival to last token."""
    e2e_p50: Seconds | None = None
    """Median time from arrival to last token."""
    e2e_p99: Seconds | None = None
    """99 % of requests end within this time."""
    queue_mean: Seconds | None = None
    """Mean time a request waits before it is admitted."""
    queue_p99: Seconds | None = None
    """99 % of requests are admitted within this time."""
    miss_ratio: Share | None = None
    """Share of admitted requests that had to start a load."""

    def terms(self) -> dict[str, float]:
        """Return the given terms by metric name: ``{"ttft_p99_s": 1.0, "miss_ratio": 0.2}``."""
        given = ((name, getattr(self, name)) for name in type(self).model_fields)
        return {name if name == "miss_ratio" else f"{name}_s": value for name, value in given if value is not None}


class Run(Strict):
    """How long and how often to simulate."""

    seed: NonNegativeInt = Field(default=1, lt=2**63)
    """All randomness follows from it."""
    replications: PositiveInt = Field(default=5, le=10000)
    """Independent repetitions; the more, the narrower the intervals."""
    warmup: Share = Field(default=0.05, lt=1)
    """Share of the requests (or of the duration) at the start that is simulated but not measured."""
    half_width: Share | None = Field(default=None, gt=0)
    """Double the requests until the 95 % half-width of p99 E2E is below this share of its value."""
    max_requests: PositiveInt = 4_000_000
    """With ``half_width``: stop doubling at this many requests per replication."""

    @model_validator(mode="after")
    def _useful(self) -> Run:
        if self.half_width is not None and not self.half_width > 0:
            raise located("half_width", "a half-width must be above zero", got=self.half_width)
        return self


class Scenario(Strict):
    """A capacity question: traffic, adapters, fleet, and what is asked of it."""

    schema_version: Literal[1]
    """Version of this file format."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Short name; the run directory is called after it."""
    description: str = ""
    """A sentence for the report."""
    workload: Workload
    """What arrives."""
    adapters: Adapters
    """What is served."""
    fleet: Fleet = Fleet()
    """What serves it."""
    cache: Cache = Cache()
    """Where adapters live."""
    storage: Storage = Storage()
    """Where adapters come from."""
    router: Router = Router()
    """Which replica a request goes to."""
    rollouts: tuple[Any, ...] = ()
    """New adapter versions during the run; not simulated in this version, so it must be empty."""
    faults: tuple[Any, ...] = ()
    """Things that break during the run; not simulated in this version, so it must be empty."""
    slo: Slo = Slo()
    """What is asked of the fleet."""
    run: Run = Run()
    """How long and how often to simulate."""
    sweep: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """For ``loraplan sweep``: values by key, such as ``cache.gpu.slots: [16, 32, 64]``; all combinations run."""

    @field_validator("rollouts", "faults")
    @classmethod
    def _not_yet(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if value:
            raise located("", "not simulated in this version", got=list(value), allowed="[]", hint="remove it")
        return value

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, data: Any) -> Any:
        return fill(data)

    @model_validator(mode="after")
    def _whole(self) -> Scenario:
        named_by_file = self.workload.popularity.law == "weights" or self.workload.trace is not None
        popularity = self.workload.popularity
        if popularity.law == "groups" and self.workload.trace is None:
            grouped = sum(group.adapters for group in popularity.groups)
            if grouped != self.adapters.count:
                raise located(
                    "workload.popularity.groups", "the groups have another number of adapters than there are",
                    got=f"{grouped} in groups, adapters.count {self.adapters.count}",
                )  # fmt: skip
            if not sum(group.adapters * group.weight for group in popularity.groups) > 0:
                raise located("workload.popularity.groups", "no weight above zero")
        if self.adapters.count is None and not named_by_file:
            raise located("adapters.count", "how many adapters there are is missing", hint="give count: 1000")
        if self.run.half_width is not None and (self.workload.trace is not None or self.workload.requests is None):
            raise located(
                "run.half_width", "only a run of generated requests can be made longer",
                hint="give workload.requests, or remove half_width",
            )  # fmt: skip
        if self.storage.mode == "blocking":
            if self.fleet.engine == "fixed":
                raise located("storage.mode", "engine fixed has no steps that a load could block", got="blocking")
            if self.storage.loaders > 1:
                raise located(
                    "storage.loaders", "blocking loads come one after the other", got=self.storage.loaders, allowed="1"
                )
            if self.fleet.load_at == "arrival":
                raise located("fleet.load_at", "blocking loads are asked for at admission", got="arrival")
        if self.cache.eviction == "vllm-lru":
            self._fits_vllm_lru()
        return self

    def _fits_vllm_lru(self) -> None:
        gpu, host = self.cache.gpu, self.cache.host
        if self.fleet.engine == "fixed":
            raise located("cache.eviction", "engine fixed has no steps that touch adapters", got="vllm-lru")
        if self.storage.mode != "blocking" or self.fleet.admission != "skip":
            raise located(
                "cache.eviction", "vllm-lru loads inside the step and passes requests over the adapter limit",
                got=f"storage.mode {self.storage.mode}, fleet.admission {self.fleet.admission}",
                allowed="storage.mode blocking, fleet.admission skip",
            )  # fmt: skip
        if gpu.slots is None:
            raise located("cache.gpu.size", "vllm-lru counts slots", hint="give cache.gpu.slots")
        if host is None:
            return
        if host.slots is None:
            raise located("cache.host.size", "vllm-lru counts slots in host memory too", hint="give cache.host.slots")
        if host.slots < gpu.slots:
            raise located(
                "cache.host.slots", "every adapter in a slot has a copy in host memory", got=host.slots,
                allowed=f"at least cache.gpu.slots ({gpu.slots})",
            )  # fmt: skip

    @property
    def load_at(self) -> Literal["arrival", "admission"]:
        """When loads are asked for, with the default worked out."""
        if self.fleet.load_at is not None:
            return self.fleet.load_at
        waits = self.fleet.admission == "stop" or self.storage.mode == "blocking"
        return "admission" if waits and self.fleet.engine != "fixed" else "arrival"


def fixed_tokens(value: int) -> FixedTokens:
    """Return the law of a constant length; handy in tests and notebooks."""
    return FixedTokens(law="fixed", value=value)
