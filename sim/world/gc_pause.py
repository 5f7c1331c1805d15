"""Pause Python's cycle collector while a replication is simulated."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the cycle collector.

    With 20,000 waiting requests, it scanned all of them again and again, for a tenth to a quarter of the CPU time. It
    would free nothing: objects in reference cycles (replicas, loads under way) live to the end of the simulation, and
    their number does not grow with its length. Reference counts free everything else.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
