"""Corrects a profile's step costs by what a server did under one or more loads.

A few means are too little to fit every coefficient. They show how much slower or faster steps are than in the profile,
so all coefficients get one factor. Loads whose batches differ in size also separate the fixed seconds of a step from
the rest; then these are fitted too. What TTFT has beyond the steps is a constant of every request, between
client and engine.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from reports.formatting import measured_value, measured_words, percent
from sim.arrays import Floats
from sim.errors import InputError
from sim.results.run_directory.result_files import digest_file
from sim.rng import stream
from sim.spec.profile import ANCHORED, FRONT_END, Draw, Profile, Provenance, StepCost
from sim.spec.scenario_file import LoadedScenario
from sim.studies.fidelity.bench_prediction import bench_world, notes_on_run
from sim.studies.fidelity.bench_run import BenchRun
from sim.studies.predicted_service import predict_service, predicted_values
from sim.world.world import World

SIMULATIONS = 4
MODEL_ERROR = 0.02
"""Relative error of the simulation itself, on top of the measurement's. No value is fitted more closely than this."""
DRAWS = 16
NORMAL = 1.96
MEDIAN_ERROR = math.sqrt(math.pi / 2)
"""Standard error of a median over that of the mean, of normal values; where a file has the spread of the mean alone."""
_ROUNDS, _HALVINGS = 6, 4
_ENOUGH = 0.01
"""Less than that off the sum of squares is no progress."""
_FAR = 20.0
"""A factor beyond which what was measured contradicts the profile."""
_MOST_LOG = math.log(_FAR)
OF_ANOTHER = (
    "is it the same model, GPU and number of GPUs, and are the units right? Then build a profile that is nearer: "
    "loraplan profiles build --help"
)
"""What to ask where measurements contradict a profile."""
_APART = 1.5
"""Loads separate the fixed seconds of a step from the rest if their mean batches differ by this factor."""
_BY_DECODE = ("tpot_mean_s", "itl_mean_s", "tpot_p50_s", "itl_p50_s")
_BY_FIRST = ("ttft_p50_s", "ttft_mean_s")


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredLoad:
    """A server under one load.

    :ivar world: the simulated one, with the costs of the profile that is corrected.
    :ivar measured: by metric such as ``tpot_mean_s``, in seconds; ``half_widths`` of their 95 % intervals, as far as
        they are known. 0 is an exact value.
    :ivar notes: on what was measured.
    """

    name: str
    world: World
    measured: Mapping[str, float]
    half_widths: Mapping[str, float | None]
    notes: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """What is fitted: one time of decoding, and one of the first token; the first whose error is known."""
        usable = [[name for name in names if self.measured.get(name, 0.0) > 0] for names in (_BY_DECODE, _BY_FIRST)]
        return tuple(min(names, key=lambda name: self.half_width(name) is None) for names in usable if names)

    def half_width(self, name: str) -> float | None:
        """Return the half-width of a measured value's 95 % interval; a median's may follow from the mean's."""
        half_width, scale = self.half_widths.get(name), 1.0
        if half_width is None and "_p50_" in name:
            half_width, scale = self.half_widths.get(name.replace("_p50_", "_mean_")), MEDIAN_ERROR
        return None if half_width is None or not math.isfinite(half_width) else half_width * scale

    def deviation(self, name: str) -> float:
        """Return the relative standard deviation of a measured value, the simulation's own error included.

        Without a known error of the measurement it is the simulation's alone, which serves to weight values.
        """
        return math.hypot((self.half_width(name) or 0.0) / NORMAL / self.measured[name], MODEL_ERROR)


def benchmark_load(run: BenchRun, base: LoadedScenario | None, profile: str | None) -> MeasuredLoad:
    """Return a benchmark's run as a load.

    :param base, profile: as ``bench_world`` takes them.
    """
    world = bench_world(run, base, profile)
    notes = list(notes_on_run(run, world.scenario.fleet.engine))
    if run.lost:
        few = f"{run.name}: {percent(run.lost)} of its requests failed"
        notes.append(f"{few}; the rest may not show how a healthy server performs")
    return MeasuredLoad(run.name, world, run.comparable, run.errors, tuple(notes))


@dataclass(frozen=True, slots=True)
class FittedNumber:
    """A number and the half-width of its 95 % interval; None: the measured values have no known errors."""

    value: float
    half_width: float | None


@dataclass(frozen=True, slots=True)
class CheckedTarget:
    """A fitted value before and after the correction: predicted over measured, minus 1."""

    load: str
    metric: str
    measured: float
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class LoadCorrection:
    """The correction.

    :ivar factor: of every coefficient of a step.
    :ivar fixed_s: of a step; None: the loads can't separate it from the rest, and the factor is for it too.
    :ivar front_end_s: of a request, between client and engine.
    :ivar draws: factor and fixed seconds drawn from their joint distribution; none where no interval is known.
    """

    factor: FittedNumber
    fixed_s: FittedNumber | None
    front_end_s: FittedNumber
    checked: tuple[CheckedTarget, ...]
    draws: tuple[tuple[float, float | None], ...]


def scaled_step(step: StepCost, factor: float, fixed_s: float | None) -> StepCost:
    """Return step costs times a factor; the fixed seconds replaced, if they are given."""
    data = _times(step.model_dump(mode="json"), factor)
    data["tokens"] = [(tokens, seconds * factor) for tokens, seconds in step.tokens]
    if fixed_s is not None:
        data["fixed_s"] = fixed_s
    return StepCost.model_validate(data)


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, dict):
        return {key: _times(item, factor) for key, item in value.items()}
    return value * factor if isinstance(value, float) else value


def correct(profile: Profile, loads: Sequence[MeasuredLoad]) -> LoadCorrection:
    """Fit the correction: weighted least squares of the logarithms of what was measured.

    Every trial simulates all loads with the same random numbers. Intervals come from the slopes at the solution,
    widened where the residuals are larger than the deviations explain; where the error of a measured value is unknown,
    there are none.

    :raises InputError: where that takes a factor of ``_FAR`` or more.
    """
    targets = [(load, name) for load in loads for name in load.targets]
    with_fixed = False
    if len(loads) > 1:
        running = [predict_service(load.world, 1).running for load in loads]
        with_fixed = max(running) >= _APART * max(min(running), 1e-9)

    def residuals(x: Floats) -> Floats:
        step = scaled_step(profile.step, math.exp(x[0]), float(x[1]) if with_fixed else None)
        costs, front_end_s = Draw(step=step, load=profile.load), float(x[-1])
        found = predicted_targets(targets, lambda world: world.with_costs(costs).behind(front_end_s))
        return np.array(
            [math.log(found[load.name, name] / load.measured[name]) / load.deviation(name) for load, name in targets]
        )

    fixed_s = profile.step.fixed_s
    front_end_s = loads[0].world.pools[0].front_end_s
    begin = [0.0, fixed_s, front_end_s] if with_fixed else [0.0, front_end_s]
    blur_s = _blur_s(loads)
    front_end_step_s = max(blur_s, 5e-4)
    steps = [0.03, max(0.05 * fixed_s, 1e-4), front_end_step_s] if with_fixed else [0.03, front_end_step_s]
    before = residuals(np.array(begin))
    # All unknowns but the first, a logarithm, are 0 or more.
    low, high = np.zeros(len(begin)), np.full(len(begin), np.inf)
    low[0], high[0] = -_MOST_LOG, _MOST_LOG
    solution, after, slopes = solved(residuals, np.array(begin), np.array(steps), low, high)
    scaled, free = slopes * steps, len(after) - len(steps)
    # With as many unknowns as values, the covariance comes from the deviations alone.
    excess = max(1.0, float(after @ after) / free) if free > 0 else 1.0
    covariance = np.asarray(np.linalg.pinv(scaled.T @ scaled) * excess * np.outer(steps, steps))
    variance = np.diag(covariance).copy()
    variance[-1] += blur_s**2 / 12  # of a uniform law
    spread = NORMAL * np.sqrt(variance)
    factor = math.exp(float(solution[0]))
    if not 1.001 / _FAR < factor < _FAR / 1.001:
        load, name = targets[int(np.argmax(np.abs(after)))]
        raise InputError(
            f"what was measured contradicts the profile: {measured_words(name)} is "
            f"{measured_value(name, load.measured[name])}, and no factor on the steps of {profile.name} explains that",
            file=load.name,
            allowed=f"a factor between 1/{_FAR:g} and {_FAR:g}",
            hint=OF_ANOTHER,
        )
    known = all(load.half_width(name) is not None for load, name in targets)

    def fitted(value: float, half_width: float) -> FittedNumber:
        return FittedNumber(value, half_width if known else None)

    return LoadCorrection(
        factor=fitted(factor, factor * float(spread[0])),
        fixed_s=fitted(float(solution[1]), float(spread[1])) if with_fixed else None,
        front_end_s=fitted(float(solution[-1]), float(spread[-1])),
        checked=tuple(
            CheckedTarget(
                load.name,
                name,
                load.measured[name],
                math.expm1(float(old) * load.deviation(name)),
                math.expm1(float(new) * load.deviation(name)),
            )
            for (load, name), old, new in zip(targets, before, after, strict=True)
        ),
        draws=_draws(solution, covariance, with_fixed=with_fixed) if known else (),
    )


def solved(
    residuals: Callable[[Floats], Floats], begin: Floats, steps: Floats, low: Floats, high: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return the solution, its residuals, and their slopes; by Gauss-Newton with steps that are halved if they fail.

    Slopes are differences over ``steps``, which are so wide that the jumps of a simulation don't show.
    """
    x, found = begin, residuals(begin)
    slopes = _slopes(residuals, x, found, steps)
    for _ in range(_ROUNDS):
        change = -np.linalg.lstsq(slopes * steps, found, rcond=1e-6)[0] * steps
        for _ in range(_HALVINGS):
            tried = np.clip(x + change, low, high)
            there = residuals(tried)
            if there @ there < found @ found:
                break
            change = change / 2
        else:
            break
        gained = float(found @ found - there @ there)
        x, found = tried, there
        slopes = _slopes(residuals, x, found, steps)
        if gained < _ENOUGH:
            break
    return x, found, slopes


def _slopes(residuals: Callable[[Floats], Floats], x: Floats, there: Floats, steps: Floats) -> Floats:
    columns = []
    for place, step in enumerate(steps):
        moved = x.copy()
        moved[place] += step
        columns.append((residuals(moved) - there) / step)
    return np.stack(columns, axis=1)


def _blur_s(loads: Sequence[MeasuredLoad]) -> float:
    """Return within how many seconds the time outside the engine can't be seen.

    Clients of a closed loop that send a little later find the same step running, and wait for its end a little less:
    TTFT stays the same until they miss that step. In an open loop, or with one client, every second shows.
    """
    steps_s = []
    for load in loads:
        law = load.world.traffic.closed_loop
        if law is None or law.concurrency == 1:
            return 0.0
        steps_s.append(load.measured[load.targets[0]])
    return min(steps_s)


def predicted_targets(
    targets: Sequence[tuple[MeasuredLoad, str]], changed: Callable[[World], World]
) -> dict[tuple[str, str], float]:
    """Return what loads measured, by load and metric, as it is simulated in changed worlds."""
    found: dict[tuple[str, str], float] = {}
    for load, names in groupby(targets, key=lambda each: each[0]):
        values = predicted_values(predict_service(changed(load.world), SIMULATIONS))
        found |= {(load.name, name): values[name] for _, name in names}
    return found


def _draws(solution: Floats, covariance: Floats, *, with_fixed: bool) -> tuple[tuple[float, float | None], ...]:
    rows = stream(1, 0, "load-correction").multivariate_normal(solution, covariance, size=DRAWS, method="svd")
    factors = np.exp(np.clip(rows[:, 0], -_MOST_LOG, _MOST_LOG))  # where the fit itself has to stay
    fixed = np.maximum(rows[:, 1], 0.0)
    return tuple((float(factor), float(s) if with_fixed else None) for factor, s in zip(factors, fixed, strict=True))


def corrected_profile(
    profile: Profile, correction: LoadCorrection, files: Mapping[str, Path], loads: Sequence[str], command: str
) -> Profile:
    """Return a profile with corrected step costs and draws of them; loads and memory stay.

    :param files: what was measured, by names that differ; ``loads``: the runs in them.
    """
    change, fixed = f"times {correction.factor.value:.3g}", correction.fixed_s
    if fixed is not None:
        change += f", fixed {fixed.value * 1e3:.3g} ms"
    note = f"step costs of {profile.name} {change}, by {len(loads)} measured {'load' if len(loads) == 1 else 'loads'}"
    worst = {
        metric: max(abs(each.after) for each in correction.checked if each.metric == metric)
        for metric in dict.fromkeys(each.metric for each in correction.checked)
    }
    return profile.model_copy(
        update={
            "name": f"{profile.name}-corrected",
            "status": "derived" if profile.status == "measured" else profile.status,
            "status_note": f"{note}; {profile.status_note}" if profile.status_note else note,
            "step": scaled_step(profile.step, correction.factor.value, fixed.value if fixed else None),
            "sources": {
                key: f"{source}; {change}, by the measured loads" if key.split(".")[0] == "step" else source
                for key, source in profile.sources.items()
            },
            "error": "on the loads it was corrected by: "
            + ", ".join(
                f"{metric.removesuffix('_s').replace('_', ' ')} {value:.1%}" for metric, value in worst.items()
            ),
            "provenance": Provenance(
                command=command,
                data={name: digest_file(file) for name, file in files.items()},
                calibration="all loads of the files",
                calibration_runs=tuple(loads),
                residuals=worst,
                device={FRONT_END: f"{correction.front_end_s.value:.6g}", ANCHORED: profile.name},
                date=datetime.date.today().isoformat(),
            ),
            "hold_out": (),
            "draws": tuple(
                Draw(step=scaled_step(profile.step, factor, fixed_s), load=profile.load)
                for factor, fixed_s in correction.draws
            ),
        }
    )
