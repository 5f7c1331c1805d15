"""The round trip: a real vLLM under one load, its metrics imported, another load predicted (make test-vllm)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm_environment import PYTHON, needs_vllm

from calibrate.serve import engine
from calibrate.serve.client import PlannedRequest, plan_requests
from calibrate.serve.connection import Host, run_or_stop
from calibrate.serve.drive import Driver
from calibrate.serve.paired_table import times_of
from sim.spec.scenario_file import load_scenario
from sim.studies.predicted_service import PredictedService, predict_service
from sim.traffic.adapters import model_shape
from sim.traffic.generate import Traffic
from sim.world.build import build_world

ROOT = Path(__file__).resolve().parents[2]
WANTED = 0.20
LOW_RPS, HIGH_RPS, RUN_S, ROUNDS = 6, 12, 7, 3
LENGTHS = {"prompt": "{law: uniform, low: 30, high: 90}", "output": "{law: uniform, low: 10, high: 22}"}
"""Alike, so that medians of some seconds vary little."""

pytestmark = [
    pytest.mark.nightly,
    needs_vllm,
    pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="times a server: 'make test-vllm' runs it alone"),
]


@dataclass(frozen=True)
class Served:
    """A run as its client measured it, and the metrics page before and after it."""

    ttft_p50_s: float
    e2e_p50_s: float
    before: bytes
    after: bytes


def drive(url: str, rate: int, seed: int, kept: Path) -> Served:
    """Send some seconds of the scenario's traffic at a rate; every adapter was requested once before."""
    changes = [f"workload.requests={rate * RUN_S}", f"workload.arrivals.rate={rate}/s", f"run.seed={seed}"]
    changes += [f"workload.tokens.{key}={law}" for key, law in LENGTHS.items()]
    scenario = load_scenario("serve-tiny", changes).scenario
    planned = plan_requests(scenario, Traffic(scenario, "tiny"))

    async def send() -> Served:
        driver = Driver(Host(url), [engine.adapter_name(index) for index in range(scenario.adapters.count or 0)])
        try:
            for adapter in range(len(driver.names)):
                await driver.one(PlannedRequest(adapter, 0.0, adapter, 8, 1))
            _, before = await driver.host.get("/metrics", 10, 8 << 20)
            times = times_of(await driver.run(planned, kept), len(planned))
            _, after = await driver.host.get("/metrics", 10, 8 << 20)
        finally:
            await driver.host.close()
        return Served(float(np.nanmedian(times.ttft_s)), float(np.nanmedian(times.e2e_s)), before, after)

    return run_or_stop(send())


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    scenario = load_scenario("serve-tiny").scenario
    population = Traffic(scenario, "tiny").population
    installed = engine.find_vllm(PYTHON)
    engine.write_model(folder, scenario, model_shape("tiny"), population, 1024)
    arguments = engine.server_arguments(scenario, population, folder, 1024, installed)
    with engine.launched(installed, arguments, folder) as running:
        yield running.url


@dataclass(frozen=True)
class Round:
    """A low load, imported, and a high one, predicted from it."""

    low: Served
    high: Served
    observed: dict[str, Any]
    predicted: PredictedService


def predicted_from(low: Served, folder: Path) -> tuple[dict[str, Any], PredictedService]:
    """Import two metrics pages, correct the profile by them, and simulate the other load."""
    folder.mkdir()
    for name, page in (("before.txt", low.before), ("after.txt", low.after)):
        (folder / name).write_bytes(page)
    command = [sys.executable, "-m", "sim.cli", "observe", "--base", "serve-tiny", "--window", f"{RUN_S} s"]
    command += ["--prometheus", str(folder / "before.txt"), "--prometheus", str(folder / "after.txt")]
    command += ["--out", str(folder / "observed.yaml"), "--fit-profile", str(folder / "profile.json"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    changed = [f"workload.arrivals.rate={HIGH_RPS}/s", f"workload.requests={HIGH_RPS * RUN_S}"]
    world = build_world(load_scenario(str(folder / "observed.yaml"), changed).scenario)
    assert world.pools[0].profile is not None
    return json.loads(done.stdout), predict_service(world, 10)


def spread(values: list[float]) -> float:
    """Return how far identical runs lie apart: the range between quartiles, relative to the median."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float((high - low) / middle)


def test_another_load_is_predicted_from_metrics(url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    drive(url, LOW_RPS, 90, tmp_path / "warm-up.jsonl")  # the first requests compile
    served = [
        (drive(url, LOW_RPS, 1, tmp_path / "low.jsonl"), drive(url, HIGH_RPS, 2, tmp_path / "high.jsonl"))
        for _ in range(ROUNDS)
    ]
    rounds = [
        Round(low, high, *predicted_from(low, tmp_path / f"round-{place}")) for place, (low, high) in enumerate(served)
    ]
    for each in rounds:
        assert each.observed["requests"] == LOW_RPS * RUN_S
        assert each.observed["adapters"] > 4
        assert each.observed["offered_rps"] == pytest.approx(LOW_RPS)
        lengths = np.loadtxt(tmp_path / "round-0" / "observed-lengths.csv", delimiter=",", skiprows=1)
        assert lengths.mean(axis=0) == pytest.approx([60, 16], rel=0.1)  # the laws' means
    errors, noises = {}, {}
    for kind in ("ttft", "e2e"):
        measured = [getattr(each.high, f"{kind}_p50_s") for each in rounds]
        ratios = [each.predicted.quantile(kind, 0.5) / value for each, value in zip(rounds, measured, strict=True)]
        errors[kind] = float(np.median(ratios)) - 1
        noises[kind] = max(spread(measured), spread([getattr(each.low, f"{kind}_p50_s") for each in rounds]))
    with capfd.disabled():
        print(f"\n{HIGH_RPS}/s predicted from metrics at {LOW_RPS}/s, medians of {ROUNDS} rounds")
        for kind, error in errors.items():
            print(f"{kind} p50: error {error:+.1%}, identical runs lie {noises[kind]:.1%} apart")
    if max(noises.values()) > WANTED:
        pytest.skip(f"too busy a machine to predict within {WANTED:.0%}: identical runs lie {noises} apart")
    assert max(map(abs, errors.values())) < WANTED, errors
