"""Anchors a profile on a few measured numbers of the user's own card.

Two factors explain most of how a card or an engine differs from what a profile says: one on what a step takes to
decode (the weights and the KV cache that it reads, launches, the host), and one on what its prompts take to compute.
Runs are simulated until their times are those that were measured. So is every draw of the profile, by itself: what all
draws shared becomes as uncertain as the measurement, and what they say of one term against another stays.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import norm

from calibrate.fit.load_correction import (
    NORMAL,
    OF_ANOTHER,
    CheckedTarget,
    FittedNumber,
    MeasuredLoad,
    predicted_targets,
    solved,
)
from reports.formatting import listed, measured_value, measured_words
from sim.arrays import Floats, Mask
from sim.errors import InputError
from sim.results.run_directory.result_files import digest_file
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
_STEP, _MOST_LOG, _ROUNDS, _SETTLED = 0.05, 1.5 * math.log(FAR), 4, 0.005
_UNSEEN = 0.4
"""Half-width of the logarithm of a factor from which runs say too little about it: it stays 1."""
_LOST = math.log(2)
"""The same where values contradict each other: above it a factor is known to less than a factor of two."""
_APART = math.log(1.5)
"""Logarithm of how far a value may stay off, at most, where others pull the factors away."""
_STEEP = 3.0
"""By how many percent a time may grow where steps take 1 % longer; near saturation, queues make it more. A server of
equal requests that come at random is 72 % busy then."""
SUFFIX = "-anchored"
SHOWN_BY = {"decoding": "TPOT (or E2E)", "prompts": "TTFT of prompts of 1,000 tokens or more that are not cached"}
"""What a run has to measure to show each factor, in their order."""


@dataclass(frozen=True, slots=True)
class Anchored:
    """An anchored profile.

    :ivar decode, prompt: factors on what a step takes to decode, and on what its prompts take; without an interval
        where the runs say too little, and it stays 1.
    """

    profile: Profile
    decode: FittedNumber
    prompt: FittedNumber
    checked: tuple[CheckedTarget, ...]


def anchor(profile: Profile, loads: Sequence[MeasuredLoad]) -> Anchored:
    """Anchor a profile: weighted least squares of the logarithms of what was measured, and of both factors.

    :raises InputError: where runs tell nothing, are near saturation, contradict each other, or need a factor beyond
        ``FAR``.
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

    own = Draw(step=profile.step, load=profile.load)
    before = ratios(own, np.zeros(2))
    spread = np.std([before, *(ratios(draw, np.zeros(2)) for draw in profile.draws)], axis=0)
    deviations = np.array(
        [_deviation(*target, LEFT * float(each)) for target, each in zip(targets, spread, strict=True)]
    )

    def residuals(costs: Draw, logs: Floats, off: Floats) -> Floats:
        return np.concatenate([ratios(costs, logs) / deviations - off, logs / _PRIOR])

    exact = np.zeros(len(targets))
    free = np.array([not all(name.startswith("ttft") for _, name in targets), True])  # a first token shows no decoding
    fit = _fitted(lambda logs: residuals(own, logs, exact), free, len(targets))
    checked = tuple(
        CheckedTarget(load.name, name, load.measured[name], math.expm1(old), math.expm1(new))
        for (load, name), old, new in zip(targets, before, fit.off * deviations, strict=True)
    )
    _refuse_steep(targets, fit.growth * deviations)
    _refuse_far(profile, checked, fit.logs, lora=lora)
    _refuse_contradictions(checked, fit)
    decode, prompt = (
        FittedNumber(math.exp(log), math.exp(log) * float(width) if known else None)
        for log, width, known in zip(fit.logs, fit.widths, fit.free, strict=True)
    )
    quantiles = fit.excess * norm.ppf((np.arange(len(profile.draws)) + 0.5) / max(len(profile.draws), 1))
    offs = [stream(1, place, "anchor-draws").permutation(quantiles) for place in range(len(targets))]

    def anchored(draw: Draw, off: Floats) -> Draw:
        logs = fit.logs
        for _ in range(_ROUNDS):  # with the slopes of the profile itself
            change = fit.inverse @ residuals(draw, logs, off)
            logs = np.clip(logs - change, -_MOST_LOG, _MOST_LOG)
            if np.abs(change).max() < _SETTLED:
                break
        return changed(draw, logs)

    draws = tuple(anchored(draw, np.array(off)) for draw, *off in zip(profile.draws, *offs, strict=True))
    how = f"decode terms times {decode.value:.3g}, prompt terms times {prompt.value:.3g}, by its anchor"
    sources = profile.sources | {"step": f"{profile.sources.get('step', 'each as below')}; {how}"}
    update = {"step": changed(own, fit.logs).step, "draws": draws, "sources": sources}
    return Anchored(profile.model_copy(update=update), decode, prompt, checked)


@dataclass(frozen=True, slots=True)
class _Fit:
    """The logarithms of both factors, (2,), and how they were found.

    :ivar widths: half-widths of their 95 % intervals; ``free``: which of them were fitted, others are 0.
    :ivar off: what is left of each target, in its deviations; ``growth``: what it grows by where both factors do.
    :ivar excess: how many times larger ``off`` is than the deviations explain; 1 or more.
    :ivar inverse: (2, targets + 2), turns residuals into changes of the logarithms.
    """

    logs: Floats
    widths: Floats
    free: Mask
    off: Floats
    growth: Floats
    excess: float
    inverse: Floats


def _fitted(residuals: Callable[[Floats], Floats], free: Mask, targets: int) -> _Fit:
    """Fit the free factors; then without those that the runs say too little about.

    :param residuals: of both logarithms: those of the targets, and two of the logarithms themselves.
    :raises InputError: if the runs say too little about both.
    """
    while free.any():
        at = np.eye(2)[:, free]
        count = at.shape[1]
        bounds = np.full(count, _MOST_LOG)
        begin, steps = np.zeros(count), np.full(count, _STEP)
        found, after, slopes = solved(partial(_along, residuals, at), begin, steps, -bounds, bounds)
        inverse = at @ np.linalg.pinv(slopes)
        widths = NORMAL * np.sqrt(np.diag(inverse @ inverse.T))
        if widths.max() <= _UNSEEN:
            off, growth = after[:targets], slopes[:targets].sum(axis=1)
            # Runs that contradict each other, or what the profile can be, say less than their errors.
            excess = math.sqrt(max(1.0, float(off @ off) / max(targets - count, 1)))
            return _Fit(at @ found, excess * widths, free, off, growth, excess, inverse)
        free = free & (widths <= _UNSEEN)
    raise InputError(
        "these runs say too little about what decoding and prompts take",
        key="--anchor",
        hint=f"give a run with {listed(list(SHOWN_BY.values()))}",
    )


def _along(residuals: Callable[[Floats], Floats], at: Floats, logs: Floats) -> Floats:
    return residuals(at @ logs)


def _refuse_steep(targets: Sequence[tuple[MeasuredLoad, str]], growth: Floats) -> None:
    """Refuse runs near saturation: there the order in which requests happened to come decides, not what steps take.

    :param growth: by how many percent each target grows where all that is fitted takes 1 % longer.
    """
    worst = int(np.argmax(np.abs(growth)))
    if abs(growth[worst]) > _STEEP:
        load, name = targets[worst]
        raise InputError(
            f"this run is near saturation: steps that take 1 % longer would change its {measured_words(name)} by "
            f"{abs(growth[worst]):.2g} %",
            allowed=f"at most {_STEEP:g} %",
            file=load.name,
            key="--anchor",
            hint="give a run at a lower rate",
        )


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
        hint=adapters + OF_ANOTHER,
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


def _refuse_contradictions(checked: Sequence[CheckedTarget], fit: _Fit) -> None:
    """Refuse values that no two factors bring together: a factor stays unknown, or a value off by half."""
    if fit.widths.max() <= _LOST and max(abs(math.log1p(each.after)) for each in checked) <= _APART:
        return
    parts = [f"{measured_words(each.metric)} of {each.load} {each.after:+.0%}" for each in checked]
    raise InputError(
        f"these values contradict each other: with the best factors, predictions are off by {listed(parts)}",
        key="--anchor",
        hint="give runs far from saturation, with the settings that the server had",
    )


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
                data={name: digest_file(file) for name, file in files.items()},
                calibration=note,
                calibration_runs=tuple(load.name for load in loads),
                residuals={each.metric: abs(each.after) for each in anchored.checked},
                device=(before.provenance.device if before.provenance else {}) | {ANCHORED: before.name},
                date=datetime.date.today().isoformat(),
            ),
        }
    )
