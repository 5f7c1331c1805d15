"""Base models with quantised weights: their size, and the cost of their steps.

The linear layers of the decoder are quantised. Embeddings, output head, norms and biases keep the profile's format, as
in bitsandbytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.errors import ScenarioError
from sim.spec.profile import Draw, Profile, StepCost
from sim.spec.scenario import Adapters
from sim.traffic.adapters import base_shape

BITS = {"int8": 8 + 16 * 0.001, "nf4": 4 + 0.127}
"""Bits of a weight. ``int8``: 8, and 16 for the columns of outlier features, up to 0.1 % of all (Dettmers et al.,
LLM.int8(), arXiv 2208.07339). ``nf4``: 4, and .127 for the constants of its blocks of 64, quantised to 8 bits in blocks
of 256 (Dettmers et al., QLoRA, arXiv 2305.14314, section 3)."""
NF4_BITS_SINGLE = 4 + 32 / 64
"""Without double quantisation, each block of 64 has a constant of 32 bits (the same section)."""
ASSUMED_SLOWDOWN = {"int8": 2.0, "nf4": 1.33}
"""Factors on the base model's part of a step, for profiles without measurements. Source: reports on models of 7 to 13
billion parameters with bitsandbytes (docs/pools.md lists them and how far they disagree)."""
_WIDTH = {"fp32": 4.0, "float32": 4.0, "fp8": 1.0, "fp8-block": 1.0, "int8": 1.0, "int4": 0.5, "nvfp4": 0.5}
"""Bytes of a linear layer's weight, by the number format of a profile; others take 2."""


@dataclass(frozen=True, slots=True)
class BaseWeights:
    """The format of the base model's weights.

    :ivar weights_bytes: size of the base model.
    :ivar step: step costs measured in this format; None: the profile's own step costs times ``slowdown``.
    :ivar slowdown: factor on the base model's part of a step.
    :ivar notes: assumptions, in sentences for the user.
    """

    weights_bytes: int
    step: StepCost | None = None
    slowdown: float = 1.0
    notes: tuple[str, ...] = ()

    def apply(self, profile: Profile) -> Profile:
        """Return a profile with these weights. Its draws stay unchanged (see ``drawn``); measured steps have none."""
        memory = profile.memory.model_copy(update={"weights_bytes": self.weights_bytes})
        draws = () if self.step is not None else profile.draws
        return profile.model_copy(update={"memory": memory, "step": self._step(profile.step), "draws": draws})

    def drawn(self, draw: Draw) -> Draw:
        """Return a draw of a profile's costs, adjusted to these weights."""
        return draw.model_copy(update={"step": self._step(draw.step)})

    def _step(self, step: StepCost) -> StepCost:
        if self.step is not None:
            return self.step
        if self.slowdown == 1.0:
            return step
        tokens = tuple((count, seconds * self.slowdown) for count, seconds in step.tokens)
        return step.model_copy(update={"fixed_s": step.fixed_s * self.slowdown, "tokens": tokens})


def base_weights(adapters: Adapters, profile: Profile) -> BaseWeights | None:
    """Return the format of a scenario's base model; None: the profile's own.

    :raises ScenarioError: if the size in this format is unknown, or both profile and scenario give its step costs.
    """
    name = adapters.base_quantization
    if name == "bf16":
        return None
    known = profile.quantized.get(name)
    size = None if known is None else known.weights_bytes
    if size is None:
        size = quantised_bytes(profile, name, double=adapters.base_double_quantization)
    step = None if known is None else known.step
    if step is not None and adapters.base_slowdown is not None:
        raise ScenarioError(
            f"the profile {profile.name} has steps with {name} weights",
            key="adapters.base_slowdown",
            got=adapters.base_slowdown,
            hint="remove it",
        )
    if step is not None:
        return BaseWeights(size, step)
    slowdown = ASSUMED_SLOWDOWN[name] if adapters.base_slowdown is None else adapters.base_slowdown
    whose = "assumed" if adapters.base_slowdown is None else "given by adapters.base_slowdown, not measured"
    note = (
        f"base weights in {name} take {size / 1e9:.3g} GB instead of {profile.memory.weights_bytes / 1e9:.3g} GB; the "
        f"profile has no steps with such weights: the base model's part of a step takes {slowdown:g} times as long "
        f"({whose})"
    )
    return BaseWeights(size, None, slowdown, (note,))


def quantised_bytes(profile: Profile, name: str, *, double: bool = True) -> int:
    """Return the bytes of a profile's model with its linear layers in another format.

    :raises ScenarioError: for a model of unknown shape, or weights smaller than its linear layers.
    """
    shape = base_shape(profile)
    bits = NF4_BITS_SINGLE if name == "nf4" and not double else BITS[name]
    linear, width = shape.layers * shape.linear_parameters(), _WIDTH.get(profile.dtype, 2)
    rest = profile.memory.weights_bytes - round(linear * width)
    if rest < 0:
        raise ScenarioError(
            f"the profile's weights are smaller than the linear layers of {profile.model} in {profile.dtype}, so what "
            "another format would leave isn't known",
            key="adapters.base_quantization",
            got=name,
            allowed="bf16 (as in the profile)",
        )
    return rest + round(linear * bits / 8)
