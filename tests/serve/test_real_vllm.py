"""The proof: a real vLLM serves the bundled scenario, and the simulator predicts it (make vllm-env, make test-vllm)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from vllm_environment import PYTHON, needs_vllm

from calibrate.serve.serve_study import STEADY

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(1800),  # three attempts
    needs_vllm,
    pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="times a server: 'make test-vllm' runs it alone"),
]


AIMS = {"loads_per_request": 0.10, "throughput_rps": 0.05}
"""Largest errors of predictions."""


def test_a_real_vllm_is_predicted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The prediction is within the aims, on a machine of steady speed.

    What disturbs only the middle of a run isn't seen in the batch that is timed after it, so a miss counts once it is
    repeated.
    """
    missed = []
    for attempt in (1, 2, 3):
        summary = measured_and_predicted(tmp_path / f"out-{attempt}")
        with capfd.disabled():  # quality depends on how quiet the machine is: shown, not asked for
            print_errors(summary)
        assert summary["failed"] == [0]
        assert summary["loads_from"] == "an observer inside the server"
        assert (tmp_path / f"out-{attempt}" / "report.html").stat().st_size < 2_000_000
        if all(factor is not None and 1 / STEADY < factor < STEADY for factor in summary["slowdown"]):
            errors = {name: summary["metrics"][name]["error"] for name in AIMS}
            if all(abs(errors[name]) < aim for name, aim in AIMS.items()):
                return
            missed.append(errors)
            assert len(missed) < 2, f"twice beyond {AIMS}: {missed}"
    pytest.skip(f"this machine did not run at one speed: a step after the run / in the ladder: {summary['slowdown']}")


def measured_and_predicted(folder: Path) -> dict[str, Any]:
    """Return what the command says of a server with the scenario that it brings along."""
    command = [sys.executable, "-m", "sim.cli", "calibrate", "serve", "serve-tiny", "--launch", "vllm", "--fit"]
    command += ["--server-python", str(PYTHON), "--out", str(folder), "--set", "workload.requests=200", "--json"]
    command += ["--repeat", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=570, check=False)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def print_errors(summary: dict[str, Any]) -> None:
    print(f"\n{'metric':22}{'measured':>12}{'predicted':>12}{'error':>9}{'aim':>8}")
    for name, row in summary["metrics"].items():
        numbers = [f"{row[key]:12.4g}" if row[key] is not None else f"{'–':>12}" for key in ("measured", "predicted")]
        shares = [
            f"{row[key]:{width}.1%}" if row[key] is not None else f"{'–':>{width}}"
            for key, width in (("error", 9), ("wanted", 8))
        ]
        print(f"{name:22}{''.join(numbers)}{''.join(shares)}")
    print("a step after the run / in the ladder:", summary["slowdown"])
