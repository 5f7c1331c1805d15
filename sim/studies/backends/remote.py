"""Runs on a worker: compares its software with that of the study, then runs the task."""

from __future__ import annotations

import pickle
import platform
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import Any

from sim.errors import InputError, LoraplanError
from sim.studies.study_identity import code_version


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """The outcome of a task: its value, or the error it raised.

    Errors are returned as values, because each cluster wraps raised errors in its own way.
    """

    value: Any = None
    error: Exception | None = None

    def open(self) -> Any:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value


@lru_cache(maxsize=1)
def software() -> Mapping[str, str]:
    """Return the versions of everything that affects results to the last digit."""
    packages = {name: metadata.version(name) for name in ("numpy", "scipy", "simpy")}
    return {"loraplan": code_version(), "Python": ".".join(platform.python_version_tuple()[:2]), **packages}


def run_on_worker(home: Mapping[str, str], task: Callable[..., Any], arguments: tuple[Any, ...]) -> TaskOutcome:
    """Run a task on a worker.

    :param home: ``software`` of the study; a worker with other software refuses.
    """
    try:
        _check_software(home)
        return TaskOutcome(task(*arguments))
    except Exception as error:
        error.add_note(f"on the worker:\n{traceback.format_exc()}")
        return TaskOutcome(error=_picklable(error))


def _check_software(home: Mapping[str, str]) -> None:
    own = software()
    others = [name for name in home if own.get(name) != home[name]]
    if others:
        raise InputError(
            f"a worker on {platform.node()} has other versions, which may give other numbers",
            key="--backend",
            got=", ".join(f"{name} {own.get(name)}" for name in others),
            allowed=", ".join(f"{name} {home[name]}" for name in others),
            hint="install the same versions on every worker",
        )


def _picklable(error: Exception) -> Exception:
    """Return the error, or its text where it can't be pickled, as errors of some packages."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return LoraplanError(f"{type(error).__name__}: {error}")
    return error
