"""``loraplan cache``: replay a trace's requests on caches of several policies and sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim.cli.log_options import BaseModelOption, ColumnsOption, HiddenAdapterFromOption, trace_source
from sim.cli.options import JsonOption, QuietOption, parsed
from sim.cli.output import command_line, file_stem, finish, folder_for, progress_bar
from sim.errors import InputError
from sim.spec.policies import CACHE_DEFAULTS

_MOST_SLOTS = 10**12


def cache(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A trace that names the adapter of each request.")],
    policy: Annotated[
        str | None, typer.Option(help=f"Eviction policies, with commas between. Default: {','.join(CACHE_DEFAULTS)}.")
    ] = None,
    capacity: Annotated[
        str | None, typer.Option(help="Cache sizes, such as 2GB,10GB. Default: a range up to what all adapters take.")
    ] = None,
    slots: Annotated[
        str | None, typer.Option(help="Sizes in slots instead, such as 16,32: one adapter each, whatever its size.")
    ] = None,
    adapter_size: Annotated[
        str | None, typer.Option(help="Size of every adapter, such as 50MB. Default: the trace's adapter_bytes.")
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="Format of the trace (docs/trace.md).", hidden=True)
    ] = "auto",
    columns: ColumnsOption = None,
    base_model: BaseModelOption = None,
    adapter_from: HiddenAdapterFromOption = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that can't be used, and count them.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for results. Default: runs/cache-NAME, and none with --json.")
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Replay a trace's requests, without times, on caches of several policies and sizes: what misses, and why.

    Example: loraplan cache trace.csv --slots 16,32,64
    """
    from sim.policies.replay.cache_replay import replayable
    from sim.results.run_directory.result_files import digest_file
    from sim.studies.cache.report import cache_report
    from sim.studies.cache.study import cache_sizes, study_cache
    from sim.traffic.traces.read import read_adapter_sequence

    policies = [replayable(name) for name in (CACHE_DEFAULTS if policy is None else _words("--policy", policy))]
    if capacity is not None and slots is not None:
        raise InputError("give sizes in bytes or in slots, not both", key="--slots", got=slots)
    size = None if adapter_size is None else _bytes("--adapter-size", adapter_size)
    in_slots = None if slots is None else [_count("--slots", word) for word in _words("--slots", slots)]
    in_bytes = None if capacity is None else [_bytes("--capacity", word) for word in _words("--capacity", capacity)]
    source = trace_source([trace], columns, base_model, adapter_from, format_=format_, skip_bad=skip_bad)
    objects = read_adapter_sequence(source, adapter_size=size)
    if in_bytes is not None and objects.size_bytes is None:
        hint = "give --adapter-size, or --slots instead of --capacity"
        raise InputError("the trace doesn't say how large adapters are", key="--capacity", got=capacity, hint=hint)
    caches, notes = cache_sizes(objects, in_slots, in_bytes)
    folder = folder_for(out, f"cache-{file_stem(trace)}", as_json=json)
    with progress_bar(quiet, "replaying") as progress:
        result = study_cache(objects.adapter, objects.size_bytes, policies, caches, progress=progress)
    report = cache_report(result, trace.name, digest_file(trace), [*objects.notes, *notes], command_line())
    finish(report, folder, as_json=json, quiet=quiet)


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
    from sim.spec.units import parse_bytes

    size = parsed(parse_bytes, key, word)
    if size == 0:
        raise InputError("out of range", key=key, got=word, allowed="above 0 B, up to 1000 TB")
    return size
