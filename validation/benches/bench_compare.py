"""Hold quick rows of ``bench.py`` against another commit, in turn on this machine; run by ``make bench-compare``.

``python validation/benches/bench_compare.py [COMMIT] [--rounds N]``: without a commit, against ``BASE``. Fails if the
rows are slower by more than 5 % in the geometric mean, or one of them by more than 15 %. Each tree runs its own
``bench.py``; a row's time is the least of all rounds, which a busy machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import geometric_mean

BASE = "75c6d70f"
"""Move it where a change is worth what it costs, and say in the commit's message what that is."""

ROWS = (
    "short requests, 40/s",
    "long, 12/s, a third miss",
    "engine vllm-0.8, short, 20/s",
    "vllm-0.32, saturated",
    "four, affinity-residency",
    "four, rollout in-place of all",
    "engine fixed, cache-thrash: 30/s",
)
"""The plain engine, misses, a preset at ease and saturated, a router, a rollout and the fixed engine."""

SLOWER = 1.05
ROW_SLOWER = 1.15
"""Rows are noisy by a few percent on a shared machine."""

ROOT = Path(__file__).resolve().parents[2]


def seconds(tree: Path, row: str) -> float:
    """Return the CPU seconds of one simulated request, by the benchmark of a tree.

    :raises subprocess.SubprocessError: if that fails; its ``stderr`` says why.
    """
    command = [sys.executable, "-P", str(tree / "validation/benches/bench.py"), "--row", row, "--quick"]
    env = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=tree, env=env)
    return float(json.loads(done.stdout)["request_s"])


def ratios(
    rows: Sequence[str], trees: tuple[Path, Path], rounds: int, measure: Callable[[Path, str], float] = seconds
) -> dict[str, float]:
    """Return how many times longer each row takes in the second tree than in the first."""
    found = {}
    for row in rows:
        taken = [[measure(tree, row) for tree in trees] for _ in range(rounds)]
        before, now = (min(times) for times in zip(*taken, strict=True))
        found[row] = now / before
        print(f"{row:44} {found[row]:6.2f}", flush=True)
    return found


def verdict(found: dict[str, float]) -> list[str]:
    """Return what is too slow, in words; empty if nothing is."""
    mean = geometric_mean(found.values())
    slow = [f"{row} takes {ratio:.2f} times as long" for row, ratio in found.items() if ratio > ROW_SLOWER]
    if mean > SLOWER:
        slow.append(f"all rows together take {mean:.2f} times as long (at most {SLOWER})")
    return slow


def main() -> None:
    """Print the ratios; exit with 1 if anything is too slow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", nargs="?", default=BASE)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    commit = asked.commit
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "before")
        git = ["git", "-C", str(ROOT), "worktree"]
        added = subprocess.run([*git, "add", "--detach", str(tree), commit], capture_output=True, text=True)
        if added.returncode:
            sys.exit(f"can't check out {commit}: {added.stderr.strip()}")
        try:
            print(f"{'time of a request, against ' + commit:44} {'ratio':>6}")
            slow = verdict(ratios(ROWS, (tree, ROOT), asked.rounds))
        except subprocess.SubprocessError as error:
            sys.exit(str(getattr(error, "stderr", None) or error))
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], capture_output=True)
    if slow:
        sys.exit("\n".join(slow))


if __name__ == "__main__":
    main()
