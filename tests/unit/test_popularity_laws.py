from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter
from traffic_samples import drawn, traffic

from sim.errors import TraceError
from sim.spec.sections.traffic_laws import Popularity
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
