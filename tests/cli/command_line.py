"""Run the command line in this process, or as a program of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from sim import cli


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


class CommandLine:
    """Call ``loraplan`` as from a shell; the folder it works in is a temporary one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Ended:
        self._monkeypatch.setattr(sys, "argv", ["loraplan", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = self._capsys.readouterr()
        return Ended(int(stopped.value.code or 0), out, err)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start ``loraplan`` as a process group of its own, so that signals reach it as from a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "sim.cli", *arguments],
        cwd=folder,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    )
