"""Count what vet says of logs made by make_logs.py: ``python tests/training/confusion.py DIR`` prints a table."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from sim.training.vet_adapters import vet_path


def main() -> None:
    """Vet every log by itself and count, for each recipe, how often which mode was named."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for file in sorted(Path(sys.argv[1]).rglob("made.json")):
        made = json.loads(file.read_text())
        (one,) = vet_path(file.parent)
        said = [f"{finding.mode} ({finding.confidence})" for finding in one.findings] or ["nothing"]
        counts.setdefault((made["mode"] or "healthy", made["recipe"]), Counter()).update(said)
    print("| made to be | recipe | runs | vet said |\n| --- | --- | --- | --- |")
    for (mode, recipe), counter in sorted(counts.items()):
        said_so = ", ".join(f"{said}: {n}" for said, n in counter.most_common())
        print(f"| {mode} | {recipe} | {counter.total()} | {said_so} |")


if __name__ == "__main__":
    main()
