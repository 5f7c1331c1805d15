"""Fuzz the reader of adapters' weights by coverage, as ``atheris_trace.py`` does with traces."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from validation.fuzz.harness import fuzz, shortened

if "--corpus" not in sys.argv:
    import atheris

    with atheris.instrument_imports(include=["sim.training"]):
        from sim.training.files import adapter_folder, safetensors_header
else:
    from sim.training.files import adapter_folder, safetensors_header

from calibrate.loads.synthetic_adapters import header_of
from sim.errors import InputError
from sim.spec.scenario import Targets

TARGETS: tuple[Targets, ...] = (("q",), ("q", "v"))
SHAPES = [(rank, targets, dtype) for rank in (1, 2, 64) for targets in TARGETS for dtype in ("bf16", "fp32")]


def read_both(file: Path) -> None:
    """Read weights alone and as part of an adapter."""
    with contextlib.suppress(InputError):
        safetensors_header.read_header(file)
    config = file.with_name("adapter_config.json")
    config.write_text('{"r": 2}')
    try:
        adapter_folder.read_adapter(file.parent)
    finally:
        config.unlink()


def whole(rank: int, targets: Targets, dtype: str) -> bytes:
    """Return weights of zeros."""
    start, size = header_of("tiny", rank, targets, dtype)
    return start + bytes(size)


if __name__ == "__main__":
    fuzz(read_both, shortened(whole(*shape) for shape in SHAPES), "adapter_model.safetensors")
