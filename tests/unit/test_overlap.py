"""Seconds that loads spend in each section."""

from __future__ import annotations

import numpy as np
import pytest

from sim.results.sample_data import _overlap


def test_loads_are_cut_at_the_bounds_of_sections() -> None:
    found = _overlap(np.array([0.5, 1.5]), np.array([2.5, 1.75]), np.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    assert found == pytest.approx([0.5, 1.25, 0.5, 0.0])


def test_a_section_without_loads_is_not_below_zero_by_rounding() -> None:
    rng = np.random.default_rng(1)
    start = rng.uniform(0, 100, 50)
    held = _overlap(start, start + 1e-3, np.linspace(0, 4000, 41))
    assert held.min() == 0.0
    assert held.sum() == pytest.approx(0.05, abs=1e-6)


def test_a_short_section_keeps_its_digits_late_in_a_long_run() -> None:
    # Arrivals in bursts leave sections of nanoseconds between others of hours.
    start = np.arange(0.1, 40000.0, 7.3)
    bounds = np.array([0.0, 30000.0, 30000.0 + 2e-9, 40000.0])
    held = _overlap(start, start + 7.0, bounds)
    assert held[1] == bounds[2] - bounds[1], "a load runs over all of it"
