"""From timed steps to a profile: known costs are found again, scaling and choices are as documented."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("torch", reason="needs the gpu extra: pip install -e '.[gpu]'")

from calibrate.fit.sample_fit import step_hold_outs
from calibrate.fit.sample_terms import ADDITIVE, MULTIPLICATIVE, StepTerms, TimedSteps, timed_steps
from calibrate.steps.step_grid import QUICK, StepSpec, heads, make_grid
from sim.errors import InputError
from sim.studies.fidelity.least_squares import LEFT_OUT, solve

BASE = {"step": 2e-3, "token": 1e-5, "sequence": 2e-5, "kv_token": 4e-7}
LORA = {"lora": 1e-3, "slot": 2e-5, "adapter": 3e-4, "rank_sum": 1e-5}


def truth(one: dict[str, Any], form: str = ADDITIVE) -> float:
    base = BASE["step"] + sum(
        BASE[name] * one[key]
        for name, key in (("token", "tokens"), ("sequence", "sequences"), ("kv_token", "decode_kv_tokens"))
    )
    if not one["distinct"]:
        return base
    extra = LORA["lora"] + LORA["slot"] * one["slots"] + LORA["adapter"] * one["distinct"]
    if form == MULTIPLICATIVE:
        return base * (1 + extra / 5e-3)
    return base + extra + LORA["rank_sum"] * one["rank_sum"]


def timed(
    specs: list[StepSpec], form: str = ADDITIVE, layers: int = 32, noise: float = 0.0, backend: str = "grouped_mm"
) -> TimedSteps:
    """Return timed steps of a table of samples; costs are of 32 layers, of which ``layers`` were timed."""
    head_s = 5e-4
    rng, rows = np.random.default_rng(3), []
    for order, spec in enumerate(specs):
        one = spec.configuration()
        full = head_s if spec.kind == "head" else truth(dict(one.parameters), form)
        seconds = full if spec.kind == "head" else head_s + (full - head_s) * layers / 32
        rows += [
            {
                "key": one.key,
                "kind": one.kind,
                "parameters": dict(one.parameters) | {"floor_s": full / 3},
                "order": order,
                "nth": nth,
                "seconds": seconds * float(np.exp(noise * rng.normal())),
            }
            for nth in range(5)
        ]
    return timed_steps(pd.DataFrame(rows), {"layers": layers, "model_layers": 32}, backend)


GRID = make_grid(QUICK, ("grouped_mm", "bmm"), graphs=False)


def test_known_costs_are_found_again() -> None:
    steps = timed(GRID)
    terms = StepTerms.of(steps)
    problem = terms.problem(steps)
    assert np.abs(problem.errors(solve(problem))).max() < 1e-3
    cost = terms.step_cost(solve(problem))
    assert cost.lora.per_adapter_s == pytest.approx(LORA["adapter"], rel=0.02)
    assert cost.lora.per_slot_s == pytest.approx(LORA["slot"], rel=0.02)
    assert cost.per_kv_token_s == pytest.approx(BASE["kv_token"], rel=0.02)
    assert [tokens for tokens, _ in cost.tokens] == [0, *terms.knots]


@pytest.mark.parametrize("form", [ADDITIVE, MULTIPLICATIVE])
def test_the_true_form_wins_on_what_was_left_out(form: str) -> None:
    steps = timed(GRID, form, noise=0.01)
    terms = StepTerms.of(steps)
    errors = {
        line.form: line.mean
        for line in step_hold_outs(terms.problem(steps), terms)
        if line.what == "LoRA decode steps" and line.method == LEFT_OUT
    }
    assert min(errors, key=lambda name: errors[name]) == form
    assert errors[form] < 0.05


def test_fewer_layers_are_scaled_to_all() -> None:
    specs = [*GRID, *heads(GRID)]
    whole, part = timed(specs), timed(specs, layers=4)
    assert part.keys == whole.keys
    np.testing.assert_allclose(part.seconds, whole.seconds, rtol=1e-9)


def test_scaled_steps_whose_output_head_was_not_timed_are_left_out() -> None:
    specs = [*GRID, *(one for one in heads(GRID) if one.sequences != 32)]
    steps = timed(specs, layers=4)
    assert set(steps.column("sequences")) == {one.sequences for one in GRID} - {32}
    assert 32 in timed(specs).column("sequences"), "nothing is scaled where all layers were timed"


def test_graphs_count_where_there_are_any() -> None:
    grid = make_grid(QUICK, ("grouped_mm",), graphs=True)
    chosen = timed(grid)
    graphed = [key for key in chosen.keys if key.endswith(" graph")]
    assert graphed
    assert not {key.replace(" graph", " eager") for key in graphed} & set(chosen.keys)


def test_one_backend_at_a_time_on_all_linear_layers() -> None:
    for backend in ("grouped_mm", "bmm"):
        chosen = timed(GRID, backend=backend)
        assert {one["backend"] for one in chosen.parameters} == {"", backend}
    assert not [key for key in timed(GRID).keys if " q,v " in key]
    with pytest.raises(InputError, match="no steps of this LoRA backend"):
        timed(GRID, backend="triton")
