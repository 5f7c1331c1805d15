"""Where the time of a command goes, stage by stage: what ``--timing`` prints."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Taken = dict[str, list[float]]
"""Of each stage: seconds, CPU seconds of this process, and those of its workers."""
_REST = "rest"
_import = builtins.__import__


class _Count:
    """What is counted in this process; nothing while ``taken`` is None."""

    taken: Taken | None = None
    began = False
    stage = _REST
    since = (0.0, 0.0)


def _switch(name: str) -> str:
    """Count from now on for another stage; return which it was."""
    now = time.perf_counter(), time.process_time()
    _add(_Count.stage, now[0] - _Count.since[0], now[1] - _Count.since[1], 0.0)
    _Count.since, last, _Count.stage = now, _Count.stage, name
    return last


def _add(name: str, *seconds: float) -> None:
    if _Count.taken is not None:
        _Count.taken[name] = [a + b for a, b in zip(_Count.taken.get(name, [0.0] * 3), seconds, strict=True)]


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count what happens inside as this stage, and not as the one around it."""
    if _Count.taken is None:
        yield
        return
    around = _switch(name)
    try:
        yield
    finally:
        _switch(around)


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
    _Count.taken, _Count.stage = {}, _REST
    _Count.since = time.perf_counter(), time.process_time()
    if not _Count.began:
        _add("start", 0.0, _Count.since[1], 0.0)
    _Count.began = True

    def counted(*given: Any, **named: Any) -> Any:
        with stage("imports"):
            return _import(*given, **named)

    builtins.__import__ = counted


def end() -> Taken:
    """Count no more; return what each stage took, nothing where none was counted."""
    builtins.__import__ = _import
    _switch(_REST)
    taken, _Count.taken = _Count.taken, None
    return taken or {}


def sent(task: Callable[..., Any]) -> Callable[..., Any]:
    """Return a task as workers get it: where stages are counted, one that returns its own with its result."""
    return task if _Count.taken is None else partial(_in_worker, task)


def _in_worker(task: Callable[..., T], *arguments: Any) -> tuple[T, Taken]:
    begin()
    return task(*arguments), end()


def received(results: Iterator[Any]) -> Iterator[Any]:
    """Yield what ``sent`` tasks return, as it comes; their stages are added to those of this process."""
    if _Count.taken is None:
        yield from results
        return
    while True:
        with stage("wait for workers"):
            result = next(results, None)
        if result is None:
            return
        for name, (_, cpu_s, workers_s) in result[1].items():
            _add(name, 0.0, 0.0, cpu_s + workers_s)
        yield result[0]
