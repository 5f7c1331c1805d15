"""time_scale keeps order and locality; population_scale adds users, whole sessions at a time."""

from __future__ import annotations

import tracemalloc
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from sim.errors import TraceError
from sim.spec.sections.trace_source import Trace
from sim.traffic.traces.read import TraceData, read_trace, with_population

SESSIONS, TURNS = 1500, 4


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trace of 1,500 sessions of four requests each, every session with one of 50 adapters."""
    rng = np.random.default_rng(1)
    start = rng.uniform(0, 1000, SESSIONS)
    times = start[:, None] + np.arange(TURNS) * 2.5
    rows = sorted((float(times[s, turn]), s) for s in range(SESSIONS) for turn in range(TURNS))
    path = tmp_path_factory.mktemp("scales") / "t.csv"
    path.write_text(
        "timestamp_s,adapter_id,session_id,input_tokens,output_tokens\n"
        + "".join(f"{time!r},a{s % 50},s{s},{s + 1},{1 + s % 9}\n" for time, s in rows)
    )
    return str(path)


def adapters_of_sessions(data: TraceData) -> dict[int, tuple[int, ...]]:
    """Return the prompt lengths (here: which session of the file) by session."""
    found: dict[int, list[int]] = {}
    for session, tokens in zip(data.session.tolist(), data.prompt_tokens.tolist(), strict=True):
        found.setdefault(session, []).append(tokens)
    return {session: tuple(tokens) for session, tokens in found.items()}


def test_time_scale_changes_times_only(file: str) -> None:
    plain, fast = read_trace(Trace(file=file)), read_trace(Trace(file=file, time_scale=4))
    assert np.array_equal(fast.arrival_s, plain.arrival_s / 4)
    assert plain.adapter is not None
    assert fast.adapter is not None
    assert np.array_equal(fast.adapter, plain.adapter)
    assert fast.names == plain.names


@pytest.mark.parametrize("scale", [2, 3])
def test_copies_hold_every_session_so_many_times(file: str, scale: int) -> None:
    plain, data = read_trace(Trace(file=file)), read_trace(Trace(file=file, population_scale=scale))
    assert len(data) == scale * len(plain)
    assert data.arrival_s[0] == 0
    assert np.all(np.diff(data.arrival_s) >= 0)
    assert data.arrival_s[-1] < plain.arrival_s[-1] * len(plain) / (len(plain) - 1)
    sessions = adapters_of_sessions(data)
    assert len(sessions) == scale * SESSIONS
    assert Counter(sessions.values()) == {(s + 1,) * TURNS: scale for s in range(SESSIONS)}
    assert data.session is not None
    assert np.array_equal(np.unique(data.session, return_index=True)[1].argsort(), np.arange(scale * SESSIONS))
    assert data.adapter is not None
    assert plain.adapter is not None
    assert np.array_equal(np.bincount(data.adapter), scale * np.bincount(plain.adapter))


def test_copies_are_the_trace_at_other_times(file: str) -> None:
    plain, data = read_trace(Trace(file=file)), read_trace(Trace(file=file, population_scale=2))
    times = plain.arrival_s
    assert np.isin(times, data.arrival_s + 0.0).sum() >= len(times) - 1  # the first copy stays where it was
    period = times[-1] * len(times) / (len(times) - 1)
    other = np.setdiff1d(data.arrival_s, times)
    gaps = np.sort(np.round(np.diff(np.concatenate((other, [other[0] + period]))), 6))
    own = np.sort(np.round(np.diff(np.concatenate((times, [period]))), 6))
    assert np.abs(gaps - own).max() < 2e-6  # a rotation keeps all gaps


def test_a_fraction_keeps_whole_sessions(file: str) -> None:
    data = read_trace(Trace(file=file, population_scale=0.3))
    sessions = adapters_of_sessions(data)
    assert {len(tokens) for tokens in sessions.values()} == {TURNS}
    # binomial: 4 standard deviations of 18
    assert len(sessions) == pytest.approx(0.3 * SESSIONS, abs=4 * (SESSIONS * 0.3 * 0.7) ** 0.5)
    assert len(data.names) == 50


def test_parts_of_copies_add_up(file: str) -> None:
    sessions = len(adapters_of_sessions(read_trace(Trace(file=file, population_scale=2.5))))
    assert sessions == pytest.approx(2.5 * SESSIONS, abs=4 * (SESSIONS * 0.25) ** 0.5)


def test_without_sessions_single_requests_are_kept(file: str, tmp_path: Path) -> None:
    text = Path(file).read_text().replace("session_id", "visit")
    (tmp_path / "t.csv").write_text(text)
    data = read_trace(Trace(file=str(tmp_path / "t.csv"), population_scale=0.5))
    count = SESSIONS * TURNS
    assert len(data) == pytest.approx(count / 2, abs=4 * (count / 4) ** 0.5)
    assert data.session is None


@pytest.mark.parametrize("scale", [0.4, 3, 40])
def test_a_limit_takes_the_first_requests(file: str, scale: float) -> None:
    trace = Trace(file=file, population_scale=scale)
    whole, part = read_trace(trace), read_trace(trace, 500)
    assert len(part) == 500
    assert np.array_equal(part.arrival_s, whole.arrival_s[:500])
    assert part.adapter is not None
    assert np.array_equal(part.adapter, whole.adapter[:500])


@pytest.mark.parametrize("scale", [2.5, 40, 3000])
@pytest.mark.parametrize("limit", [1, 7, 2000])
def test_a_limit_takes_the_first_of_requests_at_the_same_times(scale: float, limit: int) -> None:
    """Times in whole seconds, in a trace without sessions: rotated copies meet a horizon in the midst of ties."""
    rng = np.random.default_rng(3)
    times = np.sort(rng.integers(0, 30, 500)).astype(np.float64)
    data = TraceData(
        times - times[0], None, None, rng.integers(0, 9, 500).astype(np.int32), None, tuple("abcdefghi"), None, (), {}
    )
    whole = with_population(data, scale, None, 1, "t")
    part = with_population(data, scale, limit, 1, "t")
    count = min(limit, len(whole))
    assert part.arrival_s.tolist() == whole.arrival_s[:count].tolist()
    assert part.adapter.tolist() == whole.adapter[:count].tolist()


def test_few_requests_of_many_copies_need_little() -> None:
    """The first 1,000 requests of 2,000 copies: every copy is cut before its requests are touched."""
    count, copies = 20_000, 2000
    data = TraceData(np.arange(count) * 0.01, None, None, None, None, (), None, (), {})
    with_population(data, 3, 10, 1, "t")  # what is imported on the way doesn't count
    tracemalloc.start()
    try:
        assert len(with_population(data, copies, 1000, 1, "t")) == 1000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A few hundred bytes a copy for its (mostly empty) arrays; one that is rotated first holds 8 bytes a row.
    assert peak < copies * count, peak


def test_the_seed_decides_the_offsets(file: str) -> None:
    trace = Trace(file=file, population_scale=2)
    first, same, other = read_trace(trace), read_trace(trace, seed=1), read_trace(trace, seed=2)
    assert np.array_equal(first.arrival_s, same.arrival_s)
    assert not np.array_equal(first.arrival_s, other.arrival_s)


def test_one_request_can_be_scaled(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("timestamp_s,adapter_id,input_tokens,output_tokens\n7,a,1,1\n")
    assert len(read_trace(Trace(file=str(tmp_path / "t.csv"), population_scale=3, time_scale=2))) == 3
    with pytest.raises(TraceError, match="no request is left at this population_scale"):
        read_trace(Trace(file=str(tmp_path / "t.csv"), population_scale=1e-9))


@pytest.mark.promise("requests of a trace: 50 million")
def test_too_many_requests_need_a_limit(file: str) -> None:
    trace = Trace(file=file, population_scale=10_000)
    with pytest.raises(TraceError, match=r"has too many requests \(got 60,000,000, allowed: up to 50,000,000"):
        read_trace(trace)
    assert len(read_trace(trace, 10)) == 10


@pytest.mark.parametrize(
    "settings",
    [
        {"time_scale": 0},
        {"population_scale": -1},
        {"time_scale": float("nan")},
        {"lengths_file": "l.csv", "format": "csv"},
        {"format": "cvs"},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Trace.model_validate({"file": "t.csv", **settings})


def test_only_new_users_destroy_locality(shared: Path) -> None:
    """The numbers of docs/trace.md: LRU with 8 slots, one request after the other."""
    file = str(shared / "traces" / "synth_sessions_low_concurrency.csv")
    found = []
    for settings in ({}, {"time_scale": 4}, {"population_scale": 4}):
        data = read_trace(Trace.model_validate({"file": file, **settings}))
        found.append(lru_miss_ratio(data.adapter.tolist(), 8))
    assert found[0] == found[1] == pytest.approx(0.636, abs=5e-4)
    assert found[2] == pytest.approx(0.898, abs=5e-4)


def lru_miss_ratio(adapters: list[int], slots: int) -> float:
    cache: OrderedDict[int, None] = OrderedDict()
    misses = 0
    for adapter in adapters:
        misses += adapter not in cache
        cache[adapter] = None
        cache.move_to_end(adapter)
        if len(cache) > slots:
            cache.popitem(last=False)
    return misses / len(adapters)
