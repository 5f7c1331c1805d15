"""Names and thresholds for what a cache-only replay shows."""

from __future__ import annotations

from sim.spec.policies import EVICTIONS

CLAIRVOYANT = next(entry.name for entry in EVICTIONS if entry.needs_future)
SAME = 0.05
"""Two miss ratios within this share of the larger one are called about the same."""
