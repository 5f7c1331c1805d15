"""``loraplan fidelity FILE`` predicts a benchmark; ``loraplan calibrate fit --from-bench`` corrects a profile by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine

from calibrate.fit.load_correction import MeasuredLoad, correct, scaled_step
from sim.spec.profile import Draw, load_profile
from sim.spec.scenario_file import load_scenario
from sim.studies.benchmarks.bench_files import read_bench
from sim.studies.benchmarks.bench_prediction import bench_world, predicted_values
from sim.studies.benchmarks.bench_scenario import bench_scenario
from sim.studies.fidelity.predicted_service import predict_service


def load_of(file: Path, folder: Path) -> Any:
    return bench_scenario(read_bench(file)[0], load_scenario("serve-tiny"), None, folder)


def test_a_closed_loop_stays_one(samples: Path, tmp_path: Path) -> None:
    scenario = load_of(samples / "vllm-closed.json", tmp_path)
    assert scenario.workload.arrivals.process == "closed"
    assert scenario.workload.arrivals.concurrency == 4
    assert scenario.workload.requests == 60
    assert scenario.workload.popularity.law == "zipf"  # the scenario's: no result names adapters
    assert scenario.cache.gpu.slots == 8
    outside_s = load_profile("cpu/tiny/vllm-0.32")[0].front_end_s
    assert outside_s > 0
    assert scenario.workload.arrivals.think.value == pytest.approx(outside_s)


def test_an_open_loop_is_replayed(samples: Path) -> None:
    run = read_bench(samples / "vllm-open.json")[0]
    assert run.rows is not None
    world = bench_world(run, load_scenario("serve-tiny"), None)
    chunk = next(iter(world.traffic.chunks(0)))
    assert chunk.arrival_s == pytest.approx(run.rows.start_s, abs=1e-5)
    assert (chunk.prompt_tokens == run.rows.prompt_tokens).all()


def test_a_slow_client_is_no_slow_server(samples: Path) -> None:
    """What requests spend outside the engine counts for TTFT and E2E, and not for TPOT."""
    world = bench_world(read_bench(samples / "vllm-open.json")[0], load_scenario("serve-tiny"), None)
    near, far = predict_service(world, 1), predict_service(world, 1, 0.5)
    assert far.mean("ttft") == pytest.approx(near.mean("ttft") + 0.5)
    assert far.mean("e2e") == pytest.approx(near.mean("e2e") + 0.5)
    assert far.mean("tpot") == near.mean("tpot")


def test_predicted_beside_measured(loraplan: CommandLine, samples: Path) -> None:
    files = [str(samples / name) for name in ("vllm-closed.json", "inference-perf-stage.json", "guidellm.json")]
    ended = loraplan("fidelity", *files, "--scenario", "serve-tiny")
    assert ended.code == 0, ended.err
    assert "vllm-closed.json: vllm bench serve, closed loop, 4 at a time, 60 requests" in ended.out
    assert "p50 TTFT" in ended.out
    assert "cpu/tiny/vllm-0.32 (measured)" in ended.out
    assert "has no single requests" in ended.err
    assert "loraplan calibrate fit --from-bench" in ended.err
    ended = loraplan("fidelity", *files, "--scenario", "serve-tiny", "--json")
    runs = json.loads(ended.out)["runs"]
    assert [run["tool"] for run in runs] == ["vllm bench serve", "inference-perf", "GuideLLM"]
    row = runs[0]["metrics"]["ttft_p50_s"]
    assert row["error"] == pytest.approx(row["predicted"] / row["measured"] - 1)
    # in a closed loop the rate follows from the latency: Little's law
    for which in ("measured", "predicted"):
        rate, e2e_s = (runs[0]["metrics"][name][which] for name in ("requests_per_s", "e2e_mean_s"))
        assert rate * e2e_s == pytest.approx(4, rel=0.05)


def test_a_server_without_adapters_needs_a_profile_alone(loraplan: CommandLine, samples: Path) -> None:
    file = str(samples / "vllm-open.json")
    ended = loraplan("fidelity", file, "--profile", "cpu/tiny/vllm-0.32", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["runs"][0]["profile"] == "cpu/tiny/vllm-0.32"
    ended = loraplan("fidelity", file)
    assert ended.code == 2
    assert "--scenario" in ended.err
    assert "--profile" in ended.err


@pytest.mark.parametrize(("factor", "front_end_s"), [(1.0, 0.004), (1.7, 0.0), (0.6, 0.02)])
def test_a_known_correction_is_found(samples: Path, factor: float, front_end_s: float) -> None:
    """A simulated server whose steps take a factor of the profile's is corrected back to it."""
    profile = load_profile("cpu/tiny/vllm-0.32")[0]
    run = read_bench(samples / "vllm-closed.json")[0]
    world = bench_world(run, load_scenario("serve-tiny"), None)
    costs = Draw(step=scaled_step(profile.step, factor, None), load=profile.load)
    truth = predicted_values(predict_service(world.with_costs(costs), 6, front_end_s))
    found = correct(profile, [MeasuredLoad("made up", world, truth, {})])
    assert found.fixed_s is None
    assert found.factor.value == pytest.approx(factor, abs=max(found.factor.half_width, 0.02))
    assert found.front_end_s.value == pytest.approx(front_end_s, abs=max(found.front_end_s.half_width, 1e-3))
    assert all(abs(each.after) < 0.03 for each in found.checked)
    assert len(found.draws) == 16
    assert np.std([draw for draw, _ in found.draws]) == pytest.approx(found.factor.half_width / 1.96, rel=0.6)


def test_two_loads_tell_the_fixed_part_of_a_step(samples: Path) -> None:
    profile = load_profile("cpu/tiny/vllm-0.32")[0]
    base = load_scenario("serve-tiny")
    costs = Draw(step=scaled_step(profile.step, 1.3, 0.02), load=profile.load)
    loads = []
    for name in ("vllm-closed.json", "vllm-closed-12.json"):
        world = bench_world(read_bench(samples / name)[0], base, None)
        truth = predicted_values(predict_service(world.with_costs(costs), 6, 0.002))
        loads.append(MeasuredLoad(name, world, truth, {}))
    found = correct(profile, loads)
    assert found.fixed_s is not None
    assert found.fixed_s.value == pytest.approx(0.02, abs=max(found.fixed_s.half_width, 1e-3))
    assert found.factor.value == pytest.approx(1.3, abs=max(found.factor.half_width, 0.05))
    assert found.fixed_s.half_width < 0.01


def test_a_corrected_profile_predicts_its_benchmark(loraplan: CommandLine, samples: Path) -> None:
    bench = ("--from-bench", str(samples / "vllm-closed.json"))
    ended = loraplan("calibrate", "fit", *bench, "--scenario", "serve-tiny", "--out", "new/profile.json", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["factor"]["value"] > 2  # a busy machine
    profile = load_profile("./new/profile.json")[0]
    assert profile.status == "derived"
    assert profile.front_end_s == pytest.approx(found["front_end_s"]["value"], rel=1e-3)
    assert profile.provenance is not None
    assert list(profile.provenance.data) == ["vllm-closed.json"]
    assert len(profile.draws) == 16
    again = loraplan("fidelity", bench[1], "--scenario", "serve-tiny", "--profile", "./new/profile.json", "--json")
    assert again.code == 0, again.err
    metrics = json.loads(again.out)["runs"][0]["metrics"]
    assert abs(metrics["tpot_mean_s"]["error"]) < 0.05
    assert abs(metrics["requests_per_s"]["error"]) < 0.1
    assert loraplan("check", "serve-tiny", "--set", "fleet.profile=./new/profile.json").code == 0


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("fidelity", "{}", "--profile-dir", "."), ["go with RUNS.csv"]),
        (("fidelity", "{}", "runs.csv", "--scenario", "serve-tiny"), ["one table at a time"]),
        (("fidelity", "--scenario", "serve-tiny"), ["--scenario: goes with results"]),
        (("calibrate", "fit", "cal", "--from-bench", "{}", "--out", "p.json"), ["either a folder or --from-bench"]),
        (("calibrate", "fit", "--out", "p.json"), ["DIR: nothing to fit", "--from-bench"]),
        (("calibrate", "fit", "cal", "--profile", "x", "--out", "p.json"), ["--profile: goes with --from-bench"]),
        (("calibrate", "fit", "--from-bench", "{}", "--out", "p.json"), ["--scenario", "which GPU"]),
        (
            (
                "calibrate",
                "fit",
                "--from-bench",
                "{}",
                "--from-bench",
                "{}",
                "--scenario",
                "serve-tiny",
                "--out",
                "p.json",
            ),
            ["the same run twice"],
        ),
    ],
)
def test_options_that_do_not_go_together(
    loraplan: CommandLine, samples: Path, arguments: tuple[str, ...], parts: list[str]
) -> None:
    ended = loraplan(*(each.replace("{}", str(samples / "vllm-closed.json")) for each in arguments))
    assert ended.code == 2
    for part in parts:
        assert part in ended.err


def test_a_benchmark_that_did_not_stream_corrects_nothing(loraplan: CommandLine, samples: Path) -> None:
    data = json.loads((samples / "aiperf.json").read_text(encoding="utf-8"))
    del data["time_to_first_token"]
    Path("whole.json").write_text(json.dumps(data), encoding="utf-8")
    ended = loraplan("calibrate", "fit", "--from-bench", "whole.json", "--scenario", "serve-tiny", "--out", "p.json")
    assert ended.code == 2
    assert "a streamed benchmark" in ended.err
    assert not Path("p.json").exists()
