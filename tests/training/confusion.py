"""Count what vet says of logs made by make_logs.py: ``python tests/training/confusion.py DIR``."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from sim.training.vet import vet_path


def main() -> None:
    """Print a table: for each recipe, how often each mode was named."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for file in sorted(Path(sys.argv[1]).rglob("made.json")):
        made = json.loads(file.read_text())
        (one,) = vet_path(file.parent)
        said = [f"{finding.mode} ({finding.confidence})" for finding in one.findings] or ["nothing"]
        counts.setdefault((made["mode"] or "healthy", made["recipe"]), Counter()).update(said)
    for (mode, recipe), counter in sorted(counts.items()):
        print(f"| {recipe} | {mode} | {', '.join(f'{said}: {n}' for said, n in counter.most_common())} |")


if __name__ == "__main__":
    main()
