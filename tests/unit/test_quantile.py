"""Quantiles are NumPy's, to the last bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sim.results.statistics import Sampled, mean_of, quantile_of, quantiles_of_windows

SECONDS = st.floats(0, 1e6, allow_subnormal=False) | st.integers(0, 3).map(float)


@given(
    st.lists(SECONDS, min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99]) | st.floats(0, 1, exclude_max=True)
)
def test_a_quantile_is_that_of_numpy(values: list[float], q: float) -> None:
    array = np.array(values)
    assert quantile_of(array, q) == float(np.quantile(array, q))
    assert list(array) == values, "they stay in their order"


@given(
    st.lists(SECONDS, min_size=40, max_size=300),
    st.lists(st.sampled_from([0.0, 0.5, 0.99, 1.0]) | st.floats(0, 1), min_size=1),
    st.integers(1, 3),
)
def test_quantiles_of_a_sample_are_those_of_numpy(values: list[float], q: list[float], replications: int) -> None:
    array = np.array(values)
    section = np.arange(len(values)) * 4 * replications // len(values)
    sample = Sampled(array, section, sections=4, replications=replications)
    assert sample.quantiles(q) == [float(x) for x in np.quantile(array, q)]
    assert sample.quantile(0.5, "s").value == float(np.quantile(array, 0.5))
    assert list(array) == values, "they stay in their order"


@given(st.lists(SECONDS, min_size=1, max_size=300))
def test_a_mean_is_that_of_numpy(values: list[float]) -> None:
    assert mean_of(np.array(values)) == float(np.mean(values))


@given(
    st.lists(SECONDS, min_size=1, max_size=300),
    st.lists(st.tuples(st.integers(0, 299), st.integers(0, 299)), min_size=1, max_size=30),
    st.sampled_from([0.5, 0.9, 0.99]),
)
def test_windows_that_overlap_have_the_quantiles_of_each_alone(
    values: list[float], windows: list[tuple[int, int]], q: float
) -> None:
    array, count = np.array(values), len(values)
    first = np.array([begin % count for begin, _ in windows])
    last = np.array([begin + 1 + more % (count - begin) for begin, (_, more) in zip(first, windows, strict=True)])
    expected = [quantile_of(array[a:b], q) for a, b in zip(first, last, strict=True)]
    assert quantiles_of_windows(array, first, last, q).tolist() == expected
    assert list(array) == values, "they stay in their order"
