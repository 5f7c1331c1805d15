"""Write a fitted profile, and report on it: errors on held-out data, and which form of cost predicts better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calibrate.fit.sample_terms import ADDITIVE, MULTIPLICATIVE
from sim.results.run_directory.result_files import write_json
from sim.spec.profile import HoldOut, Profile
from sim.studies.fidelity.least_squares import LEFT_OUT

HEAD = ("predicted", "form", "held out", "rows", "mean error", "90 %", "bias")


def write_profile(profile: Profile, path: Path) -> None:
    """Write a profile's JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, profile.model_dump(mode="json"))


@dataclass(frozen=True, slots=True)
class Decision:
    """Which form predicts better, by mean held-out error over all configurations of the same kinds.

    :ivar method: how both were held out.
    """

    better: str
    additive: float
    multiplicative: float
    method: str

    def sentence(self) -> str:
        """Say it in words."""
        other = MULTIPLICATIVE if self.better == ADDITIVE else ADDITIVE
        errors = {ADDITIVE: self.additive, MULTIPLICATIVE: self.multiplicative}
        words = f"The {self.better} form predicts better: {errors[self.better]:.2%} against {errors[other]:.2%}"
        if self.better != ADDITIVE:
            words += "; the profile holds the additive one, which is what simulations use"
        return f"{words} ({self.method})."


def decide(lines: Sequence[HoldOut]) -> Decision | None:
    """Compare the forms by the leave-one-out lines that both have; None where there are none."""
    for method in dict.fromkeys(line.method for line in lines if line.method.startswith(LEFT_OUT)):
        of_form = {
            form: {line.what: line for line in lines if (line.form, line.method) == (form, method)}
            for form in (ADDITIVE, MULTIPLICATIVE)
        }
        both = of_form[ADDITIVE].keys() & of_form[MULTIPLICATIVE].keys()
        if both:
            ours, theirs = (_mean([found[what] for what in both]) for found in of_form.values())
            return Decision(ADDITIVE if ours <= theirs else MULTIPLICATIVE, ours, theirs, method)
    return None


def _mean(lines: Sequence[HoldOut]) -> float:
    return sum(line.mean * line.count for line in lines) / sum(line.count for line in lines)


def hold_out_rows(lines: Sequence[HoldOut]) -> list[tuple[str, ...]]:
    """Return the lines as the cells of a table under ``HEAD``."""
    return [
        (line.what, line.form, line.method, str(line.count), f"{line.mean:.2%}", f"{line.p90:.2%}", f"{line.bias:+.2%}")
        for line in lines
    ]


def closing(profile: Profile) -> list[str]:
    """Return the sentences below the table."""
    sentences = []
    decision = decide(profile.hold_out)
    if decision is not None:
        sentences.append(decision.sentence())
    if profile.step_residual is not None:
        low, high = profile.step_residual.quantiles[0], profile.step_residual.quantiles[-1]
        sentences.append(
            f"Single steps lie between {low:.3g} and {high:.3g} times their cost; neighbours correlate by "
            f"{profile.step_residual.autocorrelation:.2f}."
        )
    sentences.append(f"{len(profile.draws)} bootstrap draws of step and load costs.")
    if profile.provenance is not None:
        fitted = ", ".join(f"{name} {error:.1%}" for name, error in profile.provenance.residuals.items())
        sentences.append(f"Median error in sample: {fitted}.")
        if profile.provenance.calibration:
            sentences.append(f"Calibrated with: {profile.provenance.calibration}.")
    return sentences


def as_json(profile: Profile) -> dict[str, Any]:
    """Return the report as data."""
    decision = decide(profile.hold_out)
    return {
        "profile": profile.name,
        "hold_out": [line.model_dump(mode="json") for line in profile.hold_out],
        "decision": None if decision is None else asdict(decision),
        "step_residual": None if profile.step_residual is None else profile.step_residual.model_dump(mode="json"),
        "draws": len(profile.draws),
        "residuals": {} if profile.provenance is None else dict(profile.provenance.residuals),
        "calibration": "" if profile.provenance is None else profile.provenance.calibration,
    }
