"""Arrival processes.

All but closed loops give the mean rate as ``rate``, so that a sweep over the load is the same for every process.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from sim.spec.base import Strict
from sim.spec.sections.laws import FixedTime, TimeOrLaw
from sim.spec.units import Moment, Rate, Seconds, Share


class _Process(Strict):
    process: str  # each says which; here, so that it comes first wherever keys are listed
    rate: Rate
    """Mean requests per unit of time over all adapters, such as ``12/s``."""


class _Renewal(_Process):
    per: Literal["aggregate", "adapter"] = "aggregate"
    """``aggregate``: one stream of requests, each of which draws its adapter. ``adapter``: every adapter has its own
    stream with these gaps and its share of the rate, so that its requests come in bursts."""


class PoissonArrivals(_Process):
    """Independent users: exponential gaps."""

    process: Literal["poisson"]


class GammaArrivals(_Renewal):
    """Gamma gaps: ``cv`` above 1 is burstier than Poisson, below 1 more regular. ``process: bursty`` is the same."""

    process: Literal["gamma", "bursty"]
    cv: float = Field(default=4.0, ge=0.01, le=100)
    """Coefficient of variation of the gaps: 1 is Poisson, 4 is bursty. With ``per: adapter``, a third column of the
    weights file can give each adapter its own."""


class WeibullArrivals(_Renewal):
    """Weibull gaps: at the same ``cv`` fewer tiny gaps than gamma; fits many clients of ServeGen."""

    process: Literal["weibull"]
    cv: float = Field(ge=0.01, le=100)
    """Coefficient of variation of the gaps: 1 is Poisson, 4 is bursty. With ``per: adapter``, a third column of the
    weights file can give each adapter its own."""


class OnOffArrivals(_Renewal):
    """Poisson while on, silent while off; both last exponential times."""

    process: Literal["on-off"]
    on: Seconds = Field(gt=0)
    """Mean time on."""
    off: Seconds = Field(gt=0)
    """Mean time off. While on, requests arrive at ``rate × (on + off) / on``."""


class Step(Strict):
    """A period with one level."""

    time: Seconds = Field(gt=0)
    """How long it lasts."""
    level: float = Field(ge=0, le=1e6)
    """Rate, relative to the other steps; together they give the mean rate."""


class _Modulated(_Process):
    cv: float = Field(default=1.0, ge=0.01, le=100)
    """Coefficient of variation of the gaps at a constant rate: 1 is Poisson, else gamma."""


class PiecewiseArrivals(_Modulated):
    """A rate that cycles through steps."""

    process: Literal["piecewise"]
    steps: tuple[Step, ...] = Field(min_length=1, max_length=100_000)
    """The steps in order, repeated. Their levels are scaled to the mean ``rate``."""


class DiurnalArrivals(_Modulated):
    """Day and night: a rate that follows a sine."""

    process: Literal["diurnal"]
    swing: Share = 0.5
    """Amplitude of the rate around its mean, as a share of the mean."""
    period: Seconds = Field(default=86400.0, gt=0)
    """From peak to peak."""
    peak_at: Moment = 50400.0
    """Time of the first peak; the run begins at 0."""


class MmppState(Strict):
    """One state of the environment."""

    level: float = Field(ge=0, le=1e6)
    """Rate in this state, relative to the others; together they give the mean rate."""
    time: Seconds = Field(gt=0)
    """Mean time in it; exponential."""


class MmppArrivals(_Process):
    """Markov-modulated Poisson: the rate jumps between states at random times."""

    process: Literal["mmpp"]
    states: tuple[MmppState, ...] = Field(min_length=2, max_length=100)
    """The states; every other state is equally likely to be next. Levels are scaled to the mean ``rate``."""


class ClosedArrivals(Strict):
    """A closed loop, as most benchmarks run: each client sends its next request once the last one is answered."""

    process: Literal["closed"]
    concurrency: PositiveInt = Field(le=1_000_000)
    """How many clients there are, and so how many requests are under way at most."""
    think: TimeOrLaw = FixedTime(law="fixed", value=0.0)
    """How long a client waits before each request, its first one included: a duration such as ``2 s``, or a law such as
    ``{law: exponential, mean: 2 s}``. 0: all clients send at the start, and again as soon as they have their answer."""


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
