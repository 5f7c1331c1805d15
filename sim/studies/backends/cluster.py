"""A pool on Dask or Ray: executors that differ in how they start, what a lost task raises and how they are left."""

from __future__ import annotations

import logging
import os
import pickle
import platform
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import metadata
from itertools import chain, islice
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Protocol

from sim.errors import InputError, LoraplanError
from sim.studies.backends.pool import Pool, Task
from sim.studies.study_identity import code_version

POLL_S = 1.0
"""How long the main thread waits at a time, before it asks again whether the cluster and its workers are there."""
QUEUED = 2
"""Tasks in flight per core: one runs and one waits, so that no worker idles while a result is sent."""
FEWEST = 16
"""Tasks in flight, at least, so that a cluster that scales with its queue sees the work."""
PATIENCE_S = 15.0
"""Seconds without a worker before the user gets a note."""
TIMEOUT_S = 10
TRIES = 3
"""Times that Ray runs a task again after its worker died; Dask's default."""
SET_BEFORE_IMPORT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # the user did not agree to usage reports
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # Ray would print to stdout, where results go, the failures of its workers
}
_LACKS_LORAPLAN = "__import__('importlib.util').util.find_spec('sim') is None"
_NO_LORAPLAN = ("No module named 'sim'", "No module named 'sim.")
_FORGOTTEN = "not enough values to unpack (expected 3, got 2)"
"""What Dask's executor raises (2026.8) for a result whose worker dies before the result is handed over: it takes the
pair that ``run_on_worker`` returned for an error. The task is sent again."""


class ClusterGone(LoraplanError):
    """The cluster itself can't be reached any more."""

    def __init__(self, where: str) -> None:
        super().__init__(f"{where} is gone; finished results are kept: run the same command to resume")


class ClusterExecutor(Protocol):
    """What a pool needs of a cluster. It reruns a task elsewhere, a few times, when its worker dies.

    :ivar name: such as ``the Dask cluster at tcp://host:8786``.
    :ivar lost: what a future raises where its task died with its workers; ``gone``: where the cluster did.
    """

    name: str
    lost: tuple[type[BaseException], ...]
    gone: tuple[type[BaseException], ...]

    def cores(self) -> int:
        """Return how many tasks run at a time now; 0 while there are no workers.

        :raises BaseException: one of ``gone``, where the cluster is.
        """
        ...

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Begin a call on some worker."""
        ...

    def close(self) -> None:
        """Cancel everything in flight and disconnect; stop the cluster if this study started it."""
        ...


class Cluster:
    """A pool that limits tasks in flight, yields results as they end, and counts losses.

    :param jobs: most tasks in flight; -1: as many as keep all cores busy.
    :param on_note: called with notes for the user.
    """

    away = True

    def __init__(
        self, executor: ClusterExecutor, jobs: int = -1, on_note: Callable[[str], None] = lambda text: None
    ) -> None:
        self._executor = executor
        self._jobs = jobs
        self._on_note = on_note
        self._workers_seen_s = time.monotonic()

    def for_workload(self, requests: float, least: int, tasks: int) -> Pool:
        return self

    def unordered(self, task: Task, arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield results as they end. Arguments are consumed as there is room, so they need not exist all at once."""
        executor, home, left = self._executor, software(), iter(arguments)
        under_way: dict[Future[Any], tuple[Any, ...]] = {}
        lost = 0
        while True:
            try:
                room = self._room() - len(under_way)
            except executor.gone as error:
                raise ClusterGone(executor.name) from error
            some = list(islice(left, max(0, room)))
            under_way |= {executor.submit(run_on_worker, home, task, each): each for each in some}
            if not under_way:
                break
            ended, _ = wait(set(under_way), POLL_S, FIRST_COMPLETED)
            for future in ended:
                given = under_way.pop(future)
                try:
                    value, problem = future.result()
                except executor.lost:
                    lost += 1
                    continue
                except executor.gone as gone:
                    raise ClusterGone(executor.name) from gone
                except Exception as raised:
                    if lacks_loraplan(raised):
                        raise no_loraplan(executor.name) from None
                    if str(raised) != _FORGOTTEN:
                        raise
                    left = chain([given], left)
                    continue
                if problem is not None:
                    raise problem
                yield value
        if lost:
            tasks = f"{lost} tasks" if lost > 1 else "a task"
            raise LoraplanError(
                f"{tasks} died with every worker that tried, perhaps out of memory; all other results are kept: "
                "run the same command to try again, with fewer tasks per machine"
            )

    def _room(self) -> int:
        cores, now = self._executor.cores(), time.monotonic()
        if cores:
            self._workers_seen_s = now
        elif now - self._workers_seen_s > PATIENCE_S:
            self._on_note(f"note: {self._executor.name} has no workers; waiting for some")
            self._workers_seen_s = float("inf")  # once is enough
        return self._jobs if self._jobs > 0 else max(QUEUED * cores, FEWEST)


# On a worker: its software is compared with that of the study, then the task runs.


@lru_cache(maxsize=1)
def software() -> Mapping[str, str]:
    """Return the versions of everything that affects results to the last digit."""
    packages = {name: metadata.version(name) for name in ("numpy", "scipy", "simpy")}
    return {"loraplan": code_version(), "Python": ".".join(platform.python_version_tuple()[:2]), **packages}


def run_on_worker(home: Mapping[str, str], task: Task, arguments: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    """Run a task; return its value, or the error that it raised, since each cluster wraps raised errors in its own way.

    :param home: ``software`` of the study; a worker with other software refuses.
    """
    try:
        own = software()
        if others := [name for name in home if own.get(name) != home[name]]:
            raise InputError(
                f"a worker on {platform.node()} has other versions, which may give other numbers",
                key="--backend",
                got=", ".join(f"{name} {own.get(name)}" for name in others),
                allowed=", ".join(f"{name} {home[name]}" for name in others),
                hint="install the same versions on every worker",
            )
        return task(*arguments), None
    except Exception as error:
        error.add_note(f"on the worker:\n{traceback.format_exc()}")
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # errors of some packages can't be pickled
            return None, LoraplanError(f"{type(error).__name__}: {error}")
        return None, error


def lacks_loraplan(error: BaseException) -> bool:
    """Say whether a task failed because its worker could not import the simulator."""
    seen: BaseException | None = error
    while seen is not None:
        if any(words in str(seen) for words in _NO_LORAPLAN):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def no_loraplan(where: str) -> InputError:
    """Return the error for a worker without loraplan."""
    return InputError(
        f"a worker of {where} has no loraplan", key="--backend", hint="install the same versions on every worker"
    )


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


class Dask:
    """The executor of a Dask client.

    :param where: the cluster, or how its scheduler is found; ``own``: the cluster to end with the client.
    """

    lost: tuple[type[BaseException], ...]
    gone: tuple[type[BaseException], ...]

    def __init__(self, where: Any, name: str, own: Any = None) -> None:
        from distributed import Client, KilledWorker

        for logger in ("distributed", "distributed.client"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)  # what matters is raised, in one line
        self.name, self._own = name, own
        self.lost = (KilledWorker,)
        self.gone = CancelledError, OSError  # cancelled: the scheduler forgot it, since it ended or restarted
        kwargs = where if isinstance(where, dict) else {"address": where}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions that differ: those that matter are compared by every task
            self._client = Client(**kwargs, timeout=TIMEOUT_S, set_as_default=False)
        self._executor = self._client.get_executor(pure=False)
        self.submit = self._executor.submit
        self._known: set[str] = set()
        self._cores, self._asked_s = 0, float("-inf")

    @classmethod
    def started(cls, jobs: int) -> Dask:
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
            return cls(cluster, "the Dask cluster", cluster)

    @classmethod
    def at(cls, address: str, on_note: Callable[[str], None]) -> Dask:
        """Connect to a scheduler.

        :param address: ``tcp://host:8786``, or the scheduler's JSON file.
        :raises InputError: if nothing answers.
        """
        is_file = address.endswith(".json")
        if is_file and not Path(address).is_file():
            hint = "dask scheduler --scheduler-file writes it"
            raise InputError("no such file", key="--address", got=address, hint=hint)
        try:
            found = cls({"scheduler_file": address} if is_file else address, f"the Dask cluster at {address}")
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                "no Dask scheduler answers here",
                key="--address",
                got=address,
                allowed="such as tcp://host:8786",
                hint=next(iter(str(error).splitlines()), type(error).__name__),
            ) from None
        crowded = [name for name, threads in found._client.nthreads().items() if threads > 1]
        if crowded:
            on_note(
                f"note: workers such as {crowded[0]} have several threads, of which only one computes at a time: start "
                "workers with --nthreads 1 --nworkers auto"
            )
        return found

    def cores(self) -> int:
        now = time.monotonic()
        if now - self._asked_s > POLL_S:
            if self._client.status not in ("running", "newly-created"):
                raise OSError(self._client.status)
            threads = self._client.nthreads()
            self.refuse_without_loraplan(threads.keys() - self._known)
            self._cores, self._asked_s = sum(threads.values()), now
        return self._cores

    def refuse_without_loraplan(self, workers: set[str]) -> None:
        """Ask workers that are new: one that can't import a task dies of it, and the task would wait for ever."""
        if not workers:
            return
        lacking = self._client.run(eval, _LACKS_LORAPLAN, workers=list(workers), on_error="ignore")
        if any(lacking.values()):
            raise no_loraplan(self.name)
        self._known |= lacking.keys()

    def close(self) -> None:
        try:
            if self._own is None and self._client.status == "running":
                self._executor.shutdown(wait=False)
        finally:
            self._client.close(timeout=TIMEOUT_S)
            if self._own is not None:
                self._own.close()


class Ray:
    """This process's connection to Ray, of which there can be only one.

    :param options: of ``ray.init``.
    """

    lost: tuple[type[BaseException], ...]
    gone: tuple[type[BaseException], ...]

    def __init__(self, name: str, **options: Any) -> None:
        for key, value in SET_BEFORE_IMPORT.items():
            os.environ.setdefault(key, value)
        import ray

        if ray.is_initialized():
            raise InputError("this process uses Ray already", key="--backend", hint="call ray.shutdown() first")
        with _own_signals(), without_ctrl_c(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what goes wrong is raised, too
            ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **options)
        self.name, self._ray, errors = name, ray, ray.exceptions
        self.lost = errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError, errors.ObjectLostError
        self.gone = errors.LocalRayletDiedError, errors.RaySystemError, ConnectionError
        self._remote = lru_cache(ray.remote(num_cpus=1, max_retries=TRIES))
        self._references: dict[Future[Any], Any] = {}

    @classmethod
    def started(cls, jobs: int) -> Ray:
        """Start a cluster of ``jobs`` worker processes on this machine."""
        # Without "local" it would join any cluster that it finds on this machine.
        return cls("the Ray cluster", address="local", num_cpus=jobs, include_dashboard=False)

    @classmethod
    def at(cls, address: str, on_note: Callable[[str], None]) -> Ray:
        """Connect to a cluster.

        :param address: ``ray://host:10001`` from anywhere; ``auto`` or ``host:6379`` on one of its machines.
        :raises InputError: if nothing answers.
        """
        try:
            return cls(f"the Ray cluster at {address}", address=address)
        except ImportError as error:
            raise InputError(
                "an address ray://… needs Ray's client",
                key="--address",
                got=address,
                hint=f"pip install 'ray[client]' ({error})",
            ) from None
        except (OSError, ValueError, RuntimeError) as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                "no Ray cluster answers here",
                key="--address",
                got=address,
                allowed="such as ray://host:10001; on one of its machines auto",
                hint=f"{first}; a cluster that was started with a token wants RAY_AUTH_MODE=token here, too",
            ) from None

    def cores(self) -> int:
        try:
            return int(self._ray.cluster_resources().get("CPU", 0))
        except self._ray.exceptions.RayError as error:
            raise ConnectionError from error

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        reference = self._remote(call).remote(*arguments)
        future: Future[Any] = reference.future()
        self._references[future] = reference
        future.add_done_callback(self._references.pop)
        return future

    def close(self) -> None:
        try:
            with suppress(Exception):  # the cluster itself may be gone
                for reference in list(self._references.values()):
                    self._ray.cancel(reference, force=True)
        finally:
            self._ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's handlers: Ray takes SIGTERM for itself, and what was started would not be ended."""
    if threading.current_thread() is not threading.main_thread():  # where neither Ray nor we can set any
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
