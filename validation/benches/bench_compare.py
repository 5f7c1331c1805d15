"""Hold a few quick rows of ``bench.py`` against the history; what CI reports after its tests, and never fails on.

``python validation/benches/bench_compare.py`` writes nothing; with ``--append`` (``make bench``) it adds what it
measured.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from validation.benches import bench
from validation.benches.bench_history import HISTORY, Figures, append, compare, read, table

ROWS = (
    "short requests, 40/s",
    "long, 12/s, a third miss",
    "engine vllm-0.8, short, 20/s",
    "vllm-0.32, saturated",
    "four, affinity-residency",
    "four, rollout in-place of all",
    "engine fixed, cache-thrash: 30/s",
)
"""The plain engine, misses, a preset at ease and saturated, a router, a rollout and the fixed engine: 14 s of one
core."""


def measured(names: tuple[str, ...]) -> tuple[dict[str, Figures], list[str]]:
    """Measure rows, and say which could not be."""
    rows, notes = {}, []
    for name in names:
        try:
            rows[name] = bench.measured(name, quick=True)
        except (subprocess.SubprocessError, ValueError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            notes.append(f"{name}: not measured: {said[-1] if said else type(error).__name__}")
    return rows, notes


def main(history: Path = HISTORY) -> None:
    """Print the comparison; exit with 0 whatever it says."""
    rows, failed = measured(ROWS)
    runs, unread = read(history)
    print("\n".join([*table(compare("quick", rows, runs)), *failed, *unread]))
    if "--append" in sys.argv:
        append("quick", rows, history)


if __name__ == "__main__":
    main()
