"""Run the command line in this process, or as a program of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sim import cli


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


class CommandLine:
    """Call ``loraplan`` as from a shell; the folder it works in is a temporary one.

    :ivar headroom: whether runs and plans search for headroom, which takes longer than the runs of most tests.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.headroom = False

    def __call__(self, *arguments: str) -> Ended:
        given = arguments if self.headroom else without_headroom(arguments)
        self._monkeypatch.setattr(sys, "argv", ["loraplan", *given])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = self._capsys.readouterr()
        return Ended(int(stopped.value.code or 0), out, err)

    def succeeds(self, *arguments: str) -> Ended:
        """Call a command that must end well."""
        ended = self(*arguments)
        assert ended.code == 0, ended.err
        return ended

    def refused(self, *arguments: str) -> str:
        """Return what is said of a command that must be refused: one that has no result."""
        ended = self(*arguments)
        assert (ended.code, ended.out) == (2, ""), ended.err
        return ended.err

    def data(self, *arguments: str) -> Any:
        """Return what a command, which must end well, prints with ``--json``."""
        return json.loads(self.succeeds(*arguments, "--json").out)


def without_headroom(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command that doesn't search for headroom."""
    searches = arguments[:1] in (("run",), ("plan",))
    return [*arguments, "--no-headroom"] if searches else list(arguments)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start ``loraplan`` as a process group of its own, so that signals reach it as from a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "sim.cli", *without_headroom(arguments)],
        cwd=folder,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    )


def wait_until(there: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Wait for something that a process does before it ends."""
    deadline = time.monotonic() + seconds
    while not there():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(0.05)
