"""The options that say how a log is read, and what they make of its files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from sim.spec.sections.trace_source import Trace

ColumnsOption = Annotated[
    list[str] | None,
    typer.Option("--columns", help="Which columns of a log hold what: time=ts,adapter=model,input=n_in,output=n_out."),
]
BaseModelOption = Annotated[
    str | None, typer.Option("--base-model", help="A log's name of the base model, whose requests need no adapter.")
]
AdapterFromOption = Annotated[
    str | None,
    typer.Option("--adapter-from", metavar="REGEX", help="Find the adapter's name in a log's column: its first group."),
]
HiddenAdapterFromOption = Annotated[
    str | None,
    typer.Option("--adapter-from", metavar="REGEX", help="Find the adapter's name in a log's column.", hidden=True),
]


def trace_source(
    files: Sequence[Path],
    columns: list[str] | None,
    base_model: str | None,
    adapter_from: str | None,
    *,
    format_: str = "auto",
    skip_bad: bool = False,
) -> Trace:
    """Return a trace as a scenario has it.

    :raises InputError: naming the option that can't be used.
    """
    from pydantic import ValidationError

    from sim.spec.sections.trace_source import TRACE_FORMATS, Trace

    if format_ not in TRACE_FORMATS:
        raise TRACE_FORMATS.unknown(format_, "--format")
    names = [str(file) for file in files]
    given = {
        "file": names if len(names) > 1 else names[0],
        "format": format_,
        "columns": _columns(columns or []) or None,
        "base_model": base_model,
        "adapter_from": adapter_from,
        "skip_bad": skip_bad,
    }
    try:
        return Trace.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        context = first.get("ctx", {})
        place = [str(part) for part in first["loc"]][:2] or [str(context.get("key", "file"))]
        raise InputError(
            str(context.get("problem", "can't be used")),
            key="FILE" if place[0] == "file" else f"--{place[0].replace('_', '-')}",
            got=context.get("got", first["input"]) if len(place) < 2 else f"{place[1]}={first['input']}",
            allowed=context.get("allowed") or context.get("expected"),
        ) from None


def _columns(given: list[str]) -> dict[str, str]:
    """Return the column of each role: ``time=ts,adapter=model``; a name may have commas of its own.

    :raises InputError: for what is no role with a column, or a role that has one already.
    """
    from sim.spec.sections.trace_source import LogColumns

    roles = list(LogColumns.model_fields)
    found: dict[str, str] = {}
    for part in (part for text in given for part in re.split(r",(?=\s*\w+=)", text)):
        role, equals, column = part.partition("=")
        role = role.strip()
        if not equals or not column:
            allowed = f"time=NAME; {', '.join(roles)}"
            raise InputError("not a role and a column", key="--columns", got=part, allowed=allowed)
        if role not in roles:
            near = did_you_mean(role, roles)
            raise InputError("no such role", key="--columns", got=part, allowed=", ".join(roles), hint=near)
        if role in found:
            raise InputError(f"{role} is given twice", key="--columns", got=f"{found[role]} and {column}")
        found[role] = column
    return found
