"""The same sweep on real clusters: the same tables, also when a worker is killed midway, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from command_line import CommandLine, start, wait_until
from process_tree import THERE, below, left_after, workers

pytestmark = pytest.mark.waits

FEW = ("--set", "workload.requests=4000", "--set", "run.replications=1", "--jobs", "2")
RATES = ",".join(f"{rate}/s" for rate in range(20, 32))
SWEEP = ("sweep", "cache-thrash", *FEW, "--over", f"workload.arrivals.rate={RATES}")


@pytest.fixture(params=["dask", "ray"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    package = {"dask": "distributed", "ray": "ray"}[name]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed (the extra [{name}])")
    return name


def wait_for_points(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    wait_until(lambda: len(list((folder / "points").glob("*.json"))) >= count, process)


@pytest.mark.slow
@pytest.mark.skipif(not THERE, reason="finds processes in /proc")
def test_tables_are_the_same_with_a_worker_killed_midway(loraplan: CommandLine, tmp_path: Path, backend: str) -> None:
    loraplan.succeeds(*SWEEP, "--out", "here")
    process = start(tmp_path, *SWEEP, "--backend", backend, "--json", "--out", "there")
    wait_for_points(process, tmp_path / "there", 4)
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    for table in ("points.csv", "summary.json", "requests.parquet"):
        assert (tmp_path / "there" / table).read_bytes() == (tmp_path / "here" / table).read_bytes()
    printed = json.loads(out)  # fails where something else was printed among the results
    assert printed.pop("short_answer")["headline"]
    assert printed == json.loads((tmp_path / "there/summary.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(not THERE, reason="finds processes in /proc")
def test_a_signal_leaves_no_worker_behind_and_any_backend_goes_on(
    loraplan: CommandLine, tmp_path: Path, backend: str
) -> None:
    process = start(tmp_path, *SWEEP, "--backend", backend, "--out", "out")
    wait_for_points(process, tmp_path / "out", 2)
    started = below(process.pid)
    assert workers(process.pid)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "interrupted: finished points are kept; run the same command to resume"
    assert not left_after(20, started)
    again = loraplan.succeeds(*SWEEP, "--out", "out")  # on this machine
    assert "of 12 points come from an earlier run" in again.err
