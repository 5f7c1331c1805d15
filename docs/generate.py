"""Write the parts of the reference pages that follow from the code: run ``python docs/generate.py``.

A page holds hand-written text and regions between ``<!-- generated: NAME -->`` and ``<!-- end of NAME -->``; only
the regions are written. ``--check`` writes nothing and fails where a region is not what the code says now.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path

from reference.commands import command_sections
from reference.engines import engine_rules, mode_table, option_tables, version_table
from reference.metrics import metric_table
from reference.scenario import SCENARIO_PAGES, scenario_sections, scenario_table
from reference.vetting import threshold_table

DOCS = Path(__file__).resolve().parent


def main() -> int:
    """Write the pages, or say which are not current."""
    check = "--check" in sys.argv[1:]
    stale = 0
    for path, text in pages().items():
        if path.read_text(encoding="utf-8") == text:
            continue
        if check:
            stale += 1
            print(f"{path.name} is not current: run python docs/generate.py", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(path.name)
    return 1 if stale else 0


def pages() -> dict[Path, str]:
    """Return the text that every page with generated regions should have."""
    makers: dict[str, tuple[str, Callable[[], str]]] = {
        "scenario": ("scenario.md", scenario_table),
        **{
            f"scenario-{page}": (f"scenario-{page}.md", functools.partial(scenario_sections, page))
            for page in SCENARIO_PAGES
        },
        "metrics": ("metrics.md", metric_table),
        "commands": ("commands.md", command_sections),
        "engine-rules": ("memory.md", engine_rules),
        "adapter-modes": ("init.md", mode_table),
        "engine-versions": ("engines.md", version_table),
        "options-to-keys": ("init.md", option_tables),
        "thresholds": ("vet.md", threshold_table),
    }
    result: dict[Path, str] = {}
    for name, (page, make) in makers.items():
        path = DOCS / page
        text = result.get(path) or path.read_text(encoding="utf-8")
        region = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        if not region.search(text):
            raise SystemExit(f"{page} has no region {name!r}")
        body = make()
        result[path] = region.sub(lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text)  # type: ignore[misc]
    return result


if __name__ == "__main__":
    sys.exit(main())
