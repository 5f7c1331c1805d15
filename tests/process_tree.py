"""Which processes a process has started, for tests that kill one of them. Linux only: it reads ``/proc``."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

THERE = Path("/proc/self/stat").exists()

COMPUTES = ("ray::run_on_worker", "spawn_main")
"""In the command of a process that runs tasks: Ray's and Dask's."""


def below(root: int) -> dict[int, str]:
    """Return the commands of the processes that ``root`` or its descendants have started, by number."""
    commands: dict[int, str] = {}
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                commands[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()

    def descends(number: int) -> bool:
        number = parents.get(number, 0)
        while number not in (0, root):
            number = parents.get(number, 0)
        return number == root

    return {number: command for number, command in commands.items() if descends(number)}


def workers(root: int) -> list[int]:
    """Return those of them that compute."""
    return [number for number, command in below(root).items() if any(word in command for word in COMPUTES)]


def alive(number: int, command: str) -> bool:
    """Say whether a process is still there, and not another one with its number or a zombie."""
    try:
        return (Path("/proc") / str(number) / "cmdline").read_bytes().replace(b"\0", b" ").decode() == command != ""
    except OSError:
        return False


def left_after(seconds: float, processes: dict[int, str]) -> dict[int, str]:
    """Return those of some processes that have not ended within a time."""
    deadline = time.monotonic() + seconds
    while (left := {n: each for n, each in processes.items() if alive(n, each)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
