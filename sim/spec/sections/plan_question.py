"""The question of a plan: the smallest or largest value that meets the SLO, or the cheapest fleet."""

from __future__ import annotations

from typing import Any

from pydantic import Field, PositiveInt, model_validator

from sim.spec.base import Strict, located
from sim.spec.units import Price, Share

PRICE = "price"
"""The value of ``minimize`` in a plan for the cheapest of several fleets."""
MOST_VARIABLES = 2
_NEVER = (
    "schema_version",
    "name",
    "description",
    "slo",
    "run",
    "sweep",
    "plan",
    "workload.requests",
    "workload.duration",
)


class FleetChoice(Strict):
    """One kind of fleet to choose from."""

    name: str = Field(min_length=1, max_length=64)
    """Its name in the answer."""
    price: Price
    """What one of its GPUs costs for an hour, such as ``2.50 USD/h``; it takes the place of ``fleet.price``."""
    gpus: PositiveInt | None = Field(default=None, le=1024)
    """GPUs of one replica; unset: those of the profile (tensor parallelism)."""
    set: dict[str, Any] = Field(default_factory=dict)
    """The values that this fleet sets in the scenario, by dotted key, such as ``fleet.profile``."""


class Plan(Strict):
    """The question of ``loraplan plan``: which value is the smallest (or largest) that meets every term of ``slo``."""

    minimize: str | tuple[str, ...] | None = None
    """Dotted key to minimize, such as ``cache.gpu.slots``. Two keys: first the smallest value of the first for which
    any value of the second meets the SLO, then the smallest such value of the second. ``price``: the cheapest of
    ``fleets``."""
    maximize: str | tuple[str, ...] | None = None
    """Dotted key to maximize, such as ``workload.arrivals.rate``."""
    range: tuple[Any, Any] | None = None
    """First and last value to consider, with the key's unit. With two keys: ``[[1, 4], [16, 256]]``. With ``price``:
    replicas of each fleet."""
    step: Any = None
    """Distance between values: a number with the range's unit, or a share such as 5% for steps that grow with the
    value. Unset: 1 for whole numbers, where the range has at most 128 of them; else 5%."""
    values: tuple[Any, ...] | None = None
    """Instead of a range: the values to consider, the most wanted first."""
    fleets: tuple[FleetChoice, ...] = Field(default=(), max_length=64)
    """With ``minimize: price``: the fleets to choose from, each with its own price."""
    confidence: Share = Field(default=0.95, ge=0.5, le=0.999)
    """Confidence at which the search stops; a closer call is marked as uncertain."""

    @model_validator(mode="after")
    def _one_question(self) -> Plan:
        if (self.minimize is None) == (self.maximize is None):
            raise located(
                "minimize", "a plan needs exactly one of minimize and maximize", hint="give either minimize or maximize"
            )
        keys = self.keys
        if not keys or not all(keys):
            raise located(self.direction, "no key", hint="such as cache.gpu.slots")
        if len(set(keys)) < len(keys) or len(keys) > MOST_VARIABLES:
            raise located(
                self.direction,
                "not one or two different keys",
                got=", ".join(keys),
                allowed="one key, or two in a list",
            )
        wrong = next((key for key in keys if key in _NEVER or key.partition(".")[0] in _NEVER), None)
        if wrong is not None:
            raise located(
                self.direction,
                "a plan can't vary the question or the length of the run",
                got=wrong,
                allowed="hardware, configuration or traffic, such as cache.gpu.slots or workload.arrivals.rate",
            )
        if (PRICE in keys) != bool(self.fleets):
            raise located(
                "fleets",
                "minimize: price and fleets go together",
                got=f"{len(self.fleets)} fleets",
                hint="give fleets: [{name: a, price: 2.5, set: {fleet.profile: …}}, …]",
            )
        if PRICE in keys and (len(keys) > 1 or self.maximize is not None):
            raise located(self.direction, "price can only be minimized, and on its own", got=", ".join(keys))
        names = [fleet.name for fleet in self.fleets]
        if len(set(names)) < len(names):
            raise located("fleets", "two fleets have the same name", got=", ".join(names))
        self._check_values()
        return self

    def _check_values(self) -> None:
        if self.values is not None:
            if self.range is not None or self.step is not None:
                raise located("values", "give either values or a range", hint="remove range and step, or values")
            if len(self.keys) > 1 or self.fleets:
                raise located("values", "only one key can have a list of values", hint="give range")
            if not self.values:
                raise located("values", "no values")
            return
        if self.range is None:
            raise located("range", "the range is missing", hint="such as range: [8, 256]")
        if len(self.keys) > 1:
            if not all(isinstance(each, (list, tuple)) and len(each) == 2 for each in self.range):
                raise located(
                    "range", "two keys have a range each", got=list(self.range), allowed="such as [[1, 4], [16, 256]]"
                )
            if self.step is not None and not (
                isinstance(self.step, (list, tuple)) and len(self.step) == len(self.keys)
            ):
                raise located("step", "two keys have a step each", got=self.step, allowed="such as [1, 16]")

    @property
    def direction(self) -> str:
        """``minimize`` or ``maximize``."""
        return "minimize" if self.minimize is not None else "maximize"

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys to find values for."""
        asked = self.minimize if self.minimize is not None else self.maximize
        return (asked,) if isinstance(asked, str) else tuple(asked or ())
