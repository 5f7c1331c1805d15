"""One measured run of a benchmark client, whatever the client is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Kind = Literal["ttft", "tpot", "itl", "e2e"]
KINDS: tuple[Kind, ...] = ("ttft", "tpot", "itl", "e2e")
QUANTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class ClosedLoad:
    """A client that keeps so many requests in flight."""

    concurrency: int

    @property
    def words(self) -> str:
        return f"closed loop, {self.concurrency:,} at a time"


@dataclass(frozen=True, slots=True)
class OpenLoad:
    """A client that sends at a rate, whatever the server does.

    :ivar shape: of the gamma law of the gaps: 1 is Poisson, infinite a constant rate.
    :ivar cap: most requests in flight, which a client may also have; None without.
    """

    rate_rps: float
    shape: float = 1.0
    cap: int | None = None

    @property
    def words(self) -> str:
        process = "Poisson" if self.shape == 1 else "constant" if math.isinf(self.shape) else f"gamma {self.shape:g}"
        cap = "" if self.cap is None else f", {self.cap:,} at a time at most"
        return f"open loop, {process} {self.rate_rps:.4g}/s{cap}"


@dataclass(frozen=True, slots=True)
class BenchRequests:
    """Every completed request, in the order in which it was sent.

    :ivar start_s: when it was sent, from the first one on.
    :ivar ttft_s, e2e_s: seconds from there.
    """

    start_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    ttft_s: Floats
    e2e_s: Floats
    gaps_s: Floats

    def values(self, kind: Kind) -> Floats:
        """Return a latency of every request that has it, in seconds; of ITL every gap."""
        if kind == "ttft":
            return self.ttft_s
        if kind == "e2e":
            return self.e2e_s
        if kind == "itl":
            return self.gaps_s
        several = self.output_tokens > 1
        return np.asarray((self.e2e_s - self.ttft_s)[several] / (self.output_tokens[several] - 1))


@dataclass(frozen=True, slots=True)
class TokenSummary:
    """Lengths of prompts or answers: the mean, and the 99 % quantile where the file has it."""

    mean: float
    p99: float | None = None


@dataclass(frozen=True, slots=True)
class BenchRun:
    """A run.

    :ivar tool: such as ``vllm bench serve``; ``name``: the file, and which run in it.
    :ivar model: as the client names it, if it does.
    :ivar measured: by metric such as ``ttft_mean_s`` or ``requests_per_s``.
    :ivar errors: half-widths of 95 % intervals of these, as far as the file has what they need.
    :ivar rows: every request; None where the file has summaries only.
    """

    tool: str
    name: str
    model: str | None
    load: ClosedLoad | OpenLoad
    completed: int
    failed: int
    prompt: TokenSummary
    output: TokenSummary
    measured: Mapping[str, float]
    errors: Mapping[str, float] = field(default_factory=dict)
    rows: BenchRequests | None = None

    @property
    def words(self) -> str:
        """The run in a few words."""
        return f"{self.tool}, {self.load.words}, {self.completed:,} requests"


def measures_of(rows: BenchRequests) -> tuple[dict[str, float], dict[str, float]]:
    """Return latencies of requests by name, and half-widths of their 95 % intervals.

    Those of quantiles are by order statistics. Requests are taken as independent, though neighbours share batches: the
    true intervals are wider.
    """
    measured, errors = {}, {}
    for kind in KINDS:
        values = np.sort(rows.values(kind))
        if not len(values):
            continue
        measured[f"{kind}_mean_s"] = float(values.mean())
        errors[f"{kind}_mean_s"] = 1.96 * float(values.std()) / math.sqrt(len(values))
        for percent in QUANTILES:
            name, share = f"{kind}_p{percent}_s", percent / 100
            measured[name] = float(np.quantile(values, share))
            spread = 1.96 * math.sqrt(share * (1 - share) / len(values))
            low, high = np.quantile(values, [max(share - spread, 0.0), min(share + spread, 1.0)])
            errors[name] = float(high - low) / 2
    return measured, errors
