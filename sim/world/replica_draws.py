"""Random streams of one replica: the same for the same scenario, seed and replication."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.rng import stream


@dataclass(frozen=True, slots=True)
class ReplicaDraws:
    """Where the random streams of one replica come from.

    :ivar place: number of this incarnation of the replica; a restarted one has another, and so other draws.
    """

    seed: int
    replication: int
    place: int

    def stream(self, purpose: str) -> np.random.Generator:
        """Return a new generator for a purpose; the same purpose gives the same numbers again."""
        return stream(self.seed, self.replication, purpose, self.place)
