"""The interface through which studies run tasks, and the pool that is always there: this machine."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from sim.errors import LoraplanError
from sim.timing import received, sent
from sim.version import build

Task = Callable[..., Any]
PACE = 3 if build() == "compiled" else 1
"""How many times as many requests are simulated while worker processes start, compared with an interpreted build."""


class Pool(Protocol):
    """Workers that take tasks.

    :ivar away: whether workers may run on other machines, without the files of this one.
    """

    away: bool

    def unordered(self, task: Task, arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield ``task(*a)`` for every ``a`` in the order in which they finish.

        :raises LoraplanError: if tasks were lost with their workers; a cluster yields all others first.
        """
        ...

    def for_workload(self, requests: float, least: int, tasks: int) -> Pool:
        """Return the pool that finishes so many simulated requests soonest; below ``least`` perhaps this process.

        :param tasks: how many there are. Workers for them are up when this returns.
        """
        ...


class Local:
    """Worker processes on this machine, or none.

    :param jobs: how many; -1: one for each core; 1: this process, in order.
    """

    away = False

    def __init__(self, jobs: int = -1) -> None:
        self._jobs = jobs
        self._started = False

    def unordered(self, task: Task, arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        return unordered(task, list(arguments), self._jobs)

    def for_workload(self, requests: float, least: int, tasks: int) -> Pool:
        if tasks < 2 or requests < (least / 10 if self._started else least):  # once they are up, little is enough
            return Local(1)
        if not self._started:
            start_workers(tasks, self._jobs)
            self._started = True
        return self


WATCH_S = 0.5
"""How often a worker checks that its parent is alive."""


def unordered(task: Callable[..., Any], arguments: list[tuple[Any, ...]], jobs: int) -> Iterator[Any]:
    """Yield ``task(*a)`` for every ``a`` in the order in which they finish.

    :param jobs: worker processes; -1: one for each core; 1: this process, in order.
    :raises LoraplanError: if a worker died (out of memory, killed).
    """
    workers = min(len(arguments), cores(jobs))
    if workers <= 1:
        for each in arguments:
            yield task(*each)
        return
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    # It replaces workers whose memory has grown, such as by a long run's requests.
    warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
    pool = Parallel(
        n_jobs=workers,
        initializer=end_with_parent,
        initargs=(os.getpid(),),
        return_as="generator_unordered",
        batch_size=1,
        pre_dispatch="2*n_jobs",
    )
    # Workers inherit the mask, so Ctrl-C reaches only this process, even while a worker starts up; a Ctrl-C in the
    # meantime is delivered when the mask is lifted.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        results = pool(delayed(sent(task))(*each) for each in arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield from received(results)
    except TerminatedWorkerError as error:
        raise LoraplanError(
            "a worker process died, perhaps out of memory; finished results are kept: run the same command to "
            "resume, with fewer --jobs if memory is short"
        ) from error
    except BaseException:
        get_reusable_executor().shutdown(wait=False, kill_workers=True)
        raise


def start_workers(tasks: int, jobs: int) -> None:
    """Start the worker processes for so many tasks, and let them import the simulator.

    Only then does the work start, and with it the clock by which the time left is estimated.
    """
    for _ in unordered(_import_simulator, [()] * min(tasks, cores(jobs)), jobs):
        pass


def cores(jobs: int) -> int:
    """Return how many workers ``--jobs`` means: -1 one for each core."""
    if jobs >= 0:
        return jobs
    from joblib import cpu_count

    return int(cpu_count())


def _import_simulator() -> None:
    import sim.results.calibration
    import sim.world.replication  # noqa: F401


def end_with_parent(parent: int) -> None:
    """Make this process end soon after its parent, even if the parent was killed.

    Workers wait on a pipe of which they have both ends, so they would never see it close. Once they are gone, joblib's
    resource trackers lose their last writer and end too. A thread that polls works on every POSIX system. Linux's
    ``PR_SET_PDEATHSIG`` would also fire when the thread ends that started the worker, while the process lives on.
    """
    threading.Thread(target=_watch, args=(parent,), name="end with parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_S)
    os._exit(1)  # results are no longer read, and the main thread may be busy
