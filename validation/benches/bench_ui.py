"""How soon the page answers a change, and whether its memory stays flat.

``python validation/benches/bench_ui.py [NAME]...``: for each bundled scenario a control is moved to values that
were not shown before. Times are from sending a change to the estimate of the formulas, and to the answer of the short
run: medians over the changes. ``--changes N`` then makes so many changes of one page, and prints the memory of its
processes on the way.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sim.spec.scenario_file import bundled_scenarios
from sim.ui.library import Library

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "ui"))

import process_tree
from served_page import ServedPage, serve_page

MOVES = 7


def moves(name: str) -> list[dict[str, str]]:
    """Return changes of one control that a visitor would move first."""
    controls = {control.key: control for control in Library(Path()).open(name).controls if not control.disabled}
    control = controls.get("cache.gpu.slots") or next(each for each in controls.values() if each.stops)
    around = [stop for stop in control.stops if stop and stop != control.value]
    middle = len(around) // 2
    return [{control.key: stop} for stop in around[middle - 3 : middle + 4]][:MOVES]


def first_answers(page: ServedPage, asked: dict[str, Any]) -> tuple[float | None, float | None]:
    """Return seconds to the estimate, and to the first simulated answer; None where the design is refused."""
    started, found = time.perf_counter(), dict[str, float]()
    events = page.events(asked)
    for event in events:
        found[event["stage"]] = time.perf_counter() - started
        if event["stage"] in ("short", "final", "refused"):
            break
    events.close()
    return found.get("estimate"), found.get("short")


def memory(page: ServedPage) -> list[int]:
    """Return the resident memory of the page's processes in MB."""
    numbers = [page.process.pid, *process_tree.workers(page.process.pid)]
    texts = [(Path("/proc") / str(number) / "statm").read_text() for number in numbers]
    return [round(int(text.split()[1]) * 4096 / 1e6) for text in texts]


def measure(page: ServedPage, names: list[str]) -> None:
    """Print how soon each scenario's changes are answered."""
    every: list[tuple[float, float]] = []
    for name in names:
        first_answers(page, {"name": name})
        found = [first_answers(page, {"name": name, "values": values}) for values in moves(name)]
        pairs = [(rough, short) for rough, short in found if rough is not None and short is not None]
        if not pairs:
            print(f"{name:28} refused")
            continue
        every += pairs
        rough, short = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name:28} estimate {rough:5.0f} ms   short run {short:5.0f} ms   {len(pairs)} changes", flush=True)
    rough, short = (1000 * statistics.median(column) for column in zip(*every, strict=True))
    slow = sum(pair[1] > 0.7 for pair in every)
    print(f"{'all':28} estimate {rough:5.0f} ms   short run {short:5.0f} ms   {slow} of {len(every)} above 700 ms")


def flat(page: ServedPage, changes: int) -> None:
    """Change one page again and again, and print the memory of its processes."""
    for number in range(changes + 1):
        values = {"workload.arrivals.rate": f"{2 + number / 100:.2f}", "cache.gpu.slots": str(8 + number % 60)}
        first_answers(page, {"name": "quickstart", "values": values, "moved": "cache.gpu.slots"})
        if number % 100 == 0:
            print(f"after {number:4} changes: {memory(page)} MB", flush=True)


def main() -> None:
    """Serve the page and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--changes", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = serve_page(Path(folder), "quickstart")
        try:
            if not given.changes or given.names:
                measure(page, given.names or list(bundled_scenarios()))
            if given.changes:
                flat(page, given.changes)
        finally:
            page.stop()


if __name__ == "__main__":
    main()
