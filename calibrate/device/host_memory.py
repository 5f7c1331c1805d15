"""The memory of this machine, as Linux reports it; needs no torch."""

from __future__ import annotations

import os
from pathlib import Path


def free_bytes() -> int:
    """Return the host memory that can still be allocated; all of it where the system doesn't report it."""
    return _read("MemAvailable")


def total_bytes() -> int:
    """Return the memory of the host."""
    return _read("MemTotal")


def _read(field: str) -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # no Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))
