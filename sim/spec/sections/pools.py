"""Several kinds of replica in one fleet: which requests each takes."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt

from sim.spec.base import Strict

MOST_REPLICAS = 4096
"""Replicas of a fleet, those of all pools and of full models among them."""


class ServedKinds(Strict):
    """The adapters that a pool takes requests for."""

    kinds: tuple[NonNegativeInt, ...] = Field(min_length=1)
    """Places of kinds in ``adapters.mix``, counted from 0."""
