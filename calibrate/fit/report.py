"""Reports on profiles that were fitted: errors on held-out data, which form of cost predicts better, corrections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from calibrate.fit.anchor import SHOWN_BY, Anchored, named_profile
from calibrate.fit.load_correction import (
    CheckedTarget,
    FittedNumber,
    LoadCorrection,
    MeasuredLoad,
    correct,
    corrected_profile,
)
from calibrate.fit.sample_terms import ADDITIVE, MULTIPLICATIVE
from reports.document import Report
from reports.formatting import measured_value, measured_words
from reports.table import Table
from sim.results.run_directory.result_files import write_json, write_text
from sim.spec.profile import HoldOut, Profile
from sim.studies.fidelity.bench_files import distinct_names
from sim.studies.fidelity.least_squares import LEFT_OUT
from sim.studies.profile_listing import tpot_error

_UNEXPLAINED = 0.15


def fit_report(profile: Profile, out: Path) -> Report:
    """Write a fitted profile; return how well it predicts what it was not fitted to."""
    write_profile(profile, out)
    rows = [
        [line.what, line.form, line.method, str(line.count), f"{line.mean:.2%}", f"{line.p90:.2%}", f"{line.bias:+.2%}"]
        for line in profile.hold_out
    ]
    head = ["predicted", "form", "held out", "rows", "mean error", "90 %", "bias"]
    residual, provenance = profile.step_residual, profile.provenance
    return Report(
        kind="calibrate fit",
        name=profile.name,
        data={
            "profile": profile.name,
            "hold_out": [line.model_dump(mode="json") for line in profile.hold_out],
            "decision": decide(profile.hold_out),
            "step_residual": None if residual is None else residual.model_dump(mode="json"),
            "draws": len(profile.draws),
            "residuals": {} if provenance is None else dict(provenance.residuals),
            "calibration": "" if provenance is None else provenance.calibration,
            "file": str(out),
        },
        terminal=[Table("Errors on held-out data", head, rows), "", *closing(profile), "", f"profile  {out}"],
    )


def write_profile(profile: Profile, path: Path) -> None:
    """Write a profile's JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, profile.model_dump(mode="json"))


def decide(lines: Sequence[HoldOut]) -> dict[str, Any] | None:
    """Return which form predicts better, by the mean leave-one-out error over all kinds that both have.

    :returns: the ``better`` form, the error of each form by its name, and the ``method`` by which both were held out;
        None where there are no such lines.
    """
    for method in dict.fromkeys(line.method for line in lines if line.method.startswith(LEFT_OUT)):
        of_form = {
            form: {line.what: line for line in lines if (line.form, line.method) == (form, method)}
            for form in (ADDITIVE, MULTIPLICATIVE)
        }
        both = of_form[ADDITIVE].keys() & of_form[MULTIPLICATIVE].keys()
        if both:
            errors = {form: _mean([found[what] for what in both]) for form, found in of_form.items()}
            return {"better": min(errors, key=errors.__getitem__), **errors, "method": method}
    return None


def _mean(lines: Sequence[HoldOut]) -> float:
    return sum(line.mean * line.count for line in lines) / sum(line.count for line in lines)


def closing(profile: Profile) -> list[str]:
    """Return the sentences below the table."""
    sentences = []
    if decision := decide(profile.hold_out):
        better = decision["better"]
        other = MULTIPLICATIVE if better == ADDITIVE else ADDITIVE
        words = f"The {better} form predicts better: {decision[better]:.2%} against {decision[other]:.2%}"
        if better != ADDITIVE:
            words += "; the profile holds the additive one, which is what simulations use"
        sentences.append(f"{words} ({decision['method']}).")
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


# A profile that is corrected by what a server did under measured loads.

_NO_INTERVAL = (
    "no ± and no calibration interval: the measured values have no standard deviations and no single requests to "
    "derive them from"
)


def correction_report(loads: Sequence[MeasuredLoad], files: Sequence[Path], out: Path, command: str) -> Report:
    """Correct the profile of the first load by all loads, and write it; return how close it is now."""
    profile = loads[0].world.pools[0].profile
    assert profile is not None, "engine fixed has no tokens"
    correction = correct(profile, loads)
    named = dict(zip(distinct_names(files), files, strict=True))
    done = corrected_profile(profile, correction, named, [load.name for load in loads], command)
    write_text(out, done.model_dump_json(indent=2, exclude_none=True) + "\n")
    fixed = correction.fixed_s
    return Report(
        kind="calibrate fit",
        name=done.name,
        data={
            "file": str(out),
            "schema_version": 1,
            "profile": done.name,
            "factor": asdict(correction.factor),
            "fixed_s": None if fixed is None else asdict(fixed),
            "front_end_s": asdict(correction.front_end_s),
            "checked": _checked_data(correction.checked),
        },
        terminal=[*_corrected(correction), "", _before_and_after(correction.checked), "", f"profile  {out}"],
        notes=[
            *(note for load in loads for note in load.notes),
            *([_NO_INTERVAL] if correction.factor.half_width is None else []),
            *_unexplained(correction.checked),
        ],
    )


def anchor_report(
    profile: Profile,
    anchored: Anchored,
    loads: Sequence[MeasuredLoad],
    files: Sequence[Path],
    out: Path,
    command: str,
) -> Report:
    """Write an anchored profile; return what changed.

    :param profile: as it was.
    :param files: those among the loads that are files.
    """
    named = dict(zip(distinct_names(files), files, strict=True))
    done = named_profile(profile, anchored, loads, named, command)
    write_text(out, done.model_dump_json(indent=2, exclude_none=True) + "\n")
    errors = {"before": tpot_error(profile), "after": tpot_error(done)}
    widths = " and ".join(f"± {100 * error:.0f} % {when}" for when, error in errors.items() if error is not None)
    factors = {"decoding takes": anchored.decode, "prompts take": anchored.prompt}
    seen = [f"{what} {each.value:.2f} ± {each.half_width:.2f}" for what, each in factors.items() if each.half_width]
    unseen = [what for what, each in factors.items() if each.half_width is None]
    notes = [
        f"these runs say little about what {what}, so it stays: give a run with {SHOWN_BY[what.split()[0]]}"
        for what in unseen
    ]
    as_said = max(abs(each.before) for each in anchored.checked) <= (errors["before"] or 0.0)
    if as_said and errors["after"] and errors["before"] and round(errors["after"], 2) > round(errors["before"], 2):
        notes.append(
            "this anchor does not help, TPOT is less certain than before: keep the profile, or measure TPOT better"
        )
    return Report(
        kind="profiles adjust",
        name=done.name,
        data={
            "schema_version": 1,
            "file": str(out),
            "profile": done.name,
            "decode": asdict(anchored.decode),
            "prompt": asdict(anchored.prompt),
            "tpot_error": errors,
            "checked": _checked_data(anchored.checked),
        },
        terminal=[
            f"{' and '.join(seen)} times what the profile says (95 %)",
            "",
            _before_and_after(anchored.checked),
            *(["", f"TPOT of 32 sequences with 16 adapters: {widths}"] if widths else []),
            *("", f"profile  {out}"),
        ],
        notes=[*(note for load in loads for note in load.notes), *notes, *_unexplained(anchored.checked)],
    )


def _checked_data(checked: Sequence[CheckedTarget]) -> list[dict[str, Any]]:
    names = ("run", "metric", "measured", "error_before", "error_after")
    return [dict(zip(names, astuple(each), strict=True)) for each in checked]


def _before_and_after(checked: Sequence[CheckedTarget]) -> Table:
    rows = [
        [
            each.load,
            measured_words(each.metric),
            measured_value(each.metric, each.measured),
            f"{each.before:+.1%}",
            f"{each.after:+.1%}",
        ]
        for each in checked
    ]
    return Table("Before and after", ["run", "", "measured", "error before", "after"], rows)


def _corrected(correction: LoadCorrection) -> list[str]:
    factor, fixed, outside = correction.factor, correction.fixed_s, correction.front_end_s
    what = "steps take" if fixed is None else "steps, but for their fixed part, take"
    width = "" if factor.half_width is None else f" ± {factor.half_width:.3f}"
    confidence = "" if factor.half_width is None else " (95 %)"
    return [
        f"{what} {factor.value:.3f}{width} times what the profile says{confidence}",
        *([] if fixed is None else [f"the fixed part of a step is {_milliseconds(fixed)} ms"]),
        f"a request spends {_milliseconds(outside)} ms outside the engine",
    ]


def _milliseconds(number: FittedNumber) -> str:
    value, width_s = f"{number.value * 1e3:.3g}", number.half_width
    if width_s is None:
        return value
    return f"{value} ± {width_s * 1e3:{'.2g' if width_s < 0.0995 else ',.0f'}}"


def _unexplained(checked: Sequence[CheckedTarget]) -> list[str]:
    worst = max(checked, key=lambda each: abs(each.after))
    if abs(worst.after) <= _UNEXPLAINED:
        return []
    return [
        f"no factor explains this: {measured_words(worst.metric)} of {worst.load} stays off by {worst.after:+.0%}. "
        "Is the scenario what was measured? Check adapters.count, cache.gpu.slots, prefixes that requests share, "
        "and whether the server was busy with other work"
    ]
