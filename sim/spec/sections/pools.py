"""Several kinds of replica in one fleet, replicas of full models among them: which requests each takes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from sim.spec.base import Errors, Strict, checks, located
from sim.spec.sections.laws import TimeLaw
from sim.spec.units import Seconds

_SWAP_KEYS = ("resident", "load", "turn")
"""Keys that only a pool of replicas has."""


class FullModels(Strict):
    """The replicas that serve full fine-tunes, and only these."""

    serve: Literal["dedicated", "swap"] = "dedicated"
    """``dedicated``: every full model has its own replicas, which hold it from the start. ``swap``: a pool of replicas
    for all full models; a replica holds ``resident`` of them and loads another once one has drained."""
    replicas: PositiveInt = Field(default=1, le=4096)
    """``dedicated``: replicas of each full model. ``swap``: replicas of the pool."""
    resident: PositiveInt | None = Field(default=None, le=64)
    """``swap`` only: whole models that a replica holds at a time. Unset: 1."""
    load: TimeLaw | None = None
    """``swap`` only: time of loading one whole model; nothing runs on the replica meanwhile. Unset: size over
    storage bandwidth, plus the profile's cost per tensor, without spread. For models kept in host memory give a law,
    such as ``{law: fixed, value: 800 ms}``."""
    turn: Seconds | None = None
    """``swap`` only: how long after its load a model's requests may overtake older requests for another model. Unset:
    no overtaking; first come, first served, as in Ollama."""

    @checks
    def _meaningful(self) -> Errors:
        for key in _SWAP_KEYS:
            if self.serve == "dedicated" and getattr(self, key) is not None:
                yield located(
                    key,
                    "dedicated replicas hold their model from the start and never load",
                    got="serve dedicated",
                    allowed="only with serve swap",
                    hint=f"remove {key}, or set serve: swap",
                )

    @property
    def places(self) -> int:
        """Whole models that a replica holds at a time, with the default resolved."""
        return self.resident or 1


MOST_REPLICAS = 4096
"""Replicas of a fleet, those of all pools and of full models among them."""


class ServedKinds(Strict):
    """The adapters that a pool takes requests for."""

    kinds: tuple[NonNegativeInt, ...] = Field(min_length=1)
    """Places of kinds in ``adapters.mix``, counted from 0."""
