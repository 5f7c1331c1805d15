"""A sweep that is stopped keeps what was finished, and the same command resumes it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from command_line import start, wait_until

pytestmark = pytest.mark.waits

MANY = ("--set", "workload.requests=40000", "--set", "run.replications=1", "--jobs", "2", "--out", "out")
RATES = [f"{rate}/s" for rate in range(20, 32)]
SWEEP = ("sweep", "cache-thrash", *MANY, "--over", f"workload.arrivals.rate={','.join(RATES)}")
POINTS = len(RATES)


def points(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (folder / "out" / "points").glob("*.json")}


def stop_midway(folder: Path, number: signal.Signals) -> tuple[subprocess.Popen[str], dict[str, int], str]:
    """Start the sweep, send a signal to the whole group once two points are there, and wait for its end."""
    process = start(folder, *SWEEP)
    wait_until(lambda: len(points(folder)) >= 2, process)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    kept = points(folder)
    assert 2 <= len(kept) < POINTS, "the signal came too late to show anything"
    return process, kept, err


@pytest.mark.slow
def test_ctrl_c_keeps_finished_points_and_exits_130(tmp_path: Path) -> None:
    process, kept, err = stop_midway(tmp_path, signal.SIGINT)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1] == ("interrupted: finished points are kept; run the same command to resume")
    assert "Traceback" not in err
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["status"] == "interrupted"
    assert manifest["points_done"] == len(json.loads((tmp_path / "out/summary.json").read_text())["points"])
    assert len(kept) >= manifest["points_done"] >= 2


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    process, kept, _ = stop_midway(tmp_path, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    again = start(tmp_path, *SWEEP)
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    after = points(tmp_path)
    assert len(after) == POINTS
    assert {name: after[name] for name in kept} == kept, "a finished point was simulated twice"
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert [point["set"]["workload.arrivals.rate"] for point in summary["points"]] == RATES
    assert (tmp_path / "out/report.html").exists()
