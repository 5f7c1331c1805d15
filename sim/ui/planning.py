"""The question of ``plan from here``: what to look for, and in which range."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from sim.errors import ScenarioError
from sim.studies.plan.study import free_folder
from sim.ui.controls import Control
from sim.ui.library import ChosenDesign
from sim.ui.simulating.tasks import PlanFromHere

_MAXIMIZED = ("workload.arrivals.rate", "workload.arrivals.concurrency", "adapters.count", "workload.trace.time_scale")
"""Keys of which more is wanted; less of others."""
_NEVER = ("slo.", "adapters.rank")
"""What a plan can't answer: its targets, and the rank, of which the smallest is always enough."""


def plan_from_here(design: ChosenDesign, moved: str | None, runs: Path) -> tuple[PlanFromHere, str]:
    """Return the plan along the control that was moved last, and its question in words.

    :param runs: folder of run directories.
    :raises InputError: if nothing can be planned along it.
    """
    control = _planned(design, moved)
    verb = "maximize" if control.key in _MAXIMIZED else "minimize"
    stops = list(filter(None, control.stops))
    values = [control.typed(stop) for stop in stops]
    if control.listed:
        question: dict[str, Any] = {verb: control.key, "values": values if verb == "minimize" else values[::-1]}
        option = ["--set", f"plan={json.dumps(question)}"]
    else:
        question = {verb: control.key, "range": [values[0], values[-1]]}
        option = [f"--{verb}", f"{control.key}={values[0]}..{values[-1]}"]
    loaded = design.loaded.with_values({"plan": question})
    command = f"{design.command('plan')} {shlex.join(option)}"
    most = "largest" if verb == "maximize" else "smallest"
    low, high = (f"{stop}{control.unit}" for stop in (stops[0], stops[-1]))
    words = f"the {most} value of “{control.words}” from {low} to {high} that meets the SLO"
    return PlanFromHere(loaded, free_folder(loaded, question, runs), command), words


def _planned(design: ChosenDesign, moved: str | None) -> Control:
    able = [
        control
        for control in design.opened.controls
        if control.stops and not control.disabled and not control.key.startswith(_NEVER)
    ]
    found = next((control for control in able if control.key == moved), None)
    found = found or next((control for control in able if control.key == "cache.gpu.slots"), None)
    if found is None:
        raise ScenarioError("a plan needs a number to look for", hint="move a slider first, such as GPU slots")
    return found
