"""Fit a profile from counts of S-LoRA's steps: ``steps.csv``, whose rows are spans of 250 or 1,000 steps.

The table has neither times of single steps nor of loads, so costs are what explains the lengths of spans
(docs/validation.md). ``python validation/published/slora_profile.py DIR s-lora.json`` writes the profile.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calibrate.fit.report import fit_report
from calibrate.fit.sample_terms import hold_outs
from sim.arrays import Floats
from sim.cli.output import finish
from sim.errors import InputError
from sim.results.run_directory.result_files import digest_file
from sim.spec.profile import (
    Conditions,
    Draw,
    Envelope,
    LoadCost,
    LoraCost,
    Memory,
    Profile,
    Provenance,
    StepCost,
    TierCost,
    load_profile,
)
from sim.studies.fidelity.least_squares import (
    LEFT_OUT,
    Problem,
    additive,
    bootstrap,
    left_out_errors,
    significant,
    solve,
)
from sim.studies.fidelity.measured_runs import non_negative, read_table
from sim.studies.fidelity.step_terms import step_cost
from sim.traffic.adapters import SHAPES, parameters_per_rank

FILE = "steps.csv"
MODEL = "llama-2-7b"
NAME = f"unnamed-64gb/{MODEL}/s-lora"

COLUMNS = (
    "adapters",
    "adapter_rate_rps",
    "span_s",
    "decode_steps",
    "prefills",
    "prefill_requests",
    "adapter_loads",
    "batch_mean",
    "distinct_adapters_mean",
    "kv_tokens_mean",
)
"""What is read of ``steps.csv``."""

TERMS = ("step", "decode_step", "sequence", "kv_token", "token", "adapter", "load")
"""Seconds for: every step; a step that decodes, which never prefills; every sequence; every KV token attended by
decodes; every token of a step, the first prompt's included; every distinct adapter; every load."""

PROMPT_TOKENS, RANK = 250, 32
"""All requests of these runs are alike."""
SEQUENCE_RANK_S = 1.33e-6
"""Seconds for every sequence and rank of the largest adapter: S-LoRA's Table 3, S1 against S2 with 5 adapters
(``validation/gallery/slora.py``). Its kernels launch blocks for the largest rank of a batch."""
COPIED = 16e9
"""Bytes per second of an adapter that is copied twice, layer by layer, at an assumed 32 GB/s; the rest of a load is the
launches of copies. One rank was measured, so only other ranks and cards depend on it."""
_WIDTH = 2  # bytes of fp16
_TOTAL_BYTES, _POOL_TOKENS = 65_247 << 20, 82_528
"""Memory by nvidia-smi in the servers' logs, and ``--max_total_token_num`` of all runs."""
_WEIGHTS_BYTES = 6_738_415_616 * _WIDTH
_READS = "h100-64gb/llama-3.1-8b/vllm-0.8.5"
_PUBLISHED = "Agullo et al. 2025 (arXiv 2508.08343; FerranAgulloLopez/GPULLMAdapterOptimizationSLoRA, Apache-2.0)"


def read_steps(path: Path) -> list[dict[str, float]]:
    """Read the columns of ``steps.csv``.

    :raises InputError: naming the file, and the missing columns or the line and value that can't be used.
    """
    table = read_table(path)
    table.require(COLUMNS)
    rows = [
        {name: cells.number(name) for name in COLUMNS}
        | {"span_s": cells.parsed("span_s", _positive, "a number above 0")}
        for cells in table.rows
    ]
    if len({(row["adapters"], row["adapter_rate_rps"]) for row in rows}) < 2:
        raise InputError(
            "too few rows to fit costs to", file=table.file, got=len(rows), allowed="spans of two runs or more"
        )
    return rows


def _positive(text: str) -> float:
    value = non_negative(text)
    if value < 1e-6:
        raise ValueError
    return value


def spans_problem(rows: Sequence[dict[str, float]]) -> Problem:
    """Return what each span is made of; the spans of a run are one configuration.

    The prompts of one step cost what is linear in their number, so means over a span lose nothing.
    """
    column = {name: np.array([row[name] for row in rows]) for name in COLUMNS}
    decodes, prefills = column["decode_steps"], column["prefills"]
    prompts = np.maximum(column["prefill_requests"], prefills)  # exact to about one request
    return Problem.of(
        {
            "step": decodes + prefills,
            "decode_step": decodes,
            "sequence": column["batch_mean"] * decodes + prompts,
            "kv_token": column["kv_tokens_mean"] * decodes,
            "token": column["batch_mean"] * decodes + PROMPT_TOKENS * prompts,
            "adapter": column["distinct_adapters_mean"] * decodes + np.minimum(prompts, column["adapters"] * prefills),
            "load": column["adapter_loads"],
        },
        column["span_s"],
        kind=("spans of steps",) * len(rows),
        configuration=[f"{row['adapters']:g} adapters at {row['adapter_rate_rps']:g}/s" for row in rows],
    )


def fit_slora(folder: Path, command: str) -> Profile:
    """Fit the profile of S-LoRA.

    :param folder: has ``steps.csv``.
    :param command: reproduces the profile; kept in its provenance.
    :raises InputError: where the table can't be used.
    """
    problem = spans_problem(read_steps(folder / FILE))
    terms = solve(problem)
    return Profile(
        schema_version=1,
        name=NAME,
        status="derived",
        description=f"{MODEL} in fp16 on one GPU with 64 GB under S-LoRA, fitted from published counts of its steps.",
        device="unnamed GPU with 65,247 MiB, perhaps an NVIDIA H100 64GB",
        model=MODEL,
        dtype="fp16",
        step=_step_cost(terms),
        load=_load_cost(terms),
        memory=_memory(),
        envelope=Envelope(sequences=226, distinct_adapters=164, rank=RANK, slots=164),
        sources=_sources(),
        error="see docs/validation.md: predictions of 35 runs, by metric and regime",
        provenance=Provenance(
            command=command,
            data={FILE: digest_file(folder / FILE)},
            residuals={problem.kind[0]: round(float(np.median(np.abs(problem.errors(terms)))), 4)},
        ),
        conditions=Conditions(
            engine="S-LoRA (fork with more logs), PyTorch 2.0.1, CUDA 11.8, prefetch off",
            graphs="eager",
            lora_backend="S-LoRA's kernels (punica, Triton)",
            max_ranks=(RANK,),
        ),
        hold_out=(
            *hold_outs(problem, left_out_errors(problem, additive), "additive", LEFT_OUT),
            *hold_outs(problem, problem.errors(terms), "additive", "in sample"),
        ),
        draws=tuple(
            Draw(step=_step_cost(drawn), load=_load_cost(drawn))
            for drawn in (np.array(significant(terms)) for terms in bootstrap(problem))
        ),
    )


def _step_cost(terms: Floats) -> StepCost:
    seconds = dict(zip(TERMS, map(float, terms), strict=True))
    # Part of what a sequence takes at the one rank that was measured, as far as there is so much.
    rank_s = min(SEQUENCE_RANK_S, seconds["sequence"] / RANK)
    seconds["sequence"] -= rank_s * RANK
    lora = LoraCost(per_adapter_s=seconds["adapter"], per_sequence_max_rank_s=rank_s)
    return step_cost(seconds).model_copy(update={"decode_step_s": seconds["decode_step"], "lora": lora})


def _load_cost(terms: Floats) -> LoadCost:
    adapter_bytes = RANK * parameters_per_rank(SHAPES[MODEL], ("q", "k", "v", "o")) * _WIDTH
    load_s = float(terms[TERMS.index("load")])
    copied_s = min(adapter_bytes / COPIED, load_s)
    # No draw of the costs may divide by zero.
    host = TierCost(
        per_tensor_s=round((load_s - copied_s) / (8 * SHAPES[MODEL].layers), 9),
        bandwidth_bytes_per_s=round(adapter_bytes / max(copied_s, 1e-6)),
    )
    storage = load_profile(_READS)[0].load.storage.model_copy(update={"residual": (1.0,)})
    return LoadCost(storage=storage, host=host)


def _memory() -> Memory:
    shape = SHAPES[MODEL]
    kv_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * _WIDTH
    return Memory(
        total_bytes=_TOTAL_BYTES,
        utilization=1.0,
        weights_bytes=_WEIGHTS_BYTES,
        overhead_bytes=_TOTAL_BYTES - _WEIGHTS_BYTES - _POOL_TOKENS * kv_bytes,
        kv_bytes_per_token=kv_bytes,
    )


def _sources() -> dict[str, str]:
    reads = f"not measured, as S-LoRA keeps all adapters in host memory: that of {_READS}"
    return {
        "step": f"{FILE}: spans of 250 or 1,000 steps of {_PUBLISHED}; non-negative least squares, Huber's loss",
        "step.lora.per_adapter_s": "hardly told apart from loads and prefills, which come with it",
        "step.lora.per_sequence_max_rank_s": "S-LoRA's Table 3 (arXiv 2311.03285), rank 8 against ranks up to 64",
        "load": f"{FILE}, as step; only adapters of 64 MiB were measured. S-LoRA copies an adapter layer by layer, "
        "twice: 32 GB/s are assumed, and the rest is launches",
        **{f"load.storage.{name}": reads for name in TierCost.model_fields},
        "memory": f"{_POOL_TOKENS:,} tokens were given (--max_total_token_num) and 65,247 MiB are nvidia-smi's; "
        "overhead_bytes is what is left, of which 10 GB stayed free",
        "envelope": "largest values in runs.csv; slots are distinct adapters of one batch",
    }


if __name__ == "__main__":
    command = f"python validation/published/slora_profile.py DIR {Path(sys.argv[2]).name}"
    report = fit_report(fit_slora(Path(sys.argv[1]), command), Path(sys.argv[2]))
    finish(report, None, as_json=False, quiet=False)
