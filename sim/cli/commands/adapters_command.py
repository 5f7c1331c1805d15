"""``loraplan adapters``: a census of PEFT adapter folders, checked against what an engine serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.options import JsonOption, QuietOption, takes
from sim.cli.output import message, print_rich, progress_bar, rich_rows, say, say_json
from sim.errors import InputError

if TYPE_CHECKING:
    from sim.training.files.census import AlikeAdapters, Census, Entry, Failure
    from sim.training.files.engine_checks import Concern, ServingTarget

NOT_FIT = 1
_ROWS, _LISTED = 20, 5
_LABELS = {"refused": "refused", "wrong": "served wrongly", "waste": "waste", "unknown": "unknown", "note": "note"}


@dataclass(frozen=True)
class AdaptersOptions:
    """The argument and the options of ``loraplan adapters``."""

    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with PEFT adapters in it or below.")]
    engine: Annotated[str | None, typer.Option(help="Check them against an engine's preset, such as vllm-0.32.")] = None
    max_rank: Annotated[
        int | None, typer.Option(help="The engine's largest rank. Default: what the adapters need.", min=1)
    ] = None
    base_model: Annotated[
        str | None, typer.Option(help="The base model that is served. Default: what most adapters name.")
    ] = None
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a scenario with these adapters and their true sizes.")
    ] = None
    example: Annotated[
        bool, typer.Option("--example", help="First write 16 example adapters into DIR, a new folder.")
    ] = False
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if one is refused, served wrongly or unreadable.")
    ] = False
    json: JsonOption = False
    quiet: QuietOption = False


@takes(AdaptersOptions)
def adapters(options: AdaptersOptions) -> None:
    """Count PEFT adapters by their headers: ranks, modules and sizes, and whether an engine serves them as they are.

    Example: loraplan adapters my-adapters --engine vllm-0.32
    """
    from sim.training.files.census import find_copies, take_census
    from sim.training.files.engine_checks import ServingTarget, check_census, check_serving_target

    target = ServingTarget(options.engine, options.max_rank, options.base_model)
    check_serving_target(target)
    if options.write is not None:
        from sim.studies.training.adapter_scenario import check_target

        check_target(options.write)
    if options.example:
        from calibrate.loads.synthetic_adapters import write_example_fleet

        write_example_fleet(options.folder)
    with progress_bar(options.quiet, "reading headers") as progress:
        census = take_census(options.folder, progress)
    unreadable = [failure for failure in census.failures if failure.kind == "unreadable"]
    if not census.entries:
        raise _none_read(census)
    with progress_bar(options.quiet, "comparing") as progress:
        concerns = check_census(census, target, find_copies(census.entries, progress=progress))
    if options.write is not None:
        from sim.studies.training.adapter_scenario import write_scenario

        for note in write_scenario(census, target, options.write):
            message(f"note: {note}", options.quiet)
    if unreadable:
        message(f"note: {_folders(len(unreadable))} could not be read", options.quiet)
    if options.json:
        say_json(_as_json(census, concerns, target))
    else:
        _print(census, concerns, target)
        if options.write is not None:
            say("", f"scenario {options.write}")
    if options.check and (unreadable or any(concern.level in ("refused", "wrong") for concern in concerns)):
        raise typer.Exit(NOT_FIT)


def _none_read(census: Census) -> InputError:
    """Return the error of a census without an adapter; it names the first few folders."""
    from sim.cells import printable

    shown = "; ".join(f"{failure.folder}: {failure.problem}" for failure in census.failures[:3])
    return InputError(
        f"none of {_folders(len(census.failures))} holds a LoRA adapter that can be read",
        file=printable(str(census.root), 300),
        hint=shown,
    )


def _print(census: Census, concerns: Sequence[Concern], target: ServingTarget) -> None:
    from sim.training.files.census import groups
    from sim.training.files.engine_checks import needed_rank

    kinds = groups(census.entries)
    say(_headline(census, kinds), "")
    print_rich(rich_rows(*_single_rows(census.entries)) if len(census.entries) <= _ROWS else rich_rows(*_kinds(kinds)))
    option = target.rules.rank_option
    if target.engine is not None and option and target.max_rank is None:
        say("", f"{target.engine} takes these ranks with {option} {needed_rank(census.entries, target)}.")
    if concerns:
        say("")
    for concern in concerns:
        say(_sentence(concern))
    for kind in ("not LoRA", "unreadable"):
        _print_failures(kind, [failure for failure in census.failures if failure.kind == kind])


def _headline(census: Census, kinds: Sequence[AlikeAdapters]) -> str:
    from sim.spec.units import human_bytes

    count = len(census.entries)
    sizes = sorted(entry.bytes for entry in census.entries)
    each = human_bytes(sizes[0])
    if sizes[0] != sizes[-1]:
        each = f"{each} to {human_bytes(sizes[-1])} each"
    what = "1 adapter" if count == 1 else f"{count:,} adapters of {len(kinds):,} kind{'s' if len(kinds) > 1 else ''}"
    total = f"{human_bytes(census.bytes)}, {each}" if count > 1 else each
    return f"{what}: {total}."


def _single_rows(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    from sim.spec.units import human_bytes

    head = ["adapter", "rank", "alpha", "modules", "dtype", "tensors", "parameters", "size", "base model", "extras"]
    return head, [
        [
            entry.folder,
            _ranks(entry),
            "?" if entry.alpha is None else f"{entry.alpha:g}",
            _modules(entry),
            ",".join(entry.dtypes),
            f"{entry.tensors:,}",
            f"{entry.parameters:,}",
            human_bytes(entry.bytes),
            entry.base_model or "?",
            ", ".join(entry.extras),
        ]
        for entry in entries
    ]


def _kinds(kinds: Sequence[AlikeAdapters]) -> tuple[list[str], list[list[str]]]:
    from sim.spec.units import human_bytes

    head = ["adapters", "rank", "modules", "dtype", "size", "in all", "base model", "extras", "such as"]
    rows = [
        [
            f"{kind.count:,}",
            _ranks(kind.first),
            _modules(kind.first),
            ",".join(kind.first.dtypes),
            _size(kind),
            human_bytes(kind.bytes),
            kind.first.base_model or "?",
            ", ".join(kind.first.extras),
            kind.first.folder,
        ]
        for kind in kinds[:_ROWS]
    ]
    if len(kinds) > _ROWS:
        rest = kinds[_ROWS:]
        rows.append([f"{sum(kind.count for kind in rest):,}", f"… {len(rest):,} more kinds; --json has all"])
        rows[-1] += [""] * (len(head) - 2)
    return head, rows


def _ranks(entry: Entry) -> str:
    return str(entry.rank) if len(entry.ranks) == 1 else f"{entry.ranks[0]} to {entry.rank}"


def _modules(entry: Entry) -> str:
    words = entry.target_words
    return words if len(words) <= 40 else words[:39] + "…"


def _size(kind: AlikeAdapters) -> str:
    from sim.spec.units import human_bytes

    low, high = human_bytes(kind.smallest), human_bytes(kind.largest)
    return low if low == high else f"{low} to {high}"


def _sentence(concern: Concern) -> str:
    what = "1 adapter" if concern.count == 1 else f"{concern.count:,} adapters"
    more = ", …" if concern.count > len(concern.folders) and concern.check != "copies" else ""
    where = f" ({', '.join(concern.folders)}{more})" if concern.folders else ""
    source = f" [{concern.source}]" if concern.source else ""
    return f"{_LABELS[concern.level]}: {what}: {concern.words}{where}{source}"


def _print_failures(kind: str, failures: Sequence[Failure]) -> None:
    if not failures:
        return
    say("", f"{kind}: {_folders(len(failures))}")
    for failure in failures[:_LISTED]:
        say(f"  {failure.folder}: {failure.problem}")
    if len(failures) > _LISTED:
        say(f"  … {len(failures) - _LISTED:,} more; --json has all")


def _folders(count: int) -> str:
    return "1 folder" if count == 1 else f"{count:,} folders"


def _as_json(census: Census, concerns: Sequence[Concern], target: ServingTarget) -> dict[str, Any]:
    from sim.cells import printable
    from sim.training.files.census import groups
    from sim.training.files.engine_checks import needed_rank, served_base

    return {
        "schema_version": 1,
        "folder": printable(str(census.root), 300),
        "engine": target.engine,
        "max_rank": needed_rank(census.entries, target),
        "base_model": served_base(census.entries, target),
        "count": len(census.entries),
        "bytes": census.bytes,
        "adapters": [_entry_json(entry) for entry in census.entries],
        "groups": [
            {
                "count": kind.count,
                "ranks": list(kind.first.ranks),
                "targets": kind.first.target_words,
                "dtypes": list(kind.first.dtypes),
                "base_model": kind.first.base_model,
                "extras": list(kind.first.extras),
                "bytes": kind.bytes,
            }
            for kind in groups(census.entries)
        ],
        "concerns": [
            {
                "check": c.check,
                "level": c.level,
                "words": c.words,
                "count": c.count,
                "folders": list(c.folders),
                "source": c.source,
            }
            for c in concerns
        ],
        "failures": [{"folder": f.folder, "kind": f.kind, "problem": f.problem} for f in census.failures],
    }


def _entry_json(entry: Entry) -> dict[str, Any]:
    return {
        "folder": entry.folder,
        "rank": entry.rank,
        "ranks": list(entry.ranks),
        "alpha": entry.alpha,
        "targets": list(entry.modules),
        "dtypes": list(entry.dtypes),
        "tensors": entry.tensors,
        "parameters": entry.parameters,
        "bytes": entry.bytes,
        "file_bytes": entry.file_bytes,
        "layers": entry.layers,
        "base_model": entry.base_model,
        "model": entry.model,
        "extras": list(entry.extras),
    }
