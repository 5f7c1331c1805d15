"""Python's cycle collector rests while a replication is simulated."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Let the cycle collector rest.

    With 20,000 requests waiting it would look through all of them again and again: a tenth to a quarter of the time.
    It would find nothing: what a simulation makes in cycles (replicas, loads under way) lives to its end, and is no
    more after a long run than after a short one. Everything else goes by its count of references.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
