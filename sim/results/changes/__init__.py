"""What rollouts and faults did to requests: metrics, counts by kind, and what holding a rollout back avoided.

May hold: counts and metrics over the recordings of one point.
May not: decide whether an SLO is met, or write sentences.
"""
