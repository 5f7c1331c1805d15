"""Which session a request belongs to: made sessions keep their numbers and laws, a trace's pass through."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from trace_samples import BURSTGPT, BURSTGPT_OLD
from traffic_samples import traffic

from sim.spec.sections.trace_source import Trace
from sim.spec.sections.traffic_laws import PoissonArrivals, Sessions
from sim.traffic import generate
from sim.traffic.fits.describe import SessionTable
from sim.traffic.generate import Traffic
from sim.traffic.popularity import AdapterSampler
from sim.traffic.sessions import SessionSource, mean_gap
from sim.traffic.sources import AggregateArrivals
from sim.traffic.traces.read import read_trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SIGMAS = 4
"""Standard errors that a fixed seed may be off."""
SHORT = {"gap_median": "2 s", "gap_sigma": 1, "gap_max": "10 s"}


@dataclass(frozen=True)
class Drawn:
    """All requests of a replication, shape (n,) each."""

    times: Floats
    adapters: Ints
    prompts: Ints
    sessions: Ints


def drawn(made: Traffic, replication: int = 0) -> Drawn:
    chunks = list(made.chunks(replication))
    sessions = [chunk.session for chunk in chunks if chunk.session is not None]
    assert [(len(each), each.dtype) for each in sessions] == [(len(chunk), np.int64) for chunk in chunks]
    columns = ([getattr(chunk, name) for chunk in chunks] for name in ("arrival_s", "adapter", "prompt_tokens"))
    return Drawn(*map(np.concatenate, columns), np.concatenate(sessions))


def first_times(times: Floats, sessions: Ints) -> Floats:
    """Return the time of the first request of every number; all numbers up to the highest must be there."""
    numbers, firsts = np.unique(sessions, return_index=True)
    np.testing.assert_array_equal(numbers, np.arange(len(numbers)))
    return np.asarray(times[firsts])


def test_traffic_without_sessions_has_no_numbers(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(BURSTGPT_OLD)
    for made in (traffic(100), traffic(None, arrivals=None, trace={"file": str(file)})):
        assert [chunk.session for chunk in made.chunks(0)] == [None]


def test_sizes_are_geometric() -> None:
    made = traffic(80_000, 50, arrivals={"process": "poisson", "rate": "2/s"}, sessions={"requests": 4.5, **SHORT})
    found = drawn(made)
    table = SessionTable(found.times, found.adapters, found.sessions)
    # Those that began in the run, so long before its end that they are there whole: one of 1e10 has more than 100.
    sizes = table.requests[(table.begin_s > 10) & (table.begin_s < found.times[-1] - 100 * 10)]
    count, share = len(sizes), 1 / 4.5
    assert count > 15_000
    assert sizes.mean() == pytest.approx(4.5, abs=SIGMAS * math.sqrt((1 - share) / count) / share)
    for more in (1, 2, 5, 10, 20):
        beyond = (1 - share) ** more
        assert (sizes > more).mean() == pytest.approx(beyond, abs=SIGMAS * math.sqrt(beyond * (1 - beyond) / count))


def test_gaps_within_a_session_are_those_of_the_law() -> None:
    # One adapter for all, so that only the numbers tell sessions apart.
    made = traffic(60_000, 1, arrivals={"process": "poisson", "rate": "20/s"}, sessions=SHORT)
    found = drawn(made)
    # Of the requests just before the end, the long gaps are missing.
    last = found.times[-1] - 10
    order = np.lexsort((found.times, found.sessions))
    times, sessions = found.times[order], found.sessions[order]
    follows = (np.diff(sessions) == 0) & (times[:-1] < last)
    gaps = np.diff(times)[follows]
    assert len(gaps) > 40_000
    assert gaps.max() <= 10 + 1e-6
    for most, score in ((1, -math.log(2)), (2, 0.0), (5, math.log(2.5)), (9.999, math.log(9.999 / 2))):
        below = math.erfc(-score / math.sqrt(2)) / 2
        assert (gaps < most).mean() == pytest.approx(below, abs=SIGMAS * math.sqrt(below * (1 - below) / len(gaps)))


@pytest.mark.parametrize("size", [1, 7, 256, 20_000])
def test_equal_gaps_show_whose_every_request_is_whatever_the_blocks(size: int) -> None:
    """Of gaps of exactly 2 s, sessions under way included: a request with another's number would break its row."""
    law = Sessions.model_validate({"requests": 5, "gap_median": "2 s", "gap_sigma": 0, "gap_max": "10 s"})
    chooser = AdapterSampler(np.full(3, 1 / 3))
    poisson = PoissonArrivals.model_validate({"process": "poisson", "rate": "4/s"})
    starts = AggregateArrivals(poisson, 4.0, chooser, 1, repeat(size))
    blocks = list(SessionSource(starts, 4.0, law, chooser, 1).blocks(0, 20_000))
    times, adapters = (np.concatenate([block[part] for block in blocks]) for part in (0, 1))
    sessions = np.concatenate([block.sessions for block in blocks if block.sessions is not None])
    order = np.lexsort((times, sessions))
    same = np.diff(sessions[order]) == 0
    np.testing.assert_allclose(np.diff(times[order])[same], 2.0, rtol=0, atol=1e-6)
    assert (np.diff(adapters[order])[same] == 0).all()
    assert same.mean() > 0.7
    in_order(times, sessions, under_way=4 * 4 * 2, longest_s=2)


def in_order(times: Floats, sessions: Ints, under_way: float, longest_s: float) -> None:
    """Assert that sessions under way at the start have the lowest numbers, and the others theirs by their beginnings.

    :param under_way: their mean number (Poisson); all of them have a request in the first ``longest_s``.
    """
    firsts = first_times(times, sessions)
    out_of_order = np.flatnonzero(np.diff(firsts) < 0) + 1
    count = int(out_of_order[-1])
    assert count == pytest.approx(under_way, abs=SIGMAS * math.sqrt(under_way))
    assert firsts[:count].max() < longest_s
    assert firsts[-1] > 10 * longest_s


@pytest.mark.parametrize("arrivals", [{"process": "poisson"}, {"process": "gamma", "cv": 3, "per": "adapter"}])
def test_sessions_under_way_come_first_then_the_others_as_they_begin(arrivals: dict[str, Any]) -> None:
    law = Sessions.model_validate({"requests": 6, **SHORT})
    made = traffic(50_000, 20, arrivals={"rate": "60/s", **arrivals}, sessions={"requests": 6, **SHORT})
    found = drawn(made)
    in_order(found.times, found.sessions, under_way=10 * 5 * mean_gap(law), longest_s=10)


def test_of_sessions_of_one_request_everyone_has_its_own_number() -> None:
    found = drawn(traffic(70_000, sessions={"requests": 1}))
    np.testing.assert_array_equal(found.sessions, np.arange(70_000))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trace of 200 sessions of 4 requests in 1,000 s and 50 requests without; prompts tell whose a request is."""
    rng = np.random.default_rng(2)
    rows = [
        (begin + turn * 2.5, number)
        for number, begin in enumerate(rng.uniform(0, 990, 200).tolist())
        for turn in range(4)
    ]
    rows += [(time, 200 + number) for number, time in enumerate(rng.uniform(0, 1000, 50).tolist())]
    path = tmp_path_factory.mktemp("sessions") / "t.csv"
    path.write_text(
        "timestamp_s,adapter_id,session_id,input_tokens,output_tokens\n"
        + "".join(f"{time!r},a{s % 7},{f's{s}' if s < 200 else ''},{s + 1},3\n" for time, s in sorted(rows))
    )
    return str(path)


def recorded(file: str, requests: int | None = None, duration: str | None = None, **scales: float) -> Drawn:
    workload: dict[str, Any] = {"arrivals": None, "trace": {"file": file, **scales}}
    if duration is not None:
        workload["duration"] = duration
    made = traffic(requests, None, **workload)  # type: ignore[arg-type]
    return drawn(made)


def by_appearance(whose: Ints) -> list[int]:
    """Number by first appearance, the slow way."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(each, len(numbers)) for each in whose.tolist()]


@pytest.mark.parametrize("block", [97, generate.BLOCK])
@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize(("requests", "duration", "count"), [(None, None, 850), (123, None, 123), (None, "50 s", None)])
def test_a_traces_sessions_pass_through(
    file: str,
    requests: int | None,
    duration: str | None,
    count: int | None,
    scale: float,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(generate, "BLOCK", block)
    found = recorded(file, requests, duration, time_scale=scale)
    if count is None:
        whole = recorded(file, time_scale=scale)
        count = int(np.count_nonzero(whole.times < 50))
        assert 20 < count < 300
    assert len(found.sessions) == count
    assert found.sessions.tolist() == by_appearance(found.prompts)


@pytest.mark.parametrize(("requests", "duration"), [(None, None), (400, None), (None, "300 s")])
@pytest.mark.parametrize("scale", [0.4, 2, 2.5])
def test_more_users_have_sessions_of_their_own(
    file: str, requests: int | None, duration: str | None, scale: float
) -> None:
    whole = read_trace(Trace(file=file, population_scale=scale))
    found = recorded(file, requests, duration, population_scale=scale)
    np.testing.assert_array_equal(found.sessions, whole.session[: len(found.sessions)])
    assert found.sessions.tolist() == by_appearance(found.sessions)
    if duration is None:
        assert len(found.sessions) == min(requests or len(whole), len(whole))


def test_sessions_of_a_trace_without_adapters_ask_for_drawn_ones(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(BURSTGPT)
    found = recorded(str(file))
    assert found.sessions.tolist() == [0, 0, 1]  # the failed request is left out, one without a name is its own
    assert found.adapters.max() > 0
