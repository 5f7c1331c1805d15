"""Probability laws of a scenario: times (with units) and token counts.

Every time law has an inverse distribution function, so that one uniform number per request or load decides its time:
the same request gets the same draw in every design that is compared.

numpy is imported where it computes: a scenario is read, and a finished run, in less time without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from sim.spec.base import Strict, located
from sim.spec.units import TIME_SCHEMA, Seconds, format_seconds, parse_seconds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MAX_TOKENS = 10_000_000
"""Tokens of a request, prompt and answer together, at most: many times the longest context of any model."""

TokenCount = Annotated[int, Field(gt=0, le=MAX_TOKENS)]

_Z99 = 2.3263478740408408  # standard normal quantile at 0.99


def lognormal_sigma(mean: float, p99: float) -> float:
    """Return sigma of the log-normal law with this mean and 99 % quantile.

    From ln p99 = mu + z sigma and ln mean = mu + sigma²/2; the smaller root is the one where the tail
    grows with sigma. No such law exists for p99 above 14.97 times the mean.
    """
    inner = _Z99**2 - 2 * math.log(p99 / mean)
    return _Z99 - math.sqrt(inner)


def _check_tail(mean: float, p99: float) -> None:
    limit = math.exp(_Z99**2 / 2)
    if not mean < p99 <= limit * mean:
        raise located(
            "p99",
            "no log-normal law has this mean and p99",
            got=p99,
            allowed=f"above the mean and at most {limit:.2f} times it",
        )


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
    """The shortest time."""
    high: Seconds
    """The longest time."""

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
    """Times with a long tail, given by mean and 99 % quantile."""

    law: Literal["lognormal"]
    mean_time: Seconds = Field(alias="mean", gt=0)
    """The mean."""
    p99: Seconds = Field(gt=0)
    """99 % quantile."""

    @model_validator(mode="after")
    def _exists(self) -> LognormalTime:
        _check_tail(self.mean_time, self.p99)
        return self

    def ppf(self, u: Floats) -> Floats:
        import numpy as np
        from scipy.special import ndtri

        sigma = lognormal_sigma(self.mean_time, self.p99)
        return np.asarray(np.exp(math.log(self.mean_time) - sigma**2 / 2 + sigma * ndtri(u)))

    def mean(self) -> float:
        return self.mean_time


TimeLaw = Annotated[FixedTime | ExponentialTime | UniformTime | LognormalTime, Field(discriminator="law")]


def _as_law(value: Any) -> Any:
    """Return the law that always gives a duration; a law as it is."""
    if isinstance(value, (Mapping, Strict)):
        return value
    return {"law": "fixed", "value": format_seconds(parse_seconds(value))}


class _OrDuration:
    """Adds a duration to the JSON Schema of a law."""

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [TIME_SCHEMA, handler(core_schema)]}


TimeOrLaw = Annotated[TimeLaw, BeforeValidator(_as_law), _OrDuration()]
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
    """The fewest tokens."""
    high: TokenCount
    """The most tokens."""

    @model_validator(mode="after")
    def _ordered(self) -> UniformTokens:
        if self.high < self.low:
            raise located("high", "high is below low", got=f"low {self.low}, high {self.high}")
        return self


class GeometricTokens(Strict):
    """Each token is the last with the same probability: 1, 2, 3, … with the given mean."""

    law: Literal["geometric"]
    mean: float = Field(ge=1, le=MAX_TOKENS)
    """Mean tokens, 1 or more."""
    max: TokenCount | None = None
    """Longer draws are cut to this many tokens."""


class LognormalTokens(Strict):
    """Token counts with a long tail, given by mean and 99 % quantile; rounded up, at least 1."""

    law: Literal["lognormal"]
    mean: float = Field(gt=0, le=MAX_TOKENS)
    """Mean tokens (before the cut at ``max``)."""
    p99: float = Field(gt=0, le=MAX_TOKENS)
    """99 % quantile."""
    max: TokenCount | None = None
    """Longer draws are cut to this many tokens."""

    @model_validator(mode="after")
    def _exists(self) -> LognormalTokens:
        _check_tail(self.mean, self.p99)
        return self


class EmpiricalTokens(Strict):
    """Drawn from a column of observed counts in a CSV file (a header row, one number a row)."""

    law: Literal["empirical"]
    file: str
    """CSV file, relative to the scenario."""
    column: str
    """The column with token counts."""


class HistogramTokens(Strict):
    """A histogram with equally wide bins; uniform within each."""

    law: Literal["histogram"]
    low: TokenCount
    """Lower edge of the first bin, in tokens."""
    high: TokenCount
    """Upper edge of the last bin."""
    shares: tuple[float, ...] = Field(min_length=1)
    """Share of requests in each bin; they need not add up to 1."""
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
