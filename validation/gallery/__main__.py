"""Predict what others published: ``python -m validation.gallery [SOURCE] [--rows FILE_OR_FOLDER] [--json]``.

Without a source, all of them. Exits with 1 where a stated bar is missed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sim.errors import InputError
from validation.gallery import page
from validation.gallery.entry import Bar, Entry, Row, Source

SOURCES = {
    "vtc": "vtc",
    "slora": "slora",
    "sglang-17913": "sglang_17913",
    "hours": "hours",
    "data-sheets": "sheets",
    "unsettled": "unsettled",
}
"""Modules by the name of the source; each has a SOURCE."""


def source_of(name: str) -> Source:
    """Import one source."""
    source = importlib.import_module(f"validation.gallery.{SOURCES[name]}").SOURCE
    assert isinstance(source, Source)
    return source


def report(source: Source, rows: Sequence[Row]) -> bool:
    """Print the rows and bars of every entry.

    Returns:
        Whether every bar is met.
    """
    met = True
    for entry in source.entries:
        mine = [row for row in rows if row.entry == entry.name]
        if not mine:
            continue  # other rows were given
        print(f"\n{entry.title}\n{entry.source}")
        for row in mine:
            pairs = (f"{key} {row.predicted[key]:.4g} ({value:.4g})" for key, value in row.published.items())
            pairs = pairs if row.published else (f"{key} {value:,.5g}" for key, value in row.predicted.items())
            print(f"  {row.name}{' (anchor)' if row.anchor else ''}: {', '.join(pairs)}")
        for bar in _bars(entry, rows):
            met = met and bar.met
            print(f"  {'met   ' if bar.met else 'MISSED'} {bar.text}: {bar.value:.3g}")
    return met


def _bars(entry: Entry, rows: Sequence[Row]) -> Sequence[Bar]:
    """Return the bars of an entry that has rows to judge."""
    judged = [row for row in rows if row.entry == entry.name and not row.anchor]
    return entry.bars(judged) if judged else ()


def predict(names: Sequence[str], rows: Path | None, *, as_json: bool, as_page: bool) -> int:
    """Predict and print these sources; 1 if a bar is missed."""
    met, sources, all_rows = True, {name: source_of(name) for name in names}, {}
    for name, source in sources.items():
        found = all_rows[name] = source.predict(rows)
        if as_json:
            for row in found:
                print(json.dumps(asdict(row)))
            met = met and all(bar.met for entry in source.entries for bar in _bars(entry, found))
        else:
            met = report(source, found) and met
    if as_page:
        page.write(sources, all_rows)
    return 0 if met else 1


def main(arguments: Sequence[str]) -> int:
    """Predict one source or all, print, and return the exit code: 1 for a missed bar, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m validation.gallery", description=__doc__)
    parser.add_argument("source", nargs="?", choices=SOURCES)
    parser.add_argument("--rows", type=Path, help="other rows of the same source: a file or folder with its columns")
    parser.add_argument("--json", action="store_true", help="one line a row")
    parser.add_argument("--page", action="store_true", help="also write docs/gallery.md and its plots, of all sources")
    chosen = parser.parse_args(arguments)
    if chosen.rows and not chosen.source:
        parser.error("--rows needs the source that the rows are of")
    if chosen.page and (chosen.source or chosen.json):
        parser.error("--page is of all sources, without --json")
    try:
        names = [chosen.source] if chosen.source else list(SOURCES)
        return predict(names, chosen.rows, as_json=chosen.json, as_page=chosen.page)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the rows has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
