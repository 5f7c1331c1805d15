"""Fit a profile to samples that ``loraplan calibrate steps`` and ``loads`` took on a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.fit.load_fit import LoadFit, fit_load_samples
from calibrate.fit.sample_terms import (
    ADDITIVE,
    CLASSES,
    FAR_CORNER,
    MULTIPLICATIVE,
    StepTerms,
    TimedSteps,
    corner_errors,
    hold_outs,
    multiplicative,
    sample_residual,
    timed_steps,
)
from calibrate.samples import read_samples
from sim.errors import InputError
from sim.results.run_directory.result_files import digest_file
from sim.spec.profile import Conditions, Draw, Envelope, HoldOut, Memory, Profile, Provenance
from sim.studies.fidelity.least_squares import LEFT_OUT, Problem, additive, bootstrap, left_out_errors, solve
from sim.studies.fidelity.step_terms import LORA
from sim.traffic.adapters import ModelShape, model_shape

UTILIZATION = 0.9
_OVERHEAD = 0.08
"""Share of the memory for activations, graphs and the framework, until a server is measured: what vLLM 0.8.5 took of an
H100 with 64 GB (``overhead_bytes`` of its profile)."""
_FACTORS = ("lora", "slot", "adapter", "adapter_max_rank", "adapter_rank")
"""What the multiplicative rival's factor is linear in, as the digital twin and BLIS have it."""
_WIDTH = 2
_STEP_FACTS = ("plan", "device", "date", "layers", "model_layers", "memory_bytes")


def fit_samples(folder: Path, model: str | None, command: str) -> Profile:
    """Fit the profile of what was timed in a folder, with LoRA by the first of the backends that were timed.

    :param model: None, or the base model that must have been timed.
    :param command: reproduces the profile; kept in its provenance.
    :raises InputError: where samples are missing, of another model, or of no such backend.
    """
    step_frame, step_facts = read_samples(folder, "steps", _STEP_FACTS)
    load_frame, load_facts = read_samples(folder, "loads")
    timed = str(step_facts["plan"]["model"])
    for facts, suite in ((step_facts, "steps"), (load_facts, "loads")):
        name = facts["plan"]["model"]
        if name != (model or timed):
            raise InputError(
                f"the {suite} were timed for another model",
                key="--model",
                got=model or name,
                allowed=timed,
                file=str(folder / f"{suite}.json"),
            )
    backend = str(step_facts["plan"]["backends"][0])
    steps = timed_steps(step_frame, step_facts, backend)
    _require_enough(steps, backend, folder / "steps.parquet")
    terms = StepTerms.of(steps)
    problem = terms.problem(steps)
    found = solve(problem)
    loads = fit_load_samples(load_frame, load_facts)
    shape = model_shape(timed)
    draws = [terms.step_cost(one) for one in bootstrap(problem, seed=1)]
    hold_out = (*step_hold_outs(problem, terms), *loads.hold_out)
    device = str(step_facts["device"]["name"])
    predicted = problem.features @ found
    words = "".join(c if c.isalnum() else " " for c in device.replace("(R)", "")).lower().split()
    return Profile(
        schema_version=1,
        name=f"{'-'.join(words)}/{timed}/calibrated",
        status="measured",
        description=f"{timed} in bf16 on one {device}: forward steps and adapter loads timed by loraplan calibrate.",
        device=device,
        model=timed,
        dtype="bf16",
        step=terms.step_cost(found),
        load=loads.cost,
        memory=_memory(shape, int(step_facts["memory_bytes"])),
        envelope=Envelope(
            sequences=int(steps.column("sequences").max()),
            distinct_adapters=int(steps.column("distinct").max()),
            rank=int(steps.column("max_rank").max()),
            slots=int(steps.column("slots").max()),
        ),
        sources=_sources(step_facts) | _concurrent(loads),
        error=_words(hold_out),
        provenance=Provenance(
            command=command,
            data={name: digest_file(folder / name) for name in ("steps.parquet", "loads.parquet")},
            device={name: str(value) for name, value in step_facts["device"].items()}
            | {"flags": "; ".join([*step_facts.get("flags", ()), *load_facts.get("flags", ())]) or "none"},
            date=str(step_facts["date"]),
            residuals={"steps": round(float(np.median(np.abs(problem.errors(found)))), 4)}
            | {name: round(error, 4) for name, error in loads.residuals.items()},
        ),
        conditions=_conditions(steps, step_facts, backend),
        hold_out=hold_out,
        step_residual=sample_residual(
            np.concatenate(steps.samples),
            np.repeat(predicted, [len(one) for one in steps.samples]),
            [key for key, one in zip(steps.keys, steps.samples, strict=True) for _ in one],
        ),
        draws=tuple(Draw(step=step, load=load) for step, load in zip(draws, loads.draws, strict=True)),
    )


def _require_enough(steps: TimedSteps, backend: str, file: Path) -> None:
    """Refuse steps of which a kind is missing: its terms would be fitted to zero; or with fewer adapted than terms."""
    adapted = int((steps.column("distinct") > 0).sum())
    for kind in CLASSES:
        if not np.any(steps.classes == kind):
            raise InputError(
                f"no {kind} were timed",
                file=str(file),
                hint="time them: loraplan calibrate steps prefill (or base-decode, lora-decode), with the same options",
            )
    if adapted < len(LORA):
        raise InputError(
            "too few steps with LoRA to fit its costs",
            file=str(file),
            got=adapted,
            allowed=f"at least {len(LORA)}, of the backend {backend}",
            hint="steps.json lists what was skipped and why",
        )


def step_hold_outs(problem: Problem, terms: StepTerms) -> tuple[HoldOut, ...]:
    """Return the errors of both forms of step cost, left out and at the far corner."""
    forms = {ADDITIVE: additive, MULTIPLICATIVE: multiplicative(terms.base, _FACTORS)}
    return tuple(
        line
        for name, form in forms.items()
        for method, errors in ((LEFT_OUT, left_out_errors), (FAR_CORNER, corner_errors))
        for line in hold_outs(problem, errors(problem, form), name, method)
    )


def _memory(shape: ModelShape, total: int) -> Memory:
    """Return memory by formula: timed steps do not show what an engine uses itself."""
    return Memory(
        total_bytes=total,
        utilization=UTILIZATION,
        weights_bytes=_WIDTH * (shape.layers * shape.linear_parameters() + 2 * shape.vocab * shape.hidden),
        overhead_bytes=round(_OVERHEAD * total),
        kv_bytes_per_token=2 * shape.layers * shape.kv_heads * shape.head_dim * _WIDTH,
    )


def _conditions(steps: TimedSteps, facts: Mapping[str, Any], backend: str) -> Conditions:
    graphs = [int(one["sequences"]) for one in steps.parameters if one["graph"]]
    layers, full = int(facts["layers"]), int(facts["model_layers"])
    return Conditions(
        engine="loraplan calibrate: its own decoder stack",
        graphs=f"CUDA graphs for decodes up to {max(graphs)} sequences" if graphs else "eager",
        lora_backend=backend,
        slots=tuple(sorted({int(value) for value in steps.column("slots") if value})),
        max_ranks=tuple(sorted({int(value) for value in steps.column("max_rank") if value})),
        layers_timed=layers if layers < full else None,
    )


def _sources(facts: Mapping[str, Any]) -> dict[str, str]:
    layers, full = int(facts["layers"]), int(facts["model_layers"])
    scaled = f", {layers} of {full} layers timed and scaled" if layers < full else ""
    return {
        "step": f"steps.parquet: non-negative least squares of medians{scaled}",
        "step.per_passed_s": "not measured: an engine's scheduler is not part of a forward step",
        "load": "loads.parquet: medians of whole loads; residuals hold every sample",
        "memory": "computed from the model's shape and the device's memory",
        "memory.overhead_bytes": f"assumed: {_OVERHEAD:.0%} of the memory",
        "memory.utilization": "assumed: vLLM's default",
        "envelope": "largest values timed",
    }


def _concurrent(loads: LoadFit) -> dict[str, str]:
    sources = {}
    if loads.slow_down is not None:
        sources["load"] = (
            "loads.parquet: medians of whole loads; residuals hold every sample. A decode step during copies took "
            f"{loads.slow_down:.2f} times as long as alone (timed; not part of the law)"
        )
    for tier in dict.fromkeys(one.tier for one in loads.concurrent):
        words = [
            f"{one.concurrency} at once: {one.bytes_per_s / 1e6:,.0f} MB/s together, "
            f"each {one.slow_down:.2f} times as long"
            for one in loads.concurrent
            if one.tier == tier
        ]
        sources[f"load.{tier}.bandwidth_bytes_per_s"] = "; ".join(words) + " (timed; the law is of one load alone)"
    return sources


def _words(hold_out: tuple[HoldOut, ...]) -> str:
    lines = [f"{one.what} {one.mean:.1%}" for one in hold_out if one.method == LEFT_OUT and one.form != MULTIPLICATIVE]
    return f"mean error on configurations left out of the fit: {', '.join(lines)}; not compared with a server"
