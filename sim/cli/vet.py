"""``loraplan vet``: was this adapter trained well, and what would cure it?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.options import DebugOption, QuietOption
from sim.cli.output import message, print_rich, rich_rows, to_json

if TYPE_CHECKING:
    from sim.training.vetted import Vetted

_SHOWN = 20
"""Adapters with findings that the terminal shows in full."""


def vet(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="An adapter folder, a folder of them, or a trainer_state.json.")
    ],
    reference: Annotated[
        Path | None, typer.Option(help="Log or folder of the same training on a 16-bit base, to compare quality with.")
    ] = None,
    base_bits: Annotated[
        int | None, typer.Option(help="Bits of the base's weights in training, where no file says so.", min=1, max=32)
    ] = None,
    examples: Annotated[
        int | None, typer.Option(help="Examples that were trained on, where the log doesn't say.", min=1)
    ] = None,
    threshold: Annotated[
        list[str] | None, typer.Option(help="Draw a line elsewhere: name=value, such as small_rank=8. Repeatable.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if anything likely or certain was found.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Read adapters' training logs: what went wrong, on which evidence, and what would cure it."""
    from sim.training.thresholds import parse_thresholds
    from sim.training.vet import vet_path
    from sim.training.vet_words import as_json

    found = vet_path(path, parse_thresholds(threshold or []), reference, base_bits=base_bits, examples=examples)
    if json:
        typer.echo(to_json([as_json(one) for one in found]))
    else:
        _print(found, quiet)
    if check and not all(one.passes for one in found):
        raise typer.Exit(1)


def _print(found: tuple[Vetted, ...], quiet: bool) -> None:
    from sim.training.vet_words import summary

    if len(found) == 1:
        _print_one(found[0], quiet)
        return
    typer.echo(summary(found))
    worth = sorted((one for one in found if one.findings), key=lambda one: one.passes)
    for one in worth[:_SHOWN]:
        typer.echo("")
        _print_one(one, quiet)
    if len(worth) > _SHOWN:
        typer.echo(f"\n… and {len(worth) - _SHOWN} more with findings: --json has all of them")


def _print_one(one: Vetted, quiet: bool) -> None:
    from sim.training.safetensors_header import printable
    from sim.training.vet_words import cure_rows, verdict

    typer.echo(verdict(one))
    for finding in one.findings:
        if len(one.findings) > 1:
            typer.echo(f"{finding.mode} ({finding.confidence})")
        for evidence in finding.evidence:
            typer.echo(f"  {printable(evidence.what, 300)}")
        typer.echo("")
        print_rich(rich_rows(["cure", "rank", "targets", "parameters", "size"], cure_rows(one, finding)))
    for note in one.notes:
        message(f"note: {printable(note, 400)}", quiet)
