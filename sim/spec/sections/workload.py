"""Traffic and adapters: the first two sections of a scenario."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from sim.spec.base import Errors, Strict, checks, located
from sim.spec.sections.benchmark_clients import SeededClient, VllmBench
from sim.spec.sections.laws import MAX_TOKENS, Acceptance, FixedTokens, LognormalTokens, TokenLaw
from sim.spec.sections.times_of_day import TimeOfDay
from sim.spec.sections.trace_source import Trace
from sim.spec.sections.traffic_laws import (
    Arrivals,
    Churn,
    ClosedArrivals,
    Drift,
    MmppArrivals,
    PiecewiseArrivals,
    Popularity,
    Sessions,
    UniformPopularity,
)
from sim.spec.units import Bytes, Seconds, Share


class SharedPrefix(Strict):
    """Every prompt begins with a text that other requests have too, such as a system prompt."""

    shared_by: Literal["adapter", "all"] = "adapter"
    """``adapter``: every adapter has texts of its own. ``all``: all requests draw from the same texts, which saves no
    more, since engines never share cached blocks between adapters."""
    texts: PositiveInt = Field(default=1, le=1_000_000)
    """How many texts each adapter has, or all have together, equally likely. A session keeps its text; without sessions
    every request draws one."""
    tokens: TokenLaw
    """Length of a text, drawn once for each; ``workload.tokens.prompt`` follows it. With a trace that has lengths, the
    text is the beginning of the recorded prompts, which must be long enough."""


class Tokens(Strict):
    """Lengths of prompts and answers. A request has at most 10,000,000 tokens, prompt and answer together."""

    prompt: TokenLaw = LognormalTokens(law="lognormal", mean=600, p99=5400, max=8192)
    """Prompt tokens per request, after shared text (``workload.prefix``, ``history``)."""
    output: TokenLaw = LognormalTokens(law="lognormal", mean=155, p99=870, max=4096)
    """Output tokens per request."""
    stop: Share = 0.9
    """Share of the requests that end by a stop token, not by their ``max_tokens``. With ``fleet.async_scheduling`` the
    engine computes one token too many for these. 0% for load generators with ``--ignore-eos``. The default is an
    assumption."""
    max_tokens: PositiveInt | None = Field(default=None, le=MAX_TOKENS)
    """The limit that requests set for their answers. Unset: the length of each answer. Only engine ``sglang`` reads it:
    it admits and retracts requests by what their limits still allow."""
    ignore_eos: bool = False
    """Whether requests ask for answers up to their limit, as benchmarks do; SGLang counts on it."""
    correlation: float = Field(default=0.0, gt=-1, lt=1)
    """Correlation of the normal scores of prompt and output length: below 0, long prompts have short answers."""
    by_adapter: Share = 0.0
    """Share of the variance of lengths that is between adapters. 50%: some adapters have long prompts and others short
    ones, likewise for answers."""

    @checks
    def _one_end(self) -> Errors:
        if self.ignore_eos and self.max_tokens is not None:
            yield located(
                "max_tokens", "with ignore_eos, answers are as long as their limits", hint="remove one of both"
            )


class Workload(Strict):
    """The traffic: generated from laws, or replayed from a trace."""

    requests: PositiveInt | None = Field(default=None, le=1_000_000_000)
    """Simulate this many requests, to the end of the last one. Of a trace: at most this many, after scaling."""
    duration: Seconds | None = Field(default=None, gt=0)
    """Simulate this long instead; requests that have not ended by then count as unfinished."""
    start: TimeOfDay | None = None
    """Time of day at which the run begins, such as ``08:00``. Rollouts, faults, steps and ``peak_at`` may then have
    times of day as well; one before the start is the next day's."""
    arrivals: Arrivals | None = None
    """When requests arrive. Not with a trace."""
    popularity: Popularity = UniformPopularity(law="uniform")
    """Which adapter a request is for, unless a trace names it."""
    sessions: Sessions | None = None
    """Requests come in sessions of one adapter; the rate of ``arrivals`` is still that of requests. Unset: every
    request draws its adapter. Not with a trace."""
    drift: Drift | None = None
    """Popularity moves between adapters as time passes. Not with a trace."""
    churn: Churn | None = None
    """Adapters are replaced by new ones as time passes. Not with a trace."""
    tokens: Tokens = Tokens()
    """Prompt and output lengths, and limits. With a trace that has lengths, only limits."""
    prefix: SharedPrefix | None = None
    """A text at the start of every prompt that requests share. It takes effect with ``fleet.prefix_caching``."""
    trace: Trace | None = None
    """Replay recorded requests instead."""
    client: SeededClient | None = None
    """Send exactly the requests that a benchmark tool would send (docs/trace.md). Only ``start`` may be given too."""

    @checks
    def _one_source(self) -> Errors:
        if self.client is not None:
            for key in sorted(self.model_fields_set - {"client", "start"}):
                if getattr(self, key) is not None:
                    hint = "give workload.client.num_prompts" if key == "requests" else f"remove {key}, or client"
                    yield located(key, "a client draws its own requests", allowed="client, start", hint=hint)
            return
        if self.trace is not None:
            for key in ("arrivals", "sessions", "drift", "churn"):
                if getattr(self, key) is not None:
                    what = "arrivals" if key == "arrivals" else "order of requests"
                    yield located(key, f"a trace has its own {what}", hint=f"remove {key}")
        elif self.arrivals is None:
            example = "{process: poisson, rate: 12/s}, or without a rate where tenants have their own"
            yield located("arrivals", "there is no traffic", hint=f"give arrivals: {example}")
        elif self.requests is None and self.duration is None:
            yield located("requests", "the length of the run is missing", hint="give requests: 100000 or duration: 1 h")
        if self.requests is not None and self.duration is not None and self.trace is None:
            yield located("duration", "give either requests or duration, not both")
        if self.popularity.in_turn and getattr(self.arrivals, "per", "") == "adapter":
            yield located("popularity", "arrivals per adapter can't take turns", got=self.popularity.law)
        if isinstance(self.arrivals, PiecewiseArrivals) and not any(step.level for step in self.arrivals.steps):
            yield located("arrivals.steps", "no level above zero")
        if isinstance(self.arrivals, MmppArrivals) and not any(state.level for state in self.arrivals.states):
            yield located("arrivals.states", "no level above zero")
        if isinstance(self.arrivals, ClosedArrivals):
            timed = {"sessions": "sessions begin", "drift": "popularity drifts", "churn": "adapters are replaced"}
            for key, what in timed.items():
                if getattr(self, key) is not None:
                    problem = f"{what} at given times; in a closed loop, times follow from the answers"
                    yield located(key, problem, hint=f"remove {key}, or give another process, such as poisson")

    @property
    def is_closed(self) -> bool:
        """Whether requests follow from the answers to earlier ones."""
        return isinstance(self.arrivals, ClosedArrivals) or (self.client is not None and self.client.is_closed)

    @property
    def recorded(self) -> Literal["trace", "client", ""]:
        """Where a list of requests comes from, of which there can't be more; empty: laws make them."""
        return "trace" if self.trace is not None else "client" if self.client is not None else ""

    @property
    def shared_prefix(self) -> SharedPrefix | None:
        """The text at the start of prompts, a client's included."""
        if not isinstance(self.client, VllmBench) or not self.client.prefix_len:
            return self.prefix
        tokens = FixedTokens(law="fixed", value=self.client.prefix_len + self.client.special_tokens)
        return SharedPrefix(shared_by="all", tokens=tokens)


SHARED_OUTER = "experts-shared-outer"
EXPERTS = ("experts", SHARED_OUTER)
"""Targets in a mixture of experts."""
Targets = (
    Literal["all-linear"]
    | tuple[Literal["q", "k", "v", "o", "gate", "up", "down", "experts", "experts-shared-outer"], ...]
)


class AdapterKind(Strict):
    """A share of the adapters that have the same shape; or, with ``kind: base``, a share of the requests."""

    share: Share
    """Shares add up to 100%. ``kind: base``: the share of the requests that are for the base model. Other kinds: their
    shares of the adapters, relative to each other."""
    kind: Literal["lora", "full", "base"] = "lora"
    """``lora``: an adapter. ``full``: a full fine-tune, a model of its own, on the replicas of ``fleet.full_models``.
    ``base``: the base model alone; at most once in a mix."""
    rank: PositiveInt = Field(default=16, le=4096)
    """LoRA rank."""
    targets: Targets = "all-linear"
    """Modules with LoRA weights. In a mixture of experts ``all-linear`` is the attention, and the list may have
    ``experts`` (matrices for each expert) or ``experts-shared-outer`` (those on the hidden side shared by all)."""
    size: Bytes | None = None
    """Bytes of one adapter or full model; unset: computed from rank and targets, or the profile's weights."""
    acceptance: Acceptance | None = None
    """With ``fleet.speculation``: of drafts for these adapters; unset: that of the base model."""

    @checks
    def _whole(self) -> Errors:
        for key in ("rank", "targets"):
            if self.kind == "full" and key in self.model_fields_set:
                yield located(key, f"a full fine-tune has no {key}", got=getattr(self, key), hint=f"remove {key}")
        for key in ("rank", "targets", "size", "acceptance"):
            if self.kind == "base" and key in self.model_fields_set:
                problem = f"requests to the base model have no adapter, and so no {key}"
                yield located(key, problem, got=getattr(self, key), hint=f"remove {key}")


class Adapters(Strict):
    """How many adapters there are, and how large."""

    base_model: str | None = None
    """Their base model; unset: the profile's."""
    count: PositiveInt | None = Field(default=None, le=10_000_000)
    """How many adapters; needed unless a trace or a weights file names them (a trace without names: 100), or the mix is
    ``kind: base`` alone."""
    rank: PositiveInt = Field(default=16, le=4096)
    """LoRA rank of every adapter (without a mix)."""
    max_rank: PositiveInt | None = Field(default=None, le=4096)
    """The rank that slots are made for (``--max-lora-rank``); unset: the largest of all adapters and new versions."""
    targets: Targets = "all-linear"
    """Modules with LoRA weights (without a mix)."""
    size: Bytes | None = None
    """Bytes of one adapter (without a mix); unset: computed from rank, targets and the base model."""
    acceptance: Acceptance | None = None
    """With ``fleet.speculation``: how likely drafts for adapters are accepted (without a mix), since a draft knows no
    adapter; unset: as likely as for the base model."""
    dtype: Literal["fp16", "bf16", "fp32", "fp8"] = "fp16"
    """Number format of the adapters' weights."""
    base_quantization: Literal["bf16", "int8", "nf4"] = "bf16"
    """Number format of the base model's linear layers. ``bf16``: as in the profile. ``int8``: 8 bits (LLM.int8()).
    ``nf4``: 4-bit NormalFloat (QLoRA)."""
    base_double_quantization: bool = True
    """``nf4`` only: whether the constants of its blocks are quantised too: 4.127 bits per weight instead of 4.5."""
    base_slowdown: float | None = Field(default=None, gt=0, le=100)
    """With ``base_quantization``: factor on the base model's part of a step. Unset: as measured, else an assumed 2.0
    for ``int8`` and 1.33 for ``nf4``."""
    invocation_tokens: PositiveInt | None = Field(default=None, le=MAX_TOKENS)
    """Activated LoRA: the last tokens of each prompt, from the adapter's invocation on. The base model computes what
    comes before, so with ``fleet.prefix_caching`` all adapters share its cached blocks (docs/prefix-caching.md)."""
    mix: tuple[AdapterKind, ...] = ()
    """Kinds of adapters and their shares, instead of one kind; and the share of requests to the base model. ``[{kind:
    base, share: 100%}]``: LoRA is off."""

    @checks
    def _one_way(self) -> Errors:
        if self.mix:
            for key in ("rank", "targets", "size", "acceptance"):
                if key in self.model_fields_set:
                    yield located(key, f"give {key} in the mix or for all adapters, not both")
            total = sum(kind.share for kind in self.mix)
            if abs(total - 1) > 1e-6:
                yield located("mix", "the shares of a mix must add up to 100%", got=f"{total:.2%}")
            yield from self._check_base([i for i, kind in enumerate(self.mix) if kind.kind == "base"])
        if self.invocation_tokens and any(kind.kind == "full" for kind in self.mix):
            yield located(
                "invocation_tokens",
                "full models share no blocks with the base model",
                got=f"{self.invocation_tokens}, and a kind: full in the mix",
                hint="remove it, or the full models",
            )
        if self.base_quantization == "bf16" and self.base_slowdown is not None:
            yield located(
                "base_slowdown",
                "the base model isn't quantised, so the profile's step times apply",
                got=self.base_slowdown,
                hint="give base_quantization: nf4 or int8",
            )
        if self.base_quantization != "nf4" and "base_double_quantization" in self.model_fields_set:
            yield located(
                "base_double_quantization",
                "only nf4 can quantise its constants too",
                got=f"base_quantization {self.base_quantization}",
                hint="remove it",
            )

    def _check_base(self, places: list[int]) -> Errors:
        """Refuse a second kind ``base``, and one that leaves no request for the other kinds of the mix.

        :param places: of these kinds in the mix.
        """
        if len(places) > 1:
            yield located(
                f"mix.{places[1]}.kind",
                "a mix has one share of requests to the base model",
                got=f"base in {' and '.join(f'mix.{place}' for place in places)}",
                allowed="base once",
                hint="add the shares up",
            )
        elif places and len(self.mix) > 1 and not any(kind.share > 0 for kind in self.mix if kind.kind != "base"):
            yield located(
                f"mix.{places[0]}.share",
                "all requests are for the base model, so no request is for the other kinds",
                got=f"{self.mix[places[0]].share:.0%}",
                allowed="below 100%",
                hint="give them a share, or remove them",
            )

    @property
    def of_adapters(self) -> tuple[AdapterKind, ...]:
        """The kinds of a mix that are adapters or full models."""
        return tuple(kind for kind in self.mix if kind.kind != "base")

    @property
    def experts(self) -> str:
        """The experts' target that any adapter has; empty: none."""
        targets = [kind.targets for kind in self.of_adapters if kind.kind == "lora"] if self.mix else [self.targets]
        return next((name for name in EXPERTS if any(name in each for each in targets if each != "all-linear")), "")

    @property
    def base_alone(self) -> bool:
        """Whether the base model is served without any adapter, so that LoRA is off."""
        return bool(self.mix) and not self.of_adapters

    @property
    def base_share(self) -> float:
        """Share of the requests that are for the base model, by the mix."""
        return sum(kind.share for kind in self.mix if kind.kind == "base")
