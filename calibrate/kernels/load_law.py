"""Loads of adapters on a machine where they were not measured.

From host memory, a load zeroes every buffer of its slot and copies every tensor: times per buffer and per tensor as
measured on the H100-64GB, whatever the card, since calls and not bytes bound them. From storage, a load also reads the
file: an opening time and a bandwidth of the measured machine's disks, which say little about another's.
"""

from __future__ import annotations

from calibrate.kernels.base_models import BaseModel
from calibrate.kernels.lora_terms import MEASURED
from sim.spec.profile import LoadCost, TierCost, load_profile
from sim.studies.fidelity.least_squares import significant
from sim.traffic.adapters import SHAPES, ModelShape, tensor_count

SOURCE = (
    "measured under vLLM 0.8.5 on the H100-64GB (Agullo et al. 2025): calls per buffer and per tensor on any card; the "
    "time to read a file is that of the measured machine's disks, so measure yours with loraplan calibrate loads"
)
SPREAD = {"storage": 1.8, "host": 1.4}
"""By which factor loads may be off: one standard deviation on a log scale, an assumption."""
_EMBEDDING_BUFFERS = 3


def load_cost(model: BaseModel) -> LoadCost:
    """Return the load law of a model: that of the measured model of its family, with its own number of buffers."""
    near = "llama-3.1-8b" if model.shape.lora_embeddings else "qwen2.5-7b"
    measured = load_profile(MEASURED[near])[0].load
    more = measured.host.open_s * (_buffers(model.shape) / _buffers(SHAPES[near]) - 1)
    return LoadCost(storage=_opened(measured.storage, more), host=_opened(measured.host, more))


def drawn_load(cost: LoadCost, normals: dict[str, float]) -> LoadCost:
    """Return the law with every time of a tier multiplied by its spread to the power of a normal draw."""
    storage, host = (SPREAD[tier] ** normals[tier] for tier in ("storage", "host"))
    return LoadCost(storage=_times(cost.storage, storage), host=_times(cost.host, host))


def _buffers(shape: ModelShape) -> int:
    return tensor_count(shape, "all-linear") + _EMBEDDING_BUFFERS * shape.lora_embeddings


def _opened(tier: TierCost, more_s: float) -> TierCost:
    residual = tuple(significant(tier.residual[:: max(len(tier.residual) // 20, 1)], 4))
    return tier.model_copy(update={"open_s": significant([tier.open_s + more_s])[0], "residual": residual})


def _times(tier: TierCost, factor: float) -> TierCost:
    times = ("open_s", "per_tensor_s", "per_padded_tensor_s")
    scaled = significant([getattr(tier, name) * factor for name in times])
    bandwidth = significant([tier.bandwidth_bytes_per_s / factor])[0]
    return tier.model_copy(update={**dict(zip(times, scaled, strict=True)), "bandwidth_bytes_per_s": bandwidth})
