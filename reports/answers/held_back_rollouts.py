"""Whether a rollout was held back."""

from __future__ import annotations

from collections.abc import Sequence

from sim.results.point import Point


def is_held(points: Sequence[Point]) -> bool:
    """Return whether a rollout was held back at one of these points."""
    return any(point.held_back for point in points)
