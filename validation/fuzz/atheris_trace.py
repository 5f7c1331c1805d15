"""Fuzz the reader of traces by coverage: ``pip install atheris``, then ``atheris_trace.py -runs=100000``.

``--corpus`` reads only the corpus and needs no atheris.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from validation.fuzz.harness import fuzz, shortened

if "--corpus" not in sys.argv:
    import atheris

    with atheris.instrument_imports(include=["sim.traffic.tables", "sim.traffic.traces"]):
        from sim.traffic.traces import read
else:
    from sim.traffic.traces import read

from sim.errors import InputError
from sim.spec.sections.trace_source import Trace
from sim.traffic.traces.read import read_adapter_sequence

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

from trace_samples import LOGS, SAMPLES


def read_both(file: Path) -> None:
    """Read a file as a trace and as adapters alone."""
    with contextlib.suppress(InputError):
        read_adapter_sequence(str(file), skip_bad=False)
    read.read_trace(Trace(file=str(file), skip_bad=True))


if __name__ == "__main__":
    fuzz(read_both, shortened([*SAMPLES.values(), *LOGS.values()]), "t")
