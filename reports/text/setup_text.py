"""What a result is about, in one line: device, model, engine, and the profile that its costs come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sim.results.point import Point
from sim.spec.engines import engine_words


def setup_line(points: Sequence[Point]) -> str:
    """Return on what the points were simulated; where they differ, every value. Empty: they don't say."""
    setups = [point.setup for point in points if point.setup is not None]
    profiles = _listed(f"{each.profile} ({each.status})" for each in setups if each.profile)
    parts = [
        _listed(each.device for each in setups),
        _listed(each.model for each in setups),
        _listed(engine_words(each.engine) for each in setups),
        f"profile {profiles}" if profiles else "all times given by the scenario" if setups else "",
    ]
    return " · ".join(part for part in parts if part)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(word for word in words if word))
