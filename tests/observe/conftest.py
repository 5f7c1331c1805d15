"""The command line in an empty folder, with samples of metrics and of benchmarks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "cli"))  # for command_line

from command_line import CommandLine

SAMPLES = Path(__file__).with_name("samples")


@pytest.fixture
def loraplan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> CommandLine:
    monkeypatch.chdir(tmp_path)
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def samples() -> Path:
    return SAMPLES
