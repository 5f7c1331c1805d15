"""A profile with draws, from the command line: table, files, report, and the same numbers every time."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from command_line import CommandLine
from profiles_with_draws import write_profile

FEW = ("--set", "workload.requests=1500", "--set", "run.replications=2", "--quiet")
DRAWS = [(0.9, 1.0), (1.1, 0.9), (1.05, 1.2)]


@pytest.fixture
def profile(tmp_path: Path) -> str:
    write_profile(tmp_path / "drawn.json", DRAWS)
    return "fleet.profile=drawn.json"


def test_a_run_has_both_intervals_side_by_side(loraplan: CommandLine, tmp_path: Path, profile: str) -> None:
    assert loraplan("run", "quickstart", *FEW, "--set", profile, "--out", "out").code == 0
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
        assert loraplan("run", "quickstart", *big, "--out", out, "--jobs", jobs).code == 0
    for name in ("summary.json", "points.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


def test_a_sweep_that_goes_on_keeps_them(loraplan: CommandLine, tmp_path: Path, profile: str) -> None:
    sweep = ("sweep", "quickstart", *FEW, "--set", profile, "--over", "cache.gpu.slots=16,64", "--out", "out")
    assert loraplan(*sweep).code == 0
    tables = {name: (tmp_path / "out" / name).read_bytes() for name in ("summary.json", "points.csv", "report.html")}
    assert b"calibration_lo" in tables["points.csv"]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    (tmp_path / "out/points" / f"{manifest['point_keys'][1]}.json").unlink()
    again = loraplan(*(word for word in sweep if word != "--quiet"))
    assert "1 of 2 points come" in again.err
    for name in ("summary.json", "points.csv"):
        assert (tmp_path / "out" / name).read_bytes() == tables[name]
    assert loraplan("report", "out").code == 0
    assert "Thin bars: calibration intervals." in (tmp_path / "out/report.html").read_text()
    assert "In square brackets: calibration intervals." in tables["report.html"].decode()


def test_one_point_and_a_grid_of_one_give_the_same_interval(
    loraplan: CommandLine, tmp_path: Path, profile: str
) -> None:
    loraplan("run", "quickstart", *FEW, "--set", profile, "--set", "cache.gpu.slots=16", "--out", "one")
    loraplan("sweep", "quickstart", *FEW, "--set", profile, "--over", "cache.gpu.slots=16,64", "--out", "many")
    one, many = (json.loads((tmp_path / out / "summary.json").read_text())["points"][0] for out in ("one", "many"))
    assert one["metrics"] == many["metrics"]
