"""Traffic at the edge of what a scenario may say: it comes, or it is refused at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from traffic_samples import drawn, traffic


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
