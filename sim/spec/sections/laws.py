"""Probability laws of a scenario: times (with units) and token counts.

Every time law has an inverse distribution function, so that one uniform number per request or load decides its time:
the same request gets the same draw in every design that is compared.

numpy is imported where it computes: a scenario is read, and a finished run, in less time without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from sim.spec.base import Errors, Strict, checks, located
from sim.spec.units import SHARE_SCHEMA, Seconds, Share, format_seconds, parse_seconds

if TYPE_CHECKING:
    from sim.arrays import Floats

MAX_TOKENS = 10_000_000
"""Tokens of a request, prompt and answer together, at most: many times the longest context of any model."""

TokenCount = Annotated[int, Field(gt=0, le=MAX_TOKENS)]


Acceptance = Annotated[
    tuple[Share, ...],
    BeforeValidator(lambda value: value if isinstance(value, (list, tuple)) else (value,)),
    Field(min_length=1, max_length=64),
    WithJsonSchema(
        {"anyOf": [SHARE_SCHEMA, {"type": "array", "items": SHARE_SCHEMA, "minItems": 1}], "examples": ["70%"]}
    ),
]
"""How likely a drafted token is accepted if all before it were: by position, the last of which holds for later ones."""

_QUANTILES = {"p50": 0.0, "p90": 1.2815515655446004, "p99": 2.3263478740408408}
"""Standard normal quantiles."""


def lognormal_shape(given: Mapping[str, float | None]) -> tuple[float, float]:
    """Return mu and sigma of the log-normal law with two of its mean, p50, p90 and p99.

    From ln p = mu + z sigma for quantiles, and ln mean = mu + sigma²/2. Mean and p90 or p99 leave two roots: the
    smaller sigma is the one where the tail grows with sigma.

    :raises PydanticCustomError: if not two are given, or no law with the smaller sigma has them.
    """
    known = {name: value for name in ("mean", *_QUANTILES) if (value := given.get(name)) is not None}
    if len(known) != 2:
        hint = "null removes one that the file gives" if len(known) > 2 else ""
        problem, allowed = "a log-normal law is given by two figures", "two of mean, p50, p90 and p99"
        raise located("", problem, got=", ".join(known), allowed=allowed, hint=hint)
    (first, low), (second, high) = known.items()
    z = _QUANTILES[second]
    if first != "mean":
        if not low < high:
            raise located(second, f"{second} must be above {first}", got=high, allowed=f"above {low:g}")
        sigma = math.log(high / low) / (z - _QUANTILES[first])
        return math.log(low) - _QUANTILES[first] * sigma, sigma
    mean, quantile = low, high
    if second == "p50" and not quantile < mean:
        raise located("p50", "no log-normal law has this mean and p50", got=quantile, allowed="below the mean")
    limit = math.exp(z**2 / 2)
    if second != "p50" and not mean < quantile <= limit * mean:
        # Below the mean there is a law, but only that of the larger root: its sigma is above 2 z.
        too_low = quantile <= mean
        problem = f"{second} must be above the mean" if too_low else f"no log-normal law has this mean and {second}"
        raise located(second, problem, got=quantile, allowed=f"above the mean and at most {limit:.2f} times it")
    sigma = abs(z - math.sqrt(max(0.0, z**2 - 2 * math.log(quantile / mean))))  # at the limit, rounding goes below 0
    return math.log(mean) - sigma**2 / 2, sigma


class FixedTime(Strict):
    """Always the same time."""

    law: Literal["fixed"]
    value: Seconds
    """The time, such as ``10 ms``."""

    def ppf(self, u: Floats) -> Floats:
        import numpy as np

        return np.full_like(u, self.value)

    def mean(self) -> float:
        return self.value


class ExponentialTime(Strict):
    """Memoryless times."""

    law: Literal["exponential"]
    mean_time: Seconds = Field(alias="mean")
    """The mean, such as ``10 ms``."""

    def ppf(self, u: Floats) -> Floats:
        import numpy as np

        return -self.mean_time * np.log1p(-u)

    def mean(self) -> float:
        return self.mean_time


class UniformTime(Strict):
    """Any time between two bounds, equally likely."""

    law: Literal["uniform"]
    low: Seconds
    high: Seconds
    """The shortest and the longest time."""

    @model_validator(mode="after")
    def _ordered(self) -> UniformTime:
        if self.high < self.low:
            raise located("high", "high is below low", got=f"low {self.low} s, high {self.high} s")
        return self

    def ppf(self, u: Floats) -> Floats:
        return self.low + (self.high - self.low) * u

    def mean(self) -> float:
        return (self.low + self.high) / 2


class LognormalTime(Strict):
    """Times with a long tail."""

    law: Literal["lognormal"]
    mean_time: Seconds | None = Field(default=None, alias="mean", gt=0)
    """Two of mean, median (p50), p90 and p99 give the law."""
    p50: Seconds | None = Field(default=None, gt=0)
    p90: Seconds | None = Field(default=None, gt=0)
    p99: Seconds | None = Field(default=None, gt=0)
    """Two of mean, median (p50), p90 and p99 give the law."""

    @model_validator(mode="after")
    def _exists(self) -> LognormalTime:
        self._shape()
        return self

    def _shape(self) -> tuple[float, float]:
        return lognormal_shape({"mean": self.mean_time, "p50": self.p50, "p90": self.p90, "p99": self.p99})

    def ppf(self, u: Floats) -> Floats:
        import numpy as np
        from scipy.special import ndtri

        mu, sigma = self._shape()
        return np.asarray(np.exp(mu + sigma * ndtri(u)))

    def mean(self) -> float:
        if self.mean_time is not None:
            return self.mean_time
        mu, sigma = self._shape()
        return math.exp(mu + sigma**2 / 2)


TimeLaw = Annotated[FixedTime | ExponentialTime | UniformTime | LognormalTime, Field(discriminator="law")]


def _as_law(value: Any) -> Any:
    """Return the law that always gives a duration; a law as it is."""
    if isinstance(value, (Mapping, Strict)):
        return value
    return {"law": "fixed", "value": format_seconds(parse_seconds(value))}


TimeOrLaw = Annotated[TimeLaw, BeforeValidator(_as_law, json_schema_input_type=Seconds | TimeLaw)]
"""A law of times, or a duration that stands for always the same time."""


class FixedTokens(Strict):
    """Every request has the same number of tokens."""

    law: Literal["fixed"]
    value: TokenCount
    """How many tokens."""


class UniformTokens(Strict):
    """Any number of tokens between two bounds, both included."""

    law: Literal["uniform"]
    low: TokenCount
    high: TokenCount
    """The fewest and the most tokens."""

    @model_validator(mode="after")
    def _ordered(self) -> UniformTokens:
        if self.high < self.low:
            raise located("high", "high is below low", got=f"low {self.low}, high {self.high}")
        return self


class GeometricTokens(Strict):
    """Each token is the last with the same probability."""

    law: Literal["geometric"]
    mean: float = Field(ge=1, le=MAX_TOKENS)
    """Mean tokens, 1 or more."""
    max: TokenCount | None = None
    """Longer draws are cut to this many tokens."""


class LognormalTokens(Strict):
    """Token counts with a long tail; rounded up, at least 1."""

    law: Literal["lognormal"]
    mean: float | None = Field(default=None, gt=0, le=MAX_TOKENS)
    p50: float | None = Field(default=None, gt=0, le=MAX_TOKENS)
    p90: float | None = Field(default=None, gt=0, le=MAX_TOKENS)
    p99: float | None = Field(default=None, gt=0, le=MAX_TOKENS)
    """Two of mean (before the cut at ``max``), median (p50), p90 and p99 give the law."""
    max: TokenCount | None = None
    """Longer draws are cut to this many tokens."""

    @checks
    def _exists(self) -> Errors:
        mu, sigma = self.shape()
        mean = math.exp(mu + sigma * sigma / 2)
        if self.max is not None and self.max < mean:
            yield located("max", "draws would be cut below their mean", got=self.max, allowed=f"above {mean:,.0f}")

    def shape(self) -> tuple[float, float]:
        """Return mean and standard deviation of the logarithm."""
        return lognormal_shape({"mean": self.mean, "p50": self.p50, "p90": self.p90, "p99": self.p99})

    def quantile_99(self) -> float:
        """Return the number of tokens that 99 % of requests stay below."""
        mu, sigma = self.shape()
        return self.p99 if self.p99 is not None else math.exp(mu + _QUANTILES["p99"] * sigma)


class EmpiricalTokens(Strict):
    """Drawn from a column of a CSV file (a header row, one number a row)."""

    law: Literal["empirical"]
    file: str
    """CSV file, relative to the scenario."""
    column: str
    """The column with token counts."""


class HistogramTokens(Strict):
    """Bins of equal width; uniform within each."""

    law: Literal["histogram"]
    low: TokenCount
    high: TokenCount
    """Edges of the first and the last bin, in tokens."""
    shares: tuple[float, ...] = Field(min_length=1)
    """Share of requests in each bin, in any scale."""
    mean: float | None = Field(default=None, gt=0, le=MAX_TOKENS)
    """Stretch all lengths by one factor to this mean."""

    @model_validator(mode="after")
    def _usable(self) -> HistogramTokens:
        if self.high <= self.low:
            raise located("high", "high is not above low", got=f"low {self.low}, high {self.high}")
        if any(not 0 <= share < math.inf for share in self.shares) or not 0 < sum(self.shares) < math.inf:
            raise located("shares", "shares must be 0 or more, and not all 0", got=list(self.shares))
        if self.stretch() * self.high > MAX_TOKENS:
            raise located(
                "mean",
                "the longest request would have too many tokens",
                got=f"{self.mean:g}: {self.stretch() * self.high:,.0f} tokens in place of {self.high:,}",
                allowed=f"up to {MAX_TOKENS:,} tokens",
            )
        return self

    def stretch(self) -> float:
        """Return the factor by which all lengths are stretched."""
        if self.mean is None:
            return 1.0
        import numpy as np

        weights = np.asarray(self.shares) / sum(self.shares)
        edges = np.linspace(self.low, self.high, len(weights) + 1)
        return self.mean / float(weights @ (edges[1:] + edges[:-1]) / 2)


_TokenLaw = Annotated[
    FixedTokens | UniformTokens | GeometricTokens | LognormalTokens | EmpiricalTokens | HistogramTokens,
    Field(discriminator="law"),
]


def _law_of_number(value: Any) -> Any:
    """Return the law that a bare number stands for: always so many tokens."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"law": "fixed", "value": value} if is_number else value


TokenLaw = Annotated[_TokenLaw, BeforeValidator(_law_of_number, json_schema_input_type=_TokenLaw | TokenCount)]
"""A law of token counts; a bare number stands for ``law: fixed``."""
