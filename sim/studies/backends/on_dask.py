"""Dask's futures: a cluster of local worker processes, or a running one."""

from __future__ import annotations

import logging
import queue
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sim.errors import InputError
from sim.studies.backends.cluster import ClusterGone, Futures, TaskLost, no_loraplan, without_ctrl_c

TIMEOUT_S = 10
_RECHECK_S = 1.0
_LACKS_LORAPLAN = "__import__('importlib.util').util.find_spec('sim') is None"


def start(jobs: int) -> Futures:
    """Start a cluster of ``jobs`` worker processes on this machine."""
    from distributed import LocalCluster

    with without_ctrl_c():
        # No memory limit: Dask would stop a worker at 95 % of its share, however little its neighbours use.
        cluster = LocalCluster(
            n_workers=jobs,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        )
        return DaskFutures(cluster, "the Dask cluster", cluster)


def connect(address: str, on_note: Callable[[str], None]) -> Futures:
    """Connect to a scheduler.

    :param address: ``tcp://host:8786``, or the scheduler's JSON file.
    :raises InputError: if nothing answers.
    """
    where = {"scheduler_file": address} if address.endswith(".json") else address
    if isinstance(where, dict) and not Path(address).is_file():
        raise InputError("no such file", key="--address", got=address, hint="dask scheduler --scheduler-file writes it")
    try:
        futures = DaskFutures(where, f"the Dask cluster at {address}")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            "no Dask scheduler answers here",
            key="--address",
            got=address,
            allowed="such as tcp://host:8786",
            hint=str(error).splitlines()[0] if str(error) else type(error).__name__,
        ) from None
    crowded = [name for name, threads in futures.threads().items() if threads > 1]
    if crowded:
        on_note(
            f"note: workers such as {crowded[0]} have several threads, of which only one computes at a time: start "
            "workers with --nthreads 1 --nworkers auto"
        )
    return futures


class DaskFutures:
    """Futures of one client.

    :param where: the cluster, or how its scheduler is found; ``own``: the cluster to end with the client.
    """

    def __init__(self, where: Any, name: str, own: Any = None) -> None:
        from distributed import Client

        for logger in ("distributed", "distributed.client"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)  # what matters is raised, in one line
        self.name = name
        self._own = own
        kwargs = where if isinstance(where, dict) else {"address": where}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions that differ: those that matter are compared by every task
            self._client = Client(**kwargs, timeout=TIMEOUT_S, set_as_default=False)
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._in_flight: set[Any] = set()
        self._known: set[str] = set()
        self._cores, self._asked_s = 0, float("-inf")

    def threads(self) -> dict[str, int]:
        """Return how many tasks each worker runs at a time."""
        found: dict[str, int] = self._client.nthreads()
        return found

    def cores(self) -> int:
        now = time.monotonic()
        if now - self._asked_s > _RECHECK_S:
            try:
                threads = self.threads()
                self._refuse_without_loraplan(threads.keys() - self._known)
                self._cores, self._asked_s = sum(threads.values()), now
            except OSError as error:
                raise ClusterGone(self.name) from error
        return self._cores

    def _refuse_without_loraplan(self, workers: set[str]) -> None:
        """Ask workers that are new: one that can't import a task dies of it, and the task would wait for ever."""
        if not workers:
            return
        lacking = self._client.run(eval, _LACKS_LORAPLAN, workers=list(workers), on_error="ignore")
        if any(lacking.values()):
            raise no_loraplan(self.name)
        self._known |= lacking.keys()

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Any:
        future = self._client.submit(call, *arguments, pure=False)
        self._in_flight.add(future)
        future.add_done_callback(self._ended.put)
        return future

    def ended(self, timeout_s: float) -> list[Any]:
        try:
            return [self._ended.get(timeout=timeout_s)]
        except queue.Empty:
            if self._client.status not in ("running", "newly-created"):
                raise ClusterGone(self.name) from None
            return []

    def result(self, handle: Any) -> Any:
        from distributed import CancelledError, KilledWorker

        self._in_flight.discard(handle)
        try:
            return handle.result(timeout=TIMEOUT_S)
        except KilledWorker as error:
            raise TaskLost from error
        except CancelledError as error:  # the scheduler forgot it: it ended or restarted
            raise ClusterGone(self.name) from error

    def close(self) -> None:
        try:
            if self._own is None and self._client.status == "running":
                self._client.cancel(list(self._in_flight), force=True)
        finally:
            self._client.close(timeout=TIMEOUT_S)
            if self._own is not None:
                self._own.close()
