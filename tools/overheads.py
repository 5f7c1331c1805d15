"""Fit what engines add to their kernels: ``python tools/overheads.py`` (needs the extra ``kernels``).

Writes ``calibrate/kernels/overheads.json``, which ``loraplan profiles build`` reads, and the table of errors in
docs/validation.md. Takes about two minutes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from calibrate.kernels.engine_overhead import write_overheads  # noqa: E402
from calibrate.kernels.kernel_tables import ENGINES, EXPERTS_ALONE  # noqa: E402
from calibrate.kernels.overhead_fit import DeploymentError, OverheadFit, fit_overheads, predict_points  # noqa: E402
from calibrate.kernels.serving_points import serving_points  # noqa: E402

PAGE = ROOT / "docs" / "validation.md"
BEGIN, END = "<!-- written by tools/overheads.py -->", "<!-- end of what tools/overheads.py writes -->"
FLAG = 0.3


def main() -> int:
    """Fit, and write both files."""
    points, others = serving_points()
    fit = fit_overheads(predict_points(points, progress=_progress))
    write_overheads(fit.overheads)
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{_section(fit, len(points), others)}\n\n{END}{after}", encoding="utf-8")
    return 0


def _progress(done: int, total: int) -> None:
    if done % 100 == 0:
        print(f"{done} of {total} points", file=sys.stderr)


def _section(fit: OverheadFit, points: int, others: int) -> str:
    judged = [each for each in fit.errors if each.role == "judges"]
    dense = [each for each in judged if each.group[3] not in EXPERTS_ALONE]
    hopper = [each for each in dense if each.group[1] in ("h100-80gb", "h200") and each.group[0] != "sglang"]
    lines = [
        f"{points:,} of the {points + others:,} points are of dense models or of gpt-oss-120b, on one replica; the "
        "others are of other mixtures of experts, or split prompts and answers over servers.",
        "",
        _summary("All deployments that judge", judged),
        _summary("Dense models under vLLM and TensorRT-LLM on H100 and H200", hopper),
        "",
        "| engine | card | model | weights | GPUs | points | role | TPOT error | 90 % below | bias | TTFT error |",
        "| --- | --- | --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
        *(_row(each) for each in fit.errors),
        "",
        "Errors are medians of absolute relative errors; bias is the median signed error. "
        f"Rows marked ! are off by more than {FLAG:.0%}: take no profile's word for such a deployment.",
        "",
        "| level | factor | a step | a sequence | a step with prompts | outside of steps | spread |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {level} | {each.factor:.3f} | {each.step_s * 1e3:.2f} ms | {each.per_sequence_s * 1e6:.0f} us | "
            f"{each.prefill_step_s * 1e3:.2f} ms | {each.outside_s * 1e3:.0f} ms | {each.spread:.1%} |"
            for level, each in fit.overheads.items()
        ),
    ]
    return "\n".join(lines)


def _summary(what: str, errors: list[DeploymentError]) -> str:
    token = np.abs(np.concatenate([each.token for each in errors]))
    first = np.abs(np.concatenate([each.first for each in errors]))
    return (
        f"{what}: {len(errors)} with {len(token)} points, TPOT off by {np.median(token):.1%} (median) and "
        f"{np.quantile(token, 0.9):.1%} (90 %), TTFT by {np.median(first):.0%} (median)."
    )


def _row(each: DeploymentError) -> str:
    engine, card, model, weights, gpus = each.group
    median, ninety = np.quantile(np.abs(each.token), (0.5, 0.9))
    flag = " !" if median > FLAG else ""
    return (
        f"| {ENGINES[engine]} | {card} | {model} | {weights} | {gpus} | {len(each.token)} | {each.role}{flag} | "
        f"{median:.1%} | {ninety:.1%} | {np.median(each.token):+.1%} | {np.median(np.abs(each.first)):.0%} |"
    )


if __name__ == "__main__":
    sys.exit(main())
