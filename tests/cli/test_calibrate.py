"""``loraplan calibrate`` on a CPU, as a user runs it: from nothing to a simulation, broken off, given wrong input."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from command_line import CommandLine, start, wait_until
from profiles_with_draws import write_profile

pytest.importorskip("torch", reason="needs the gpu extra: pip install -e '.[gpu]'")

from calibrate import measure

BRIEF = measure.Method(rounds=2, least=6, half_width=1.0, limit_s=0.02, warmup=0)
ALL = ("calibrate", "all", "--device", "cpu", "--model", "tiny", "--quick", "--out", "runs/cal")


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a few samples of each configuration: how exact the medians are matters to no test here."""
    monkeypatch.setattr(measure, "QUICK", BRIEF)


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
def test_from_nothing_to_a_simulation_and_then_with_another_backend(tmp_path: Path, loraplan: CommandLine) -> None:
    ended = loraplan.succeeds(*ALL)
    assert "leave one configuration out" in ended.out
    assert "Traceback" not in ended.err
    for stage in ("timing steps", "timing loads"):
        lines = [line for line in ended.err.splitlines() if line.startswith(f"{stage}: ")]
        assert 10 < len(lines) <= 20, "progress without a terminal"
    profile = json.loads((tmp_path / "runs/cal/profile.json").read_text())
    assert profile["status"] == "measured"
    assert len(profile["draws"]) == 16
    assert profile["conditions"]["lora_backend"] == "grouped_mm"
    assert {line["form"] for line in profile["hold_out"]} == {"additive", "multiplicative", "law"}
    assert profile["provenance"]["device"]["torch"]
    settings = ("--set", "fleet.profile=runs/cal/profile.json", "--set", "workload.requests=500")
    metrics = loraplan.data("run", "quickstart", *settings, "--out", "run")["points"][0]["metrics"]
    assert metrics["ttft_p50_s"]["calibration_lo"] <= metrics["ttft_p50_s"]["value"]
    assert not (tmp_path / "runs/cal/adapters").exists()
    is_fitted_where_it_was_timed("bmm", tmp_path, loraplan)


def is_fitted_where_it_was_timed(backend: str, folder: Path, loraplan: CommandLine) -> None:
    """Time another backend beside loads that are there already: timing those again would say nothing new."""
    tiny = ("--device", "cpu", "--model", "tiny", "--quick", "--out", "cal")
    (folder / "cal").mkdir()
    for file in (folder / "runs/cal").glob("loads.*"):
        shutil.copy(file, folder / "cal")
    loads = (folder / "cal/loads.jsonl").read_bytes()
    loraplan.succeeds("calibrate", "loads", *tiny)
    assert (folder / "cal/loads.jsonl").read_bytes() == loads, "a finished run has nothing left to do"
    loraplan.succeeds("calibrate", "steps", *tiny, "--backend", backend, "--layers", "1")
    loraplan.succeeds("calibrate", "fit", "cal", "--out", "cal/profile.json")
    profile = json.loads((folder / "cal/profile.json").read_text())
    assert profile["conditions"]["lora_backend"] == backend
    assert profile["conditions"]["layers_timed"] == 1
    assert next(line["count"] for line in profile["hold_out"] if line["what"] == "LoRA decode steps") > 20


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_broken_off_run_keeps_its_samples(tmp_path: Path, number: signal.Signals) -> None:
    samples = tmp_path / "runs/cal/steps.jsonl"
    process = start(tmp_path, *ALL)
    wait_until(lambda: samples.exists() and samples.read_bytes().count(b"\n") >= 5, process, 200)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert err.strip().splitlines()[-1] == (
            "interrupted: what was measured is kept; run the same command to resume"
        )
        assert "Traceback" not in err
    kept = samples.read_bytes()
    again = start(tmp_path, *ALL)
    wait_until(lambda: len(samples.read_bytes()) > len(kept), again, 200)
    os.killpg(again.pid, signal.SIGKILL)
    again.communicate(timeout=60)
    whole = kept[: kept.rfind(b"\n") + 1]
    assert samples.read_bytes().startswith(whole)


def test_steps_of_which_a_kind_is_missing_are_not_fitted(loraplan: CommandLine, tmp_path: Path) -> None:
    tiny = ("--device", "cpu", "--model", "tiny", "--quick", "--out", "cal", "--within", "0s")
    ended = loraplan("calibrate", "steps", "lora-decode", *tiny)
    assert ended.code == 1
    assert "time is up (--within): the same command continues with what is left" in ended.err
    ended = loraplan("calibrate", "loads", "whole", *tiny)
    assert ended.code == 1
    assert (tmp_path / "cal/adapters").exists(), "the same command continues with them"
    assert "steps.parquet: no base decode steps were timed" in loraplan.refused(
        "calibrate", "fit", "cal", "--out", "p.json"
    )
    manifest = json.loads((tmp_path / "cal/loads.json").read_text())
    assert manifest["slow_down"] is None


def test_without_a_gpu_cuda_is_refused(loraplan: CommandLine) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "--device cpu measures this machine's processor" in loraplan.refused("calibrate", "all", "--out", "out")


def test_without_torch_the_extra_is_named(loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    said = loraplan.refused("calibrate", "steps", "--device", "cpu", "--model", "tiny")
    assert "torch is not installed" in said
    assert "run pip install -e '.[gpu]' in your clone of loraplan" in said


FEW = ("--set", "workload.requests=1500", "--set", "run.replications=2", "--quiet")
DRAWS = [(0.9, 1.0), (1.1, 0.9), (1.05, 1.2)]


@pytest.fixture
def profile(tmp_path: Path) -> str:
    write_profile(tmp_path / "drawn.json", DRAWS)
    return "fleet.profile=drawn.json"


def test_a_run_has_both_intervals_side_by_side(loraplan: CommandLine, tmp_path: Path, profile: str) -> None:
    loraplan.succeeds("run", "quickstart", *FEW, "--set", profile, "--out", "out")
    metrics = json.loads((tmp_path / "out/summary.json").read_text())["points"][0]["metrics"]
    ttft = metrics["ttft_p99_s"]
    assert ttft["calibration_lo"] < ttft["value"] < ttft["calibration_hi"]
    assert {"value", "lo", "hi", "unit"} < set(ttft)
    with (tmp_path / "out/points.csv").open() as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert float(rows["ttft_p99_s"]["calibration_hi"]) == ttft["calibration_hi"]
    assert json.loads((tmp_path / "out/manifest.json").read_text())["profile"]["draws"] == 3


def test_without_draws_there_is_no_word_of_them(loraplan: CommandLine, tmp_path: Path) -> None:
    assumed = ("--set", "fleet.profile=h100-64gb/llama-3.1-8b/assumed")
    ended = loraplan("run", "quickstart", "--all", *FEW, *assumed, "--out", "out")
    assert "calibration" not in ended.out.lower()
    assert "draws" not in json.loads((tmp_path / "out/manifest.json").read_text())["profile"]
    for name in ("summary.json", "points.csv"):
        assert "calibration" not in (tmp_path / "out" / name).read_text()
    assert "calibration interval" not in (tmp_path / "out/report.html").read_text()


def test_one_seed_gives_the_same_intervals_with_any_number_of_workers(
    loraplan: CommandLine, tmp_path: Path, profile: str
) -> None:
    big = ("--set", "workload.requests=13000", "--set", "run.replications=2", "--set", profile, "--quiet")
    for out, jobs in (("a", "1"), ("b", "2"), ("c", "2")):  # five simulations: above what runs in one process
        loraplan.succeeds("run", "quickstart", *big, "--out", out, "--jobs", jobs)
    for name in ("summary.json", "points.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


def test_a_sweep_that_goes_on_keeps_them(loraplan: CommandLine, tmp_path: Path, profile: str) -> None:
    sweep = ("sweep", "quickstart", *FEW, "--set", profile, "--over", "cache.gpu.slots=16,64", "--out", "out")
    loraplan.succeeds(*sweep)
    tables = {name: (tmp_path / "out" / name).read_bytes() for name in ("summary.json", "points.csv", "report.html")}
    assert b"calibration_lo" in tables["points.csv"]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    (tmp_path / "out/points" / f"{manifest['point_keys'][1]}.json").unlink()
    again = loraplan(*(word for word in sweep if word != "--quiet"))
    assert "1 of 2 points come" in again.err
    for name in ("summary.json", "points.csv"):
        assert (tmp_path / "out" / name).read_bytes() == tables[name]
    loraplan.succeeds("report", "out")
    assert "Thin bars: calibration intervals." in (tmp_path / "out/report.html").read_text()
    assert "In square brackets: calibration intervals." in tables["report.html"].decode()


def test_one_point_and_a_grid_of_one_give_the_same_interval(
    loraplan: CommandLine, tmp_path: Path, profile: str
) -> None:
    loraplan("run", "quickstart", *FEW, "--set", profile, "--set", "cache.gpu.slots=16", "--out", "one")
    loraplan("sweep", "quickstart", *FEW, "--set", profile, "--over", "cache.gpu.slots=16,64", "--out", "many")
    one, many = (json.loads((tmp_path / out / "summary.json").read_text())["points"][0] for out in ("one", "many"))
    assert one["metrics"] == many["metrics"]
