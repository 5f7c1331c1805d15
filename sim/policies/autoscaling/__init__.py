"""How many replicas a fleet should have, decided from one reading of its metrics after another. No clock, no servers.

Each policy is a class with ``desired``; ``make_policy`` finds the one that a scenario names.
"""

from sim.policies.autoscaling.behavior import Behavior
from sim.policies.autoscaling.fleet_reading import Reading, ScalingPolicy
from sim.policies.autoscaling.make_policy import make_policy

__all__ = ["Behavior", "Reading", "ScalingPolicy", "make_policy"]
