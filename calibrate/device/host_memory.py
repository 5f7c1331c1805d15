"""The memory of this machine, as Linux reports it, and its page cache. Needs no torch."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np


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


# Drop a file from the page cache, and check that it is gone.

SCOPE = "this file's page cache on this machine; caches of the disk, the hypervisor or a file server may still hold it"
"""What ``drop`` empties, as the manifest says."""

_TRIES = 3


def drop(path: Path) -> None:
    """Ask the kernel to forget a file's pages: written out first, because dirty pages stay.

    :raises OSError: where the system or file system can't.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def resident_share(path: Path) -> float:
    """Return the share of a file's pages that are in the page cache, by ``mincore``.

    :raises OSError: where the system doesn't say.
    """
    size = path.stat().st_size
    if size == 0:
        return 0.0
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as view:
        pages = np.zeros(-(-size // mmap.PAGESIZE), dtype=np.uint8)
        mapped = np.frombuffer(view, dtype=np.uint8)
        try:
            call = ctypes.CDLL(None, use_errno=True).mincore
            call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
            failed = call(mapped.ctypes.data, size, pages.ctypes.data)
        finally:
            del mapped  # the map can't be closed while an array refers to it
        if failed:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return float(np.mean(pages & 1))


def make_cold(path: Path) -> float:
    """Drop a file from the page cache; return the share that is still resident after some tries."""
    share = 1.0
    for _ in range(_TRIES):
        drop(path)
        share = resident_share(path)
        if share == 0:
            break
    return share


def why_not_cold(path: Path) -> str | None:
    """Return why a file can't be made cold here, in words; None where it can.

    Pages are read first: a file that was cold before would prove nothing.
    """
    try:
        path.read_bytes()
        if resident_share(path) == 0:
            return "the kernel doesn't say which pages it holds"
        share = make_cold(path)
    except (OSError, AttributeError) as error:  # no posix_fadvise or mincore: not Linux
        return f"the page cache can't be dropped: {error}"
    return None if share <= 0.01 else f"{share:.0%} of a file stays in the page cache (tmpfs, or a shared mapping)"
