"""``loraplan cache``: replay a trace's requests on caches of several policies and sizes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.options import JsonOption, QuietOption, takes
from sim.cli.output import (
    file_stem,
    make_folder,
    message,
    print_rich,
    progress_bar,
    rich_table,
    say,
    say_file,
    say_json,
)
from sim.errors import InputError
from sim.spec.policies import CACHE_DEFAULTS

if TYPE_CHECKING:
    from sim.results.traces.cache_points import CacheResult
    from sim.traffic.traces.adapter_sequence import AdapterSequence

TABLE, CURVE, PAGE = "cache.csv", "lru_curve.csv", "report.html"
_MOST_SLOTS = 10**12


@dataclass(frozen=True)
class CacheOptions:
    """The argument and the options of ``loraplan cache``."""

    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A trace that names the adapter of each request.")]
    policy: Annotated[
        str | None, typer.Option(help=f"Eviction policies, with commas between. Default: {','.join(CACHE_DEFAULTS)}.")
    ] = None
    capacity: Annotated[
        str | None, typer.Option(help="Cache sizes, such as 2GB,10GB. Default: a range up to what all adapters take.")
    ] = None
    slots: Annotated[
        str | None, typer.Option(help="Sizes in slots instead, such as 16,32: one adapter each, whatever its size.")
    ] = None
    adapter_size: Annotated[
        str | None, typer.Option(help="Size of every adapter, such as 50MB. Default: the trace's adapter_bytes.")
    ] = None
    format_: Annotated[str, typer.Option("--format", help="Format of the trace (docs/traces.md).")] = "auto"
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that can't be used, and count them.")] = (
        False
    )
    out: Annotated[
        Path | None, typer.Option(help="Folder for results. Default: runs/cache-NAME, and none with --json.")
    ] = None
    json: JsonOption = False
    quiet: QuietOption = False


@takes(CacheOptions)
def cache(options: CacheOptions) -> None:
    """Replay a trace's requests, without times, on caches of several policies and sizes: what misses, and why.

    Example: loraplan cache trace.csv --slots 16,32,64
    """
    from sim.policies.replay.cache_replay import replayable
    from sim.policies.replay.overflow import check_byte_sums
    from sim.studies.traces.cache_study import CacheSizes, study_cache
    from sim.traffic.traces.adapter_sequence import read_adapter_sequence

    policies = [
        replayable(name)
        for name in (_words("--policy", options.policy) if options.policy is not None else CACHE_DEFAULTS)
    ]
    if options.capacity is not None and options.slots is not None:
        raise InputError("give sizes in bytes or in slots, not both", key="--slots", got=options.slots)
    size = None if options.adapter_size is None else _bytes("--adapter-size", options.adapter_size)
    wanted = _wanted(options.capacity, options.slots)
    folder = options.out or (None if options.json else Path("runs") / f"cache-{file_stem(options.trace)}")
    objects = read_adapter_sequence(
        str(options.trace), format=options.format_, skip_bad=options.skip_bad, adapter_size=size
    )
    if folder is not None:
        make_folder(folder)
    notes = list(objects.notes)
    by_slots = options.slots is not None or (options.capacity is None and objects.size_bytes is None)
    if not by_slots and objects.size_bytes is None:
        raise InputError(
            "the trace doesn't say how large adapters are",
            key="--capacity",
            got=options.capacity,
            hint="give --adapter-size, or --slots instead of --capacity",
        )
    if by_slots and options.slots is None:
        notes.append("the trace doesn't say how large adapters are, so sizes count slots; --adapter-size gives bytes")
    for note in notes:
        message(f"note: {note}", options.quiet)
    if not by_slots and objects.size_bytes is not None:
        check_byte_sums(len(objects.adapter), objects.size_bytes)
    with progress_bar(options.quiet, "replaying") as progress:
        result = study_cache(
            objects.adapter,
            objects.size_bytes,
            policies,
            CacheSizes(wanted or _default(objects, by_slots), by_slots),
            progress=progress,
        )
    written = [] if folder is None else _write(folder, options.trace, result, notes)
    if options.json:
        say_json([point.as_json() for point in result.points])
        return
    _print(result, written)


def _print(result: CacheResult, written: Sequence[tuple[str, Path]]) -> None:
    from reports.tables.cache_tables import miss_table
    from reports.text.cache_text import headline, sentences

    table = miss_table(result)
    say(headline(result), "")
    print_rich(rich_table(table))
    say(table.note, "")
    for text in sentences(result):
        say(text)
    say("")
    for label, path in written:
        say_file(f"{label:7} ", path)


def _write(folder: Path, trace: Path, result: CacheResult, notes: Sequence[str]) -> list[tuple[str, Path]]:
    from reports.pages.cache_page import CachePage, write_page
    from sim.results.run_directory.result_files import digest_file, write_text
    from sim.results.traces.cache_points import cache_csv, curve_csv
    from sim.version import __version__

    write_text(folder / TABLE, cache_csv(result.points))
    write_text(folder / CURVE, curve_csv(result))
    page = CachePage(
        name=trace.name,
        result=result,
        notes=notes,
        provenance=[
            ("Trace", f"{trace.name}, sha256 {digest_file(trace)[:12]}"),
            ("Policies", ", ".join(result.policies)),
            ("Shuffles", f"{result.shuffles}, seeds fixed"),
            ("Version", f"loraplan {__version__}"),
        ],
        command=shlex.join(["loraplan", *sys.argv[1:]]),
    )
    path = write_page(page, folder / PAGE)
    return [("report", path), ("table", folder / TABLE), ("curve", folder / CURVE)]


def _default(objects: AdapterSequence, by_slots: bool) -> tuple[int, ...]:
    from sim.studies.traces.cache_study import default_capacities, default_slots

    if by_slots or objects.size_bytes is None:
        return default_slots(len(objects.names))
    return default_capacities(objects.size_bytes)


def _wanted(capacity: str | None, slots: str | None) -> list[int]:
    if slots is not None:
        return [_count("--slots", word) for word in _words("--slots", slots)]
    if capacity is not None:
        return [_bytes("--capacity", word) for word in _words("--capacity", capacity)]
    return []


def _words(key: str, text: str) -> list[str]:
    """Return what stands between the commas, each once, in order."""
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise InputError("there is nothing between two commas", key=key, got=text, allowed="a list such as a,b,c")
    return list(dict.fromkeys(words))


def _count(key: str, word: str) -> int:
    if not word.isascii() or not word.isdigit() or not 0 < int(word[:20]) <= _MOST_SLOTS:
        raise InputError("not a number of slots", key=key, got=word, allowed="whole numbers from 1 on, such as 16,32")
    return int(word)


def _bytes(key: str, word: str) -> int:
    from pydantic_core import PydanticCustomError

    from sim.spec.units import parse_bytes

    try:
        size = parse_bytes(word)
    except PydanticCustomError as error:
        context = error.context or {}
        raise InputError(
            context["problem"], key=key, got=word, allowed=context["allowed"] or None, hint=context["hint"] or None
        ) from None
    if size == 0:
        raise InputError("out of range", key=key, got=word, allowed="above 0 B, up to 1000 TB")
    return size
