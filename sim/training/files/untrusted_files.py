"""Files from strangers: their JSON, and paths that may lead elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sim.cells import printable
from sim.errors import InputError
from sim.reading import brackets_fit, inside, read_regular


def resolved_inside(path: Path, root: Path) -> Path:
    """Return a path with links resolved.

    :raises InputError: if it leads out of ``root``, or can't be followed.
    """
    try:
        real, home = path.resolve(), root.resolve()
    except (OSError, RuntimeError) as error:  # a link to itself
        raise InputError("this path can't be followed", file=str(path), got=str(error)) from None
    if not inside(real, home):
        raise InputError(
            "this path leads out of the folder",
            file=str(path),
            got=str(real),
            allowed=f"files below {home}",
            hint="copy the adapter instead of linking to it",
        )
    return real


def read_json(path: Path, limit: int, what: str, *, constants: bool = True) -> dict[str, Any]:
    """Return a stranger's JSON object.

    :param limit: bytes of the file, at most; ``what``: its name in errors.
    :param constants: whether NaN and infinities are numbers, as in a training's log; else they are errors.
    :raises InputError: if it can't be read, is too long or no JSON object.
    """
    try:
        if not path.is_file():
            raise InputError(f"no such {what}", file=str(path))
        raw = read_regular(path, limit)
    except OSError as error:
        raise InputError(f"can't read this {what}: {error.strerror or error}", file=str(path)) from None
    try:
        if not brackets_fit(raw):
            raise ValueError("too many brackets for its length")
        data = json.loads(raw, parse_constant=None if constants else _no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"this {what} is not JSON", file=str(path), got=printable(str(error))) from None
    if not isinstance(data, dict):
        raise InputError(f"this {what} is not a JSON object", file=str(path))
    return data


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
