"""Profiles: the costs of steps, loads and memory on one device, model and engine.

A profile is a JSON file in SI units (seconds, bytes), written by ``loraplan calibrate`` or by hand. Its
``status`` says how far to trust it: ``measured`` on the device, ``derived`` from published
measurements, or ``assumed`` from data sheets and papers; every number of an assumed profile names its source.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError, model_validator

from sim.errors import ScenarioError, did_you_mean
from sim.reading import PROFILE_BYTES, brackets_fit, read_regular
from sim.spec.base import Strict, located
from sim.spec.files.tree import is_path
from sim.spec.gpus import gpu_named

Seconds = Annotated[float, Field(ge=0, le=1e10)]
"""Limited like times in scenarios, so that simulations end."""


class LoraCost(Strict):
    """Seconds that LoRA adds to a step: ``fixed + slot·S + S·(slot_token·T + slot_prefill_token·P) + (distinct +
    max_rank·R)·D + rank·Σ r + token_rank·Σ tokens·r + sequence_max_rank·R·B``, with S slots padded to rank R, B
    sequences, T tokens of which P of prompts, D distinct adapters of rank r."""

    fixed_s: Seconds = 0.0
    """As soon as LoRA is turned on."""
    per_slot_s: Seconds = 0.0
    """For every slot, filled or not."""
    per_slot_token_s: Seconds = 0.0
    """For every slot, filled or not, and token of the step: kernels whose grid spans all slots."""
    per_slot_prefill_token_s: Seconds = 0.0
    """For every slot and prompt token of the step, beside ``per_slot_token_s``."""
    per_adapter_s: Seconds = 0.0
    """For every distinct adapter in the batch."""
    per_adapter_max_rank_s: Seconds = 0.0
    """For every distinct adapter, times the rank that slots are padded to."""
    per_adapter_rank_s: Seconds = 0.0
    """For every distinct adapter, times its rank."""
    per_token_rank_s: Seconds = 0.0
    """For every token of the step, times the rank of its adapter."""
    per_sequence_max_rank_s: Seconds = 0.0
    """For every sequence of the step, times the rank that slots are padded to: kernels whose grid spans it."""


class StepCost(Strict):
    """Seconds of one step (docs/model.md)."""

    fixed_s: Seconds = 0.0
    """Every step."""
    tokens: tuple[tuple[NonNegativeFloat, Seconds], ...] = ((0, 0), (1, 0))
    """Pairs (scheduled tokens, seconds), rising; linear between them, and beyond the last."""
    per_sequence_s: Seconds = 0.0
    """For every sequence of the step."""
    per_kv_token_s: Seconds = 0.0
    """For every KV token that decoding sequences attend to."""
    per_attended_token_s: Seconds = 0.0
    """Prefill attention: for every pair of a prompt token and a token it attends to."""
    prefill_step_s: Seconds = 0.0
    """For a step with prefill, which assembles new inputs."""
    decode_step_s: Seconds = 0.0
    """For a step in which a sequence decodes: its attention is a kernel of its own."""
    host_s: Seconds = 0.0
    """Of the host, for every step: process its output, schedule, prepare and launch the next. With asynchronous
    scheduling this runs while the GPU computes the step before; otherwise it adds to the step."""
    host_per_sequence_s: Seconds = 0.0
    """Of the host, for every sequence of the step."""
    per_passed_s: Seconds = 0.0
    """For every waiting request that the scheduler skips because its adapter would be one too many."""
    lora: LoraCost = LoraCost()
    """What LoRA adds."""

    @model_validator(mode="after")
    def _monotone(self) -> StepCost:
        xs, ys = zip(*self.tokens, strict=True) if self.tokens else ((), ())
        rising = all(a < b for a, b in pairwise(xs))
        if len(xs) < 2 or not rising or any(a > b for a, b in pairwise(ys)):
            raise located("tokens", "a table of at least two pairs, rising in tokens and not falling in seconds")
        return self


PCIE_4_BYTES_PER_S = 25e9
"""What copies over PCIe 4.0 reach, an assumption."""


class TierCost(Strict):
    """Seconds of one load from one tier: ``open + per_tensor·tensors + padded·B tensors + bytes / bandwidth``, at least
    ``bytes / bus``, times a residual."""

    open_s: Seconds = 0.0
    """Every load."""
    per_tensor_s: Seconds = 0.0
    """For every tensor of the adapter."""
    per_padded_tensor_s: Seconds = 0.0
    """For every B tensor of an adapter of lower rank than its slot is padded to: its rows are copied one by one."""
    bandwidth_bytes_per_s: float = Field(ge=1)
    """Bytes per second of one load. Loads at the same time don't slow each other down in this version."""
    bus_bytes_per_s: float | None = Field(default=None, ge=1)
    """What the bus to the GPU carries per second: no load takes less than its bytes take there, which are copied while
    calls are made. Unset: no limit."""
    residual: tuple[Annotated[float, Field(gt=0, le=1e6)], ...] = (1.0,)
    """Quantiles of measured over predicted, equally spaced from 0 to 1; (1,) means no spread."""


class LoadCost(Strict):
    """Costs of loads by tier, each from there to the GPU."""

    storage: TierCost
    """From storage, through host memory."""
    host: TierCost
    """From host memory."""


class Memory(Strict):
    """GPU memory of one replica, in bytes."""

    total_bytes: PositiveInt
    """The device's memory."""
    utilization: float = Field(gt=0, le=1)
    """Share of it that the engine uses."""
    weights_bytes: PositiveInt
    """Base model."""
    overhead_bytes: int = Field(ge=0)
    """Activations, CUDA graphs, the framework."""
    kv_bytes_per_token: PositiveInt
    """KV cache of one token in all layers."""
    slot_layout: Literal["exact", "vllm-0.8"] = "exact"
    """How slots lie in memory: ``exact``, slots times the bytes of a padded adapter; ``vllm-0.8``, buffer by buffer as
    vLLM 0.8 allocates them, embedding rows and the allocator's rounding included."""


_Size = Annotated[int, Field(ge=1, le=10_000_000)]


class Shape(Strict):
    """The linear layers of a decoder, as its ``config.json`` says, for models that loraplan doesn't know by name."""

    hidden: _Size
    """``hidden_size``."""
    intermediate: _Size
    """``intermediate_size``."""
    layers: Annotated[int, Field(ge=1, le=10_000)]
    """``num_hidden_layers``."""
    heads: _Size
    """``num_attention_heads``."""
    kv_heads: _Size
    """``num_key_value_heads``."""
    head_dim: _Size
    """``head_dim``."""
    vocab: _Size
    """``vocab_size``."""
    qkv_bias: bool = False
    """Whether the projections of queries, keys and values have biases, as in Qwen2."""
    lora_embeddings: bool = False
    """Whether vLLM allocates LoRA buffers for embedding and output head, as for Llama."""
    experts: Annotated[int, Field(ge=0, le=100_000)] = 0
    """MLPs of each layer in a mixture of experts, each of ``intermediate`` numbers; 0: one MLP for all tokens."""
    active_experts: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Experts that each token passes."""
    fused_experts: bool = False
    """Whether gate and up of all experts are one tensor (``is_3d_moe_weight`` in vLLM), as in gpt-oss."""

    @model_validator(mode="after")
    def _experts_are_passed(self) -> Shape:
        if not min(self.experts, 1) <= self.active_experts <= self.experts:
            allowed = f"1 to {self.experts} experts" if self.experts else "0: the model has no experts"
            raise located("active_experts", "a token passes some experts, but no more than there are", allowed=allowed)
        return self


class Quantized(Strict):
    """What another number format of the base weights costs."""

    weights_bytes: PositiveInt | None = None
    """Base model in this format; unset: worked out from the model's shape."""
    step: StepCost | None = None
    """Step costs in this format; unset: not known, and assumed where they are needed."""


class Envelope(Strict):
    """Where the numbers were measured, or are thought to hold; beyond it results are extrapolated."""

    sequences: PositiveInt
    """Most sequences in a batch."""
    distinct_adapters: PositiveInt
    """Most distinct adapters in a batch."""
    rank: PositiveInt
    """Largest adapter rank."""
    slots: PositiveInt
    """Most adapter slots."""


class Provenance(Strict):
    """How a profile was made."""

    command: str
    """The command that wrote it."""
    data: dict[str, str]
    """SHA-256 of every file it was fitted from, by name."""
    calibration: str = ""
    """The rule by which runs were chosen to calibrate."""
    calibration_runs: tuple[str, ...] = ()
    """Those runs, by name; the errors are of all others."""
    residuals: dict[str, float] = Field(default_factory=dict)
    """Median absolute relative error of the fit, by what was fitted."""
    device: dict[str, str] = Field(default_factory=dict)
    """Of a measured profile: driver, clocks, power cap, PCIe, libraries, flags raised while measuring; no serial
    numbers."""
    date: str = ""
    """Day of the measurement, as YYYY-MM-DD."""


class Conditions(Strict):
    """The conditions of the costs: another engine, graph mode or LoRA kernel has other costs."""

    engine: str
    """Engine and version, or ``loraplan calibrate steps`` for its own decoder stack."""
    graphs: str
    """CUDA graphs: up to which batch size, or ``eager``."""
    lora_backend: str
    """Kernel that applies the adapters."""
    slots: tuple[int, ...] = ()
    """Adapter slots that were measured."""
    max_ranks: tuple[int, ...] = ()
    """Ranks that slots were padded to."""
    layers_timed: PositiveInt | None = None
    """Decoder layers that were timed, where fewer than the model's; the rest is scaled."""


class HoldOut(Strict):
    """How well a form of cost predicts data it was not fitted to."""

    what: str
    """What is predicted, such as ``LoRA decode steps``."""
    form: str
    """The form of the cost: ``additive`` or ``multiplicative`` for steps, ``law`` for loads; ``noise``: how well
    one half of the samples predicts the other, which no law can beat."""
    method: str
    """How it was held out: ``leave one configuration out``, ``far corner``, or ``in sample``."""
    count: PositiveInt
    """Configurations predicted."""
    mean: NonNegativeFloat
    """Mean absolute relative error."""
    p90: NonNegativeFloat
    """90 % quantile of it."""
    bias: float
    """Mean signed relative error."""


class StepResidual(Strict):
    """Deviations of single steps from their cost; reported but not simulated, since many steps average them out."""

    quantiles: tuple[PositiveFloat, ...]
    """Quantiles of measured over predicted, equally spaced from 0 to 1."""
    autocorrelation: float = Field(ge=-1, le=1)
    """Of consecutive samples of one configuration: above 0, slow and fast times come in runs."""


class Draw(Strict):
    """One bootstrap draw of the costs: fitted to configurations drawn with replacement."""

    step: StepCost
    """Step costs of this draw."""
    load: LoadCost
    """Load costs of this draw."""


FRONT_END = "front_end_s"
"""Key of ``provenance.device`` in a profile fitted to what clients measure: seconds that a request spends outside the
engine."""

ANCHORED = "anchored"
"""Key of ``provenance.device`` in a profile that was corrected by runs of somebody's own server: the profile before."""

UNFIT = "don't plan with them"
"""How the status note of a profile ends whose class of deployments is off too far."""


class Profile(Strict):
    """The costs of one device, model and engine version."""

    schema_version: Literal[1]
    """Version of this file format."""
    name: str
    """Device/model/engine, such as ``h100-64gb/llama-3.1-8b/vllm-0.8.5``."""
    status: Literal["measured", "derived", "assumed"]
    """How trustworthy the numbers are."""
    status_note: str = ""
    """What the status alone doesn't say, such as ``LoRA terms scaled from H100-64GB``."""
    description: str
    """One sentence."""
    device: str
    """GPU, as its maker calls it."""
    model: str
    """Base model."""
    dtype: str
    """Number format of the base weights."""
    step: StepCost
    """Step costs."""
    load: LoadCost
    """Load costs."""
    memory: Memory
    """Memory."""
    envelope: Envelope
    """Where this holds."""
    sources: dict[str, str]
    """Source of every number, by dotted path or by the path of a section."""
    error: str = "unknown: not compared with measurements"
    """How far predictions were from measurements."""
    provenance: Provenance | None = None
    """How a fitted profile was made."""
    conditions: Conditions | None = None
    """The conditions of the costs."""
    hold_out: tuple[HoldOut, ...] = ()
    """Errors on held-out data, by form."""
    step_residual: StepResidual | None = None
    """Spread of single steps around their cost."""
    draws: tuple[Draw, ...] = ()
    """Bootstrap draws of step and load costs: ``loraplan run`` reports a calibration interval from them."""
    shape: Shape | None = None
    """Shape of the base model; unset: that of the known model of this name."""
    tensor_parallel: PositiveInt = 1
    """GPUs of one replica; all costs are the replica's, and its memory is the sum."""
    quantized: dict[Literal["int8", "nf4"], Quantized] = Field(default_factory=dict)
    """The same device, model and engine with quantised base weights, by format (``adapters.base_quantization``)."""

    def reading_at(self, bytes_per_s: float) -> Profile:
        """Return this profile with another bandwidth of storage."""

        def changed(costs: LoadCost) -> LoadCost:
            storage = costs.storage.model_copy(update={"bandwidth_bytes_per_s": bytes_per_s})
            return costs.model_copy(update={"storage": storage})

        draws = tuple(draw.model_copy(update={"load": changed(draw.load)}) for draw in self.draws)
        return self.model_copy(update={"load": changed(self.load), "draws": draws})

    @property
    def unfit_to_plan(self) -> bool:
        """Whether its class of deployments is off too far to plan with, as its status note ends."""
        return self.status_note.endswith(UNFIT)

    @property
    def is_anchored(self) -> bool:
        """Whether it was corrected by runs of somebody's own server."""
        return self.provenance is not None and ANCHORED in self.provenance.device

    @property
    def is_cpu(self) -> bool:
        """Whether the device is a CPU, on which vLLM schedules no step ahead."""
        return "cpu" in f"{self.device} {self.name}".lower()

    @property
    def front_end_s(self) -> float | None:
        """Seconds of a request between client and engine; None where they were not measured."""
        try:
            return float(self.provenance.device[FRONT_END]) if self.provenance else None
        except (KeyError, ValueError):
            return None

    @property
    def stated(self) -> str:
        """The status and its note, in words."""
        return f"{self.status}; {self.status_note}" if self.status_note else self.status


def bundled_profiles() -> list[str]:
    """Return the names of the profiles that come with loraplan."""
    root = _bundled_folder()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.json"))


@cache
def _bundled_folder() -> Path:
    return Path(str(files("scenarios") / "profiles"))


def _is_bundled(name: str) -> bool:
    """Return whether a profile of this name comes with loraplan; a scenario asks so often that none are listed."""
    root = _bundled_folder()
    try:
        path = root / f"{name}.json"
        return path.is_file() and ".." not in path.parts and path.relative_to(root).as_posix() == f"{name}.json"
    except (OSError, ValueError):  # no name of a file, or a path elsewhere
        return False


@lru_cache(maxsize=8)
def _parsed(raw: bytes) -> Profile:
    """Return the profile in the content of a file. One scenario needs the same one several times."""
    if not brackets_fit(raw):
        raise ValueError("too many brackets for a profile")
    data: Any = json.loads(raw)
    return Profile.model_validate(data)


def _instead_of(name: str, known: Sequence[str]) -> str | None:
    """Return what was probably meant by the name of no profile."""
    gpu = gpu_named(name)
    if gpu is not None:
        return f"for this GPU set fleet.gpu: {gpu.name}, or choose from loraplan profiles list {gpu.name}"
    models = sorted({each.split("/")[1] for each in known})
    if name.lower() in models:
        return f"for this base model set adapters.base_model: {name.lower()}"
    return did_you_mean(name, known)


def load_profile(name: str) -> tuple[Profile, str]:
    """Return a profile and the SHA-256 of its file.

    :param name: a bundled name or a path.
    :raises ScenarioError: where there is no such profile or it can't be used; key ``fleet.profile``.
    """
    bundled = _is_bundled(name)
    path = _bundled_folder() / f"{name}.json" if bundled else Path(name)
    try:
        if not bundled and not is_path(name):  # a name is never looked up in the working directory
            raise FileNotFoundError
        raw = read_regular(path, PROFILE_BYTES)
    except OSError as error:
        known = bundled_profiles()
        raise ScenarioError(
            "no such profile",
            key="fleet.profile",
            got=name,
            allowed="a path, or a name from loraplan profiles list",
            hint=_instead_of(name, known) or (error.strerror or ""),
        ) from None
    try:
        return _parsed(raw), hashlib.sha256(raw).hexdigest()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "profile"
        raise ScenarioError(
            f"the profile's {where}: {first['msg']}", key="fleet.profile", got=first["input"], file=str(path)
        ) from error
    except (ValueError, RecursionError) as error:  # a ValidationError is a ValueError too
        raise ScenarioError(f"the profile is not JSON: {error}", key="fleet.profile", file=str(path)) from error
