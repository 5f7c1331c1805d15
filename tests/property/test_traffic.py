"""Whatever a workload says, its requests come in order, as many as asked for, and the same each time."""

from __future__ import annotations

from typing import Any

import numpy as np
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from traffic_samples import drawn, traffic

from sim.traffic.generate import BLOCK, Traffic
from sim.traffic.sources import RequestBlock, cut

PROCESSES: list[dict[str, Any]] = [
    {"process": "poisson"},
    {"process": "gamma", "cv": 3.0},
    {"process": "weibull", "cv": 0.5},
    {"process": "weibull", "cv": 8.0},
    {"process": "on-off", "on": "2 s", "off": "30 s"},
    {"process": "piecewise", "steps": [{"time": "10 s", "level": 0}, {"time": "5 s", "level": 2}], "cv": 2.0},
    {"process": "diurnal", "period": "1 min", "swing": "100%", "peak_at": "7 s"},
    {"process": "mmpp", "states": [{"level": 0, "time": "3 s"}, {"level": 5, "time": "1 s"}]},
]


@st.composite
def workloads(draw: st.DrawFn) -> dict[str, Any]:
    arrivals = dict(draw(st.sampled_from(PROCESSES))) | {"rate": draw(st.sampled_from(("10/s", "3/min", "90/s")))}
    if arrivals["process"] in ("gamma", "weibull", "on-off"):
        arrivals["per"] = draw(st.sampled_from(("aggregate", "adapter")))
    found: dict[str, Any] = {"arrivals": arrivals}
    found["popularity"] = draw(
        st.sampled_from(
            (
                {"law": "uniform"},
                {"law": "zipf", "exponent": 1.2},
                {"law": "zipf-mandelbrot", "exponent": 0.95, "shift": 6.5},
                {"law": "geometric"},
                {"law": "s-lora-power", "alpha": 0.3},
                {"law": "hot-cold", "hot": "10%", "requests": "90%"},
            )
        )
    )
    if draw(st.booleans()):
        found["sessions"] = draw(
            st.sampled_from(({}, {"requests": 1}, {"requests": 30, "gap_median": "1 ms", "gap_sigma": 3}))
        )
    if draw(st.booleans()):
        found["drift"] = draw(st.sampled_from(({"share": "10%", "every": "1 min"}, {"share": "100%", "every": "1 h"})))
    if draw(st.booleans()):
        found["churn"] = draw(st.sampled_from(({}, {"share": "100%", "every": "20 s"})))
    return found


@examples(150)
@given(workloads(), st.integers(1, 60), st.integers(1, 3000), st.integers(0, 5))
def test_requests_come_in_order_as_many_as_asked_for_and_the_same_each_time(
    workload: dict[str, Any], count: int, requests: int, seed: int
) -> None:
    made = traffic(requests, count, seed, **workload)
    times, adapters = drawn(made)
    assert len(times) == len(adapters) == requests
    assert times[0] >= 0
    assert (np.diff(times) >= 0).all()
    assert adapters.min() >= 0
    assert adapters.max() < len(made.population)
    again = drawn(traffic(requests, count, seed, **workload))
    np.testing.assert_array_equal(times, again[0])
    np.testing.assert_array_equal(adapters, again[1])
    other, _ = drawn(made, replication=1)
    assert not np.array_equal(times, other)


@settings(max_examples=60)
@given(workloads(), st.integers(1, 60), st.integers(10, 2000))
def test_a_longer_run_begins_with_the_same_requests(workload: dict[str, Any], count: int, requests: int) -> None:
    # Churn deals places to as many newcomers as the whole run has, and their places must not depend on how many.
    short, long = (drawn(traffic(n, count, **workload)) for n in (requests, 3 * requests))
    np.testing.assert_array_equal(short[0], long[0][:requests])
    if "churn" not in workload:
        np.testing.assert_array_equal(short[1], long[1][:requests])


def test_lengths_by_adapter_stay_with_their_requests_and_adapters() -> None:
    tokens = {"by_adapter": "60%", "output": {"law": "lognormal", "mean": 100, "p99": 500}}
    few, many, longer = (
        next(traffic(requests, count, tokens=tokens, popularity={"law": "geometric"}, churn=churn).chunks(0))
        for requests, count, churn in ((500, 50, None), (500, 60, None), (1500, 50, {"share": "1%"}))
    )
    np.testing.assert_array_equal(few.adapter, many.adapter)  # a geometric law hardly knows its tail
    for other in (many, longer):
        same = few.adapter == other.adapter[:500]
        assert same.mean() > 0.9
        np.testing.assert_array_equal(few.prompt_tokens[same], other.prompt_tokens[:500][same])
        np.testing.assert_array_equal(few.output_tokens[same], other.output_tokens[:500][same])


@settings(max_examples=60)
@given(workloads(), st.integers(1, 60), st.sampled_from(("1 s", "7 min")))
def test_a_duration_ends_the_requests(workload: dict[str, Any], count: int, duration: str) -> None:
    workload["arrivals"]["rate"] = "20/s"
    made = traffic(None, count, duration=duration, **workload)
    pieces = list(made.arrivals(0))
    times = np.concatenate([np.empty(0), *(times for times, _ in pieces)])
    assert (times < made.end_s).all()
    longer, _ = drawn(traffic(len(times) + 1, count, **workload))
    assert longer[-1] >= made.end_s


def test_requests_come_in_blocks_whatever_makes_them() -> None:
    for more in ({}, {"sessions": {}}, {"arrivals": {"process": "gamma", "rate": "10/s", "cv": 2, "per": "adapter"}}):
        pieces = [len(times) for times, _ in traffic(BLOCK + 100, **more).arrivals(0)]
        assert pieces == [BLOCK, 100]


def sessions_of(made: Traffic) -> NDArray[np.int64] | None:
    found = [chunk.session for chunk in made.chunks(0)]
    numbers = [each for each in found if each is not None]
    assert len(numbers) in (0, len(found))
    return np.concatenate(numbers) if numbers else None


@settings(max_examples=80)
@given(workloads(), st.integers(1, 60), st.integers(1, 2000))
def test_sessions_have_one_adapter_and_keep_their_numbers_in_a_longer_run(
    workload: dict[str, Any], count: int, requests: int
) -> None:
    made = traffic(requests, count, **workload)
    short, long = sessions_of(made), sessions_of(traffic(3 * requests, count, **workload))
    assert (short is None) == (long is None) == ("sessions" not in workload)
    if short is None or long is None:
        return
    np.testing.assert_array_equal(short, long[:requests])
    adapters = drawn(made)[1]
    assert short.min() >= 0
    assert len(np.unique(np.stack((short, adapters)), axis=1).T) == len(np.unique(short))


@given(
    st.lists(st.lists(st.sampled_from((0.0, 0.5, 1.0)), min_size=1, max_size=12), max_size=6),
    st.integers(1, 9),
    st.none() | st.integers(1, 40),
    st.none() | st.sampled_from((0.0, 1.0, 4.0, 90.0)),
    st.booleans(),
)
def test_requests_are_cut_at_every_size_whatever_the_blocks(
    gaps: list[list[float]], size: int, most: int | None, end_s: float | None, sessions: bool
) -> None:
    rows: list[tuple[float, int, int]] = []
    blocks = []
    for block in gaps:
        first = len(rows)
        for gap in block:
            rows.append((gap + (rows[-1][0] if rows else 0.0), len(rows) % 7, 3 * len(rows)))
        times, adapters, numbers = zip(*rows[first:], strict=True)
        blocks.append(RequestBlock(np.array(times), np.array(adapters), np.array(numbers) if sessions else None))
    found = list(cut(blocks, size, most, end_s))
    wanted = [row for row in rows if end_s is None or row[0] < end_s][:most]
    assert [len(each.times) for each in found] == [len(wanted[at : at + size]) for at in range(0, len(wanted), size)]
    assert [row[:2] for row in wanted] == [row for each in found for row in zip(each.times, each.adapters, strict=True)]
    numbered = [number for each in found if each.sessions is not None for number in each.sessions.tolist()]
    assert numbered == ([row[2] for row in wanted] if sessions else [])
