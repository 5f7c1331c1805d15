"""How policies from outside are made: a mistake in one becomes an error that says where it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sim.spec.registry import Entry


def made(entry: Entry, context: Any, methods: Sequence[str], optional: Sequence[str] = ()) -> Any:
    """Return an object of an outside policy's class.

    :param methods: what it must have; ``optional``: what it must have too, but may be None.
    :raises InputError: if it can't be imported or made, or lacks something.
    """
    make = entry.load()
    if not isinstance(make, type):
        raise entry.unusable(f"it is no class but {make!r}")
    try:
        found = make(context)
    except Exception as error:  # whatever somebody else's class does when it is made
        raise entry.unusable(f"making it from its context raises {type(error).__name__}: {error}") from error
    lacking = [name for name in methods if not callable(getattr(found, name, None))]
    lacking += [f"{name} (None will do)" for name in optional if not _callable_or_none(found, name)]
    if lacking:
        raise entry.unusable(f"it lacks {', '.join(lacking)}")
    return found


def _callable_or_none(found: Any, name: str) -> bool:
    return hasattr(found, name) and (getattr(found, name) is None or callable(getattr(found, name)))
