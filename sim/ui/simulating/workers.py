"""The worker processes of a page, seen from its own process: who gets which task when, and what stops for what."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sim.errors import LoraplanError
from sim.ui.simulating.worker import FAILED, STOP, STOPPED, Ended, Message, Task, TaskMessage, work

FIRST, SECOND, LATER, LAST = range(4)
"""Urgency of a job: an answer that somebody waits for, the curve around it, a longer run, a plan or a report."""
_DIED = "the simulation ended unexpectedly, perhaps out of memory; a smaller design may work"
_GRACE_S = 5.0
"""Time in which a task that was stopped must end, before its process is replaced."""
_TICK_S = 0.5
"""How often time limits are looked at."""


@dataclass(eq=False)
class Job:
    """A task that is wanted.

    :ivar deliver: called in a thread with each message; at the end with an ``Ended``.
    :ivar limit_s: computing time, at most.
    """

    task: Task
    urgency: int
    deliver: Callable[[Any], None]
    limit_s: float = 120.0
    cancelled: bool = False
    used_s: float = 0.0
    number: int = field(default_factory=itertools.count().__next__)


class TooSlow(LoraplanError):
    """A task took longer than a page allows."""


class Worker:
    """One process and the jobs that wait for it: the most urgent first, which stops a less urgent one.

    A job that was stopped for another one starts again later, from what its process has kept.

    :param draws: whether it gets ready to draw before it takes jobs.
    """

    def __init__(self, name: str, *, draws: bool = False) -> None:
        self._name = name
        self._draws = draws
        self._lock = threading.Condition()
        self._waiting: list[Job] = []
        self._current: Job | None = None
        self._stopping = False
        self._sent = False
        self._closed = False
        self.simulated = 0
        self._start()
        self._thread = threading.Thread(target=self._serve, name=f"jobs for {name}", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Run a job as soon as nothing more urgent is left."""
        with self._lock:
            self._waiting.append(job)
            if self._current is not None and self._current.urgency > job.urgency:
                self._stop_current()
            self._lock.notify_all()

    def cancel(self, job: Job) -> None:
        """Forget a job, and stop it if it runs; nothing more is delivered."""
        with self._lock:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
            elif self._current is job:
                self._stop_current()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._lock.notify_all()
            self._process.kill()
        self._process.join()
        self._connection.close()
        self._thread.join(_GRACE_S)

    @property
    def busy(self) -> bool:
        """Whether a job runs or waits."""
        with self._lock:
            return self._current is not None or bool(self._waiting)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(
            target=work, args=(other, os.getpid(), self._draws), name=f"loraplan ui: {self._name}", daemon=True
        )
        self._process.start()
        other.close()
        self._signals = 0
        self._ready = False

    def _stop_current(self) -> None:
        """Send the one signal that the current job may get; a process that still starts gets none."""
        if self._stopping:
            return
        self._stopping = True
        if self._sent and self._process.is_alive() and self._process.pid is not None:
            self._signals += 1
            os.kill(self._process.pid, STOP)

    def _is_stopping(self) -> bool:
        with self._lock:
            return self._stopping

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            started = time.monotonic()
            try:
                ended = self._talk(job, started)
            except (EOFError, OSError):
                if self._closed:
                    return
                ended = Ended(FAILED, _DIED)
                with self._lock:
                    self._process.kill()
                    self._process.join()
                    self._start()
            job.used_s += time.monotonic() - started
            with self._lock:
                self._current, self._stopping, self._sent = None, False, False
                self.simulated = ended.simulated or self.simulated
                again = ended.how == STOPPED and not job.cancelled and job.used_s < job.limit_s
                if again:
                    self._waiting.append(job)
            if not again and not job.cancelled:
                late = TooSlow(f"stopped after {job.limit_s / 60:.0f} minutes; run the command below instead")
                job.deliver(Ended(FAILED, late) if ended.how == STOPPED else ended)

    def _next(self) -> Job | None:
        with self._lock:
            while not self._waiting and not self._closed:
                self._lock.wait()
            if self._closed:
                return None
            job = min(self._waiting, key=lambda each: (each.urgency, each.number))
            self._waiting.remove(job)
            self._current = job
            return job

    def _talk(self, job: Job, started: float) -> Ended:
        """Send a task and deliver what it says, until it ends.

        :raises EOFError: if the process died, or doesn't stop.
        """
        connection = self._connection
        if not self._ready:
            connection.recv()  # the process has imported what it needs
            self._ready = True
        with self._lock:
            if self._stopping:
                return Ended(STOPPED)
            connection.send(TaskMessage(job.task, self._signals))
            self._sent = True
        stopped = None
        while True:
            if connection.poll(_TICK_S):
                message = connection.recv()
                if isinstance(message, Ended):
                    return message
                assert isinstance(message, Message), "a worker sends nothing else"
                if not job.cancelled:
                    job.deliver(message.what)
            now = time.monotonic()
            if job.used_s + now - started > job.limit_s:
                with self._lock:
                    self._stop_current()
            if self._is_stopping():
                stopped = now if stopped is None else stopped
                if now - stopped > _GRACE_S:
                    raise EOFError


class Workers:
    """The two workers of a page: one follows the visitor, the other draws curves and answers plans.

    They get ready in parallel with the rest of the program, so this module imports little.
    """

    def __init__(self) -> None:
        self.answers = Worker("answers")
        self.curves = Worker("curves", draws=True)

    def close(self) -> None:
        """End both; more than once does no harm."""
        self.answers.close()
        self.curves.close()
