"""The proof: a real vLLM serves the bundled scenario, and the simulator predicts it (make vllm-env, make test-vllm)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from vllm_environment import PYTHON, needs_vllm

pytestmark = [
    pytest.mark.slow,
    needs_vllm,
    pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="times a server: 'make test-vllm' runs it alone"),
]


def test_a_real_vllm_is_predicted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "sim.cli",
        "calibrate",
        "serve",
        "serve-tiny",
        "--launch",
        "vllm",
        "--fit",
        "--server-python",
        str(PYTHON),
        "--out",
        str(tmp_path / "out"),
        "--set",
        "workload.requests=200",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=570, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    metrics = summary["metrics"]
    with capfd.disabled():  # quality depends on how quiet the machine is: shown, not asked for
        print(f"\n{'metric':22}{'measured':>12}{'predicted':>12}{'error':>9}{'noise':>9}{'aim':>8}")
        for name, row in metrics.items():
            numbers = [
                f"{row[key]:12.4g}" if row[key] is not None else f"{'–':>12}" for key in ("measured", "predicted")
            ]
            shares = [
                f"{row[key]:{width}.1%}" if row[key] is not None else f"{'–':>{width}}"
                for key, width in (("error", 9), ("noise", 9), ("wanted", 8))
            ]
            print(f"{name:22}{''.join(numbers)}{''.join(shares)}")
    assert summary["failed"] == [0, 0]
    assert summary["loads_from"] == "an observer inside the server"
    assert abs(metrics["loads_per_request"]["error"]) < 0.10
    assert abs(metrics["throughput_rps"]["error"]) < 0.05
    assert (tmp_path / "out" / "report.html").stat().st_size < 2_000_000
