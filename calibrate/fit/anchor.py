"""Anchors a profile on a few measured numbers of the user's own card.

Two factors explain most of how a card or an engine differs from what a profile says: one on what a step takes to
decode (the weights and the KV cache that it reads, launches, the host), and one on what its prompts take to compute.
Runs are simulated until their times are those that were measured. So is every draw of the profile, by itself: what all
draws shared becomes as uncertain as the measurement, and what they say of one term against another stays.
"""

from __future__ import annotations

import datetime
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import norm

from calibrate.fit.load_correction import (
    NORMAL,
    CheckedTarget,
    FittedNumber,
    MeasuredLoad,
    predicted_targets,
    solved,
)
from reports.formatting import listed, measured_value, measured_words
from sim.arrays import Floats
from sim.errors import InputError
from sim.rng import stream
from sim.spec.profile import ANCHORED, Draw, Profile, Provenance
from sim.studies.fidelity.step_terms import anchored_step

FAR = 3.0
"""A factor beyond which an anchor contradicts the profile."""
_PRIOR = math.log(FAR) / 2
"""Spread of the logarithm of a factor before anything is measured. What a run doesn't show stays near the profile."""
STATED = 0.05
"""Half-width of the 95 % interval of a measured value that comes without one, as a share: an assumption."""
LEFT = 1 / 3
"""Share of a profile's spread that an anchor leaves for other loads: how far steps without and with prompts are off
once one of each is known, on cards left out of data sheets (``tests/calibrate/test_data_sheets.py``)."""
_OUTSIDE_S = 0.003
"""Spread of what requests spend outside the engine: 6 to 11 ms in the stages that it was measured in."""
_WHOLE = ("e2e_mean_s", "e2e_p50_s", "requests_per_s")
"""What tells of decoding where no time between tokens was measured."""
_BEGIN, _STEPS = np.zeros(2), np.full(2, 0.05)
_MOST_LOG, _ROUNDS, _SETTLED = 1.5 * math.log(FAR), 4, 0.005
SUFFIX = "-anchored"


@dataclass(frozen=True, slots=True)
class Anchored:
    """An anchored profile.

    :ivar decode, prompt: factors on what a step takes to decode, and on what its prompts take.
    """

    profile: Profile
    decode: FittedNumber
    prompt: FittedNumber
    checked: tuple[CheckedTarget, ...]


def anchor(profile: Profile, loads: Sequence[MeasuredLoad]) -> Anchored:
    """Anchor a profile: weighted least squares of the logarithms of what was measured, and of both factors.

    :raises InputError: where a run tells nothing, or needs a factor beyond ``FAR``.
    """
    targets = [(load, name) for load in loads for name in _targets(load)]
    lora = not all(load.world.scenario.adapters.base_alone for load in loads)

    def changed(costs: Draw, logs: Floats) -> Draw:
        return Draw(step=anchored_step(costs.step, *np.exp(logs).tolist(), lora=lora), load=costs.load)

    def ratios(costs: Draw, logs: Floats) -> Floats:
        there = changed(costs, logs)
        found = predicted_targets(targets, lambda world: world.with_costs(there))
        values = [found[load.name, name] / load.measured[name] for load, name in targets]
        for (load, name), value in zip(targets, values, strict=True):
            if not math.isfinite(value):
                raise InputError(f"the simulated run has no {measured_words(name)}", file=load.name, key="--anchor")
        return np.log(values)

    own, most = Draw(step=profile.step, load=profile.load), np.full(2, _MOST_LOG)
    before = ratios(own, _BEGIN)
    spread = np.std([before, *(ratios(draw, _BEGIN) for draw in profile.draws)], axis=0)
    deviations = np.array(
        [_deviation(*target, LEFT * float(each)) for target, each in zip(targets, spread, strict=True)]
    )

    def residuals(costs: Draw, logs: Floats, off: Floats) -> Floats:
        return np.concatenate([ratios(costs, logs) / deviations - off, logs / _PRIOR])

    exact = np.zeros(len(targets))
    solution, after, slopes = solved(lambda logs: residuals(own, logs, exact), _BEGIN, _STEPS, -most, most)
    checked = tuple(
        CheckedTarget(load.name, name, load.measured[name], math.expm1(old), math.expm1(new))
        for (load, name), old, new in zip(targets, before, after[:-2] * deviations, strict=True)
    )
    _refuse_far(profile, checked, solution, lora=lora)
    inverse = np.linalg.pinv(slopes)
    half_widths = NORMAL * np.sqrt(np.diag(inverse @ inverse.T))
    decode, prompt = (
        FittedNumber(math.exp(log), math.exp(log) * float(width))
        for log, width in zip(solution, half_widths, strict=True)
    )
    quantiles = norm.ppf((np.arange(len(profile.draws)) + 0.5) / max(len(profile.draws), 1))
    offs = [stream(1, place, "anchor-draws").permutation(quantiles) for place in range(len(targets))]

    def anchored(draw: Draw, off: Floats) -> Draw:
        logs = solution
        for _ in range(_ROUNDS):  # with the slopes of the profile itself
            change = inverse @ residuals(draw, logs, off)
            logs = np.clip(logs - change, -most, most)
            if np.abs(change).max() < _SETTLED:
                break
        return changed(draw, logs)

    draws = tuple(anchored(draw, np.array(off)) for draw, *off in zip(profile.draws, *offs, strict=True))
    how = f"decode terms times {decode.value:.3g}, prompt terms times {prompt.value:.3g}, by its anchor"
    sources = profile.sources | {"step": f"{profile.sources.get('step', 'each as below')}; {how}"}
    update = {"step": changed(own, solution).step, "draws": draws, "sources": sources}
    return Anchored(profile.model_copy(update=update), decode, prompt, checked)


def _refuse_far(profile: Profile, checked: Sequence[CheckedTarget], logs: Floats, *, lora: bool) -> None:
    """Refuse an anchor that needs a factor beyond ``FAR``, or stays off by one: a weak factor is held by its prior.

    :param logs: logarithms of both factors; ``lora``: whether a run has adapters.
    """
    left = max(abs(math.log1p(each.after)) for each in checked)
    if max(left, np.abs(logs).max()) <= math.log(FAR):
        return
    worst = max(checked, key=lambda each: abs(math.log1p(each.before)))
    predicted = measured_value(worst.metric, worst.measured * (1 + worst.before))
    decode, prompt = np.exp(logs).tolist()
    adapters = "" if lora else "does the server have adapters? Then give --scenario with them. Otherwise: "
    raise InputError(
        f"the anchor contradicts the profile: {measured_words(worst.metric)} is "
        f"{measured_value(worst.metric, worst.measured)}, and {profile.name} predicts {predicted}; the best fit takes "
        f"decoding times {decode:.3g} and prompts times {prompt:.3g}, and is still off by a factor of up to "
        f"{math.exp(left):.3g}",
        allowed=f"factors from 1/{FAR:g} to {FAR:g}",
        file=worst.load,
        key="--anchor",
        hint=f"{adapters}is it the same model, GPU and number of GPUs, and are the units right? Then build a profile "
        "that is nearer: loraplan profiles build --help",
    )


def _targets(load: MeasuredLoad) -> tuple[str, ...]:
    whole = [name for name in _WHOLE if load.measured.get(name, 0.0) > 0]
    return load.targets if len(load.targets) > 1 else (*load.targets, *whole[:1])


def _deviation(load: MeasuredLoad, name: str, left: float) -> float:
    """Return the standard deviation of the logarithm of a measured value, for what is predicted by it elsewhere."""
    measured, width = load.measured[name], load.half_width(name)
    stated = 0.0 if width is not None else STATED / NORMAL
    outside = _OUTSIDE_S / measured if name.startswith("ttft") else 0.0
    return math.hypot(load.deviation(name), stated, outside, left)


def named_profile(
    before: Profile, anchored: Anchored, loads: Sequence[MeasuredLoad], files: Mapping[str, Path], command: str
) -> Profile:
    """Return an anchored profile that says of itself what it is.

    :param files: those among the loads that are files, by names that differ.
    """
    note = f"anchored on {listed([load.name for load in loads])}"
    left = ", ".join(f"{measured_words(each.metric)} {each.after:+.1%}" for each in anchored.checked)
    return anchored.profile.model_copy(
        update={
            "name": f"{before.name.removesuffix(SUFFIX)}{SUFFIX}",
            "status": "derived",
            "status_note": f"{note}; {before.status_note}" if before.status_note else note,
            "error": f"on its anchor: {left}; before: {before.error}",
            "hold_out": (),
            "provenance": Provenance(
                command=command,
                data={name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()},
                calibration=note,
                calibration_runs=tuple(load.name for load in loads),
                residuals={each.metric: abs(each.after) for each in anchored.checked},
                device=(before.provenance.device if before.provenance else {}) | {ANCHORED: before.name},
                date=datetime.date.today().isoformat(),
            ),
        }
    )
