"""Whole models that take turns on a GPU: a batch of one drains before another is loaded."""

from __future__ import annotations

from sim.policies.queues.model_turns import ModelTurns
from sim.traffic.request import Request
from sim.world.replica.modes.adapter_mode import ModeParts
from sim.world.replica.modes.protected import LoadsInSteps


class TurnsOfModels(LoadsInSteps):
    """Loads of whole models, whose turns begin when their loads end.

    :param turn_s: seconds after its load in which a model's requests may pass older ones.
    """

    def __init__(self, parts: ModeParts, turn_s: float) -> None:
        clock = parts.context.clock
        self._turns = ModelTurns(parts.cache, lambda: clock.now, turn_s)
        super().__init__(parts, self._turns)

    def _load(self, request: Request, start_s: float) -> tuple[int, float]:
        tier, seconds = super()._load(request, start_s)
        self._turns.start_turn(request.adapter, start_s + seconds)
        return tier, seconds

    def check_integrity(self) -> None:
        super().check_integrity()
        self._turns.check_integrity()
