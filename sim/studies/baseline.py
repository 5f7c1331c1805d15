"""The baseline of a scenario: the same traffic without what changes, to see what the change itself did."""

from __future__ import annotations

from sim.spec.scenario import Scenario


def baseline_of(scenario: Scenario) -> Scenario | None:
    """Return the scenario without its rollouts and the faults that begin later; None where nothing changes.

    A fault that is there from the start is part of normal operation, unless nothing else changes: then its own
    effect is the question.
    """
    from_start = tuple(fault for fault in scenario.faults if getattr(fault, "at", 0.0) <= 0)
    changes = bool(scenario.rollouts) or len(from_start) < len(scenario.faults)
    if not changes and not scenario.faults:
        return None
    # Without a rollout, no prefix can come from an older version.
    kept = tuple(fault for fault in from_start if fault.kind != "named-prefixes") if changes else ()
    return scenario.model_copy(update={"rollouts": (), "faults": kept})
