"""A timeline counts what has come by an instant, to the last one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sim.results.timeline import _passed


@given(st.data(), st.integers(1, 60), st.floats(1e-6, 1e9))
def test_what_has_come_by_each_instant(data: st.DataObject, parts: int, end: float) -> None:
    at = (np.arange(parts) + 0.5) * end / parts
    near = [float(x) for instant in at for x in (np.nextafter(instant, 0), instant, np.nextafter(instant, np.inf))]
    time = st.just(-1.0) | st.floats(0, end) | st.sampled_from([*near, end, end * 2, float("inf")])
    stamps = np.array(data.draw(st.lists(time, max_size=80)), dtype=np.float64)
    known = np.sort(stamps[stamps >= 0])
    assert _passed(stamps, at, end).tolist() == np.searchsorted(known, at, side="right").tolist()
