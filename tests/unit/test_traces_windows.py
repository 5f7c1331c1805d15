"""Requests made from ServeGen windows keep the counts, the gaps and the lengths that the windows give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trace_samples as samples
from scipy import stats

from sim.errors import TraceError
from sim.spec.sections.trace_source import Trace
from sim.traffic.traces.client_lengths import tokens_at
from sim.traffic.traces.read import TraceData, read_trace
from sim.traffic.traces.windows import shape_of_cv

HEADER = "client_id,timestamp_s,rate_rps,cv,pattern,shape,scale\n"
LAWS = ("Gamma,0.25,", "Weibull,0.5,", "Gamma,4,", ",,", "Weibull,2.5,")


def write(folder: Path, rows: list[str]) -> Trace:
    (folder / "w.csv").write_text(HEADER + "\n".join(rows) + "\n")
    return Trace(file=str(folder / "w.csv"))


def counts(data: TraceData, clients: int, windows: int) -> np.ndarray:
    """Return requests by client and window; the first request of all is taken for the trace's beginning."""
    assert data.adapter is not None
    place = np.array([int(name) for name in data.names])[data.adapter]
    window = np.minimum(data.arrival_s // 600, windows - 1).astype(int)
    return np.bincount(place * windows + window, minlength=clients * windows).reshape(clients, windows)


def test_a_client_of_one_request_a_window_keeps_its_count(tmp_path: Path) -> None:
    clients, windows = 3000, 8
    # Every client goes through other laws, in another order.
    rows = [
        f"{client},{600 * window},{1 / 600},1,{LAWS[(client + window * (1 + client % 3)) % 5]}"
        for window in range(windows)
        for client in range(clients)
    ]
    found = counts(read_trace(write(tmp_path, rows)), clients, windows)
    # The mean of each window and law is 1; the clients are independent. z beyond 4.5 in 40 means: p < 3e-4.
    for window in range(windows):
        law = (np.arange(clients) + window * (1 + np.arange(clients) % 3)) % 5
        for kind in range(5):
            some = found[law == kind, window]
            assert abs(some.mean() - 1) < 4.5 * some.std(ddof=1) / len(some) ** 0.5, (window, LAWS[kind])


def test_a_regular_client_stays_regular_across_windows(tmp_path: Path) -> None:
    shapes = (10_000, 12_000)  # cv 0.01 and 0.009
    rows = [f"0,{600 * window},{1.5 / 600},0,Gamma,{shapes[window % 2]}," for window in range(100)]
    data = read_trace(write(tmp_path, rows))
    gaps = np.diff(data.arrival_s)
    assert len(data) in (149, 150, 151)
    assert np.abs(gaps - 400).max() < 0.06 * 400  # six standard deviations of 0.01


def test_gaps_within_a_window_have_its_law(tmp_path: Path) -> None:
    laws = {"Gamma,0.4": stats.gamma(0.4, scale=1 / 0.4), "Weibull,0.6": stats.weibull_min(0.6)}
    for law, exact in laws.items():
        gaps = np.diff(read_trace(write(tmp_path, [f"0,0,50,1,{law},"])).arrival_s)
        assert stats.kstest(gaps / gaps.mean() * exact.mean(), exact.cdf).pvalue > 0.001


def test_silent_windows_have_no_requests(tmp_path: Path) -> None:
    data = read_trace(write(tmp_path, ["0,0,0.1,1,,,", "0,1200,0.1,1,,,", "0,1800,0,1,,,"]))
    first = data.arrival_s + 0.0
    gap = np.diff(first).max()
    assert gap > 600 - 30  # the window from 600 to 1,200 is missing
    assert first[-1] < 1800


def test_a_client_does_not_depend_on_the_others(tmp_path: Path) -> None:
    rows = [f"{client},{600 * window},0.05,1,Gamma,0.5," for window in range(5) for client in range(4)]
    every = read_trace(write(tmp_path, rows))
    some = read_trace(write(tmp_path, [row for row in rows if not row.startswith("0,")]))
    assert every.adapter is not None
    assert some.adapter is not None
    for name in some.names:
        one = every.arrival_s[every.adapter == every.names.index(name)]
        other = some.arrival_s[some.adapter == some.names.index(name)]
        assert np.diff(one) == pytest.approx(np.diff(other), abs=1e-9)


def test_a_limit_takes_the_first_requests(tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_bytes(samples.WINDOWS)
    trace = Trace(file=str(tmp_path / "w.csv"))
    whole, part = read_trace(trace), read_trace(trace, 20)
    assert part.arrival_s.tolist() == whole.arrival_s[:20].tolist()
    assert whole.notes == ()


def test_rates_are_multiplied_by_the_population(tmp_path: Path) -> None:
    trace = write(tmp_path, ["0,0,10,1,,,"])
    # Poisson counts of 6,000 and 600: within 4.5 standard deviations.
    assert len(read_trace(trace)) == pytest.approx(6000, abs=4.5 * 6000**0.5)
    few = read_trace(trace.model_copy(update={"population_scale": 0.1}))
    assert len(few) == pytest.approx(600, abs=4.5 * 600**0.5)
    with pytest.raises(TraceError, match="too small for a single request"):
        read_trace(trace.model_copy(update={"population_scale": 1e-9}))


def test_the_shape_comes_from_the_cv_where_there_is_no_shape(tmp_path: Path) -> None:
    family = np.array(["weibull", "gamma", "weibull"])
    shape = shape_of_cv(family, np.array([1.0, 2.0, 5**0.5]))
    assert shape == pytest.approx([1, 0.25, 0.5], rel=1e-9)
    text = samples.WINDOWS.replace(b",shape,scale", b",unused,scale").replace(b"1.42", b"0")
    (tmp_path / "w.csv").write_bytes(text)
    with pytest.raises(TraceError, match=r"w\.csv:3: cv: not a coefficient of variation"):
        read_trace(Trace(file=str(tmp_path / "w.csv")))


def test_a_week_without_a_limit_is_too_much(shared: Path) -> None:
    trace = Trace(file=str(shared / "traces" / "servegen_m-large_week1_windows.csv"))
    with pytest.raises(TraceError, match=r"too many requests \(got 126,735,343, .*; give workload.requests"):
        read_trace(trace)
    assert len(read_trace(trace, 1000)) == 1000


@pytest.mark.slow
def test_a_real_week_keeps_its_count(shared: Path) -> None:
    file = shared / "traces" / "servegen_m-small_week1_windows.csv"
    expected = 600 * np.genfromtxt(file, delimiter=",", skip_header=1, usecols=2).sum()
    trace = Trace(file=str(file), population_scale=2e5 / expected)
    found = np.array([len(read_trace(trace, seed=seed)) for seed in range(6)])
    # Student's t with five degrees of freedom: 6.87 at 99.9 %. Bursts make counts vary by far more than Poisson's.
    assert abs(found.mean() - 2e5) < 6.87 * found.std(ddof=1) / 6**0.5
    assert found.std(ddof=1) < 0.05 * 2e5  # else the line above says nothing


@pytest.mark.parametrize("pool", ["m-large", "m-small"])
def test_lengths_come_from_the_pool_of_the_windows(shared: Path, pool: str) -> None:
    folder = shared / "traces"
    trace = Trace(
        file=str(folder / f"servegen_{pool}_week1_windows.csv"),
        lengths_file=str(folder / "servegen_client_token_lengths.csv"),
    )
    data = read_trace(trace, 5000)
    assert f"of pool {pool}" in data.notes[0]
    assert len(data.prompt_tokens) == 5000


def has_quantiles(lengths: np.ndarray, quantiles: np.ndarray) -> bool:
    """Say whether shares of 50, 90 and 99 % lie below the quantiles, to one token and one in ten thousand."""
    below = [np.mean(lengths < quantile - 0.5) for quantile in quantiles]
    up_to = [np.mean(lengths <= quantile + 0.5) for quantile in quantiles]
    wanted = np.array([0.5, 0.9, 0.99])
    return bool(np.all(np.array(below) <= wanted + 1e-4) and np.all(np.array(up_to) >= wanted - 1e-4))


def test_lengths_have_the_quantiles_and_the_mean(tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_bytes(samples.WINDOWS)
    (tmp_path / "l.csv").write_bytes(samples.LENGTHS)
    data = read_trace(Trace(file=str(tmp_path / "w.csv"), lengths_file=str(tmp_path / "l.csv")))
    assert data.notes == (f"{tmp_path}/l.csv: lengths of 2 clients of pool m; 1 is not in it and has its average",)
    assert data.prompt_tokens.min() >= 1
    shares = (np.arange(100_000) + 0.5) / 100_000
    for mean, *quantiles in ([322.1, 269, 331, 1218], [108.4, 70, 174, 704], [633, 632, 977, 1425]):
        lengths = tokens_at(shares, np.array([mean, *quantiles]))
        assert has_quantiles(lengths, np.array(quantiles))
        assert lengths.mean() == pytest.approx(mean, rel=0.01)
        assert np.all(np.diff(lengths) >= 0)


def test_most_real_clients_keep_their_mean_length(shared: Path) -> None:
    table = np.genfromtxt(shared / "traces" / "servegen_client_token_lengths.csv", delimiter=",", skip_header=1)
    shares = (np.arange(20_000) + 0.5) / 20_000
    ratios = []
    for row in table:
        for side in (row[3:7], row[7:11]):
            lengths = tokens_at(shares, side)
            assert has_quantiles(lengths, side[1:])
            ratios.append(lengths.mean() / side[0])
    # Where a few requests are far above p99, quantiles and mean can't both be met; then the quantiles are.
    assert np.mean(np.abs(np.log(ratios)) < 0.02) > 0.9
