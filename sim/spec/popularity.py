"""Which adapters are asked for: the popularity laws a scenario can name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from sim.spec.base import Strict


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
