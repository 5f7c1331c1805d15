"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CONFINED = "confined"
"""What the context of a command holds where its scenario must not name files outside its folder."""

ScenarioArgument = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="A scenario file, or the name of a bundled one.")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Change a value: a.b.c=value. Repeatable.")]
SeedOption = Annotated[int | None, typer.Option(help="Replace run.seed.", min=0)]
OutOption = Annotated[
    Path | None, typer.Option(help="Run directory; unset: runs/NAME, with -sweep or -plan behind it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress and no messages, only results and errors.")]
CheckOption = Annotated[bool, typer.Option("--check", help="Exit with 1 unless the SLO is met.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Simulate again what the run directory has.")]
JobsOption = Annotated[int, typer.Option(help="Worker processes; -1: one for each core.", min=-1)]
BackendOption = Annotated[
    list[str] | None,
    typer.Option(
        "--backend", "--address", metavar="TEXT",
        help="Where to simulate: local (default), dask, ray; or the address of a cluster: tcp://host:8786 (Dask), "
        "ray://host:10001.",
    ),
]  # fmt: skip
"""One option with two names: what is given says by itself whether it is a backend or an address."""


def is_confined(context: typer.Context) -> bool:
    """Return whether ``--confined`` was given, which may stand behind any command."""
    return context.find_root().obj is CONFINED
