"""What an engine adds to its kernels in every step: the host's work, and launches that no table has.

step = ``factor`` · kernels + ``step_s`` + ``per_sequence_s`` · sequences + ``prefill_step_s``, the last where the
step has a prompt.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from calibrate.kernels.kernel_tables import Deployment
from sim.spec.profile import StepCost
from sim.studies.fidelity.least_squares import significant

FILE = Path(__file__).with_name("overheads.json")
"""Written by ``tools/overheads.py``."""


@dataclass(frozen=True, slots=True)
class EngineOverhead:
    """Coefficients of one engine.

    :ivar spread: standard deviation of the logarithm of measured over predicted times of whole deployments.
    :ivar error: what held-out measurements say, in words.
    :ivar source: where the coefficients come from.
    """

    factor: float = 1.0
    step_s: float = 0.0
    per_sequence_s: float = 0.0
    prefill_step_s: float = 0.0
    spread: float = 0.0
    error: str = ""
    source: str = ""

    def added_to(self, kernels: StepCost, factor: float = 1.0) -> StepCost:
        """Return the costs of whole steps.

        :param kernels: costs of the kernels alone.
        :param factor: further factor on whole steps, for draws.
        """
        scale = self.factor * factor
        fixed, sequence, kv_token, attended, prefill = significant(
            [
                kernels.fixed_s * scale + self.step_s * factor,
                kernels.per_sequence_s * scale + self.per_sequence_s * factor,
                kernels.per_kv_token_s * scale,
                kernels.per_attended_token_s * scale,
                kernels.prefill_step_s * scale + self.prefill_step_s * factor,
            ]
        )
        return kernels.model_copy(
            update={
                "fixed_s": fixed,
                "tokens": tuple((tokens, round(seconds * scale, 9)) for tokens, seconds in kernels.tokens),
                "per_sequence_s": sequence,
                "per_kv_token_s": kv_token,
                "per_attended_token_s": attended,
                "prefill_step_s": prefill,
            }
        )


def overhead_of(deployment: Deployment) -> EngineOverhead:
    """Return what the engine of a deployment adds; nothing where that was not fitted."""
    return _overheads().get(deployment.engine, EngineOverhead())


@lru_cache(maxsize=1)
def _overheads() -> dict[str, EngineOverhead]:
    if not FILE.exists():
        return {}
    return {engine: EngineOverhead(**values) for engine, values in json.loads(FILE.read_text()).items()}
