"""Full fine-tunes beside adapters: which replicas serve them, and how they come into GPU memory."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from sim.spec.base import Strict, located
from sim.spec.sections.laws import TimeLaw
from sim.spec.units import Seconds

_SWAP_KEYS = ("resident", "load", "turn")
"""What only a pool of replicas has."""


class FullModels(Strict):
    """The replicas of full fine-tunes; they serve nothing else."""

    serve: Literal["dedicated", "swap"] = "dedicated"
    """``dedicated``: every full model has its own replicas, which hold it from the start. ``swap``: a pool of replicas
    for all full models; a replica holds ``resident`` of them and loads another one when one of these has drained."""
    replicas: PositiveInt = Field(default=1, le=4096)
    """``dedicated``: replicas of each full model. ``swap``: replicas of the pool."""
    resident: PositiveInt | None = Field(default=None, le=64)
    """``swap`` only: whole models that a replica holds at a time. Unset: 1."""
    load: TimeLaw | None = None
    """``swap`` only: time of loading one whole model; nothing runs on the replica meanwhile. Unset: the size over the
    bandwidth of the profile's loads from storage, with their cost per tensor, without their spread. For models that are
    kept in host memory give a law, such as ``{law: fixed, value: 800 ms}``."""
    turn: Seconds | None = None
    """``swap`` only: for how long after its load a model's requests may pass older ones that wait for another model.
    Unset: nobody passes; first come, first served, as Ollama does."""

    @model_validator(mode="after")
    def _meaningful(self) -> FullModels:
        for key in _SWAP_KEYS:
            if self.serve == "dedicated" and getattr(self, key) is not None:
                raise located(
                    key,
                    "a replica of its own holds a model from the start and never loads",
                    got="serve dedicated",
                    allowed="only with serve swap",
                    hint=f"remove {key}, or set serve: swap",
                )
        return self

    @property
    def places(self) -> int:
        """Whole models that a replica holds at a time, with the default worked out."""
        return self.resident or 1
