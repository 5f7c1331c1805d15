"""Where the rules of a vetting draw their lines: each named, with its meaning and its source."""

from __future__ import annotations

from sim.spec.base import Strict


class Thresholds(Strict):
    """Lines between a healthy run and a failure; set with ``--threshold name=value``."""

    nonfinite_losses: int = 1
    """Entries with a loss of NaN or infinity from which a run has diverged. Source: a loss that is no number has no
    gradient, and Adam's moments keep a NaN for good."""
