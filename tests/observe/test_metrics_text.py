"""The text format of Prometheus: what a page of /metrics may look like, and what is no sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.studies.observe.engine_metrics import MetricSample, read_metrics
from sim.studies.observe.study import BucketHistogram


@pytest.mark.parametrize(
    ("line", "sample"),
    [
        ("up 1", MetricSample(("up", ()), 1.0)),
        ('a:b{x="1",y="2"} 3.5e2', MetricSample(("a:b", (("x", "1"), ("y", "2"))), 350.0)),
        ('a{y="2",x="1"} 3', MetricSample(("a", (("x", "1"), ("y", "2"))), 3.0)),
        ('a{x="a\\"b\\\\c\\nd,}{"} 3', MetricSample(("a", (("x", 'a"b\\c\nd,}{'),)), 3.0)),
        ('a{x="1",} 3 1700000000500', MetricSample(("a", (("x", "1"),)), 3.0, 1_700_000_000.5)),
        ("a{} 3", MetricSample(("a", ()), 3.0)),
    ],
)
def test_samples_are_read(line: str, sample: MetricSample) -> None:
    assert list(read_metrics(f"# HELP a b\n# TYPE a counter\n{line}\n\n")) == [sample]


@pytest.mark.parametrize(
    "line",
    ["", "# a 1", "a", "a NaN", "a +Inf", "a -1", 'a{x="1} 3', "a{x=1} 3", "1a 3", "a 1 2 3", "a " + "9" * 70_000],
)
def test_what_is_no_sample_is_left_out(line: str) -> None:
    assert list(read_metrics(f"{line}\nb 2\n")) == [MetricSample(("b", ()), 2.0)]


@given(st.text(max_size=200))
def test_any_text_can_be_read(text: str) -> None:
    assert all(math.isfinite(sample.value) for sample in read_metrics(text))


HISTOGRAM = BucketHistogram((1.0, 2.0, 5.0, math.inf), (10.0, 20.0, 60.0, 10.0), 400.0)


def test_quantiles_are_those_of_promql() -> None:
    # histogram_quantile(0.5): rank 50 of 100, in the bucket 2 to 5, of which 30 lie below
    found = HISTOGRAM.quantile(0.5)
    assert (found.low, found.high) == (2.0, 5.0)
    assert found.value == pytest.approx(2 + 3 * 20 / 60)
    assert found.holds(2.0)
    assert not found.holds(5.1)
    last = HISTOGRAM.quantile(0.99)
    assert (last.value, last.low, last.high) == (5.0, 5.0, math.inf)


@given(
    st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(lambda counts: sum(counts) > 0), st.floats(0.02, 0.98)
)
def test_spread_values_have_the_counts_and_the_mean(counts: list[int], place: float) -> None:
    bounds = (10.0, 20.0, 50.0, math.inf)
    edges = [(0.0, 10.0), (10.0, 20.0), (20.0, 50.0), (50.0, 100.0)]
    total = sum(count * (low + (high - low) * place) for count, (low, high) in zip(counts, edges, strict=True))
    histogram = BucketHistogram(bounds, tuple(map(float, counts)), total)
    values = histogram.spread(10_000, 100.0)
    assert values.mean() == pytest.approx(histogram.mean, rel=0.02)
    ends = np.cumsum(counts) / sum(counts) * len(values)
    for (low, high), count, end in zip(edges, counts, ends, strict=True):
        of_bucket = values[math.ceil(end - count / sum(counts) * len(values)) : math.floor(end)]
        assert ((of_bucket >= low) & (of_bucket <= high)).all()
