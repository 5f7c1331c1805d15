"""What arrives is what its law says: rates, burstiness, sessions, turnover. Seeds are fixed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from traffic_samples import drawn, traffic

from sim.policies.replay.lru_curve import lru_curve
from sim.spec.sections.traffic_laws import Drift
from sim.traffic import generate
from sim.traffic.arrivals import weibull_shape
from sim.traffic.fits.describe import SessionTable, dispersion, sessions_by_gap
from sim.traffic.popularity import Turnover

SIGMAS = 4
"""Standard errors that a fixed seed may be off."""


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("process", ["gamma", "weibull"])
def test_renewal_gaps_have_the_mean_and_the_variation_asked_for(process: str, cv: float) -> None:
    gaps = np.diff(drawn(traffic(400_000, arrivals={"process": process, "rate": "10/s", "cv": cv}))[0])
    assert gaps.mean() == pytest.approx(0.1, rel=SIGMAS * cv / math.sqrt(len(gaps)))
    # The variance's own standard error, from the sample's fourth moment.
    centred = (gaps - gaps.mean()) ** 2
    error = centred.std() / math.sqrt(len(gaps)) / centred.mean() / 2
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=SIGMAS * error + SIGMAS * cv / math.sqrt(len(gaps)))


def test_the_shape_of_a_weibull_law_gives_its_variation() -> None:
    for cv in (0.01, 0.2, 1.0, 3.0, 20.0, 99.0):
        shape = float(weibull_shape(np.array([cv]))[0])
        squared = math.exp(math.lgamma(1 + 2 / shape) - 2 * math.lgamma(1 + 1 / shape)) - 1
        assert math.sqrt(squared) == pytest.approx(cv, rel=1e-6)


def test_on_off_arrivals_disperse_as_an_interrupted_poisson_process_does() -> None:
    # Fischer and Meier-Hellstern 1993: for rate b while on, on → off at r, off → on at s, the index of dispersion of
    # counts tends to 1 + 2 b r / (r + s)^2; in windows of length t it is below that by a share of about 1/((r + s) t).
    on, off, window = 5.0, 15.0, 2000.0
    busy, leave, back = 10 * (on + off) / on, 1 / on, 1 / off
    limit = 1 + 2 * busy * leave / (leave + back) ** 2
    expected = limit - (limit - 1) / ((leave + back) * window)
    arrivals = {"process": "on-off", "rate": "10/s", "on": f"{on} s", "off": f"{off} s"}
    times, _ = drawn(traffic(8_000_000, arrivals=arrivals))
    windows = times[-1] / window
    assert dispersion(times, window) == pytest.approx(expected, rel=SIGMAS * math.sqrt(2 / windows))
    assert len(times) / times[-1] == pytest.approx(10, rel=SIGMAS * math.sqrt(limit / len(times)))


def test_a_modulated_poisson_process_disperses_as_theory_says() -> None:
    # Two states are an on-off process on top of a constant one: the same formula with the difference of the rates.
    low_s, high_s, window = 4.0, 1.0, 500.0
    arrivals = {
        "process": "mmpp",
        "rate": "10/s",
        "states": [{"level": 1, "time": f"{low_s} s"}, {"level": 6, "time": f"{high_s} s"}],
    }
    low = 10 / ((1 * low_s + 6 * high_s) / (low_s + high_s))
    leave, back = 1 / high_s, 1 / low_s
    share = high_s / (low_s + high_s)
    variance = (5 * low) ** 2 * share * (1 - share)  # of the rate; its correlation time is 1 / (leave + back)
    expected = 1 + 2 * variance / (leave + back) / 10 * (1 - 1 / ((leave + back) * window))
    times, _ = drawn(traffic(4_000_000, arrivals=arrivals))
    windows = times[-1] / window
    assert dispersion(times, window) == pytest.approx(expected, rel=SIGMAS * math.sqrt(2 / windows))


def test_piecewise_and_diurnal_rates_follow_their_course() -> None:
    steps = [{"time": "1 h", "level": 1}, {"time": "1 h", "level": 0}, {"time": "2 h", "level": 3}]
    arrivals = {"process": "piecewise", "rate": "10/s", "steps": steps}
    times, _ = drawn(traffic(None, duration="12 h", arrivals=arrivals))
    counts = np.bincount((times % 14400 // 3600).astype(int), minlength=4) / 3
    # levels 1, 0, 3, 3 have the mean 7/4, and the rate is 10: so 10/1.75 for each unit of level
    expected = np.array([1, 0, 3, 3]) * 3600 * 10 / 1.75
    assert counts[1] == 0
    np.testing.assert_allclose(counts, expected, atol=SIGMAS * math.sqrt(expected.max() / 3))
    sine = {"process": "diurnal", "rate": "10/s", "swing": "50%", "period": "4 h", "peak_at": "1 h"}
    times, _ = drawn(traffic(None, duration="40 h", arrivals=sine))
    phase = times % 14400
    for centre, rate in ((3600, 15), (10800, 5)):
        near = np.count_nonzero(np.abs(phase - centre) < 120) / 10 / 240
        assert near == pytest.approx(rate, rel=SIGMAS / math.sqrt(rate * 2400) + 0.01)


@pytest.mark.parametrize(
    "arrivals",
    [
        {"process": "weibull", "cv": 6, "per": "adapter"},
        {"process": "gamma", "cv": 4, "per": "adapter"},
        {"process": "gamma", "cv": 0.3, "per": "adapter"},
        {"process": "on-off", "on": "10 s", "off": "90 s", "per": "adapter"},
    ],
)
def test_adapters_with_arrivals_of_their_own_keep_their_rate_from_the_first_second_on(arrivals: dict[str, Any]) -> None:
    made = traffic(
        None,
        2000,
        duration="100 s",
        arrivals={**arrivals, "rate": "200/s"},
        popularity={"law": "zipf", "exponent": 0.5},
    )
    early, late, shares = [], [], np.zeros(2000)
    for replication in range(40):
        times, adapters = drawn(made, replication)
        early.append(np.count_nonzero(times < 5))
        late.append(np.count_nonzero(times >= 5))
        shares += np.bincount(adapters, minlength=2000)
    for counts, seconds in ((early, 5), (late, 95)):
        error = np.std(counts, ddof=1) / math.sqrt(40)
        assert np.mean(counts) == pytest.approx(200 * seconds, abs=SIGMAS * error)
    wanted = np.arange(1, 2001.0) ** -0.5
    top = shares[:200].sum() / shares.sum()
    assert top == pytest.approx(wanted[:200].sum() / wanted.sum(), rel=0.05)


@pytest.mark.parametrize(
    "arrivals",
    [
        {"process": "on-off", "on": "5 s", "off": "45 s"},
        {"process": "gamma", "cv": 5},
        {"process": "weibull", "cv": 5},
        {"process": "mmpp", "states": [{"level": 0, "time": "45 s"}, {"level": 1, "time": "5 s"}]},
    ],
    ids=lambda arrivals: arrivals["process"],
)
def test_one_stream_keeps_its_rate_from_the_first_second_on(
    arrivals: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A replication reads 40 requests, and bursts of five times as many: of a block of 65,536 the rest is thrown away.
    monkeypatch.setattr(generate, "BLOCK", 1024)
    made = traffic(None, 5, duration="2 s", arrivals={**arrivals, "rate": "20/s"})
    counts = [sum(len(times) for times, _ in made.arrivals(replication)) for replication in range(1500)]
    assert np.mean(counts) == pytest.approx(40, abs=SIGMAS * np.std(counts, ddof=1) / math.sqrt(len(counts)))


@pytest.mark.parametrize("size", [1, 1.1, 1.5, 4.5, 30, 1e5])
@pytest.mark.parametrize("sigma", [0, 1, 2.5])
def test_sessions_of_any_size_keep_the_rate_from_the_first_second_on(size: float, sigma: float) -> None:
    sessions = {"requests": size, "gap_median": "20 s", "gap_sigma": sigma, "gap_max": "10 min"}
    made = traffic(None, 20, duration="300 s", arrivals={"process": "poisson", "rate": "5/s"}, sessions=sessions)
    spans = np.zeros((60, 3))
    for replication in range(60):
        times, _ = drawn(made, replication)
        spans[replication] = np.bincount((times / 100).astype(int), minlength=3)
    for counts in spans.T:
        assert counts.mean() == pytest.approx(500, abs=SIGMAS * counts.std(ddof=1) / math.sqrt(60))


def test_sessions_keep_the_rate_from_the_first_second_on_and_stay_with_their_adapter() -> None:
    made = traffic(None, 100, duration="2 h", arrivals={"process": "poisson", "rate": "2/s"}, sessions={})
    early = [np.count_nonzero(drawn(made, replication)[0] < 600) for replication in range(60)]
    assert np.mean(early) == pytest.approx(1200, abs=SIGMAS * np.std(early, ddof=1) / math.sqrt(60))
    # So few and so many adapters that sessions of one adapter hardly ever meet: their pauses separate them.
    rare = traffic(60_000, 2_000_000, arrivals={"process": "poisson", "rate": "1/s"}, sessions={"gap_max": "20 min"})
    times, adapters = drawn(rare)
    table = SessionTable(times, adapters, sessions_by_gap(times, adapters, 1201))
    whole = (table.begin_s > 1300) & (table.begin_s < times[-1] - 40_000)
    sizes = table.requests[whole]
    assert sizes.mean() == pytest.approx(4.5, abs=SIGMAS * sizes.std() / math.sqrt(len(sizes)))
    assert (sizes == 1).mean() == pytest.approx(1 / 4.5, abs=SIGMAS * math.sqrt(0.2 / len(sizes)))
    below = (table.gaps_s < 120).mean()
    assert below == pytest.approx(0.5, abs=SIGMAS * 0.5 / math.sqrt(len(table.gaps_s)))
    logs = np.log(table.gaps_s[table.gaps_s < 1199] / 120)
    kept = math.erf(math.log(10) / math.sqrt(2)) / 2 + 0.5  # share of the normal law that is not cut at 20 min
    assert (table.gaps_s >= 1199).mean() == pytest.approx(1 - kept, abs=SIGMAS * math.sqrt(0.01 / len(table.gaps_s)))
    assert logs.std() < 1


def test_few_sessions_at_a_time_make_lru_miss_less_than_independent_draws() -> None:
    law = {"law": "zipf-mandelbrot", "exponent": 0.95, "shift": 6.5}
    poisson = {"process": "poisson", "rate": "0.09/s"}
    slots = [16, 32]
    alone = lru_curve(drawn(traffic(20_000, 400, arrivals=poisson, popularity=law))[1]).miss_ratios(slots)
    together = lru_curve(drawn(traffic(20_000, 400, arrivals=poisson, popularity=law, sessions={}))[1])
    # model.md: independent draws overstate misses 2.5 to 4 times when concurrent sessions per slot are below 1.
    ratio = alone / together.miss_ratios(slots)
    assert (ratio > 2.2).all()
    assert (ratio < 5).all()


def test_churn_replaces_the_share_asked_for_and_the_new_ones_are_new() -> None:
    made = traffic(None, 500, duration="2 d", arrivals={"process": "poisson", "rate": "3/s"}, churn={"share": "20%"})
    times, adapters = drawn(made)
    newcomers = np.unique(adapters[adapters >= 500])
    # One every 86400 / 100 s: 200 in two days; the last ones may not have been asked for yet.
    assert 195 <= len(newcomers) <= 200
    first = np.array([times[np.argmax(adapters == which)] for which in newcomers])
    came = (newcomers - 499) * 864.0
    assert (first >= came).all()
    assert np.median(first - came) < 1000  # each is asked for every 500 / 3 s
    replaced = np.unique(adapters[times > 172000])
    assert np.count_nonzero(replaced < 500) == pytest.approx(500 * (1 - 1 / 500) ** 200, abs=SIGMAS * 10)


def test_drift_lets_the_share_asked_for_trade_places() -> None:
    drift = Drift.model_validate({"share": "10%", "every": "1 h"})
    turnover = Turnover(drift, None, 1000, 0, 1, 0)
    places, before, moved = np.arange(1000), np.arange(1000), []
    for hour in range(1, 41):
        after = turnover.adapters(places, np.full(1000, hour * 3600.0))
        assert sorted(after.tolist()) == list(range(1000))
        moved.append(np.count_nonzero(after != before))
        before = after
    # A hundred are drawn and shuffled; of these one stays where it was on average, with a variance of one.
    assert max(moved) <= 100
    assert np.mean(moved) == pytest.approx(99, abs=SIGMAS / math.sqrt(40))
    assert (turnover.adapters(places, np.full(1000, 40 * 3600.0 + 1)) == before).all()


def test_lengths_by_adapter_differ_between_adapters_and_keep_their_law() -> None:
    from sim.traffic.fits.describe import by_adapter

    tokens = {"prompt": {"law": "lognormal", "mean": 600, "p99": 3000}, "output": {"law": "geometric", "mean": 100}}
    for share in (0.0, 0.6):
        made = traffic(60_000, 400, tokens={**tokens, "by_adapter": share})
        chunks = list(made.chunks(0))
        prompt, output = chunks[0].prompt_tokens, chunks[0].output_tokens
        assert by_adapter(prompt, output, chunks[0].adapter) == pytest.approx(share, abs=0.06)
        means = [each.prompt_tokens.mean() for r in range(20) for each in made.chunks(r)]
        assert np.mean(means) == pytest.approx(600, abs=SIGMAS * np.std(means, ddof=1) / math.sqrt(20) + 1)
