"""A fake server, and a short scenario that fits it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "cli"))  # for command_line

from command_line import CommandLine
from fake_server import FakeServer, running
from serve_samples import write_samples


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running() as server:
        yield server


@pytest.fixture
def loraplan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> CommandLine:
    """The command line, in a folder with ``short.yaml`` and ``profile.json``."""
    monkeypatch.chdir(tmp_path)
    for name in ("LORAPLAN_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    write_samples()
    return CommandLine(monkeypatch, capsys)
