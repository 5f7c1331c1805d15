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
    """Factor on the speed at which requests are sent; not an option of the tool."""

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
    """``--max-concurrency``: latencies of a request that waits for it count from when it is sent. Unset: no limit."""
    special_tokens: NonNegativeInt = Field(default=1, le=100)
    """Tokens that the tokenizer adds to a prompt: 1 for Llama and Mistral, 0 for Qwen."""

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
    """``vllm bench serve --dataset-name random``, as of vLLM 0.32."""

    tool: Literal["vllm-bench"]
    burstiness: float = Field(default=1.0, ge=1e-4, le=1e4)
    """``--burstiness``: 1 is Poisson, below 1 is bursty."""
    input_len: Length = 1024
    """``--random-input-len``, the mean without the prefix."""
    output_len: Length = 128
    """``--random-output-len``, the mean."""
    range_ratio: float = Field(default=0.0, ge=0, lt=1)
    """``--random-range-ratio``: lengths are uniform in the mean × (1 ± ratio)."""
    output_range_ratio: float | None = Field(default=None, ge=0, lt=1)
    """``--random-range-ratio`` of answers. Unset: ``range_ratio``."""
    prefix_len: NonNegativeInt = Field(default=0, le=1_000_000)
    """``--random-prefix-len``."""
    lora_assignment: Literal["random", "round-robin"] = "random"
    """``--lora-assignment`` over ``adapters.count`` adapters."""

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
    """``--seed``. Older releases have 1 by default."""
    input_len: Length = 1024
    output_len: Length = 1024
    """``--random-input-len`` and ``--random-output-len``, the most."""
    range_ratio: float = Field(default=0.0, ge=0, le=1)
    """``--random-range-ratio``: lengths are uniform from the most × ratio to the most."""
    lora_request_distribution: Literal["uniform", "distinct", "skewed"] = "uniform"
    """``--lora-request-distribution`` over ``adapters.count`` adapters."""
    lora_zipf_alpha: float = Field(default=1.5, gt=1, le=1000)
    """``--lora-zipf-alpha``, with ``skewed``."""
    vocab_size: PositiveInt | None = Field(default=None, lt=2**31)
    """For ``--dataset-name random-ids``: the tokenizer's vocabulary. Unset: ``random``."""
    conversations: PositiveInt = Field(default=94_145, le=10_000_000)
    """With ``random`` and ``uniform``: texts of two turns or more that the client shuffles first. The default is all of
    ShareGPT V3."""


class SLoraClient(_Client):
    """The synthetic requests of S-LoRA's ``benchmarks/run_exp.py``. Kinds of a mix take turns."""

    tool: Literal["slora"]
    seed: int = Field(default=42, ge=0, lt=2**32)
    """``--seed``, of all draws."""
    request_rate: Rate
    """``req_rate``, such as ``10/s``."""
    duration: Seconds = Field(default=300.0, gt=0)
    """It sends rate × duration requests."""
    cv: float = Field(default=1.0, ge=0.01, le=100)
    """Coefficient of variation of the gamma gaps: 1 is Poisson."""
    alpha: float = Field(default=1.0, gt=0, le=1000)
    """Exponent of the power law of adapters: 1 is uniform, below 1 the first ones are popular."""
    input_range: tuple[Length, Length] = (8, 512)
    output_range: tuple[Length, Length] = (8, 512)
    """From the first number to below the second."""

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
