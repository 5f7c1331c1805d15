"""Fit what engines add to their kernels: ``python validation/overheads/overheads.py STAGES.csv ...``.

Needs the extra ``kernels``. The tables have measured stages of vLLM servers (docs/validation.md). Writes
``calibrate/kernels/overheads.json``, which ``loraplan profiles build`` reads, then replays the measured points with the
simulator and built profiles, and writes the tables of judged.md and fit.md beside it.
Takes about three minutes.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from calibrate.kernels.around_kernels import FILE, EngineOverhead, read_overheads
from calibrate.kernels.kernel_tables import ENGINES, EXPERTS_ALONE
from sim.results.run_directory.result_files import write_json
from sim.studies.fidelity.measured_runs import read_table
from sim.studies.fidelity.serving_stages import stages_of
from validation import ROOT
from validation.overheads.overhead_fit import (
    DeploymentError,
    OverheadFit,
    covered,
    fit_overheads,
    levels,
    predict_points,
    widened,
)
from validation.overheads.replayed_points import ReplayedPoint, replay_points
from validation.overheads.serving_points import DeploymentGroup, ServingPoint, serving_points
from validation.overheads.vllm_overhead import fit_vllm, gaps_of

PAGE = ROOT / "validation" / "overheads" / "judged.md"
FIT_PAGE = PAGE.with_name("fit.md")
BEGIN = "<!-- written by validation/overheads/overheads.py -->"
END = "<!-- end of what validation/overheads/overheads.py writes -->"
FLAG = 0.3
_CLASS = "| engine | card | model | weights | GPUs |"


_HOPPER = "Dense models under vLLM and TensorRT-LLM on H100 and H200"
_OTHER_CARDS = "Dense models under vLLM and TensorRT-LLM on B200"
_SGLANG = "Dense models under SGLang"
_EXPERTS = "gpt-oss-120b, a mixture of experts"


def main(tables: list[str]) -> int:
    """Fit, replay, and write the three files."""
    points, others = serving_points()
    predicted = predict_points(points, progress=_progress)
    rest = [each for each in predicted if each.point.group.engine != "vllm"]
    stages = [stage for table in tables for stage in stages_of(read_table(Path(table)))]
    vllm = fit_vllm(gaps_of(predicted, stages))
    fit, swapped = fit_overheads(rest), fit_overheads(rest, swapped=True)
    fit = OverheadFit(fit.overheads | vllm.overheads, (*fit.errors, *vllm.errors))
    _write_overheads(fit.overheads)
    judging = {each.group for each in fit.errors if each.role.startswith(("judges", "held out"))}
    replayed = replay_points(point for point in points if point.group in judging)
    overheads = widened(fit.overheads, {group: _errors(found)[0] for group, found in _by_group(replayed).items()})
    _write_overheads(overheads)
    fit = replace(fit, overheads=overheads)
    replayed = [replace(each, spread=_spread_of(each, overheads)) for each in replayed]
    count = (
        f"{len(points):,} of the {len(points) + others:,} points are of dense models or of gpt-oss-120b, on one "
        "replica; the others are of other mixtures of experts, or split prompts and answers over servers."
    )
    _write(
        PAGE, [count, _simulated(replayed, refused_of((each for each in points if each.group in judging), replayed))]
    )
    _write(FIT_PAGE, [_schedule(fit), _swapped(fit, swapped), _coefficients(fit)])
    return 0


def _write_overheads(overheads: Mapping[str, EngineOverhead]) -> None:
    read_overheads.cache_clear()
    write_json(FILE, {level: asdict(overhead) for level, overhead in overheads.items()})


def refused_of(points: Iterable[ServingPoint], replayed: Iterable[ReplayedPoint]) -> list[DeploymentGroup]:
    """Return the deployments whose points could not be replayed; one that has only stages has none."""
    return sorted({each.group for each in points} - {each.point.group for each in replayed})


def _write(page: Path, parts: list[str]) -> None:
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}", encoding="utf-8")


def _progress(done: int, total: int) -> None:
    if done % 100 == 0:
        print(f"{done} of {total} points", file=sys.stderr)


def _simulated(replayed: list[ReplayedPoint], refused: list[DeploymentGroup]) -> str:
    """Return the errors of the simulator on all points of deployments that judge."""
    groups = _by_group(replayed)
    every = [each for found in groups.values() for each in found]
    classes: dict[str, list[ReplayedPoint]] = {name: [] for name in (_HOPPER, _OTHER_CARDS, _SGLANG, _EXPERTS)}
    for each in every:
        classes[_class_of(each.point.group)].append(each)
    rows = []
    for group, found in sorted(groups.items()):
        token, first = _errors(found)
        median, ninety = np.quantile(np.abs(token), (0.5, 0.9))
        off = float(np.median(np.abs(first)))
        flags = f"{'!' if median > FLAG else ''} | {'!' if off > FLAG else ''}"
        spread = found[0].spread
        rows.append(
            f"{_cells(group)} {len(found)} | {sum(not each.point.fits for each in found)} | {median:.1%} | "
            f"{ninety:.1%} | {np.median(token):+.1%} | {off:.0%} | {np.median(first):+.0%} | "
            f"±{np.expm1(1.645 * spread):.0%} | {covered(token, spread):.0%} | {flags} |"
        )
    names = "; ".join(
        f"{ENGINES[engine]} on {gpus} {card} with {model} in {weights}"
        for engine, card, model, weights, gpus in refused
    )
    return "\n".join(
        [
            "**Through the simulator.** Every point of the deployments that judge, with the profile that "
            "`loraplan profiles build` makes:",
            "",
            _told("All", every),
            *(_told(name, found) for name, found in classes.items() if found),
            "",
            f"{_CLASS} points | beyond KV | TPOT error | 90 % below | bias | TTFT error | bias | 90 % interval "
            "| covers | TPOT | TTFT |",
            f"{'| --- ' * 4}{'| ---: ' * 10}| --- | --- |",
            *rows,
            "",
            *([f"`loraplan profiles build` refuses {names}.", ""] if refused else []),
            "Errors are medians of absolute relative errors, biases medians of signed ones. Points beyond KV outgrow "
            f"the KV cache. The last columns mark with ! what is off by more than {FLAG:.0%}.",
        ]
    )


def _by_group(replayed: Iterable[ReplayedPoint]) -> dict[DeploymentGroup, list[ReplayedPoint]]:
    groups: dict[DeploymentGroup, list[ReplayedPoint]] = defaultdict(list)
    for each in replayed:
        groups[each.point.group].append(each)
    return groups


def _spread_of(replayed: ReplayedPoint, overheads: Mapping[str, EngineOverhead]) -> float:
    """Return the spread of a point's profile, of its card's level where that was fitted."""
    level = levels(replayed.point.group)[0]
    return overheads[level].spread if level in overheads else replayed.spread


def _told(what: str, found: list[ReplayedPoint]) -> str:
    token, first = _errors(found)
    inside = np.mean([covered(np.array([error]), each.spread) for each, error in zip(found, token, strict=True)])
    return (
        f"- {what}: {len({each.point.group for each in found})} deployments with {len(found)} points, TPOT off by "
        f"{np.median(np.abs(token)):.1%} (median) and {np.quantile(np.abs(token), 0.9):.1%} (90 %), TTFT by "
        f"{np.median(np.abs(first)):.0%} (median) and {np.quantile(np.abs(first), 0.9):.0%} (90 %). The 90 % interval "
        f"of the built profiles covers {inside:.0%} of the measured TPOTs."
    )


def _errors(found: Iterable[ReplayedPoint]) -> tuple[np.ndarray, np.ndarray]:
    """Return signed relative errors of TPOT and TTFT."""
    pairs = [(each.token_s / each.point.token_s - 1, each.first_s / each.point.first_s - 1) for each in found]
    token, first = np.array(pairs).T
    return token, first


def _schedule(fit: OverheadFit) -> str:
    judged = [each for each in fit.errors if each.role.startswith(("judges", "held out"))]
    return "\n".join(
        [
            "**By the plain schedule**, to which coefficients are fitted, without points that outgrow the KV cache. "
            "Deployments of vLLM are predicted from other models, synchronous ones from other deployments:",
            "",
            _summary("All deployments that judge", judged),
            _summary(_HOPPER, [each for each in judged if _is_hopper(each.group)]),
            "",
            f"{_CLASS} points | role | TPOT error | 90 % below | bias | TTFT error |",
            "| --- | --- | --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
            *(_row(each) for each in fit.errors),
            "",
            f"Rows marked ! are off by more than {FLAG:.0%}: take no profile's word for such a deployment.",
        ]
    )


def _swapped(fit: OverheadFit, swapped: OverheadFit) -> str:
    """Return what the split the other way round says."""
    judged = [each for each in swapped.errors if each.role == "judges"]
    shares, counts = [], []
    for each in fit.errors:
        level = levels(each.group)[0]
        if each.role == "judges" and level in swapped.overheads:
            shares.append(covered(each.token, swapped.overheads[level].spread))
            counts.append(len(each.token))
    return "\n".join(
        [
            "**The other way round**, for which nothing was ever chosen: the deployments that judge calibrate, and the "
            "others judge.",
            "",
            _summary("All deployments that judge", judged),
            _summary(_HOPPER, [each for each in judged if _is_hopper(each.group)]),
            f"- Intervals as wide as these errors cover {np.average(shares, weights=counts):.0%} of the "
            f"{sum(counts)} points that judged before.",
        ]
    )


def _coefficients(fit: OverheadFit) -> str:
    return "\n".join(
        [
            "| level | factor | a step | a sequence | a step with prompts | host: a step | a sequence "
            "| outside of steps | spread |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(
                f"| {level} | {each.factor:.3f} | {each.step_s * 1e3:.2f} ms | {each.per_sequence_s * 1e6:.0f} us | "
                f"{each.prefill_step_s * 1e3:.2f} ms | {each.host_s * 1e3:.2f} ms | "
                f"{each.host_per_sequence_s * 1e6:.0f} us | {each.outside_s * 1e3:.0f} ms | {each.spread:.1%} |"
                for level, each in fit.overheads.items()
            ),
        ]
    )


def _class_of(group: DeploymentGroup) -> str:
    """Return the class of deployments by which errors are summed up."""
    if group.weights in EXPERTS_ALONE:
        return _EXPERTS
    if group.engine == "sglang":
        return _SGLANG
    return _HOPPER if group.card in ("h100-80gb", "h200") else _OTHER_CARDS


def _is_hopper(group: DeploymentGroup) -> bool:
    return _class_of(group) == _HOPPER


def _summary(what: str, errors: list[DeploymentError]) -> str:
    token = np.abs(np.concatenate([each.token for each in errors]))
    first = np.abs(np.concatenate([each.first for each in errors]))
    ttft = f", TTFT by {np.median(first):.0%} (median)" if len(first) else ""
    return (
        f"- {what}: {len(errors)} with {len(token)} points, TPOT off by {np.median(token):.1%} (median) and "
        f"{np.quantile(token, 0.9):.1%} (90 %){ttft}."
    )


def _row(each: DeploymentError) -> str:
    median, ninety = np.quantile(np.abs(each.token), (0.5, 0.9))
    flag = " !" if median > FLAG else ""
    return (
        f"{_cells(each.group)} {len(each.token)} | {each.role}{flag} | {median:.1%} | {ninety:.1%} | "
        f"{np.median(each.token):+.1%} | {f'{np.median(np.abs(each.first)):.0%}' if len(each.first) else ''} |"
    )


def _cells(group: DeploymentGroup) -> str:
    engine, card, model, weights, gpus = group
    return f"| {ENGINES[engine]} | {card} | {model} | {weights} | {gpus} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
