"""Build the profile of a deployment that was not measured as a whole: kernel tables, or where there are none the card's
data sheet, and what surrounds the kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from calibrate.kernels import memory_model
from calibrate.kernels.around_kernels import (
    LOAD_SOURCE,
    LOAD_SPREAD,
    LORA_SOURCES,
    MARK,
    EngineOverhead,
    drawn_load,
    drawn_lora,
    load_cost,
    lora_cost,
    overhead_of,
    spread_on,
    was_measured,
)
from calibrate.kernels.base_models import BaseModel
from calibrate.kernels.cards import ALL, MIB, Card
from calibrate.kernels.kernel_tables import ENGINES, Deployment, KernelTables, NoSuchShape, quiet
from calibrate.kernels.roofline import Roofline, efficiencies_of, read_efficiencies, spread_of
from calibrate.kernels.surrogate import StepEnvelope, Surrogate, fit_cost, fit_surrogate
from sim.errors import InputError
from sim.policies.kv.kv_rules import kv_tokens_left
from sim.rng import stream
from sim.spec.profile import (
    UNFIT,
    Conditions,
    Draw,
    Envelope,
    HoldOut,
    LoadCost,
    LoraCost,
    Memory,
    Profile,
    Provenance,
    Shape,
    StepCost,
)
from sim.studies.fidelity.least_squares import hold_out_line, rounded
from sim.studies.fidelity.step_terms import PASSED_S
from sim.traffic.adapters import SHAPES

_ADAPTERS, _RANK, _SLOTS = 384, 32, 384
"""Where LoRA's terms were measured."""
_SMALL_BATCH, _SLOWER = (8, 500), 1.25
FLAG = 0.3
"""Median error of a class of deployments above which its profiles warn."""
DRAWS = 8
"""As many as a run simulates (``MAX_DRAWS``): a part of more quantiles would have another spread than all of them."""
_CORRELATED = 0.25
LONGEST = 32_768
"""Tokens of the longest sequence that step costs are fitted to."""


DATA_SHEET = "data-sheet"
"""In place of an engine's version in the name of a profile whose kernels are from a data sheet."""


@dataclass(frozen=True, slots=True)
class Built:
    """A profile, and how well its step costs stand for the kernels that they were fitted to.

    :ivar kernels: what these are, in words.
    """

    profile: Profile
    surrogate: Surrogate
    kernels: str


def kernels_of(deployment: Deployment) -> KernelTables | Roofline:
    """Return the kernels of a deployment: from tables, or from the data sheet for a card or a shape without any.

    :raises InputError: without the extra ``kernels`` for a card with tables, or where neither covers the model.
    """
    if not deployment.card.system:
        return Roofline(deployment, efficiencies_of(deployment.card))
    try:
        tables = KernelTables(deployment)
    except NoSuchShape:
        if deployment.weights != "bf16":
            raise
        return Roofline(deployment, efficiencies_of(deployment.card))
    check_faster(tables)
    return tables


def build_profile(deployment: Deployment, command: str) -> Built:
    """Build a profile.

    :param command: reproduces it; kept in its provenance.
    :raises InputError: as ``kernels_of``, or where the model doesn't fit.
    """
    kernels = kernels_of(deployment)
    memory = memory_model.memory_of(deployment)
    card, model = deployment.card, deployment.model
    envelope = envelope_of(deployment, memory)
    with quiet():
        surrogate = fit_surrogate(kernels.step_s, envelope)
    overhead = overhead_of(deployment)
    lora = lora_cost(model, card, deployment.tensor_parallel)
    load = load_cost(model, card)
    gpus = f"{deployment.tensor_parallel} x " if deployment.tensor_parallel > 1 else ""
    around = "engine overhead fitted on measured points" if overhead.source else "without engine overhead"
    engine = ENGINES[deployment.engine]
    drawn: Callable[[Mapping[str, float]], StepCost] | None = None
    if isinstance(kernels, KernelTables):
        of, version = "the kernel tables", kernels.version
        engine, made, device = f"{engine} {version}", "kernel tables added up", {"tables": kernels.package}
        error, source = _error(surrogate, overhead) + (card.kernels_of or card).caution, _kernel_source(kernels)
    else:
        of, version, device = "the kernels by data sheet", DATA_SHEET, {"data sheet": card.source}
        made = f"kernels from the data sheet ({_figures(card)}) at efficiencies of cards with kernel tables"
        error, source = _sheet_error(card, overhead), _sheet_source(card)

        def drawn(factors: Mapping[str, float]) -> StepCost:
            return fit_cost(Roofline(deployment, efficiencies_of(card).times(factors)).step_s, envelope)

    profile = Profile(
        schema_version=1,
        name=profile_name(deployment, version),
        status="derived" if drawn is None else "assumed",
        status_note=_status_note(overhead, deployment),
        description=f"{model.name} with {deployment.weights} weights on {gpus}{card.label} under {engine}: {made}, "
        f"{around}; {MARK}.{_experts(model)}",
        device=f"{gpus}{card.label}",
        model=model.name,
        dtype=deployment.weights,
        shape=None if SHAPES.get(model.name) == model.shape else Shape(**asdict(model.shape)),
        tensor_parallel=deployment.tensor_parallel,
        step=overhead.added_to(surrogate.step).model_copy(update={"lora": lora, "per_passed_s": PASSED_S}),
        load=load,
        memory=memory,
        envelope=Envelope(sequences=envelope.sequences, distinct_adapters=_ADAPTERS, rank=_RANK, slots=_SLOTS),
        sources=_sources(deployment, source, overhead),
        error=error,
        provenance=Provenance(
            command=command,
            data={},
            residuals={
                f"decode steps, against {of}": round(surrogate.median(decoding=True), 4),
                f"steps with prompts, against {of}": round(surrogate.median(decoding=False), 4),
            },
            device=device,
        ),
        conditions=Conditions(
            engine=engine, graphs="as the engine's defaults", lora_backend="vLLM's Triton kernels (punica), vLLM 0.8.5"
        ),
        hold_out=_hold_outs(surrogate, of),
        draws=cost_draws(surrogate.step, overhead, lora, load, card, drawn),
    )
    return Built(profile, surrogate, of)


def envelope_of(deployment: Deployment, memory: Memory) -> StepEnvelope:
    """Return the steps that a deployment's costs are fitted to."""
    return StepEnvelope(
        sequences=deployment.card.batch_sequences,
        tokens=memory_model.STEP_TOKENS,
        context=min(deployment.model.context, LONGEST),
        kv_tokens=kv_tokens_left(memory, 0),
    )


def build_command(deployment: Deployment, model: str | None = None) -> list[str]:
    """Return the command that builds the profile of a deployment.

    :param model: the ``config.json`` that describes the model, which then is called by its name; unset: a known model.
    """
    gpus = ["--tp", str(deployment.tensor_parallel)] if deployment.tensor_parallel > 1 else []
    engine = ["--engine", deployment.engine] if deployment.engine != "vllm" else []
    weights = ["--weights", deployment.weights] if deployment.weights != "bf16" else []
    name = deployment.model.name
    card, sheet = deployment.card, list[str]()
    if card != ALL.get(card.name):
        bandwidth, flops = card.bandwidth_bytes_per_s / 1e9, card.flops / 1e12
        unit, size = ("MiB", MIB) if card.memory_bytes % 10**7 else ("GB", 10**9)
        sheet = ["--memory", f"{card.memory_bytes / size:.10g}{unit}", "--bandwidth", f"{bandwidth:.10g}GB/s"]
        sheet += ["--flops", f"{flops:.10g}T"]
    what = ["--gpu", card.name, *sheet, "--model", *([name] if model is None else [model, "--name", name])]
    return ["loraplan", "profiles", "build", *what, *gpus, *engine, *weights]


def profile_name(deployment: Deployment, version: str) -> str:
    """Return a profile's name: device, model with its format and GPUs, engine."""
    weights = "" if deployment.weights == "bf16" else f"-{deployment.weights}"
    gpus = "" if deployment.tensor_parallel == 1 else f"-tp{deployment.tensor_parallel}"
    return f"{deployment.card.name}/{deployment.model.name}{weights}{gpus}/{deployment.engine}-{version}"


def check_faster(tables: KernelTables) -> None:
    """Refuse smaller weights with which a small batch takes much longer than with 16 bits.

    Decoding reads every weight, so that fewer bytes take less time; where tables say otherwise, a kernel was measured
    that isn't made for this card, and no server was compared with it.

    :raises InputError: for such a format.
    """
    deployment = tables.deployment
    if deployment.weights == "bf16" or deployment.model.shape.experts or was_measured(deployment):
        return
    whole = KernelTables(replace(deployment, weights="bf16"))
    ratio = tables.step_s(*_SMALL_BATCH) / whole.step_s(*_SMALL_BATCH)
    if ratio > _SLOWER:
        raise InputError(
            f"in the kernel tables of {deployment.card.label} a decode step with such weights takes {ratio:.1f} times "
            "as long as with 16 bits, which no measured server confirms",
            key="--weights",
            got=deployment.weights,
            hint=None if deployment.model.formats else "give --weights bf16",
        )


def _status_note(overhead: EngineOverhead, deployment: Deployment) -> str:
    off = float(np.expm1(norm.ppf(0.75) * overhead.spread))  # the median of errors that are normally distributed
    flag = f"steps of this class are off by more than {FLAG:.0%} in the median: {UNFIT}"
    adapted = f"{MARK}, on attention alone" if deployment.model.shape.experts else MARK
    return f"{adapted}; {flag}" if off > FLAG else adapted


def _experts(model: BaseModel) -> str:
    if not model.shape.experts:
        return ""
    total = sum(model.parameters())
    return (
        f" A mixture of {model.shape.experts} experts, of which a token passes {model.shape.active_experts}: "
        f"{total / 1e9:.1f} billion parameters in memory, {model.active_parameters() / 1e9:.1f} active; adapters on "
        "attention alone."
    )


def _error(surrogate: Surrogate, overhead: EngineOverhead) -> str:
    fitted = (
        f"step costs reproduce the kernel tables within {surrogate.quantile(0.5):.1%} (median) and "
        f"{surrogate.quantile(0.95):.1%} (95 % of steps)"
    )
    whole = overhead.error or "whole steps were not compared with measurements; kernels alone are 5 to 25 % too fast"
    return f"{fitted}; {whole}; LoRA's terms and loads are not measured on this card"


def _sheet_error(card: Card, overhead: EngineOverhead) -> str:
    left_out = read_efficiencies().error
    if card.system:
        left_out = (
            "the kernel tables of this card have no attention of this shape: all kernels are from its data sheet, at "
            "the efficiencies of its tables; where tables of other engines have 32 KV heads, the mean error of steps "
            "was within 6 points of that with 8"
        )
    whole = overhead.error or "whole steps were not compared with measurements"
    return f"{left_out}; {whole}; LoRA's terms and loads are not measured on this card"


def _hold_outs(surrogate: Surrogate, of: str) -> tuple[HoldOut, ...]:
    method = f"steps drawn over the envelope, against {of}"
    kinds = (("decode steps", surrogate.decoding), ("steps with prompts", ~surrogate.decoding))
    return tuple(rounded(hold_out_line(what, "additive", method, surrogate.signed[mask])) for what, mask in kinds)


def _kernel_source(tables: KernelTables) -> str:
    deployment = tables.deployment
    card = deployment.card
    scaled = f", scaled to the memory bandwidth of {card.label}" if card.kernels_of else ""
    older = f", its attention under {tables.attention}" if tables.attention != tables.version else ""
    return (
        f"kernels of {(card.kernels_of or card).label} under {ENGINES[deployment.engine]} {tables.version}{older} "
        f"({tables.package}, NVIDIA, Apache-2.0){scaled}, added up for the model's shapes and fitted"
    )


def _figures(card: Card) -> str:
    return f"{card.bandwidth_bytes_per_s / 1e9:,.6g} GB/s, {card.flops / 1e12:,.6g} TFLOP/s"


def _sheet_source(card: Card) -> str:
    reached = efficiencies_of(card)
    return (
        f"kernels by data sheet: {_figures(card)} ({card.source}), of which matrix products reach "
        f"{reached.matrix_bandwidth:.0%} and {reached.matrix_flops:.0%}, attention {reached.attention_bandwidth:.0%} "
        f"and {reached.attention_flops:.0%}: {'of this card' if card.system else 'the mean over cards'} in the kernel "
        "tables that there are"
    )


def _sources(deployment: Deployment, kernels: str, overhead: EngineOverhead) -> dict[str, str]:
    memory = memory_model.sources_of(deployment.engine)
    if deployment.card != ALL.get(deployment.card.name):
        memory = memory | {"memory.total_bytes": f"{deployment.card.source}; less the 438 MiB that CUDA keeps"}
    return {
        "step": f"{kernels}; {overhead.source}" if overhead.source else kernels,
        "step.per_passed_s": "0.44 us for each waiting request that the scheduler passes, measured under vLLM 0.8.5",
        **LORA_SOURCES,
        "load": LOAD_SOURCE,
        **memory,
        "envelope": "sequences and tokens: the engine's defaults; adapters, rank and slots: where LoRA was measured",
    }


def cost_draws(
    kernels: StepCost,
    overhead: EngineOverhead,
    lora: LoraCost,
    load: LoadCost,
    card: Card,
    drawn: Callable[[Mapping[str, float]], StepCost] | None = None,
) -> tuple[Draw, ...]:
    """Return draws of all costs: each uncertain factor takes evenly spaced quantiles in an order of its own.

    :param drawn: the kernels by data sheet, from factors on what they reach of the card's bandwidth and FLOP/s; the
        spread of the engine's overhead is then that of these. Unset: one factor on whole steps.
    """
    lora_spread = spread_on(card)
    reached = {} if drawn is None else {name: np.hypot(each, overhead.spread) for name, each in spread_of(card).items()}
    first, *others = reached or ("steps",)
    orders = orders_of((first, *lora_spread, *LOAD_SPREAD))
    orders |= {name: orders_of((first, name))[name] for name in others}  # more than seven can't all be uncorrelated
    found = []
    for number in range(DRAWS):
        normals = {name: float(order[number]) for name, order in orders.items()}
        if drawn is None:
            step = overhead.added_to(kernels, float(np.exp(overhead.spread * normals["steps"])))
        else:
            step = overhead.added_to(drawn({name: float(np.exp(reached[name] * normals[name])) for name in reached}))
        more = {"lora": drawn_lora(lora, lora_spread, normals), "per_passed_s": PASSED_S}
        found.append(Draw(step=step.model_copy(update=more), load=drawn_load(load, normals)))
    return tuple(found)


def orders_of(factors: tuple[str, ...]) -> dict[str, NDArray[np.float64]]:
    """Return quantiles of a normal distribution for each factor, in orders that are hardly correlated.

    What is off in one part says nothing about another; so few draws are often correlated by chance, which would widen
    or narrow what they make together.
    """
    quantiles = norm.ppf((np.arange(DRAWS) + 0.5) / DRAWS)
    found: dict[str, NDArray[np.float64]] = {}
    for name in factors:
        draws = stream(0, 0, f"kernel-draws-{name}")
        order = draws.permutation(quantiles)
        while any(abs(np.corrcoef(order, other)[0, 1]) > _CORRELATED for other in found.values()):
            order = draws.permutation(quantiles)
        found[name] = order
    return found
