"""A loraplan that is killed leaves no process behind: no worker, no resource tracker."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import start, wait_until
from process_tree import THERE, below, left_after

LONG = ("--set", "workload.requests=3000000", "--set", "run.replications=2", "--quiet")
SLOTS = ("--minimize", "cache.gpu.slots=4..32")
COMMANDS = {
    "sweep": ("sweep", "cache-thrash", *LONG, "--over", "cache.gpu.slots=4,8", "--jobs", "2"),
    "run": ("run", "cache-thrash", *LONG, "--jobs", "2"),
    "plan": ("plan", "cache-thrash", *LONG, "--set", "slo={ttft_p99: 2 s}", *SLOTS, "--jobs", "2"),
    "dask": ("sweep", "cache-thrash", *LONG, "--over", "cache.gpu.slots=4,8", "--jobs", "2", "--backend", "dask"),
}

pytestmark = [pytest.mark.waits, pytest.mark.skipif(not THERE, reason="finds processes in /proc")]


def kill_alone(process: subprocess.Popen[str], least: int) -> dict[int, str]:
    """Kill a process, and only it, once it has so many descendants; return these."""
    wait_until(lambda: len(below(process.pid)) >= least, process)
    time.sleep(1.0)  # until they compute
    left = below(process.pid)
    process.kill()
    process.wait()
    return left


def gone(left: dict[int, str]) -> bool:
    """Say whether all of them have ended in time; whatever has not is ended here."""
    still = left_after(10, left)
    for number in still:
        os.kill(number, signal.SIGKILL)
    return not still


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_survives_a_command_that_is_killed(tmp_path: Path, name: str) -> None:
    if name == "dask":
        pytest.importorskip("distributed")
    with start(tmp_path, *COMMANDS[name]) as process:
        left = kill_alone(process, 3)  # two workers and a tracker
    assert gone(left)


IDLE = """\
import os, time
from sim.studies.backends.pool import unordered

if __name__ == "__main__":
    print(sorted(unordered(abs, [(-1,), (-2,)], 2)), flush=True)
    time.sleep(600)
"""


def test_workers_without_work_end_too(tmp_path: Path) -> None:
    """They would wait for work on a pipe whose other end they hold themselves."""
    (tmp_path / "idle.py").write_text(IDLE)
    with subprocess.Popen(
        [sys.executable, "idle.py"],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout.readline() == "[1, 2]\n"
        left = kill_alone(process, 3)
    assert gone(left)


def test_all_workers_come_from_one_place() -> None:
    """Fits, predictions, sweeps and plans share it, so what these tests show of one holds for all.

    The page has a process of its own, whose end ``tests/ui/test_ui_command.py`` tests.
    """
    root = Path(__file__).parents[2]
    starts = re.compile(r"\bParallel\(|ProcessPoolExecutor|multiprocessing\.(Pool|Process)|os\.fork\(")
    files = [file for folder in ("sim", "calibrate", "reports") for file in (root / folder).rglob("*.py")]
    assert len(files) > 200
    found = {file.name for file in files if starts.search(file.read_text(encoding="utf-8"))}
    assert found == {"pool.py", "workers.py"}
