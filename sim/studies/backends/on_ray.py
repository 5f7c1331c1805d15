"""Ray's futures: a cluster started here, or one that is there already."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sim.errors import InputError
from sim.studies.backends.cluster import ClusterGone, Futures, TaskLost, lacks_loraplan, no_loraplan, without_ctrl_c

TRIES = 3
"""Times that a task is run again after its worker died; Dask's default."""
SET_BEFORE_IMPORT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # the user did not agree to usage reports
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # Ray would print to stdout, where results go, the failures of its workers
}
_LOSSES = ("WorkerCrashedError", "OutOfMemoryError", "NodeDiedError", "ObjectLostError")


def start(jobs: int) -> Futures:
    """Start a cluster of ``jobs`` worker processes on this machine."""
    # Without "local" it would join any cluster that it finds on this machine.
    return RayFutures("the Ray cluster", address="local", num_cpus=jobs, include_dashboard=False)


def connect(address: str) -> Futures:
    """Connect to a cluster.

    :param address: ``ray://host:10001`` from anywhere; ``auto`` or ``host:6379`` on one of its machines.
    :raises InputError: if nothing answers.
    """
    try:
        return RayFutures(f"the Ray cluster at {address}", address=address)
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


class RayFutures:
    """Futures of this process's connection to Ray, of which there can be only one.

    :param options: of ``ray.init``.
    """

    def __init__(self, name: str, **options: Any) -> None:
        for key, value in SET_BEFORE_IMPORT.items():
            os.environ.setdefault(key, value)
        import ray

        self.name = name
        self._ray = ray
        if ray.is_initialized():
            raise InputError("this process uses Ray already", key="--backend", hint="call ray.shutdown() first")
        with _own_signals(), without_ctrl_c(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what goes wrong is raised, too
            ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **options)
        self._in_flight: list[Any] = []
        self._calls: dict[Any, Any] = {}

    def cores(self) -> int:
        try:
            return int(self._ray.cluster_resources().get("CPU", 0))
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            raise ClusterGone(self.name) from error

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Any:
        if call not in self._calls:
            self._calls[call] = self._ray.remote(num_cpus=1, max_retries=TRIES)(call)
        reference = self._calls[call].remote(*arguments)
        self._in_flight.append(reference)
        return reference

    def ended(self, timeout_s: float) -> list[Any]:
        if not self._in_flight:
            return []
        try:
            ended, self._in_flight = self._ray.wait(self._in_flight, num_returns=1, timeout=timeout_s)
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            raise ClusterGone(self.name) from error
        return list(ended)

    def result(self, handle: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(handle)
        except Exception as error:
            if isinstance(error, tuple(getattr(errors, name) for name in _LOSSES)):
                raise TaskLost from error
            if lacks_loraplan(error):
                raise no_loraplan(self.name) from None
            if isinstance(error, (errors.LocalRayletDiedError, errors.RaySystemError, ConnectionError)):
                raise ClusterGone(self.name) from error
            raise

    def close(self) -> None:
        try:
            with suppress(Exception):  # the cluster itself may be gone
                for reference in self._in_flight:
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
