"""When requests arrive, and which adapters they are for: arrival processes and popularity laws."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from sim.spec.base import Errors, Strict, checks, located
from sim.spec.sections.laws import MAX_TOKENS, FixedTime, TimeOrLaw
from sim.spec.sections.times_of_day import TimeOfDay
from sim.spec.units import Level, Moment, Rate, Seconds, Share, format_rate, parse_level, parse_seconds

if TYPE_CHECKING:
    from sim.arrays import Floats


# Arrival processes.
#
# All but closed loops give the mean rate as ``rate``, so that a sweep over the load is the same for every process.


class _Process(Strict):
    process: str  # each says which; here, so that it comes first wherever keys are listed
    rate: Rate
    """Mean requests per unit of time over all adapters, such as ``12/s``."""


class _Renewal(_Process):
    per: Literal["aggregate", "adapter"] = "aggregate"
    """``aggregate``: one stream, each of whose requests draws its adapter. ``adapter``: every adapter has a stream of
    its own, so its requests come in bursts."""


class PoissonArrivals(_Process):
    """Independent users: exponential gaps."""

    process: Literal["poisson"]


class GammaArrivals(_Renewal):
    """Gamma gaps: burstier than Poisson with a ``cv`` above 1, more regular below."""

    process: Literal["gamma", "bursty"]
    cv: float = Field(default=4.0, ge=0.01, le=100)
    """Coefficient of variation of the gaps: 1 is Poisson, 4 is bursty. With ``per: adapter``, a third column of the
    weights file can give one for each adapter."""


class WeibullArrivals(_Renewal):
    """Weibull gaps: at the same ``cv`` fewer tiny gaps than gamma."""

    process: Literal["weibull"]
    cv: float = Field(ge=0.01, le=100)
    """Coefficient of variation of the gaps."""


class OnOffArrivals(_Renewal):
    """Poisson while on, silent while off; both last exponential times."""

    process: Literal["on-off"]
    on: Seconds = Field(gt=0)
    off: Seconds = Field(gt=0)
    """Mean times on and off. While on, requests arrive at ``rate × (on + off) / on``."""


def _not_required(*names: str) -> ConfigDict:
    """Return the configuration of a model whose JSON Schema doesn't require these fields: others may stand for them."""

    def change(schema: dict[str, Any]) -> None:
        schema["required"] = [name for name in schema["required"] if name not in names]

    return ConfigDict(json_schema_extra=change)


class Step(Strict):
    """A period with one level."""

    model_config = _not_required("time")

    time: Seconds = Field(gt=0)
    """How long it lasts."""
    at: TimeOfDay | None = None
    """In place of ``time``, in every step: when it begins, such as ``09:00``. The steps are then those of a day."""
    level: Level = Field(ge=0, le=1e6)
    """A rate such as ``12/s`` in every step, or numbers relative to each other."""


def mean_rate(steps: Any) -> str | None:
    """Return the mean rate of steps whose levels are rates; None of any others, and of what are no steps.

    :raises PydanticCustomError: if some levels are rates and others numbers above 0.
    """
    listed = steps if isinstance(steps, (list, tuple)) else ()
    pairs = [(each.get("time"), each.get("level")) for each in listed if isinstance(each, dict)]
    kinds = {isinstance(level, str) for _, level in pairs if level}
    if len(kinds) > 1:
        raise located("steps", "levels are rates in every step or in none", allowed="such as 12/s and 3/s, or 4 and 1")
    if kinds != {True}:
        return None
    try:
        lengths = [parse_seconds(time) for time, _ in pairs]
        rates = [float(parse_level(level)) for _, level in pairs]
        return format_rate(sum(map(operator.mul, rates, lengths)) / sum(lengths) or 1.0)
    except (PydanticCustomError, TypeError, ValueError, ZeroDivisionError):
        return format_rate(1.0)  # any will do: their own checks say what is wrong


class _Modulated(_Process):
    cv: float = Field(default=1.0, ge=0.01, le=100)
    """Coefficient of variation of the gaps at a constant rate."""


class PiecewiseArrivals(_Modulated):
    """A rate that cycles through steps."""

    model_config = _not_required("rate")

    process: Literal["piecewise"]
    steps: tuple[Step, ...] = Field(min_length=1, max_length=100_000)
    """The steps in order, repeated. Levels are scaled to the mean ``rate``; rates need none."""

    @model_validator(mode="before")
    @classmethod
    def _mean(cls, data: Any) -> Any:
        mean = mean_rate(data.get("steps")) if isinstance(data, dict) else None
        return {**data, "rate": mean} if mean and data.get("rate") is None else data


class DiurnalArrivals(_Modulated):
    """Day and night: a rate that follows a sine."""

    process: Literal["diurnal"]
    swing: Share = 0.5
    """Amplitude of the rate, as a share of its mean."""
    period: Seconds = Field(default=86400.0, gt=0)
    """From peak to peak."""
    peak_at: Moment = 50400.0
    """Time of the first peak."""


class MmppState(Strict):
    """One state of the environment."""

    level: float = Field(ge=0, le=1e6)
    """Rate in this state, relative to the others."""
    time: Seconds = Field(gt=0)
    """Mean time in it; exponential."""


class MmppArrivals(_Process):
    """Markov-modulated Poisson: the rate jumps between states at random times."""

    process: Literal["mmpp"]
    states: tuple[MmppState, ...] = Field(min_length=2, max_length=100)
    """Every other state is equally likely to be next. Levels are scaled to the mean ``rate``."""


class ClosedArrivals(Strict):
    """A closed loop, as most benchmarks run: each client sends its next request once it has its answer."""

    process: Literal["closed"]
    concurrency: PositiveInt = Field(le=1_000_000)
    """How many clients there are."""
    think: TimeOrLaw = FixedTime(law="fixed", value=0.0)
    """How long a client waits before each request, its first one included. 0: all send at the start."""


OpenArrivals = (
    PoissonArrivals
    | GammaArrivals
    | WeibullArrivals
    | OnOffArrivals
    | PiecewiseArrivals
    | DiurnalArrivals
    | MmppArrivals
)
"""Processes whose requests arrive whether or not earlier ones have been answered."""

Arrivals = Annotated[OpenArrivals | ClosedArrivals, Field(discriminator="process")]


# Popularity laws of adapters, and their changes over time.
#
# A law is a model with ``weights`` and a member of the union ``Popularity``; nothing else lists it.
#
# numpy is imported where it computes: a scenario is read, and a finished run, in less time without it.


class _Law(Strict):
    # Whether the law itself says how many adapters there are; whether requests go to adapters in turn.
    fixes_count: ClassVar[bool] = False
    in_turn: ClassVar[bool] = False


def _places(count: int) -> Floats:
    import numpy as np

    return np.arange(1, count + 1, dtype=np.float64)


class UniformPopularity(_Law):
    """Every adapter is equally likely."""

    law: Literal["uniform"]

    def weights(self, count: int) -> Floats:
        """Return how often each adapter is asked for, in any scale; (count,)."""
        import numpy as np

        return np.ones(count)


class ZipfPopularity(_Law):
    """The k-th most popular adapter gets requests in proportion to ``1 / k**exponent``."""

    law: Literal["zipf"]
    exponent: float = Field(ge=0, le=10)
    """0 is uniform; production traffic lies between 0.6 and 1.2."""

    def weights(self, count: int) -> Floats:
        return _places(count) ** -self.exponent


class ZipfMandelbrotPopularity(_Law):
    """In proportion to ``1 / (k + shift)**exponent``: Zipf with a flatter head."""

    law: Literal["zipf-mandelbrot"]
    exponent: float = Field(ge=0, le=10)
    """0.95 fits Alibaba's GenTD26."""
    shift: float = Field(ge=0, le=1e6)
    """0 is Zipf; 6.5 fits Alibaba's GenTD26."""

    def weights(self, count: int) -> Floats:
        import numpy as np

        return np.asarray((_places(count) + self.shift) ** -self.exponent)


class GeometricPopularity(_Law):
    """Every adapter gets ``ratio`` times as many requests as the next."""

    law: Literal["geometric"]
    ratio: float = Field(default=1.5, ge=1, le=1000)
    """1 is uniform; SGLang's benchmark, which calls it skewed, has 1.5."""

    def weights(self, count: int) -> Floats:
        import numpy as np

        return np.exp(-math.log(self.ratio) * (_places(count) - 1))  # far down the ranking 0, as it should be


class SLoraPowerPopularity(_Law):
    """S-LoRA's: the first k of n adapters get a share of ``(k / n)**alpha`` of the requests."""

    law: Literal["s-lora-power"]
    alpha: float = Field(gt=0, le=100)
    """1 is uniform; the smaller, the more the first adapters get."""

    def weights(self, count: int) -> Floats:
        import numpy as np

        return np.diff(np.concatenate(([0.0], (_places(count) / count) ** self.alpha)))


class HotColdPopularity(_Law):
    """Hot adapters get most requests, each equally many; the others share the rest equally."""

    law: Literal["hot-cold"]
    hot: Share = Field(gt=0)
    """Share of the adapters that is hot, such as ``10%``."""
    requests: Share
    """Share of the requests that these get, such as ``90%``."""

    def weights(self, count: int) -> Floats:
        import numpy as np

        hot = min(count, max(1, round(self.hot * count)))
        cold = count - hot
        share = self.requests if cold else 1.0
        return np.repeat([share / hot, (1 - share) / max(cold, 1)], [hot, cold])


class CyclicPopularity(_Law):
    """Adapters in turn, 0, 1, 2, …: the worst case of an LRU cache."""

    law: Literal["cyclic"]
    in_turn: ClassVar[bool] = True

    def weights(self, count: int) -> Floats:
        import numpy as np

        return np.ones(count)


class WeightsPopularity(_Law):
    """Weights from a file: one number a line, adapter 0 first, or CSV rows ``adapter_id,weight`` (and perhaps
    ``cv``)."""

    law: Literal["weights"]
    fixes_count: ClassVar[bool] = True
    file: str
    """The file, relative to the scenario."""


class AdapterGroup(Strict):
    """Adapters that are equally popular."""

    adapters: PositiveInt
    """How many."""
    weight: float = Field(ge=0)
    """Requests of each adapter, relative to the others."""


class GroupsPopularity(_Law):
    """Groups of equally popular adapters; the first group has adapters 0, 1, …"""

    law: Literal["groups"]
    fixes_count: ClassVar[bool] = True
    groups: tuple[AdapterGroup, ...] = Field(min_length=1)
    """The groups; together they have ``adapters.count`` adapters."""

    def weights(self, count: int) -> Floats:
        import numpy as np

        return np.repeat([group.weight for group in self.groups], [group.adapters for group in self.groups])


Popularity = Annotated[
    UniformPopularity
    | ZipfPopularity
    | ZipfMandelbrotPopularity
    | GeometricPopularity
    | SLoraPowerPopularity
    | HotColdPopularity
    | CyclicPopularity
    | WeightsPopularity
    | GroupsPopularity,
    Field(discriminator="law"),
]


class Sessions(Strict):
    """Requests come in sessions: a user works with one adapter for a while. The defaults fit Alibaba's GenTD26."""

    requests: float = Field(default=4.5, ge=1, le=1e6)
    """Mean requests of a session; geometric."""
    gap_median: Seconds = Field(default=120.0, gt=0)
    """Median time between two requests of a session; log-normal."""
    gap_sigma: float = Field(default=1.0, ge=0, le=10)
    """Standard deviation of the logarithm of these times."""
    gap_max: Seconds = Field(default=1800.0, gt=0)
    """Longer times are cut to this."""
    history: bool = False
    """Whether a prompt is the session's last prompt, its answer, and new tokens, whose number
    ``workload.tokens.prompt`` gives."""
    max_context: int = Field(default=32_768, gt=0, le=MAX_TOKENS)
    """With ``history``: a conversation whose next prompt and answer would have more tokens than this starts over."""

    @checks
    def _of_history(self) -> Errors:
        if not self.history and "max_context" in self.model_fields_set:
            yield located(
                "max_context", "only conversations have a context", got=self.max_context, hint="set history: true"
            )


class Drift(Strict):
    """From time to time some adapters trade places in the ranking. A session keeps its adapter."""

    share: Share = Field(gt=0)
    """Share of the adapters that trade places each time."""
    every: Seconds = Field(gt=0)
    """Time from one trade to the next."""


class Churn(Strict):
    """Adapters are retired and new ones take their places in the ranking, evenly over time. A session keeps its
    adapter. New adapters are in no cache, except in host memory with ``fill: start``."""

    share: Share = Field(default=0.04, gt=0)
    """Share of the adapters that is replaced in ``every``; Alibaba's GenTD26 sees 4 % new ones a day."""
    every: Seconds = Field(default=86400.0, gt=0)
    """The time in which this share is replaced."""
