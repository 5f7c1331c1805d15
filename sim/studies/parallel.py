"""Run tasks in worker processes and hand their results home as they finish."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

from sim.errors import LoraplanError


def unordered(task: Callable[..., Any], arguments: list[tuple[Any, ...]], jobs: int) -> Iterator[Any]:
    """Yield ``task(*a)`` for every ``a`` in the order in which they finish.

    :param jobs: worker processes; -1: one for each core; 1: this process, in order.
    :raises LoraplanError: if a worker died (out of memory, killed).
    """
    from joblib import Parallel, cpu_count, delayed

    workers = min(len(arguments), cpu_count() if jobs < 0 else jobs)
    if workers <= 1:
        for each in arguments:
            yield task(*each)
        return
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    pool = Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs")
    # Workers inherit the mask, so Ctrl-C reaches only this process, even while a worker still starts up; one that
    # comes meanwhile is delivered as soon as the mask is lifted.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        results = pool(delayed(task)(*each) for each in arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield from results
    except TerminatedWorkerError as error:
        raise LoraplanError(
            "a worker process died, perhaps for want of memory; what was finished is kept: run the same command to go "
            "on, with fewer --jobs if memory is short"
        ) from error
    except BaseException:
        _kill_workers()
        raise


def _kill_workers() -> None:
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=False, kill_workers=True)
