"""Quantities read, refused, and written so that they read back to the same number."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from sim.spec import units

times = st.floats(0, 1e10)
rates = st.floats(1e-9, 1e9)
shares = st.floats(min_value=0, max_value=1, allow_subnormal=False)
sizes = st.one_of(
    st.integers(min_value=1, max_value=10**15),
    st.builds(lambda number, unit: number * unit, st.integers(1, 1000), st.sampled_from([10**3, 10**6, 10**9, 10**12])),
)


@given(times)
@example(0.1 + 0.2)
@example(1e-9)
def test_times_read_back(seconds: float) -> None:
    assert units.parse_seconds(units.format_seconds(seconds)) == seconds


@given(sizes)
@example(2**30)
@example(999_999_999_999_999)
@example(123_456_789_012_300)
@example(10**15)
def test_sizes_read_back(size: int) -> None:
    assert units.parse_bytes(units.format_bytes(size)) == size


@given(rates)
@example(1 / 3)
def test_rates_read_back(rate: float) -> None:
    assert units.parse_rate(units.format_rate(rate)) == rate


@given(shares)
@example(0.07)
@example(0.29)
def test_shares_read_back(share: float) -> None:
    assert units.parse_share(units.format_share(share)) == share


@pytest.mark.parametrize(
    ("parse", "values"),
    [
        (units.parse_seconds, {"20 ms": 0.02, "20ms": 0.02, " 1.5 h ": 5400, "1e3 us": 1e-3, "3 µs": 3e-6}),
        (units.parse_seconds, {"2 d": 172800, ".5 min": 30, "7 ns": 7e-9, 0: 0, "0": 0}),
        (units.parse_bytes, {"10 GB": 10**10, "1 GiB": 2**30, "50MB": 50 * 10**6, "1.5 KiB": 1536, "7 B": 7}),
        (units.parse_bytes, {"2 TB": 2 * 10**12}),
        (units.parse_rate, {"12/s": 12, "90/min": 1.5, "1800 / h": 0.5, "3/ms": 3000, "2.5e2/s": 250}),
        (units.parse_share, {"5%": 0.05, 0.05: 0.05, "0.05": 0.05, 1: 1.0, "100 %": 1.0}),
    ],
)
def test_reads(parse: Callable[[object], float], values: dict[object, float]) -> None:
    assert {text: parse(text) for text in values} == pytest.approx(values, rel=1e-15)


@pytest.mark.parametrize(
    ("parse", "value", "problem"),
    [
        (units.parse_seconds, "20", "needs its unit"),
        (units.parse_seconds, 20, "needs its unit"),
        (units.parse_seconds, "20 sec", "unknown unit 'sec'"),
        (units.parse_seconds, "20 MS", "unknown unit 'MS'"),
        (units.parse_seconds, "-1 s", "negative"),
        (units.parse_seconds, "soon", "not a time"),
        (units.parse_seconds, True, "not a time"),
        (units.parse_seconds, None, "not a time"),
        (units.parse_seconds, "1e400 s", "finite"),
        (units.parse_seconds, "1 s 2 ms", "not a time"),
        (units.parse_bytes, "10", "needs its unit"),
        (units.parse_bytes, "10 gb", "unknown unit 'gb'"),
        (units.parse_bytes, "-3 MB", "negative"),
        (units.parse_bytes, [1], "not a size"),
        (units.parse_bytes, "1001 TB", "more than a thousand terabytes"),
        (units.parse_rate, 12, "not a rate"),
        (units.parse_rate, "12", "not a rate"),
        (units.parse_rate, "12/week", "unknown unit 'week'"),
        (units.parse_rate, "0/s", "above zero"),
        (units.parse_rate, "-2/s", "above zero"),
        (units.parse_rate, "1e400/s", "can be simulated"),
        (units.parse_share, "101%", "between 0 and 1"),
        (units.parse_share, 5, "between 0 and 1"),
        (units.parse_share, "5 s", "not a share"),
        (units.parse_share, float("nan"), "between 0 and 1"),
        (units.parse_share, 10**400, "between 0 and 1"),
        (units.parse_seconds, 10**400, "needs its unit"),
        (units.parse_share, False, "not a share"),
    ],
)
def test_refuses(parse: object, value: object, problem: str) -> None:
    assert callable(parse)
    with pytest.raises(PydanticCustomError) as caught:
        parse(value)
    context = caught.value.context
    assert problem in context["problem"]
    assert context["allowed"], "a refusal says what may stand there"
    assert context["got"] is value or context["got"] == value


def test_a_bare_number_is_told_how_to_be_written() -> None:
    with pytest.raises(PydanticCustomError) as caught:
        units.parse_rate(12)
    assert caught.value.context["hint"] == "write 12/s"


SECONDS = {0: "0 s", 0.0123: "12.3 ms", 2.5e-6: "2.5 µs", 1.234: "1.23 s", 0.9999: "1 s", 120: "120 s", 900: "15 min"}


def test_times_and_sizes_for_people() -> None:
    assert {value: units.human_seconds(value) for value in SECONDS} == SECONDS
    assert units.human_seconds(7200) == "2 h"
    sizes = {10**10: "10 GB", 1500: "1.5 kB", 12: "12 B", 999_999: "1 MB"}
    assert {size: units.human_bytes(size) for size in sizes} == sizes
