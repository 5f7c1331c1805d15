"""Draws by number: many at once are the same as one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sim.rng import UniformDraws, stream_key, uniform_draw, uniform_draws

KEYS = st.integers(0, 2**64 - 1)


@given(key=KEYS, numbers=st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=30))
def test_many_at_once_are_those_of_one_by_one(key: int, numbers: list[int]) -> None:
    drawn = uniform_draws(key, np.array(numbers, dtype=np.int64)).tolist()
    assert drawn == [uniform_draw(key, number) for number in numbers]
    assert all(0 <= each < 1 for each in drawn)


@given(key=KEYS, steps=st.lists(st.sampled_from((0, 1, 1, 1, 700, 1023, 1024, 5000, -1, -1030, -9000)), max_size=40))
def test_draws_in_any_order_are_those_of_their_numbers(key: int, steps: list[int]) -> None:
    draws, number = UniformDraws(key), 0
    for step in steps:
        number += step
        assert draws.of(number) == uniform_draw(key, number)


def test_draws_of_requests_are_spread_evenly() -> None:
    draws = UniformDraws(stream_key(1, 0, "router"))
    counts = np.bincount([int(draws.of(number) * 8) for number in range(80_000)])
    assert abs(counts - 10_000).max() < 500  # five standard deviations
