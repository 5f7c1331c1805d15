"""Fit a profile from published measurements: five tables of vLLM 0.8.5 runs on an H100 (docs/validation.md).

``python validation/published/profile_from_runs.py DIR --model llama-3.1-8b --out llama-3.1-8b.json`` writes it. A
derived profile has no residuals of single steps: the tables hold one median a run.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from calibrate.fit.report import fit_report
from sim.cli.output import finish, progress_bar
from sim.errors import InputError
from sim.results.run_directory.result_files import digest_file
from sim.spec.profile import Conditions, Draw, Envelope, LoadCost, Memory, Profile, Provenance, StepCost, TierCost
from sim.studies.fidelity.least_squares import DRAWS, Problem, bootstrap, significant
from sim.studies.fidelity.measured_runs import MODELS, MeasuredRun, read_lengths, read_runs
from validation.published.published_costs import (
    KV_COLUMNS,
    LOAD_COLUMNS,
    Cells,
    fit_loads,
    fit_memory,
    kv_tokens,
    load_cells,
    load_draws,
    load_hold_outs,
    read_rows,
)
from validation.published.step_fit import (
    GRAPH_TOKENS,
    STEP_COLUMNS,
    TERMS,
    ClosedLoops,
    ServedHours,
    closed_loop,
    cost_of,
    fit_steps,
    step_hold_outs,
)

FILES = ("runs.csv", "step_runs.csv", "load_samples.csv", "kv_capacity.csv", "sharegpt_lengths.json")
RULE = (
    "all runs sorted by model, workload group, slots and adapters; every 7th of them, from the 4th on: light and "
    "saturated ones of all slot counts and ranks"
)
_EVERY, _FROM = 7, 3
_PUBLISHED = "Agullo et al. 2025 (arXiv 2508.08343), vLLM 0.8.5, bf16, one H100 with 64 GB"


def calibration_subset(runs: Sequence[MeasuredRun]) -> list[MeasuredRun]:
    """Return the runs that calibrate; the others are left to be predicted."""
    order = sorted(runs, key=lambda run: (run.model, run.workload_group, run.gpu_slots, run.adapters, run.line))
    return order[_FROM::_EVERY]


def fit_profile(
    folder: Path,
    model: str,
    command: str,
    jobs: int = -1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Profile:
    """Fit the profile of one base model.

    :param folder: has the five ``FILES``.
    :param model: one of those in the tables, such as ``llama-3.1-8b``.
    :param command: reproduces the profile; kept in its provenance.
    :raises InputError: where a table or a column is missing.
    """
    if model not in MODELS.values():
        raise InputError("no measurements of this model", key="--model", got=model, allowed=", ".join(MODELS.values()))
    runs = read_runs(folder / "runs.csv")
    lengths = read_lengths(folder / "sharegpt_lengths.json")
    memory = fit_memory(read_rows(folder / "kv_capacity.csv", KV_COLUMNS, model), model)
    loops = closed_loops(folder, model, cast(Memory, memory.section))
    load_rows = read_rows(folder / "load_samples.csv", LOAD_COLUMNS)
    loads = fit_loads(load_rows, model)
    subset = [run for run in calibration_subset(runs) if run.model == model]
    if not subset:
        raise InputError(
            "too few runs of this model to calibrate with",
            file=str(folder / "runs.csv"),
            got=len(runs),
            allowed="every seventh run calibrates",
        )
    profile = Profile(
        schema_version=1,
        name=f"h100-64gb/{model}/vllm-0.8.5",
        status="derived",
        description=f"{model} in bf16 on one H100 with 64 GB under vLLM 0.8.5, fitted from published measurements.",
        device="NVIDIA H100 64GB",
        model=model,
        dtype="bf16",
        step=StepCost(),
        load=cast(LoadCost, loads.section),
        memory=cast(Memory, memory.section),
        envelope=Envelope(sequences=1000, distinct_adapters=384, rank=32, slots=384),
        sources=_sources(len(subset)),
        error="see docs/validation.md: predictions of the runs that did not calibrate, by metric and regime",
    )
    fitted = fit_steps(ServedHours(subset, lengths), loops.problem, profile, jobs=jobs, progress=progress)
    cells = load_cells(load_rows)
    return fitted.profile.model_copy(
        update={
            "provenance": Provenance(
                command=command,
                data={name: digest_file(folder / name) for name in FILES},
                calibration="; ".join((RULE, *_left_out(loops))),
                calibration_runs=tuple(run.name for run in subset),
                residuals={
                    name: round(error, 4)
                    for name, error in {**fitted.residuals, **loads.residuals, **memory.residuals}.items()
                },
            ),
            "conditions": _conditions(loops, subset),
            "hold_out": (*step_hold_outs(loops.problem, fitted.problem), *load_hold_outs(cells, model)),
            "draws": _draws(fitted.problem, cells, model),
        }
    )


def closed_loops(folder: Path, model: str, memory: Memory) -> ClosedLoops:
    """Return the usable closed-loop runs of one base model."""
    rows = read_rows(folder / "step_runs.csv", STEP_COLUMNS, model)
    return closed_loop(rows, model, lambda slots, rank: kv_tokens(memory, model, slots, rank))


def _left_out(loops: ClosedLoops) -> list[str]:
    return [f"{count} closed-loop runs left out: {reason}" for reason, count in loops.left_out.items()]


def _conditions(loops: ClosedLoops, subset: Sequence[MeasuredRun]) -> Conditions:
    places = [TERMS.index(name) for name in ("lora", "slot", "adapter", "adapter_max_rank")]
    lora, slots, distinct, times_rank = loops.problem.features[:, places].T
    turned_on = lora > 0
    ranks = np.rint(times_rank[turned_on] / distinct[turned_on]).astype(int).tolist()
    return Conditions(
        engine="vLLM 0.8.5, V1",
        graphs=f"up to {GRAPH_TOKENS} tokens",
        lora_backend="vLLM's Triton kernels (punica)",
        slots=tuple(sorted({*slots[turned_on].astype(int).tolist(), *(run.gpu_slots for run in subset)})),
        max_ranks=tuple(sorted({*ranks, *(run.max_lora_rank for run in subset)})),
    )


def _draws(problem: Problem, cells: Cells, model: str) -> tuple[Draw, ...]:
    steps = [cost_of(dict(zip(TERMS, significant(terms), strict=True))) for terms in bootstrap(problem)]
    return tuple(
        Draw(step=step, load=_rounded(load)) for step, load in zip(steps, load_draws(cells, model, DRAWS), strict=True)
    )


def _rounded(load: LoadCost) -> LoadCost:
    def tier(cost: TierCost) -> TierCost:
        numbers = cost.model_dump(exclude={"residual"})
        rounded = dict(zip(numbers, significant(list(numbers.values())), strict=True))
        return TierCost.model_validate({**rounded, "residual": significant(cost.residual, 4)})

    return LoadCost(storage=tier(load.storage), host=tier(load.host))


def _sources(runs: int) -> dict[str, str]:
    return {
        "step": f"step_runs.csv and {runs} of runs.csv ({_PUBLISHED}): non-negative least squares, four rounds",
        "step.per_passed_s": "0.44 us for each waiting request that the scheduler passes (vllm_h100 notes)",
        "load": f"load_samples.csv ({_PUBLISHED}): medians of cells; residuals are their spread, first reads left out",
        "memory": f"kv_capacity.csv ({_PUBLISHED}) for overhead_bytes; the rest is computed",
        "envelope": "largest values in step_runs.csv and runs.csv",
    }


def main() -> None:
    """Fit a profile, write it, and print how well it predicts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the five tables")
    parser.add_argument("--model", required=True, help=", ".join(MODELS.values()))
    parser.add_argument("--out", type=Path, required=True, help="the profile to write")
    parser.add_argument("--jobs", type=int, default=-1)
    given = parser.parse_args()
    script = "validation/published/profile_from_runs.py"
    command = shlex.join(["python", script, "DIR", "--model", given.model, "--out", given.out.name])
    with progress_bar(quiet=False) as progress:
        profile = fit_profile(given.folder, given.model, command, given.jobs, progress)
    finish(fit_report(profile, given.out), None, as_json=False, quiet=False)


if __name__ == "__main__":
    main()
