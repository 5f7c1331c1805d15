"""What people write first: laws by two figures, bursts by their name, times of day, counts of adapters."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter
from scenario_samples import BASE, base, write
from scipy.stats import lognorm

from sim.spec.scenario_file import load_scenario
from sim.spec.sections.laws import LognormalTime, LognormalTokens, TokenLaw, lognormal_shape
from sim.traffic.lengths import TokenLengths
from sim.world.build import build_world

__all__ = ["base"]  # a fixture, used by its name

SHAPE = lognorm(s=0.7, scale=200.0)
FIGURES = {"mean": SHAPE.mean(), "p50": 200.0, "p90": SHAPE.ppf(0.9), "p99": SHAPE.ppf(0.99)}
ROLLOUT = "rollouts: [{{strategy: in-place, at: {at}, {who}}}]\n"


@pytest.mark.parametrize("given", [(a, b) for a in FIGURES for b in FIGURES if a < b])
def test_any_two_figures_give_the_same_log_normal_law(given: tuple[str, str]) -> None:
    two = {name: float(FIGURES[name]) for name in given}
    mu, sigma = LognormalTokens(law="lognormal", **two).shape()
    assert (mu, sigma) == pytest.approx((np.log(200), 0.7))
    seconds = {name: f"{value} s" for name, value in two.items()}
    time = LognormalTime.model_validate({"law": "lognormal", **seconds})
    assert time.mean() == pytest.approx(SHAPE.mean())
    assert time.ppf(np.array([0.5, 0.9])) == pytest.approx([200, FIGURES["p90"]])


def test_a_quantile_at_its_limit_is_a_law() -> None:
    """There both roots for sigma are the quantile of the standard normal; rounding must not make them complex."""
    for name, z in (("p90", 1.2815515655446004), ("p99", 2.3263478740408408)):
        for mean in range(1, 1000):
            mu, sigma = lognormal_shape({"mean": float(mean), name: math.exp(z**2 / 2) * mean})
            assert sigma == pytest.approx(z, abs=1e-6)
            assert mu == pytest.approx(math.log(mean) - z**2 / 2, abs=1e-5)


def test_the_longest_answer_of_a_law_by_its_median_is_its_p99() -> None:
    law = TypeAdapter(TokenLaw).validate_python({"law": "lognormal", "p50": 200, "p90": float(FIGURES["p90"])})
    assert TokenLengths(law).longest == pytest.approx(FIGURES["p99"])


def test_bursty_is_gamma_with_a_cv_of_4(base: Path) -> None:
    named, spelt = (
        next(iter(build_world(load_scenario(str(base), [f"workload.arrivals={law}"]).scenario).traffic.chunks(0)))
        for law in ("{process: bursty, rate: 12/s}", "{process: gamma, rate: 12/s, cv: 4}")
    )
    assert np.array_equal(named.arrival_s, spelt.arrival_s)


@pytest.mark.parametrize(
    ("start", "at", "seconds"), [("08:00", "12:00", 14400), ("23:59:30", "00:00", 30), ("8:00", "08:00:05", 5)]
)
def test_a_time_of_day_counts_from_the_start(base: Path, start: str, at: str, seconds: float) -> None:
    text = BASE.replace("  requests: 1000\n", f'  duration: 1 d\n  start: "{start}"\n')
    changes = ROLLOUT.format(at=f'"{at}"', who="adapter: 3") + f'faults: [{{kind: crash, at: "{at}", replica: 0}}]\n'
    scenario = load_scenario(str(write(base.parent / "day.yaml", text + changes))).scenario
    assert scenario.rollouts[0].at == seconds
    assert getattr(scenario.faults[0], "at") == seconds  # noqa: B009 - faults of other kinds have none


def test_the_peak_of_a_day_may_be_a_time_of_day(base: Path) -> None:
    overrides = ["workload.start=06:00", "workload.arrivals={process: diurnal, rate: 2/s, peak_at: '14:00'}"]
    arrivals = load_scenario(str(base), overrides).scenario.workload.arrivals
    assert getattr(arrivals, "peak_at") == 8 * 3600  # noqa: B009 - other processes have none


def test_so_many_adapters_are_rolled_out_and_no_other_rollout_takes_them(base: Path) -> None:
    several = "rollouts:\n" + "".join(
        f"  - {{strategy: in-place, at: 1 s, {who}}}\n" for who in ("count: 5", "share: 20%", "count: 75")
    )
    world = build_world(load_scenario(str(write(base.parent / "several.yaml", BASE + several))).scenario)
    taken = [set(planned.names) for planned in world.rollout_plan.rollouts]
    assert [len(each) for each in taken] == [5, 20, 75]
    assert len(set.union(*taken)) == 100


def test_a_card_with_more_memory_has_a_larger_kv_cache(base: Path) -> None:
    plain, larger = (
        build_world(load_scenario(str(base), overrides).scenario).pools[0]
        for overrides in ([], ["fleet.gpu_memory=96 GB"])
    )
    assert larger.kv_tokens > plain.kv_tokens
