"""What each command does for somebody who uses it right."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from catalogue_names import ALWAYS_THERE
from command_line import CommandLine

from sim.cli.output import progress_bar

SMALL = ("--set", "workload.requests=1100", "--set", "run.replications=2")
FEW = ("run", "quickstart", "--set", "workload.requests=300", "--out", "out")


@pytest.fixture
def finished(loraplan: CommandLine, tmp_path: Path) -> Path:
    """The folder of a run of ``FEW``."""
    loraplan.succeeds(*FEW)
    return tmp_path / "out"


def test_a_run_leaves_a_run_directory_with_a_row_for_each_request(finished: Path) -> None:
    """What its command and its page say stands in tools/same."""
    manifest = json.loads((finished / "manifest.json").read_text())
    assert (manifest["status"], manifest["profile"]["status"]) == ("finished", "derived")
    assert manifest["scenario"]["workload"]["requests"] == 300
    requests = pd.read_parquet(finished / "requests.parquet")
    assert list(requests["index"]) == list(range(300))
    assert (requests["status"] == "completed").all()
    assert (requests["arrival_s"] <= requests["admitted_s"]).all()
    assert (requests["admitted_s"] < requests["first_token_s"]).all()
    assert (requests["first_token_s"] <= requests["finished_s"]).all()
    assert set(requests["outcome"]) <= {"hit", "delayed_hit", "miss"}
    assert {"adapter", "version", "replica", "tier", "load_wait_s"} <= set(requests.columns)


def test_a_run_has_its_headroom_unless_it_is_not_searched(loraplan: CommandLine) -> None:
    loraplan.headroom = True
    run = ("run", "cache-thrash", "--set", "workload.requests=2000", "--json")
    assert json.loads(loraplan(*run).out)["headroom"]["term"] == "e2e_p99_s"
    assert "headroom" not in json.loads(loraplan(*run, "--no-headroom", "--overwrite").out)


def test_a_run_shows_the_base_model_beside_the_adapters(loraplan: CommandLine, tmp_path: Path) -> None:
    mix = 'adapters.mix=[{"share": "30%", "kind": "base"}, {"share": "70%", "rank": 16}]'
    ended = loraplan.succeeds("run", "quickstart", *SMALL, "--set", mix, "--quiet", "--all")
    assert " of the requests are for the base model; of the others, the hottest 1 / 10 / 20 % of " in ended.out
    lines = ended.out.splitlines()
    place = lines.index("Requests to the base model and to adapters")
    assert [line.split("  ")[0] for line in lines[place + 1 : place + 4]] == ["group", "base model", "adapters"]
    requests = pd.read_parquet(tmp_path / "runs/quickstart/requests.parquet")
    assert 0.25 < requests["adapter"].isna().mean() < 0.35
    assert (requests["outcome"].isna() == requests["adapter"].isna()).all()
    assert "Groups of requests" in (tmp_path / "runs/quickstart/report.html").read_text()


def test_one_seed_repeats_byte_for_byte_and_two_differ(loraplan: CommandLine, tmp_path: Path) -> None:
    for out, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        loraplan.succeeds("run", "quickstart", *SMALL, "--seed", seed, "--out", out)
    for name in ("summary.json", "points.csv", "requests.parquet"):
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes()
        assert first != (tmp_path / "c" / name).read_bytes()


def test_worker_processes_change_nothing(loraplan: CommandLine, tmp_path: Path) -> None:
    big = ("--set", "workload.requests=35000", "--set", "run.replications=2")  # above what runs in one process
    loraplan.succeeds("run", "cache-thrash", *big, "--out", "one", "--jobs", "1")
    loraplan.succeeds("run", "cache-thrash", *big, "--out", "two", "--jobs", "2")
    assert (tmp_path / "one/points.csv").read_bytes() == (tmp_path / "two/points.csv").read_bytes()
    assert (tmp_path / "one/requests.parquet").read_bytes() == (tmp_path / "two/requests.parquet").read_bytes()


def test_sweep_runs_all_combinations_on_the_same_traffic(loraplan: CommandLine, tmp_path: Path) -> None:
    over = ("--over", "cache.gpu.slots=16,64", "--over", "storage.loaders=1,2")
    loraplan.succeeds("sweep", "quickstart", *SMALL, *over, "--set", "fleet.engine=continuous")
    summary = json.loads((tmp_path / "runs/quickstart-sweep/summary.json").read_text())
    assert [point["set"] for point in summary["points"]] == [
        {"cache.gpu.slots": slots, "storage.loaders": loaders} for slots in (16, 64) for loaders in (1, 2)
    ]
    table = pd.read_csv(tmp_path / "runs/quickstart-sweep/points.csv")
    metric = ["metric", "value", "lo", "hi", "unit", "calibration_lo", "calibration_hi"]
    assert list(table.columns) == ["cache.gpu.slots", "storage.loaders", *metric]
    assert len(table) == 4 * len(ALWAYS_THERE)
    misses = table[table["metric"] == "miss_ratio"].set_index(["cache.gpu.slots", "storage.loaders"])["value"]
    assert misses[64, 1] < misses[16, 1]


def test_report_draws_again_without_simulating(loraplan: CommandLine, finished: Path) -> None:
    page = finished / "report.html"
    before = page.read_text()
    page.unlink()
    assert loraplan("report", "out").out.strip() == "out/report.html"
    assert page.read_text() == before


def test_check_says_ok_and_shows_where_values_come_from(loraplan: CommandLine) -> None:
    assert loraplan("check", "quickstart").out.startswith("quickstart: ok\n")
    ended = loraplan("check", "burst", "--resolved", "--set", "cache.gpu.slots=48")
    rows = {line.split()[0]: line for line in ended.out.splitlines() if line}
    assert rows["cache.gpu.slots"].split()[1:] == ["48", "--set"]
    assert "burst.yaml:" in rows["workload.arrivals.cv"]
    assert "quickstart.yaml:" in rows["adapters.count"]
    assert rows["fleet.max_num_seqs"].split()[1:] == ["256", "engine", "vllm"]


def test_a_copy_of_a_scenario_finds_its_trace(loraplan: CommandLine) -> None:
    loraplan.succeeds("scenarios", "copy", "tenants-trace", "mine.yaml")
    loraplan.succeeds("check", "mine.yaml")


def test_requests_are_always_those_of_the_first_point(loraplan: CommandLine, tmp_path: Path) -> None:
    few = ("--set", "workload.requests=500", "--set", "run.replications=1", "--out", "out")
    loraplan("sweep", "quickstart", *few, "--over", "cache.gpu.slots=16,64")
    first = pd.read_parquet(tmp_path / "out/requests.parquet")["outcome"]
    loraplan("sweep", "quickstart", *few, "--over", "cache.gpu.slots=64,16")
    second = pd.read_parquet(tmp_path / "out/requests.parquet")["outcome"]
    assert (second == "miss").sum() < (first == "miss").sum()


def test_without_a_terminal_a_sweep_prints_a_line_for_each_point(loraplan: CommandLine) -> None:
    few = ("--set", "workload.requests=300", "--set", "run.replications=1", "--overwrite")
    sweep = ("sweep", "quickstart", *few, "--over", "cache.gpu.slots=16,32,64")
    lines = [line for line in loraplan(*sweep).err.splitlines() if line.startswith("simulating: ")]
    assert [line.partition(",")[0] for line in lines] == [f"simulating: {done} of 3" for done in (1, 2, 3)]
    assert re.search(r"of 3, about \d:\d\d left$", lines[0])
    assert "simulating" not in loraplan(*sweep, "--quiet").err


@pytest.mark.parametrize(("total", "lines"), [(1, 1), (20, 20), (21, 20), (1000, 20)])
def test_progress_without_a_terminal_takes_twenty_lines_at_most(
    capsys: pytest.CaptureFixture[str], total: int, lines: int
) -> None:
    with progress_bar(quiet=False, lines=True) as report:
        for done in range(total + 1):
            report(done, total)
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == lines
    assert printed[-1] == f"simulating: {total} of {total}"


def test_another_grid_gets_a_folder_of_its_own_and_a_larger_one_goes_on(loraplan: CommandLine, tmp_path: Path) -> None:
    few = ("--set", "workload.requests=300", "--set", "run.replications=1")
    loraplan("sweep", "quickstart", *few, "--over", "cache.gpu.slots=16,64")
    more = loraplan("sweep", "quickstart", *few, "--over", "cache.gpu.slots=16,32,64")
    assert "2 of 3 points come" in more.err
    loraplan("sweep", "quickstart", *few, "--over", "fleet.replicas=1,2")
    summary = json.loads((tmp_path / "runs/quickstart-sweep/summary.json").read_text())
    assert len(summary["points"]) == 3
    assert (tmp_path / "runs/quickstart-sweep-2/report.html").exists()


def test_a_run_is_doubled_until_its_interval_is_narrow(loraplan: CommandLine) -> None:
    few = ("--set", "workload.requests=1000", "--set", "run.replications=2", "--set", "run.half_width=8%")
    found = loraplan.data("run", "cache-thrash", *few)
    assert list(found["short_answer"]) == ["verdict", "headline", "set", "first_limit", "bill", "trust"]
    assert found["short_answer"]["verdict"] == "met"
    metrics = found["points"][0]["metrics"]
    assert metrics["completed"]["value"] > 2 * 950
    p99 = metrics["e2e_p99_s"]
    assert p99["hi"] - p99["value"] <= 0.08 * p99["value"]


def imported_by(*arguments: str) -> set[str]:
    """Return the names of all modules that are there after a command."""
    code = (
        f"import sys; sys.argv = {['loraplan', *arguments]!r}\n"
        "from sim.cli import main\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code\n"
        "print(*sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(printed.splitlines()[-1].split())


def test_help_and_check_import_nothing_heavy() -> None:
    heavy = {"numpy", "pandas", "scipy", "matplotlib", "pyarrow", "simpy", "joblib", "jinja2", "torch", "dask", "ray"}
    assert not heavy & imported_by("--help")
    heavy = {"pandas", "scipy", "matplotlib", "pyarrow", "joblib", "jinja2", "torch", "rich.console"}
    heavy |= {"sim.studies.evaluate", "sim.studies.plan.command", "calibrate.command"}
    assert not heavy & imported_by("check", "quickstart")


def test_profiles_and_their_fits_need_no_torch() -> None:
    """Torch times steps and loads; what reads their samples, or kernel tables, does without."""
    assert "torch" not in imported_by("profiles", "list", "h100")
    modules = ("calibrate.fit.report", "calibrate.fit.sample_fit", "calibrate.kernels.profile_from_kernels")
    modules = (*modules, "calibrate.serve.serve_study")
    code = f"import sys, {', '.join(modules)}; print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "False\n"


@pytest.mark.parametrize("few", [FEW, FEW[:-2]])
def test_a_run_needs_no_pandas_and_a_finished_one_no_simulator(
    few: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not {"pandas", "scipy", "matplotlib"} & imported_by(*few)
    heavy = {"pandas", "scipy", "matplotlib", "jinja2", "numpy", "pyarrow", "simpy", "joblib", "sim.studies.sweep"}
    assert not heavy & imported_by(*few)


def test_a_finished_run_is_read_and_not_written_again(loraplan: CommandLine, finished: Path) -> None:
    def files() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in finished.rglob("*.*") if file.name != ".lock"}

    before = files()
    again = [loraplan(*FEW, *jobs) for jobs in ((), ("--jobs", "1"))]
    assert again[0].out == again[1].out
    assert "come from an earlier run" in again[1].err
    assert files() == before
    loraplan.succeeds(*FEW, "--overwrite")
    assert all(time > before[file] for file, time in files().items()), "all of it is simulated and written anew"


def test_a_finished_run_gets_back_what_was_deleted(loraplan: CommandLine, finished: Path) -> None:
    for name in ("report.html", "points.csv", "requests.parquet"):
        (finished / name).unlink()
        loraplan(*FEW)
        assert (finished / name).exists()
    summary = finished / "summary.json"
    whole = summary.read_bytes()
    summary.write_bytes(whole[:-20])  # torn
    loraplan.succeeds(*FEW)
    assert summary.read_bytes() == whole


def test_a_finished_run_is_simulated_again_if_a_file_that_it_read_changes(
    loraplan: CommandLine, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.txt"
    weights.write_text("3\n2\n1\n")
    popularity = f"workload.popularity={{law: weights, file: {weights}}}"
    few = ("run", "quickstart", "--set", "workload.requests=300", "--set", popularity, "--set", "adapters.count=null")
    loraplan.succeeds(*few)
    assert "from an earlier run" in loraplan(*few).err
    weights.write_text("3\n2\n1\n1\n")
    assert "from an earlier run" not in loraplan(*few).err
    assert (tmp_path / "runs/quickstart-2/report.html").exists()
    weights.unlink()
    assert "weights.txt" in loraplan(*few).err


def test_versions_in_the_manifest_are_those_of_the_last_command(loraplan: CommandLine, finished: Path) -> None:
    file = finished / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps({**manifest, "versions": {**manifest["versions"], "python": "2.7.18"}}))
    assert "from an earlier run" in loraplan(*FEW).err
    assert json.loads(file.read_text())["versions"] == manifest["versions"]


def test_an_older_report_is_drawn_again(loraplan: CommandLine, finished: Path) -> None:
    report = finished / "report.html"
    report.write_text("of an older version")
    os.utime(report, (0, 0))
    loraplan(*FEW)
    assert "of an older version" not in report.read_text()
