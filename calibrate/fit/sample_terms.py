"""Timed steps as equations: which terms each is made of, and the profile section that fitted terms become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calibrate.device.lora_backends import REFERENCE
from calibrate.fit.cost_forms import ramps
from sim.errors import InputError
from sim.spec.profile import StepCost
from sim.studies.fidelity.least_squares import Floats, Problem
from sim.studies.fidelity.step_terms import BASE, LORA, columns, step_cost

if TYPE_CHECKING:
    import pandas as pd


_LINEAR = tuple(term.name for term in (*BASE, *LORA) if term.name != "step")
CLASSES = ("base decode steps", "LoRA decode steps", "base prefill steps", "LoRA prefill steps")


@dataclass(frozen=True, slots=True)
class TimedSteps:
    """Medians of timed steps, in the model's full depth.

    :ivar keys: of the configurations; ``classes``: which of ``CLASSES`` each is; (n,).
    :ivar seconds: (n,) medians.
    :ivar parameters: of each, as the grid wrote them.
    :ivar samples: all samples of each, in full depth, in the order in which they were taken.
    """

    keys: Sequence[str]
    classes: NDArray[np.str_]
    seconds: Floats
    parameters: Sequence[Mapping[str, Any]]
    samples: Sequence[Floats]

    def column(self, name: str) -> Floats:
        """Return one parameter of all steps, (n,)."""
        return np.array([float(one[name]) for one in self.parameters])


def timed_steps(frame: pd.DataFrame, manifest: Mapping[str, Any], backend: str = REFERENCE) -> TimedSteps:
    """Return the steps that one LoRA backend's profile is fitted to: base steps and its own, on all linear layers.

    Where decodes were timed both eagerly and as graphs, graphs count: it is what serving engines run. Steps of fewer
    layers than the model has are scaled: what the output head takes stays, the rest is multiplied. Where a run that was
    cut short has not timed that head, the step is left out.

    :raises InputError: where nothing of this backend was timed.
    """
    layers, full = int(manifest["layers"]), int(manifest["model_layers"])
    groups = {str(key): rows for key, rows in frame.groupby("key", observed=True, sort=False)}
    parameters = {key: rows["parameters"].iloc[0] for key, rows in groups.items()}
    kinds = {key: str(rows["kind"].iloc[0]) for key, rows in groups.items()}
    head = {
        int(parameters[key]["sequences"]): float(np.median(rows["seconds"]))
        for key, rows in groups.items()
        if kinds[key] == "head"
    }
    graphed = {_twin(key) for key in groups if key.endswith(" graph")}
    chosen = [
        key
        for key in groups
        if kinds[key] in ("decode", "prefill", "mixed")
        and parameters[key]["backend"] in ("", backend)
        and (not parameters[key]["targets"] or len(parameters[key]["targets"].split(",")) == 7)
        and not (key.endswith(" eager") and _twin(key) in graphed)
        and (layers == full or int(parameters[key]["sequences"]) in head)
    ]
    if not any(parameters[key]["backend"] for key in chosen):
        timed = sorted({str(one["backend"]) for one in parameters.values() if one.get("backend")})
        raise InputError(
            "no steps of this LoRA backend were timed", key="--backend", got=backend, allowed=", ".join(timed)
        )
    samples = []
    for key in chosen:
        seconds = groups[key].sort_values(["order", "nth"])["seconds"].to_numpy(dtype=np.float64)
        if layers < full:
            fixed = min(head[int(parameters[key]["sequences"])], 0.9 * float(np.median(seconds)))
            seconds = fixed + np.maximum(seconds - fixed, 0.0) * full / layers
        samples.append(seconds)
    return TimedSteps(
        keys=chosen,
        classes=np.array([_class(kinds[key], parameters[key]) for key in chosen]),
        seconds=np.array([float(np.median(one)) for one in samples]),
        parameters=[parameters[key] for key in chosen],
        samples=samples,
    )


@dataclass(frozen=True, slots=True)
class StepTerms:
    """The terms that steps are fitted with: a monotone table over tokens, and what is linear.

    :ivar knots: tokens at which the table has an entry, rising.
    """

    knots: tuple[int, ...]

    @classmethod
    def of(cls, steps: TimedSteps, limit: int = 12) -> StepTerms:
        """Return terms with knots at measured sizes of base steps, at most ``limit`` of them."""
        base = np.array(["base" in name for name in steps.classes])
        sizes = np.unique(steps.column("tokens")[base]).astype(int)
        if len(sizes) > limit:
            sizes = np.unique(sizes[np.linspace(0, len(sizes) - 1, limit).round().astype(int)])
        return cls(tuple(sizes.tolist()))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all terms, in the order of a problem's columns."""
        return ("step", *(f"tokens_to_{knot}" for knot in self.knots), *_LINEAR)

    @property
    def base(self) -> tuple[str, ...]:
        """The terms of a step without LoRA."""
        return self.names[: -len(LORA)]

    def problem(self, steps: TimedSteps) -> Problem:
        """Return the equations of timed steps; every configuration counts the same.

        ``tokens_to_K`` rises from 0 to 1 between the knot before K and K: non-negative terms make a table that never
        falls.
        """
        ramp = ramps(steps.column("tokens"), (0, *self.knots)).T
        table = {f"tokens_to_{knot}": values for knot, values in zip(self.knots, ramp, strict=True)}
        adapters = steps.column("distinct") > 0
        axes = (
            np.where(steps.column("prefill_tokens") > 0, steps.column("prefill_tokens"), np.nan),
            steps.column("sequences"),
            steps.column("decode_kv_tokens"),
            *(np.where(adapters, steps.column(name), np.nan) for name in ("distinct", "slots", "max_rank")),
        )
        return Problem.of(
            columns(self.names, steps.column, table),
            steps.seconds,
            kind=steps.classes.tolist(),
            configuration=steps.keys,
            settings=np.column_stack(axes),
        )

    def step_cost(self, found: Floats) -> StepCost:
        """Return the profile section of fitted terms, (terms,)."""
        seconds = {name: float(f"{value:.6g}") for name, value in zip(self.names, found.tolist(), strict=True)}
        table, total = [(0.0, 0.0)], 0.0
        for knot in self.knots:
            total += seconds[f"tokens_to_{knot}"]
            table.append((float(knot), total))
        return step_cost(seconds, table)


def _twin(key: str) -> str:
    return key.rsplit(" ", 1)[0]


def _class(kind: str, parameters: Mapping[str, Any]) -> str:
    return f"{'LoRA' if parameters['distinct'] else 'base'} {'decode' if kind == 'decode' else 'prefill'} steps"
