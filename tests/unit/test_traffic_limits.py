"""Traffic at the edge of what a scenario may say: it comes, or it is refused at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from traffic_samples import drawn, traffic

from sim.errors import ScenarioError

TINY = [{"level": 0, "time": "1 ns"}, {"level": 1, "time": "1 ns"}]


@pytest.mark.parametrize(
    ("workload", "count", "key"),
    [
        ({"arrivals": {"process": "mmpp", "rate": "6/s", "states": TINY}}, 10, "workload.arrivals.states"),
        ({"drift": {"share": "1%", "every": "1 ms"}}, 100, "workload.drift.every"),
        ({"drift": {"share": "100%", "every": "1 s"}}, 2_000_000, "workload.drift"),
        ({"churn": {"share": "100%", "every": "1 us"}}, 100, "workload.churn"),
        ({"sessions": {"gap_sigma": 10, "gap_max": "1000 d"}}, 100, "workload.sessions"),
    ],
)
def test_what_changes_too_often_to_be_simulated_is_refused(workload: dict[str, Any], count: int, key: str) -> None:
    with pytest.raises(ScenarioError) as found:
        traffic(10_000, count, **workload)
    assert found.value.key == key
    assert "up to" in str(found.value)


@pytest.mark.parametrize("process", ["gamma", "weibull"])
@pytest.mark.parametrize("cv", [1e-170, 0.009, 101])
def test_gaps_of_no_usable_variation_are_refused(process: str, cv: float) -> None:
    with pytest.raises(ValidationError):
        traffic(arrivals={"process": process, "rate": "1/s", "cv": cv})


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
