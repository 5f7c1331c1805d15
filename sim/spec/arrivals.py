"""When requests arrive: the processes a scenario can name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sim.spec.base import Strict
from sim.spec.units import Rate


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
