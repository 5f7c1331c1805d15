"""What is asked of nvidia-smi, and how its answers are read: against a program that answers as drivers do."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the gpu extra: pip install -e '.[gpu]'")

from calibrate.device import hardware  # noqa: E402

GPU = """#!/bin/sh
case "$2" in
  --query-compute-apps=pid) printf '%b' "$APPS" ;;
  --query-gpu=clocks_event_reasons.*) {event} ;;
  --query-gpu=clocks_throttle_reasons.*) echo "Not Active, Not Active, Not Active, Active" ;;
  --query-gpu=*) echo "570.1, 1980, 1980, 2619, 700.00, 41, 5, 16, Enabled" ;;
esac
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "nvidia-smi"
    program.write_text(GPU.format(event='echo "Not Active, Active, Not Active, Not Active"'))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("APPS", "4711\\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: object())
    return program


def test_a_gpu_of_ours_that_gets_hot(driver: Path) -> None:
    seen = hardware._check_cuda()
    assert (seen.throttled, seen.busy, seen.what) == (True, False, "hw_thermal_slowdown")


def test_older_drivers_have_other_names(driver: Path) -> None:
    driver.write_text(GPU.format(event='echo "Field is not a valid field to query."; exit 2'))
    assert hardware._check_cuda().what == "sw_power_cap"


def test_others_on_the_same_gpu(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPS", "4711\\n4712\\n4713\\n")
    seen = hardware._check_cuda()
    assert (seen.busy, "2 other processes" in seen.what) == (True, True)


def test_facts_of_the_gpu(driver: Path) -> None:
    facts = hardware._nvidia(hardware._NVIDIA)
    assert (facts["driver"], facts["power cap, W"], facts["PCIe width"]) == ("570.1", "700.00", "16")


def test_no_driver_no_facts(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.unlink()
    assert hardware._nvidia(hardware._NVIDIA) == {}
    assert hardware._check_cuda() == hardware.Disturbance(False, False, "")
