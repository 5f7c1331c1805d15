"""States of metrics: files keep them, and run directories of versions without states still say why."""

from __future__ import annotations

import pytest

from reports.text.metric_text import remark, unsettled, why
from sim.results.metric_state import OLD_NOTES, SETTLED, TRUSTED, Cause, Kind, State, stored_state
from sim.results.point import Metric, Point

KNOWN = [cause for cause in Cause if cause is not Cause.UNKNOWN]


@pytest.mark.parametrize("cause", KNOWN)
def test_an_old_note_gives_back_its_state(cause: Cause) -> None:
    state = State(cause, found=1234, needed=35_000, others=2, share=0.973)
    note = OLD_NOTES[cause].format(found=1234, needed=35_000, others=2, share=0.973)
    found = stored_state(None, note, None, settled=cause.kind in TRUSTED)
    assert found.cause is cause
    for name in ("found", "needed", "others", "share"):
        if f"{{{name}" in OLD_NOTES[cause]:
            assert getattr(found, name) == getattr(state, name)


@pytest.mark.parametrize("cause", Cause)
def test_a_point_keeps_states_and_notes(cause: Cause) -> None:
    metric = Metric(1.5, 1.4, 1.6, "s", State(cause, 12, 3500, 1, 0.97, text="another version said so"))
    data = Point({}, {"e2e_p99_s": metric}).to_json()
    (read,) = Point.from_json(data).metrics.values()
    assert (read.note, read.settled, read.state.cause) == (metric.note, metric.settled, cause)
    old_note = OLD_NOTES.get(cause, "{text}").format(
        found=12, needed=3500, others=1, share=0.97, text=metric.state.text
    )
    without = {key: value for key, value in data["metrics"]["e2e_p99_s"].items() if key != "state"} | {"note": old_note}
    (old,) = Point.from_json({**data, "metrics": {"e2e_p99_s": without}}).metrics.values()
    assert (old.note, old.settled) == (metric.note, metric.settled)


def test_an_unknown_note_stays_as_it_is() -> None:
    found = stored_state(None, "only 40 requests", None, settled=False)
    assert (found.kind, found.note) == (Kind.UNKNOWN, "only 40 requests")
    assert stored_state({"cause": "OF_THE_FUTURE"}, "", 1.0, settled=True) == SETTLED


@pytest.mark.parametrize("cause", KNOWN)
def test_every_cause_has_words(cause: Cause) -> None:
    assert bool(why("e2e_p99_s", State(cause, 10, 35))) == (cause is not Cause.NONE)


@pytest.mark.parametrize("note", ["", " (means of 16 requests)"])
def test_states_of_versions_that_counted_something_else_say_how_much_longer(note: str) -> None:
    old = stored_state(
        None, f"the queue swung 487 times{note}, 1,266 are needed: run more requests", 1.5, settled=False
    )
    named = stored_state({"cause": "FEW_CYCLES_OF_MEANS", "found": 487, "needed": 1266}, "", 1.5, settled=False)
    assert old == named == State(Cause.FEW_EFFECTIVE, 487, 1266)
    assert remark("e2e_p99_s", Metric(1.5, 1.4, 1.6, "s", named)) == (
        "unsettled: the run is too short for a reliable p99 E2E; run about 2.6 times as long"
    )


def test_too_short_a_run_says_how_many_requests_it_needs() -> None:
    state = State(Cause.FEW_EFFECTIVE, 2308, 6000, requests=26_000)
    metric = Metric(1.5, 1.4, 1.6, "s", state)
    said = "unsettled: the run is too short for a reliable p99 E2E; run about 26,000 requests"
    assert remark("e2e_p99_s", metric) == said
    assert unsettled("e2e_p99_s", metric) == f"{said} (--set workload.requests=26000)"
    assert metric.note == "the effective sample size is 2,308, 6,000 are needed; run about 26,000 requests"
    assert stored_state(state.to_json(), "", 1.5, settled=False) == state
