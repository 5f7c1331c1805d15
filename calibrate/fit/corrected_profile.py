"""The profile that a correction gives, with where it comes from."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from calibrate.fit.load_correction import LoadCorrection, scaled_step
from sim.spec.profile import FRONT_END, Draw, Profile, Provenance


def corrected_profile(
    profile: Profile, correction: LoadCorrection, files: Mapping[str, Path], loads: Sequence[str], command: str
) -> Profile:
    """Return a profile with corrected step costs and draws of them; loads and memory stay.

    :param files: what was measured, by names that differ; ``loads``: the runs in them.
    """
    change = f"times {correction.factor.value:.3g}"
    if correction.fixed_s is not None:
        change += f", fixed {correction.fixed_s.value * 1e3:.3g} ms"
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
            "step": correction.step(profile),
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
                data={name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()},
                calibration="all loads of the files",
                calibration_runs=tuple(loads),
                residuals=worst,
                device={FRONT_END: f"{correction.front_end_s.value:.6g}", "corrected": profile.name},
                date=datetime.date.today().isoformat(),
            ),
            "hold_out": (),
            "draws": tuple(
                Draw(step=scaled_step(profile.step, factor, fixed_s), load=profile.load)
                for factor, fixed_s in correction.draws
            ),
        }
    )
