"""Timed steps as equations: which terms each is made of, and the profile section that fitted terms become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibrate.device.lora_backends import REFERENCE
from calibrate.fit.cost_forms import ramps
from sim.errors import InputError
from sim.spec.profile import LoraCost, StepCost
from sim.studies.fidelity.least_squares import Floats, Problem

if TYPE_CHECKING:
    import pandas as pd


_BASE = ("sequence", "kv_token", "attended", "prefill_step")
_LORA = (
    "lora",
    "slot",
    "slot_token",
    "slot_prefill_token",
    "adapter",
    "adapter_max_rank",
    "adapter_rank",
    "token_rank",
)
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
        """Names of all terms, in the order of ``features``' columns."""
        return ("step", *(f"tokens_to_{knot}" for knot in self.knots), *_BASE, *_LORA)

    @property
    def count_lora(self) -> int:
        """How many terms LoRA has."""
        return len(_LORA)

    @property
    def base(self) -> tuple[str, ...]:
        """The terms of a step without LoRA."""
        return tuple(name for name in self.names if name not in _LORA)

    def columns(self, steps: TimedSteps) -> dict[str, ArrayLike]:
        """Return what each term is multiplied with, (n,).

        ``tokens_to_K`` rises from 0 to 1 between the knot before K and K: non-negative terms make a table that never
        falls.
        """
        tokens, slots, on = steps.column("tokens"), steps.column("slots"), steps.column("distinct") > 0
        prefill, distinct, rank = steps.column("prefill_tokens"), steps.column("distinct"), steps.column("max_rank")
        table = ramps(tokens, (0, *self.knots))
        columns = {
            "step": np.ones_like(tokens),
            "sequence": steps.column("sequences"),
            "kv_token": steps.column("decode_kv_tokens"),
            "attended": steps.column("attended"),
            "prefill_step": prefill > 0,
            "lora": on,
            "slot": slots,
            "slot_token": slots * tokens,
            "slot_prefill_token": slots * prefill,
            "adapter": distinct,
            "adapter_max_rank": distinct * rank,
            "adapter_rank": steps.column("rank_sum"),
            "token_rank": steps.column("rank_tokens"),
        }
        columns |= {f"tokens_to_{knot}": values for knot, values in zip(self.knots, table.T, strict=True)}
        return {name: columns[name] for name in self.names}

    def problem(self, steps: TimedSteps) -> Problem:
        """Return the equations of timed steps; every configuration counts the same."""
        adapters = steps.column("distinct") > 0
        axes = (
            np.where(steps.column("prefill_tokens") > 0, steps.column("prefill_tokens"), np.nan),
            steps.column("sequences"),
            steps.column("decode_kv_tokens"),
            *(np.where(adapters, steps.column(name), np.nan) for name in ("distinct", "slots", "max_rank")),
        )
        return Problem.of(
            self.columns(steps),
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
        return StepCost(
            fixed_s=seconds["step"],
            tokens=tuple(table),
            per_sequence_s=seconds["sequence"],
            per_kv_token_s=seconds["kv_token"],
            per_attended_token_s=seconds["attended"],
            prefill_step_s=seconds["prefill_step"],
            lora=LoraCost(
                fixed_s=seconds["lora"],
                per_slot_s=seconds["slot"],
                per_slot_token_s=seconds["slot_token"],
                per_slot_prefill_token_s=seconds["slot_prefill_token"],
                per_adapter_s=seconds["adapter"],
                per_adapter_max_rank_s=seconds["adapter_max_rank"],
                per_adapter_rank_s=seconds["adapter_rank"],
                per_token_rank_s=seconds["token_rank"],
            ),
        )


def _twin(key: str) -> str:
    return key.rsplit(" ", 1)[0]


def _class(kind: str, parameters: Mapping[str, Any]) -> str:
    return f"{'LoRA' if parameters['distinct'] else 'base'} {'decode' if kind == 'decode' else 'prefill'} steps"
