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

    At the end only what the replication left is looked through. Otherwise Python would do so with all objects, those of
    the imported libraries included, which takes a tenth of a compiled replication of 20,000 requests.
    """
    if not gc.isenabled():
        yield
        return
    freezes = gc.get_freeze_count() == 0  # otherwise whoever has frozen objects wants them to stay so
    gc.disable()
    if freezes:
        gc.freeze()
    try:
        yield
    finally:
        try:
            gc.collect(0)
        finally:  # a signal that stops the simulation may come while it collects
            gc.enable()
            if freezes:
                gc.unfreeze()
