"""Write what a terminal of 60, 80, 110 and 200 columns shows: run ``python tools/terminal_snapshots.py``.

Each command runs on a pseudo-terminal. docs/terminal/ gets a text file for each width, and a picture with the colours
of 80 columns. It takes a minute or two of one core.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shlex
import struct
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
SNAPSHOTS = ROOT / "docs" / "terminal"
WIDTHS = (60, 80, 110, 200)
PICTURE_WIDTH = 80
QUICK = ("--help", "run --help", "check quickstart", "profiles list h100", "run quickstrat")
"""Commands that simulate nothing: their snapshots are tested to be what they print now."""
SIMULATING = (
    "run quickstart --set workload.requests=4000 --quiet",
    "sweep quickstart --over cache.gpu.slots=16..48:16 --set workload.requests=4000 --quiet --all",
    "sweep quickstart --over cache.gpu.slots=16,32,64 --over workload.arrivals.rate=4/s..8/s:2/s "
    "--set workload.requests=4000 --quiet --all",
)
_FONT = re.compile(r"@font-face \{.*?\}", re.DOTALL)
"""Fonts that a picture would fetch from elsewhere: the reader's own will do."""
_SEQUENCE = re.compile(r"\x1b\][^\x1b\x07]*(?:\x1b\\|\x07)|\x1b\[[0-9;?]*[A-Za-z]")


def main() -> None:
    """Write all snapshots."""
    SNAPSHOTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for width in WIDTHS:
            parts = []
            for command in (*QUICK, *SIMULATING):
                shown = capture(command, width, Path(folder))
                parts.append(f"$ loraplan {command}\n{plain(shown)}")
                if width == PICTURE_WIDTH and command == SIMULATING[1]:
                    write_picture(f"$ loraplan {command}\n{shown}")
            target = SNAPSHOTS / f"{width}-columns.txt"
            target.write_text("\n".join(parts), encoding="utf-8")
            print(target)


def capture(command: str, width: int, folder: Path) -> str:
    """Return what a command writes to a terminal of a width, with its control sequences."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        environment.pop(name, None)
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execve(sys.executable, [sys.executable, "-m", "sim.cli", *shlex.split(command)], environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    written = b""
    while True:
        try:
            block = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not block:
            break
        written += block
    os.close(terminal)
    os.waitpid(child, 0)
    return written.decode().replace("\r\n", "\n")


def plain(text: str) -> str:
    """Return text without control sequences and without spaces at the ends of lines."""
    return "".join(f"{line.rstrip()}\n" for line in _SEQUENCE.sub("", text).splitlines())


def write_picture(text: str) -> None:
    """Write a picture of a terminal."""
    console = Console(record=True, width=PICTURE_WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(text))
    picture = _FONT.sub("", console.export_svg(title="loraplan"))
    (SNAPSHOTS / f"{PICTURE_WIDTH}-columns.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
