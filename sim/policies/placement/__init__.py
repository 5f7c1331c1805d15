"""Which adapters live on which replicas: pure decisions from demand and what is placed now.

A policy is a class in here and an entry of ``PLACERS`` in ``sim/spec/policies.py``. What counts the demand, and moves
adapters, is in ``sim.world.routing.placement_controller``.
"""

from __future__ import annotations

from sim.policies.placement.placer import Demand, Placement, Placer, PlacerContext
from sim.spec.policies import PLACERS

__all__ = ["Demand", "Placement", "Placer", "PlacerContext", "make_placer"]


def make_placer(policy: str, context: PlacerContext) -> Placer:
    """Return a policy of the placement controller, by its name in ``PLACERS``."""
    placer: Placer = PLACERS[policy].load()(context)
    return placer
