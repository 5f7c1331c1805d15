"""The fit of S-LoRA's costs: from spans of known costs, and the bundled profile from its table."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from sim.errors import InputError
from sim.policies.costs import StepCosts
from sim.spec.profile import load_profile
from sim.studies.fidelity.least_squares import solve
from validation.published.slora_profile import (
    COLUMNS,
    FILE,
    NAME,
    SEQUENCE_RANK_S,
    TERMS,
    fit_slora,
    read_steps,
    spans_problem,
)

COSTS = dict(zip(TERMS, (0.005, 0.01, 1.5e-4, 1e-7, 4e-5, 3e-5, 6e-3), strict=True))


def write_steps(folder: Path, rows: list[dict[str, float]]) -> None:
    with open(folder / FILE, "w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def spans(count: int = 80) -> list[dict[str, float]]:
    rng = np.random.default_rng(3)
    rows = []
    for place in range(count):
        decodes, prefills, batch = int(rng.integers(200, 950)), int(rng.integers(2, 90)), float(rng.uniform(3, 200))
        row = {
            "adapters": 200.0,
            "adapter_rate_rps": 0.1 * (1 + place % 5),
            "decode_steps": decodes,
            "prefills": prefills,
            "prefill_requests": prefills * int(rng.integers(1, 20)),
            "adapter_loads": int(rng.integers(0, 300)),
            "batch_mean": batch,
            "distinct_adapters_mean": float(rng.uniform(0.3, 1)) * batch,
            "kv_tokens_mean": float(rng.uniform(260, 460)) * batch,
            "span_s": 1.0,
        }
        [made_of] = spans_problem([row]).features
        rows.append(row | {"span_s": float(made_of @ list(COSTS.values()))})
    return rows


def test_known_costs_are_found(tmp_path: Path) -> None:
    write_steps(tmp_path, spans())
    assert solve(spans_problem(read_steps(tmp_path / FILE))) == pytest.approx(list(COSTS.values()), rel=1e-3)
    profile = fit_slora(tmp_path, "test")
    host = profile.load.host
    assert 256 * host.per_tensor_s + (64 << 20) / host.bandwidth_bytes_per_s == pytest.approx(6e-3, rel=1e-3)
    costs, eight = (StepCosts(profile.step, 0, 13_754, rank) for rank in (32, 8))
    decoding = 40, 20_000, 30, 0, (40, 0, 0.0, 0, 0)
    assert costs.step(*decoding) == pytest.approx(0.015 + 0.006 + 0.002 + 0.0016 + 0.0009, rel=1e-3)
    assert costs.step(*decoding) - eight.step(*decoding) == pytest.approx(40 * 24 * SEQUENCE_RANK_S)
    for prompts in (1, 4):
        step_s = costs.step(250 * prompts, 0, prompts, 0, (prompts, 250 * prompts, 0.0, 0, 0))
        each_s = 1.5e-4 + 250 * 4e-5 + 3e-5
        assert step_s == pytest.approx(0.005 + prompts * each_s, rel=1e-3), "no prompt is free"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"span_s": 0.0}, r"steps.csv:2: span_s: not a value \(got 0.0, allowed: a number above 0\)"),
        ({"prefills": float("nan")}, r"steps.csv:2: prefills: not a value \(got nan, allowed: a number, 0 or more\)"),
    ],
)
def test_a_bad_value_is_named_with_its_line(tmp_path: Path, changes: dict[str, float], said: str) -> None:
    rows = spans(5)
    write_steps(tmp_path, [rows[0] | changes, *rows[1:]])
    with pytest.raises(InputError, match=said):
        fit_slora(tmp_path, "test")


def test_tables_that_cannot_be_fitted_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"steps.csv: the table can't be read"):
        fit_slora(tmp_path, "test")
    write_steps(tmp_path, spans(1))
    with pytest.raises(InputError, match=r"steps.csv: too few rows to fit costs to"):
        fit_slora(tmp_path, "test")
    (tmp_path / FILE).write_text("adapters\n1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"steps.csv:1: columns are missing \(got adapter_rate_rps, span_s"):
        fit_slora(tmp_path, "test")


def test_the_bundled_profile_is_what_its_command_writes(shared: Path) -> None:
    bundled, _ = load_profile(NAME)
    fitted = fit_slora(shared / "slora", bundled.provenance.command)
    assert fitted.provenance == bundled.provenance
    assert fitted.step.fixed_s == pytest.approx(bundled.step.fixed_s, rel=1e-6)
    assert fitted.load.host.bandwidth_bytes_per_s == pytest.approx(bundled.load.host.bandwidth_bytes_per_s, rel=1e-6)
    assert fitted.hold_out == bundled.hold_out
    assert fitted.memory == bundled.memory
