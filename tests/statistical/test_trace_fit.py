"""Traffic fitted to half of a trace has the locality of the other half; fits find the laws that made the data."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from traffic_samples import drawn, traffic

from sim.policies.replay.lru_curve import lru_curve
from sim.spec.sections.trace_source import Trace
from sim.studies.trace import fits
from sim.studies.trace import study as study_module
from sim.studies.trace.facts import FitCheck
from sim.studies.trace.findings import headline, sentences
from sim.studies.trace.scenario import scenario_text
from sim.studies.trace.study import study_trace
from sim.traffic.fits.describe import dispersion, find_bursts, find_silences, without_bursts
from sim.traffic.fits.gaps import cvs_by_adapter, fit_gaps, fit_modulation
from sim.traffic.fits.popularity_fit import _FAMILIES, LEAST_P, fit_popularity
from sim.traffic.traces.data import TraceData
from sim.traffic.traces.read import read_trace

LOW = "synth_sessions_low_concurrency.csv"
SERVEGEN = ("servegen_m-large_day2_1h_8rps_requests.csv", "servegen_m-small_day3_1h_8rps_requests.csv")


def read(shared: Path, name: str) -> TraceData:
    return read_trace(Trace(file=str(shared / "traces" / name)), None)


def checked(trace: TraceData) -> FitCheck:
    check = study_trace(trace, "trace", fit_share=0.5, seed=1).facts.fit
    assert check is not None
    return check


def second_half_curve(trace: TraceData, slots: list[int]) -> np.ndarray:
    """Miss ratios of the second half, worked out apart from the study."""
    late = trace.arrival_s >= trace.arrival_s[-1] / 2
    return lru_curve(trace.adapter[late]).miss_ratios(slots)


def test_sessions_fitted_to_the_first_half_predict_the_second(shared: Path) -> None:
    trace = read(shared, LOW)
    check = checked(trace)
    assert check.chosen == "sessions"
    np.testing.assert_allclose(check.real, second_half_curve(trace, check.slots))
    inside = [place for place, slots in enumerate(check.slots) if 4 <= slots <= 64]
    assert {4, 8, 16, 32, 64} <= {check.slots[place] for place in inside}
    for place in inside:
        assert check.synthetic[place] == pytest.approx(check.real[place], abs=0.05)
        assert abs(check.independent[place] - check.real[place]) > 0.1  # what there was to gain


def test_sessions_that_the_trace_does_not_name_are_found_by_pauses(shared: Path) -> None:
    # Users of one adapter at the same time can't be distinguished, so this can't be as good.
    check = checked(replace(read(shared, LOW), session=None))
    assert check.chosen.startswith("sessions-")
    for slots, real, synthetic, independent in zip(
        check.slots, check.real, check.synthetic, check.independent, strict=True
    ):
        if 4 <= slots <= 64:
            assert abs(synthetic - real) <= abs(independent - real) / 3


@pytest.mark.parametrize("name", SERVEGEN)
def test_the_gap_between_independent_draws_and_real_clients_is_closed_by_two_thirds(shared: Path, name: str) -> None:
    trace = read(shared, name)
    check = checked(trace)
    np.testing.assert_allclose(check.real, second_half_curve(trace, check.slots))
    real, synthetic, independent = (np.array(values) for values in (check.real, check.synthetic, check.independent))
    assert np.abs(synthetic - real).mean() <= np.abs(independent - real).mean() / 3
    # At every size where independent draws are off by more than a tenth, too.
    wrong = np.abs(independent - real) > 0.1
    assert wrong.sum() >= 3
    assert (np.abs(synthetic - real)[wrong] <= np.abs(independent - real)[wrong] / 3).all()


def test_concentration_is_compared_over_the_adapters_that_were_asked_for() -> None:
    # Two halves of 200 adapters each, none of them in both: what is fitted to one is as concentrated as the other.
    times, adapters = drawn(traffic(20_000, 200))
    adapters = np.where(np.arange(20_000) < 10_000, adapters, adapters + 200)
    values = {value.name: value for value in checked(_as_trace(times, adapters)).values}
    hottest = values["requests of the hottest 10 %"]
    # 40 of 400 in both, so a fifth of the 200 there are: 20 % plus chance. Fitted weights are counts of 50, so
    # chance counts twice: about 1.4 standard deviations of 1 / sqrt(50) each, times sqrt(2) in the fitted traffic.
    assert hottest.trace == pytest.approx(0.2 * (1 + 1.4 / math.sqrt(50)), abs=0.01)
    assert hottest.synthetic == pytest.approx(0.2 * (1 + 1.4 * math.sqrt(2 / 50)), abs=0.02)


def test_only_the_first_requests_of_a_long_part_are_fitted_and_all_is_taken_from_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sim.studies.trace.study.MOST_FITTED", 2000)
    times, adapters = drawn(traffic(20_000, 30))
    trace = _as_trace(times, adapters)
    lengths = np.where(np.arange(20_000) < 2000, 100, np.where(np.arange(20_000) < 10_000, 500, 900)).astype(np.int32)
    lengths = lengths + np.arange(20_000, dtype=np.int32) % 3
    trace = replace(trace, prompt_tokens=lengths, output_tokens=lengths)
    study = study_trace(trace, "trace", fit_share=0.5, seed=1)
    assert (study.facts.fit.requests_fitted, study.facts.fit.requests_checked) == (2000, 2000)
    assert study.facts.fit.share == pytest.approx(0.1, rel=0.1)  # a tenth of the time
    values = {value.name: value for value in study.facts.fit.values}
    assert values["prompt mean"].synthetic == pytest.approx(101, abs=0.1)
    assert values["prompt mean"].trace == pytest.approx(901, abs=0.1)
    assert "Fitted to the first 0.1 of its time, 2,000 requests." in scenario_text(study, trace, "t")


def test_independent_requests_are_found_to_be_independent() -> None:
    times, adapters = drawn(traffic(20_000, 60, popularity={"law": "zipf", "exponent": 0.8}))
    check = checked(_as_trace(times, adapters))
    assert np.abs(np.array(check.synthetic) - check.real).max() < 0.02
    assert np.abs(np.array(check.independent) - check.real).max() < 0.02


@pytest.mark.parametrize(
    ("law", "value"),
    [
        ({"law": "zipf", "exponent": 0.9}, 0.9),
        ({"law": "geometric", "ratio": 1.1}, 1.1),
        ({"law": "s-lora-power", "alpha": 0.4}, 0.4),
    ],
)
def test_the_popularity_law_that_made_requests_is_the_likeliest_and_not_ruled_out(
    law: dict[str, Any], value: float
) -> None:
    _, adapters = drawn(traffic(40_000, 40, popularity=law))
    best = fit_popularity(np.bincount(adapters))[0]
    # Zipf-Mandelbrot without a shift is Zipf: it may win by chance, but for two points of AIC.
    assert best.law.law in (law["law"], "zipf-mandelbrot")
    found = next(fit for fit in fit_popularity(np.bincount(adapters)) if fit.law.law == law["law"])
    assert found.aic <= best.aic + 2
    assert found.p_value >= LEAST_P
    assert list(found.law.model_dump().values())[1] == pytest.approx(value, rel=0.02)


def test_a_shift_of_0_is_zipfs_law_and_no_other() -> None:
    steep, flat = np.array([2000, 300, 150, 90, 60]), np.array([900, 800, 700, 300, 100])
    laws = [{fit.law.law for fit in fit_popularity(asked)} for asked in (steep, flat)]
    assert (laws[1] - laws[0], "zipf" in laws[0]) == ({"zipf-mandelbrot"}, True)


@pytest.mark.slow
def test_true_laws_are_seldom_ruled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    law = {"law": "zipf-mandelbrot", "exponent": 0.95, "shift": 6.5}
    # Laws are judged apart, each with a stream of its own: the others would change no p value here.
    for other in ("zipf", "geometric", "s-lora-power", "hot-cold"):
        monkeypatch.delitem(_FAMILIES, other)
    refused = 0
    for seed in range(30):
        _, adapters = drawn(traffic(1200, 200, seed, popularity=law))  # six requests an adapter
        fits = {fit.law.law: fit for fit in fit_popularity(np.bincount(adapters), seed)}
        refused += (fits["zipf-mandelbrot"].p_value or 0) < LEAST_P
        assert (fits["uniform"].p_value or 0) < LEAST_P
    assert refused <= 3  # binomial(30, .02): four or more once in 330


def test_gap_laws_are_found_and_told_apart() -> None:
    for process, cv in (("gamma", 3.0), ("weibull", 3.0), ("gamma", 0.5)):
        gaps = np.diff(drawn(traffic(30_000, arrivals={"process": process, "rate": "5/s", "cv": cv}))[0])
        found = fit_gaps(gaps)
        assert found.process == process
        assert found.cv == pytest.approx(cv, rel=0.05)
    assert fit_gaps(np.diff(drawn(traffic(30_000))[0])).process == "poisson"


def test_every_adapter_gets_the_burstiness_of_its_own_gaps() -> None:
    arrivals = {"process": "weibull", "rate": "20/s", "cv": 4, "per": "adapter"}
    times, adapters = drawn(traffic(100_000, 20, arrivals=arrivals))
    found = cvs_by_adapter(times, adapters, 21, "weibull")
    assert len(found) == 21  # the last one was never asked for, and gets what the others have
    assert np.median(found) == pytest.approx(4, rel=0.1)
    assert found[20] == pytest.approx(np.median(found), rel=0.3)


def test_a_moving_rate_is_met_by_the_second_and_by_the_minute() -> None:
    states = [{"level": 0.5, "time": "80 s"}, {"level": 1.5, "time": "80 s"}]
    times, _ = drawn(traffic(200_000, arrivals={"process": "mmpp", "rate": "10/s", "states": states}))
    found = fit_modulation(times, 10.0)
    assert found.levels == pytest.approx((0.5, 1.5), abs=0.1)
    assert found.times_s == pytest.approx((80, 80), rel=0.3)
    again = [{"level": level, "time": f"{time} s"} for level, time in zip(found.levels, found.times_s, strict=True)]
    made, _ = drawn(traffic(200_000, arrivals={"process": "mmpp", "rate": "10/s", "states": again}), 1)
    for window in (1.0, 60.0):
        assert dispersion(made, window) == pytest.approx(dispersion(times, window), rel=0.15)
    assert fit_modulation(drawn(traffic(50_000))[0], 10.0) is None


def _as_trace(times: np.ndarray, adapters: np.ndarray) -> TraceData:
    names = tuple(str(number) for number in range(int(adapters.max()) + 1))
    return TraceData(times - times[0], None, None, adapters.astype(np.int32), None, names, None, (), {})


def poisson(rng: np.random.Generator, rate: float, begin: float, end: float) -> np.ndarray:
    return np.sort(rng.uniform(begin, end, rng.poisson(rate * (end - begin))))


def with_a_burst(rng: np.random.Generator) -> np.ndarray:
    """Three hours at 5/s, and five minutes of the second half at five times that."""
    pieces = ((5, 0, 7200), (25, 7200, 7500), (5, 7500, 10800))
    times = np.concatenate([poisson(rng, *piece) for piece in pieces])
    return times - times[0]


@pytest.mark.parametrize("seed", range(5))
def test_a_burst_is_found_where_it_is_and_nowhere_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    (burst,) = find_bursts(with_a_burst(rng))
    assert (burst.begin_s, burst.end_s) == pytest.approx((7200, 7500), abs=3)
    assert burst.times == pytest.approx(5, rel=4 / math.sqrt(7500))
    flood = np.sort(np.append(poisson(rng, 2, 0, 1500), rng.uniform(700, 705, 500)))
    (burst,) = find_bursts(flood - flood[0])
    assert (burst.begin_s, burst.end_s) == pytest.approx((700, 705), abs=3), (
        "shorter than a window, and 250 s of requests"
    )
    (same,) = find_bursts(np.floor(flood - flood[0]))  # as logs have it
    assert (same.begin_s, same.end_s) == pytest.approx((700, 705), abs=3)
    at_once = np.sort(np.append(poisson(rng, 2, 0, 1500), np.full(500, 700.0)))
    (burst,) = find_bursts(at_once)
    assert 1 <= burst.end_s - burst.begin_s < 3
    uniform = np.sort(rng.uniform(0, 86400, 200_000))
    by_day = uniform[rng.uniform(0, 1.8, 200_000) < 1 + 0.8 * np.sin(uniform * math.tau / 86400)]
    for steady in (poisson(rng, 5, 0, 10800), np.cumsum(rng.gamma(1 / 16, 16, 50_000)), by_day):
        assert find_bursts(steady) == ()


def test_fitted_traffic_has_the_burst_of_the_trace_unless_it_can_not_carry_it() -> None:
    rng = np.random.default_rng(1)
    times = with_a_burst(rng)
    names = tuple(f"a{number}" for number in range(40))
    one_by_one = np.asarray(rng.zipf(1.5, len(times)) % 40, dtype=np.int32)
    study = study_trace(TraceData(times, adapter=one_by_one, names=names), "t", fit_share=0.5, seed=1)
    assert study.facts.fit_has_bursts
    assert study.part is not None
    whole = replace(study.part, bursts=study.bursts, span_s=study.facts.span_s)
    model = study.model.with_bursts(study.bursts, study.facts.span_s)
    steps = model.workload["arrivals"]["steps"]
    assert [step["level"] for step in steps] == pytest.approx([1, 5, 1], rel=0.06)
    assert float(model.workload["arrivals"]["rate"].removesuffix("/s")) == pytest.approx(60_000 / 10800, rel=0.03)
    assert whole.rate < 5.2
    assert "has the burst of the whole trace" in scenario_text(study, TraceData(times), "t")
    # A burst of one adapter is not one of all of them.
    (burst,) = study.facts.bursts
    assert burst.hottest == ""
    one_by_one = np.where((times > 7200) & (times < 7500), np.int32(7), one_by_one)
    flood = study_trace(TraceData(times, adapter=one_by_one, names=names), "t", fit_share=0.5, seed=1).facts
    assert (flood.bursts[0].hottest, flood.bursts[0].share) == ("a7", pytest.approx(1, abs=0.01))
    assert "of them are for a7." in headline(flood)
    assert sentences(flood)[-1].endswith(
        "spreads the requests for a7 over all adapters: size with replay.yaml, not with traffic.yaml."
    )
    # An adapter with a stream of its own has its own bursts.
    assert not replace(
        study.model, workload={"arrivals": {"process": "gamma", "rate": "5/s", "cv": 4.0, "per": "adapter"}}
    ).carries_bursts


def test_silences_among_instants_and_between_bursts() -> None:
    batches = np.repeat(3600.0 * np.arange(24), 300)  # as cron sends them, in whole seconds
    assert find_silences(batches, 1000.0) == ()
    names, rng = ("a", "b"), np.random.default_rng(1)
    for times in (batches, np.repeat([0.0, 1000.0], 500)):
        study = study_trace(
            TraceData(times, adapter=np.arange(len(times), dtype=np.int32) % 2, names=names), "t", fit_share=0.5, seed=1
        )
        assert study.model is not None
        assert study.bursts == ()
    floods = [(1, 0, 5000), (40, 4940, 5000), (40, 6200, 6260), (1, 6200, 11_000)]
    times = np.sort(np.concatenate([poisson(rng, *each) for each in floods]))
    silences = find_silences(times, 1000.0)
    first, last = find_bursts(times, silences)
    assert first.end_s <= silences[0].begin_s < silences[0].end_s <= last.begin_s
    assert (first.times, last.times) == pytest.approx((41, 41), rel=0.1)


@pytest.mark.parametrize(
    ("errors", "carry", "chosen"),
    [
        ((0.001, 0.0), (False, True), 1),
        ((0.0, 0.009), (False, True), 1),
        ((0.0, 0.011), (False, True), 0),
        ((0.009, 0.0), (True, True), 1),
    ],
)
def test_models_that_carry_silences_are_preferred(
    monkeypatch: pytest.MonkeyPatch, errors: tuple[float, ...], carry: tuple[bool, ...], chosen: int
) -> None:
    """Up to a point of misses; among those that do, the nearest counts."""
    tried = [SimpleNamespace(name=str(i), words="", carries_bursts=each, pause_s=None) for i, each in enumerate(carry)]
    part: Any = SimpleNamespace(adapter=np.zeros(3, dtype=np.int32))
    sampler: Any = SimpleNamespace(
        curves=lambda model, *_: SimpleNamespace(difference=lambda _: errors[int(model.name)])
    )
    monkeypatch.setattr(study_module, "models", lambda _: iter(tried))
    monkeypatch.setattr(study_module, "number_of_models", lambda _: 2)
    best, _, _ = study_module._best(part, True, [1], sampler, lambda *_: None)
    assert best.name == str(chosen)
    plainly, _, _ = study_module._best(part, False, [1], sampler, lambda *_: None)
    assert plainly.name == str(0 if errors[0] <= min(errors) + 0.002 else 1)


@pytest.mark.parametrize("hours", [(0, 0.5, 3.5, 4), (0, 2, 3, 5)], ids=["at-both-ends", "between"])
def test_fitted_traffic_is_silent_where_the_trace_is(hours: tuple[float, ...]) -> None:
    rng = np.random.default_rng(1)
    begin, stop, again, end = (3600 * hour for hour in hours)
    times = np.concatenate((poisson(rng, 2, begin, stop), poisson(rng, 2, again, end)))
    times -= times[0]
    names = tuple(f"a{number}" for number in range(10))
    adapter = rng.integers(0, 10, len(times), dtype=np.int32)
    study = study_trace(TraceData(times, adapter=adapter, names=names), "t", fit_share=0.5, seed=1)
    model = study.model.with_bursts(study.bursts, study.facts.span_s)
    steps = model.workload["arrivals"]["steps"]
    assert [step["level"] for step in steps] == [1, 0, 1]
    assert [float(step["time"].removesuffix(" s")) for step in steps] == pytest.approx(
        [stop - begin, again - stop, end - again], abs=5
    )
    assert float(model.workload["arrivals"]["rate"].removesuffix("/s")) == pytest.approx(
        len(times) / times[-1], rel=0.05
    )
    assert sentences(study.facts)[-1] == "Fitted traffic has the silence of the whole trace, at the same times."
    # As if the recording had gone on: no pause longer than a usual one.
    calm = without_bursts(times, study.bursts)
    assert np.diff(calm).max() < 10
    assert len(calm) == len(times)


def test_a_stream_far_too_fast_ends_early_and_keeps_its_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.studies.trace.fits._ALWAYS_MADE", 1000)
    times = np.arange(100) * 10.0
    part = fits.TraceSpan(slice(0, 100), times, np.zeros(100, dtype=np.int64), None, 1000.0, 1)
    fitted = fits.independent(part)
    fast = replace(fitted, workload={**fitted.workload, "arrivals": {**fitted.workload["arrivals"], "rate": "40/s"}})
    made, _, covered_s = fits.TrafficSampler(tmp_path, 1).requests(fast, part)
    assert covered_s < 1000
    assert len(made) / covered_s == pytest.approx(40, rel=4 / math.sqrt(len(made)))
    assert fits.TrafficSampler(tmp_path, 1).requests(fitted, part)[2] == 1000
