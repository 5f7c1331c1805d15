"""Whatever a trace is like, it is described, and fitted or not, without a failure: ties, one adapter, one instant."""

from __future__ import annotations

import json
from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.render.html import page
from sim.results.run_directory.result_files import json_ready
from sim.studies.trace.report import trace_report
from sim.studies.trace.scenario import scenario_text
from sim.studies.trace.study import study_trace
from sim.traffic.traces.data import TraceData


@st.composite
def traces(draw: st.DrawFn) -> TraceData:
    gaps = draw(st.lists(st.sampled_from((0.0, 0.0, 1e-9, 0.01, 1.0, 30.0, 1e6)), min_size=1, max_size=60))
    times = np.cumsum(gaps)
    count = len(times)
    adapters = draw(st.lists(st.integers(0, draw(st.sampled_from((0, 1, 9)))), min_size=count, max_size=count))
    codes = np.unique(adapters, return_inverse=True)[1].astype(np.int32)
    named, lengths, sessions = (draw(st.booleans()) for _ in range(3))
    tokens = np.array(draw(st.lists(st.integers(1, 9), min_size=count, max_size=count)), dtype=np.int32)
    ids = np.array(draw(st.lists(st.integers(0, 5), min_size=count, max_size=count)), dtype=np.int32)
    return TraceData(
        times - times[0],
        tokens if lengths else None,
        tokens[::-1].copy() if lengths else None,
        codes if named else None,
        ids if sessions else None,
        tuple(f"a{code}" for code in range(int(codes.max()) + 1)) if named else (),
        None,
        (),
        {},
    )


@settings(max_examples=80)
@given(traces(), st.sampled_from((0.01, 0.5, 0.9, 1.0)), st.sampled_from((3, 20, 400_000)))
def test_every_trace_is_described_and_fitted_or_not(trace: TraceData, share: float, most: int) -> None:
    with (
        patch("sim.studies.trace.study.LEAST_FITTED", 3),
        patch("sim.studies.trace.study.MOST_FITTED", most),
        patch("sim.traffic.fits.popularity_fit._DRAWS", 3),
    ):
        study = study_trace(trace, "t.csv", fit_share=share, seed=1)
    facts = study.facts
    assert facts.requests == len(trace)
    json.dumps(json_ready(facts.to_json()), allow_nan=False)
    if facts.curve is not None:
        assert all(0 <= ratio <= 1 for ratio in (*facts.curve.real, *facts.curve.shuffled, *facts.curve.independent))
        assert facts.curve.real == sorted(facts.curve.real, reverse=True)
    if facts.fit is not None and facts.fit.slots:
        assert facts.fit.requests_fitted <= most
        assert facts.fit.requests_fitted + facts.fit.requests_checked <= len(trace)
    text = None if study.model is None else scenario_text(study, trace, "t")
    assert "loraplan" in page(trace_report(facts, "t.csv", "loraplan trace t.csv", text))
