"""From the section of a scenario to its policy."""

from __future__ import annotations

from sim.policies.autoscaling.behavior import Behavior, Rates
from sim.policies.autoscaling.fleet_reading import ScalingPolicy
from sim.policies.autoscaling.hpa import Hpa
from sim.policies.autoscaling.keda import Keda
from sim.policies.autoscaling.predictive import Predictive
from sim.policies.autoscaling.schedule import Schedule
from sim.policies.autoscaling.steps import Adjustment, Steps
from sim.spec.sections.autoscaling import Autoscale


def make_policy(spec: Autoscale, lead_s: float) -> ScalingPolicy:
    """Return a new policy, which has seen nothing.

    :param lead_s: mean time from the decision to start a replica until it is ready.
    """
    if spec.policy == "step":
        adjustments = [Adjustment(step.above, step.below, step.add or -(step.remove or 0)) for step in spec.steps]
        return Steps(spec.min, spec.max, adjustments, spec.cooldown)
    if spec.policy == "schedule":
        entries = sorted((entry.at, entry.replicas) for entry in spec.schedule)
        return Schedule(spec.min, spec.max, entries, spec.every)
    assert spec.target is not None, "checked by the scenario"
    rates = Rates(spec.period, spec.up_replicas, spec.up_share, spec.down_replicas, spec.down_share)
    behavior = Behavior(spec.min, spec.max, spec.stabilization_up, spec.stabilization_down, rates)
    if spec.policy == "keda":
        return Keda(spec.target, spec.tolerance, behavior, cooldown_s=spec.cooldown)
    if spec.policy == "predictive":
        return Predictive(spec.target, spec.tolerance, behavior, history_s=spec.history, lead_s=lead_s)
    return Hpa(spec.target, spec.tolerance, behavior)
