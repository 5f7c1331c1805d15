"""Where the time of a command goes, stage by stage: what ``--timing`` prints."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Taken = dict[str, list[float]]
"""Of each stage: seconds, CPU seconds of this process, CPU seconds of worker processes."""
REST = "rest"
_import = builtins.__import__


class Stages:
    """What the stages of a process took; the time of a stage inside another one counts as the inner one's only."""

    def __init__(self) -> None:
        self.taken: Taken = {}
        self._open, self._since = REST, (time.perf_counter(), time.process_time())

    def switch(self, name: str) -> str:
        """Count from now on for another stage; return which it was."""
        now = (time.perf_counter(), time.process_time())
        self.add(self._open, now[0] - self._since[0], now[1] - self._since[1], 0.0)
        self._since, last, self._open = now, self._open, name
        return last

    def add(self, name: str, *seconds: float) -> None:
        """Add to what a stage took."""
        self.taken[name] = [a + b for a, b in zip(self.taken.get(name, [0.0] * 3), seconds, strict=True)]


_stages: Stages | None = None
_OFF = nullcontext()
_begun: list[bool] = []


def stage(name: str) -> AbstractContextManager[None]:
    """Count what happens inside as this stage, if stages are counted."""
    return _OFF if _stages is None else _counted(_stages, name)


@contextmanager
def _counted(stages: Stages, name: str) -> Iterator[None]:
    around = stages.switch(name)
    try:
        yield
    finally:
        stages.switch(around)


def timed(name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Count every call of a function as this stage."""

    def decorated(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def call(*given: P.args, **named: P.kwargs) -> T:
            with stage(name):
                return function(*given, **named)

        return call

    return decorated


def begin() -> None:
    """Count from now on, imports too; what the process took before is its start."""
    global _stages
    if _stages is None:
        _stages = Stages()
        if not _begun:
            _begun.append(True)
            _stages.add("start", 0.0, time.process_time(), 0.0)

    def counted(*given: Any, **named: Any) -> Any:
        with stage("imports"):
            return _import(*given, **named)

    builtins.__import__ = counted


def end() -> Taken:
    """Count no more; return what each stage took."""
    global _stages
    builtins.__import__ = _import
    stages, _stages = _stages, None
    if stages is None:
        return {}
    stages.switch(REST)
    return stages.taken


def sent(task: Callable[..., Any]) -> Callable[..., Any]:
    """Return a task as workers get it: where stages are counted, one that returns its own with its result."""
    return task if _stages is None else partial(_in_worker, task)


def _in_worker(task: Callable[..., T], *arguments: Any) -> tuple[T, Taken]:
    begin()
    return task(*arguments), end()


def received(results: Iterator[Any]) -> Iterator[Any]:
    """Yield what ``sent`` tasks return, as it comes; their stages are added to those of this process."""
    while True:
        with stage("wait for workers"):
            result = next(results, None)
        if result is None:
            return
        if _stages is None:
            yield result
        else:
            for name, (_, cpu_s, _) in result[1].items():
                _stages.add(name, 0.0, 0.0, cpu_s)
            yield result[0]
