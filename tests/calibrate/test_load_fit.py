"""The law of loads: found again where it is known, and honest about what it can't tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from calibrate.fit.load_fit import fit_load_samples
from sim.errors import InputError
from sim.policies.costs import load_seconds, mean_residual
from sim.spec.profile import LoadCost
from sim.spec.sections.workload import Adapters
from sim.traffic.adapters import SHAPES, parameters_per_rank, populate, tensor_count

SHAPE = SHAPES["llama-3.1-8b"]
LAWS = {"load storage": (5e-3, 1e-6, 2e-6, 1 / 2e9), "load host": (2e-3, 1e-5, 5e-6, 1 / 2e10)}
Noise = Callable[[int], Any]


def loads(
    noise: Noise = lambda n: np.ones(n), samples: int = 20, concurrency: tuple[int, ...] = (1, 4)
) -> pd.DataFrame:
    """Return samples of whole loads that follow ``LAWS``; n at the same time take n times as long."""
    rows: list[tuple[Any, ...]] = []
    for kind, law in LAWS.items():
        for rank in (8, 16, 32, 64):
            for targets in (("q", "v"), ("q", "k", "v", "o"), "all-linear"):
                for max_rank in sorted({rank, 64}):
                    for count in concurrency:
                        tensors = tensor_count(SHAPE, targets)
                        size = 2 * rank * parameters_per_rank(SHAPE, targets)
                        padded = tensors // 2 if rank < max_rank else 0
                        seconds = count * float(np.dot(law, (1, tensors, padded, size)))
                        p = {"tensors": tensors, "padded_tensors": padded, "bytes": size, "concurrency": count}
                        key = f"{kind} r{rank}/{max_rank} {targets} x{count}"
                        rows += [(key, kind, p, took, took) for took in seconds * noise(samples)]
    return pd.DataFrame(rows, columns=["key", "kind", "parameters", "seconds", "wall_s"])


def test_a_known_law_is_found() -> None:
    fit = fit_load_samples(loads(), {"slow_down": 1.5})
    for tier, law in ((fit.cost.storage, LAWS["load storage"]), (fit.cost.host, LAWS["load host"])):
        found = (tier.open_s, tier.per_tensor_s, tier.per_padded_tensor_s, 1 / tier.bandwidth_bytes_per_s)
        assert found == pytest.approx(law, rel=1e-6)
        assert set(tier.residual) == {1.0}
        assert len(tier.residual) == 101
    assert fit.residuals == pytest.approx({"load.storage": 0, "load.host": 0}, abs=1e-9)
    assert fit.slow_down == 1.5
    assert len(fit.draws) == 16
    for draw in fit.draws:
        assert draw.host.per_tensor_s == pytest.approx(1e-5, rel=1e-3)


def test_hold_outs_name_form_and_method_and_are_exact_for_an_exact_law() -> None:
    rows = fit_load_samples(loads(), {}).hold_out
    assert [(row.what, row.method, row.count) for row in rows] == [
        (what, method, 21 if "all" not in what else 1)
        for tier in ("storage", "host")
        for what, method in (
            (f"medians of loads from {tier}", "leave one configuration out"),
            (f"p50 of loads from {tier}", "even samples predict odd ones"),
            (f"p99 of loads from {tier}, all configurations pooled", "even samples predict odd ones"),
        )
    ]
    assert all(row.form == "law" and row.p90 < 1e-6 for row in rows)


def test_spread_goes_into_the_residual_and_long_runs_have_a_p99_each() -> None:
    rng = np.random.default_rng(1)
    fit = fit_load_samples(loads(lambda n: rng.lognormal(0, 0.2, n), samples=400), {})
    for tier in (fit.cost.storage, fit.cost.host):
        assert tier.residual[50] == pytest.approx(1, abs=0.02)
        assert tier.residual[99] == pytest.approx(np.exp(0.2 * 2.326), rel=0.05)
        assert mean_residual(tier) == pytest.approx(np.exp(0.02), rel=0.02)
        assert list(tier.residual) == sorted(tier.residual)
    p99 = [row for row in fit.hold_out if row.what.startswith("p99")]
    assert [row.count for row in p99] == [21, 21]
    # a p99 of 200 samples has a relative deviation of 0.2 · sqrt(.99 · .01 / 200) / 0.0267 = 5.3 %
    assert all(row.mean < 0.08 for row in p99)
    assert all(row.mean < 0.03 for row in fit.hold_out if row.what.startswith("p50"))
    spread = np.std([draw.storage.open_s for draw in fit.draws])
    assert 0 < spread < 0.2 * fit.cost.storage.open_s


def test_loads_at_the_same_time_share_a_bandwidth() -> None:
    fit = fit_load_samples(loads(), {})
    rows = {(row.tier, row.concurrency): row for row in fit.concurrent}
    assert set(rows) == {(tier, count) for tier in ("storage", "host") for count in (1, 4)}
    for tier in ("storage", "host"):
        assert rows[tier, 1].slow_down == 1
        assert rows[tier, 4].slow_down == pytest.approx(4)
        assert rows[tier, 4].bytes_per_s == pytest.approx(rows[tier, 1].bytes_per_s)


def test_the_simulator_predicts_what_was_timed() -> None:
    frame = loads(concurrency=(1,))
    cost: LoadCost = fit_load_samples(frame, {}).cost
    adapters = Adapters.model_validate(
        {
            "count": 2,
            "dtype": "bf16",
            "mix": [
                {"share": "50%", "rank": 16, "targets": ["q", "v"]},
                {"share": "50%", "rank": 64, "targets": ["q", "v"]},
            ],
        }
    )
    population = populate(adapters, "llama-3.1-8b", 2)
    expected = [
        float(frame[frame["key"] == f"load host r{rank}/64 ('q', 'v') x1"]["seconds"].median())
        for rank in population.rank
    ]
    assert load_seconds(cost.host, population) == pytest.approx(expected, rel=1e-6)


def test_bytes_that_play_no_part_leave_no_bandwidth() -> None:
    frame = loads()
    frame["seconds"] = [1e-3 + 1e-6 * p["tensors"] for p in frame["parameters"]]
    assert fit_load_samples(frame, {}).cost.host.bandwidth_bytes_per_s > 1e12


def test_no_samples_of_a_tier_say_why() -> None:
    frame = loads()
    with pytest.raises(InputError, match=r"too few configurations of 'load storage' .*no cold reads: tmpfs"):
        fit_load_samples(frame[frame["kind"] == "load host"], {"flags": ["drift: 5 %", "no cold reads: tmpfs"]})
    with pytest.raises(InputError, match="time more ranks and targets"):
        fit_load_samples(frame[frame["kind"] == "load storage"], {})


def test_the_same_samples_give_the_same_fit() -> None:
    rng = np.random.default_rng(2)
    frame = loads(lambda n: rng.lognormal(0, 0.1, n))
    assert fit_load_samples(frame, {}) == fit_load_samples(frame, {})
