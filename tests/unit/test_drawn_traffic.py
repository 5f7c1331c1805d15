"""What is drawn: popularity, numbers of tokens, draws by number, and traffic at the edge of what a scenario may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from traffic_samples import drawn, traffic

from sim.errors import TraceError
from sim.rng import UniformDraws, stream_key, uniform_draw, uniform_draws
from sim.spec.sections.laws import FixedTokens, TokenLaw
from sim.spec.sections.traffic_laws import Popularity
from sim.spec.sections.workload import Tokens
from sim.traffic.lengths import LengthPairs, TokenLengths
from sim.traffic.popularity import concentration, read_weights, weights_of

LAW: TypeAdapter[Popularity] = TypeAdapter(Popularity)


def weights(count: int, **law: Any) -> np.ndarray:
    return weights_of(LAW.validate_python(law), count)


def test_zipf_mandelbrot_is_zipf_without_a_shift_and_flatter_with_one() -> None:
    np.testing.assert_allclose(
        weights(9, law="zipf-mandelbrot", exponent=0.9, shift=0), weights(9, law="zipf", exponent=0.9)
    )
    found = weights(400, law="zipf-mandelbrot", exponent=0.95, shift=6.5)
    np.testing.assert_allclose(found[0] / found[99], (106.5 / 7.5) ** 0.95)


def test_geometric_falls_by_its_ratio_and_underflows_quietly() -> None:
    found = weights(5000, law="geometric", ratio=1.5)
    np.testing.assert_allclose(found[:50] / found[1:51], 1.5)
    assert found[0] == pytest.approx(1 / 3)  # 1 - 1/1.5
    assert found[-1] == 0
    np.testing.assert_allclose(weights(7, law="geometric", ratio=1), 1 / 7)


def test_s_lora_power_gives_the_first_k_a_power_of_their_share() -> None:
    found = np.cumsum(weights(50, law="s-lora-power", alpha=0.3))
    np.testing.assert_allclose(found, (np.arange(1, 51) / 50) ** 0.3)
    np.testing.assert_allclose(weights(50, law="s-lora-power", alpha=1), 1 / 50)


def test_hot_cold_shares_requests_between_two_groups() -> None:
    found = weights(200, law="hot-cold", hot="10%", requests="90%")
    np.testing.assert_allclose(found[:20], 0.9 / 20)
    np.testing.assert_allclose(found[20:], 0.1 / 180)
    np.testing.assert_allclose(weights(1, law="hot-cold", hot="10%", requests="90%"), [1.0])


def test_concentration_of_a_hand_made_ranking() -> None:
    found = concentration(np.array([1, 70, 9, 20]))
    assert (found["top_1pct"], found["top_10pct"], found["top_20pct"]) == (0.7, 0.7, 0.7)
    assert concentration(np.full(50, 3))["effective_adapters"] == pytest.approx(50)
    assert concentration(np.full(200, 1))["top_20pct"] == pytest.approx(0.2)


def test_the_hottest_adapters_come_first() -> None:
    assert traffic(count=4, popularity={"law": "zipf", "exponent": 1}).hottest().tolist() == [0, 1, 2, 3]
    groups = [{"adapters": 2, "weight": 1}, {"adapters": 1, "weight": 5}]
    assert traffic(count=3, popularity={"law": "groups", "groups": groups}).hottest().tolist() == [2, 0, 1]


def test_a_weights_file_may_give_each_adapter_its_own_burstiness(tmp_path: Path) -> None:
    file = tmp_path / "w.csv"
    file.write_text("adapter_id,weight,cv\nbursty,1,6\nregular,1,0.1\nplain,2,\n")
    read = read_weights(str(file))
    assert read.names == ("bursty", "regular", "plain")
    np.testing.assert_array_equal(read.cv, [6, 0.1, np.nan])
    arrivals = {"process": "weibull", "rate": "40/s", "cv": 1, "per": "adapter"}
    made = traffic(40_000, None, arrivals=arrivals, popularity={"law": "weights", "file": str(file)})  # type: ignore[arg-type]
    times, adapters = drawn(made)
    cvs = [np.diff(times[adapters == which]) for which in range(3)]
    found = [gaps.std() / gaps.mean() for gaps in cvs]
    assert found[0] > 4
    assert found[1] == pytest.approx(0.1, abs=0.01)
    assert found[2] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a,1\nb,-1\n", 2, "not a weight"),
        ("a,1\nb,nan\n", 2, "not a weight"),
        ("a,1,0\n", 1, "not a coefficient of variation"),
        ("a,1,2,3\n", 1, "not a weight"),
        ("a,0\nb,0\n", None, "no weight above zero"),
    ],
)
def test_a_bad_weights_file_is_refused_with_its_line(tmp_path: Path, text: str, line: int | None, words: str) -> None:
    file = tmp_path / "w.csv"
    file.write_text(text)
    with pytest.raises(TraceError) as found:
        read_weights(str(file))
    assert found.value.line == line
    assert words in str(found.value)


# Traffic at the edge of what a scenario may say: it comes, or it is refused at once


@pytest.mark.parametrize(
    "workload",
    [
        {"sessions": {"requests": 1e6}},
        {"sessions": {"requests": 1e6, "gap_median": "1 ns", "gap_sigma": 0, "gap_max": "1 ns"}},
        {"sessions": {"gap_sigma": 10, "gap_max": "1 d"}},
        {"sessions": {"requests": 2, "gap_median": "1 h", "gap_max": "1 s"}},
        {"arrivals": {"process": "on-off", "rate": "10/s", "on": "1 ns", "off": "1 d"}},
        {"arrivals": {"process": "on-off", "rate": "10/s", "on": "1 d", "off": "1 ns", "per": "adapter"}},
        {"arrivals": {"process": "weibull", "rate": "10/s", "cv": 100, "per": "adapter"}},
        {"arrivals": {"process": "gamma", "rate": "10/s", "cv": 0.01}},
        {"arrivals": {"process": "diurnal", "rate": "10/s", "period": "1 ns", "swing": "100%"}},
        {"arrivals": {"process": "piecewise", "rate": "10/s", "steps": [{"time": "300 d", "level": 1e-6}]}},
    ],
)
def test_the_widest_values_give_requests_in_order(workload: dict[str, Any]) -> None:
    popularity = {"law": "geometric", "ratio": 1.5}  # of 1,837 adapters most are never asked for
    times, adapters = drawn(traffic(2000, 1837, popularity=popularity, **workload))
    assert len(times) == 2000
    assert np.isfinite(times).all()
    assert (np.diff(times) >= 0).all()
    assert adapters.max() < 1837


def test_a_cv_column_that_has_no_effect_is_told(tmp_path: Any) -> None:
    file = tmp_path / "w.csv"
    file.write_text("a,1,3\nb,2,0.5\n")
    weights = {"law": "weights", "file": str(file)}
    assert "its cv column has no effect" in traffic(count=None, popularity=weights).notes[0]  # type: ignore[arg-type]
    alone = {"process": "gamma", "rate": "1/s", "cv": 2, "per": "adapter"}
    assert not traffic(count=None, popularity=weights, arrivals=alone).notes  # type: ignore[arg-type]


# Token counts: histograms, and prompts and answers that depend on each other


LAWS = [
    {"law": "fixed", "value": 7},
    {"law": "uniform", "low": 3, "high": 90},
    {"law": "geometric", "mean": 40},
    {"law": "geometric", "mean": 1},
    {"law": "lognormal", "mean": 200, "p99": 1500, "max": 900},
    {"law": "histogram", "low": 4, "high": 1024, "shares": [5, 0, 1, 2]},
]
COUNT = 40_000


def law(data: dict[str, object]) -> TokenLaw:
    return TypeAdapter(TokenLaw).validate_python(data)  # type: ignore[no-any-return]


@pytest.mark.parametrize("data", LAWS, ids=lambda data: str(data["law"]))
def test_a_law_is_the_same_whether_lengths_depend_on_each_other_or_not(data: dict[str, object]) -> None:
    lengths = TokenLengths(law(data))
    alone = lengths.draw(np.random.default_rng(1), COUNT)
    _, dependent = LengthPairs(lengths, lengths, -0.6).draw((np.random.default_rng(2), np.random.default_rng(3)), COUNT)
    assert dependent.min() >= 1
    for share in (0.02, 0.2, 0.5, 0.8, 0.98):
        # 4.5 standard errors of a sample quantile, as a range of shares: both are samples.
        slack = 4.5 * np.sqrt(2 * share * (1 - share) / COUNT)
        low, high = np.quantile(alone, (max(share - slack, 0), min(share + slack, 1)))
        assert low - 1 <= np.quantile(dependent, share) <= high + 1


def test_the_correlation_is_that_of_normal_scores() -> None:
    wide = TokenLengths(law({"law": "uniform", "low": 1, "high": 1_000_000}))
    prompt, output = LengthPairs(wide, wide, -0.35).draw((np.random.default_rng(1), np.random.default_rng(2)), COUNT)
    # Uniform marginals of a Gaussian copula correlate by 6/pi asin(rho/2); a sample's standard error is 1/sqrt(n).
    expected = 6 / np.pi * np.arcsin(-0.35 / 2)
    assert np.corrcoef(prompt, output)[0, 1] == pytest.approx(expected, abs=4 / np.sqrt(COUNT))


def test_a_histogram_may_be_stretched_to_a_mean() -> None:
    data = {"law": "histogram", "low": 4, "high": 1024, "shares": [5, 0, 1, 2], "mean": 300}
    drawn = TokenLengths(law(data)).draw(np.random.default_rng(1), COUNT)
    assert drawn.mean() == pytest.approx(300, abs=4 * drawn.std() / np.sqrt(COUNT))


def test_a_bare_number_is_a_fixed_length() -> None:
    tokens = Tokens.model_validate({"prompt": 500, "output": {"law": "fixed", "value": 20}})
    assert tokens.prompt == FixedTokens(law="fixed", value=500)
    assert tokens == Tokens.model_validate(tokens.model_dump())
    for bad in (0, -1, 1.5, True, "500", 10**8):
        with pytest.raises(ValueError, match="prompt"):
            Tokens.model_validate({"prompt": bad})


# Draws by number: many at once are the same as one by one


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
