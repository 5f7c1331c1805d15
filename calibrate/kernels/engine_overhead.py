"""What an engine adds to its kernels in every step: launches that no table has, and the host's work.

On the GPU a step takes ``factor`` · kernels + ``step_s`` + ``per_sequence_s`` · sequences + ``prefill_step_s``, the
last where it has a prompt; on the host ``host_s`` + ``host_per_sequence_s`` · sequences. The two are known apart for
vLLM (``validation/overheads/vllm_overhead.py``). For other engines all is on the GPU's side.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from calibrate.kernels.kernel_tables import Deployment
from sim.spec.profile import StepCost
from sim.studies.fidelity.least_squares import significant
from sim.traffic.adapters import SHAPES

FILE = Path(__file__).with_name("overheads.json")
"""Written by ``validation/overheads/overheads.py``."""
OTHER_MODEL = 0.1
"""Least spread for a model that was not among the measured ones: an assumption."""
NOT_FITTED = 0.2
"""Spread of steps where no overhead was fitted: kernels alone are 5 to 25 % too fast."""


@dataclass(frozen=True, slots=True)
class EngineOverhead:
    """Coefficients of one engine.

    :ivar outside_s: of a request before its first token, outside of steps: front end, client and their queues. Profiles
        leave it out, since scenarios have a front end of their own.
    :ivar models: that were measured; empty: the spread is of models that were left out of the fit, and so of any.
    :ivar spread: standard deviation of the logarithm of measured over predicted times of whole deployments.
    :ivar error: what held-out measurements say, in words.
    :ivar source: where the coefficients come from.
    """

    factor: float = 1.0
    step_s: float = 0.0
    per_sequence_s: float = 0.0
    prefill_step_s: float = 0.0
    host_s: float = 0.0
    host_per_sequence_s: float = 0.0
    outside_s: float = 0.0
    models: tuple[str, ...] = ()
    spread: float = 0.0
    error: str = ""
    source: str = ""

    def added_to(self, kernels: StepCost, factor: float = 1.0) -> StepCost:
        """Return the costs of whole steps.

        :param kernels: costs of the kernels alone.
        :param factor: further factor on whole steps, for draws.
        """
        scale = self.factor * factor
        fixed, sequence, kv_token, attended, prefill, decode, host, host_sequence = significant(
            [
                kernels.fixed_s * scale + self.step_s * factor,
                kernels.per_sequence_s * scale + self.per_sequence_s * factor,
                kernels.per_kv_token_s * scale,
                kernels.per_attended_token_s * scale,
                kernels.prefill_step_s * scale + self.prefill_step_s * factor,
                kernels.decode_step_s * scale,
                self.host_s * factor,
                self.host_per_sequence_s * factor,
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
                "decode_step_s": decode,
                "host_s": host,
                "host_per_sequence_s": host_sequence,
            }
        )


def overhead_of(deployment: Deployment) -> EngineOverhead:
    """Return what the engine of a deployment adds: as fitted on its card, else with its format of weights, else at all.

    Without any fit there is none, and draws are as wide as if kernels were all that is known.
    """
    engine, weights, card = deployment.engine, deployment.weights, deployment.card.name
    fitted = read_overheads()
    for level in (f"{engine}/{weights}/{card}", f"{engine}/{weights}", engine):
        if level in fitted:
            found = fitted[level]
            if deployment.model.shape.experts and not any(SHAPES[name].experts for name in found.models):
                break
            if not found.models or deployment.model.name in found.models:
                return found
            note = f"measured with {', '.join(found.models)}, so more is assumed to be open for {deployment.model.name}"
            return replace(found, spread=max(found.spread, OTHER_MODEL), error=f"{found.error}; {note}")
    return EngineOverhead(spread=NOT_FITTED)  # dense models say little about experts: they were off by 26 to 57 %


def was_measured(deployment: Deployment) -> bool:
    """Return whether servers with this engine, this format of weights and this card were measured."""
    return f"{deployment.engine}/{deployment.weights}/{deployment.card.name}" in read_overheads()


@lru_cache(maxsize=1)
def read_overheads() -> dict[str, EngineOverhead]:
    """Return the fitted overheads by level."""
    return {
        level: EngineOverhead(**{**values, "models": tuple(values["models"])})
        for level, values in json.loads(FILE.read_text()).items()
    }
