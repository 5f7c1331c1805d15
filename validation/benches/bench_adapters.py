"""Seconds of a census of 10,000 adapter folders with the headers of real ones; the data is holes in sparse files.

Three fleets for Llama-3.1-8B: all-linear adapters of rank 16 (448 tensors), whose headers are equal; a mix of five
ranks and three choices of targets; and one in which every header is another, which no cache of headers helps. Run
``python validation/benches/bench_adapters.py [--quick]``.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

from calibrate.loads.synthetic_adapters import BASE, MODEL, adapter_config, header_of, write_sparse
from sim.spec.scenario import Targets
from sim.training.files.census import find_copies, take_census

TARGETS: tuple[Targets, ...] = (("q", "v"), ("q", "k", "v", "o"), "all-linear")
CONFIG = adapter_config(BASE, 16, "all-linear")


def equal(root: Path, count: int) -> None:
    """Write adapters of one shape."""
    start, size = header_of(MODEL, 16, "all-linear", "bf16")
    for n in range(count):
        write_sparse(root / f"tenant-{n:05d}", start, size, CONFIG, n)


def mixed(root: Path, count: int) -> None:
    """Write adapters of several ranks and targets."""
    kinds = [(r, t, *header_of(MODEL, r, t, "bf16")) for r in (4, 8, 16, 32, 64) for t in TARGETS]
    for n in range(count):
        rank, targets, start, size = kinds[n % len(kinds)]
        write_sparse(root / f"tenant-{n:05d}", start, size, adapter_config(BASE, rank, targets), n)


def different(root: Path, count: int) -> None:
    """Write adapters of one shape, each with a header of its own."""
    start, size = header_of(MODEL, 16, "all-linear", "bf16")
    for n in range(count):
        own = start.replace(b'"format":"pt"', b'"format":"%05d"' % n)
        own = (len(own) - 8).to_bytes(8, "little") + own[8:]
        write_sparse(root / f"tenant-{n:05d}", own, size, CONFIG, n)


def main() -> None:
    """Print the table."""
    count = 300 if "--quick" in sys.argv else 10_000
    print(f"{'fleet':12} {'folders':>8} {'census s':>9} {'copies s':>9} {'CPU s':>7} {'peak MB':>8}")
    for fleet in (equal, mixed, different):
        with tempfile.TemporaryDirectory() as place:
            fleet(Path(place), count)
            start, busy = time.perf_counter(), time.process_time()
            census = take_census(Path(place))
            middle = time.perf_counter()
            copies = find_copies(census.entries)
            end, busy = time.perf_counter(), time.process_time() - busy
        assert len(census.entries) == count, census.failures[:3]
        assert not copies.sets, "all are different"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        print(f"{fleet.__name__:12} {count:8,} {middle - start:9.2f} {end - middle:9.2f} {busy:7.2f} {peak:8.0f}")


if __name__ == "__main__":
    main()
