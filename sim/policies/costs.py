"""Costs of steps and loads, in seconds (docs/model.md)."""

from __future__ import annotations

import numpy as np

from sim.arrays import Floats
from sim.errors import ScenarioError
from sim.policies.replica_memory import ExpertReads
from sim.spec.profile import LoraCost, Profile, StepCost, TierCost
from sim.traffic.adapters import Population

StepDetails = tuple[int, int, float, int, int]
"""What detailed step costs need: sequences in the step, prompt tokens, pairs of a prompt token and a token it attends
to, the sum of ranks over all tokens, and the waiting requests that the scheduler passed over."""
NO_DETAILS: StepDetails = (0, 0, 0.0, 0, 0)


_LAUNCHES = ("fixed_s", "per_slot_s", "per_slot_token_s", "per_slot_prefill_token_s", "per_adapter_s")
"""Terms of LoRA that go with its kernels: twice as many, for two groups of modules in attention and two in experts."""


class StepCosts:
    """The step costs of a profile, prepared for many calls.

    They are linear in everything except the tokens of the step, for which a table is computed in advance, and the
    experts of adapters.

    :param slots: adapter slots of the replica.
    :param max_tokens: token budget of a step.
    :param max_rank: rank that slots are padded to.
    :param experts: what steps read of adapters on experts, if there are any.
    :ivar detailed: whether a step's cost depends on more than its tokens, KV tokens and adapters.
    :ivar has_host: whether ``host_s`` is ever more than 0.
    :ivar least_s: seconds of a step of one token.
    """

    def __init__(
        self, cost: StepCost, slots: int, max_tokens: int, max_rank: int = 0, experts: ExpertReads | None = None
    ) -> None:
        lora = cost.lora
        if experts is not None:
            lora = lora.model_copy(update={name: 2 * getattr(lora, name) for name in _LAUNCHES})
        tokens, seconds = (np.asarray(axis, dtype=np.float64) for axis in zip(*cost.tokens, strict=True))
        at = np.arange(max_tokens + 1, dtype=np.float64)
        table = np.interp(at, tokens, seconds)
        slope = (seconds[-1] - seconds[-2]) / (tokens[-1] - tokens[-2])
        table += np.maximum(at - tokens[-1], 0) * slope
        table += lora.per_slot_token_s * slots * at
        fixed = cost.fixed_s + lora.fixed_s + lora.per_slot_s * slots
        self._table: list[float] = (table + fixed).tolist()
        self._sequence = cost.per_sequence_s + lora.per_sequence_max_rank_s * max_rank
        self._attended = cost.per_attended_token_s
        self._adapter = lora.per_adapter_s + lora.per_adapter_max_rank_s * max_rank
        self._adapter_rank = lora.per_adapter_rank_s
        self._padded_bytes = lora.per_adapter_max_rank_s * max_rank
        self._experts = experts
        self._token_rank = lora.per_token_rank_s
        self._passed = cost.per_passed_s
        self._host, self._host_sequence = cost.host_s, cost.host_per_sequence_s
        self.has_host = bool(self._host or self._host_sequence)
        self._prefill_step = cost.prefill_step_s
        self._decode_step = cost.decode_step_s
        self._prefill_token = lora.per_slot_prefill_token_s * slots
        self.per_kv_token_s = cost.per_kv_token_s
        self._made_of = cost, slots, max_tokens, max_rank, experts
        self.least_s = self._table[1]
        self.detailed = any(
            (
                self._sequence,
                self._attended,
                self._token_rank,
                self._passed,
                self._prefill_step,
                self._prefill_token,
                self._decode_step,
                experts,
            )
        )

    def step(
        self,
        tokens: int,
        kv_tokens: int,
        distinct: int,
        rank_sum: int,
        details: StepDetails = NO_DETAILS,
    ) -> float:
        """Return the seconds of one step without those of the host.

        :param tokens: tokens of the step: one of each decoding sequence, and those of prompts.
        :param kv_tokens: KV tokens that the decoding sequences attend to, their new ones included.
        :param distinct: distinct adapters; ``rank_sum``: sum of their ranks.
        :param details: matters only to ``detailed`` costs.
        """
        if not self.detailed:  # leaving out terms that are zero changes no bit of the sum
            return (
                self._table[tokens]
                + self.per_kv_token_s * kv_tokens
                + self._adapter * distinct
                + self._adapter_rank * rank_sum
            )
        sequences, prefill_tokens, attended, rank_tokens, passed = details
        experts = self._experts
        return (
            self._table[tokens]
            + self._sequence * sequences
            + self.per_kv_token_s * kv_tokens
            + self._attended * attended
            + self._adapter * distinct
            + self._adapter_rank * rank_sum
            + self._token_rank * rank_tokens
            + self._passed * passed
            + (self._prefill_step + self._prefill_token * prefill_tokens if prefill_tokens else 0.0)
            + (self._decode_step if tokens > prefill_tokens else 0.0)
            + (
                (self._padded_bytes * distinct + self._adapter_rank * rank_sum) * experts.per_adapter(tokens, distinct)
                if experts is not None and distinct
                else 0.0
            )
        )

    def host_s(self, sequences: int) -> float:
        """Return the seconds of the host for one step of so many sequences."""
        return self._host + self._host_sequence * sequences

    def without_adapters(self) -> StepCosts:
        """Return the costs of steps that run without the kernels of LoRA."""
        return StepCosts(self._made_of[0].model_copy(update={"lora": LoraCost()}), 0, self._made_of[2])

    def with_base_model(self) -> StepCosts:
        """Return these costs for a replica that also serves requests without an adapter."""
        return CostsWithBaseModel(*self._made_of)


class CostsWithBaseModel(StepCosts):
    """Step costs where some batches have no adapter: their steps run without the kernels of LoRA.

    A step with one adapter or more pays the whole of LoRA's part, also for the tokens of the base model.
    """

    def __init__(
        self, cost: StepCost, slots: int, max_tokens: int, max_rank: int = 0, experts: ExpertReads | None = None
    ) -> None:
        super().__init__(cost, slots, max_tokens, max_rank, experts)
        self._without = self.without_adapters()
        self.least_s = self._without.least_s

    def step(
        self,
        tokens: int,
        kv_tokens: int,
        distinct: int,
        rank_sum: int,
        details: StepDetails = NO_DETAILS,
    ) -> float:
        if distinct == 0:
            return self._without.step(tokens, kv_tokens, 0, 0, details)
        return super().step(tokens, kv_tokens, distinct, rank_sum, details)


def load_seconds(tier: TierCost, population: Population) -> Floats:
    """Return each adapter's load time in seconds, without residual, shape (adapters,)."""
    padded = population.rank < population.slot_rank
    seconds = np.asarray(
        tier.open_s
        + tier.per_tensor_s * population.tensors
        + tier.per_padded_tensor_s * padded * (population.tensors / 2)
        + population.size_bytes / tier.bandwidth_bytes_per_s
    )
    return (
        seconds if tier.bus_bytes_per_s is None else np.maximum(seconds, population.size_bytes / tier.bus_bytes_per_s)
    )


def residual(tier: TierCost, uniform: Floats) -> Floats:
    """Return the factors on load times for uniform numbers in [0, 1), same shape."""
    quantiles = np.asarray(tier.residual, dtype=np.float64)
    if len(quantiles) == 1:
        return np.full_like(uniform, quantiles[0])
    return np.interp(uniform, np.linspace(0, 1, len(quantiles)), quantiles)


def mean_residual(tier: TierCost) -> float:
    """Return the mean factor: the area under the quantiles."""
    quantiles = np.asarray(tier.residual, dtype=np.float64)
    return float(quantiles[0]) if len(quantiles) == 1 else float(np.mean((quantiles[1:] + quantiles[:-1]) / 2))


def beyond_envelope(profile: Profile, slots: int, max_rank: int) -> list[str]:
    """Return notes on values outside the profile's envelope.

    :raises ScenarioError: for values beyond twice the envelope, where a prediction would be a guess.
    """
    notes = []
    for what, key, value, limit in (
        ("adapter rank", "adapters.rank", max_rank, profile.envelope.rank),
        ("slots", "cache.gpu.slots", slots, profile.envelope.slots),
    ):
        if value > 2 * limit:
            raise ScenarioError(
                f"more than twice what the profile {profile.name} covers",
                key=key,
                got=value,
                allowed=f"{what} up to {limit}, extrapolated up to {2 * limit}",
                hint="measure it on your GPU (docs/calibrate.md)",
            )
        if value > limit:
            notes.append(f"{what} {value} lies outside the profile's envelope (up to {limit}): extrapolated")
    return notes
