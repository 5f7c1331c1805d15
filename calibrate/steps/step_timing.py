"""``loraplan calibrate steps``: time a grid of forward steps on a device."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from calibrate.device.devices import Device, out_of_memory
from calibrate.device.hardware import Ceilings, describe, measure_ceilings
from calibrate.device.lora_backends import (
    BACKENDS,
    PACKED,
    REFERENCE,
    TOLERANCE,
    check,
    check_vllm,
    route,
    vllm_kernels,
)
from calibrate.measure import Open, Prepared, Sampling, TimedWork, measure
from calibrate.samples import Configuration, SampleLog
from calibrate.steps.decoder import Decoder, DecoderSize, Lora, SequenceGroup
from calibrate.steps.step_grid import FULL, PARTS, QUICK, Extent, StepSpec, heads, make_grid, parts_of
from sim.errors import InputError
from sim.traffic.adapters import DENSE, ModelShape, model_shape

DTYPE = torch.bfloat16
_WIDTH = 2


def default_backends(device: Device) -> tuple[str, ...]:
    """Return all backends that this device runs by itself: Triton needs a GPU and must be installed.

    vLLM's kernels run on request alone.
    """
    from importlib.util import find_spec

    triton = device.kind == "cuda" and find_spec("triton") is not None
    return tuple(name for name in BACKENDS if name != PACKED and (name != "triton" or triton))


def time_steps(
    model: str,
    device: Device,
    out: Path,
    sampling: Sampling,
    *,
    layers: int | None = None,
    backends: Sequence[str] = (REFERENCE,),
    command: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SampleLog:
    """Time the grid, or the rest of an interrupted run in ``out``; the log says how it went.

    :param model: a key of ``DENSE``; ``layers``: decoder layers, None: all of the model's.
    :param backends: of LoRA; the first is fitted.
    :raises InputError: for an unknown model, backend or part, or where not even the weights fit.
    """
    shape, layers = _shape(model, layers, backends, sampling.parts)
    # Those that come with another package are checked: whether they can run here.
    versions = {PACKED: check_vllm(device.torch_device)} if PACKED in backends else {}
    extent = fitted_extent(QUICK if sampling.quick else FULL, shape, layers, device)
    grid = make_grid(extent, backends, graphs=device.graphs, seed=sampling.seed)
    specs = grid + heads(grid) * (layers < shape.layers)
    facts = describe(device)
    plan = {
        "model": model,
        "layers": layers,
        "backends": list(backends),
        "quick": sampling.quick,
        "seed": sampling.seed,
        "device": facts["name"],
        "torch": facts["torch"],
        "dtype": "bf16",
        **{name: getattr(sampling.how, name) for name in ("rounds", "least", "half_width", "limit_s")},
    }
    log = SampleLog.open(out, "steps", plan, overwrite=sampling.overwrite)
    fresh = torch.Generator().seed()  # another one in every run: a backend must be right on any input
    errors = {name: check(name, device.torch_device, DTYPE, fresh) for name in backends}
    _refuse_wrong(errors)
    if "ceilings" not in log.manifest:  # a resumed run keeps those that its floors were computed from
        log.once(ceilings=asdict(measure_ceilings(device, DTYPE)))
    ceilings = Ceilings(**log.manifest["ceilings"])
    log.once(
        device=facts,
        date=f"{datetime.date.today()}",
        command=command,
        backend_errors=errors,
        backend_versions=versions,
        layers=layers,
        model_layers=shape.layers,
        memory_bytes=device.total_bytes(),
    )
    bench = _bench(shape, layers, device, specs, sampling.seed)
    by_key = {one.configuration().key: one for one in specs}
    configurations = {one.configuration().key: with_floor(one, shape, layers, ceilings) for one in specs}
    in_part = parts_of(specs, backends[0])
    parts = [[configurations[one.configuration().key] for one in in_part[part]] for part in sampling.parts]
    opens = bench_opener(bench, by_key, device)
    with opens(canary_of(grid).configuration()) as canary:
        work = TimedWork(list(configurations.values()), opens, canary, parts)
        measure(work, device, log, sampling, progress)
    log.finish()
    return log


def with_floor(spec: StepSpec, shape: ModelShape, layers: int, ceilings: Ceilings) -> Configuration:
    """Return a spec's configuration with the time below which it can't be done, from bytes and operations."""
    one = spec.configuration()
    return replace(one, parameters={**one.parameters, "floor_s": ceilings.floor_s(*spec.work(shape, layers, _WIDTH))})


def canary_of(grid: Sequence[StepSpec]) -> StepSpec:
    """Return the decode without LoRA in the middle of the grid's batch sizes."""
    base = sorted(
        (one for one in grid if one.kind == "decode" and not one.distinct and not one.graph),
        key=lambda one: (one.sequences, one.kv_tokens),
    )
    return base[len(base) // 2]


def fitted_extent(extent: Extent, shape: ModelShape, layers: int, device: Device) -> Extent:
    """Return the extent with as many KV tokens and slots as the device's memory has room for.

    :raises InputError: where the weights alone don't fit.
    """
    free = int(device.free_bytes() * device.room)
    needed = DecoderSize(shape, layers, slot_ranks=1, kv_tokens=1).needed_bytes(_WIDTH)
    fixed, slot_rank, kv_token = needed["weights"], needed["slots"], needed["KV cache"]
    least = fixed + slot_rank * min(extent.slots) * min(extent.ranks) + kv_token * max(extent.prompts)
    if least > free:
        raise InputError(
            f"too little memory: {layers} layers need at least {least / 1e9:.3g} GB",
            key="--layers",
            got=layers,
            allowed=f"what fits into {free / 1e9:.3g} GB",
            hint="time fewer layers: results are scaled to all of the model's",
        )
    room = free - fixed
    slot_ranks = min(extent.slot_ranks, int(room * 0.6) // slot_rank)
    return replace(
        extent,
        slot_ranks=slot_ranks,
        kv_tokens=min(extent.kv_tokens, (room - slot_ranks * slot_rank) // kv_token),
        slots=[slots for slots in extent.slots if slots * min(extent.ranks) <= slot_ranks],
    )


def _bench(shape: ModelShape, layers: int, device: Device, specs: Sequence[StepSpec], seed: int) -> Decoder:
    size = DecoderSize(shape, layers, max(one.slot_ranks for one in specs), max(one.kv_tokens for one in specs))
    try:
        return Decoder(size, DTYPE, device.torch_device, seed)
    except Exception as error:
        if out_of_memory(error):
            raise InputError(
                "too little memory for weights, slots and KV cache",
                key="--layers",
                got=layers,
                hint="time fewer layers: results are scaled to all of the model's",
            ) from None
        raise


def decode_step(model: str, device: Device, sequences: int = 32, context: int = 512, layers: int = 4) -> Prepared:
    """Return a decode without LoRA, of a model's first ``layers``: what copies may slow down."""
    shape = model_shape(model)
    groups = (SequenceGroup(sequences, 1, context),)
    size = DecoderSize(shape, min(layers, shape.layers), kv_tokens=sequences * (context + 1))
    decoder = Decoder(size, DTYPE, device.torch_device)
    x, turn, last = decoder.inputs(groups)

    def step() -> torch.Tensor:
        with torch.inference_mode():
            return decoder.step(x, turn, last, groups, None)

    return Prepared(step)


def bench_opener(decoder: Decoder, specs: dict[str, StepSpec], device: Device) -> Open:
    """Return what sets a configuration of ``specs`` up on a decoder."""

    @contextmanager
    def opens(one: Configuration) -> Iterator[Prepared]:
        spec = specs[one.key]
        x, turn, last = decoder.inputs(spec.groups)
        lora = None
        if spec.distinct:
            groups = [(g.count, g.new, slots) for g, slots in zip(spec.groups, spec.adapters(), strict=True)]
            routing = route(groups, spec.rank_of_slot(), spec.slots, device.torch_device)
            prepared: tuple[Any, ...] = ()
            if spec.backend == PACKED:
                prepared = vllm_kernels().prepare(routing, len(x))
            lora = Lora(spec.backend, spec.targets, spec.slots, spec.max_rank, routing, prepared)

        def step() -> torch.Tensor:
            with torch.inference_mode():
                if spec.kind == "head":
                    return decoder.head(x, last)
                return decoder.step(x, turn, last, spec.groups, lora)

        yield Prepared(device.capture(step) if spec.graph else step)

    return opens


def _refuse_wrong(errors: dict[str, float]) -> None:
    wrong = {name: error for name, error in errors.items() if not error <= TOLERANCE}
    if wrong:
        name, error = next(iter(wrong.items()))
        raise InputError(
            f"the backend {name} differs from the loop in float32: relative error {error:.3g}",
            key="--backend",
            got=name,
            allowed=f"an error up to {TOLERANCE}",
            hint="run without this backend",
        )


def _shape(model: str, wanted: int | None, backends: Sequence[str], parts: Sequence[str]) -> tuple[ModelShape, int]:
    shape = model_shape(model)
    if shape.experts:
        raise InputError("mixtures of experts can't be timed", key="--model", got=model, allowed=", ".join(DENSE))
    layers = shape.layers if wanted is None else wanted
    if not 1 <= layers <= shape.layers:
        raise InputError(
            "the model does not have so many layers", key="--layers", got=layers, allowed=f"1 to {shape.layers}"
        )
    for name in backends:
        if name not in BACKENDS:
            raise InputError("unknown backend", key="--backend", got=name, allowed=", ".join(BACKENDS))
    for part in parts:
        if part not in PARTS:
            raise InputError("unknown part of the steps", key="PART", got=part, allowed=", ".join(PARTS))
    return shape, layers
