"""Quantiles are NumPy's, to the last bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sim.results.statistics import quantile_of

SECONDS = st.floats(0, 1e6, allow_subnormal=False) | st.integers(0, 3).map(float)


@given(
    st.lists(SECONDS, min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99]) | st.floats(0, 1, exclude_max=True)
)
def test_a_quantile_is_that_of_numpy(values: list[float], q: float) -> None:
    array = np.array(values)
    assert quantile_of(array, q) == float(np.quantile(array, q))
    assert list(array) == values, "they stay in their order"
