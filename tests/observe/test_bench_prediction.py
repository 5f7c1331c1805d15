"""``loraplan fidelity FILE`` predicts a benchmark; ``loraplan calibrate fit --from-bench`` corrects a profile by it."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine
from metric_pages import counted

from calibrate.fit.load_correction import FittedNumber, MeasuredLoad, _draws, correct, scaled_step
from sim.errors import InputError
from sim.spec.profile import Draw, load_profile
from sim.spec.scenario_file import load_scenario
from sim.studies.fidelity.bench_files import read_bench
from sim.studies.fidelity.bench_prediction import bench_scenario, bench_world, simulated_load
from sim.studies.fidelity.bench_run import ClosedLoad, OpenLoad
from sim.studies.predicted_service import predict_service, predicted_values


def load_of(file: Path, folder: Path) -> Any:
    return bench_scenario(read_bench(file)[0], load_scenario("serve-tiny"), None, folder).scenario


def test_a_closed_loop_stays_one(samples: Path, tmp_path: Path) -> None:
    scenario = load_of(samples / "vllm-closed.json", tmp_path)
    assert scenario.workload.arrivals.process == "closed"
    assert scenario.workload.arrivals.concurrency == 4
    assert scenario.workload.requests == 60
    assert scenario.workload.popularity.law == "uniform"  # no result names adapters, and vLLM's client draws them so
    assert load_of(samples / "guidellm.json", tmp_path).workload.popularity.law == "zipf"  # the scenario's
    assert scenario.cache.gpu.slots == 8
    world = bench_world(read_bench(samples / "vllm-closed.json")[0], load_scenario("serve-tiny"), None)
    assert world.pools[0].front_end_s == load_profile("cpu/tiny/vllm-0.32")[0].front_end_s > 0


def test_a_run_of_another_base_model_is_refused_and_a_name_of_ones_own_is_not(samples: Path) -> None:
    run = read_bench(samples / "vllm-closed.json")[0]
    bench_world(replace(run, model="acme/support-bot"), load_scenario("serve-tiny"), None)
    with pytest.raises(
        InputError, match=r"this run is of another base model \(got Qwen/Qwen2.5-7B-Instruct, allowed: tiny"
    ):
        bench_world(replace(run, model="Qwen/Qwen2.5-7B-Instruct"), load_scenario("serve-tiny"), None)


def changed(samples: Path, file: str, **change: object) -> None:
    data = json.loads((samples / "vllm-closed-12.json").read_text(encoding="utf-8"))
    Path(file).write_text(json.dumps(data | change), encoding="utf-8")


def test_a_rate_with_a_limit_is_the_loop_that_it_came_to(loraplan: CommandLine, samples: Path) -> None:
    """vLLM's client sends at its rate, but no more than ``--max-concurrency`` at a time: here 11 were in flight."""
    changed(samples, "closed.json")
    changed(samples, "bound.json", request_rate=100.0)
    changed(samples, "free.json", request_rate=7.5, max_concurrency=60)
    assert simulated_load(read_bench(Path("bound.json"))[0]) == ClosedLoad(12)
    assert simulated_load(read_bench(Path("free.json"))[0]) == OpenLoad(7.5)
    server, said = ("--scenario", "serve-tiny"), "the client's limit held the others back: simulated as a closed"
    factors = {}
    for name in ("closed", "bound", "free"):
        fit = ("calibrate", "fit", "--from-bench", f"{name}.json", *server, "--out", "p.json")
        factors[name] = loraplan.data(*fit)["factor"]["value"]
        for command in (fit, ("fidelity", f"{name}.json", *server)):
            assert (said in loraplan.succeeds(*command).err) == (name == "bound")
    assert factors["bound"] == factors["closed"] != factors["free"]


def test_a_rate_and_a_limit_that_both_decide_are_the_client_itself(samples: Path, tmp_path: Path) -> None:
    changed(samples, str(tmp_path / "between.json"), request_rate=7.5, max_concurrency=16)
    client = load_of(tmp_path / "between.json", tmp_path).workload.client
    assert (client.num_prompts, client.request_rate, client.burstiness, client.max_concurrency) == (80, 7.5, 1, 16)
    (run,) = read_bench(tmp_path / "between.json")
    world = bench_world(run, load_scenario("serve-tiny"), None)
    assert world.traffic.closed_loop == client
    (chunk,) = world.traffic.chunks(0)
    assert (set(chunk.prompt_tokens), set(chunk.output_tokens)) == ({round(4778 / 80)}, {round(2521 / 80)})


def test_a_run_that_no_load_stands_for_is_left_out(loraplan: CommandLine, samples: Path) -> None:
    """Requests of different lengths, some of which the limit held back: none of the simulator's clients sends these."""
    data = json.loads((samples / "vllm-open.json").read_text(encoding="utf-8"))
    Path("between.json").write_text(json.dumps(data | {"max_concurrency": 8}), encoding="utf-8")
    changed(samples, "closed.json")
    server, problem = ("--scenario", "serve-tiny"), "between.json: the client's limit may have held requests back"
    adjust = ("profiles", "adjust", "cpu/tiny/vllm-0.32", *server, "--out", "p.json", "--anchor")
    for command in (("fidelity", *server), ("calibrate", "fit", *server, "--out", "p.json", "--from-bench"), adjust):
        assert problem in loraplan.refused(*command, "between.json")
    ended = loraplan.data("fidelity", "between.json", "closed.json", *server)["runs"]
    assert [run["name"] for run in ended] == ["closed.json"]
    assert any(note.startswith(f"left out: {problem}") for note in ended[0]["notes"])
    fit = ("calibrate", "fit", "--from-bench", "between.json", "--from-bench", "closed.json", *server)
    assert f"left out: {problem}" in loraplan.succeeds(*fit, "--out", "p.json").err


def test_a_run_with_drafts_needs_them_in_the_scenario(samples: Path, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    run = read_bench(samples / "vllm-closed-12.json")[0]
    changed(samples, "drafts.json", spec_decode_acceptance_rate=71.0, spec_decode_acceptance_length=2.4)
    (drafts,) = read_bench(Path("drafts.json"))
    with pytest.raises(InputError, match=r"drafts.json: fleet.speculation: .* \(got 2.4 tokens a step\); give"):
        bench_world(drafts, load_scenario("serve-tiny"), None)
    with_drafts = ["fleet.speculation={tokens: 2, acceptance: 70%, draft: 5%}"]
    assert bench_world(drafts, load_scenario("serve-tiny", with_drafts), None).scenario.fleet.speculation is not None
    bench_world(run, load_scenario("serve-tiny"), None)


def test_sglangs_client_is_named_and_has_sglangs_rules(loraplan: CommandLine, samples: Path) -> None:
    changed(samples, "sg.jsonl", backend="sglang", total_output_tokens_retokenized=2500, request_rate=math.inf)
    (alone,) = loraplan.data("fidelity", "sg.jsonl", "--profile", "h100-80gb/llama-3.1-8b/vllm-0.24.0")["runs"]
    (fleet,) = loraplan.data("fidelity", "sg.jsonl", "--scenario", "serve-tiny")["runs"]
    assert alone["tool"] == "sglang.bench_serving"
    assert (alone["engine"], fleet["engine"]) == ("sglang", "vllm-0.32")
    note = "sg.jsonl: sglang was measured, and the rules are of vllm-0.32 (--set fleet.engine=sglang)"
    assert note in fleet["notes"]
    assert note not in alone["notes"]


def test_an_open_loop_is_replayed(samples: Path) -> None:
    run = read_bench(samples / "vllm-open.json")[0]
    world = bench_world(run, load_scenario("serve-tiny"), None)
    chunk = next(iter(world.traffic.chunks(0)))
    assert chunk.arrival_s == pytest.approx(run.rows.start_s, abs=1e-5)
    assert (chunk.prompt_tokens == run.rows.prompt_tokens).all()


def test_a_slow_client_is_no_slow_server(samples: Path) -> None:
    """What requests spend outside the engine counts for TTFT and E2E, and not for TPOT."""
    world = bench_world(read_bench(samples / "vllm-open.json")[0], load_scenario("serve-tiny"), None)
    near, far = (predict_service(world.behind(seconds), 1) for seconds in (0.0, 0.5))
    assert far.mean("ttft") == pytest.approx(near.mean("ttft") + 0.5)
    assert far.mean("e2e") == pytest.approx(near.mean("e2e") + 0.5)
    assert far.mean("tpot") == pytest.approx(near.mean("tpot"))


def test_predicted_beside_measured(loraplan: CommandLine, samples: Path) -> None:
    files = [str(samples / name) for name in ("vllm-closed.json", "inference-perf-stage.json", "guidellm.json")]
    runs = loraplan.data("fidelity", *files, "--scenario", "serve-tiny")["runs"]
    assert [run["tool"] for run in runs] == ["vllm bench serve", "inference-perf", "GuideLLM"]
    assert any("from 24 adapters" in note and "all equally popular" in note for note in runs[0]["notes"])
    assert any("from 24 adapters" in note and "popularity (zipf)" in note for note in runs[2]["notes"])
    row = runs[0]["metrics"]["ttft_p50_s"]
    assert row["error"] == pytest.approx(row["predicted"] / row["measured"] - 1)
    # in a closed loop the rate follows from the latency: Little's law
    for which in ("measured", "predicted"):
        rate, e2e_s = (runs[0]["metrics"][name][which] for name in ("requests_per_s", "e2e_mean_s"))
        assert rate * e2e_s == pytest.approx(4, rel=0.05)


def test_a_server_without_adapters_needs_a_profile_alone(loraplan: CommandLine, samples: Path) -> None:
    cancelled = (samples / "aiperf.json").read_text(encoding="utf-8").replace('cancelled": false', 'cancelled": true')
    Path("cancelled.json").write_text(cancelled, encoding="utf-8")
    files = (str(samples / "vllm-open.json"), "cancelled.json")
    whole, cut_short = loraplan.data("fidelity", *files, "--profile", "cpu/tiny/vllm-0.32")["runs"]
    assert whole["profile"] == "cpu/tiny/vllm-0.32"
    said = "cancelled.json was stopped before its end; requests that were under way are left out"
    assert said in cut_short["notes"]
    assert not any("stopped" in note for note in whole["notes"])


@pytest.mark.parametrize(("factor", "front_end_s"), [(1.0, 0.004), (1.7, 0.0), (0.6, 0.02)])
def test_a_known_correction_is_found(samples: Path, factor: float, front_end_s: float) -> None:
    """A simulated server whose steps take a factor of the profile's is corrected back to it."""
    profile = load_profile("cpu/tiny/vllm-0.32")[0]
    run = read_bench(samples / "vllm-closed.json")[0]
    world = bench_world(run, load_scenario("serve-tiny"), None)
    costs = Draw(step=scaled_step(profile.step, factor, None), load=profile.load)
    true_world = world.with_costs(costs).behind(front_end_s)
    truth = predicted_values(predict_service(true_world, 6))
    found = correct(profile, [MeasuredLoad("made up", world, truth, dict.fromkeys(truth, 0.0))])
    assert found.fixed_s is None
    assert found.front_end_s.half_width is not None
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
        truth = predicted_values(predict_service(world.with_costs(costs).behind(0.002), 6))
        loads.append(MeasuredLoad(name, world, truth, dict.fromkeys(truth, 0.0)))
    found = correct(profile, loads)
    assert found.factor.half_width is not None
    assert found.fixed_s.value == pytest.approx(0.02, abs=max(found.fixed_s.half_width, 1e-3))
    assert found.factor.value == pytest.approx(1.3, abs=max(found.factor.half_width, 0.05))
    assert found.fixed_s.half_width < 0.01


def test_a_corrected_profile_predicts_its_benchmark(loraplan: CommandLine, samples: Path) -> None:
    bench = ("--from-bench", str(samples / "vllm-closed.json"))
    found = loraplan.data("calibrate", "fit", *bench, "--scenario", "serve-tiny", "--out", "new/profile.json")
    assert found["factor"]["value"] > 2  # a busy machine
    profile = load_profile("./new/profile.json")[0]
    assert profile.status == "derived"
    assert profile.front_end_s == pytest.approx(found["front_end_s"]["value"], rel=1e-3)
    assert profile.is_anchored
    assert list(profile.provenance.data) == ["vllm-closed.json"]
    assert len(profile.draws) == 16
    ended = loraplan.data("fidelity", bench[1], "--scenario", "serve-tiny", "--profile", "./new/profile.json")
    metrics = ended["runs"][0]["metrics"]
    for each in found["checked"]:  # what the fit prints; the time outside also delays each client's next request
        assert metrics[each["metric"]]["error"] == pytest.approx(each["error_after"], abs=0.02)
    assert abs(metrics["tpot_mean_s"]["error"]) < 0.05
    assert abs(metrics["requests_per_s"]["error"]) < 0.1
    loraplan.succeeds("check", "serve-tiny", "--set", "fleet.profile=./new/profile.json")


def test_a_benchmark_that_did_not_stream_corrects_nothing(loraplan: CommandLine, samples: Path) -> None:
    data = json.loads((samples / "aiperf.json").read_text(encoding="utf-8"))
    del data["time_to_first_token"]
    Path("whole.json").write_text(json.dumps(data), encoding="utf-8")
    assert "a streamed benchmark" in loraplan.refused(
        "calibrate", "fit", "--from-bench", "whole.json", "--scenario", "serve-tiny", "--out", "p.json"
    )
    assert not Path("p.json").exists()


def test_a_benchmark_of_another_server_corrects_nothing(loraplan: CommandLine, samples: Path) -> None:
    data = json.loads((samples / "vllm-closed-12.json").read_text(encoding="utf-8"))
    seconds = [key for key in data if key.endswith("_ms")]
    data |= {key: 40 * data[key] for key in seconds} | {"request_throughput": data["request_throughput"] / 40}
    Path("slow.json").write_text(json.dumps(data), encoding="utf-8")
    refused = loraplan.refused(
        "calibrate", "fit", "--from-bench", "slow.json", "--scenario", "serve-tiny", "--out", "p.json"
    )
    assert "contradicts the profile" in refused
    assert "(allowed: a factor between 1/20 and 20)" in refused
    assert not Path("p.json").exists()


def test_answers_of_one_token_have_no_gaps(loraplan: CommandLine, samples: Path) -> None:
    data = json.loads((samples / "vllm-closed-12.json").read_text(encoding="utf-8"))
    data |= {key: 0.0 for key in data if "tpot" in key or "itl" in key}
    one = {**data, "total_output_tokens": data["completed"], "request_throughput": 29.0}
    Path("one.json").write_text(json.dumps(one), encoding="utf-8")
    metrics = loraplan.data("fidelity", "one.json", "--scenario", "serve-tiny")["runs"][0]["metrics"]
    assert metrics["ttft_mean_s"]["predicted"] > 0
    assert not any(name.startswith(("tpot", "itl")) for name in metrics)


def test_what_failed_is_said(loraplan: CommandLine, samples: Path) -> None:
    data = json.loads((samples / "vllm-closed.json").read_text(encoding="utf-8"))
    data["failed"] = 3 * data["completed"]
    Path("some.json").write_text(json.dumps(data), encoding="utf-8")
    fit = ("calibrate", "fit", "--from-bench", "some.json", "--scenario", "serve-tiny", "--out", "p.json")
    assert "some.json: 75 % of its requests failed" in loraplan.succeeds(*fit).err
    (run,) = loraplan.data("fidelity", "some.json", "--scenario", "serve-tiny")["runs"]
    assert {"requests_per_s", "output_tokens_per_s"}.isdisjoint(run["metrics"])  # answers over the whole time
    left_out = "some.json: 180 requests failed; they are left out, and so are rates, which count answers alone"
    assert left_out in run["notes"]


def corrected(world: Any, measured: dict[str, float], half_widths: dict[str, float]) -> Any:
    return correct(load_profile("cpu/tiny/vllm-0.32")[0], [MeasuredLoad("bench", world, measured, half_widths)])


def test_the_interval_of_a_fit_needs_the_errors_of_what_is_measured(samples: Path) -> None:
    """A median without an error has that of the mean; without either, there is no interval rather than a narrow one."""
    run = read_bench(samples / "vllm-open.json")[0]
    world = bench_world(run, load_scenario("serve-tiny"), None)
    measured = {"tpot_mean_s": 0.012, "ttft_p50_s": 0.04, "ttft_mean_s": 0.045}
    half_widths = {"tpot_mean_s": 0.0002, "ttft_mean_s": 0.006}
    load = MeasuredLoad("bench", world, measured, half_widths)
    assert load.targets == ("tpot_mean_s", "ttft_p50_s")
    assert load.half_width("ttft_p50_s") == pytest.approx(0.006 * math.sqrt(math.pi / 2))
    of_means = corrected(world, measured, half_widths)
    exact = corrected(world, measured, {**half_widths, "ttft_p50_s": 0.0})
    assert of_means.front_end_s.half_width > 2 * exact.front_end_s.half_width
    assert of_means.front_end_s.half_width > 0.006
    unknown = corrected(world, measured, {"tpot_mean_s": 0.0002})
    assert isinstance(unknown.factor, FittedNumber)
    assert (unknown.factor.half_width, unknown.front_end_s.half_width, unknown.draws) == (None, None, ())
    # a value with an error comes before one without
    assert (
        MeasuredLoad("bench", world, {**measured, "itl_mean_s": 0.012}, {"itl_mean_s": 0.1}).targets[0] == "itl_mean_s"
    )


def test_a_result_without_spreads_gives_no_interval(loraplan: CommandLine, samples: Path) -> None:
    bench = ("--from-bench", str(samples / "inference-perf-stage.json"), "--scenario", "serve-tiny")
    ended = loraplan.succeeds("calibrate", "fit", *bench, "--out", "p.json")
    assert "±" not in ended.out
    assert "95 %" not in ended.out
    assert "no standard deviations" in ended.err
    assert load_profile("./p.json")[0].draws == ()
    found = loraplan.data("calibrate", "fit", *bench, "--out", "p.json")
    assert found["factor"]["half_width"] is None


def test_in_a_closed_loop_the_time_outside_is_known_to_a_step(samples: Path) -> None:
    """Up to the end of the step that runs anyway, a later client finds the same TTFT."""
    world = bench_world(read_bench(samples / "vllm-closed.json")[0], load_scenario("serve-tiny"), None)
    seen = [predict_service(world.behind(each), 2).quantile("ttft", 0.5) for each in (0.001, 0.004)]
    assert seen[0] == pytest.approx(seen[1], abs=1e-4)
    truth = predicted_values(predict_service(world.behind(0.004), 4))
    found = corrected(world, truth, dict.fromkeys(truth, 0.0))
    assert found.front_end_s.half_width >= 1.96 * truth["tpot_mean_s"] / math.sqrt(12)


def test_results_of_the_same_name_are_told_apart(loraplan: CommandLine, samples: Path) -> None:
    """AIPerf gives every export the same name."""
    for folder, name in (("a", "vllm-closed.json"), ("b", "vllm-closed-12.json")):
        Path(folder).mkdir()
        shutil.copy(samples / name, Path(folder, "export.json"))
    bench = ("--from-bench", "a/export.json", "--from-bench", "b/export.json", "--scenario", "serve-tiny")
    found = loraplan.data("calibrate", "fit", *bench, "--out", "p.json")
    assert {each["run"] for each in found["checked"]} == {"a/export.json", "b/export.json"}
    provenance = load_profile("./p.json")[0].provenance
    assert list(provenance.data) == ["a/export.json", "b/export.json"]
    assert len(set(provenance.data.values())) == 2


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"request_rate": 0}, ["workload.arrivals.rate: a rate must be above zero"]),
        ({"total_input_tokens": 10**14}, ["workload.tokens.prompt.value: out of range", "at most 10,000,000"]),
        ({"completed": 10**14}, ["workload.requests: out of range"]),
    ],
)
def test_a_run_that_no_scenario_can_have_is_named(
    loraplan: CommandLine, samples: Path, change: dict[str, Any], parts: list[str]
) -> None:
    data = json.loads((samples / "vllm-closed-12.json").read_text(encoding="utf-8"))
    Path("bench.json").write_text(json.dumps({**data, **change}), encoding="utf-8")
    said = loraplan.refused("fidelity", "bench.json", "--profile", "cpu/tiny/vllm-0.32")
    assert said.startswith("error: bench.json: ")
    for part in parts:
        assert part in said


@pytest.mark.parametrize("name", ["vllm-closed.json", "vllm-open.json"])
def test_lengths_beyond_all_models_name_the_result(loraplan: CommandLine, samples: Path, name: str) -> None:
    data = json.loads((samples / name).read_text(encoding="utf-8"))
    data["input_lens"][0] = 10**12
    Path("bench.json").write_text(json.dumps(data), encoding="utf-8")
    said = loraplan.refused("fidelity", "bench.json", "--scenario", "serve-tiny")
    assert said.startswith("error: bench.json: ")
    assert "not a token count (got 1000000000000" in said
    assert "loraplan-" not in said, "no file that the user can't find"


SERVER = """schema_version: 1
name: server
workload: {requests: 50, arrivals: {process: poisson, rate: 5/s}}
adapters: {count: 4}
cache: {gpu: {slots: 2}}
fleet: {engine: fixed, service: {law: fixed, value: 1 s}}
"""
REPLAY = """schema_version: 1
name: server
workload: {trace: {file: t.csv}}
fleet: {profile: cpu/tiny/vllm-0.32}
cache: {gpu: {slots: 2}}
adapters: {mix: [{share: 1, rank: 8}]}
"""


@pytest.mark.parametrize(
    ("server", "part"),
    [
        (SERVER, "server.yaml:6: fleet.engine: this engine has no tokens"),
        (REPLAY, "server.yaml:6: adapters.count: the number of adapters is missing"),
    ],
)
def test_a_scenario_that_can_not_be_the_server_is_named(
    loraplan: CommandLine, samples: Path, server: str, part: str
) -> None:
    Path("t.csv").write_text("timestamp_s,adapter_id,input_tokens,output_tokens\n0,a,5,5\n1,b,5,5\n")
    Path("server.yaml").write_text(server)
    assert part in loraplan.refused("fidelity", str(samples / "vllm-closed.json"), "--scenario", "server.yaml")


POOLS = """schema_version: 1
name: pools
extends: serve-tiny
fleet: {pools: [{name: big, replicas: 1}, {name: small, replicas: 2, cache: {gpu: {slots: 4}}}]}
"""


@pytest.mark.parametrize(
    "command",
    [
        ("fidelity", "BENCH", "--scenario", "pools.yaml"),
        ("calibrate", "fit", "--from-bench", "BENCH", "--scenario", "pools.yaml", "--out", "fitted.json"),
        ("observe", "--prometheus", "m.txt", "--window", "9 s", "--base", "pools.yaml", "--fit-profile", "fitted.json"),
    ],
)
def test_a_fleet_of_pools_corrects_no_profile(loraplan: CommandLine, samples: Path, command: tuple[str, ...]) -> None:
    """One profile was corrected by what all pools did together."""
    Path("pools.yaml").write_text(POOLS)
    Path("m.txt").write_text(counted(100, 1.0))
    said = loraplan.refused(*(str(samples / "vllm-closed.json") if word == "BENCH" else word for word in command))
    assert "pools.yaml:4: fleet.pools: what was measured of several pools together" in said
    assert "(got big, small, allowed: a scenario with one kind of replica)" in said
    assert not Path("fitted.json").exists()


def test_a_confined_scenario_can_be_a_server(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written for the run lies outside its folder, and is not the scenario's doing."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("extends: serve-tiny\nname: mine\n")
    base = load_scenario("mine.yaml", confined=True)
    assert bench_world(read_bench(samples / "vllm-closed.json")[0], base, None).pools[0].profile is not None
    with pytest.raises(InputError, match=r"--profile: no such profile \(got nope"):
        bench_world(read_bench(samples / "vllm-closed.json")[0], base, "nope")


def test_draws_stay_where_the_fit_itself_has_to_stay() -> None:
    """Loads that contradict each other leave a spread of many orders; no profile holds such step costs."""
    drawn = _draws(np.array([0.0, 0.001, 0.0]), np.diag([1e4, 1e4, 1.0]), with_fixed=True)
    assert all(math.exp(-3) <= factor <= math.exp(3) for factor, _ in drawn)
    assert all(fixed is not None and fixed >= 0 for _, fixed in drawn)
    for factor, fixed_s in drawn:
        scaled_step(load_profile("cpu/tiny/vllm-0.32")[0].step, factor, fixed_s)
