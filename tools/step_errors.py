"""Judge built profiles by decode steps measured on the H100-64GB: ``python tools/step_errors.py DIR``.

DIR has ``step_runs.csv`` (docs/validation.md says where it is from). Needs the extra ``kernels``; prints two tables.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from calibrate.kernels.lora_terms import MEASURED  # noqa: E402
from calibrate.kernels.measured_steps import StepErrors, base_decode_steps, lora_decode_steps  # noqa: E402


def main() -> int:
    """Print both tables."""
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    folder = Path(sys.argv[1])
    print("| base decode steps | steps | median | 90 % below | bias | left by kernels: a step | a sequence |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for model, errors in _all(folder, base_decode_steps):
        step_s, sequence_s = errors.left()
        print(f"{_row(model, errors)} {step_s * 1e3:.1f} ms | {sequence_s * 1e6:.0f} us |")
    print("\n| LoRA decode steps | steps | median | 90 % below | bias |\n| --- | ---: | ---: | ---: | ---: |")
    for model, errors in _all(folder, lora_decode_steps):
        print(_row(model, errors))
    return 0


def _all(folder: Path, judge: Callable[[Path, str], StepErrors]) -> list[tuple[str, StepErrors]]:
    return [(model, judge(folder, model)) for model in MEASURED]


def _row(model: str, errors: StepErrors) -> str:
    off = np.abs(errors.signed)
    return (
        f"| {model} | {len(off)} | {np.median(off):.1%} | {np.quantile(off, 0.9):.1%} | "
        f"{np.median(errors.signed):+.1%} |"
    )


if __name__ == "__main__":
    sys.exit(main())
