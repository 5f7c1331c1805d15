"""Judge built profiles by decode steps measured on the H100-64GB: ``python validation/published/step_errors.py DIR``.

DIR has ``step_runs.csv`` (docs/validation.md says where it is from). Needs the extra ``kernels``; prints two tables:
steps measured under vLLM 0.8.5 next to what would have been derived without them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibrate.kernels.around_kernels import MEASURED, lora_cost, overhead_of
from calibrate.kernels.base_models import base_model_of
from calibrate.kernels.cards import card_of
from calibrate.kernels.kernel_tables import Deployment, KernelTables
from sim.arrays import Floats
from sim.spec.profile import StepCost, load_profile
from sim.studies.fidelity.step_terms import BASE, LORA, Term
from validation.published.profile_from_runs import closed_loops
from validation.published.step_fit import BASE_DECODE, LORA_DECODE, TERMS

CARD = "h100-64gb"


@dataclass(frozen=True, slots=True)
class StepErrors:
    """Decode steps of one model; each array (n,).

    :ivar sequences: of the step.
    :ivar measured_s: seconds.
    :ivar kernels_s: of these, what kernels alone are predicted to take; LoRA's part where LoRA is judged.
    :ivar predicted_s: seconds of the whole step.
    """

    sequences: Floats
    measured_s: Floats
    kernels_s: Floats
    predicted_s: Floats

    @property
    def signed(self) -> Floats:
        """Relative errors."""
        return self.predicted_s / self.measured_s - 1

    def left(self) -> tuple[float, float]:
        """Return the seconds a step and a sequence that explain what kernels leave, by least relative squares."""
        terms = np.column_stack((np.ones_like(self.sequences), self.sequences)) / self.measured_s[:, None]
        step_s, sequence_s = np.linalg.lstsq(terms, 1 - self.kernels_s / self.measured_s, rcond=None)[0]
        return float(step_s), float(sequence_s)


def base_decode_steps(folder: Path, model: str) -> StepErrors:
    """Predict steps without LoRA from the tables of the 80 GB card, scaled to this card's memory bandwidth.

    :param folder: has ``step_runs.csv``.
    :param model: a key of ``MEASURED``.
    :raises InputError: without the extra ``kernels``.
    """
    columns, seconds, _ = _measured(folder, model, BASE_DECODE)
    deployment = Deployment(card_of(CARD), base_model_of(model))
    tables, overhead = KernelTables(deployment), overhead_of(deployment)
    sequences, kv_tokens = columns["sequence"], columns["kv_token"]
    contexts = np.rint(kv_tokens / sequences).astype(int).tolist()
    kernels = np.array([tables.step_s(int(n), each) for n, each in zip(sequences, contexts, strict=True)])
    fixed_s, sequence_s = overhead.step_s + overhead.host_s, overhead.per_sequence_s + overhead.host_per_sequence_s
    whole = overhead.factor * kernels + fixed_s + sequence_s * sequences  # vLLM 0.8.5 schedules synchronously
    return StepErrors(sequences, seconds, kernels, whole)


def lora_decode_steps(folder: Path, model: str) -> StepErrors:
    """Predict steps with LoRA: the base model's share as measured, LoRA's terms scaled from the other model.

    :param folder: has ``step_runs.csv``.
    :param model: a key of ``MEASURED``.
    """
    columns, seconds, known = _measured(folder, model, LORA_DECODE)
    step = load_profile(MEASURED[model])[0].step
    (other,) = (name for name in MEASURED if name != model)
    terms = lora_cost(base_model_of(model), card_of(CARD), measured=(other,))
    lora = np.sum([columns[name] * getattr(terms, term) for name, term in _of(LORA)], axis=0)
    return StepErrors(columns["sequence"], seconds, lora, _base_s(step, columns) + known + lora)


def _base_s(step: StepCost, columns: dict[str, Floats]) -> Floats:
    tokens, seconds = np.array(step.tokens).T
    total = step.fixed_s + np.interp(columns["token"], tokens, seconds)
    for name, term in _of(BASE[1:]):
        total = total + columns[name] * getattr(step, term)
    return np.asarray(total)


def _of(terms: tuple[Term, ...]) -> list[tuple[str, str]]:
    """Return names and fields of the terms that were fitted."""
    return [(term.name, term.field) for term in terms if term.name in TERMS]


def _measured(folder: Path, model: str, kind: str) -> tuple[dict[str, Floats], Floats, Floats]:
    problem = closed_loops(folder, model, load_profile(MEASURED[model])[0].memory).problem
    chosen = (np.array(problem.kind) == kind) & (problem.weight > 0)
    columns = {term: problem.features[chosen, TERMS.index(term)] for term in TERMS}
    return columns, problem.seconds[chosen], problem.known[chosen]


def main() -> int:
    """Print both tables."""
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    folder = Path(sys.argv[1])
    print("| base decode steps | steps | median | 90 % below | bias | left by kernels: a step | a sequence |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for model, errors in _all(folder, base_decode_steps):
        step_s, sequence_s = errors.left()
        print(f"{_row(model, errors)} {step_s * 1e3:.1f} ms | {sequence_s * 1e6:.0f} us |")
    print("\n| LoRA decode steps | steps | median | 90 % below | bias |\n| --- | ---: | ---: | ---: | ---: |")
    for model, errors in _all(folder, lora_decode_steps):
        print(_row(model, errors))
    return 0


def _all(folder: Path, judge: Callable[[Path, str], StepErrors]) -> list[tuple[str, StepErrors]]:
    return [(model, judge(folder, model)) for model in MEASURED]


def _row(model: str, errors: StepErrors) -> str:
    off = np.abs(errors.signed)
    return (
        f"| {model} | {len(off)} | {np.median(off):.1%} | {np.quantile(off, 0.9):.1%} | "
        f"{np.median(errors.signed):+.1%} |"
    )


if __name__ == "__main__":
    sys.exit(main())
