"""Benchmark clients whose requests follow from a seed: ``workload.client``, in the words of their own options."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from sim.spec.base import Errors, Strict, checks, located
from sim.spec.sections.laws import FixedTime
from sim.spec.sections.traffic_laws import ClosedArrivals
from sim.spec.units import Rate, Seconds

MOST_PROMPTS = 1_000_000
"""Requests of a client, at most: some of its draws are made one by one, as the tool makes them."""


Length = Annotated[int, Field(gt=0, le=1_000_000)]


class _Client(Strict):
    tool: str  # each says which; here, so that it comes first wherever keys are listed
    request_rate: Rate | None = None
    """``--request-rate``, such as ``4/s``. Unset: ``inf``, all at once."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """``--seed``, of all draws."""
    time_scale: float = Field(default=1.0, gt=0, le=1e6)
    """Factor on the speed at which the same requests are sent; not an option of the tool."""

    think: ClassVar[FixedTime] = FixedTime(law="fixed", value=0.0)
    """What ``arrivals`` of a closed loop have too."""

    @property
    def most_at_once(self) -> int | None:
        """How many requests are under way at most; None: no limit."""
        return None

    @property
    def is_closed(self) -> bool:
        """Whether requests wait at the client until others are answered."""
        return self.request_rate is None or self.most_at_once is not None

    @property
    def load(self) -> str:
        """The key that gives it more traffic."""
        if self.request_rate is not None:
            return "time_scale"
        return "num_prompts" if self.most_at_once is None else "max_concurrency"

    def more(self, multiple: float) -> dict[str, float]:
        """Return the values that give it so many times the traffic: faster, and with more of them under way."""
        keys = [self.load, *(["max_concurrency"] if self.load == "time_scale" and self.most_at_once else [])]
        values = {key: getattr(self, key) * multiple for key in keys}
        return {key: value if key == "time_scale" else max(1, round(value)) for key, value in values.items()}


class _Bench(_Client):
    num_prompts: PositiveInt = Field(default=1000, le=MOST_PROMPTS)
    """``--num-prompts``: how many requests."""
    max_concurrency: PositiveInt | None = Field(default=None, le=MOST_PROMPTS)
    """``--max-concurrency``: beyond so many, a request waits at the client, and its latencies count from when it is
    sent. Unset: no limit."""
    special_tokens: NonNegativeInt = Field(default=1, le=100)
    """Tokens that the tokenizer adds to a prompt and the client leaves room for: 1 for Llama and Mistral, 0 for
    Qwen."""

    @property
    def most_at_once(self) -> int | None:
        return self.max_concurrency

    @property
    def concurrency(self) -> int:
        """How many requests are under way at most."""
        return min(self.max_concurrency or self.num_prompts, self.num_prompts)

    @checks
    def _at_once(self) -> Errors:
        if self.request_rate is None and self.time_scale != 1:
            hint = "give request_rate, or change max_concurrency or num_prompts"
            yield located("time_scale", "all requests are sent at once", got=self.time_scale, hint=hint)


class VllmBench(_Bench):
    """``vllm bench serve --dataset-name random``, as of vLLM 0.32. Lengths are those of NumPy's ``Generator``, which a
    release of NumPy may change; our tests would notice."""

    tool: Literal["vllm-bench"]
    burstiness: float = Field(default=1.0, ge=1e-4, le=1e4)
    """``--burstiness``, the shape of gamma gaps: 1 is Poisson, below 1 is bursty."""
    input_len: Length = 1024
    """``--random-input-len``, the mean without the prefix."""
    output_len: Length = 128
    """``--random-output-len``, the mean."""
    range_ratio: float = Field(default=0.0, ge=0, lt=1)
    """``--random-range-ratio``: lengths are uniform in the mean × (1 − ratio) to the mean × (1 + ratio)."""
    output_range_ratio: float | None = Field(default=None, ge=0, lt=1)
    """The ratio of answers, where ``--random-range-ratio`` has both. Unset: the same."""
    prefix_len: NonNegativeInt = Field(default=0, le=1_000_000)
    """``--random-prefix-len``: all prompts begin with these tokens."""
    lora_assignment: Literal["random", "round-robin"] = "random"
    """``--lora-assignment``: which of the ``--lora-modules`` a request is for; ``adapters.count`` says how many."""

    @checks
    def _has_tokens(self) -> Errors:
        least = self.prefix_len + math.floor((self.input_len - self.special_tokens) * (1 - self.range_ratio))
        if self.input_len < self.special_tokens or least < 1:
            hint = "give a longer one, a smaller range_ratio, or fewer special_tokens"
            yield located("input_len", "prompts may have no token of their own", got=self.input_len, hint=hint)


class SglangBench(_Bench):
    """``python -m sglang.bench_serving --dataset-name random`` or ``random-ids``, as of SGLang 0.5.23."""

    tool: Literal["sglang-bench"]
    seed: int = Field(default=42, ge=0, lt=2**32)
    """``--seed``, of all draws. Older releases have 1 unless told otherwise."""
    input_len: Length = 1024
    """``--random-input-len``, the most."""
    output_len: Length = 1024
    """``--random-output-len``, the most."""
    range_ratio: float = Field(default=0.0, ge=0, le=1)
    """``--random-range-ratio``: lengths are uniform in the most × ratio to the most. 0: from 1 on."""
    lora_request_distribution: Literal["uniform", "distinct", "skewed"] = "uniform"
    """``--lora-request-distribution`` over the ``--lora-name``, of which there are ``adapters.count``."""
    lora_zipf_alpha: float = Field(default=1.5, gt=1, le=1000)
    """``--lora-zipf-alpha``: with ``skewed``, an adapter gets so many times as many requests as the next."""
    vocab_size: PositiveInt | None = Field(default=None, lt=2**31)
    """For ``--dataset-name random-ids``: the tokenizer's vocabulary. It decides how many numbers are drawn before the
    gaps. Unset: ``random``."""
    conversations: PositiveInt = Field(default=94_145, le=10_000_000)
    """With ``random`` and ``uniform``: how many texts of two turns or more the client shuffles before it chooses
    adapters. The default counts all of ShareGPT V3, some of which may be shorter."""


class SLoraClient(_Client):
    """The synthetic requests of S-LoRA's ``benchmarks/run_exp.py``. Kinds of a mix take turns, as its ranks do."""

    tool: Literal["slora"]
    seed: int = Field(default=42, ge=0, lt=2**32)
    """``--seed``, of all draws."""
    request_rate: Rate
    """``req_rate``, such as ``10/s``."""
    duration: Seconds = Field(default=300.0, gt=0)
    """``duration``: it sends rate × duration requests, however long that takes."""
    cv: float = Field(default=1.0, ge=0.01, le=100)
    """``cv`` of the gamma gaps: 1 is Poisson."""
    alpha: float = Field(default=1.0, gt=0, le=1000)
    """``alpha`` of the power law of adapters: 1 is uniform, below 1 the first ones are popular."""
    input_range: tuple[Length, Length] = (8, 512)
    """``input_range``: from the first number to below the second."""
    output_range: tuple[Length, Length] = (8, 512)
    """``output_range``, likewise."""

    @property
    def num_prompts(self) -> int:
        """How many requests it sends."""
        return int(self.request_rate * self.duration)

    @checks
    def _possible(self) -> Errors:
        for key in ("input_range", "output_range"):
            low, high = getattr(self, key)
            if low >= high:
                yield located(key, "the second number must be above the first", got=[low, high], allowed="[8, 512]")
        if not 1 <= self.num_prompts <= MOST_PROMPTS:
            what, allowed = "rate × duration is the number of requests", f"1 to {MOST_PROMPTS:,}"
            yield located("duration", what, got=self.num_prompts, allowed=allowed)


SeededClient = Annotated[VllmBench | SglangBench | SLoraClient, Field(discriminator="tool")]

ClosedLoop = ClosedArrivals | VllmBench | SglangBench
"""What says how many requests are under way at most."""
