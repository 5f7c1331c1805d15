"""Shared by both clusters: workers that ignore Ctrl-C, and the error for workers without loraplan."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

from sim.errors import InputError


@contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Start processes that don't get a terminal's Ctrl-C; one in the meantime is delivered afterwards.

    They inherit the mask, as do threads that start more of them later.
    """
    resource_tracker.ensure_running()  # which takes SIGINT off the mask of the thread that first needs it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def lacks_loraplan(error: BaseException) -> bool:
    """Say whether a task failed because its worker could not import the simulator."""
    seen: BaseException | None = error
    while seen is not None:
        if "No module named 'sim'" in str(seen) or "No module named 'sim." in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def no_loraplan(where: str) -> InputError:
    """Return the error for a worker without loraplan."""
    return InputError(
        f"a worker of {where} has no loraplan", key="--backend", hint="install the same versions on every worker"
    )
